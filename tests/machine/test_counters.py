"""Counts of instructions, sectors and bank conflicts: by hand for small programs, and in closed form for a kernel."""

import numpy as np
import pytest
import torch
from fastdiff_kernels import diffuse, use_backend
from machine.counters import Counter, family
from machine.driver import settings
from machine.program import decode
from machine.small import kernel, launch

PLACES = "mul.wide.u32 %d10, %r0, {}; add.s64 %d11, %d0, %d10;"  # a thread every so many bytes


def counts(body, arrays=(), threads=32, programs=1, shared=0):
    counter = Counter()
    launch(body, list(arrays), threads, (programs, 1, 1), shared, observer=counter)
    (found,) = counter.launches
    return found


def loads(body, size, **others):
    """Traffic of the loads from the first argument, of ``size`` bytes that start at a sector."""
    memory = np.zeros(size + 32, np.uint8)
    start = -memory.ctypes.data % 32
    return counts(body, [memory[start : start + size]], **others).global_memory["a0", "load"]


@pytest.mark.parametrize(
    ("stride", "instruction", "asked", "touched"),
    [
        (4, "ld.global.b32 %r1, [%d11];", 4, 128),
        (8, "ld.global.b32 %r1, [%d11];", 8, 128),  # every other word
        (128, "ld.global.b32 %r1, [%d11];", 32, 128),  # a sector for each thread
        (0, "ld.global.b32 %r1, [%d11];", 1, 4),
        (2, "ld.global.b16 %h1, [%d11];", 2, 64),
        (16, "ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%d11];", 16, 512),
        (8, "ld.global.v2.b32 {%r1, %r2}, [%d11];", 8, 256),
        (4, "ld.global.b32 %r1, [%d11+16];", 5, 128),  # half a sector off
    ],
)
def test_sectors_of_a_request(stride, instruction, asked, touched):
    found = loads(PLACES.format(stride) + instruction, 31 * stride + 64)
    assert (found.requests, found.asked, found.needed, found.bytes) == (1, asked, asked, touched)


def test_sectors_that_are_asked_for_again_are_needed_once():
    """Two warps of three programs read the same 128 bytes."""
    body = "and.b32 %r5, %r0, 31; mul.wide.u32 %d10, %r5, 4; add.s64 %d11, %d0, %d10; ld.global.b32 %r1, [%d11];"
    found = loads(body, 128, threads=64, programs=3)
    assert (found.requests, found.asked, found.needed, found.bytes) == (6, 24, 4, 128)


def test_threads_that_are_masked_ask_for_nothing():
    """Of two warps, the first 3 threads load; the second warp makes no request, but its instruction is issued."""
    body = PLACES.format(32) + "setp.lt.u32 %p1, %r0, 3; @%p1 ld.global.b32 %r1, [%d11];"
    memory = np.zeros(96 + 32, np.uint8)
    start = -memory.ctypes.data % 32
    found = counts(body, [memory[start : start + 96]], threads=64)
    traffic = found.global_memory["a0", "load"]
    assert (traffic.requests, traffic.asked, traffic.needed, traffic.bytes) == (1, 3, 3, 12)
    assert found.instructions == {"global": 2, "other": 2 * 6}


def test_arguments_and_directions_are_apart():
    """x is read and written, and a request of both arguments counts for each."""
    body = """
        setp.lt.u32 %p1, %r0, 16; selp.b64 %d5, %d0, %d1, %p1; mul.wide.u32 %d10, %r0, 4; add.s64 %d11, %d5, %d10;
        ld.global.b32 %r1, [%d11]; add.s64 %d12, %d0, %d10; st.global.b32 [%d12], %r1;
    """
    x, y = (memory[-memory.ctypes.data % 32 // 4 :][:32] for memory in (np.zeros(40, np.int32) for _ in range(2)))
    found = counts(body, [x, y])
    asked = {key: traffic.asked for key, traffic in found.global_memory.items()}
    assert asked == {("a0", "load"): 2, ("a1", "load"): 2, ("a0", "store"): 4}
    assert (found.sectors("asked"), found.sectors("needed", "load"), found.sectors("bytes", "store")) == (8, 4, 128)


@pytest.mark.parametrize(
    ("address", "instruction", "least", "passes"),
    [
        ("shl.b32 %r1, %r0, 2;", "st.shared.b32 [%r1], %r0;", 1, 1),
        ("shl.b32 %r1, %r0, 3;", "st.shared.b32 [%r1], %r0;", 1, 2),  # even banks only
        ("mul.lo.s32 %r1, %r0, 12;", "st.shared.b32 [%r1], %r0;", 1, 1),  # 3 has no common factor with 32
        ("shl.b32 %r1, %r0, 7;", "st.shared.b32 [%r1], %r0;", 1, 32),  # one bank
        ("mul.lo.s32 %r1, %r0, 132;", "st.shared.b32 [%r1], %r0;", 1, 1),  # padded rows
        ("shl.b32 %r1, %r0, 1;", "st.shared.b16 [%r1], %h0;", 1, 1),  # two threads to a word
        ("shl.b32 %r1, %r0, 3;", "st.shared.v2.b32 [%r1], {%r0, %r0};", 2, 2),
        ("shl.b32 %r1, %r0, 4;", "st.shared.v2.b32 [%r1], {%r0, %r0};", 2, 4),
        ("shl.b32 %r1, %r0, 4;", "st.shared.v4.b32 [%r1], {%r0, %r0, %r0, %r0};", 4, 4),
        ("shl.b32 %r1, %r0, 5;", "st.shared.v4.b32 [%r1], {%r0, %r0, %r0, %r0};", 4, 8),
        ("shl.b32 %r1, %r0, 7;", "setp.lt.u32 %p1, %r0, 5; @%p1 st.shared.b32 [%r1], %r0;", 1, 5),
        ("shl.b32 %r1, %r0, 4;", "setp.lt.u32 %p1, %r0, 8; @%p1 st.shared.v4.b32 [%r1], {%r0, %r0, %r0, %r0};", 1, 1),
    ],
)
def test_passes_over_shared_memory(address, instruction, least, passes):
    found = counts(f"mov.b16 %h0, 0; {address} {instruction}", threads=32, programs=3, shared=32 * 132).shared_memory
    assert (found.requests, found.least, found.passes) == (3, 3 * least, 3 * passes)
    assert found.conflicts == 3 * (passes - least)


def test_a_word_that_all_threads_read_takes_one_pass():
    found = counts("mov.b32 %r1, 8; st.shared.b32 [%r1], %r1; bar.sync 0; ld.shared.b32 %r2, [%r1];", shared=64)
    assert (found.shared_memory.requests, found.shared_memory.passes) == (2, 2)
    assert found.instructions == {"shared": 2, "exchange": 1, "other": 3}  # tid, the constant, ret


@pytest.mark.parametrize(("stride", "passes"), [(16, 1), (32, 2), (128, 8), (144, 1)])
@pytest.mark.parametrize("transposed", ["", ".trans"])
def test_a_matrix_takes_one_pass_if_its_rows_lie_in_different_banks(stride, passes, transposed):
    """Lanes 0 to 7 hold the addresses of the rows; nothing else of it is stored."""
    body = f"""
        and.b32 %r5, %r0, 7; mul.lo.s32 %r6, %r5, {stride}; mov.b32 %r1, 0;
        stmatrix.sync.aligned.m8n8.x1{transposed}.shared.b16 [%r6], {{%r1}};
    """
    found = counts(body, shared=8 * 144).shared_memory
    assert (found.requests, found.least, found.passes) == (1, 1, passes)


def test_instructions_of_a_loop():
    """A loop of 4 instructions runs once in program 0, twice in program 1, and so on."""
    body = """
        mov.u32 %r1, %ctaid.x; mov.b32 %r2, 0; mov.b32 %r3, 0;
    AGAIN:
        add.s32 %r3, %r3, %r2; add.s32 %r2, %r2, 1; setp.le.u32 %p1, %r2, %r1; @%p1 bra AGAIN;
    """
    found = counts(body, threads=64, programs=5)
    assert found.issued == 2 * (5 * (1 + 3 + 1) + 4 * (1 + 2 + 3 + 4 + 5))
    assert (found.programs, found.threads) == (5, 64)


def test_both_sides_of_a_branch_are_issued_where_a_warp_diverges():
    """In the first warp lanes 0 to 3 take one side and the others the other; the second takes one side only."""
    body = """
        setp.lt.u32 %p1, %r0, 4; @%p1 bra LOW;
        add.s32 %r1, %r0, 1; add.s32 %r1, %r1, 1; bra.uni DONE;
    LOW:
        add.s32 %r1, %r0, 2;
    DONE:
    """
    assert counts(body, threads=64).issued == 2 * (1 + 2 + 3 + 1) + 1


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("ld.global.b32 %r1, [%d0];", "global"), ("st.shared.b32 [%r1], %r1;", "shared"),
        ("shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;", "exchange"), ("bar.sync 0;", "exchange"),
        ("ex2.approx.ftz.f32 %r1, %r1;", "special"), ("div.full.f32 %r1, %r1, %r1;", "special"),
        ("rsqrt.approx.ftz.f32 %r1, %r1;", "special"), ("fma.rn.f32 %r1, %r1, %r1, %r1;", "other"),
        ("ld.param.b64 %d1, [small_param_0];", "other"),
    ],
)  # fmt: skip
def test_families(instruction, expected):
    assert family(decode(kernel(instruction, 1)).steps[-2]) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_diffuse_moves_each_element_once(dtype):
    """Reads x and the noise, writes z, and asks for no sector twice; gamma is one number per sample."""
    x, noise, gamma = torch.randn(4, 3, 32, 32, dtype=dtype), torch.randn(4, 3, 32, 32, dtype=dtype), torch.zeros(4)
    counter = Counter()
    with settings(observer=counter), use_backend("interpreter"):
        diffuse(x, gamma, noise)
    (found,) = counter.launches
    bytes_of_x = x.numel() * x.element_size()
    each = {("x_ptr", "load"), ("noise_ptr", "load"), ("z_ptr", "store")}
    assert found.global_memory.keys() == each | {("gamma_ptr", "load")}
    for key in each:
        traffic = found.global_memory[key]
        assert (32 * traffic.asked, 32 * traffic.needed, traffic.bytes) == (bytes_of_x,) * 3
    gammas = found.global_memory["gamma_ptr", "load"]
    assert (gammas.asked, gammas.needed, gammas.bytes) == (found.programs * found.threads // 32, 1, 16)
    assert found.sectors("bytes") == 3 * bytes_of_x + 16
