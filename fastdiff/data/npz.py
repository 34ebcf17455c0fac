"""Data sets in NumPy's ``.npz`` files."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import DataError, Dataset

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "levels")
MAX_CLASSES = 65536


def load_npz(path: str | Path) -> Dataset:
    """Load a data set from an ``.npz`` file, as `numpy.savez` and `numpy.savez_compressed` write it.

    Keys: ``train_images`` and ``test_images``, uint8 [N, C, H, W] or [N, H, W]; optionally ``train_labels`` and
    ``test_labels``, integers [N] from 0; optionally ``levels``, an integer from 2 to 256 (default 256). Other keys are
    ignored. Arrays of Python objects are not read.

    Raises:
        DataError: the file is missing, damaged or not an ``.npz`` file; or an array is missing or has the wrong dtype,
            shape or range.
    """
    arrays = _arrays(path)
    levels = _levels(path, arrays.get("levels", np.array(256)))
    train_images, test_images = (_images(path, key, arrays, levels) for key in ("train_images", "test_images"))
    if train_images.shape[1:] != test_images.shape[1:]:
        shapes = [tuple(images.shape[1:]) for images in (train_images, test_images)]
        raise DataError(f"{path}: train_images and test_images must have one image shape, got {shapes[0]}, {shapes[1]}")
    train_labels = _labels(path, "train_labels", arrays, len(train_images))
    test_labels = _labels(path, "test_labels", arrays, len(test_images))
    if (train_labels is None) != (test_labels is None):
        raise DataError(f"{path} must have both train_labels and test_labels, or neither")
    num_classes = 1 + max(
        (int(labels.max()) for labels in (train_labels, test_labels) if labels is not None), default=-1
    )
    return Dataset(Path(path).stem, levels, num_classes, train_images, train_labels, test_images, test_labels)


def _arrays(path: str | Path) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:  # of ignored entries too: it compares the two copies of the name
                    key = name.removesuffix(".npy")
                    if key in KEYS:
                        arrays[key] = np.lib.format.read_array(member, allow_pickle=False)
                        if member.read(1):  # reading to the end also compares the checksum
                            raise ValueError(f"the header of {key} describes fewer bytes than the file holds")
    except Exception as error:  # damaged headers raise many things, such as tokenize.TokenError and MemoryError
        raise DataError(f"{path} cannot be read as an .npz file: {error}") from error
    return arrays


def _levels(path: str | Path, levels: np.ndarray) -> int:
    if levels.dtype.kind not in "iu" or levels.ndim != 0 or not 2 <= int(levels) <= 256:
        raise DataError(f"{path}: levels must be one integer from 2 to 256, got {levels.dtype} {levels}")
    return int(levels)


def _images(path: str | Path, key: str, arrays: dict[str, np.ndarray], levels: int) -> Tensor:
    """Images [N, C, H, W] of one part."""
    if key not in arrays:
        raise DataError(f"{path} must have the array {key}, got {', '.join(arrays) or 'none of the known arrays'}")
    images = arrays[key]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise DataError(
            f"{path}: {key} must be uint8 of shape [N, C, H, W] or [N, H, W] and not empty, "
            f"got {images.dtype} {images.shape}"
        )
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] > 4:
        raise DataError(f"{path}: {key} must have the channels before the height, got {images.shape}, channels last")
    if images.max() >= levels:
        raise DataError(f"{path}: {key} must have values from 0 to {levels - 1}, got {images.max()}")
    return torch.from_numpy(images if images.ndim == 4 else images[:, None])


def _labels(path: str | Path, key: str, arrays: dict[str, np.ndarray], count: int) -> Tensor | None:
    """Labels int64 [N] of one part, or None without them."""
    if key not in arrays:
        return None
    labels = arrays[key]
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(f"{path}: {key} must be integers of shape ({count},), got {labels.dtype} {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MAX_CLASSES:
        raise DataError(f"{path}: {key} must lie in [0, {MAX_CLASSES - 1}], got values from {low} to {high}")
    return torch.from_numpy(labels.astype(np.int64))
