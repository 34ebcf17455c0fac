"""Branches, barriers and the end of a program. The scheduler acts on them; most steps here only name their kind."""

from __future__ import annotations

import numpy as np
from machine.builder import Builder, builds
from machine.chunk import Chunk
from machine.formats import Array
from machine.steps import Step
from machine.warp import check_members


def nothing(chunk: Chunk, mask: Array | None) -> None:
    """What the scheduler does by itself."""


@builds("bra")
def build_branch(build: Builder) -> Step:
    build.flag("uni")
    build.done(1)
    if build.operands[0] not in build.kernel.labels:
        raise build.unknown("no such label")
    return build.step(nothing, kind="branch", target=build.kernel.labels[build.operands[0]])


@builds("ret", "exit")
def build_end(build: Builder) -> Step:
    build.flag("uni")
    build.done(0)
    return build.step(nothing, kind="exit")


@builds("bar", "barrier")
def build_barrier(build: Builder) -> Step:
    """``bar.sync 0`` of all threads of a block, and ``bar.warp.sync members``."""
    if build.flag("warp"):
        return build_warp_barrier(build)
    build.flag("cta")
    build.choice(("sync",))
    build.flag("aligned")
    build.done(1)
    if build.operands[0] != "0":
        raise build.unknown("a barrier of some threads only")
    return build.step(nothing, kind="barrier")


def build_warp_barrier(build: Builder) -> Step:
    build.choice(("sync",))
    build.done(1)
    members = build.source(0, "u32")

    def execute(chunk: Chunk, mask: Array | None) -> None:
        active = check_members(chunk, step, members(chunk), mask)
        if mask is None:
            chunk.shared.meet_in_warps(slice(None))
        else:
            chunk.shared.meet_in_warps(np.asarray(active.all(axis=2)))

    step = build.step(execute, needs=tuple(build.reads))
    return step


@builds("membar", "fence")
def build_fence(build: Builder) -> Step:
    """Orders accesses of one thread; the machine executes them in order."""
    build.flag("sc", "acq_rel")
    build.choice(("cta", "gl", "sys", "gpu"))
    build.done(0)
    return build.step(nothing)


@builds("nop")
def build_nothing(build: Builder) -> Step:
    build.done(0)
    return build.step(nothing)
