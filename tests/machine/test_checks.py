"""Every check of the machine fires on a small program that violates it, and names where."""

import numpy as np
import pytest
from machine.faults import (
    BadLaunch,
    BarrierFault,
    Misaligned,
    OutOfBounds,
    Race,
    RunawayKernel,
    SyntaxFault,
    Uninitialised,
    UnknownInstruction,
)
from machine.program import decode
from machine.small import kernel, launch

ADDRESS = "mul.wide.u32 %d10, %r0, 4; add.s64 %d11, %d0, %d10;"
SHARED = "shl.b32 %r1, %r0, 2; mov.b32 %r2, 5;"


def data(count=32):
    return np.zeros(count, np.uint32)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{ADDRESS} ld.global.b32 %r1, [%d11+4];", r"line \d+: ld.global.b32 %r1, \[%d11\+4\]; 4 bytes at byte 128 of "
         r"argument a0 of 128 bytes; program \(0, 0, 0\), thread 31"),
        (f"{ADDRESS} st.global.b32 [%d11-4], %r0;", "4 bytes at byte -4 of argument a0.*thread 0"),
        (f"{ADDRESS} ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d0+128];", "16 bytes at byte 128"),
        ("mov.b64 %d9, 0; ld.global.b32 %r1, [%d9];", "address 0x0 is in no argument"),
        (f"{SHARED} st.shared.b32 [%r1+64], %r2;", "4 bytes at byte 128 outside the 128 bytes of shared.*thread 16"),
    ],
)  # fmt: skip
def test_out_of_bounds(body, message):
    with pytest.raises(OutOfBounds, match=message):
        launch(body, [data()], shared=128)


def test_an_argument_never_reaches_another():
    """The distance between two arrays in memory does not lead from one to the other."""
    both = data(64)
    apart = int(both[32:].__array_interface__["data"][0] - both.__array_interface__["data"][0])
    with pytest.raises(OutOfBounds, match="byte 128 of argument a0"):
        launch(f"ld.global.b32 %r1, [%d0+{apart}];", [both[:32], both[32:]])


def test_masked_accesses_are_not_checked():
    launch(
        f"{ADDRESS} setp.lt.u32 %p1, %r0, 8; @%p1 ld.global.b32 %r1, [%d11+96]; @!%p1 st.global.b32 [%d11], 1;",
        [data()],
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.v2.b32 {%r1, %r2}, [%d0+4];", "8 bytes at byte 4 of argument a0"),
        ("ld.global.b16 %h1, [%d0+1];", "2 bytes at byte 1"),
        (f"{SHARED} st.shared.v2.b32 [%r1], {{%r2, %r2}};", "8 bytes at byte 4 of shared memory.*thread 1"),
    ],
)
def test_misaligned(body, message):
    with pytest.raises(Misaligned, match=message):
        launch(body, [data()], shared=256)


BARRIER = "bar.sync 0;"
OTHER = "xor.b32 %r4, %r1, 128;"  # the word of the thread in the other of two warps


def test_read_after_write():
    body = f"{SHARED} st.shared.b32 [%r1], %r2; {BARRIER} {OTHER} ld.shared.b32 %r3, [%r4];"
    launch(body, [data()], 64, shared=256)
    with pytest.raises(Race, match=r"ld.shared.*reads what thread 32 wrote.*program .*thread 0"):
        launch(body.replace(BARRIER, ""), [data()], 64, shared=256)


def test_write_after_read():
    body = f"{SHARED} st.shared.b32 [%r1], %r2; bar.sync 0; {OTHER} ld.shared.b32 %r3, [%r4];"
    body += "{} st.shared.b32 [%r1], %r3;"
    launch(body.format(BARRIER), [data()], 64, shared=256)
    with pytest.raises(Race, match=r"st.shared.*overwrites what thread 32 read"):
        launch(body.format(""), [data()], 64, shared=256)


def test_a_word_that_several_threads_read():
    body = f"{SHARED} st.shared.b32 [%r1], %r2; bar.sync 0; ld.shared.b32 %r3, [global_smem];"
    body += "{} st.shared.b32 [%r1], %r3;"
    launch(body.format(BARRIER), [data()], 64, shared=256)
    with pytest.raises(Race, match="overwrites what other threads read"):
        launch(body.format(""), [data()], 64, shared=256)


def test_write_after_write():
    body = f"{SHARED} st.shared.b32 [%r1], %r2; {{}} xor.b32 %r4, %r1, 128; st.shared.b32 [%r4], %r2;"
    launch(body.format(BARRIER), [data()], 64, shared=256)
    with pytest.raises(Race, match="overwrites what thread 32 wrote"):
        launch(body.format(""), [data()], 64, shared=256)


def test_writes_of_one_instruction():
    """One value may be stored by several threads. Of different ones within a warp, one is stored; two warps race."""
    launch(f"{SHARED} st.shared.b32 [global_smem], %r2;", [data()], 64, shared=256)
    with pytest.raises(Race, match=r"writes what thread 63 writes.*thread 0"):
        launch(f"{SHARED} st.shared.b32 [global_smem], %r0;", [data()], 64, shared=256)
    body = "st.shared.b32 [global_smem], %r0; bar.sync 0; ld.shared.b32 %r1, [global_smem]; st.global.b32 [%d0], %r1;"
    for winner, thread in (("first", 0), ("last", 31)):
        out = data()
        launch(body, [out], shared=256, winner=winner)
        assert out[0] == thread


def test_a_warp_has_barriers_of_its_own():
    """bar.warp.sync orders the threads of a warp; a shuffle does not, and neither orders two warps."""
    body = f"{SHARED} st.shared.b32 [%r1], %r2; {{}} xor.b32 %r4, %r1, {{}}; ld.shared.b32 %r3, [%r4];"
    launch(body.format("bar.warp.sync -1;", 4), [data()], 64, shared=256)
    for between, distance in (("", 4), ("shfl.sync.bfly.b32 %r5, %r2, 1, 31, -1;", 4), ("bar.warp.sync -1;", 128)):
        with pytest.raises(Race):
            launch(body.format(between, distance), [data()], 64, shared=256)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{ADDRESS} st.global.b32 [%d11], %r9;", "%r9 depends on what was never written; program .*thread 0"),
        (f"{ADDRESS} add.s32 %r9, %r8, 1; st.global.b32 [%d11], %r9;", "%r9 depends"),
        ("ld.global.b32 %r1, [%d20];", "%d20 depends"),
        ("@%p3 bra END; END:", "%p3 depends"),
        ("setp.eq.s32 %p3, %r9, 0; @%p3 bra END; END:", "%p3 depends"),
        (f"{ADDRESS} setp.lt.u32 %p1, %r0, 8; @%p1 mov.b32 %r9, 1; st.global.b32 [%d11], %r9;", "%r9.*thread 8"),
        (f"{ADDRESS} setp.lt.u32 %p1, %r0, 8; @%p1 mov.b32 %r9, 1; shfl.sync.bfly.b32 %r8, %r9, 16, 31, -1; "
         "st.global.b32 [%d11], %r8;", "%r8.*thread 0"),
        (f"{ADDRESS} {SHARED} ld.shared.b32 %r3, [%r1]; st.global.b32 [%d11], %r3;", "%r3"),
        (f"{ADDRESS} {SHARED} st.shared.b32 [%r1], %r9; ld.shared.b32 %r3, [%r1]; st.global.b32 [%d11], %r3;", "%r3"),
    ],
)  # fmt: skip
def test_never_written(body, message):
    with pytest.raises(Uninitialised, match=message):
        launch(body, [data()], shared=256)


def test_what_is_never_used_need_not_be_written():
    """A choice of the other operand, masked stores, and results that nothing reads."""
    launch(
        f"{ADDRESS} setp.lt.u32 %p1, %r0, 8; @%p1 mov.b32 %r9, 1; selp.b32 %r8, %r9, 0, %p1; st.global.b32 [%d11], %r8;"
        "@%p1 st.global.b32 [%d11], %r9; add.s32 %r7, %r9, %r9;",
        [data()],
    )


def test_half_of_a_pair_need_not_be_written():
    """As compilers put a single number into a pair; the other half of the result is as unset as that of the source."""
    body = f"""{ADDRESS} mov.b64 %d9, {{{{%r0, %r9}}}}; add.f32x2 %d8, %d9, %d9; mov.b64 {{{{%r7, %r8}}}}, %d8;
        st.global.b32 [%d11], {{}};"""
    launch(body.format("%r7"), [data()])
    with pytest.raises(Uninitialised, match="%r8"):
        launch(body.format("%r8"), [data()])


def test_barriers_that_some_threads_miss():
    with pytest.raises(BarrierFault, match=r"bar.sync 0; 60 of 64 threads.*never reach.*thread 4"):
        launch("setp.lt.u32 %p1, %r0, 4; @%p1 bar.sync 0;", [data()], 64)
    with pytest.raises(BarrierFault, match="32 of 64"):
        launch("setp.lt.u32 %p1, %r0, 32; @%p1 bra SKIP; bar.sync 0; SKIP:", [data()], 64)
    with pytest.raises(BarrierFault):
        launch("setp.lt.u32 %p1, %r0, 4; @%p1 ret; bar.sync 0;", [data()], 64)


@pytest.mark.parametrize(
    "body",
    [
        "frobnicate.b32 %r1, %r2;", "add.rn.s32 %r1, %r0, 1;", "add.s33 %r1, %r0, 1;", "mov.u32 %r1, %clock;",
        "ld.local.b32 %r1, [%d0];", "atom.global.add.u32 %r1, [%d0], 1;", "cp.async.wait_all;", "bar.sync 1, 32;",
        "ex2.approx.f16 %h1, %h2;", "fma.rn.f64 %d1, %d2, %d3, %d4;", "add.s32 %r1, %r0;", "mov.b32 %d1;",
        "cvt.f32.s32 %r1, %r0;", "ld.global.L1::unheard_of.b32 %r1, [%d0];", "bra NOWHERE;", "add.s64 %d1, %r0, 1;",
        "mul.wide.s64 %d1, %d0, 3;", "redux.sync.add.f32 %r1, %r0, -1;", "setp.lo.s32 %p1, %r0, 1;", "call foo;",
        "mov.b32 %r1, nothing;", "@%r1 mov.b32 %r2, 0;",
    ],
)  # fmt: skip
def test_unknown(body):
    with pytest.raises(UnknownInstruction, match="small, line"):
        decode(kernel(body, 1))


def test_programs_without_an_end():
    with pytest.raises(RunawayKernel, match="behind its last instruction"):
        launch("setp.eq.s32 %p1, %r0, 99; @%p1", [data()])  # guards the closing ret
    with pytest.raises(RunawayKernel, match="no end"):
        launch("AGAIN: bra AGAIN;", [data()])


def test_what_is_no_kernel():
    for text in ("", ".version 8.7", ".visible .entry f() {", ".visible .entry f() { add.s32 %r1, %r2, 1 }"):
        with pytest.raises(SyntaxFault):
            decode(text)


def test_launches_that_do_not_fit():
    with pytest.raises(BadLaunch, match="threads"):
        launch("", [data()], 33)
