"""Samples as arrays: ``.npz`` files with ``arr_0``, channels last, as FID programs exchange them; folders of these."""

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset, array_identity, digest
from .errors import DataError
from .npz import MAX_CLASSES, Header, read_arrays

KEYS = ("arr_0", "arr_1")  # images and labels
PIECE = re.compile(r"samples-\d+-\d+\.npz")
MAX_HELD_OUT = 1000


def holds_samples(path: str | Path) -> bool:
    """Return whether an ``.npz`` file holds the array ``arr_0``, and no training images."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False  # `load_npz` says what is wrong
    return "arr_0.npy" in names and "train_images.npy" not in names


def is_sample_folder(path: str | Path) -> bool:
    """Return whether a path is a folder of pieces in ``.npz`` files, as `fastdiff.sampling.sample_to_folder` writes."""
    return os.path.isdir(path) and any(PIECE.fullmatch(name) for name in os.listdir(path))


def are_samples(path: str | Path) -> bool:
    """Return whether a path is a file or a folder of samples that `read_sample_arrays` reads."""
    return is_sample_folder(path) or (str(path).endswith(".npz") and holds_samples(path))


def read_sample_arrays(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read all samples of an ``.npz`` file, or of a folder of pieces in the order of their names.

    Returns:
        Images uint8 [N, C, H, W], and labels int64 [N] or None.

    Raises:
        DataError: a file is missing or damaged, an array has the wrong dtype, shape or range, or pieces differ.
    """
    files = [path]
    if os.path.isdir(path):
        files = [os.path.join(path, name) for name in sorted(os.listdir(path)) if PIECE.fullmatch(name)]
    arrays = [read_arrays(file, KEYS, _check) for file in files]
    for file, piece in zip(files, arrays, strict=True):
        same = piece["arr_0"].shape[1:] == arrays[0]["arr_0"].shape[1:] and piece.keys() == arrays[0].keys()
        if not same:
            raise DataError(f"{file} must have the image shape and the arrays of {files[0]}")
        labels = piece.get("arr_1")
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES:
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise DataError(f"{file}: arr_1 must lie in [0, {MAX_CLASSES - 1}], got values from {found}")
    images = np.concatenate([piece["arr_0"] for piece in arrays]).transpose(0, 3, 1, 2)
    labels = np.concatenate([piece["arr_1"] for piece in arrays]) if "arr_1" in arrays[0] else None
    return (
        torch.from_numpy(np.ascontiguousarray(images)),
        None if labels is None else torch.from_numpy(labels.astype(np.int64)),
    )


def load_sample_arrays(path: str | Path) -> Dataset:
    """Load samples as a data set with 256 levels, from an ``.npz`` file or a folder of pieces.

    Keys: ``arr_0``, uint8 [N, H, W, C] with C = 1 or 3, and optionally ``arr_1``, integers [N] from 0, the labels. One
    image in twenty, from 1 to 1000, is held out; a hash of its index chooses it.

    Raises:
        DataError: as `read_sample_arrays`, or fewer than two images.
    """
    images, labels = read_sample_arrays(path)
    if len(images) < 2:
        raise DataError(f"{path} must have at least 2 images, got {len(images)}")
    hashes = [digest(str(index)) for index in range(len(images))]
    order = torch.from_numpy(np.argsort(np.array(hashes), kind="stable"))
    held_out = min(max(len(images) // 20, 1), MAX_HELD_OUT)
    test, train = order[:held_out].sort().values, order[held_out:].sort().values
    parts = [(images[part], None if labels is None else labels[part]) for part in (train, test)]
    (train_images, train_labels), (test_images, test_labels) = parts
    identity = array_identity(256, train_images, train_labels, test_images, test_labels)
    classes = 0 if labels is None else int(labels.max()) + 1
    return Dataset(
        Path(path).resolve().stem, 256, classes, train_images, train_labels, test_images, test_labels, identity
    )


def _check(path: str | Path, headers: Mapping[str, Header]) -> None:
    """Check what the headers say, before the arrays are read."""
    if "arr_0" not in headers:
        raise DataError(f"{path} must have the array arr_0")
    shape = headers["arr_0"].shape
    if headers["arr_0"].dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        raise DataError(f"{path}: arr_0 must be uint8 [N, H, W, C], C = 1 or 3, and not empty, got {headers['arr_0']}")
    labels = headers.get("arr_1")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != shape[:1]):
        raise DataError(f"{path}: arr_1 must be integers of shape {shape[:1]}, got {labels}")
