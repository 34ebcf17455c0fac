"""Floating-point instructions against exact rational arithmetic, rounded once."""

import math
from fractions import Fraction

import numpy as np
import pytest
from machine.formats import flushed
from machine.rounding import decoded, encoded, numbers, rounded
from machine.small import apply

COUNT = 600
EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
}


def fractions(values):
    return [Fraction(float(x)) for x in values]


def close_sums(kind, seed=0):
    """Three sources whose product and sum cancel, or are halfway between two numbers, in many places."""
    a, b, c = (numbers(kind, COUNT, seed + k) for k in range(3))
    with np.errstate(all="ignore"):
        product = (a.astype(np.float64) * b).astype(np.float32)
    nearly = np.isfinite(product)
    if kind != "f32":
        nearly &= np.abs(product) < 60000
        product = decoded(encoded(np.where(nearly, product, np.float32(0)), kind), kind)
    c[::3] = np.where(nearly, -product, c)[::3]
    tiny = np.ldexp(np.sign(c), np.frexp(np.abs(a) + 1e-30)[1] - 24 - np.arange(COUNT) % 4)
    c[1::3] = np.where(np.abs(tiny) > 1e-4, tiny, c)[1::3].astype(np.float32)
    if kind == "bf16":
        c = (c.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    if kind == "f16":
        c = np.where(np.abs(c) < 60000, c, np.float32(0.5)).astype(np.float16).astype(np.float32)
    c[~np.isfinite(c)] = 0.25
    return a, b, c


def check(found, expected, kind, flush=False):
    """Bit for bit, but for the sign of zero that rational numbers do not have."""
    expected = np.array(expected, np.float64)
    if flush:
        expected[np.abs(expected) < 2.0**-126] = 0.0
    wrong = np.flatnonzero(decoded(found, kind) != expected)
    assert not len(wrong), (wrong[:5], decoded(found, kind)[wrong[:5]], expected[wrong[:5]])


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", EXACT)
def test_float32(name, mode):
    sources = close_sums("f32", len(name))
    if name == "div":
        sources = (sources[0], np.where(sources[1] == 0, np.float32(3), sources[1]))
    sources = sources[: 3 if name == "fma" else 2]
    names = ", ".join(f"S{k}" for k in range(len(sources)))
    found = apply(f"{name}.{mode}.f32 D, {names};", np.float32, *sources)
    exact = [EXACT[name](*values) for values in zip(*map(fractions, sources), strict=True)]
    check(found, [rounded(value, "f32", mode) for value in exact], "f32")
    if mode == "rn":
        flush = apply(f"{name}.{mode}.ftz.f32 D, {names};", np.float32, *sources)
        flat = [fractions(flushed(source)) for source in sources]
        exact = [EXACT[name](*values) if name != "div" or values[1] else None for values in zip(*flat, strict=True)]
        keep = [k for k, value in enumerate(exact) if value is not None]
        check(flush[keep], [rounded(exact[k], "f32") for k in keep], "f32", flush=True)


def test_a_fused_product_is_rounded_once():
    """Where two roundings, of the product or of the sum in float64, give another number."""
    a = np.float32(1 + 2.0**-12)
    found = apply("fma.rn.f32 D, S0, S1, S2;", np.float32, *(np.array([x], np.float32) for x in (a, a, -1.0)))
    assert float(found[0]) == 2.0**-11 + 2.0**-24
    # 1 + 2**-24 + 2**-60: float64 drops the last term, and 1 + 2**-24 would be rounded to 1
    tiny = np.array([2.0**-30], np.float32)
    found = apply("fma.rn.f32 D, S0, S1, S2;", np.float32, tiny, tiny, np.array([1.0], np.float32))
    assert float(found[0]) == 1.0
    a, b = np.array([1 + 2.0**-23], np.float32), np.array([2.0**-24], np.float32)
    found = apply("fma.rn.f32 D, S0, S1, S2;", np.float32, a, b, np.array([1.0], np.float32))
    assert float(found[0]) == 1 + 2.0**-23
    low = np.array([2.0**-126], np.float32)
    found = apply("fma.rn.f32 D, S0, S1, S2;", np.float32, np.array([1 + 2.0**-23], np.float32), low * 2**0, -low)
    assert float(found[0]) == 2.0**-149


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_sixteen_bits(name, kind):
    sources = close_sums(kind, len(name))[: 3 if name == "fma" else 2]
    elements = [encoded(source, kind) for source in sources]
    names = ", ".join(f"S{k}" for k in range(len(sources)))
    exact = [EXACT[name](*values) for values in zip(*map(fractions, sources), strict=True)]
    expected = [rounded(value, kind) for value in exact]
    found = apply(f"{name}.rn.{kind} D, {names};", elements[0].dtype, *elements)
    check(found, expected, kind)
    words = [element.view(np.uint16).view(np.uint32) for element in elements]
    pairs = apply(f"{name}.rn.{kind}x2 D, {names};", np.uint32, *words)
    check(pairs.view(np.uint16).view(found.dtype), expected, kind)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mixed_precision(kind):
    a, b, _ = close_sums(kind)
    c = numbers("f32", COUNT, 7)
    x, y = encoded(a, kind), encoded(b, kind)
    exact = [p * q + r for p, q, r in zip(fractions(a), fractions(b), fractions(c), strict=True)]
    found = apply(f"fma.rn.f32.{kind} D, S0, S1, S2;", np.float32, x, y, c)
    check(found, [rounded(value, "f32") for value in exact], "f32")
    for name in ("add", "sub"):
        exact = [EXACT[name](p, r) for p, r in zip(fractions(a), fractions(c), strict=True)]
        found = apply(f"{name}.rn.f32.{kind} D, S0, S1;", np.float32, x, c)
        check(found, [rounded(value, "f32") for value in exact], "f32")


def test_pairs_of_float32():
    sources = close_sums("f32")
    words = [source.view(np.uint64) for source in sources]
    exact = [a * b + c for a, b, c in zip(*map(fractions, sources), strict=True)]
    found = apply("fma.rn.f32x2 D, S0, S1, S2;", np.uint64, *words).view(np.float32)
    check(found, [rounded(value, "f32") for value in exact], "f32")


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_roots(mode):
    x = np.abs(numbers("f32", COUNT))
    found = apply(f"sqrt.{mode}.f32 D, S0;", np.float32, x)
    for value, root in zip(fractions(x), found, strict=True):
        if value == 0:
            assert root == 0
            continue
        scale = 1 << 400
        integer = math.isqrt(int(value * scale * scale))  # the root, cut off after 400 bits
        exact = Fraction(integer, scale) + (Fraction(1, scale * 4) if integer * integer != value * scale * scale else 0)
        assert float(root) == rounded(exact, "f32", mode)
    reciprocal = apply(f"rcp.{mode}.f32 D, S0;", np.float32, x[x > 0])
    check(reciprocal, [rounded(1 / value, "f32", mode) for value in fractions(x[x > 0])], "f32")


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38], np.float32)


def all_pairs():
    return np.repeat(SPECIAL, len(SPECIAL)), np.tile(SPECIAL, len(SPECIAL))


@pytest.mark.parametrize("name", ["min", "max"])
def test_extrema_of_special_values(name):
    """A NaN is ignored, or kept by ``.NaN``; -0 is less than +0."""
    a, b = all_pairs()
    key = lambda x: (x, math.copysign(1.0, x))  # noqa: E731
    for variant in ("", ".NaN"):
        found = apply(f"{name}{variant}.f32 D, S0, S1;", np.float32, a, b)
        for x, y, z in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
            if math.isnan(x) or math.isnan(y):
                expected = math.nan if variant else (y if math.isnan(x) else x)
            else:
                expected = (min if name == "min" else max)(x, y, key=key)
            assert math.isnan(z) if math.isnan(expected) else key(z) == key(expected), (x, y, z)


def test_signs_change_the_sign_bit_alone():
    bits = np.concatenate([SPECIAL.view(np.uint32), np.array([0x7FC12345, 0xFFC54321], np.uint32)])
    assert np.array_equal(apply("neg.f32 D, S0;", np.uint32, bits), bits ^ np.uint32(1 << 31))
    assert np.array_equal(apply("abs.f32 D, S0;", np.uint32, bits), bits & np.uint32(0x7FFFFFFF))
    assert np.array_equal(apply("neg.bf16x2 D, S0;", np.uint32, bits), bits ^ np.uint32(0x80008000))
    found = apply("abs.ftz.f32 D, S0;", np.float32, SPECIAL)
    assert found[7] == found[8] == 0
    sign, size = np.array([-0.0, 2.0], np.float32), np.array([3, -4], np.float32)
    found = apply("copysign.f32 D, S0, S1;", np.float32, sign, size)
    assert found.tolist() == [-3.0, 4.0]


def test_saturation():
    a, b = all_pairs()
    found = apply("add.sat.f32 D, S0, S1;", np.float32, a, b)
    with np.errstate(all="ignore"):
        total = a + b
    assert np.array_equal(found, np.where(np.isnan(total), 0, np.clip(total, 0, 1)))


@pytest.mark.parametrize("name", ["finite", "infinite", "number", "notanumber", "normal", "subnormal"])
def test_tests(name):
    expected = {
        "finite": np.isfinite(SPECIAL),
        "infinite": np.isinf(SPECIAL),
        "number": ~np.isnan(SPECIAL),
        "notanumber": np.isnan(SPECIAL),
        "normal": np.array([0, 0, 1, 1, 0, 0, 0, 0, 0, 1], bool),
        "subnormal": np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 0], bool),
    }[name]
    assert np.array_equal(apply(f"testp.{name}.f32 P, S0;", bool, SPECIAL), expected)
