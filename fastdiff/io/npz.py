"""NumPy's ``.npz`` files from anywhere: headers are checked before an array is read, and no Python object is."""

import io
import math
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np
from fastdiff_kernels.errors import FastdiffError
from numpy.lib import format as npy

MAX_HEADER = 10_000  # bytes, as NumPy itself allows
DEFLATE_RATIO, SLACK = 1032, 1024  # deflate gives at most 1032 bytes for one


class NpzError(FastdiffError, ValueError):
    """A file that is missing, damaged or not an ``.npz`` file, or an array of Python objects, which is a pickle."""


class Header(NamedTuple):
    """What an array's header says of it."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


class NpzFile:
    """An open ``.npz`` file: its ``headers`` by name, and arrays on request.

    Args:
        path: the file.
        known: the names to look at; others are ignored. None for all.

    Raises:
        NpzError: the file cannot be read, or a header does not fit the size of its entry.
    """

    def __init__(self, path: str | Path, known: Collection[str] | None = None) -> None:
        self.path = path
        self.headers: dict[str, Header] = {}
        self._entries: dict[str, zipfile.ZipInfo] = {}
        with _as_npz_errors(path):
            self._archive = zipfile.ZipFile(path)
            try:
                self._read_headers(known)
            except BaseException:
                self._archive.close()
                raise

    def __enter__(self) -> "NpzFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def read(self, name: str) -> np.ndarray:
        """Return an array.

        Raises:
            NpzError: it is damaged, or holds Python objects.
        """
        info = self._entries[name]
        with _as_npz_errors(self.path), self._archive.open(info) as member:
            array = npy.read_array(member, allow_pickle=False)
            if member.read(1):  # reading to the end also compares the checksum
                raise ValueError(f"{info.filename} holds more bytes than its header describes")
        return array

    def _read_headers(self, known: Collection[str] | None) -> None:
        size = os.path.getsize(self.path)
        for info in self._archive.infolist():
            with self._archive.open(info) as member:  # of ignored entries too: it compares the two copies of the name
                name = info.filename.removesuffix(".npy")
                if name in self._entries:
                    raise ValueError(f"it holds {name} twice")
                if known is None or name in known:
                    self._entries[name], self.headers[name] = info, _header(info, member, size)


@contextmanager
def _as_npz_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged headers raise many things, such as tokenize.TokenError
        raise NpzError(f"{path} cannot be read as an .npz file: {str(error) or type(error).__name__}") from error


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
