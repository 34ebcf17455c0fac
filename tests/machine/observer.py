"""The interface of what watches a launch: counters of instructions and of accesses to memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from machine.chunk import Chunk
    from machine.formats import Array
    from machine.steps import Step


class Observer(Protocol):
    """Is called while a kernel runs, chunk by chunk of its grid."""

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, arguments: dict[str, object]) -> None:
        """A launch begins. ``arguments`` holds the values by name, without constants."""

    def instruction(self, chunk: Chunk, step: Step, group: Array | None, active: Array | None) -> None:
        """An instruction is about to run.

        Args:
            chunk: where it runs; ``chunk.shape`` is (programs, threads), ``chunk.count(mask)`` counts threads.
            step: the instruction; ``step.opcode``, ``step.kind``, ``step.instruction.text``.
            group: the threads that have reached it, which a GPU issues it for; a mask that broadcasts to
                [programs, threads], or None for all.
            active: those of them whose guard is true.
        """

    def access(self, chunk: Chunk, step: Step, addresses: Array, lanes: Array | None) -> None:
        """A load or store of ``step.width * step.count`` bytes, in ``step.space``; it is inside its memory and aligned.

        Args:
            addresses: those of the active threads, flat, int64: addresses of `GlobalMemory`, or bytes in the shared
                memory of the block.
            lanes: the active threads, [programs, threads]; None stands for all.
        """
