"""Rounding of rational numbers to floating-point formats, by integers alone: the oracle of the machine's arithmetic."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Format:
    """A binary format: bits of the significand, smallest and largest exponent."""

    precision: int
    smallest: int
    largest: int


FORMATS = {"f32": Format(24, -126, 127), "f16": Format(11, -14, 15), "bf16": Format(8, -126, 127)}


def rounded(value: Fraction, kind: str, mode: str = "rn") -> float:
    """The number of the format that the value is rounded to: to nearest even, to zero, down (rm) or up (rp)."""
    form = FORMATS[kind]
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, form.smallest) - form.precision + 1)
    low = math.floor(size / unit)
    rest = size / unit - low
    up = {"rz": False, "rm": value < 0, "rp": value > 0}.get(
        mode, rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2)
    )
    result = (low + (bool(up) and rest > 0)) * unit
    limit = (2 - Fraction(2) ** (1 - form.precision)) * Fraction(2) ** form.largest
    if result > limit:
        outwards = mode == "rn" or mode == ("rm" if value < 0 else "rp")
        result = math.inf if outwards else limit
    return float(result) if value > 0 else -float(result)


def numbers(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Random bit patterns of a format, many near 1 and some subnormal or huge, as float32; all finite."""
    draw = np.random.default_rng(seed)
    bits = draw.integers(0, 2**32, count, dtype=np.uint32)
    near = draw.random(count)
    exponent = np.where(near < 0.5, 127 + draw.integers(-3, 4, count), bits >> 23 & 255).astype(np.uint32)
    exponent = np.where(near > 0.93, 0, exponent)
    bits = (bits & np.uint32(0x807FFFFF)) | exponent << np.uint32(23)
    value = bits.view(np.float32)
    if kind == "f16":
        value = np.where(np.abs(value) < 60000, value, np.float32(0.75)).astype(np.float16).astype(np.float32)
    if kind == "bf16":
        value = (value.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    value[~np.isfinite(value)] = 1.5
    value[:4] = [0.0, -0.0, 1.0, -1.0]
    return value


def encoded(value: np.ndarray, kind: str) -> np.ndarray:
    """float32 that a format can hold, as the format's elements: float32, float16, or the bits of bfloat16."""
    if kind == "bf16":
        return (value.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return value.astype({"f32": np.float32, "f16": np.float16}[kind])


def decoded(elements: np.ndarray, kind: str) -> np.ndarray:
    """The inverse of `encoded`, in float64."""
    if kind == "bf16":
        return (elements.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return elements.astype(np.float64)
