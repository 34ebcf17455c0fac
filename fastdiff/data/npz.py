"""Data sets in NumPy's ``.npz`` files."""

import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from .dataset import Dataset, array_identity
from .errors import DataError

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "levels")
MAX_CLASSES = 65536
MAX_HEADER = 10_000  # bytes, as NumPy itself allows
DEFLATE_RATIO, SLACK = 1032, 1024  # deflate gives at most 1032 bytes for one


class Header(NamedTuple):
    """What an array's header says of it."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def load_npz(path: str | Path) -> Dataset:
    """Load a data set from an ``.npz`` file, as `numpy.savez` and `numpy.savez_compressed` write it.

    Keys: ``train_images`` and ``test_images``, uint8 [N, C, H, W] or [N, H, W]; optionally ``train_labels`` and
    ``test_labels``, integers [N] from 0; optionally ``levels``, an integer from 2 to 256 (default 256). Other keys are
    ignored. Arrays of Python objects are not read. All headers are checked before an array is read.

    Raises:
        DataError: the file is missing, damaged or not an ``.npz`` file; or an array is missing or has the wrong dtype,
            shape or range.
    """
    arrays = _arrays(path)
    levels = _levels(path, arrays.get("levels", np.array(256)))
    train_images, test_images = (_images(path, key, arrays[key], levels) for key in ("train_images", "test_images"))
    train_labels, test_labels = (_labels(path, key, arrays.get(key)) for key in ("train_labels", "test_labels"))
    num_classes = 1 + max(
        (int(labels.max()) for labels in (train_labels, test_labels) if labels is not None), default=-1
    )
    identity = array_identity(levels, train_images, train_labels, test_images, test_labels)
    return Dataset(Path(path).stem, levels, num_classes, train_images, train_labels, test_images, test_labels, identity)


# ------------------------------------------------------------------------------------------------ reading


def _arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The known arrays, once their headers have been checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            size, entries, headers = os.path.getsize(path), {}, {}
            for info in archive.infolist():
                with archive.open(info) as member:  # of ignored entries too: it compares the two copies of the name
                    key = info.filename.removesuffix(".npy")
                    if key in entries:
                        raise ValueError(f"it holds {key} twice")
                    if key in KEYS:
                        entries[key], headers[key] = info, _header(info, member, size)
            _check_headers(path, headers)
            return {key: _array(archive, info) for key, info in entries.items()}
    except DataError:
        raise
    except Exception as error:  # damaged headers raise many things, such as tokenize.TokenError
        raise DataError(f"{path} cannot be read as an .npz file: {str(error) or type(error).__name__}") from error


def _header(info: zipfile.ZipInfo, member: IO[bytes], size: int) -> Header:
    """Read the header of an array, and compare the size that it gives with the entry's, before anything is allocated.

    Raises:
        ValueError: they differ, or the entry claims more than its compressed bytes, in a file of ``size``, can give.
    """
    packed = min(info.compress_size, size)
    most = {zipfile.ZIP_STORED: packed, zipfile.ZIP_DEFLATED: packed * DEFLATE_RATIO + SLACK}
    if info.file_size > most.get(info.compress_type, 0):
        raise ValueError(f"{info.filename} claims {info.file_size} bytes in {packed} compressed ones")
    version = npy.read_magic(member)
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(member.read(width), "little")
    if length > MAX_HEADER:
        raise ValueError(f"the header of {info.filename} must have at most {MAX_HEADER} bytes, got {length}")
    start = npy.magic(*version) + length.to_bytes(width, "little")
    header = _parse(start + member.read(length))
    claimed = len(start) + length + math.prod(header.shape) * header.dtype.itemsize
    if claimed != info.file_size and not header.dtype.hasobject:
        raise ValueError(f"the header of {info.filename} describes {claimed} bytes, but it holds {info.file_size}")
    return header


def _parse(start: bytes) -> Header:
    file = io.BytesIO(start)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape must not be negative, got {shape}")
    return Header(shape, fortran, dtype)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        array = npy.read_array(member, allow_pickle=False)
        if member.read(1):  # reading to the end also compares the checksum
            raise ValueError(f"{info.filename} holds more bytes than its header describes")
    return array


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
