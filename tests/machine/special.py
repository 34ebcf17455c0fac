"""Special registers: where a thread is in its block, and a block in the grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from machine.chunk import Chunk

AXES = ("x", "y", "z")
ONE = np.ones((1, 1), np.uint32)


def special_register(name: str) -> Callable[[Chunk], np.ndarray] | None:
    """An accessor of a special register; None if the machine does not know the name."""
    base, _, axis = name.partition(".")
    if not axis:
        return {
            "%laneid": lambda chunk: chunk.thread & np.uint32(31),
            "%warpid": lambda chunk: chunk.thread >> np.uint32(5),
        }.get(base)
    if axis not in AXES:
        return None
    place = AXES.index(axis)
    match base:
        case "%tid":
            return (lambda chunk: chunk.thread) if place == 0 else lambda chunk: ONE * np.uint32(0)
        case "%ntid":
            return (lambda chunk: ONE * np.uint32(chunk.threads)) if place == 0 else lambda chunk: ONE
        case "%ctaid":
            return lambda chunk: chunk.program[place]
        case "%nctaid":
            return lambda chunk: ONE * np.uint32(chunk.grid[place])
    return None
