"""Approximate instructions: the exact mode, and that the other modes reach the documented bounds and keep them."""

import math
from fractions import Fraction

import numpy as np
import pytest
from machine.approximate import BOUNDS, MODES, Approximation
from machine.rounding import numbers
from machine.small import apply

POSITIVE = np.abs(numbers("f32", 400))
POSITIVE = POSITIVE[(POSITIVE > 1e-37) & (POSITIVE < 1e37)]
ANGLES = np.linspace(-20.0, 20.0, 401, dtype=np.float32)
INPUTS = {
    "rcp.approx": POSITIVE, "sqrt.approx": POSITIVE, "rsqrt.approx": POSITIVE, "lg2.approx": POSITIVE,
    "ex2.approx": np.linspace(-120.0, 120.0, 401, dtype=np.float32), "sin.approx": ANGLES, "cos.approx": ANGLES,
    "tanh.approx": np.linspace(-3.0, 3.0, 401, dtype=np.float32), "div.full": POSITIVE, "div.approx": POSITIVE,
}  # fmt: skip
EXACT = {
    "rcp": lambda x: 1.0 / x, "sqrt": math.sqrt, "rsqrt": lambda x: 1.0 / math.sqrt(x), "lg2": math.log2,
    "ex2": lambda x: 2.0**x, "sin": math.sin, "cos": math.cos, "tanh": math.tanh, "div": lambda x: x / 3.0,
}  # fmt: skip


def allowed(name, x, exact):
    """The bound of the ISA, written once more."""
    match name:
        case "rcp.approx":
            return math.ulp(exact) * 2.0**29
        case "div.full" | "div.approx" | "ex2.approx":
            return 2.0 * math.ulp(exact) * 2.0**29  # an ulp of float32
        case "sqrt.approx":
            return abs(exact) * 2.0**-23
        case "rsqrt.approx":
            return abs(exact) * 2.0**-22.9
        case "lg2.approx":
            return 2.0**-22 * (1.0 if 0.5 < x < 2.0 else abs(exact))
        case "tanh.approx":
            return abs(exact) * 2.0**-11
    return 2.0**-20.5 if abs(x) <= 2.0 * math.pi else 2.0**-14.7


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name, mode):
    x = INPUTS[name]
    sources = (x, np.full_like(x, 3.0)) if name.startswith("div") else (x,)
    operands = ", ".join(f"S{k}" for k in range(len(sources)))
    found = apply(f"{name}.f32 D, {operands};", np.float32, *sources, mode=mode, seed=4).astype(float)
    exact = [EXACT[name.partition(".")[0]](value) for value in x.astype(float)]
    errors = []
    for value, right, ours in zip(x.astype(float), exact, found, strict=True):
        if right == 0.0:
            assert ours == 0.0
            continue
        errors.append((ours - right) / allowed(name, value, right))
    errors = np.array(errors)
    assert np.abs(errors).max() <= 1.0 + 1e-9
    if mode == "exact":
        assert np.array_equal(found, np.array(exact).astype(np.float32))
    if mode == "up":
        assert (errors >= 0).mean() > 0.99
    if mode == "down":
        assert (errors <= 0).mean() > 0.99
    if mode == "random":
        assert 0.35 < (errors > 0).mean() < 0.65
    if mode != "exact":
        assert np.abs(errors).mean() > 0.4  # near the bound, not near the exact result


def test_special_cases_are_exact_in_every_mode():
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1.0], np.float32)
    for mode in MODES:
        with np.errstate(all="ignore"):
            for name, expected in {
                "rcp": 1.0 / x, "sqrt": np.sqrt(x), "rsqrt": 1.0 / np.sqrt(x), "ex2": np.exp2(x), "lg2": np.log2(x),
            }.items():  # fmt: skip
                found = apply(f"{name}.approx.f32 D, S0;", np.float32, x, mode=mode)
                keep = ~np.isfinite(expected) | (expected == 0) | (mode == "exact")
                assert np.array_equal(found[keep], expected[keep], equal_nan=True)


def test_flushing():
    tiny = np.array([1e-40, 2.0**-126], np.float32)
    assert apply("sqrt.approx.ftz.f32 D, S0;", np.float32, tiny)[0] == 0
    assert apply("sqrt.approx.f32 D, S0;", np.float32, tiny)[0] > 0
    assert apply("ex2.approx.ftz.f32 D, S0;", np.float32, np.array([-127.0], np.float32))[0] == 0
    assert apply("ex2.approx.f32 D, S0;", np.float32, np.array([-127.0], np.float32))[0] == 2.0**-127
    assert (
        apply("div.approx.f32 D, S0, S1;", np.float32, np.array([1.0], np.float32), np.array([2e38], np.float32))[0]
        == 0
    )


def test_random_signs_depend_on_the_operands_alone():
    """Two threads that compute the same get the same, as on hardware; another seed gives other signs."""
    x = np.tile(POSITIVE[:16], 4)
    first = apply("sqrt.approx.f32 D, S0;", np.float32, x, mode="random", seed=1)
    assert np.array_equal(first[:16], first[16:32])
    assert np.array_equal(first, apply("sqrt.approx.f32 D, S0;", np.float32, x, mode="random", seed=1))
    assert not np.array_equal(first, apply("sqrt.approx.f32 D, S0;", np.float32, x, mode="random", seed=2))


def test_modes_have_names():
    with pytest.raises(ValueError, match="exact, up, down, random"):
        Approximation("upwards")
    assert all(bound.source for bound in BOUNDS.values())
    assert Fraction(BOUNDS["sqrt.approx"].size) == Fraction(1, 2**23)
