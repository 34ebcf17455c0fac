"""Number formats: NumPy types of PTX types, rounding in each direction, bfloat16, flushing, and the fused multiply-add.

A float32 operation that NumPy does not have is computed in float64 *rounded to odd*: an inexact result gets the last
bit 1. Rounding that once more to float32, float16 or bfloat16, in any direction, gives what a single rounding of the
exact result gives (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray
U8, U16, U32, U64 = (np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64))
I8, I16, I32, I64 = (np.dtype(f"int{bits}") for bits in (8, 16, 32, 64))
F16, F32, F64, BOOL = np.dtype("float16"), np.dtype("float32"), np.dtype("float64"), np.dtype(bool)
UNSIGNED = {1: U8, 2: U16, 4: U32, 8: U64}
SIGNED = {1: I8, 2: I16, 4: I32, 8: I64}
DTYPES = {
    **{f"{letter}{8 * width}": dtype for width, dtype in UNSIGNED.items() for letter in "bu"},
    **{f"s{8 * width}": dtype for width, dtype in SIGNED.items()},
    "f16": F16, "f32": F32, "f64": F64, "bf16": U16, "f16x2": U32, "bf16x2": U32, "f32x2": U64, "pred": BOOL,
}  # fmt: skip
ROUNDINGS = ("rn", "rz", "rm", "rp")
SMALLEST = np.float64(2.0**-126)  # the smallest normal float32
_ONE = np.int64(1)


def flushed(x: Array) -> Array:
    """float32 with subnormal numbers replaced by zeros of their sign (``.ftz``)."""
    small = np.abs(x) < np.float32(2.0**-126)
    return np.where(small, np.copysign(np.float32(0), x), x) if small.any() else x


def saturated(x: Array) -> Array:
    """x clamped to [0, 1], and 0 for NaN (``.sat``)."""
    return np.where(x > 0, np.minimum(x, x.dtype.type(1)), x.dtype.type(0))


def odd_sum(a: Array, b: Array) -> Array:
    """a + b in float64, rounded to odd."""
    total = a + b
    rest = total - a
    error = (a - (total - rest)) + (b - rest)  # exact (Knuth's TwoSum)
    bits = total.view(I64)
    inexact = (error != 0) & np.isfinite(total) & np.isfinite(error) & ((bits & _ONE) == 0)
    if not inexact.any():
        return total
    away = np.where((error > 0) == (total > 0), _ONE, -_ONE)
    return np.where(inexact, bits + away, bits).view(F64)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a b + c in float32, rounded once to nearest even.

    The product is exact in float64. Rounding their sum a second time is wrong only where float64 lies halfway between
    two float32, or where the result is subnormal; the sum is rounded to odd there.
    """
    product, addend = a.astype(F64) * b.astype(F64), c.astype(F64)
    total = product + addend
    doubtful = (total.view(I64) & np.int64(0x1FFFFFFF)) == np.int64(0x10000000)
    small = np.abs(total) < SMALLEST
    if small.any():
        doubtful |= small & (total != 0)
    if doubtful.any():
        total = odd_sum(product, addend)
    return total.astype(F32)


def fma_odd(a: Array, b: Array, c: Array) -> Array:
    """a b + c in float64 rounded to odd, for factors of at most 26 bits."""
    return odd_sum(a.astype(F64) * b.astype(F64), c.astype(F64))


def narrowed(x: Array, kind: str, rounding: str = "rn") -> Array:
    """float64 as float32, float16 or bfloat16 (as its bits), rounded once."""
    if kind == "bf16":
        return to_bf16(directed(x, F32, "odd"), rounding)
    return directed(x, DTYPES[kind], rounding)


def directed(x: Array, dtype: np.dtype, rounding: str) -> Array:
    """x in a narrower format: to nearest even (rn), to zero (rz), down (rm), up (rp), or to odd."""
    nearest = x.astype(dtype)
    if rounding == "rn" or dtype == x.dtype:
        return nearest
    exact = nearest.astype(x.dtype)
    infinite = np.isinf(exact) & np.isfinite(x)  # of a finite number: the largest finite number is a neighbour
    zero, infinity = dtype.type(0), dtype.type(np.inf)
    smaller = np.where(np.abs(exact) > np.abs(x), np.nextafter(nearest, zero), nearest)
    smaller = np.where(infinite, np.nextafter(nearest, zero), smaller)
    match rounding:
        case "rz":
            return smaller
        case "rm":
            return np.where(exact > x, np.nextafter(nearest, -infinity), nearest)
        case "rp":
            return np.where(exact < x, np.nextafter(nearest, infinity), nearest)
        case "odd":
            bits = smaller.view(UNSIGNED[dtype.itemsize])
            inexact = (smaller.astype(x.dtype) != x) & np.isfinite(x)
            return np.where(inexact, bits | bits.dtype.type(1), bits).view(dtype)
    raise ValueError(f"no rounding {rounding!r}")


def to_bf16(x: Array, rounding: str = "rn") -> Array:
    """float32 as the bits of bfloat16. NaN becomes 0x7FFF."""
    bits = x.view(U32)
    match rounding:
        case "rn":
            raised = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        case "rz":
            raised = bits
        case _:
            negative = (bits >> np.uint32(31)).astype(bool)
            outwards = negative if rounding == "rm" else ~negative
            raised = bits + np.where(outwards & ~np.isinf(x), np.uint32(0xFFFF), np.uint32(0))
    high = (raised >> np.uint32(16)).astype(U16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), high)


def from_bf16(bits: Array) -> Array:
    """The float32 of a bfloat16's bits; exact."""
    return (bits.astype(U32) << np.uint32(16)).view(F32)


def widened(x: Array, kind: str) -> Array:
    """float16, bfloat16 (as its bits) or float32 as float32; exact."""
    if kind == "bf16":
        return from_bf16(x)
    return x if kind == "f32" else x.astype(F32)


def halves(x: Array, dtype: np.dtype) -> tuple[Array, Array]:
    """The low and the high half of an unsigned word, as ``dtype``."""
    half = UNSIGNED[x.dtype.itemsize // 2]
    bits = x.dtype.type(8 * half.itemsize)
    return x.astype(half).view(dtype), (x >> bits).astype(half).view(dtype)


def joined(low: Array, high: Array) -> Array:
    """An unsigned word of two halves."""
    half = UNSIGNED[low.dtype.itemsize]
    whole = UNSIGNED[2 * half.itemsize]
    return low.view(half).astype(whole) | (high.view(half).astype(whole) << whole.type(8 * half.itemsize))


def packed(function: Callable[..., Array], dtype: np.dtype) -> Callable[..., Array]:
    """The function of two halves at a time, for ``.f16x2``, ``.bf16x2`` and ``.f32x2``."""

    def both(*words: Array) -> Array:
        pairs = [halves(word, dtype) for word in words]
        return joined(function(*(low for low, _ in pairs)), function(*(high for _, high in pairs)))

    return both
