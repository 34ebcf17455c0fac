"""What was never written: which threads hold nothing in a register, or something computed from nothing.

A code per thread says which halves of a register are unset: 0, `LOW`, `HIGH` or `BOTH`. Halves count, since compilers
put one number into a pair for instructions that compute two at a time, and leave the other one out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from machine.formats import Array

if TYPE_CHECKING:
    from machine.chunk import Chunk

LOW, HIGH, BOTH = (np.uint8(code) for code in (1, 2, 3))
NOTHING_UNSET = np.zeros((1, 1), np.uint8)
EVERYTHING_UNSET = np.full((1, 1), BOTH)
Taint = Callable[["Chunk"], Array]


def all_of(codes: Array) -> Array:
    """A result that depends on all bits of its source."""
    return np.where(codes != 0, BOTH, np.uint8(0))


def of_whole(registers: Sequence[int]) -> Taint:
    """The default: every bit of the result depends on every bit of the registers."""

    def taint(chunk: Chunk) -> Array:
        return all_of(union(chunk, registers))

    return taint


def of_halves(registers: Sequence[int]) -> Taint:
    """Each half of the result depends on the same half of the registers: copies, and arithmetic on pairs."""
    return lambda chunk: union(chunk, registers)


def of_parts(registers: Sequence[int | None]) -> Taint:
    """A register packed from parts, lowest first; None stands for a constant."""

    def taint(chunk: Chunk) -> Array:
        middle = len(registers) // 2
        low, high = (
            union(chunk, [register for register in half if register is not None])
            for half in (registers[:middle], registers[middle:])
        )
        return np.where(low != 0, LOW, np.uint8(0)) | np.where(high != 0, HIGH, np.uint8(0))

    return taint


def part_of(codes: Array, place: int, count: int) -> Array:
    """Part ``place`` of ``count`` of an unpacked register."""
    return np.where(codes & (LOW if 2 * place < count else HIGH), BOTH, np.uint8(0))


def union(chunk: Chunk, registers: Sequence[int]) -> Array:
    codes = NOTHING_UNSET
    for register in registers:
        codes = codes | chunk.unset(register)
    return codes
