"""Moves, packing, choices and comparisons."""

import math

import numpy as np
import pytest
from machine.small import apply, launch

SPECIAL = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-40], np.float32)
COMPARE = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def pairs(values):
    return np.repeat(values, len(values)), np.tile(values, len(values))


@pytest.mark.parametrize("name", COMPARE)
def test_comparisons_of_floats(name):
    """False for NaN; the unordered variants are true for it."""
    a, b = pairs(SPECIAL)
    for suffix, of_nan in (("", False), ("u", True)):
        expected = [
            of_nan if math.isnan(x) or math.isnan(y) else COMPARE[name](x, y)
            for x, y in zip(a.tolist(), b.tolist(), strict=True)
        ]
        assert apply(f"setp.{name}{suffix}.f32 P, S0, S1;", bool, a, b).tolist() == expected


def test_other_comparisons_of_floats():
    a, b = pairs(SPECIAL)
    nan = np.isnan(a) | np.isnan(b)
    assert np.array_equal(apply("setp.nan.f32 P, S0, S1;", bool, a, b), nan)
    assert np.array_equal(apply("setp.num.f32 P, S0, S1;", bool, a, b), ~nan)
    assert apply("setp.gt.ftz.f32 P, S0, 0f00000000;", bool, SPECIAL)[-1] == False  # noqa: E712


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_comparisons_of_integers(kind):
    dtype = f"{'int' if kind[0] == 's' else 'uint'}{kind[1:]}"
    info = np.iinfo(dtype)
    a, b = pairs(np.array([0, 1, info.min, info.max, info.max // 2 + 1 if kind[0] == "u" else -1], dtype))
    for name, function in COMPARE.items():
        expected = [function(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert apply(f"setp.{name}.{kind} P, S0, S1;", bool, a, b).tolist() == expected
    if kind[0] == "u":
        for name, other in {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.items():
            expected = [COMPARE[other](x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
            assert apply(f"setp.{name}.{kind} P, S0, S1;", bool, a, b).tolist() == expected


def test_two_predicates_and_their_combination():
    """p = (a < b) and not c, q = not (a < b) and not c."""
    x = np.arange(32, dtype=np.uint32)
    out = np.zeros((3, 32), np.uint32)
    launch(
        """
        shl.b32 %r1, %r0, 2; cvt.u64.u32 %d10, %r1; add.s64 %d11, %d0, %d10; add.s64 %d12, %d1, %d10;
        ld.global.b32 %r2, [%d11];
        setp.gt.u32 %p3, %r2, 20;
        setp.lt.and.u32 %p1|%p2, %r2, 10, !%p3;
        selp.b32 %r3, 1, 0, %p1; selp.b32 %r4, 1, 0, %p2;
        not.pred %p4, %p1; xor.pred %p5, %p4, %p2; selp.b32 %r5, 1, 0, %p5;
        st.global.b32 [%d12], %r3; st.global.b32 [%d12+128], %r4; st.global.b32 [%d12+256], %r5;
        """,
        [x, out],
    )
    assert out[0].tolist() == [int(v < 10) for v in range(32)]
    assert out[1].tolist() == [int(10 <= v <= 20) for v in range(32)]
    assert out[2].tolist() == [int((v >= 10) != (10 <= v <= 20)) for v in range(32)]


def test_choices():
    a, b = np.arange(64, dtype=np.uint32), np.arange(64, dtype=np.uint32) + 100
    c = np.where(np.arange(64) % 3, -1, 4).astype(np.int32)
    assert np.array_equal(apply("slct.b32.s32 D, S0, S1, S2;", np.uint32, a, b, c), np.where(c >= 0, a, b))
    found = apply("setp.lt.s32 %p2, S2, 0; selp.b32 D, S0, S1, %p2;", np.uint32, a, b, c)
    assert np.array_equal(found, np.where(c < 0, a, b))


def test_packing():
    a, b = np.arange(64, dtype=np.uint32) * 977, np.arange(64, dtype=np.uint32) + 5
    found = apply("mov.b64 D, {S0, S1};", np.uint64, a, b)
    assert found.tolist() == [int(y) << 32 | int(x) for x, y in zip(a, b, strict=True)]
    assert np.array_equal(apply("mov.b64 {%r50, %r51}, S0; add.s32 D, %r51, 0;", np.uint32, found), b)
    assert np.array_equal(apply("mov.b64 {_, %r51}, S0; add.s32 D, %r51, 0;", np.uint32, found), b)
    low, high = (a & 0xFFFF).astype(np.uint16), (a >> 16).astype(np.uint16)
    assert np.array_equal(apply("mov.b32 D, {S0, S1};", np.uint32, low, high), a)
    assert np.array_equal(apply("mov.b32 {%h20, %h21}, S0; mov.b16 D, %h21;", np.uint16, a), high)


def test_constants():
    x = np.zeros(1, np.uint32)
    assert apply("mov.b32 D, 0f3F800000;", np.float32, x)[0] == 1.0
    assert apply("add.f32 D, S0, 0fC0490FDB;", np.float32, x)[0] == np.float32(-np.pi)
    assert apply("mov.b32 D, -3;", np.int32, x)[0] == -3
    assert apply("mov.b32 D, 0xFFFFFFFF;", np.uint32, x)[0] == 2**32 - 1
    assert apply("mov.b64 D, 0d3FF8000000000000;", np.float64, x)[0] == 1.5


def test_names_inside_braces_are_their_own():
    x = np.arange(32, dtype=np.uint32)
    body = "{ .reg .b32 %r1; mov.b32 %r1, 7; } { .reg .b32 %r1; add.s32 %r1, S0, 1; add.s32 D, %r1, 1; }"
    assert np.array_equal(apply(body, np.uint32, x), x + 2)
