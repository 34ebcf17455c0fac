"""A decoded instruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from machine.formats import Array
from machine.ptx import Instruction

if TYPE_CHECKING:
    from machine.chunk import Chunk

Getter = Callable[["Chunk"], Array]
Execute = Callable[["Chunk", "Array | None"], None]


@dataclass
class Step:
    """One instruction, ready to run.

    Args:
        execute: does the work for the threads of the mask.
        reads: registers whose values the result is computed from.
        needs: registers that must have been written by every thread that executes the instruction.
        writes: registers that get the result.
        taint: which halves of the result depend on something never written; by default both, where a register of
            ``reads`` was not written.
        kind: "plain", "branch", "barrier" or "exit".
        target: label of a branch, then the index of its instruction.
        space, width, count: of an access to memory: "global" or "shared", bytes per element, elements per thread.
    """

    execute: Execute
    reads: tuple[int, ...] = ()
    needs: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    taint: Callable[[Chunk], Array] | None = None
    kind: str = "plain"
    target: str | int = ""
    space: str = ""
    width: int = 0
    count: int = 1
    guard: int | None = None
    negated: bool = False
    instruction: Instruction | None = None

    @property
    def opcode(self) -> str:
        return "" if self.instruction is None else self.instruction.opcode

    @property
    def where(self) -> str:
        return "" if self.instruction is None else f"line {self.instruction.line}: {self.instruction.text}"
