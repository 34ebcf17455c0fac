"""Many paths in two arrays: what every process that loads data can share or copy at little cost."""

import os
from collections.abc import Iterator, Sequence

import numpy as np


class PathList:
    """Relative paths, as their bytes on the file system one after the other, and int64 offsets [N + 1].

    A list of strings takes 80 bytes more for each path, and every process that reads it copies it, since reading
    changes reference counts.
    """

    def __init__(self, text: bytes, offsets: np.ndarray) -> None:
        self.text, self.offsets = text, offsets

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "PathList":
        """Build from the bytes of paths (`os.fsencode`)."""
        offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum([len(name) for name in names], out=offsets[1:])
        return cls(b"".join(names), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def encoded(self, position: int) -> bytes:
        """Return the bytes of one path."""
        return self.text[self.offsets[position] : self.offsets[position + 1]]

    def __getitem__(self, position: int) -> str:
        return os.fsdecode(self.encoded(position))

    def __iter__(self) -> Iterator[bytes]:
        return (self.encoded(position) for position in range(len(self)))

    def select(self, positions: np.ndarray) -> "PathList":
        """Return the paths at some positions, in their order."""
        return PathList.of([self.encoded(position) for position in positions.tolist()])
