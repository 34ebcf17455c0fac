"""Approximate instructions, exact or at the error bounds of the PTX ISA.

A mode decides what an approximate instruction returns: its exact result rounded to float32 ("exact"), the largest
("up") or the smallest ("down") float32 that the bound allows, or one of these two by a hash of the operands
("random"). What holds in all modes holds on any hardware that keeps the bounds. Special cases (zero, infinity, NaN) are
documented exactly and are the same in every mode.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from machine.builder import Builder
from machine.formats import F32, F64, U32, Array, directed, flushed
from machine.steps import Step

MODES = ("exact", "up", "down", "random")
ULP, RELATIVE, ABSOLUTE = "ulp", "relative", "absolute"


@dataclass(frozen=True)
class Bound:
    """The largest error of an approximate instruction: so many ulp, or relative or absolute to the exact result."""

    size: float
    unit: str
    source: str  # words of the PTX ISA 9.0, chapter 9.7.3

    def of(self, exact: Array, x: Array) -> Array:
        """The error allowed for exact results, in float64; x is the operand."""
        if self.unit == ABSOLUTE:
            return np.full(exact.shape, self.size)
        if self.unit == RELATIVE:
            return np.abs(exact) * self.size
        exponent = np.maximum(np.frexp(exact)[1] - 1, -126)
        return np.ldexp(self.size, exponent - 23)


@dataclass(frozen=True)
class InRange(Bound):
    """sin and cos: the bound grows with the argument, and beyond 100 pi nothing is promised."""

    def of(self, exact: Array, x: Array) -> Array:
        size = np.abs(x)
        return np.where(size <= 2.0 * np.pi, self.size, np.where(size <= 100.0 * np.pi, 2.0**-14.7, 2.0))


@dataclass(frozen=True)
class Logarithm(Bound):
    """lg2: absolute between 1/2 and 2, relative elsewhere."""

    def of(self, exact: Array, x: Array) -> Array:
        return np.where((x > 0.5) & (x < 2.0), self.size, np.abs(exact) * self.size)


BOUNDS = {
    "rcp.approx": Bound(1.0, ULP, "rcp: the maximum ulp error is 1 across the full range of inputs"),
    "div.approx": Bound(2.0, ULP, "div: for |b| in [2^-126, 2^126] the maximum ulp error is 2"),
    "div.full": Bound(2.0, ULP, "div: the maximum ulp error is 2 across the full range of inputs"),
    "sqrt.approx": Bound(
        2.0**-23, RELATIVE, "sqrt: the maximum relative error over the positive finite range is 2^-23"
    ),
    "rsqrt.approx": Bound(2.0**-22.9, RELATIVE, "rsqrt: the maximum relative error over that range is 2^-22.9"),
    "ex2.approx": Bound(2.0, ULP, "ex2: the maximum error is 2 ulp across the full range of inputs"),
    "lg2.approx": Logarithm(2.0**-22, RELATIVE, "lg2: absolute 2^-22 in (0.5, 2), relative 2^-22 elsewhere"),
    "sin.approx": InRange(2.0**-20.5, ABSOLUTE, "sin: 2^-20.5 in [-2pi, 2pi], 2^-14.7 in [-100pi, 100pi], absolute"),
    "cos.approx": InRange(2.0**-20.5, ABSOLUTE, "cos: 2^-20.5 in [-2pi, 2pi], 2^-14.7 in [-100pi, 100pi], absolute"),
    "tanh.approx": Bound(2.0**-11, RELATIVE, "tanh: the maximum relative error is 2^-11"),
}
FUNCTIONS: dict[str, Callable[..., Array]] = {
    "rcp": lambda a: 1.0 / a,
    "div": np.divide,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1.0 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


class Approximation:
    """What approximate instructions return: the mode, and the seed of its random signs."""

    def __init__(self, mode: str = "exact", seed: int = 0) -> None:
        if mode not in MODES:
            raise ValueError(f"the mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.mode, self.seed = mode, seed
        self.used = False  # whether an approximate instruction has run

    def result(self, bound: Bound, exact: Array, *operands: Array) -> Array:
        """float32 for the exact result, in float64, of the operands."""
        nearest = exact.astype(F32)
        self.used = True
        if self.mode == "exact":
            return nearest
        error = bound.of(exact, operands[0])
        up, down = directed(exact + error, F32, "rm"), directed(exact - error, F32, "rp")
        if self.mode == "random":
            moved = np.where(self.signs(*operands), up, down)
        else:
            moved = up if self.mode == "up" else down
        fixed = ~np.isfinite(exact) | (exact == 0) | np.isinf(nearest)
        return np.where(fixed, nearest, moved)

    def signs(self, *operands: Array) -> Array:
        """A bit per element that depends on the operands and the seed alone, as hardware answers the same each time."""
        mixed = np.full((1, 1), self.seed * 0x9E3779B9 + 0x7F4A7C15 & 0xFFFFFFFF, U32)
        for operand in operands:
            mixed = (mixed ^ operand.view(U32)) * np.uint32(0x85EBCA6B)
            mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
            mixed ^= mixed >> np.uint32(16)
        return (mixed & np.uint32(1)).astype(bool)


def build_approximate(build: Builder) -> Step:
    """``ex2.approx.ftz.f32`` and the like."""
    kind = build.choice(("approx", "full"))
    name = f"{build.name}.{kind}"
    if name not in BOUNDS:
        raise build.unknown()
    ftz = build.flag("ftz")
    build.type("f32")
    operands = 2 if build.name == "div" else 1
    build.done(1 + operands)
    sources = [build.source(k, "f32") for k in range(1, 1 + operands)]
    bound, function, target = BOUNDS[name], FUNCTIONS[build.name], build.destination()
    assert target is not None

    def execute(chunk, mask) -> None:
        values = [get(chunk) for get in sources]
        if ftz:
            values = [flushed(value) for value in values]
        exact = function(*(value.astype(F64) for value in values))
        result = chunk.approximation.result(bound, exact, *values)
        if name == "div.approx":
            result = of_large_divisor(result, *values)
        chunk.put(target, flushed(result) if ftz else result, mask)

    return build.step(execute)


def of_large_divisor(result: Array, a: Array, b: Array) -> Array:
    """div.approx for |b| > 2^126: NaN if a is infinite, else a zero."""
    large = (np.abs(b) > np.float32(2.0**126)) & np.isfinite(b)
    instead = np.where(np.isinf(a), np.float32(np.nan), np.copysign(np.float32(0), result))
    return np.where(large, instead, result)
