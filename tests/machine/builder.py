"""What the families of instructions build their steps from: modifiers, accessors of operands, and a registry.

A family registers a builder per opcode. The builder takes an instruction's modifiers one by one, asks for accessors of
its operands, and returns a `Step` whose ``execute(chunk, mask)`` works on all threads at once. A register is an array
[programs, threads] in which an axis may have size 1: a value that is the same for all programs, or for all threads, is
computed once. ``mask`` selects the threads that execute the instruction; None stands for all of them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from machine.faults import SyntaxFault, UnknownInstruction
from machine.formats import BOOL, DTYPES, F32, F64, UNSIGNED, Array
from machine.ptx import Instruction, Kernel
from machine.special import special_register
from machine.steps import Execute, Getter, Step

if TYPE_CHECKING:
    from machine.chunk import Chunk

ADDRESS = re.compile(r"\[([%A-Za-z_$][%\w$@.]*)?(?:\+?(-?\w+))?\]")


class Builder:
    """An instruction while it is decoded: its modifiers, its operands, and the registers that they name."""

    def __init__(self, instruction: Instruction, kernel: Kernel, index: dict[str, int], bits: list[str]) -> None:
        self.instruction, self.kernel = instruction, kernel
        self.index, self.bits = index, bits  # number of a register, and types by number
        self.name, *self.modifiers = re.split(r"\.(?=\w)", instruction.opcode)
        self.operands = list(instruction.operands)
        self.reads: list[int] = []
        self.writes: list[int] = []

    # ------------------------------------------------------------------------------------------------ modifiers

    def flag(self, *names: str) -> bool:
        """Whether a modifier stands next; it is taken."""
        if self.modifiers and self.modifiers[0] in names:
            self.modifiers.pop(0)
            return True
        return False

    def choice(self, names: Iterable[str], default: str | None = None) -> str:
        """Take the next modifier, which must be one of the names."""
        if self.modifiers and self.modifiers[0] in names:
            return self.modifiers.pop(0)
        if default is None:
            raise self.unknown(f"a modifier of {', '.join(names)} is missing")
        return default

    def type(self, *allowed: str) -> str:
        """Take the last modifier, a type. All others must have been taken before."""
        if len(self.modifiers) != 1 or self.modifiers[0] not in (allowed or DTYPES):
            raise self.unknown()
        return self.modifiers.pop()

    def done(self, operands: int) -> None:
        """All modifiers are taken, and there are so many operands."""
        if self.modifiers or len(self.operands) != operands:
            raise self.unknown()

    def unknown(self, why: str = "") -> UnknownInstruction:
        line, text = self.instruction.line, self.instruction.text
        return UnknownInstruction(f"{self.kernel.name}, line {line}: {text}" + (f" ({why})" if why else ""))

    # ------------------------------------------------------------------------------------------------ operands

    def register(self, name: str) -> int:
        """The number of a register."""
        if name not in self.index:
            raise self.unknown(f"{name} is no register")
        return self.index[name]

    def destination(self, operand: str | None = None) -> int | None:
        """Number of the register that gets the result, by default the first operand; None for ``_``."""
        name = self.operands[0] if operand is None else operand
        if name == "_":
            return None
        self.writes.append(self.register(name))
        return self.writes[-1]

    def source(self, operand: int | str, kind: str) -> Getter:
        """An accessor of an operand, a register or a constant, as a PTX type."""
        name = self.operands[operand] if isinstance(operand, int) else operand
        if name in self.index:
            number = self.index[name]
            self.reads.append(number)
            return self._from_register(number, kind)
        special = special_register(name)
        if special is not None:
            dtype = DTYPES[kind]
            return lambda chunk: special(chunk).astype(dtype)
        value = self._constant(name, kind)
        return lambda chunk: value

    def _from_register(self, number: int, kind: str) -> Getter:
        dtype, held = DTYPES[kind], DTYPES[self.bits[number]]
        if (dtype == BOOL) != (held == BOOL):
            raise self.unknown("a predicate and a number")
        if dtype.itemsize == held.itemsize:

            def same(chunk: Chunk) -> Array:
                value = chunk.registers[number]
                return value if value.dtype is dtype else value.view(dtype)

            return same
        if dtype.itemsize > held.itemsize:
            raise self.unknown(f"a register of {8 * held.itemsize} bits as {kind}")
        narrow = UNSIGNED[dtype.itemsize]
        return lambda chunk: chunk.registers[number].view(UNSIGNED[held.itemsize]).astype(narrow).view(dtype)

    def _constant(self, text: str, kind: str) -> Array:
        dtype = DTYPES[kind]
        if text in self.kernel.shared:
            return np.full((1, 1), self.kernel.shared[text], dtype)
        if dtype == BOOL:
            return np.full((1, 1), int(text, 0) != 0)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            bits = np.full((1, 1), int(text[2:], 16), np.uint32)
            return bits.view(F32) if dtype == F32 else self._bits(int(text[2:], 16), dtype)
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return np.full((1, 1), struct.unpack(">d", bytes.fromhex(text[2:]))[0], F64).view(dtype)
        try:
            if dtype.kind == "f":
                return np.full((1, 1), float(text), dtype)
            return self._bits(int(text.removesuffix("U"), 0), dtype)
        except ValueError:
            raise self.unknown(f"operand {text}") from None

    @staticmethod
    def _bits(value: int, dtype: np.dtype) -> Array:
        bits = UNSIGNED[dtype.itemsize]
        return np.full((1, 1), value % (1 << 8 * bits.itemsize), bits).view(dtype)

    def vector(self, operand: int) -> list[str]:
        """The names in ``{a, b}``, or the one name without braces."""
        text = self.operands[operand]
        return text[1:-1].split(",") if text.startswith("{") else [text]

    def address(self, operand: int) -> tuple[Getter, tuple[int, ...]]:
        """An accessor of ``[base + offset]``, and the registers that it needs."""
        match = ADDRESS.fullmatch(self.operands[operand])
        if match is None:
            raise self.unknown(f"address {self.operands[operand]}")
        base, offset = match.groups()
        offset = int(offset or "0", 0)
        if base in self.index:
            number = self.index[base]
            get = self._from_register(number, {"b32": "u32", "b64": "s64"}.get(self.bits[number], "pred"))
            needs: tuple[int, ...] = (number,)
        else:
            value = self._constant(base or "0", "u64")
            get, needs = (lambda chunk: value), ()
        if not offset:
            return (lambda chunk: get(chunk).astype(np.int64, copy=False)), needs
        return (lambda chunk: get(chunk).astype(np.int64, copy=False) + offset), needs

    # ------------------------------------------------------------------------------------------------ steps

    def compute(self, function: Callable[..., Array], *sources: Getter, taint: Callable | None = None) -> Step:
        """A step that puts a function of the sources into the first operand."""
        target = self.destination()
        assert target is not None
        match sources:
            case (a,):

                def execute(chunk: Chunk, mask: Array | None) -> None:
                    chunk.put(target, function(a(chunk)), mask)
            case (a, b):

                def execute(chunk: Chunk, mask: Array | None) -> None:
                    chunk.put(target, function(a(chunk), b(chunk)), mask)
            case (a, b, c):

                def execute(chunk: Chunk, mask: Array | None) -> None:
                    chunk.put(target, function(a(chunk), b(chunk), c(chunk)), mask)
            case _:

                def execute(chunk: Chunk, mask: Array | None) -> None:
                    chunk.put(target, function(*(get(chunk) for get in sources)), mask)

        return self.step(execute, taint=taint)

    def step(self, execute: Execute, **others: object) -> Step:
        return Step(execute, tuple(self.reads), writes=tuple(self.writes), **others)  # type: ignore[arg-type]


BUILDERS: dict[str, Callable[[Builder], Step]] = {}


def builds(*names: str) -> Callable[[Callable[[Builder], Step]], Callable[[Builder], Step]]:
    """Register the builder of some opcodes."""

    def register(function: Callable[[Builder], Step]) -> Callable[[Builder], Step]:
        for name in names:
            if name in BUILDERS:
                raise SyntaxFault(f"two builders of {name}")
            BUILDERS[name] = function
        return function

    return register
