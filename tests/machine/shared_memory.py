"""Shared memory of the blocks of a chunk, with its races.

A word remembers which thread wrote it last and which threads read it, and when. Two accesses of different threads, one
of them a write, are a race unless a barrier of the block, or of the warp for threads of one warp, lies between them. A
shuffle is no barrier. Words are as wide as the narrowest access of the kernel.
"""

from __future__ import annotations

import numpy as np
from machine.builder import Builder
from machine.chunk import Chunk
from machine.faults import Misaligned, OutOfBounds, Race
from machine.formats import DTYPES, UNSIGNED, Array
from machine.steps import Step
from machine.taint import BOTH, union

NOBODY, SEVERAL = -1, -2


class SharedMemory:
    """``bytes`` bytes for each block; all blocks of the chunk in one array."""

    def __init__(self, blocks: int, threads: int, size: int, grain: int) -> None:
        self.size, self.grain = -(-size // 16) * 16, grain
        self.bytes = np.zeros((blocks, self.size), np.uint8)
        words = blocks * (self.size // grain)
        self.unset = np.ones(words, bool)
        self.writer, self.reader, self.readers_warp = (np.full(words, NOBODY, np.int32) for _ in range(3))
        self.written, self.read = np.zeros(words, np.int64), np.zeros(words, np.int64)  # times
        self.clock = 1
        self.block_barrier = np.zeros(blocks, np.int64)
        self.warp_barrier = np.zeros((blocks, -(-threads // 32)), np.int64)

    def barrier(self, blocks: Array | slice) -> None:
        """All threads of the blocks meet."""
        self.clock += 1
        self.block_barrier[blocks] = self.clock

    def meet_in_warps(self, warps: Array | slice) -> None:
        """All threads of the warps meet, [blocks, warps]."""
        self.clock += 1
        self.warp_barrier[warps] = self.clock

    def words(self, block: Array, offset: Array, size: int) -> Array:
        """Numbers of the words of each access, [accesses, words]."""
        first = block * (self.size // self.grain) + offset // self.grain
        return first[:, None] + np.arange(size // self.grain)

    def elements(self, width: int, count: int) -> Array:
        return self.bytes.view(UNSIGNED[width]).reshape(-1, count)

    def apart(self, time: Array, block: Array, thread: Array, warp: Array) -> Array:
        """Whether an access at ``time`` by a thread of ``warp`` is not ordered before one that is made now."""
        ordered = time <= self.block_barrier[block]
        return ~ordered & ~((warp == thread // 32) & (time <= self.warp_barrier[block, thread // 32]))

    def check_read(self, chunk: Chunk, step: Step, lanes: tuple[Array, Array], words: Array) -> None:
        """Raise if another thread wrote since the last barrier; then record the readers."""
        block, thread = lanes[0][:, None], lanes[1][:, None].astype(np.int32)
        writer = self.writer[words]
        race = (writer != thread) & (writer != NOBODY)
        race &= self.apart(self.written[words], block, thread, writer // 32)
        if race.any():
            self.fail(chunk, step, lanes, race, writer, "reads what {} wrote")
        warp = thread // 32
        stale = self.read[words] <= self.block_barrier[block]
        for held, mine in ((self.reader, thread), (self.readers_warp, warp)):
            before = np.where(stale, NOBODY, held[words])
            now = np.where((before == NOBODY) | (before == mine), np.broadcast_to(mine, words.shape), SEVERAL)
            held[words] = now
            lost = held[words] != now  # several threads of this instruction
            held[words[lost]] = SEVERAL
        self.clock += 1
        self.read[words] = self.clock

    def check_write(self, chunk: Chunk, step: Step, lanes: tuple[Array, Array], words: Array) -> None:
        """Raise if another thread read or wrote since the last barrier; then record the writer."""
        block, thread = lanes[0][:, None], lanes[1][:, None].astype(np.int32)
        reader = self.reader[words]
        race = (reader != thread) & (reader != NOBODY)
        race &= self.apart(self.read[words], block, thread, self.readers_warp[words])
        if race.any():
            self.fail(chunk, step, lanes, race, reader, "overwrites what {} read")
        writer = self.writer[words]
        race = (writer != thread) & (writer != NOBODY)
        race &= self.apart(self.written[words], block, thread, writer // 32)
        if race.any():
            self.fail(chunk, step, lanes, race, writer, "overwrites what {} wrote")
        self.writer[words] = thread
        self.clock += 1
        self.written[words] = self.clock

    def check_same(self, chunk: Chunk, step: Step, lanes: tuple[Array, Array], words: Array, differs: Array) -> None:
        """After a store: threads of two warps that write one word in one instruction must write the same value.

        Triton lets threads that hold copies of an element store all of them. Within a warp the copies may differ: one
        of them is stored, and which one is undefined (CUDA C++ Programming Guide, "SIMT Architecture"); the machine
        takes the first or the last one, as `driver.Settings.winner` says.
        """
        writer = self.writer[words]
        race = (writer // 32 != lanes[1][:, None] // 32) & differs[:, None]
        if race.any():
            self.fail(chunk, step, lanes, race, writer, "writes what {} writes")

    def fail(self, chunk: Chunk, step: Step, lanes: tuple[Array, Array], race: Array, others: Array, what: str) -> None:
        first = np.argwhere(race)[0]
        other = int(others[tuple(first)])
        name = "other threads" if other == SEVERAL else f"thread {other}"
        bad = np.zeros(chunk.shape, bool)
        bad[lanes[0][first[0]], lanes[1][first[0]]] = True
        chunk.fail(Race, step, bad, what.format(name) + ", without a barrier between them")


def locate(
    chunk: Chunk, step: Step, addresses: Array, mask: Array | None, size: int
) -> tuple[tuple[Array, Array], Array]:
    """(blocks, threads) and byte offsets of the active threads, checked."""
    lanes = np.nonzero(chunk.full(~np.zeros((1, 1), bool) if mask is None else mask))
    offsets = chunk.full(addresses)[lanes]
    outside = (offsets < 0) | (offsets + size > chunk.shared.size)
    for bad, fault, what in (
        (outside, OutOfBounds, f"outside the {chunk.shared.size} bytes of shared memory"),
        (offsets % size != 0, Misaligned, "of shared memory"),
    ):
        if bad.any():
            where = np.zeros(chunk.shape, bool)
            where[tuple(axis[bad] for axis in lanes)] = True
            chunk.fail(fault, step, where, f"{size} bytes at byte {int(offsets[bad][0])} {what}")
    if chunk.observer is not None:
        chunk.observer.access(chunk, step, offsets, None if mask is None else chunk.full(mask))
    return lanes, offsets


def load(chunk: Chunk, step: Step, addresses: Array, mask: Array | None, width: int, count: int) -> tuple:
    """Values [count, accesses], which of them were never written, and their (blocks, threads)."""
    shared, size = chunk.shared, width * count
    lanes, offsets = locate(chunk, step, addresses, mask, size)
    words = shared.words(lanes[0], offsets, size)
    shared.check_read(chunk, step, lanes, words)
    index = lanes[0] * (shared.size // size) + offsets // size
    unset = shared.unset[words].reshape(len(words), count, -1).any(axis=2).T
    return shared.elements(width, count)[index].T, unset, lanes


def store(chunk: Chunk, step: Step, addresses: Array, mask: Array | None, values: list[Array], unset: Array) -> None:
    """Store one element per array of values; ``unset`` marks threads whose values were never written."""
    width, count = values[0].dtype.itemsize, len(values)
    shared, size = chunk.shared, width * count
    lanes, offsets = locate(chunk, step, addresses, mask, size)
    if chunk.winner == "first":  # the last element of an assignment stays
        lanes, offsets = tuple(axis[::-1] for axis in lanes), offsets[::-1]
    words = shared.words(lanes[0], offsets, size)
    shared.check_write(chunk, step, lanes, words)
    index = lanes[0] * (shared.size // size) + offsets // size
    stored = np.stack([chunk.full(value)[lanes] for value in values], axis=1)
    elements = shared.elements(width, count)
    elements[index] = stored
    differs = (elements[index] != stored).any(axis=1)
    if differs.any():
        shared.check_same(chunk, step, lanes, words, differs)
    shared.unset[words] = chunk.full(unset)[lanes][:, None]


def spread(chunk: Chunk, lanes: tuple[Array, Array], values: Array) -> Array:
    """Values of the active threads in the shape of the chunk."""
    result = np.zeros(chunk.shape, values.dtype)
    result[lanes] = values
    return result


def build_shared_load(build: Builder, names: list[str], kind: str) -> Step:
    from machine.global_memory import extension

    address, needs = build.address(1)
    targets = [build.destination(name) for name in names]
    extend = [extension(build, target, kind) for target in targets]
    width = DTYPES[kind].itemsize

    def execute(chunk: Chunk, mask: Array | None) -> None:
        found, unset, lanes = load(chunk, step, address(chunk), mask, width, len(names))
        for target, values, never, widen in zip(targets, found, unset, extend, strict=True):
            if target is not None:
                chunk.put(target, widen(spread(chunk, lanes, values)), mask)
                if never.any():
                    chunk.taint(target, spread(chunk, lanes, BOTH * never), mask)

    step = build.step(execute, needs=needs, space="shared", width=width, count=len(names))
    return step


def build_shared_store(build: Builder, names: list[str], kind: str) -> Step:
    address, needs = build.address(0)
    sources = [build.source(name, kind) for name in names]
    registers, build.reads = tuple(build.reads), []
    dtype = DTYPES[kind]

    def execute(chunk: Chunk, mask: Array | None) -> None:
        unset = union(chunk, registers) != 0
        values = [source(chunk).view(dtype) for source in sources]
        store(chunk, step, address(chunk), mask, values, unset)

    step = build.step(execute, needs=needs, space="shared", width=dtype.itemsize, count=len(names))
    return step
