"""Exchanges within a warp, against the ISA's description thread by thread."""

import numpy as np
import pytest
from machine.faults import BarrierFault
from machine.small import launch

X = np.random.default_rng(2).integers(0, 2**32, 64, dtype=np.uint32)
READ = """
    mul.wide.u32 %d10, %r0, 4; add.s64 %d11, %d0, %d10; add.s64 %d12, %d1, %d10;
    ld.global.b32 %r2, [%d11];
"""


def exchanged(body, threads=64):
    out = np.zeros(64, np.uint32)
    launch(READ + body + "st.global.b32 [%d12], %r3;", [X, out], threads)
    return out


def shuffled(mode, b, c):
    """Result and predicate per lane of one warp."""
    segment, clamp = c >> 8 & 31, c & 31
    found = []
    for lane in range(32):
        largest = (lane & segment) | (clamp & ~segment)
        match mode:
            case "up":
                source, inside = lane - b, lane - b >= largest
            case "down":
                source, inside = lane + b, lane + b <= largest
            case "bfly":
                source, inside = lane ^ b, lane ^ b <= largest
            case _:
                source = (lane & segment) | (b & ~segment)
                inside = source <= largest
        found.append((source if inside else lane, inside))
    return found


@pytest.mark.parametrize(("mode", "clamp"), [("up", 0), ("down", 31), ("bfly", 31), ("idx", 31), ("idx", 0x1C1F)])
def test_shuffles(mode, clamp):
    for distance in (0, 1, 5, 16, 31):
        found = exchanged(f"shfl.sync.{mode}.b32 %r3|%p1, %r2, {distance}, {clamp}, -1;")
        inside = exchanged(f"shfl.sync.{mode}.b32 %r4|%p1, %r2, {distance}, {clamp}, -1; selp.b32 %r3, 1, 0, %p1;")
        expected = shuffled(mode, distance, clamp)
        for warp in (0, 32):
            assert found[warp : warp + 32].tolist() == [int(X[warp + source]) for source, _ in expected]
            assert inside[warp : warp + 32].tolist() == [int(ok) for _, ok in expected]


def test_a_shuffle_with_a_source_per_lane():
    found = exchanged("mul.lo.s32 %r5, %r0, 7; shfl.sync.idx.b32 %r3, %r2, %r5, 31, -1;")
    assert found.tolist() == [int(X[t // 32 * 32 + t * 7 % 32]) for t in range(64)]


def test_votes():
    body = "setp.lt.u32 %p2, %r2, 2000000000; vote.sync.{}.pred %p1, %p2, -1; selp.b32 %r3, 1, 0, %p1;"
    votes = (X < 2000000000).reshape(2, 32)
    assert exchanged(body.format("any")).reshape(2, 32)[:, 0].tolist() == votes.any(1).tolist()
    assert exchanged(body.format("all")).reshape(2, 32)[:, 0].tolist() == votes.all(1).tolist()
    ballot = exchanged("setp.lt.u32 %p2, %r2, 2000000000; vote.sync.ballot.b32 %r3, %p2, -1;")
    assert ballot[::32].tolist() == [sum(int(v) << k for k, v in enumerate(row)) for row in votes]


def test_reductions():
    rows = X.reshape(2, 32)
    for name, kind, function in (
        ("add", "u32", lambda r: r.sum(dtype=np.uint64) % 2**32), ("max", "u32", np.max), ("min", "u32", np.min),
        ("min", "s32", lambda r: r.view(np.int32).min().astype(np.int64) % 2**32),
        ("xor", "b32", np.bitwise_xor.reduce), ("and", "b32", np.bitwise_and.reduce),
        ("or", "b32", np.bitwise_or.reduce),
    ):  # fmt: skip
        found = exchanged(f"redux.sync.{name}.{kind} %r3, %r2, -1;").reshape(2, 32)
        assert (found == found[:, :1]).all()
        assert found[:, 0].tolist() == [int(function(row)) for row in rows]
    body = "cvt.rn.f32.s32 %r4, %r2; redux.sync.max.abs.f32 %r5, %r4, -1; cvt.rzi.u32.f32 %r3, %r5;"
    expected = [np.abs(row.view(np.int32).astype(np.float32)).max() for row in rows]
    assert exchanged(body)[::32].tolist() == [int(v) for v in expected]


def test_threads_that_do_not_take_part():
    with pytest.raises(BarrierFault, match="waits for threads"):
        exchanged("mov.b32 %r3, 0; setp.lt.u32 %p1, %r0, 7; @%p1 shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;")
    with pytest.raises(BarrierFault, match="does not name"):
        exchanged("shfl.sync.bfly.b32 %r3, %r2, 1, 31, 0xFFFF;")
    exchanged("mov.b32 %r3, 0; setp.lt.u32 %p1, %r0, 32; @%p1 shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;")


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices(count, trans):
    """Matrices go to shared memory row by row and come back as the fragments that the ISA draws."""
    memory = np.random.default_rng(5).integers(0, 2**16, (count, 8, 8), dtype=np.uint16)
    fragments = np.zeros((32, count), np.uint32)
    names = ", ".join(f"%r{20 + k}" for k in range(count))
    rows = count * 8
    row = f"rem.u32 %r1, %r0, {rows}; mul.lo.s32 %r2, %r1, 16;"
    stores = "\n".join(f"st.global.b32 [%d11+{4 * k}], %r{20 + k};" for k in range(count))
    body = f"""
        {row}
        cvt.u64.u32 %d10, %r2; add.s64 %d12, %d0, %d10;
        ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%d12];
        st.shared.v4.b32 [%r2], {{%r10, %r11, %r12, %r13}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%r2];
        mul.wide.u32 %d11, %r0, {4 * count}; add.s64 %d11, %d11, %d1;
        {stores}
        bar.sync 0;
        add.s32 %r3, %r2, {16 * rows};
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r3], {{{names}}};
        bar.sync 0;
        ld.shared.v4.b32 {{%r10, %r11, %r12, %r13}}, [%r3];
        add.s64 %d13, %d2, %d10;
        st.global.v4.b32 [%d13], {{%r10, %r11, %r12, %r13}};
    """
    back = np.zeros_like(memory)
    launch(body, [memory, fragments, back], shared=2 * 16 * rows)
    assert np.array_equal(back, memory)
    for lane in range(32):
        for k in range(count):
            i, j = lane // 4, lane % 4 * 2
            first, second = (memory[k, j, i], memory[k, j + 1, i]) if trans else (memory[k, i, j], memory[k, i, j + 1])
            assert fragments[lane, k] == int(second) << 16 | int(first)
