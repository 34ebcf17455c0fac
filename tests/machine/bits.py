"""Logic, shifts, fields and counts of bits."""

import numpy as np
from machine.builder import Builder, builds
from machine.formats import DTYPES, I64, U8, U32, U64, UNSIGNED, Array
from machine.integers import INTEGERS
from machine.steps import Step

BITS = ("b16", "b32", "b64")


@builds("and", "or", "xor")
def build_logic(build: Builder) -> Step:
    kind = build.type("pred", *BITS)
    build.done(3)
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[build.name]
    return build.compute(function, build.source(1, kind), build.source(2, kind))


@builds("not")
def build_not(build: Builder) -> Step:
    kind = build.type("pred", *BITS)
    build.done(2)
    return build.compute(np.logical_not if kind == "pred" else np.invert, build.source(1, kind))


@builds("cnot")
def build_logical_not(build: Builder) -> Step:
    kind = build.type(*BITS)
    build.done(2)
    return build.compute(lambda a: (a == 0).astype(a.dtype), build.source(1, kind))


@builds("shl", "shr")
def build_shift(build: Builder) -> Step:
    """A distance of the width or more gives 0, or the sign."""
    kind = build.type(*BITS, *(INTEGERS if build.name == "shr" else ()))
    build.done(3)
    width = DTYPES[kind].type(8 * DTYPES[kind].itemsize)
    function = np.left_shift if build.name == "shl" else np.right_shift

    def shifted(a: Array, distance: Array) -> Array:
        if distance.size == 1 and distance.item() < width:
            return function(a, distance.astype(a.dtype))
        beyond = distance >= np.uint32(width)
        inside = function(a, np.where(beyond, np.uint32(0), distance).astype(a.dtype))
        past = function(a, width - a.dtype.type(1)) if a.dtype.kind == "i" else a.dtype.type(0)
        return np.where(beyond, past, inside)

    return build.compute(shifted, build.source(1, kind), build.source(2, "u32"))


@builds("shf")
def build_funnel(build: Builder) -> Step:
    """The high word of (b:a) << c, or the low word of (b:a) >> c."""
    left = build.choice(("l", "r")) == "l"
    wrap = build.choice(("wrap", "clamp")) == "wrap"
    build.type("b32")
    build.done(4)

    def shifted(a: Array, b: Array, c: Array) -> Array:
        count = (c & np.uint32(31) if wrap else np.minimum(c, np.uint32(32))).astype(U64)
        both = a.astype(U64) | b.astype(U64) << np.uint64(32)
        return ((both << count) >> np.uint64(32) if left else both >> count).astype(U32)

    return build.compute(shifted, *(build.source(k, "u32") for k in (1, 2, 3)))


@builds("bfe")
def build_extract(build: Builder) -> Step:
    """The field of ``c`` bits from bit ``b`` on, with its sign for signed types."""
    kind = build.type("u32", "s32", "u64", "s64")
    build.done(4)
    bits = 8 * DTYPES[kind].itemsize

    def extracted(a: Array, b: Array, c: Array) -> Array:
        start, count = (x.astype(I64) & 255 for x in (b, c))
        unsigned = a.view(UNSIGNED[a.dtype.itemsize]).astype(U64)
        field = np.where(start < 64, unsigned >> np.minimum(start, 63).astype(U64), np.uint64(0))
        kept = np.minimum(count, bits)
        field &= np.where(kept >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(kept, 63).astype(U64)) - np.uint64(1))
        if kind[0] == "s":
            top = np.minimum(start + count - 1, bits - 1)
            negative = (unsigned >> np.maximum(top, 0).astype(U64)) & np.uint64(1)
            length = np.maximum(top - start + 1, 0)
            above = np.where(length >= 64, np.uint64(0), ~np.uint64(0) << np.minimum(length, 63).astype(U64))
            field = np.where((negative == 1) & (count > 0), field | above, field)
        return field.astype(UNSIGNED[bits // 8])

    return build.compute(extracted, build.source(1, kind), build.source(2, "u32"), build.source(3, "u32"))


@builds("bfi")
def build_insert(build: Builder) -> Step:
    """b with the field of ``d`` bits from bit ``c`` on replaced by the low bits of a."""
    kind = build.type("b32", "b64")
    build.done(5)
    bits = 8 * DTYPES[kind].itemsize

    def inserted(a: Array, b: Array, c: Array, d: Array) -> Array:
        start, count = (np.minimum(x.astype(I64) & 255, bits) for x in (c, d))
        ones = np.where(count >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(count, 63).astype(U64)) - np.uint64(1))
        shift = np.minimum(start, 63).astype(U64)
        field = np.where(start < bits, ones << shift, np.uint64(0))
        value = np.where(start < bits, a.astype(U64) << shift, np.uint64(0))
        return ((b.astype(U64) & ~field) | (value & field)).astype(b.dtype)

    sources = (build.source(1, kind), build.source(2, kind), build.source(3, "u32"), build.source(4, "u32"))
    return build.compute(inserted, *sources)


@builds("prmt")
def build_permute(build: Builder) -> Step:
    """Four bytes of (b:a), each chosen by four bits of c; the fourth bit replicates the sign."""
    build.type("b32")
    build.done(4)

    def permuted(a: Array, b: Array, c: Array) -> Array:
        both = a.astype(U64) | b.astype(U64) << np.uint64(32)
        result = np.zeros((1, 1), U32)
        for place in range(4):
            control = (c >> np.uint32(4 * place)) & np.uint32(15)
            byte = (both >> ((control & np.uint32(7)) * np.uint32(8)).astype(U64)).astype(U8)
            sign = np.where(byte >= 128, np.uint8(255), np.uint8(0))
            byte = np.where(control >= 8, sign, byte)
            result = result | byte.astype(U32) << np.uint32(8 * place)
        return result

    return build.compute(permuted, *(build.source(k, "b32") for k in (1, 2, 3)))


@builds("lop3")
def build_lookup(build: Builder) -> Step:
    """Any logic of three words, by a table of eight bits."""
    build.type("b32")
    build.done(5)
    table = int(build.operands[4].removesuffix("U"), 0)

    def looked_up(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros((1, 1), U32)
        for row in range(8):
            if table >> row & 1:
                result = result | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
        return result

    return build.compute(looked_up, *(build.source(k, "b32") for k in (1, 2, 3)))


def ones(a: Array) -> Array:
    return np.bitwise_count(a).astype(U32)


def smeared(a: Array) -> Array:
    """a with all bits below its highest bit set."""
    shift = 1
    while shift < 8 * a.dtype.itemsize:
        a = a | a >> a.dtype.type(shift)
        shift *= 2
    return a


@builds("popc", "clz", "brev")
def build_count(build: Builder) -> Step:
    kind = build.type("b32", "b64")
    build.done(2)
    bits = np.uint32(8 * DTYPES[kind].itemsize)

    def reversed_bits(a: Array) -> Array:
        result = a & a.dtype.type(0)
        for bit in range(int(bits)):
            result = result | ((a >> a.dtype.type(bit)) & a.dtype.type(1)) << a.dtype.type(int(bits) - 1 - bit)
        return result

    function = {"popc": ones, "clz": lambda a: bits - ones(smeared(a)), "brev": reversed_bits}[build.name]
    return build.compute(function, build.source(1, kind))


@builds("bfind")
def build_find(build: Builder) -> Step:
    """The place of the highest bit that differs from the sign; all ones if there is none."""
    shift = build.flag("shiftamt")
    kind = build.type("u32", "s32", "u64", "s64")
    build.done(2)
    bits = np.uint32(8 * DTYPES[kind].itemsize)

    def found(a: Array) -> Array:
        plain = np.where(a < 0, ~a, a).view(UNSIGNED[a.dtype.itemsize])
        place = ones(smeared(plain)) - np.uint32(1)
        return np.where(plain == 0, place, bits - np.uint32(1) - place) if shift else place

    return build.compute(found, build.source(1, kind))
