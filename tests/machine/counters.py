"""Counts what a launch executes and moves: instructions of warps, sectors of global memory, passes over shared memory.

A `Counter` is an observer, ``settings(observer=Counter())``; without one the machine runs as fast as before.

Instructions are those of PTX, which is not machine code: ptxas merges, splits and removes some. A GPU issues an
instruction for a whole warp as soon as one of its threads has reached it, also where the guard is false in all of them.

Global memory moves in sectors of 32 bytes. A request is one access of one warp. It *asks* for the sectors that its
threads touch, each once; their sum over all requests is what the first-level cache serves. What a launch *needs* are
the sectors that it touches at all, each once, which is what the device's memory moves at least.

Shared memory has 32 banks, and successive words of 4 bytes lie in successive banks. A bank serves one word in one pass;
threads that access the same word share it (CUDA C++ Programming Guide, "Shared Memory" of compute capability 5.x and
later). Accesses of 8 bytes per thread are made for each half of a warp by itself, those of 16 bytes for each quarter.
The guide says so of compute capability 2.x and nothing of later ones: it is a model that no profiler has confirmed. A
request takes as many passes as its fullest bank has words, summed over these parts, and at least one for each part with
active threads; the excess are its bank conflicts. A matrix of ldmatrix or stmatrix counts as a request of its own, and
takes one pass if its rows lie in different banks.
"""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from machine.formats import Array
from machine.global_memory import SHIFT
from machine.warp import by_warp

if TYPE_CHECKING:
    from machine.chunk import Chunk
    from machine.steps import Step

SECTOR = 32  # bytes
BANKS, WORD = 32, 4
FAMILIES = ("global", "shared", "exchange", "special", "other")
EXCHANGE = {"shfl", "vote", "redux", "bar", "barrier", "activemask", "match"}


def family(step: Step) -> str:
    """Which of `FAMILIES` an instruction belongs to."""
    if step.space:
        return step.space
    name = step.opcode.partition(".")[0]
    if name in EXCHANGE:
        return "exchange"
    return "special" if ".approx" in step.opcode or step.opcode.startswith("div.full") else "other"


def distinct(values: Array) -> Array:
    """Count the distinct values along the last axis; negative ones stand for nothing."""
    ordered = np.sort(values, axis=-1)
    return (ordered[..., 1:] != ordered[..., :-1]).sum(-1) + 1 - (ordered[..., 0] < 0)


def passes(words: Array) -> Array:
    """Passes of requests [requests, words]: the most words in one bank. Negative words stand for nothing."""
    ordered = np.sort(words, axis=-1)
    first = ordered >= 0
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    bank = np.arange(len(words))[:, None] * BANKS + ordered % BANKS
    return np.bincount(bank[first], minlength=len(words) * BANKS).reshape(-1, BANKS).max(1, initial=0)


@dataclass
class Traffic:
    """Accesses to one argument in one direction: sectors asked for, and which bytes were touched."""

    requests: int = 0
    asked: int = 0
    touched: Array = field(default_factory=lambda: np.zeros(0, bool))

    def touch(self, offsets: Array, size: int) -> None:
        """Mark accesses of ``size`` bytes at offsets that are multiples of it."""
        end = int(offsets.max()) + size
        if end > len(self.touched):
            grown = np.zeros(-(-max(end, 2 * len(self.touched)) // SECTOR) * SECTOR, bool)
            grown[: len(self.touched)] = self.touched
            self.touched = grown
        self.touched.reshape(-1, size)[offsets // size] = True

    @property
    def needed(self) -> int:
        return int(self.touched.reshape(-1, SECTOR).any(1).sum())

    @property
    def bytes(self) -> int:
        return int(self.touched.sum())


@dataclass
class SharedTraffic:
    """Requests of warps to shared memory, the passes that they take, and the passes that they would take at least."""

    requests: int = 0
    passes: int = 0
    least: int = 0

    @property
    def conflicts(self) -> int:
        return self.passes - self.least


@dataclass
class Counts:
    """One launch.

    Args:
        name: of the kernel.
        programs, threads: of the grid, and of a program.
        pointers: names of the arguments that are tensors, in the order of the regions of memory.
        instructions: issued for warps, by `FAMILIES`.
        global_memory: by argument and direction, "load" or "store".
    """

    name: str
    programs: int
    threads: int
    pointers: list[str]
    instructions: Tally[str] = field(default_factory=Tally)
    global_memory: dict[tuple[str, str], Traffic] = field(default_factory=dict)
    shared_memory: SharedTraffic = field(default_factory=SharedTraffic)

    @property
    def issued(self) -> int:
        """Instructions of warps."""
        return self.instructions.total()

    def sectors(self, what: str, direction: str | None = None) -> int:
        """Sectors ``asked`` or ``needed``, or ``bytes``, of all arguments."""
        return sum(
            getattr(traffic, what) for (_, way), traffic in self.global_memory.items() if direction in (None, way)
        )


class Counter:
    """An observer that counts launch by launch, in ``launches``."""

    def __init__(self) -> None:
        self.launches: list[Counts] = []
        self._half: Array | None = None

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, arguments: dict[str, object]) -> None:
        pointers = [name for name, value in arguments.items() if hasattr(value, "data_ptr")]
        self.launches.append(Counts(name, grid[0] * grid[1] * grid[2], threads, pointers))

    def instruction(self, chunk: Chunk, step: Step, group: Array | None, active: Array | None) -> None:
        all_of_them = chunk.programs * chunk.threads // 32
        warps = all_of_them if group is None else int(by_warp(chunk, group).any(axis=2).sum())
        self.launches[-1].instructions[family(step)] += warps

    def access(self, chunk: Chunk, step: Step, addresses: Array, lanes: Array | None) -> None:
        if lanes is None:
            spread = addresses.reshape(-1, 32)
        else:
            spread = np.full(chunk.shape, -1)
            spread[lanes] = addresses
            spread = spread.reshape(-1, 32)
        if step.space == "shared":
            self._shared(step, spread)
        else:
            self._global(step, spread, addresses)

    def _global(self, step: Step, requests: Array, addresses: Array) -> None:
        counts, direction = self.launches[-1], "load" if step.opcode.startswith("ld") else "store"
        numbers = addresses >> SHIFT
        for number in np.unique(numbers):
            key = counts.pointers[int(number) - 1], direction
            traffic = counts.global_memory.setdefault(key, Traffic())
            own = np.where(requests >> SHIFT == number, requests, -1)
            sectors = distinct(np.where(own < 0, -1, own // SECTOR))
            traffic.requests += int((sectors > 0).sum())
            traffic.asked += int(sectors.sum())
            start = (int(number) << SHIFT) + (1 << (SHIFT - 1))
            traffic.touch(addresses[numbers == number] - start, step.width * step.count)

    def _shared(self, step: Step, requests: Array) -> None:
        counts, size = self.launches[-1].shared_memory, step.width * step.count
        if ".trans" in step.opcode:  # the machine loads the even and the odd rows of a matrix one after the other
            if self._half is None:
                self._half = requests
                return
            requests, self._half = np.concatenate([self._half, requests], axis=1), None
        lanes = 32 * WORD // max(size, WORD) if requests.shape[1] == 32 else requests.shape[1]
        parts = requests.reshape(-1, lanes)
        words = parts[:, :, None] // WORD + np.arange(max(size // WORD, 1))
        words = np.where(parts[:, :, None] < 0, -1, words).reshape(len(parts), -1)
        counts.requests += int((requests >= 0).any(1).sum())
        counts.least += int((parts >= 0).any(1).sum())
        counts.passes += int(passes(words).sum())
