"""Integer arithmetic."""

from collections.abc import Callable

import numpy as np
from machine.builder import Builder, builds
from machine.formats import DTYPES, I64, SIGNED, U64, UNSIGNED, Array
from machine.steps import Step

INTEGERS = tuple(f"{letter}{bits}" for letter in "us" for bits in (16, 32, 64))
BITS = ("b16", "b32", "b64")


def wide(kind: str) -> str:
    """The type of twice the width."""
    return f"{kind[0]}{2 * int(kind[1:])}"


def high_product(a: Array, b: Array) -> Array:
    """The high half of a product of integers of equal type."""
    dtype = a.dtype
    if dtype.itemsize < 8:
        double = (SIGNED if dtype.kind == "i" else UNSIGNED)[2 * dtype.itemsize]
        return (a.astype(double) * b.astype(double) >> double.type(8 * dtype.itemsize)).astype(dtype)
    low = np.uint64(0xFFFFFFFF)
    x, y, half = a.view(U64), b.view(U64), np.uint64(32)
    cross = (x & low) * (y & low) >> half
    first = (x >> half) * (y & low) + cross
    second = (x & low) * (y >> half) + (first & low)
    high = (x >> half) * (y >> half) + (first >> half) + (second >> half)
    if dtype == I64:  # a negative factor stands for itself plus 2**64
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(dtype)


def product(build: Builder, part: str, kind: str) -> tuple[Callable[[Array, Array], Array], str]:
    """The function of ``.lo``, ``.hi`` or ``.wide``, and the type of its result."""
    if part == "hi":
        return high_product, kind
    if part == "lo":
        return np.multiply, kind
    if kind[1:] == "64":
        raise build.unknown()
    double = DTYPES[wide(kind)]
    return lambda a, b: a.astype(double) * b.astype(double), wide(kind)


def build_sum(build: Builder) -> Step:
    """add and sub of integers."""
    saturate = build.flag("sat")
    kind = build.type(*INTEGERS)
    build.done(3)
    function = np.add if build.name == "add" else np.subtract
    a, b = build.source(1, kind), build.source(2, kind)
    if not saturate:
        return build.compute(function, a, b)
    if kind != "s32":
        raise build.unknown()
    low, high = np.int64(-(2**31)), np.int64(2**31 - 1)
    return build.compute(lambda x, y: np.clip(function(x.astype(I64), y.astype(I64)), low, high).astype(np.int32), a, b)


def build_product(build: Builder) -> Step:
    part = build.choice(("lo", "hi", "wide"))
    kind = build.type(*INTEGERS)
    build.done(3)
    function, _ = product(build, part, kind)
    return build.compute(function, build.source(1, kind), build.source(2, kind))


@builds("mad")
def build_product_and_sum(build: Builder) -> Step:
    part = build.choice(("lo", "hi", "wide"))
    kind = build.type(*INTEGERS)
    build.done(4)
    function, result = product(build, part, kind)
    a, b, c = build.source(1, kind), build.source(2, kind), build.source(3, result)
    return build.compute(lambda x, y, z: function(x, y) + z, a, b, c)


def quotient(a: Array, b: Array) -> Array:
    """Rounded towards zero. By zero: all bits set, as the hardware answers."""
    if a.dtype.kind == "u":
        return np.where(b == 0, ~a.dtype.type(0), a // np.where(b == 0, a.dtype.type(1), b))
    divisor = np.where(b == 0, a.dtype.type(1), b)
    result = a // divisor
    result = result + ((result < 0) & (result * divisor != a)).astype(a.dtype)
    return np.where(b == 0, a.dtype.type(-1), result)


def build_quotient(build: Builder) -> Step:
    """div and rem of integers."""
    kind = build.type(*INTEGERS)
    build.done(3)
    function = quotient if build.name == "div" else lambda a, b: a - quotient(a, b) * b
    return build.compute(function, build.source(1, kind), build.source(2, kind))


@builds("rem")
def build_remainder(build: Builder) -> Step:
    return build_quotient(build)


def build_extremum(build: Builder) -> Step:
    """min and max of integers."""
    kind = build.type(*INTEGERS)
    build.done(3)
    function = np.minimum if build.name == "min" else np.maximum
    return build.compute(function, build.source(1, kind), build.source(2, kind))


def build_sign(build: Builder) -> Step:
    """abs and neg of integers."""
    kind = build.type("s16", "s32", "s64")
    build.done(2)
    return build.compute(np.negative if build.name == "neg" else np.abs, build.source(1, kind))


def is_integer(build: Builder) -> bool:
    """Whether the type, the last modifier, is one of integers."""
    return bool(build.modifiers) and build.modifiers[-1] in INTEGERS
