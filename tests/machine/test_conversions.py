"""cvt against exact rounding."""

import math
from fractions import Fraction

import numpy as np
import pytest
from machine.rounding import decoded, encoded, numbers, rounded
from machine.small import apply

MODES = ("rn", "rz", "rm", "rp")
INTEGERS = {"u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32,
            "u64": np.uint64, "s64": np.int64}  # fmt: skip


def floats():
    """Of all sizes, also halfway between two numbers of 16 bits."""
    x = numbers("f32", 800)
    x[::2] = (x[::2].view(np.uint32) & np.uint32(0xFFFF0000) | np.uint32(0x8000)).view(np.float32)
    x[1::4] = (x[1::4].view(np.uint32) & np.uint32(0xFFFFE000) | np.uint32(0x1000)).view(np.float32)
    small = np.abs(x) > 70000
    x[small & (np.arange(len(x)) % 3 > 0)] *= np.float32(1e-30)
    x[~np.isfinite(x)] = 0.5
    return x


@pytest.mark.parametrize(("kind", "mode"), [("f16", "rn"), ("f16", "rz"), ("bf16", "rn"), ("bf16", "rz")])
def test_to_sixteen_bits(kind, mode):
    x = floats()
    expected = np.array([rounded(Fraction(float(v)), kind, mode) for v in x])
    dtype = encoded(x[:1] * 0, kind).dtype
    found = apply(f"cvt.{mode}.{kind}.f32 D, S0;", dtype, x)
    assert np.array_equal(decoded(found, kind), expected)
    high, low = x, np.roll(x, 1)
    words = apply(f"cvt.{mode}.{kind}x2.f32 D, S0, S1;", np.uint32, high, low)
    halves = words.view(np.uint16).reshape(-1, 2)
    assert np.array_equal(decoded(halves[:, 1].copy().view(dtype), kind), expected)
    assert np.array_equal(decoded(halves[:, 0].copy().view(dtype), kind), np.roll(expected, 1))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_from_sixteen_bits(kind):
    x = numbers(kind, 400)
    assert np.array_equal(apply(f"cvt.f32.{kind} D, S0;", np.float32, encoded(x, kind)), x)


def test_special_values():
    x = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
    assert apply("cvt.rn.bf16.f32 D, S0;", np.uint16, x).tolist() == [0x7F80, 0xFF80, 0x7FFF, 0x8000]
    found = apply("cvt.rn.f16.f32 D, S0;", np.float16, x)
    assert found[:2].tolist() == [math.inf, -math.inf]
    assert np.isnan(found[2])
    assert math.copysign(1.0, found[3]) == -1.0
    assert apply("cvt.rzi.s32.f32 D, S0;", np.int32, x).tolist() == [2**31 - 1, -(2**31), 0, 0]


WHOLE = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("mode", WHOLE)
def test_to_integers(kind, mode):
    x = np.concatenate(
        [floats(), np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2**31, -(2.0**31), 2**32, 255.5, 1e19], np.float32)]
    )
    wide = np.dtype(INTEGERS[kind])
    register = np.dtype(f"{wide.kind}{max(2, wide.itemsize)}")
    found = apply(f"cvt.{mode}.{kind}.f32 D, S0;", register, x).astype(wide)
    info = np.iinfo(wide)
    assert found.tolist() == [min(max(WHOLE[mode](Fraction(float(v))), info.min), info.max) for v in x]


SMALL = [(kind, mode) for kind in ("u16", "s16", "u32", "s32") for mode in MODES]


@pytest.mark.parametrize(("kind", "mode"), [*SMALL, ("u64", "rn"), ("s64", "rn")])
def test_from_integers(kind, mode):
    info = np.iinfo(INTEGERS[kind])
    draw = np.random.default_rng(3)
    x = draw.integers(info.min, info.max, 300, dtype=INTEGERS[kind], endpoint=True)
    x[:3] = [info.min, info.max, 1]
    found = apply(f"cvt.{mode}.f32.{kind} D, S0;", np.float32, x)
    assert found.astype(float).tolist() == [rounded(Fraction(int(v)), "f32", mode) for v in x]


def test_whole_numbers_as_floats():
    x = floats()
    for mode, function in WHOLE.items():
        found = apply(f"cvt.{mode}.f32.f32 D, S0;", np.float32, x)
        assert found.astype(float).tolist() == [float(function(Fraction(float(v)))) for v in x]
    tiny = np.array([-1e-40], np.float32)
    assert apply("cvt.rmi.f32.f32 D, S0;", np.float32, tiny)[0] == -1
    assert apply("cvt.rmi.ftz.f32.f32 D, S0;", np.float32, tiny)[0] == 0


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("result", INTEGERS)
def test_between_integers(source, result):
    info, target = np.iinfo(INTEGERS[source]), np.iinfo(INTEGERS[result])
    x = np.random.default_rng(4).integers(info.min, info.max, 100, dtype=INTEGERS[source], endpoint=True)
    x[:3] = [info.min, info.max, 1]
    register = np.dtype(f"{np.dtype(INTEGERS[result]).kind}{max(2, target.bits // 8)}")
    held = x.astype(np.dtype(f"{x.dtype.kind}{max(2, x.itemsize)}"))
    found = apply(f"cvt.{result}.{source} D, S0;", register, held)
    expected = [(int(v) - target.min) % (1 << target.bits) + target.min for v in x]
    assert found.tolist() == expected
    found = apply(f"cvt.sat.{result}.{source} D, S0;", register, held)
    assert found.tolist() == [min(max(int(v), target.min), target.max) for v in x]
