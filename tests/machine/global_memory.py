"""Global memory: the tensors among the arguments of a launch, and nothing else.

Every tensor argument gets a range of 2^40 addresses of its own and starts in its middle, aligned as the tensor is. So
an address shows which argument it was computed from, and one that leaves its argument never meets another.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from machine.builder import Builder, builds
from machine.chunk import Chunk
from machine.faults import Misaligned, OutOfBounds
from machine.formats import DTYPES, UNSIGNED, Array
from machine.moves import build_parameter_load
from machine.ptx import WIDTHS
from machine.steps import Step

SHIFT = 40
ALIGNMENT = 256  # an address of the machine equals that of the tensor modulo this
CACHE_HINTS = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "volatile", "L1::evict_normal",
               "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate", "L2::64B", "L2::128B",
               "L2::256B", "L2::evict_first", "L2::evict_last", "L2::evict_normal")  # fmt: skip


@dataclass
class Region:
    """A tensor argument: ``size`` bytes at ``pointer``, which kernels see at ``base``."""

    name: str
    pointer: int
    size: int
    number: int
    base: int = field(init=False)

    def __post_init__(self) -> None:
        self.base = (self.number << SHIFT) + (1 << (SHIFT - 1)) + self.pointer % ALIGNMENT
        self.lead = self.pointer % 16
        whole = -(-(self.lead + self.size) // 16) * 16
        raw = (ctypes.c_uint8 * whole).from_address(self.pointer - self.lead) if self.size else (ctypes.c_uint8 * 0)()
        self._bytes = np.frombuffer(raw, np.uint8)
        self._views = {width: self._bytes.view(dtype) for width, dtype in UNSIGNED.items()}

    def elements(self, width: int, count: int) -> Array:
        """All bytes as [n, count] elements of ``width`` bytes, from a multiple of 16 bytes on."""
        return self._views[width].reshape(-1, count)

    def __str__(self) -> str:
        return f"argument {self.name} of {self.size} bytes"


class GlobalMemory:
    """The regions of a launch."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def add(self, name: str, pointer: int, size: int) -> int:
        """Add a tensor and return the address at which kernels see it."""
        self.regions.append(Region(name, pointer, size, len(self.regions) + 1))
        return self.regions[-1].base

    def parts(self, chunk: Chunk, step: Step, addresses: Array, lanes: Array | None) -> Iterator[tuple]:
        """Yield ``(region, which of the addresses, index of the element)``; a slice stands for all addresses.

        Args:
            addresses: those of the active threads, flat.
            lanes: the active threads in the shape of the chunk, None for all; for messages.
        """
        numbers = addresses >> SHIFT
        first = int(numbers[0])
        if (numbers == first).all():
            yield self._part(chunk, step, addresses, lanes, first, slice(None))
            return
        for number in np.unique(numbers):
            yield self._part(chunk, step, addresses, lanes, int(number), numbers == number)

    def _part(self, chunk: Chunk, step: Step, addresses: Array, lanes, number: int, which) -> tuple:
        size = step.width * step.count
        chosen = addresses[which]
        if not 1 <= number <= len(self.regions):
            self._fail(chunk, step, lanes, which, None, OutOfBounds, f"address {int(chosen[0]):#x} is in no argument")
        region = self.regions[number - 1]
        offsets = chosen - region.base
        if offsets.min() < 0 or offsets.max() + size > region.size:
            bad = (offsets < 0) | (offsets + size > region.size)
            at = int(offsets[bad][0])
            self._fail(chunk, step, lanes, which, bad, OutOfBounds, f"{size} bytes at byte {at} of {region}")
        if (chosen & (size - 1)).any():
            bad = (chosen & (size - 1)) != 0
            what = f"{size} bytes at byte {int(offsets[bad][0])} of {region}, which starts at {region.lead} modulo 16"
            self._fail(chunk, step, lanes, which, bad, Misaligned, what)
        return region, which, (offsets + region.lead) // size

    def _fail(self, chunk: Chunk, step: Step, lanes, which, bad, fault, what: str) -> None:
        active = chunk.full(~np.zeros((1, 1), bool) if lanes is None else lanes)
        marks = np.zeros(int(active.sum()), bool)
        chosen = marks[which]
        marks[which] = True if bad is None else np.broadcast_to(bad, chosen.shape)
        where = np.zeros(chunk.shape, bool)
        where[active] = marks
        chunk.fail(fault, step, where, what)


def active_addresses(chunk: Chunk, addresses: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """The addresses of the active threads, flat, and these threads in the shape of the chunk (None for all)."""
    addresses = chunk.full(addresses)
    if mask is None:
        return addresses.ravel(), None
    lanes = chunk.full(mask)
    return addresses[lanes], lanes


def memory_access(build: Builder) -> tuple[str, int, str]:
    """Take the modifiers of ld or st: the space, the number of elements, and the type."""
    spaces = ("global", "shared", "shared::cta", "param")
    while build.flag("weak", "volatile"):
        pass
    space = build.choice(spaces).removesuffix("::cta")
    while build.flag(*CACHE_HINTS):
        pass
    count = int(build.choice(("v2", "v4", "v8"), "v1")[1:])
    kind = build.type(*WIDTHS)
    build.done(2)
    return space, count, kind


@builds("ld", "ldu")
def build_load(build: Builder) -> Step:
    from machine.shared_memory import build_shared_load

    if build.modifiers[0] == "param":
        build.modifiers.pop(0)
        return build_parameter_load(build)
    space, count, kind = memory_access(build)
    names = build.vector(0)
    if len(names) != count:
        raise build.unknown()
    if space == "shared":
        return build_shared_load(build, names, kind)
    address, needs = build.address(1)
    targets = [build.destination(name) for name in names]
    extend = [extension(build, target, kind) for target in targets]
    width = DTYPES[kind].itemsize

    def execute(chunk: Chunk, mask: Array | None) -> None:
        chosen, lanes = active_addresses(chunk, address(chunk), mask)
        found = np.zeros((count, *chosen.shape), UNSIGNED[width])
        for region, which, index in chunk.memory.parts(chunk, step, chosen, lanes):
            found[:, which] = region.elements(width, count)[index].T
        if chunk.observer is not None:
            chunk.observer.access(chunk, step, chosen, lanes)
        for target, values, widen in zip(targets, found, extend, strict=True):
            if target is None:
                continue
            if lanes is None:
                chunk.put(target, widen(values.reshape(chunk.shape)), None)
            else:
                spread = np.zeros(chunk.shape, values.dtype)
                spread[lanes] = values
                chunk.put(target, widen(spread), lanes)

    step = build.step(execute, needs=needs, space=space, width=width, count=count)
    return step


def extension(build: Builder, target: int | None, kind: str):
    """Widen a loaded value to its register, by the sign of its type."""
    if target is None:
        return lambda value: value
    dtype, held = DTYPES[kind], DTYPES[build.bits[target]]
    if dtype.itemsize > held.itemsize:
        raise build.unknown("a register that is too narrow")
    if dtype.itemsize == held.itemsize:
        return lambda value: value
    wide = np.dtype(f"int{8 * held.itemsize}") if kind[0] == "s" else held
    return lambda value: value.view(dtype if kind[0] == "s" else value.dtype).astype(wide).view(held)


@builds("st")
def build_store(build: Builder) -> Step:
    from machine.shared_memory import build_shared_store

    space, count, kind = memory_access(build)
    names = build.vector(1)
    if len(names) != count or space == "param":
        raise build.unknown()
    width = DTYPES[kind].itemsize
    raw = f"b{8 * width}"
    if space == "shared":
        return build_shared_store(build, names, raw)
    address, needs = build.address(0)
    sources = [build.source(name, raw) for name in names]

    def execute(chunk: Chunk, mask: Array | None) -> None:
        chosen, lanes = active_addresses(chunk, address(chunk), mask)
        values = np.empty((*chosen.shape, count), UNSIGNED[width])
        for place, source in enumerate(sources):
            value = chunk.full(source(chunk))
            values[:, place] = (value.ravel() if lanes is None else value[lanes]).view(values.dtype)
        for region, which, index in chunk.memory.parts(chunk, step, chosen, lanes):
            region.elements(width, count)[index] = values[which]
        if chunk.observer is not None:
            chunk.observer.access(chunk, step, chosen, lanes)

    step = build.step(execute, needs=(*needs, *build.reads), space=space, width=width, count=count)
    return step
