"""Runs the threads of a chunk: all at once, and where they diverge, those with the lowest program counter first."""

from __future__ import annotations

import numpy as np
from machine.chunk import Chunk
from machine.faults import BarrierFault, RunawayKernel
from machine.formats import Array
from machine.program import Program
from machine.steps import Step
from machine.taint import of_whole

LIMIT = 2_000_000  # steps of a chunk: no kernel of ours comes near it


class Scheduler:
    """Groups of threads by program counter; a mask of None stands for all threads."""

    def __init__(self, program: Program, chunk: Chunk) -> None:
        self.program, self.chunk = program, chunk
        self.groups: dict[int, Array | None] = {0: None}
        self.waiting: dict[int, Array] = {}  # at a barrier, by program counter
        self.left = LIMIT

    def run(self) -> None:
        """Run until every thread has returned."""
        with np.errstate(all="ignore"):
            while self.groups or self.waiting:
                if not self.groups:
                    self._release()
                counter = min(self.groups)
                mask = self.groups.pop(counter)
                self._straight(counter, mask, min(self.groups, default=-1))

    def _add(self, counter: int, mask: Array | None) -> None:
        """Threads that continue at a program counter."""
        other = self.groups.get(counter)
        if mask is not None and counter in self.groups and other is not None:
            mask = mask | other
        if mask is not None and mask.all():
            mask = None
        self.groups[counter] = mask

    def _straight(self, counter: int, mask: Array | None, stop: int) -> None:
        """Run one group until it branches apart, returns, waits, or meets the next group."""
        chunk, program, steps = self.chunk, self.program, self.program.steps
        unwritten, observer = chunk.unwritten, chunk.observer
        while counter != stop:
            if counter >= len(steps):
                raise RunawayKernel(f"{program.name}: the program goes on behind its last instruction")
            self.left -= 1
            if self.left < 0:
                raise RunawayKernel(f"{program.name}, {steps[counter].where} no end after {LIMIT} steps")
            step = steps[counter]
            active, some = (mask, True) if step.guard is None else self._guarded(step, mask)
            if observer is not None:
                observer.instruction(chunk, step, mask, active)
            if step.kind == "plain":
                counter += 1
                if some:
                    if unwritten:
                        self._careful(step, active)
                    else:
                        step.execute(chunk, active)
                continue
            following = self._control(step, counter, mask, active, some)
            if following is None:
                return
            counter, mask, moved = following
            if moved and self.groups:
                self._add(counter, mask)
                return
        self._add(counter, mask)

    def _guarded(self, step: Step, mask: Array | None) -> tuple[Array | None, bool]:
        """The threads whose guard is true, and whether there are any."""
        assert step.guard is not None
        self.chunk.require((step.guard,), mask, step, self.program)
        active = self.chunk.registers[step.guard]
        if step.negated:
            active = ~active
        if mask is not None:
            active = active & mask
        if active.all():
            return None, True
        return active, bool(active.any())

    def _careful(self, step: Step, active: Array | None) -> None:
        """Execute a step while some registers have not been written."""
        chunk = self.chunk
        unwritten = chunk.unwritten
        if not unwritten.keys().isdisjoint(step.needs):
            chunk.require(step.needs, active, step, self.program)
        if unwritten.keys().isdisjoint(step.reads):
            step.execute(chunk, active)
            return
        codes = of_whole(step.reads)(chunk) if step.taint is None else step.taint(chunk)
        step.execute(chunk, active)
        for register in step.writes:
            chunk.taint(register, codes, active)

    def _control(
        self, step: Step, counter: int, mask: Array | None, active: Array | None, some: bool
    ) -> tuple[int, Array | None, bool] | None:
        """Where the group goes on, with which threads, and whether it jumps; None if it ends or is split up."""
        if step.kind == "branch":
            assert isinstance(step.target, int)
            if not some:
                return counter + 1, mask, False
            others = self._others(mask, active)
            if others is None:
                return step.target, mask, True
            self._add(step.target, self.chunk.full(active))
            self._add(counter + 1, others)
            return None
        if step.kind == "exit":
            others = self._others(mask, active) if some else mask
            return None if some and others is None else (counter + 1, others, False)
        return self._barrier(step, counter, mask, active, some)

    def _others(self, mask: Array | None, active: Array | None) -> Array | None:
        """The threads of the group that are not active; None if all are."""
        if active is None:
            return None
        others = ~active if mask is None else mask & ~active
        return self.chunk.full(others) if others.any() else None

    def _barrier(self, step: Step, counter: int, mask, active, some: bool) -> tuple[int, Array | None, bool] | None:
        """Blocks whose threads are all here go on; the threads of other blocks wait."""
        if not some:
            return counter + 1, mask, False
        if active is None:
            self.chunk.shared.barrier(slice(None))
            return counter + 1, None, False
        here = self.chunk.full(active)
        complete = here.all(axis=1)
        self.chunk.shared.barrier(complete)
        waiting = here & ~complete[:, None]
        if waiting.any():
            self.waiting[counter] = self.waiting.get(counter, False) | waiting
        others = self._others(mask, active)
        on = here & complete[:, None]
        on = on if others is None else on | others
        return (counter + 1, on, False) if on.any() else None

    def _release(self) -> None:
        """Nothing else can run: every block with waiting threads must have all of them at one barrier."""
        for counter in sorted(self.waiting):
            waiting = self.waiting[counter]
            complete = waiting.all(axis=1)
            if complete.any():
                self.chunk.shared.barrier(complete)
                self._add(counter + 1, waiting & complete[:, None])
                left = waiting & ~complete[:, None]
                self.waiting[counter] = left
                if not left.any():
                    del self.waiting[counter]
                return
        counter, waiting = min(self.waiting.items())
        block = int(np.argwhere(waiting.any(axis=1))[0, 0])
        missing = np.zeros(self.chunk.shape, bool)
        missing[block] = ~waiting[block]
        self.chunk.fail(
            BarrierFault, self.program.steps[counter], missing,
            f"{int(missing.sum())} of {self.chunk.threads} threads of a block never reach the barrier; the first is",
        )  # fmt: skip
