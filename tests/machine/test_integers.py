"""Integer instructions against Python's integers."""

import numpy as np
import pytest
from machine.small import apply

RANDOM = np.random.default_rng(1)


def words(dtype, count=64):
    """Random words, with the smallest, the largest and small ones among them."""
    info = np.iinfo(dtype)
    special = [0, 1, 2, 3, 7, 31, 32, info.min, info.max, info.max - 1, info.min + 1, info.max // 2]
    drawn = RANDOM.integers(info.min, info.max, count - len(special), dtype=dtype, endpoint=True)
    return np.concatenate([np.array(special, dtype), drawn])


def pair(dtype):
    a, b = words(dtype), words(dtype)
    return a, RANDOM.permutation(b)


def wrapped(values, dtype):
    """Python's integers modulo the width."""
    bits = np.iinfo(dtype).bits
    unsigned = np.array([int(value) % (1 << bits) for value in values], f"uint{bits}")
    return unsigned.view(dtype)


DTYPES = {"u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64}
OPERATIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "div": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "rem": lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1),
}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_arithmetic(name, kind):
    a, b = pair(DTYPES[kind])
    if name in ("div", "rem"):
        b[b == 0] = 3
    found = apply(f"{name}.{kind} D, S0, S1;", DTYPES[kind], a, b)
    expected = [OPERATIONS[name](int(x), int(y)) for x, y in zip(a, b, strict=True)]
    assert np.array_equal(found, wrapped(expected, DTYPES[kind]))


@pytest.mark.parametrize("kind", DTYPES)
def test_products(kind):
    """High halves, double widths, and with a sum."""
    dtype, bits = DTYPES[kind], int(kind[1:])
    a, b = pair(dtype)
    products = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    c = RANDOM.permutation(a)
    high = apply(f"mul.hi.{kind} D, S0, S1;", dtype, a, b)
    assert np.array_equal(high, wrapped([p >> bits for p in products], dtype))
    low = apply(f"mad.lo.{kind} D, S0, S1, S2;", dtype, a, b, c)
    assert np.array_equal(low, wrapped([p + int(z) for p, z in zip(products, c, strict=True)], dtype))
    if bits < 64:
        double = DTYPES[f"{kind[0]}{2 * bits}"]
        assert np.array_equal(apply(f"mul.wide.{kind} D, S0, S1;", double, a, b), wrapped(products, double))
        c = words(double)
        expected = wrapped([p + int(z) for p, z in zip(products, c, strict=True)], double)
        assert np.array_equal(apply(f"mad.wide.{kind} D, S0, S1, S2;", double, a, b, c), expected)


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_signs(kind):
    a = words(DTYPES[kind])
    assert np.array_equal(apply(f"neg.{kind} D, S0;", DTYPES[kind], a), wrapped([-int(x) for x in a], DTYPES[kind]))
    assert np.array_equal(apply(f"abs.{kind} D, S0;", DTYPES[kind], a), wrapped([abs(int(x)) for x in a], DTYPES[kind]))


def test_saturated_sum():
    a, b = pair(np.int32)
    expected = [min(max(int(x) + int(y), -(2**31)), 2**31 - 1) for x, y in zip(a, b, strict=True)]
    assert apply("add.sat.s32 D, S0, S1;", np.int32, a, b).tolist() == expected


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    dtype = f"uint{bits}"
    a, b = pair(dtype)
    assert np.array_equal(apply(f"and.b{bits} D, S0, S1;", dtype, a, b), a & b)
    assert np.array_equal(apply(f"or.b{bits} D, S0, S1;", dtype, a, b), a | b)
    assert np.array_equal(apply(f"xor.b{bits} D, S0, S1;", dtype, a, b), a ^ b)
    assert np.array_equal(apply(f"not.b{bits} D, S0;", dtype, a), ~a)
    assert np.array_equal(apply(f"cnot.b{bits} D, S0;", dtype, a), (a == 0).astype(dtype))


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "s16", "s32", "s64", "u32", "u64"])
def test_shifts(kind):
    """Distances of the width and more give 0, or the sign."""
    bits = int(kind[1:])
    dtype = f"{'int' if kind[0] == 's' else 'uint'}{bits}"
    a = words(dtype)
    distance = np.resize(np.array([0, 1, 5, 15, 16, 31, 32, 33, 63, 64, 65, 2**32 - 1], np.uint32), len(a))
    right = [int(x) >> min(int(k), 200) for x, k in zip(a, distance, strict=True)]
    assert np.array_equal(apply(f"shr.{kind} D, S0, S1;", dtype, a, distance), wrapped(right, dtype))
    if kind[0] == "b":
        left = [int(x) << min(int(k), 200) for x, k in zip(a, distance, strict=True)]
        assert np.array_equal(apply(f"shl.{kind} D, S0, S1;", dtype, a, distance), wrapped(left, dtype))
        assert np.array_equal(apply(f"shl.{kind} D, S0, 3;", dtype, a), wrapped([int(x) << 3 for x in a], dtype))


@pytest.mark.parametrize("wrap", [True, False])
def test_funnel_shifts(wrap):
    a, b = pair(np.uint32)
    c = np.arange(len(a), dtype=np.uint32)
    mode, counts = ("wrap", c & 31) if wrap else ("clamp", np.minimum(c, 32))
    whole = [int(y) << 32 | int(x) for x, y in zip(a, b, strict=True)]
    left = [(w << int(k) >> 32) % 2**32 for w, k in zip(whole, counts, strict=True)]
    assert apply(f"shf.l.{mode}.b32 D, S0, S1, S2;", np.uint32, a, b, c).tolist() == left
    right = [(w >> int(k)) % 2**32 for w, k in zip(whole, counts, strict=True)]
    assert apply(f"shf.r.{mode}.b32 D, S0, S1, S2;", np.uint32, a, b, c).tolist() == right


def field(value: int, start: int, count: int, bits: int, signed: bool) -> int:
    """bfe, bit by bit, as the ISA writes it."""
    start, count = start & 255, count & 255
    unsigned = value % (1 << bits)
    top = min(start + count - 1, bits - 1)
    sign = unsigned >> top & 1 if signed and count else 0
    return sum(((unsigned >> start + k & 1) if k < count and start + k < bits else sign) << k for k in range(bits))


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields(kind):
    dtype, bits = DTYPES[kind], int(kind[1:])
    a = words(dtype, 400)
    start = RANDOM.integers(0, 70, len(a), dtype=np.uint32)
    count = RANDOM.integers(0, 70, len(a), dtype=np.uint32)
    start[:4], count[:4] = [0, 0, 256, 8], [0, bits, 4, 256 + 8]
    triples = list(zip(a.tolist(), start.tolist(), count.tolist(), strict=True))
    found = apply(f"bfe.{kind} D, S0, S1, S2;", dtype, a, start, count)
    assert np.array_equal(found, wrapped([field(*triple, bits, kind[0] == "s") for triple in triples], dtype))
    if kind[0] == "u":
        base = RANDOM.permutation(a)
        expected = []
        for (value, begin, size), into in zip(triples, base.tolist(), strict=True):
            begin, size = begin & 255, size & 255
            keep = [k for k in range(bits) if not (begin <= k < begin + size)]
            kept = sum((into >> k & 1) << k for k in keep)
            expected.append(kept + sum((value >> k - begin & 1) << k for k in range(begin, min(begin + size, bits))))
        found = apply(f"bfi.b{bits} D, S0, S1, S2, S3;", dtype, a, base, start, count)
        assert found.tolist() == expected


def test_bytes_and_tables():
    a, b = pair(np.uint32)
    c = RANDOM.integers(0, 2**16, len(a), dtype=np.uint32)
    expected = []
    for x, y, control in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        whole, result = (y << 32 | x).to_bytes(8, "little"), 0
        for k in range(4):
            choice = control >> 4 * k & 15
            byte = whole[choice & 7]
            result |= (255 if byte > 127 else 0) << 8 * k if choice > 7 else byte << 8 * k
        expected.append(result)
    assert apply("prmt.b32 D, S0, S1, S2;", np.uint32, a, b, c).tolist() == expected
    for table in (0x96, 0xE8, 0x01, 0xCA):
        bits = [
            sum((table >> ((x >> k & 1) << 2 | (y >> k & 1) << 1 | (z >> k & 1)) & 1) << k for k in range(32))
            for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        ]
        assert apply(f"lop3.b32 D, S0, S1, S2, {table:#x};", np.uint32, a, b, c).tolist() == bits


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_of_bits(bits):
    a = words(f"uint{bits}")
    texts = [f"{x:0{bits}b}" for x in a.tolist()]
    assert apply(f"popc.b{bits} D, S0;", np.uint32, a).tolist() == [text.count("1") for text in texts]
    assert apply(f"clz.b{bits} D, S0;", np.uint32, a).tolist() == [len(text) - len(text.lstrip("0")) for text in texts]
    assert apply(f"brev.b{bits} D, S0;", f"uint{bits}", a).tolist() == [int(text[::-1], 2) for text in texts]
    found = apply(f"bfind.u{bits} D, S0;", np.uint32, a)
    assert found.tolist() == [x.bit_length() - 1 if x else 2**32 - 1 for x in a.tolist()]
    signed = a.view(f"int{bits}")
    found = apply(f"bfind.s{bits} D, S0;", np.uint32, signed)
    plain = [~x if x < 0 else x for x in signed.tolist()]
    assert found.tolist() == [x.bit_length() - 1 if x else 2**32 - 1 for x in plain]
