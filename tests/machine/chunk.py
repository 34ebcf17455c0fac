"""The state of some programs of a launch that run side by side: registers, and what was never written."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np
from machine.approximate import Approximation
from machine.faults import MachineError, Uninitialised
from machine.formats import BOOL, DTYPES, UNSIGNED, Array
from machine.steps import Step
from machine.taint import EVERYTHING_UNSET, NOTHING_UNSET

if TYPE_CHECKING:
    from machine.global_memory import GlobalMemory
    from machine.observer import Observer
    from machine.program import Program


class Chunk:
    """Programs ``first`` to ``first + count - 1`` of a grid, x fastest.

    Args:
        program: the decoded kernel.
        grid: programs along x, y and z.
        parameters: the bytes of each parameter.
        memory: the tensors among the arguments.
        shared_bytes: shared memory of each block.
        winner: which thread of a warp, "first" or "last", stores where several store different values to one word.
    """

    def __init__(
        self, program: Program, grid: tuple[int, int, int], first: int, count: int, threads: int,
        parameters: list[bytes], memory: GlobalMemory, shared_bytes: int, approximation: Approximation,
        observer: Observer | None, winner: str = "last",
    ) -> None:  # fmt: skip
        from machine.shared_memory import SharedMemory

        self.kernel, self.grid, self.programs, self.threads = program.name, grid, count, threads
        self.thread = np.arange(threads, dtype=np.uint32)[None]
        number = np.arange(first, first + count)[:, None]
        x, y, _ = grid
        self.program = [part.astype(np.uint32) for part in (number % x, number // x % y, number // (x * y))]
        self.parameters, self.memory = parameters, memory
        self.approximation, self.observer, self.winner = approximation, observer, winner
        self.registers = [np.zeros((1, 1), _held(kind)) for kind in program.register_types]
        self.unwritten: dict[int, Array] = dict.fromkeys(range(len(self.registers)), EVERYTHING_UNSET)
        self.shared = SharedMemory(count, threads, shared_bytes, program.grain)

    @property
    def shape(self) -> tuple[int, int]:
        return self.programs, self.threads

    def put(self, register: int, value: Array, mask: Array | None) -> None:
        """Write a register for the threads of the mask."""
        if mask is None:
            self.registers[register] = value
            self.unwritten.pop(register, None)
            return
        old = self.registers[register]
        self.registers[register] = np.where(mask, value, old if old.dtype == value.dtype else old.view(value.dtype))
        before = self.unwritten.get(register)
        if before is not None:
            left = np.where(mask, np.uint8(0), before)
            if left.any():
                self.unwritten[register] = left
            else:
                del self.unwritten[register]

    def unset(self, register: int | None) -> Array:
        """Which halves of a register are unset, thread by thread: see `taint`."""
        return NOTHING_UNSET if register is None else self.unwritten.get(register, NOTHING_UNSET)

    def taint(self, register: int, codes: Array, mask: Array | None) -> None:
        """After `put`: what was written for these threads depends on something unset."""
        codes = codes if mask is None else np.where(mask, codes, np.uint8(0))
        if codes.any():
            self.unwritten[register] = codes | self.unset(register)

    def require(self, registers: tuple[int, ...], mask: Array | None, step: Step, program: Program) -> None:
        """Raise where a thread of the mask holds nothing in one of the registers."""
        for register in registers:
            bad = self.unwritten.get(register)
            if bad is None:
                continue
            bad = bad != 0 if mask is None else (bad != 0) & mask
            if bad.any():
                name = program.register_names[register]
                self.fail(Uninitialised, step, bad, f"{name} depends on what was never written")

    def full(self, value: Array) -> Array:
        """A value for every thread of every program."""
        return np.broadcast_to(value, self.shape)

    def count(self, mask: Array | None) -> int:
        """Threads of a mask."""
        return self.programs * self.threads if mask is None else int(self.full(mask).sum())

    def fail(self, fault: type[MachineError], step: Step, bad: Array, what: str) -> NoReturn:
        """Raise for the first thread that is marked as bad."""
        row, thread = np.argwhere(self.full(bad))[0]
        place = tuple(int(axis[row, 0]) for axis in self.program)
        raise fault(f"{self.kernel}, {step.where} {what}; program {place}, thread {int(thread)}")


def _held(kind: str) -> np.dtype:
    dtype = DTYPES[kind]
    return dtype if dtype == BOOL else UNSIGNED[dtype.itemsize]
