"""Data sets in NumPy's ``.npz`` files."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..io.npz import Header, NpzError, NpzFile
from .dataset import Dataset, array_identity
from .errors import DataError

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "levels", "class_names", "test_groups")
MAX_CLASSES = 65536


def load_npz(path: str | Path) -> Dataset:
    """Load a data set from an ``.npz`` file, as `numpy.savez` and `numpy.savez_compressed` write it.

    Keys: ``train_images`` and ``test_images``, uint8 [N, C, H, W] or [N, H, W]; optionally ``train_labels`` and
    ``test_labels``, integers [N] from 0; optionally ``levels``, an integer from 2 to 256 (default 256); optionally
    ``class_names``, strings [K], the names of the classes in the order of the labels; and optionally ``test_groups``,
    integers [N], as in `Dataset`. Other keys are ignored. Arrays of Python objects are not read. All headers are
    checked before an array is read.

    Raises:
        DataError: the file is missing, damaged or not an ``.npz`` file; or an array is missing or has the wrong dtype,
            shape or range.
    """
    arrays = read_arrays(path, KEYS, _check_headers)
    levels = _levels(path, arrays.get("levels", np.array(256)))
    train_images, test_images = (_images(path, key, arrays[key], levels) for key in ("train_images", "test_images"))
    train_labels, test_labels = (_labels(path, key, arrays.get(key)) for key in ("train_labels", "test_labels"))
    num_classes = 1 + max(
        (int(labels.max()) for labels in (train_labels, test_labels) if labels is not None), default=-1
    )
    names, groups = _class_names(path, arrays.get("class_names"), num_classes), arrays.get("test_groups")
    identity = array_identity(levels, train_images, train_labels, test_images, test_labels)
    return Dataset(
        Path(path).stem, levels, len(names) or num_classes, train_images, train_labels, test_images, test_labels,
        identity, names, None if groups is None else torch.from_numpy(groups.astype(np.int64)),
        "" if groups is None else "groups",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ reading


def read_arrays(
    path: str | Path, keys: Sequence[str], check: Callable[[str | Path, Mapping[str, Header]], None]
) -> dict[str, np.ndarray]:
    """Read the arrays with these keys, as far as they are there, once ``check(path, headers)`` has accepted them.

    Raises:
        DataError: the file is missing, damaged or not an ``.npz`` file; and what ``check`` raises.
    """
    try:
        with NpzFile(path, keys) as file:
            check(path, file.headers)
            return {key: file.read(key) for key in file.headers}
    except NpzError as error:
        raise DataError(str(error)) from error.__cause__


# ------------------------------------------------------------------------------------------------ checking


def _check_headers(path: str | Path, headers: Mapping[str, Header]) -> None:
    """Check all that can be known before the arrays are read."""
    shapes = [_check_images(path, key, headers) for key in ("train_images", "test_images")]
    if shapes[0][1:] != shapes[1][1:]:
        found = f"{shapes[0][1:]}, {shapes[1][1:]}"
        raise DataError(f"{path}: train_images and test_images must have one image shape, got {found}")
    if ("train_labels" in headers) != ("test_labels" in headers):
        raise DataError(f"{path} must have both train_labels and test_labels, or neither")
    for key, shape in zip(("train_labels", "test_labels"), shapes, strict=True):
        header = headers.get(key)
        if header is not None and (header.dtype.kind not in "iu" or header.shape != shape[:1]):
            raise DataError(f"{path}: {key} must be integers of shape {shape[:1]}, got {header}")
    groups, names = headers.get("test_groups"), headers.get("class_names")
    if groups is not None and (groups.dtype.kind not in "iu" or groups.shape != shapes[1][:1]):
        raise DataError(f"{path}: test_groups must be integers of shape {shapes[1][:1]}, got {groups}")
    if names is not None and ("train_labels" not in headers or names.dtype.kind != "U" or len(names.shape) != 1):
        raise DataError(f"{path}: class_names must be strings, one for each class of train_labels, got {names}")
    levels = headers.get("levels")
    if levels is not None and (levels.dtype.kind not in "iu" or levels.shape != ()):
        raise DataError(f"{path}: levels must be one integer from 2 to 256, got {levels}")


def _check_images(path: str | Path, key: str, headers: Mapping[str, Header]) -> tuple[int, ...]:
    """Return the shape [N, C, H, W] of the images of one part."""
    if key not in headers:
        raise DataError(f"{path} must have the array {key}, got {', '.join(headers) or 'none of the known arrays'}")
    header = headers[key]
    shape = header.shape
    if header.dtype != np.uint8 or len(shape) not in (3, 4) or not math.prod(shape):
        raise DataError(f"{path}: {key} must be uint8 of shape [N, C, H, W] or [N, H, W] and not empty, got {header}")
    if len(shape) == 4 and shape[3] <= 4 < shape[1]:
        raise DataError(f"{path}: {key} must have the channels before the height, got {shape}, channels last")
    return shape if len(shape) == 4 else (shape[0], 1, *shape[1:])


def _levels(path: str | Path, levels: np.ndarray) -> int:
    if not 2 <= int(levels) <= 256:
        raise DataError(f"{path}: levels must be one integer from 2 to 256, got {levels}")
    return int(levels)


def _images(path: str | Path, key: str, images: np.ndarray, levels: int) -> Tensor:
    """Images [N, C, H, W] of one part."""
    if images.max() >= levels:
        raise DataError(f"{path}: {key} must have values from 0 to {levels - 1}, got {images.max()}")
    return torch.from_numpy(images if images.ndim == 4 else images[:, None])


def _labels(path: str | Path, key: str, labels: np.ndarray | None) -> Tensor | None:
    """Labels int64 [N] of one part, or None without them."""
    if labels is None:
        return None
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MAX_CLASSES:
        raise DataError(f"{path}: {key} must lie in [0, {MAX_CLASSES - 1}], got values from {low} to {high}")
    return torch.from_numpy(labels.astype(np.int64))


def _class_names(path: str | Path, names: np.ndarray | None, num_classes: int) -> tuple[str, ...]:
    """The names of the classes; () without."""
    found = () if names is None else tuple(map(str, names))
    if names is not None and (len(found) < num_classes or len(set(found)) < len(found) or not all(found)):
        raise DataError(
            f"{path}: class_names must be different names, one for each label in 0 .. {num_classes - 1} or more, "
            f"got {', '.join(map(repr, found))[:200] or 'none'}"
        )
    return found
