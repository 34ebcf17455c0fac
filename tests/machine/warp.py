"""Exchanges within a warp: shuffles, votes, reductions, and the transposing loads and stores of matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from machine.builder import Builder, builds
from machine.chunk import Chunk
from machine.faults import BarrierFault, Misaligned
from machine.floats import extremum
from machine.formats import U16, U32, Array, halves, joined
from machine.shared_memory import load, spread, store
from machine.steps import Step
from machine.taint import BOTH

LANES = np.arange(32)


def by_warp(chunk: Chunk, value: Array) -> Array:
    """A value [programs, threads] as [programs, warps, 32]."""
    return chunk.full(value).reshape(chunk.programs, -1, 32)


def check_members(chunk: Chunk, step: Step, members: Array, mask: Array | None) -> Array:
    """The active threads [programs, warps, 32]. Every thread that the member mask names must be active."""
    if mask is None:
        active = np.broadcast_to(~np.zeros((1, 1, 1), bool), (chunk.programs, chunk.threads // 32, 32))
        if (members == np.uint32(0xFFFFFFFF)).all():
            return active
    else:
        active = by_warp(chunk, mask)
    named = ((by_warp(chunk, members) >> LANES.astype(np.uint32)) & np.uint32(1)).astype(bool)
    bits = (active.astype(np.uint64) << LANES.astype(np.uint64)).sum(axis=2, keepdims=True).astype(U32)
    absent = active & ((by_warp(chunk, members) & ~bits) != 0)
    outside = active & ~named
    for bad, what in ((absent, "waits for threads of the warp that do not execute it"),
                      (outside, "is executed by a thread that its member mask does not name")):  # fmt: skip
        if bad.any():
            chunk.fail(BarrierFault, step, bad.reshape(chunk.shape), what)
    return active


@builds("shfl")
def build_shuffle(build: Builder) -> Step:
    """``shfl.sync.bfly.b32 d|p, a, b, c, members``: a of another lane of the warp."""
    build.choice(("sync",))
    mode = build.choice(("up", "down", "bfly", "idx"))
    build.type("b32")
    build.done(5)
    targets = [build.destination(name) for name in build.operands[0].split("|")]
    value = build.source(1, "b32")
    read = tuple(build.reads)
    build.reads = []
    place, clamp, members = (build.source(k, "u32") for k in (2, 3, 4))
    needs, build.reads = tuple(build.reads), []

    def execute(chunk: Chunk, mask: Array | None) -> None:
        check_members(chunk, step, members(chunk), mask)
        source, inside = source_lanes(mode, chunk, place(chunk), clamp(chunk))
        if targets[0] is not None:
            chunk.put(targets[0], gathered(chunk, value(chunk), source), mask)
            for register in read:
                if register in chunk.unwritten:
                    chunk.taint(targets[0], gathered(chunk, chunk.unset(register), source), mask)
        if len(targets) > 1 and targets[1] is not None:
            shape = (chunk.programs, chunk.threads // 32, 32)
            chunk.put(targets[1], np.broadcast_to(inside, shape).reshape(chunk.shape), mask)

    step = build.step(execute, needs=needs)
    return step


def gathered(chunk: Chunk, value: Array, source: Array) -> Array:
    """The values of the source lanes, which are [32] if they are the same in every warp."""
    lanes = by_warp(chunk, value)
    found = lanes[:, :, source] if source.ndim == 1 else np.take_along_axis(lanes, source, 2)
    return found.reshape(chunk.shape)


def source_lanes(mode: str, chunk: Chunk, place: Array, clamp: Array) -> tuple[Array, Array]:
    """The lane that each lane reads, and whether it is inside its segment: [32], or [programs, warps, 32]."""
    if place.size == 1 and clamp.size == 1:
        b, c = place.astype(np.int64)[0], clamp.astype(np.int64)[0]
    else:
        b, c = (by_warp(chunk, x).astype(np.int64) for x in (place, clamp))
    b, segment, c = b & 31, c >> 8 & 31, c & 31
    largest = (LANES & segment) | (c & ~segment)
    match mode:
        case "up":
            source = LANES - b
            inside = source >= largest
        case "down":
            source = LANES + b
            inside = source <= largest
        case "bfly":
            source = LANES ^ b
            inside = source <= largest
        case _:
            source = (LANES & segment) | (b & ~segment)
            inside = source <= largest
    return np.where(inside, source, LANES), inside


@builds("vote")
def build_vote(build: Builder) -> Step:
    build.choice(("sync",))
    mode = build.choice(("all", "any", "uni", "ballot"))
    build.type("b32" if mode == "ballot" else "pred")
    build.done(3)
    target, negated = build.destination(), build.operands[1].startswith("!")
    value = build.source(build.operands[1].lstrip("!"), "pred")
    members = build.source(2, "u32")
    assert target is not None

    def execute(chunk: Chunk, mask: Array | None) -> None:
        active = check_members(chunk, step, members(chunk), mask)
        votes = by_warp(chunk, value(chunk)) ^ negated
        every = (votes | ~active).all(axis=2, keepdims=True)
        some = (votes & active).any(axis=2, keepdims=True)
        ballot = ((votes & active).astype(np.uint64) << LANES.astype(np.uint64)).sum(axis=2, keepdims=True)
        found = {"all": every, "any": some, "uni": every | ~some, "ballot": ballot.astype(U32)}[mode]
        chunk.put(target, np.broadcast_to(found, active.shape).reshape(chunk.shape), mask)

    step = build.step(execute, needs=tuple(build.reads))
    return step


@builds("redux")
def build_reduction(build: Builder) -> Step:
    """``redux.sync.add.s32``, and ``redux.sync.max.abs.NaN.f32`` of sm_100."""
    build.choice(("sync",))
    name = build.choice(("add", "min", "max", "and", "or", "xor"))
    absolute, nan = build.flag("abs"), build.flag("NaN")
    kind = build.type("u32", "s32", "b32", "f32")
    build.done(3)
    if (kind == "f32" and name not in ("min", "max")) or (kind != "f32" and (absolute or nan)):
        raise build.unknown()
    if (kind == "b32") != (name in ("and", "or", "xor")):
        raise build.unknown()
    integers: dict[str, Callable[[Array, Array], Array]] = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    combine = extremum(name == "max", nan) if kind == "f32" else integers[name]
    value, members, target = build.source(1, kind), build.source(2, "u32"), build.destination()
    assert target is not None

    def execute(chunk: Chunk, mask: Array | None) -> None:
        active = check_members(chunk, step, members(chunk), mask)
        found = by_warp(chunk, value(chunk))
        found = np.abs(found) if absolute else found
        if not active.all():  # an inactive lane repeats the first active one
            first = np.argmax(active, axis=2)[..., None]
            own = np.take_along_axis(found, first, 2)
            if name in ("add", "xor"):
                own = own * own.dtype.type(0)
            found = np.where(active, found, own)
        total = found[:, :, :1]
        for lane in range(1, 32):
            total = combine(total, found[:, :, lane : lane + 1])
        chunk.put(target, np.broadcast_to(total, active.shape).reshape(chunk.shape), mask)

    step = build.step(execute, needs=tuple(build.reads))
    return step


# ------------------------------------------------------------------------------------------------ matrices


def matrix_addresses(chunk: Chunk, step: Step, addresses: Array, matrix: int, row: Array) -> Array:
    """Address of a row of an 8 x 8 matrix of 16-bit elements: lanes 8 k to 8 k + 7 hold those of matrix k."""
    found = by_warp(chunk, addresses)[:, :, 8 * matrix + row].reshape(chunk.shape)
    if (found & 15).any():
        chunk.fail(Misaligned, step, (found & 15) != 0, "a row of a matrix must be aligned to 16 bytes")
    return found


def matrix_modifiers(build: Builder) -> tuple[int, bool]:
    build.choice(("sync",))
    build.choice(("aligned",))
    build.choice(("m8n8",))
    count = int(build.choice(("x1", "x2", "x4"))[1:])
    transposed = build.flag("trans")
    build.choice(("shared", "shared::cta"))
    build.type("b16")
    build.done(2)
    return count, transposed


ALL = np.full((1, 1), 0xFFFFFFFF, np.uint32)
ROW, COLUMN = LANES // 4, LANES % 4 * 2  # where a lane's two elements of a matrix are


@builds("ldmatrix")
def build_matrix_load(build: Builder) -> Step:
    """Lane i gets the elements 2 (i mod 4) and the next one of row i / 4; with ``.trans`` those of the column."""
    count, transposed = matrix_modifiers(build)
    targets = [build.destination(name) for name in build.vector(0)]
    address, needs = build.address(1)
    if len(targets) != count:
        raise build.unknown()

    def execute(chunk: Chunk, mask: Array | None) -> None:
        check_members(chunk, step, ALL, mask)
        column = np.tile(COLUMN, chunk.threads // 32)
        for matrix, target in enumerate(targets):
            if transposed:
                parts = []
                for k in range(2):
                    at = matrix_addresses(chunk, step, address(chunk), matrix, COLUMN + k)
                    parts.append(load(chunk, step, at + 2 * np.tile(ROW, len(column) // 32), mask, 2, 1))
                (low, never, lanes), (high, never_2, _) = parts
                found, never = joined(low[0], high[0]), never[0] | never_2[0]
            else:
                at = matrix_addresses(chunk, step, address(chunk), matrix, ROW) + 2 * column
                values, nevers, lanes = load(chunk, step, at, mask, 4, 1)
                found, never = values[0], nevers[0]
            if target is not None:
                chunk.put(target, spread(chunk, lanes, found), mask)
                chunk.taint(target, spread(chunk, lanes, BOTH * never), mask)

    step = build.step(execute, needs=needs, space="shared", width=2 if transposed else 4)
    return step


@builds("stmatrix")
def build_matrix_store(build: Builder) -> Step:
    """The inverse of ldmatrix."""
    count, transposed = matrix_modifiers(build)
    address, needs = build.address(0)
    sources = [build.source(name, "b32") for name in build.vector(1)]
    registers, build.reads = tuple(build.reads), []
    if len(sources) != count:
        raise build.unknown()

    def execute(chunk: Chunk, mask: Array | None) -> None:
        check_members(chunk, step, ALL, mask)
        for matrix, (source, register) in enumerate(zip(sources, registers, strict=True)):
            value, never = source(chunk), chunk.unset(register) != 0
            if transposed:
                for k, half in enumerate(halves(value, U16)):
                    at = matrix_addresses(chunk, step, address(chunk), matrix, COLUMN + k)
                    store(chunk, step, at + 2 * np.tile(ROW, chunk.threads // 32), mask, [half], never)
            else:
                at = matrix_addresses(chunk, step, address(chunk), matrix, ROW)
                store(chunk, step, at + 2 * np.tile(COLUMN, chunk.threads // 32), mask, [value], never)

    step = build.step(execute, needs=needs, space="shared", width=2 if transposed else 4)
    return step
