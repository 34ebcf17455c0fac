"""Fourier features of a latent, concatenated on the channels in one pass.

    sin(2^n pi z), cos(2^n pi z),   n = n_min .. n_max                        (Kingma et al. 2021, appendix C)

z [B, C, ...] float32, bfloat16 or float16; result [B, C (1 + 2F), ...] of the same dtype with F = n_max - n_min + 1, in
blocks z, sin, cos; inside a block feature f of channel c has index c F + f. The argument is reduced exactly: w = 2^n z
is exact in float32, r = w - 2 floor(w / 2 + 1/2) lies in [-1, 1), and only then is pi r rounded. The error stays below
3e-7 at any n, where sin(2^n pi z) computed as it is written loses 2e-4 at n = 8. Bytes per element of z in fp32 at
F = 2: 24 (one read, five writes); backward 28 (six reads, one write), the features computed again. bfloat16 z makes
n >= 7 near-noise.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .checks import check_data
from .launch import BLOCK, constexpr, in_layout_of, jit, register, split, tl
from .noise import sincos_turns


def fourier_features(z: Tensor, n_min: int = 7, n_max: int = 8) -> Tensor:
    """Return [z, sin 2ⁿπz, cos 2ⁿπz] concatenated on the channels, in the dtype and layout of z.

    Args:
        z: latent [B, C, ...], float32, bfloat16 or float16.
        n_min, n_max: first and last exponent, 0 <= n_min <= n_max <= 30. For data of K levels round(log2(K / 2)) and
            the next: 7 and 8 for bytes, 3 and 4 for 17 levels.

    Differentiable in z.

    Raises:
        TypeError, ValueError: a dtype or rank that does not fit, or exponents out of range.
    """
    check_data("fourier_features", "z", z, min_dim=2)
    if not 0 <= n_min <= n_max <= 30:
        raise ValueError(f"fourier_features: n_min = {n_min}, n_max = {n_max}; allowed: 0 <= n_min <= n_max <= 30")
    return _fourier_op(z, n_min, n_max)


def out_like(z: Tensor, n_min: int, n_max: int) -> Tensor:
    """An empty result: channels-last where z is, contiguous otherwise."""
    shape = (z.shape[0], z.shape[1] * (1 + 2 * (n_max - n_min + 1)), *z.shape[2:])
    if z.dim() == 4 and z.is_contiguous(memory_format=torch.channels_last) and not z.is_contiguous():
        return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=torch.channels_last)
    return z.new_empty(shape)


def reduced_angle(z: Tensor, n: int) -> Tensor:
    """2^n pi z less a whole number of turns, float32 in [-pi, pi]: exact up to the last multiplication."""
    turns = z.float() * 2.0 ** (n - 1)
    return turns.sub_(turns.round()).mul_(2.0 * math.pi)


def feature_planes(features: Tensor, channels: int, n_min: int, n_max: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield n with views of its sine and cosine planes [B, C, ...] in a tensor of features."""
    count = n_max - n_min + 1
    sines, cosines = features[:, channels:].chunk(2, dim=1)
    for f in range(count):
        yield n_min + f, sines[:, f::count], cosines[:, f::count]


def fourier_reference(z: Tensor, n_min: int, n_max: int) -> Tensor:
    """Plain PyTorch, one frequency at a time."""
    out = out_like(z, n_min, n_max)
    out[:, : z.shape[1]] = z
    for n, sine, cosine in feature_planes(out, z.shape[1], n_min, n_max):
        angle = reduced_angle(z, n)
        sine.copy_(angle.sin())
        cosine.copy_(angle.cos_())
    return out


def gradient_reference(grad: Tensor, z: Tensor, n_min: int, n_max: int) -> Tensor:
    """Gradient to z: grad_z + Σ_f 2^n pi (grad_sin cos - grad_cos sin), the features computed again."""
    total = grad[:, : z.shape[1]].to(torch.float32, copy=True)
    for n, by_sine, by_cosine in feature_planes(grad, z.shape[1], n_min, n_max):
        angle = reduced_angle(z, n)
        by_angle = angle.cos().mul_(by_sine).sub_(angle.sin_().mul_(by_cosine))
        total.add_(by_angle, alpha=2.0**n * math.pi)
    return in_layout_of(total.to(z.dtype), z)


# ------------------------------------------------------------------------------------------------ Triton


@jit
def sincos_half_turns(w):
    """sin(pi w) and cos(pi w) with the argument reduced exactly."""
    r = w - 2.0 * tl.floor(0.5 * w + 0.5)
    sin, cos = sincos_turns(0.5 * tl.abs(r))
    return tl.where(r < 0.0, -sin, sin), cos


@jit
def fourier_kernel(
    z_ptr, out_ptr, channels, n, blocks, scale_min, FEATURES: constexpr, BLOCK: constexpr
):  # fmt: skip
    """z and its features for one block of one channel of one sample; program (sample · channels + channel) · blocks."""
    row = tl.program_id(0) // blocks
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    sample, channel = row // channels, row % channels
    z = tl.load(z_ptr + row.to(tl.int64) * n + i, mask=i < n, other=0.0)
    base = sample.to(tl.int64) * n * channels * (1 + 2 * FEATURES)
    tl.store(out_ptr + base + channel * n + i, z, mask=i < n)
    w = z.to(tl.float32) * scale_min
    for f in tl.static_range(FEATURES):
        sin, cos = sincos_half_turns(w)
        sin_at = out_ptr + base + (channels + channel * FEATURES + f) * n + i
        cos_at = out_ptr + base + (channels * (1 + FEATURES) + channel * FEATURES + f) * n + i
        tl.store(sin_at, sin.to(out_ptr.dtype.element_ty), mask=i < n)
        tl.store(cos_at, cos.to(out_ptr.dtype.element_ty), mask=i < n)
        w = w * 2.0


@jit
def gradient_kernel(
    grad_ptr, z_ptr, out_ptr, channels, n, blocks, scale_min, FEATURES: constexpr, BLOCK: constexpr
):  # fmt: skip
    """Gradient to z for one block of one channel of one sample."""
    row = tl.program_id(0) // blocks
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    sample, channel = row // channels, row % channels
    w = tl.load(z_ptr + row.to(tl.int64) * n + i, mask=i < n, other=0.0).to(tl.float32) * scale_min
    base = sample.to(tl.int64) * n * channels * (1 + 2 * FEATURES)
    total = tl.load(grad_ptr + base + channel * n + i, mask=i < n, other=0.0).to(tl.float32)
    rate = scale_min * 3.141592653589793
    for f in tl.static_range(FEATURES):
        sin, cos = sincos_half_turns(w)
        sin_at = grad_ptr + base + (channels + channel * FEATURES + f) * n + i
        cos_at = grad_ptr + base + (channels * (1 + FEATURES) + channel * FEATURES + f) * n + i
        by_sin = tl.load(sin_at, mask=i < n, other=0.0).to(tl.float32)
        by_cos = tl.load(cos_at, mask=i < n, other=0.0).to(tl.float32)
        total += rate * (by_sin * cos - by_cos * sin)
        w = w * 2.0
        rate = rate * 2.0
    tl.store(out_ptr + row.to(tl.int64) * n + i, total.to(out_ptr.dtype.element_ty), mask=i < n)


def channel_grid(z: Tensor, features: int) -> tuple[int, int, int, int]:
    """Split channels into blocks: ``(programs, n, blocks, block)`` for z [B, C, ...] of n elements per channel."""
    rows = z.shape[0] * z.shape[1]
    n = z.numel() // rows if rows else 0
    if z[:1].numel() * features >= 2**31 - BLOCK:
        shape = tuple(z.shape[1:])
        raise ValueError(
            f"fourier_features: the features of a sample of shape {shape}; allowed: fewer than 2**31 elements"
        )
    return split(rows, n)


def fourier_triton(z: Tensor, n_min: int, n_max: int) -> Tensor:
    """Launch the kernel over a contiguous copy where the layout of z asks for one."""
    programs, n, blocks, block = channel_grid(z, 1 + 2 * (n_max - n_min + 1))
    out = out_like(z, n_min, n_max)
    flat = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    if programs:
        features = n_max - n_min + 1
        fourier_kernel[(programs,)](
            z.contiguous(), flat, z.shape[1], n, blocks, 2.0**n_min, FEATURES=features, BLOCK=block
        )
    return out if flat is out else out.copy_(flat)


def gradient_triton(grad: Tensor, z: Tensor, n_min: int, n_max: int) -> Tensor:
    """Launch the gradient over contiguous copies where the layout of an argument asks for one."""
    programs, n, blocks, block = channel_grid(z, 1 + 2 * (n_max - n_min + 1))
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    if programs:
        features = n_max - n_min + 1
        gradient_kernel[(programs,)](
            grad.contiguous(), z.contiguous(), out, z.shape[1], n, blocks, 2.0**n_min, FEATURES=features, BLOCK=block
        )
    return in_layout_of(out, z)


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    z, ctx.n_min, ctx.n_max = inputs
    ctx.save_for_backward(z)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _gradient_op(grad, ctx.saved_tensors[0], ctx.n_min, ctx.n_max), None, None


_gradient_op = register(
    "fourier_gradient(Tensor grad, Tensor z, int n_min, int n_max) -> Tensor",
    gradient_reference,
    gradient_triton,
    lambda grad, z, n_min, n_max: torch.empty_like(z),
)
_fourier_op = register(
    "fourier_features(Tensor z, int n_min, int n_max) -> Tensor",
    fourier_reference,
    fourier_triton,
    out_like,
    _backward,
    _save,
)
