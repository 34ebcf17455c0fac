"""Moves, choices and comparisons, and the parameters of the kernel."""

from collections.abc import Callable

import numpy as np
from machine.builder import Builder, builds
from machine.formats import DTYPES, UNSIGNED, Array, flushed
from machine.ptx import WIDTHS
from machine.steps import Step
from machine.taint import all_of, of_halves, of_parts, part_of, union

NUMBERS = tuple(kind for kind in DTYPES if kind not in ("pred", "b8", "u8", "s8"))


@builds("mov")
def build_move(build: Builder) -> Step:
    """Also packs and unpacks: ``mov.b64 {%r1, %r2}, %rd1``."""
    kind = build.type("pred", *NUMBERS)
    build.done(2)
    if build.operands[0].startswith("{"):
        return build_unpack(build, kind)
    if build.operands[1].startswith("{"):
        return build_pack(build, kind)
    source = build.source(1, kind)
    return build.compute(lambda a: a, source, taint=of_halves(build.reads))


def part_type(build: Builder, kind: str, parts: int) -> str:
    bits = 8 * DTYPES[kind].itemsize // parts
    if f"b{bits}" not in DTYPES or kind[0] != "b" or bits * parts != 8 * DTYPES[kind].itemsize:
        raise build.unknown()
    return f"b{bits}"


def build_unpack(build: Builder, kind: str) -> Step:
    names = build.vector(0)
    part = UNSIGNED[DTYPES[part_type(build, kind, len(names))].itemsize]
    source = build.source(1, kind)
    targets = [build.destination(name) for name in names]
    read, build.reads = tuple(build.reads), []

    def execute(chunk, mask) -> None:
        word, codes = source(chunk), union(chunk, read)
        for place, target in enumerate(targets):
            if target is not None:
                chunk.put(target, (word >> word.dtype.type(8 * part.itemsize * place)).astype(part), mask)
                chunk.taint(target, part_of(codes, place, len(targets)), mask)

    return build.step(execute)


def build_pack(build: Builder, kind: str) -> Step:
    names = build.vector(1)
    part, whole = part_type(build, kind, len(names)), DTYPES[kind]
    bits = 8 * DTYPES[part].itemsize

    def packed(*values: Array) -> Array:
        result = values[0].astype(whole)
        for place, value in enumerate(values[1:], 1):
            result = result | value.astype(whole) << whole.type(bits * place)
        return result

    taint = of_parts([build.index.get(name) for name in names])
    return build.compute(packed, *(build.source(name, part) for name in names), taint=taint)


@builds("cvta")
def build_address_space(build: Builder) -> Step:
    """Global addresses are their own generic addresses. The machine has no generic addresses of shared memory."""
    build.flag("to")
    build.choice(("global", "param", "const"))
    kind = build.type("u64", "u32")
    build.done(2)
    return build.compute(lambda a: a, build.source(1, kind))


def build_parameter_load(build: Builder) -> Step:
    """``ld.param``: a uniform value, extended by the sign of its type."""
    kind = build.type(*WIDTHS)
    build.done(2)
    name, _, offset = build.operands[1].strip("[]").partition("+")
    if name not in dict(build.kernel.parameters):
        raise build.unknown("no such parameter")
    target, dtype = build.destination(), DTYPES[kind]
    assert target is not None
    place = [parameter for parameter, _ in build.kernel.parameters].index(name)
    start = int(offset or 0)
    held = DTYPES[build.bits[target]]

    def execute(chunk, mask) -> None:
        raw = chunk.parameters[place][start : start + dtype.itemsize]
        value = np.frombuffer(raw, dtype).reshape(1, 1)
        if dtype.itemsize < held.itemsize:
            value = value.astype(np.int64 if dtype.kind == "i" else np.uint64).astype(held)
        chunk.put(target, value, mask)

    if start + dtype.itemsize > WIDTHS[dict(build.kernel.parameters)[name]]:
        raise build.unknown("beyond the parameter")
    return build.step(execute)


# ------------------------------------------------------------------------------------------------ choices


@builds("selp")
def build_select(build: Builder) -> Step:
    """a where the predicate is true, else b. What is not chosen may never have been written."""
    kind = build.type(*NUMBERS)
    build.done(4)
    a, b, choose = build.source(1, kind), build.source(2, kind), build.source(3, "pred")
    taint = choice_taint(build, choose)
    return build.compute(lambda x, y, p: np.where(p, x, y), a, b, choose, taint=taint)


def choice_taint(build: Builder, choose: Callable) -> Callable:
    first, second = (build.index.get(build.operands[k]) for k in (1, 2))
    third = build.index.get(build.operands[3])

    def taint(chunk) -> Array:
        return np.where(choose(chunk), chunk.unset(first), chunk.unset(second)) | all_of(chunk.unset(third))

    return taint


@builds("slct")
def build_select_by_sign(build: Builder) -> Step:
    """a where c >= 0, else b."""
    ftz = build.flag("ftz")
    kind = build.choice(NUMBERS)
    by = build.type("s32", "f32")
    build.done(4)
    a, b, c = build.source(1, kind), build.source(2, kind), build.source(3, by)
    sign = (lambda x: flushed(x) >= 0) if ftz else (lambda x: x >= 0)
    return build.compute(lambda x, y, z: np.where(sign(z), x, y), a, b, c)


ORDERED = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
           "ge": np.greater_equal}  # fmt: skip
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
INTEGERS = tuple(f"{letter}{bits}" for letter in "bus" for bits in (16, 32, 64))


def comparison(build: Builder, name: str, kind: str) -> Callable[[Array, Array], Array]:
    """Ordered comparisons of floats are false for NaN, also ``ne``; their ``u`` variants are true."""
    if kind[0] in "bus":
        if name in UNSIGNED_NAMES and kind[0] == "u":
            name = UNSIGNED_NAMES[name]
        if name not in ORDERED or (kind[0] == "b" and name not in ("eq", "ne")):
            raise build.unknown()
        return ORDERED[name]
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    if name in ORDERED:
        return ORDERED[name]
    if name.endswith("u") and name[:-1] in ORDERED:
        ordered = ORDERED[name[:-1]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    raise build.unknown()


@builds("setp")
def build_comparison(build: Builder) -> Step:
    """``setp.lt.and.f32 p|q, a, b, !c``: p = (a < b) and not c, q = not (a < b) and not c."""
    name = build.modifiers.pop(0)
    combine = build.choice(("and", "or", "xor"), "")
    ftz = build.flag("ftz")
    kind = build.type(*INTEGERS, "f32", "f64", "f16")
    build.done(4 if combine else 3)
    compare = comparison(build, name, kind)
    if ftz:
        if kind != "f32":
            raise build.unknown()
        plain = compare
        compare = lambda a, b: plain(flushed(a), flushed(b))  # noqa: E731
    targets = [build.destination(name) for name in build.operands[0].split("|")]
    a, b = build.source(1, kind), build.source(2, kind)
    negate = combine != "" and build.operands[3].startswith("!")
    third = build.source(build.operands[3].lstrip("!"), "pred") if combine else None
    joins = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}

    def execute(chunk, mask) -> None:
        found = compare(a(chunk), b(chunk))
        other = None if third is None else third(chunk) ^ negate
        for place, target in enumerate(targets):
            if target is not None:
                value = ~found if place else found
                chunk.put(target, value if other is None else joins[combine](value, other), mask)

    return build.step(execute)
