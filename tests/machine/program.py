"""A kernel decoded once: its steps, in the order of its text."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from machine import bits, control, conversions, floats, global_memory, integers, moves, warp
from machine.builder import BUILDERS, Builder
from machine.faults import UnknownInstruction
from machine.formats import DTYPES
from machine.ptx import Instruction, Kernel, parse
from machine.steps import Step

FAMILIES = (bits, control, conversions, floats, global_memory, integers, moves, warp)  # importing them fills BUILDERS


@dataclass(frozen=True)
class Program:
    """A decoded kernel.

    Args:
        name: of the kernel.
        steps: one per instruction.
        parameters: names and types.
        register_names, register_types: by number.
        threads: of a block, where the text says so.
        static_bytes: shared memory that the text declares, besides the dynamic one of the launch.
        grain: bytes of the narrowest access to shared memory.
        text: the PTX.
    """

    name: str
    steps: tuple[Step, ...]
    parameters: tuple[tuple[str, str], ...]
    register_names: tuple[str, ...]
    register_types: tuple[str, ...]
    threads: int | None
    static_bytes: int
    grain: int
    text: str


@functools.lru_cache(maxsize=64)
def decode(text: str) -> Program:
    """Decode a text of PTX.

    Raises:
        SyntaxFault, UnknownInstruction: something in it is not understood.
    """
    kernel = parse(text)
    index = {name: number for number, name in enumerate(kernel.registers)}
    types = list(kernel.registers.values())
    for name, kind in kernel.registers.items():
        if kind not in DTYPES or (DTYPES[kind].itemsize == 1 and kind != "pred"):
            raise UnknownInstruction(f"{kernel.name}: registers of type .{kind} ({name})")
    steps = tuple(_step(instruction, kernel, index, types) for instruction in kernel.instructions)
    widths = [step.width for step in steps if step.space == "shared"]
    return Program(
        kernel.name, steps, tuple(kernel.parameters), tuple(index), tuple(types), kernel.threads, kernel.static_bytes,
        min(widths, default=4), text,
    )  # fmt: skip


def _step(instruction: Instruction, kernel: Kernel, index: dict[str, int], types: list[str]) -> Step:
    build = Builder(instruction, kernel, index, types)
    if build.name not in BUILDERS:
        raise build.unknown("an opcode that the machine does not execute")
    try:
        step = BUILDERS[build.name](build)
    except (IndexError, AssertionError):
        raise build.unknown() from None
    step.instruction = instruction
    if instruction.guard is not None:
        step.guard, step.negated = build.register(instruction.guard), instruction.negated
        if types[step.guard] != "pred":
            raise build.unknown("a guard that is no predicate")
    return step
