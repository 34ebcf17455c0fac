"""CIFAR-10 (Krizhevsky 2009), from either official archive or from the folder that it unpacks to.

Five training batches and a test batch hold 10,000 images each. The archives differ in how a batch is stored:

- ``cifar-10-binary.tar.gz``, folder ``cifar-10-batches-bin``: records of 3073 bytes, one label byte and one image
  uint8 [3, 32, 32];
- ``cifar-10-python.tar.gz``, folder ``cifar-10-batches-py``: pickles, read by a restricted unpickler
  (`cifar10_pickle`).
"""

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .cifar10_pickle import PIXELS, Batch, read_pickle
from .dataset import Dataset, array_identity
from .errors import DataError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES = len(NAMES)
# An archive is not trusted, since a few megabytes of gzip can expand to any size. The published ones hold eight files
# of at most 31 MB, 187 MB in all, and pack less than a tenth of that away.
MAX_FILE_BYTES = 32 << 20
MAX_ARCHIVE_BYTES = 192 << 20
MAX_ARCHIVE_FILES = 1000
MAX_RATIO, SLACK = 16, 4 << 20  # bytes that a byte of an archive may unpack to, and bytes that any archive may


class Version(NamedTuple):
    """One of the two ways in which CIFAR-10 is published."""

    folder: str
    batches: tuple[str, ...]  # five for training, one for testing
    read: Callable[[str, bytes], Batch]  # (where, for errors; content of the file)


def _read_records(where: str, content: bytes) -> Batch:
    if not content or len(content) % (1 + PIXELS):
        raise DataError(f"{where} must hold whole records of {1 + PIXELS} bytes, got {len(content)} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return Batch(records[:, 1:], records[:, 0].astype(np.int64))


_NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
PYTHON = Version("cifar-10-batches-py", _NAMES, read_pickle)
BINARY = Version("cifar-10-batches-bin", tuple(f"{name}.bin" for name in _NAMES), _read_records)
VERSIONS = (BINARY, PYTHON)  # an archive with both is read without unpickling


def load_cifar10(path: str | Path) -> Dataset:
    """Load CIFAR-10 from ``cifar-10-binary.tar.gz``, ``cifar-10-python.tar.gz`` or the folder that one unpacks to.

    The published files give 50,000 training and 10,000 test images uint8 [N, 3, 32, 32] with 256 levels, and labels
    int64 [N] in [0, 10). Batches of another size are accepted if all six have the same. Nothing is unpacked to the
    disk. Other files of the archive or the folder are ignored.

    Raises:
        DataError: a file is missing, damaged or larger than a batch can be; a pickle asks for anything but arrays; or
            a batch is missing, differs in size from the others, or has the wrong shape, dtype or range.
    """
    try:
        contents = _from_folder(Path(path)) if os.path.isdir(path) else _from_archive(path)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read as CIFAR-10: {error}") from error
    version = max(VERSIONS, key=lambda version: len(contents.keys() & set(version.batches)))
    missing = [name for name in version.batches if name not in contents]
    if missing:
        raise DataError(
            f"{path} must be one of CIFAR-10's archives, cifar-10-binary.tar.gz and cifar-10-python.tar.gz, or the "
            f"folder that it unpacks to, but {', '.join(missing)} is missing"
        )
    batches = {name: version.read(f"{path}: {name}", contents.pop(name)) for name in version.batches}
    _check(path, batches)
    *train, test = batches.values()
    parts = *_joined(train), *_joined([test])
    return Dataset("cifar10", 256, CLASSES, *parts, identity=array_identity(256, *parts), class_names=NAMES)


def is_cifar10_folder(path: Path) -> bool:
    """Whether a folder holds the first batch of CIFAR-10, in either version."""
    return any((path / version.batches[0]).is_file() for version in VERSIONS)


def _from_folder(path: Path) -> dict[str, bytes]:
    """The content of every batch of either version in a folder, by file name."""
    files = [path / name for version in VERSIONS for name in version.batches if (path / name).is_file()]
    for file in files:
        _check_size(str(file), file.stat().st_size)
    return {file.name: file.read_bytes() for file in files}


def _from_archive(path: str | Path) -> dict[str, bytes]:
    """The content of every batch of either version in a tar.gz archive, by file name."""
    wanted = {f"{version.folder}/{name}": name for version in VERSIONS for name in version.batches}
    contents = {}
    with _BoundedGzip(path) as file:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for count, member in enumerate(archive, 1):
                if count > MAX_ARCHIVE_FILES:
                    raise DataError(f"{path} must hold at most {MAX_ARCHIVE_FILES} files to be CIFAR-10's archive")
                file.start_file()
                name = wanted.get(member.name.removeprefix("./"))
                if name and member.isreg() and not member.issparse() and (opened := archive.extractfile(member)):
                    _check_size(f"{path}: {name}", member.size)
                    contents[name] = opened.read()
        while file.read(1 << 20):  # gzip compares its checksum at the very end, which tarfile need not reach
            pass
    return contents


class _BoundedGzip(gzip.GzipFile):
    """A gzip file that raises DataError where it unpacks to more than a file, or an archive, of CIFAR-10 may have.

    The bound on each file also holds for tar's extended headers, which tarfile reads whole whatever size they claim.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.most = min(MAX_ARCHIVE_BYTES, os.path.getsize(path) * MAX_RATIO + SLACK)
        self.limit = min(MAX_FILE_BYTES, self.most)

    def start_file(self) -> None:
        self.limit = min(self.tell() + MAX_FILE_BYTES + (1 << 20), self.most)  # 1 MiB for headers and padding

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > self.limit:
            raise DataError(
                f"{self.name} must unpack to files of at most {MAX_FILE_BYTES} bytes, and to at most "
                f"{self.most} bytes in all, to be CIFAR-10's archive"
            )
        return data


def _check_size(where: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{where} must have at most {MAX_FILE_BYTES} bytes to be a batch of CIFAR-10, got {size}")


def _check(path: str | Path, batches: dict[str, Batch]) -> None:
    sizes = {name: len(batch.labels) for name, batch in batches.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{path}: all batches must have one size (10000 as published), got {sizes}")
    for name, (_, labels) in batches.items():
        outside = np.flatnonzero((labels < 0) | (labels >= CLASSES))
        if len(outside):
            place = outside[0]
            raise DataError(f"{path}: {name}: labels must lie in [0, {CLASSES - 1}], got {labels[place]} at {place}")


def _joined(batches: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of several batches, in their order."""
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return torch.from_numpy(images.reshape(-1, 3, 32, 32)), torch.from_numpy(labels)
