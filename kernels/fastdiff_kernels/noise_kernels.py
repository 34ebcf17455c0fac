"""The Triton half of `noise`: device functions that draw noise inside any kernel, and a kernel that only draws.

Logarithm, sine and cosine are polynomials, since the functions of a library spend instructions on special cases that
cannot occur here. Their errors are given per function; all arithmetic is float32.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._triton import constant, constexpr, jit, libdevice, tl
from .launch import WARPS, fast_math, grid_of, locate

_TWO_M32 = constant(2.0**-32)
_TWO_M33 = constant(2.0**-33)
_TWO_PI_M33 = constant(2.0 * math.pi * 2.0**-33)
_MINUS_TWO_LN_2 = constant(-2.0 * math.log(2.0) * 2.0**-23)
_ROUNDER = constant(1.5 * 2.0**23)
_ROUND_A = constant(0xD2511F53)
_ROUND_B = constant(0xCD9E8D57)
_WEYL_A = constant(0x9E3779B9)
_WEYL_B = constant(0xBB67AE85)


@jit
def sincos_quarter(a, HALF: constexpr):
    """sin and cos of 2 pi a for a in [-1/4, 1/4]. Errors: 2e-7 and 1.2e-7; if HALF, 7e-7 and 2e-7."""
    a2 = a * a
    if HALF:
        sin = 6.28316427 + a2 * (-41.33716536 + a2 * (81.34142266 + a2 * -70.99900139))
        cos = 64.93524169921875 + a2 * (-85.25452423095703 + a2 * 56.344696044921875)
        cos = 1.0 + a2 * (-19.739181518554688 + a2 * cos)
    else:
        sin = 81.60115814208984 + a2 * (-76.55281829833984 + a2 * 39.5569953918457)
        sin = 6.283185005187988 + a2 * (-41.34165954589844 + a2 * sin)
        cos = -85.45384216308594 + a2 * (60.148460388183594 + a2 * -25.008371353149414)
        cos = 1.0 + a2 * (-19.739208221435547 + a2 * (64.9393539428711 + a2 * cos))
    return a * sin, cos


@jit
def flip_sign(x, sign):
    """Flip the sign of x where the top bit of ``sign`` is set (uint32, its other bits are 0)."""
    return (x.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@jit
def sincos_turns(w, HALF: constexpr):
    """sin and cos of 2 pi w for any w. The argument is reduced exactly to the nearest half turn."""
    w = w - tl.floor(w + 0.5)
    shifted = w * 2.0 + _ROUNDER
    sin, cos = sincos_quarter(w - 0.5 * (shifted - _ROUNDER), HALF)
    odd = shifted.to(tl.uint32, bitcast=True) << 31
    return flip_sign(sin, odd), flip_sign(cos, odd)


@jit
def double_angle(sin, cos):
    """sin 2a = 2 sin a cos a, cos 2a = 2 cos² a - 1; the error grows from 2e-7 to 3e-7."""
    return 2.0 * sin * cos, 2.0 * cos * cos - 1.0


@jit
def minus_two_log(u):
    """-2 ln u for u in [2**-33, 1], relative error 3e-7.

    u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), and ln u = e ln 2 + f + f² P(f).
    """
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) & -0x800000
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    p = -0.3978815972805023 + f * (0.3440161347389221 + f * (-0.3255658745765686 + f * 0.20698989927768707))
    p = 1.0000057220458984 + f * (-0.6667017936706543 + f * (0.49946922063827515 + f * p))
    return (exponent.to(tl.float32) * _MINUS_TWO_LN_2 + f * -2.0) + (f * f) * p


@jit
def box_muller(a, b, HALF: constexpr, FAST: constexpr):
    """Two standard normals from two words.

    The word b is the angle. In signed arithmetic, b << 1 is its distance from the nearest half turn.
    """
    u = a.to(tl.float32) * _TWO_M32 + _TWO_M33
    distance = (b << 1).to(tl.int32, bitcast=True).to(tl.float32)
    if FAST:
        radius = tl.sqrt(tl.abs(libdevice.fast_log2f(u) * -1.3862943611198906))  # may be slightly negative at u = 1
        sin, cos = libdevice.fast_sinf(distance * _TWO_PI_M33), libdevice.fast_cosf(distance * _TWO_PI_M33)
    else:
        radius = tl.sqrt(minus_two_log(u))
        sin, cos = sincos_quarter(distance * _TWO_M33, HALF)
    radius = flip_sign(radius, (b + 0x40000000) & 0x80000000)
    return radius * cos, radius * sin


@jit
def multiply_wide(a, FACTOR: constexpr):
    """High and low word of a product of 32-bit numbers, in one instruction; tl.umulhi and * would be two."""
    product = a.to(tl.uint64) * FACTOR
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@jit
def philox_words(key_ptr, sample, quad, stream=None, step=None):
    """The four words of counter (quad, first_sample + sample, step, stream). quad is int32 of any shape.

    A stream or a step that is passed replaces that of the key.
    """
    seed = tl.load(key_ptr)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0 = quad.to(tl.uint32)
    c1 = (tl.load(key_ptr + 2) + sample).to(tl.uint32)
    c2 = tl.load(key_ptr + 1).to(tl.uint32) if step is None else step.to(tl.uint32)
    c3 = tl.load(key_ptr + 3).to(tl.uint32) if stream is None else tl.cast(stream, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = multiply_wide(c0, _ROUND_A)
        high2, low2 = multiply_wide(c2, _ROUND_B)
        c0, c1 = high2 ^ c1 ^ k0, low2
        c2, c3 = high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _WEYL_A, k1 + _WEYL_B
    return c0, c1, c2, c3


@jit
def quad_normals(key_ptr, sample, quad, HALF: constexpr, FAST: constexpr):
    """The four normals of a counter."""
    r0, r1, r2, r3 = philox_words(key_ptr, sample, quad)
    e0, e1 = box_muller(r0, r1, HALF, FAST)
    e2, e3 = box_muller(r2, r3, HALF, FAST)
    return e0, e1, e2, e3


@jit
def draw_block(key_ptr, sample, start, HALF: constexpr, FAST: constexpr, BLOCK: constexpr):
    """Normals of elements start .. start + BLOCK - 1 of one sample, in order. start is a multiple of 8.

    A thread draws as many neighbours as one 128-bit access holds, four of 32 bits or eight of 16 bits, so that threads
    exchange no data. FAST selects NVIDIA's approximate instructions for 16-bit results; their root mean square error
    is at most 1e-5.
    """
    if HALF:
        quad = start // 4 + 2 * tl.arange(0, BLOCK // 8)
        a0, a1, a2, a3 = quad_normals(key_ptr, sample, quad, HALF, FAST)
        b0, b1, b2, b3 = quad_normals(key_ptr, sample, quad + 1, HALF, FAST)
        even = tl.interleave(tl.interleave(a0, b0), tl.interleave(a2, b2))
        odd = tl.interleave(tl.interleave(a1, b1), tl.interleave(a3, b3))
    else:
        a0, a1, a2, a3 = quad_normals(key_ptr, sample, start // 4 + tl.arange(0, BLOCK // 4), HALF, FAST)
        even, odd = tl.interleave(a0, a2), tl.interleave(a1, a3)
    return tl.interleave(even, odd)


@jit
def draw_kernel(key_ptr, out_ptr, n, blocks, NORMAL: constexpr, FAST: constexpr, BLOCK: constexpr):
    """Write one block of a batch of normals or uniforms."""
    sample, start = locate(blocks, BLOCK)
    if NORMAL:
        value = draw_block(key_ptr, sample, start, out_ptr.dtype.element_ty.primitive_bitwidth == 16, FAST, BLOCK)
    else:
        r0, r1, r2, r3 = philox_words(key_ptr, sample, start // 4 + tl.arange(0, BLOCK // 4))
        word = tl.interleave(tl.interleave(r0, r2), tl.interleave(r1, r3))
        value = word.to(tl.float32) * _TWO_M32 + _TWO_M33
    i = start + tl.arange(0, BLOCK)
    tl.store(out_ptr + sample.to(tl.int64) * n + i, value.to(out_ptr.dtype.element_ty), mask=i < n)


def draw_triton(key: Tensor, shape: Sequence[int], dtype: torch.dtype, normal: bool) -> Tensor:
    """Draw a batch [B, ...] of normals or uniforms with the kernel."""
    out = torch.empty(shape, dtype=dtype, device=key.device)
    programs, n, blocks, block = grid_of(out)
    if programs:
        draw_kernel[(programs,)](key, out, n, blocks, NORMAL=normal, FAST=fast_math(out), BLOCK=block, num_warps=WARPS)
    return out
