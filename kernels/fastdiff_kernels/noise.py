"""Noise as a pure function of (seed, sample, step, stream, element): Philox4x32-10 and Box-Muller.

Element i (flat, row-major, of one sample's logical shape) of sample b of a batch takes the generator with

    key = seed (64 bits),   counter = (i // 4, first_sample + b, step, stream)  mod 2**32,

exactly ``tl.philox(seed, c0, c1, c2, c3)`` (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3). Its four
words r0..r3 give uniforms u(r) = float32(r) 2**-32 + 2**-33 in (0, 1] and the normals of elements 4q .. 4q + 3 (Box and
Muller 1958)

    sqrt(-2 ln u(r0)) (cos, sin)(2 pi u(r1)),   sqrt(-2 ln u(r2)) (cos, sin)(2 pi u(r3)).

So a kernel can draw noise where it needs it, and draw the same noise again in the backward pass, without storing it;
and a sample's noise depends neither on the batch it is in nor on the device. Error of a float32 normal against float64
Box-Muller of the same u: at most 4e-6.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_like, whole_number
from .launch import WARPS, constexpr, fast_math, grid_of, jit, libdevice, locate, register, tl

MASK = 0xFFFFFFFF
NAMES = ("seed", "step", "first_sample", "stream")
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
WEYL_A, WEYL_B = 0x9E3779B9, 0xBB67AE85
CHUNK = 1 << 15  # counters per step of the reference: its few int64 temporaries stay in a core's cache


class Stream:
    """What a draw is for. One constant per use, so that no two draws share a counter; a level is added as 256 level."""

    TIMES = 1  # t of the diffusion loss
    DIFFUSION = 2  # eps of the diffusion loss
    RECON = 3  # eps_0 of the reconstruction term
    INITIAL = 4  # z_1 of the sampler
    SAMPLER = 5  # the sampler's step noise
    VAE = 6  # autoencoder latents
    ORDER = 7  # order of the training data
    LABELS = 8  # which labels are dropped in training
    DROPOUT = 9  # seeds of torch's generator, which dropout uses
    AUGMENTATION = 10  # which training images are shifted, and by how much
    DECODER = 11  # x from p(x | z_0)
    PROBE = 12  # directions of Hutchinson's estimate of a divergence
    MIXTURE = 13  # which component of a mixture of latents
    DEGRADATION = 14  # what is added to a picture that is to be restored


class Noise:
    """The four numbers that fix a batch of noise; see the module docstring for the contract.

    Args:
        seed: an integer in [0, 2**64).
        step: training or sampler step, modulo 2**32.
        first_sample: index of the batch's first sample in its data set, global batch or request, modulo 2**32.
        stream: what the noise is for, one of `Stream` (+ 256 level), modulo 2**32.

    The numbers live in one int64 tensor ``key`` [4], so that a compiled function or a captured graph takes a new step
    without being compiled or captured again; ``noise.to(device)`` puts them beside the data.

    Raises:
        TypeError: one of the numbers is no integer.
        ValueError: the seed is outside [0, 2**64).
    """

    def __init__(self, seed: int, step: int = 0, first_sample: int = 0, stream: int = 0) -> None:
        seed, step, first_sample, stream = (
            whole_number("Noise", name, value)
            for name, value in zip(NAMES, (seed, step, first_sample, stream), strict=True)
        )
        if not 0 <= seed < 2**64:
            raise ValueError(f"Noise: seed is {seed}; allowed: 0 <= seed < 2**64")
        signed = seed - 2**64 if seed >= 2**63 else seed  # the same 64 bits as an int64
        self.key = torch.tensor([signed, step & MASK, first_sample & MASK, stream & MASK], dtype=torch.int64)

    @classmethod
    def from_key(cls, key: Tensor) -> "Noise":
        """Wrap an int64 tensor [4] of (seed as int64, step, first_sample, stream), on any device."""
        if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.shape != (4,):
            given = f"{key.dtype} {tuple(key.shape)}" if isinstance(key, Tensor) else f"a {type(key).__name__}"
            raise ValueError(f"Noise.from_key: key is {given}; allowed: a tensor torch.int64 (4,)")
        noise = cls.__new__(cls)
        noise.key = key.contiguous()
        return noise

    def at(self, *, step: int | None = None, first_sample: int | None = None, stream: int | None = None) -> "Noise":
        """Return the same noise with some of its numbers replaced."""
        key = self.key.clone()
        for position, value in ((1, step), (2, first_sample), (3, stream)):
            if value is not None:
                number = whole_number("Noise.at", NAMES[position], value)
                key[position].fill_(number & MASK)  # an assignment would copy from the host on a GPU
        return Noise.from_key(key)

    def to(self, device: torch.device | str) -> "Noise":
        """Return the same noise with its numbers on ``device``, its own: `advance` of one does not move the other."""
        return Noise.from_key(self.key.to(device, copy=True))

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """Materialise standard normals for a batch of shape [B, ...], drawn in float32 and rounded to ``dtype``."""
        return self._draw(shape, dtype, device, normal=True)

    def uniform(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """Materialise uniforms in (0, 1] for a batch [B, ...]: element i takes word i % 4 of counter i // 4."""
        return self._draw(shape, dtype, device, normal=False)

    @property
    def counter(self) -> Tensor:
        """The step as a tensor int64 [1] beside the key, which `advance` moves on: a row number for `sampler_step`."""
        return self.key[1:2]

    def advance(self) -> None:
        """Go to the next step in place and on the device: what a captured graph does at each replay."""
        self.counter.add_(1).bitwise_and_(MASK)

    def integer(self) -> int:
        """A 63-bit integer from the first two words of this noise, to seed another generator with."""
        seed, step, first_sample, stream = self.key.tolist()
        counter = [torch.tensor(value & MASK) for value in (0, first_sample, step, stream)]
        low, high, _, _ = (int(word) for word in philox(seed % 2**64, *counter))
        return (high << 32 | low) & (2**63 - 1)

    def _draw(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str | None, normal: bool
    ) -> Tensor:
        if len(shape) < 1 or any(size < 0 for size in shape):
            raise ValueError(f"Noise: shape is {tuple(shape)}; allowed: [B, ...] without negative sizes")
        if not dtype.is_floating_point:
            raise TypeError(f"Noise: dtype is {dtype}; allowed: a floating-point dtype")
        key = self.key if device is None else self.key.to(device)
        return _draw_op(key, list(shape), dtype, normal)

    def __repr__(self) -> str:
        seed, step, first_sample, stream = self.key.tolist()
        return f"Noise(seed={seed % 2**64}, step={step}, first_sample={first_sample}, stream={stream})"


def philox(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 in int64 arithmetic: counters in [0, 2**32) that broadcast, four words in [0, 2**32).

    A product of two 32-bit numbers wraps in int64 to the right 64 bits, so its high word is ``(p >> 32) & MASK``. c1
    and c3 are low words that nothing multiplies before the next masking: they keep their upper bits until then.
    """
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * ROUND_A, c2 * ROUND_B
        c0 = (p1 >> 32).bitwise_xor(c1).bitwise_xor_(k0).bitwise_and_(MASK)
        c2 = (p0 >> 32).bitwise_xor(c3).bitwise_xor_(k1).bitwise_and_(MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + WEYL_A) & MASK, (k1 + WEYL_B) & MASK
    return c0, c1 & MASK, c2, c3 & MASK


def uniform_from_word(word: Tensor) -> Tensor:
    """u(r) = float32(r) 2**-32 + 2**-33 in float32, round to nearest."""
    return word.to(torch.float32).mul_(2.0**-32).add_(2.0**-33)


def draw_reference(key: Tensor, shape: Sequence[int], dtype: torch.dtype, normal: bool) -> Tensor:
    """Draw a batch [B, ...] of normals or uniforms in plain PyTorch, a cache-sized chunk of counters at a time."""
    seed, step, first_sample, stream = key.tolist()
    step = step & MASK
    batch, n = shape[0], math.prod(shape[1:])
    quads = -(-n // 4)
    out = torch.empty(batch, quads, 4, dtype=torch.float32, device=key.device)
    c2, c3 = (torch.tensor(value, device=key.device) for value in (step, stream))
    rows, columns = max(1, CHUNK // max(quads, 1)), max(1, min(quads, CHUNK))
    for b in range(0, batch, rows):
        c1 = torch.arange(b, min(b + rows, batch), device=key.device).add_(first_sample).bitwise_and_(MASK)[:, None]
        for q in range(0, quads, columns):
            c0 = torch.arange(q, min(q + columns, quads), device=key.device)[None].bitwise_and(MASK)
            words = philox(seed % 2**64, c0, c1, c2, c3)
            _write(out[b : b + rows, q : q + columns], [uniform_from_word(word) for word in words], normal)
    return out.view(batch, quads * 4)[:, :n].to(dtype).contiguous().view(*shape)


def _write(out: Tensor, u: list[Tensor], normal: bool) -> None:
    if not normal:
        torch.stack(u, dim=-1, out=out) if out.is_contiguous() else out.copy_(torch.stack(u, dim=-1))
        return
    for half in (0, 1):
        radius = u[2 * half].log_().mul_(-2.0).sqrt_()
        angle = u[2 * half + 1].mul_(2 * math.pi)
        torch.mul(radius, torch.cos(angle), out=out[..., 2 * half])
        torch.mul(radius, angle.sin_(), out=out[..., 2 * half + 1])


def noise_argument(where: str, noise: object, x: Tensor, x_name: str) -> Tensor:
    """Turn an operation's ``noise`` into the one tensor that its kernels take: a key, or noise of the shape of x.

    Raises:
        TypeError, ValueError: neither a `Noise` nor a float tensor like x, or a tensor that asks for a gradient.
    """
    if isinstance(noise, Noise):
        if noise.key.device == x.device:
            return noise.key
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise ValueError(
                f"{where}: noise is on {noise.key.device}; allowed in a captured graph: {x.device} (noise.to)"
            )
        return noise.key.to(x.device)
    if not isinstance(noise, Tensor):
        raise TypeError(f"{where}: noise is a {type(noise).__name__}; allowed: a Noise or a tensor like {x_name}")
    check_like(where, "noise", noise, x, x_name)
    if noise.requires_grad:
        raise ValueError(f"{where}: noise requires a gradient; allowed: noise without one (detach it)")
    return noise


def normal_like(noise: Tensor, x: Tensor) -> Tensor:
    """Return the noise of an operation's reference in float32: the tensor as given, or drawn where it is a key."""
    if noise.dtype == torch.int64:
        return draw_reference(noise, x.shape, torch.float32, True)
    return noise.to(torch.float32)


# ------------------------------------------------------------------------------------------------ Triton

# pyright: ignore stands for what Triton's constexpr is to a type checker
_TWO_M32: Any = constexpr(2.0**-32)  # pyright: ignore[reportCallIssue]
_TWO_M33: Any = constexpr(2.0**-33)  # pyright: ignore[reportCallIssue]
_TWO_PI_M33: Any = constexpr(2.0 * math.pi * 2.0**-33)  # pyright: ignore[reportCallIssue]
_MINUS_TWO_LN_2: Any = constexpr(-2.0 * math.log(2.0) * 2.0**-23)  # pyright: ignore[reportCallIssue]
_ROUNDER: Any = constexpr(1.5 * 2.0**23)  # pyright: ignore[reportCallIssue]
_ROUND_A: Any = constexpr(ROUND_A)  # pyright: ignore[reportCallIssue]
_ROUND_B: Any = constexpr(ROUND_B)  # pyright: ignore[reportCallIssue]
_WEYL_A: Any = constexpr(WEYL_A)  # pyright: ignore[reportCallIssue]
_WEYL_B: Any = constexpr(WEYL_B)  # pyright: ignore[reportCallIssue]


@jit
def sincos_quarter(a, HALF: constexpr):
    """sin and cos of 2 pi a for a in [-1/4, 1/4], error 2e-7 (sin) and 1.2e-7; where HALF, 7e-7 and 2e-7."""
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
    """x with its sign flipped where the top bit of ``sign`` (uint32, its other bits 0) is set."""
    return (x.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@jit
def sincos_turns(w, HALF: constexpr):
    """sin and cos of 2 pi w for any w, reduced exactly to the nearest half turn."""
    w = w - tl.floor(w + 0.5)
    shifted = w * 2.0 + _ROUNDER
    sin, cos = sincos_quarter(w - 0.5 * (shifted - _ROUNDER), HALF)
    odd = shifted.to(tl.uint32, bitcast=True) << 31
    return flip_sign(sin, odd), flip_sign(cos, odd)


@jit
def minus_two_log(u):
    """-2 ln u for u in [2**-33, 1], relative error 3e-7: u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), and
    ln u = e ln 2 + f + f² P(f). No special case of a library's logarithm can occur."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) & -0x800000
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    p = -0.3978815972805023 + f * (0.3440161347389221 + f * (-0.3255658745765686 + f * 0.20698989927768707))
    p = 1.0000057220458984 + f * (-0.6667017936706543 + f * (0.49946922063827515 + f * p))
    return (exponent.to(tl.float32) * _MINUS_TWO_LN_2 + f * -2.0) + (f * f) * p


@jit
def box_muller(a, b, HALF: constexpr, FAST: constexpr):
    """Two standard normals from two words.

    The angle is that of the word b in signed arithmetic: b << 1 is its distance from the nearest half turn.
    """
    u = a.to(tl.float32) * _TWO_M32 + _TWO_M33
    distance = (b << 1).to(tl.int32, bitcast=True).to(tl.float32)
    if FAST:
        radius = tl.sqrt(tl.abs(libdevice.fast_log2f(u) * -1.3862943611198906))  # its error may cross 0 at u = 1
        sin, cos = libdevice.fast_sinf(distance * _TWO_PI_M33), libdevice.fast_cosf(distance * _TWO_PI_M33)
    else:
        radius = tl.sqrt(minus_two_log(u))
        sin, cos = sincos_quarter(distance * _TWO_M33, HALF)
    radius = flip_sign(radius, (b + 0x40000000) & 0x80000000)
    return radius * cos, radius * sin


@jit
def multiply_wide(a, FACTOR: constexpr):
    """High and low word of a product of 32-bit numbers: one instruction, where tl.umulhi and * are two."""
    product = a.to(tl.uint64) * FACTOR
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@jit
def philox_words(key_ptr, sample, quad):
    """The four words of counter (quad, first_sample + sample, step, stream); quad int32, any shape."""
    seed = tl.load(key_ptr)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0 = quad.to(tl.uint32)
    c1 = (tl.load(key_ptr + 2) + sample).to(tl.uint32)
    c2 = tl.load(key_ptr + 1).to(tl.uint32)
    c3 = tl.load(key_ptr + 3).to(tl.uint32)
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
    """Normals of elements start .. start + BLOCK - 1 of one sample, in order; start is a multiple of 8.

    A thread draws as many neighbours as one 128-bit access holds, four of 32 bits or eight of 16, so that nothing is
    exchanged between threads. FAST: NVIDIA's approximate instructions, for results of 16 bits; by contract their error
    is at most 1e-5 in the root of the mean square.
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
def noise_block(noise_ptr, sample, start, n, DRAWN: constexpr, HALF: constexpr, FAST: constexpr, BLOCK: constexpr):
    """Noise of elements start .. start + BLOCK - 1 in float32: drawn from a key, or read from a contiguous tensor."""
    if DRAWN:
        eps = draw_block(noise_ptr, sample, start, HALF, FAST, BLOCK)
    else:
        i = start + tl.arange(0, BLOCK)
        eps = tl.load(noise_ptr + sample.to(tl.int64) * n + i, mask=i < n, other=0.0).to(tl.float32)
    return eps


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


_draw_op = register(
    "draw(Tensor key, SymInt[] shape, ScalarType dtype, bool normal) -> Tensor",
    draw_reference,
    draw_triton,
    lambda key, shape, dtype, normal: torch.empty(shape, dtype=dtype, device=key.device),
)
