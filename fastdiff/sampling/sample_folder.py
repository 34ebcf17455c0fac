"""A folder of samples on disk: pieces that are committed one by one, and ``samples.json`` with the request of them all.

A piece is a range of sample indices: PNG files named by the index, or one ``.npz`` file. Its files are written under
temporary names and renamed; then ``samples.json`` lists its first and last index, its bytes and its CRC-32. A process
that is killed loses the piece that it was drawing and no other: what is not listed, or does not match its checksum, is
drawn again. Every PNG file that is seen is complete. PNG files are not synchronised to the disk one by one: what a
machine loses with its power, the same call finds by the checksum.

Shards (k of K, independent processes or machines) may share a folder. Each writes a list of its own,
``samples-k-of-K.json``, and reads those of the others.
"""

import json
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..io import files
from ..io.configuration import differences
from ..io.folders import Json
from ..io.image_files import npz_bytes, png_bytes
from ..kernels import FastdiffError, InvalidValueError

FORMATS = ("png", "npz")
VERSION = 1
LIST = re.compile(r"samples(-\d+-of-\d+)?\.json")
LOST = "is damaged; choose a new folder, or empty this one to draw its images again"


class SampleFolderError(FastdiffError, RuntimeError):
    """A folder that cannot take samples: other files, samples of another request, or a damaged list."""


@dataclass(frozen=True)
class Piece:
    """The samples ``first`` .. ``last`` on disk: their size, and the CRC-32 of their files one after the other."""

    first: int
    last: int
    bytes: int
    crc32: int


class SampleFolder:
    """The samples ``first`` .. ``first + n - 1`` of a request in a folder.

    Args:
        path: the folder; it is made by `begin`.
        request: what the samples are a function of, in plain JSON types, with ``n``, ``first``, ``piece`` (images of a
            piece) and ``format`` ("png" or "npz").
        shard: (k, K) with 1 <= k <= K: the pieces k - 1, k - 1 + K, ... are this process's.

    Raises:
        InvalidValueError: a shard or a format that is not allowed.
    """

    def __init__(self, path: str | Path, request: Json, shard: tuple[int, int] = (1, 1)) -> None:
        self.path, self.request, self.shard = Path(path), json.loads(json.dumps(request)), check_shard(shard)
        if request["format"] not in FORMATS:
            raise InvalidValueError(f"format must be one of {', '.join(FORMATS)}, got {request['format']!r}")
        k, shards = self.shard
        self.first, self.end, self.size = request["first"], request["first"] + request["n"], request["piece"]
        self.own = range(self.first, self.end, self.size)[k - 1 :: shards]
        self.list = self.path / ("samples.json" if shards == 1 else f"samples-{k}-of-{shards}.json")
        self.digits = max(6, len(str(self.end - 1)))
        self.pieces: dict[int, Piece] = {}

    def begin(self) -> list[int]:
        """Make or check the folder, clear what a killed process left, and return the first indices of missing pieces.

        The pieces of this shard that are listed, by any shard, are compared with their checksums.

        Raises:
            SampleFolderError: the folder holds something else, or samples of another request; the message names what
                differs.
            WriteError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = sorted(os.listdir(self.path))
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            raise files.WriteError(f"cannot write the folder {self.path}: {error}") from error
        lists = [name for name in names if LIST.fullmatch(name)]
        others = [name for name in names if not name.startswith(".")]
        if others and not lists:
            raise SampleFolderError(
                f"{self.path} must be a new or empty folder, or one with samples of the same request; "
                f"it holds {others[0]} and no samples.json"
            )
        listed = [piece for name in lists for piece in self._read(name)]
        self.pieces = {piece.first: piece for piece in listed if piece.first in self.own and self._is_whole(piece)}
        missing = [first for first in self.own if first not in self.pieces]
        written = {self.list.name, *map(self._stem, missing)}  # by this shard alone
        for name in names:
            if files.is_temporary(name) and name.removeprefix(files.TEMPORARY).rpartition("-")[0] in written:
                files.discard(self.path / name)
        self._write()
        return missing

    def last(self, first: int) -> int:
        """Return the last index of the piece that begins with ``first``."""
        return min(first + self.size, self.end) - 1

    def write_piece(self, first: int, images: Tensor, labels: Tensor | None) -> Piece:
        """Write the files of a piece; `add` lists it.

        Args:
            first: index of its first image.
            images: uint8 [last - first + 1, C, H, W] in 0 .. 255.
            labels: int64 [last - first + 1] or None; PNG files hold none.

        Raises:
            WriteError: the files cannot be written. The message names the path and the bytes.
        """
        names = self._names(first)
        contents = [npz_bytes(images, labels)] if self.request["format"] == "npz" else list(map(png_bytes, images))
        staging = files.temporary_beside(self.path / self._stem(first))
        try:
            staging.mkdir()
            # waiting for the disk takes some 4 ms a file, and what it loses with its power the checksum finds
            write = files.write_synced if self.request["format"] == "npz" else Path.write_bytes
            for path, data in zip(names, contents, strict=True):
                write(staging / path.name, data)
            for path in names:
                os.replace(staging / path.name, path)
            files.sync_directory(self.path)
        except OSError as error:
            raise files.WriteError(files.cannot_write(names[0], sum(map(len, contents)), error)) from error
        finally:
            files.discard(staging)
        return Piece(first, self.last(first), *checksum(contents))

    def add(self, piece: Piece) -> None:
        """List a piece whose files are written.

        Raises:
            WriteError: the list cannot be written.
        """
        self.pieces[piece.first] = piece
        self._write()

    def missing(self) -> int:
        """Return the number of images of the whole request that no shard has listed, or whose files are not there."""
        lists = [name for name in os.listdir(self.path) if LIST.fullmatch(name)]
        listed = {piece.first: piece for name in lists for piece in self._read(name)}
        there = [piece for piece in listed.values() if self._has_its_size(piece)]
        return self.end - self.first - sum(piece.last - piece.first + 1 for piece in there)

    def _stem(self, first: int) -> str:
        """Return the name of a piece."""
        return f"samples-{first:0{self.digits}d}-{self.last(first):0{self.digits}d}"

    def _names(self, first: int) -> list[Path]:
        """Return the files of a piece."""
        if self.request["format"] == "npz":
            return [self.path / f"{self._stem(first)}.npz"]
        return [self.path / f"{index:0{self.digits}d}.png" for index in range(first, self.last(first) + 1)]

    def _is_whole(self, piece: Piece) -> bool:
        """Return whether the files of a piece are there and match its checksum."""
        try:
            return checksum(path.read_bytes() for path in self._names(piece.first)) == (piece.bytes, piece.crc32)
        except OSError:
            return False

    def _has_its_size(self, piece: Piece) -> bool:
        """Return whether the files of a piece are there, with as many bytes as are listed."""
        try:
            return sum(path.stat().st_size for path in self._names(piece.first)) == piece.bytes
        except OSError:
            return False

    def _read(self, name: str) -> list[Piece]:
        """Return the pieces that a list holds.

        Raises:
            SampleFolderError: it is damaged, or that of another request.
        """
        try:
            content = json.loads((self.path / name).read_bytes())
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']}, expected {VERSION}")
            pieces = [Piece(**piece) for piece in content["pieces"]]
            request = content["request"]
            if not isinstance(request, dict):
                raise TypeError("its request must be an object")
            if not all(isinstance(value, int) for piece in pieces for value in asdict(piece).values()):
                raise ValueError("a piece must have integers")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise SampleFolderError(f"{self.path / name} {LOST}: {error}") from error
        if request != self.request:
            raise SampleFolderError(
                f"{self.path} holds samples of another request: {differences(request, self.request)}; "
                "choose a new folder, or the same request to go on"
            )
        for piece in pieces:
            in_place = piece.first in range(self.first, self.end, self.size)
            if not in_place or piece.last != self.last(piece.first):
                raise SampleFolderError(f"{self.path / name} {LOST}: it lists {piece}, which is no piece")
        return pieces

    def _write(self) -> None:
        """Write the list of this shard."""
        pieces = [asdict(self.pieces[first]) for first in sorted(self.pieces)]
        content = {"version": VERSION, "request": self.request, "shard": list(self.shard), "pieces": pieces}
        files.write_atomically(self.list, (json.dumps(content, indent=1) + "\n").encode())


def checksum(contents: Iterable[bytes]) -> tuple[int, int]:
    """Return the number of bytes and the CRC-32 of files one after the other."""
    size = crc = 0
    for data in contents:
        size, crc = size + len(data), zlib.crc32(data, crc)
    return size, crc


def tensors_crc32(tensors: dict[str, Tensor], crc: int = 0) -> int:
    """Return the CRC-32 of the names and bytes of tensors, by name, beginning with ``crc``."""
    for name in sorted(tensors):
        data = tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8)
        crc = zlib.crc32(data.numpy().data, zlib.crc32(name.encode(), crc))
    return crc


def check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """Return a shard (k, K), checked.

    Raises:
        InvalidValueError: no two integers with 1 <= k <= K.
    """
    pair = isinstance(shard, (tuple, list)) and len(shard) == 2
    if not pair or not all(type(number) is int for number in shard) or not 1 <= shard[0] <= shard[1]:
        raise InvalidValueError(f"shard must be (k, K), integers with 1 <= k <= K, got {shard!r}")
    return shard[0], shard[1]
