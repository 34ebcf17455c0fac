"""Floating-point arithmetic that is rounded once: add, sub, mul, fma, division, square root, extrema, signs."""

from collections.abc import Callable

import numpy as np
from machine.approximate import build_approximate
from machine.builder import Builder, builds
from machine.formats import (
    DTYPES,
    F32,
    F64,
    ROUNDINGS,
    UNSIGNED,
    Array,
    directed,
    flushed,
    fma32,
    fma_odd,
    narrowed,
    odd_sum,
    packed,
    saturated,
    widened,
)
from machine.integers import (
    build_extremum,
    build_product,
    build_quotient,
    build_sign,
    build_sum,
    is_integer,
)
from machine.steps import Step
from machine.taint import of_halves

HALVES = ("f16", "bf16", "f16x2", "bf16x2")
SCALARS = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}
Function = Callable[..., Array]


def modified(function: Function, ftz: bool, sat: bool) -> Function:
    """The function of float32 with subnormal inputs and results flushed, and its result clamped."""
    if not ftz and not sat:
        return function

    def wrapped(*values: Array) -> Array:
        result = function(*(flushed(value) for value in values)) if ftz else function(*values)
        result = flushed(result) if ftz else result
        return saturated(result) if sat else result

    return wrapped


def exact_function(name: str, kind: str, rounding: str) -> Function:
    """The function of values as float32 or float64 that rounds its exact result once to ``kind``."""
    if kind == "f64":
        if rounding != "rn" or name == "fma":
            raise KeyError(name)
        return {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    if kind == "f32" and rounding == "rn":
        return {"add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": fma32}[name]
    odd: dict[str, Function] = {
        "add": lambda a, b: odd_sum(a.astype(F64), b.astype(F64)),
        "sub": lambda a, b: odd_sum(a.astype(F64), -b.astype(F64)),
        "mul": lambda a, b: a.astype(F64) * b.astype(F64),
        "fma": fma_odd,
    }
    function = odd[name]
    return lambda *values: narrowed(function(*values), kind, rounding)


@builds("add", "sub", "mul", "fma")
def build_arithmetic(build: Builder) -> Step:
    """Without a rounding modifier the result is rounded to nearest even."""
    if build.name in ("add", "sub") and is_integer(build):
        return build_sum(build)
    if build.name == "mul" and is_integer(build):
        return build_product(build)
    sources = 3 if build.name == "fma" else 2
    rounding = build.choice(ROUNDINGS, None if build.name == "fma" else "rn")
    ftz, sat = build.flag("ftz"), build.flag("sat")
    if build.modifiers[:1] == ["f32"] and len(build.modifiers) == 2:
        return build_mixed(build, rounding, sat)
    relu = build.name == "fma" and build.flag("relu")
    kind = build.type("f32", "f64", "f32x2", *HALVES)
    build.done(1 + sources)
    scalar = SCALARS.get(kind, kind)
    if (scalar != "f32" and (rounding != "rn" or ftz)) or (sat and scalar not in ("f32", "f16")):
        raise build.unknown()
    try:
        function = exact_function(build.name, scalar, rounding)
    except KeyError:
        raise build.unknown() from None
    function = modified(of_sixteen_bits(function, scalar), ftz, sat)
    if relu:
        function = rectified(function, scalar)
    if scalar != kind:
        return of_pairs(build, packed(function, DTYPES[scalar]), kind)
    return build.compute(function, *(build.source(k, kind) for k in range(1, 1 + sources)))


def of_pairs(build: Builder, function: Function, kind: str) -> Step:
    """A step that computes two numbers at a time."""
    sources = [build.source(k, kind) for k in range(1, len(build.operands))]
    return build.compute(function, *sources, taint=of_halves(build.reads))


def of_sixteen_bits(function: Function, kind: str) -> Function:
    """A function of float32 as one of float16 or bfloat16."""
    if kind not in ("f16", "bf16"):
        return function
    return lambda *values: function(*(widened(value, kind) for value in values))


def rectified(function: Function, kind: str) -> Function:
    """Negative results become 0 and NaN stays (``.relu``)."""

    def result(*values: Array) -> Array:
        found = function(*values)
        return np.where(widened(found, kind) < 0, found.dtype.type(0), found)

    return result


def build_mixed(build: Builder, rounding: str, sat: bool) -> Step:
    """add, sub and fma of 16-bit factors and a float32 addend: ``fma.rn.f32.bf16``."""
    build.choice(("f32",))
    kind = build.type("f16", "bf16")
    function = exact_function(build.name, "f32", rounding)
    if build.name == "fma":
        build.done(4)
        mixed: Function = lambda a, b, c: function(widened(a, kind), widened(b, kind), c)  # noqa: E731
        sources = [build.source(1, kind), build.source(2, kind), build.source(3, "f32")]
    elif build.name in ("add", "sub"):
        build.done(3)
        mixed = lambda a, c: function(widened(a, kind), c)  # noqa: E731
        sources = [build.source(1, kind), build.source(2, "f32")]
    else:
        raise build.unknown()
    return build.compute(modified(mixed, False, sat), *sources)


@builds("div", "sqrt", "rcp")
def build_division(build: Builder) -> Step:
    """Rounded division, root and reciprocal; the approximate ones are in `approximate`."""
    if build.name == "div" and is_integer(build):
        return build_quotient(build)
    if build.modifiers[0] in ("approx", "full"):
        return build_approximate(build)
    rounding, ftz = build.choice(ROUNDINGS), build.flag("ftz")
    kind = build.type("f32", "f64")
    operands = 2 if build.name == "div" else 1
    build.done(1 + operands)
    plain: Function = {"div": np.divide, "sqrt": np.sqrt, "rcp": lambda a: a.dtype.type(1) / a}[build.name]
    if rounding == "rn":
        function = plain  # NumPy's are rounded correctly
    elif kind == "f64":
        raise build.unknown()
    else:

        def function(*values: Array) -> Array:
            """A quotient or root of float32 is never so close to a float32 that float64 hides on which side it is."""
            return directed(plain(*(value.astype(F64) for value in values)), F32, rounding)

    return build.compute(modified(function, ftz, False), *(build.source(k, kind) for k in range(1, 1 + operands)))


@builds("rsqrt", "sin", "cos", "lg2", "ex2", "tanh")
def build_function(build: Builder) -> Step:
    return build_approximate(build)


# ------------------------------------------------------------------------------------------------ extrema, signs


def extremum(largest: bool, nan: bool) -> Function:
    """min or max of floats. A NaN is ignored unless ``nan``, and -0 is less than +0."""
    choose = {(True, True): np.maximum, (False, True): np.minimum, (True, False): np.fmax, (False, False): np.fmin}[
        largest, nan
    ]

    def result(a: Array, b: Array) -> Array:
        found = choose(a, b)
        equal = (a == b) & (a == 0)
        if not equal.any():
            return found
        bits = UNSIGNED[a.dtype.itemsize]
        zeros = a.view(bits) & b.view(bits) if largest else a.view(bits) | b.view(bits)
        return np.where(equal, zeros.view(a.dtype), found)

    return result


@builds("min", "max")
def build_float_extremum(build: Builder) -> Step:
    if is_integer(build):
        return build_extremum(build)
    ftz, nan = build.flag("ftz"), build.flag("NaN")
    kind = build.type("f32", "f64", *HALVES)
    build.done(len(build.operands) if len(build.operands) in (3, 4) else 3)
    scalar = SCALARS.get(kind, kind)
    if ftz and scalar != "f32":
        raise build.unknown()
    of_two = extremum(build.name == "max", nan)
    function: Function = of_two if len(build.operands) == 3 else lambda a, b, c: of_two(of_two(a, b), c)
    if scalar == "bf16":
        wide = function
        function = lambda *values: narrowed(wide(*(widened(v, "bf16") for v in values)).astype(F64), "bf16")  # noqa: E731
    function = modified(function, ftz, False)
    if scalar != kind:
        return of_pairs(build, packed(function, DTYPES[scalar]), kind)
    return build.compute(function, *(build.source(k, kind) for k in range(1, len(build.operands))))


@builds("abs", "neg")
def build_float_sign(build: Builder) -> Step:
    """abs and neg change the sign bit alone, also of a NaN."""
    if is_integer(build):
        return build_sign(build)
    ftz = build.flag("ftz")
    kind = build.type("f32", "f64", *HALVES)
    build.done(2)
    bits = UNSIGNED[DTYPES[kind].itemsize]
    sign = {"f16": 0x8000, "bf16": 0x8000, "f16x2": 0x80008000, "bf16x2": 0x80008000, "f32": 1 << 31, "f64": 1 << 63}
    top = bits.type(sign[kind])
    change = (lambda x: x ^ top) if build.name == "neg" else (lambda x: x & ~top)
    if ftz and kind == "f32":
        return build.compute(lambda x: change(flushed(x).view(bits)), build.source(1, kind))
    if ftz:
        raise build.unknown()
    return build.compute(lambda x: change(x.view(bits)), build.source(1, kind))


@builds("copysign")
def build_copysign(build: Builder) -> Step:
    """The second source with the sign of the first."""
    kind = build.type("f32", "f64")
    build.done(3)
    return build.compute(lambda sign, x: np.copysign(x, sign), build.source(1, kind), build.source(2, kind))


@builds("testp")
def build_test(build: Builder) -> Step:
    test = build.choice(("finite", "infinite", "number", "notanumber", "normal", "subnormal"))
    kind = build.type("f32", "f64")
    build.done(2)
    smallest = np.finfo(DTYPES[kind]).tiny
    functions: dict[str, Function] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= smallest),
        "subnormal": lambda x: (x != 0) & (np.abs(x) < smallest),
    }
    return build.compute(functions[test], build.source(1, kind))
