"""cvt: between integers, between floats, and from one to the other."""

from collections.abc import Callable

import numpy as np
from machine.builder import Builder, builds
from machine.floats import modified
from machine.formats import (
    DTYPES,
    F16,
    F32,
    F64,
    ROUNDINGS,
    SIGNED,
    UNSIGNED,
    Array,
    directed,
    flushed,
    from_bf16,
    joined,
    narrowed,
    saturated,
    to_bf16,
)
from machine.steps import Step

TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
FLOATS = ("f16", "bf16", "f32", "f64")
KINDS = (*FLOATS, *(f"{letter}{bits}" for letter in "us" for bits in (8, 16, 32, 64)))


@builds("cvt")
def build_conversion(build: Builder) -> Step:
    rounding = build.choice((*ROUNDINGS, *TO_INTEGER), "")
    ftz, sat = build.flag("ftz"), build.flag("sat")
    relu = build.flag("relu")
    result = build.choice((*KINDS, "f16x2", "bf16x2"))
    kind = build.type(*KINDS)
    if result in ("f16x2", "bf16x2"):
        return build_pair(build, result, kind, rounding, relu)
    build.done(2)
    if relu:
        raise build.unknown()
    if kind in FLOATS and result in FLOATS:
        function = between_floats(build, kind, result, rounding, ftz, sat)
    elif kind in FLOATS:
        function = to_integer(build, kind, result, rounding, ftz)
    elif result in FLOATS:
        function = from_integer(build, kind, result, rounding, sat)
    else:
        if rounding or ftz:
            raise build.unknown()
        function = between_integers(kind, result, sat)
    return build.compute(extended(build, function, result), build.source(1, kind))


def extended(build: Builder, function: Callable, result: str) -> Callable:
    """The function with its result extended to a wider register, by the sign of its type."""
    dtype, held = DTYPES[result], DTYPES[build.bits[build.register(build.operands[0])]]
    if held.itemsize == dtype.itemsize:
        return function
    if held.itemsize < dtype.itemsize or dtype.kind == "f":
        raise build.unknown("the register does not fit the result")
    wide = (SIGNED if dtype.kind == "i" else UNSIGNED)[held.itemsize]
    return lambda x: function(x).astype(wide)


def build_pair(build: Builder, result: str, kind: str, rounding: str, relu: bool) -> Step:
    """Two float32 as a word of two halves; the first source becomes the high half."""
    build.done(3)
    if kind != "f32" or rounding not in ("rn", "rz"):
        raise build.unknown()
    half = result.removesuffix("x2")

    def function(high: Array, low: Array) -> Array:
        if relu:
            high, low = (np.where(x < 0, np.float32(0), x) for x in (high, low))
        low, high = np.broadcast_arrays(narrow_float(low, half, rounding), narrow_float(high, half, rounding))
        return joined(low, high)

    return build.compute(function, build.source(1, kind), build.source(2, kind))


def narrow_float(x: Array, kind: str, rounding: str) -> Array:
    """float32 as bfloat16 (its bits) or float16."""
    return to_bf16(x, rounding) if kind == "bf16" else directed(x, F16, rounding)


def between_floats(build: Builder, kind: str, result: str, rounding: str, ftz: bool, sat: bool) -> Callable:
    if sat and result == "bf16":
        raise build.unknown()
    widening = FLOATS.index(result) > FLOATS.index(kind) and {kind, result} != {"f16", "bf16"}
    if rounding in TO_INTEGER:  # a whole number in the same format
        if kind != result or kind == "bf16":
            raise build.unknown()
        return modified(TO_INTEGER[rounding], ftz, sat)
    if kind == result:
        if rounding or kind == "bf16":
            raise build.unknown()
        return modified(lambda x: x, ftz, sat)
    if widening == bool(rounding):  # exact conversions have no rounding, all others need one
        raise build.unknown()

    def function(x: Array) -> Array:
        whole = from_bf16(x) if kind == "bf16" else x
        if ftz and kind == "f32":
            whole = flushed(whole)
        if widening:
            found = whole.astype(DTYPES[result])
        elif kind == "f32" or kind == "bf16" or kind == "f16":
            found = narrow_float(whole.astype(F32), result, rounding)
        else:
            found = narrowed(whole, result, rounding)
        if ftz and result == "f32":
            found = flushed(found)
        return saturated(found) if sat else found

    return function


def to_integer(build: Builder, kind: str, result: str, rounding: str, ftz: bool) -> Callable:
    """Clamped to the range of the result, and 0 for NaN (for 64 bits the smallest or largest number)."""
    if rounding not in TO_INTEGER:
        raise build.unknown("a rounding to an integer is missing")
    dtype, whole = DTYPES[result], TO_INTEGER[rounding]
    low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    of_nan = dtype.type(0) if dtype.itemsize < 8 else np.array(1 << 63, np.uint64).view(dtype)[()]

    def function(x: Array) -> Array:
        x = from_bf16(x) if kind == "bf16" else x
        x = whole((flushed(x) if ftz and kind == "f32" else x).astype(F64))
        above, below, nan = x >= high, x <= low, np.isnan(x)
        found = np.where(above | below | nan, 0.0, x).astype(dtype)
        found = np.where(above, np.iinfo(dtype).max, found).astype(dtype)
        found = np.where(below, np.iinfo(dtype).min, found).astype(dtype)
        return np.where(nan, of_nan, found)

    return function


def from_integer(build: Builder, kind: str, result: str, rounding: str, sat: bool) -> Callable:
    if rounding not in ROUNDINGS:
        raise build.unknown("a rounding is missing")
    exact = DTYPES[kind].itemsize < 8  # in float64

    def function(x: Array) -> Array:
        if rounding == "rn" and result in ("f32", "f64"):
            found = x.astype(DTYPES[result])
        else:
            found = narrowed(x.astype(F64), result, rounding)
        return saturated(found) if sat else found

    if not exact and (rounding != "rn" or result not in ("f32", "f64")):
        raise build.unknown()
    return function


def between_integers(kind: str, result: str, sat: bool) -> Callable:
    """Extended by the sign of the source, cut, or clamped (``.sat``)."""
    dtype = DTYPES[result]
    if not sat:
        return lambda x: x.astype(dtype)
    source, target = np.iinfo(DTYPES[kind]), np.iinfo(dtype)
    low, high = (max(source.min, target.min), min(source.max, target.max))
    return lambda x: np.clip(x, DTYPES[kind].type(low), DTYPES[kind].type(high)).astype(dtype)
