"""One launch: arguments as parameters, and the grid in chunks of programs that run side by side."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from machine.approximate import Approximation
from machine.chunk import Chunk
from machine.faults import BadLaunch
from machine.global_memory import GlobalMemory
from machine.observer import Observer
from machine.program import Program
from machine.ptx import WIDTHS
from machine.scheduler import Scheduler

LANES = 1 << 13  # threads of a chunk: the arrays of a few registers fit in a core's cache
FORMATS = {
    "i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "B", "u8": "B", "u16": "H", "u32": "I", "u64": "Q",
    "fp32": "f", "f32": "f", "fp64": "d", "fp16": "e",
}  # fmt: skip
WRAPPING = {"u1": 8, "u8": 8, "u16": 16, "u32": 32, "u64": 64}


@dataclass(frozen=True)
class Argument:
    """An argument of a kernel that is not a constant: its name, its type in Triton's words, and its value."""

    name: str
    kind: str
    value: Any


def span(tensor: Any) -> int:
    """Bytes from the first to the last element of a tensor."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def flattened(names: list[str], kinds: list[Any], values: list[Any]) -> Iterator[Argument]:
    """The arguments that a compiled kernel takes: without constants, tuples flattened."""
    for name, kind, value in zip(names, kinds, values, strict=True):
        if isinstance(kind, (tuple, list)):
            parts = [f"{name}[{k}]" for k in range(len(kind))]
            yield from flattened(parts, list(kind), list(value))
        elif kind != "constexpr":
            yield Argument(name, kind, value)


def packed(argument: Argument, memory: GlobalMemory) -> bytes:
    """The bytes of a parameter."""
    kind, value = argument.kind, argument.value
    if kind.startswith("*"):
        if value is None:
            return bytes(8)
        if not hasattr(value, "data_ptr"):
            raise BadLaunch(
                f"argument {argument.name}: a pointer must be a tensor on the CPU, got {type(value).__name__}"
            )
        if not value.is_cpu:
            raise BadLaunch(f"argument {argument.name}: a tensor on the CPU is needed, got one on {value.device}")
        return struct.pack("<Q", memory.add(argument.name, value.data_ptr(), span(value)))
    if kind not in FORMATS:
        raise BadLaunch(f"argument {argument.name}: type {kind} is not supported")
    if kind in WRAPPING:
        value = int(value) % (1 << WRAPPING[kind])
    return struct.pack("<" + FORMATS[kind], value)


def run(
    program: Program, grid: tuple[int, int, int], arguments: list[Argument], threads: int, dynamic_bytes: int,
    approximation: Approximation, observer: Observer | None = None, winner: str = "last",
) -> None:  # fmt: skip
    """Run a kernel over its grid.

    Raises:
        MachineError: the launch does not fit the kernel, or the kernel does what it must not do.
    """
    memory = GlobalMemory()
    parameters = [packed(argument, memory) for argument in arguments]
    if len(parameters) > len(program.parameters):
        raise BadLaunch(f"{program.name}: {len(parameters)} arguments for {len(program.parameters)} parameters")
    for place, (name, kind) in enumerate(program.parameters):
        if place >= len(parameters):
            parameters.append(bytes(WIDTHS[kind]))  # Triton's scratch memory, of which our kernels have none
        elif len(parameters[place]) != WIDTHS[kind]:
            raise BadLaunch(f"{program.name}: argument {arguments[place]} for the parameter {name} of type {kind}")
    if program.threads not in (None, threads) or threads % 32:
        raise BadLaunch(f"{program.name}: {threads} threads per block, but the code is for {program.threads}")
    if observer is not None:
        observer.launch(program.name, grid, threads, {argument.name: argument.value for argument in arguments})
    programs, side_by_side = grid[0] * grid[1] * grid[2], max(1, LANES // threads)
    for first in range(0, programs, side_by_side):
        count = min(side_by_side, programs - first)
        chunk = Chunk(
            program, grid, first, count, threads, parameters, memory, program.static_bytes + dynamic_bytes,
            approximation, observer, winner,
        )  # fmt: skip
        Scheduler(program, chunk).run()
