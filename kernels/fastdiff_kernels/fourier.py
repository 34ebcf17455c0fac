"""Fourier features of a latent, concatenated on the channels in one pass.

    sin(2^n pi z), cos(2^n pi z),   n = n_min .. n_max                        (Kingma et al. 2021, appendix C)

z [B, C, ...] and the result [B, C (1 + 2F), ...] are float32, bfloat16 or float16, with F = n_max - n_min + 1. The
result consists of the blocks z, sin and cos; inside a block, feature f of channel c has index c F + f. The argument is
reduced exactly: w = 2^(n-1) z is exact in float32, and so is its distance from the nearest integer, which is rounded
only when it is multiplied by 2 pi. The error stays below 3e-7 at any n; sin(2^n pi z) computed as written has an error
of 2e-4 at n = 8. Where 2^(n-1) z exceeds the range of float32 (|z| > 2.6e36 at n = 8), the features are NaN. Bytes per
element of z in fp32 at F = 2, contiguous or channels-last (`fourier_last`): 24 (one read, five writes), 14 for features
in bfloat16; backward 28 (six reads, one write), with the features computed again. If z itself is bfloat16, its rounding
makes the features of n >= 7 close to noise.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import fourier_last
from ._triton import constant, constexpr, jit, tl
from .checks import DATA_DTYPES, DATA_NAMES, check_data, whole_number
from .errors import InvalidTypeError, InvalidValueError
from .launch import BLOCK, WARPS, in_layout_of, order_of, split
from .noise_kernels import double_angle, sincos_turns
from .registration import register

CACHED = 1 << 16  # elements that the reference works on at a time
AXIS = 65535  # programs at most along the second and third axis of a grid
_TWO_PI = constant(2.0 * math.pi)


def fourier_features(z: Tensor, n_min: int = 7, n_max: int = 8, dtype: torch.dtype | None = None) -> Tensor:
    """Return [z, sin 2ⁿπz, cos 2ⁿπz] concatenated on the channels, in the layout of z.

    Args:
        z: latent [B, C, ...], float32, bfloat16 or float16.
        n_min, n_max: first and last exponent, 0 <= n_min <= n_max <= 30. For data of K levels use round(log2(K / 2))
            and the next integer: 7 and 8 for bytes, 3 and 4 for 17 levels.
        dtype: dtype of the result, float32, bfloat16 or float16, by default that of z. A network under autocast gets
            bfloat16 features of a float32 z without a second pass.

    Differentiable in z.

    Raises:
        InvalidTypeError, InvalidValueError: z has the wrong dtype or rank, or an exponent is out of range.
    """
    check_data("fourier_features", "z", z, min_dim=2)
    dtype = z.dtype if dtype is None else dtype
    if dtype not in DATA_DTYPES:
        raise InvalidTypeError(f"fourier_features: dtype must be {DATA_NAMES}, or None for that of z, got {dtype!r}")
    n_min, n_max = (whole_number("fourier_features", *pair) for pair in (("n_min", n_min), ("n_max", n_max)))
    if not 0 <= n_min <= n_max <= 30:
        raise InvalidValueError(
            f"fourier_features: n_min and n_max must satisfy 0 <= n_min <= n_max <= 30, got {n_min} and {n_max}"
        )
    return _fourier_op(z, n_min, n_max, dtype)


def out_like(z: Tensor, n_min: int, n_max: int, dtype: torch.dtype) -> Tensor:
    """An empty result, channels-last if z is, else contiguous."""
    shape = (z.shape[0], z.shape[1] * (1 + 2 * (n_max - n_min + 1)), *z.shape[2:])
    if z.dim() == 4 and z.is_contiguous(memory_format=torch.channels_last) and not z.is_contiguous():
        return torch.empty(shape, dtype=dtype, device=z.device, memory_format=torch.channels_last)
    return z.new_empty(shape, dtype=dtype)


def reduced_angle(z: Tensor, n: int) -> Tensor:
    """2^n pi z minus a whole number of turns, float32 in [-pi, pi]; exact up to the last multiplication."""
    turns = z * 2.0 ** (n - 1)
    return turns.sub_(turns.round()).mul_(2.0 * math.pi)


def feature_planes(features: Tensor, channels: int, n_min: int, n_max: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield n with views of its sine and cosine features [B, C, ...] in a tensor of features."""
    count = n_max - n_min + 1
    sines, cosines = features[:, channels:].chunk(2, dim=1)
    for f in range(count):
        yield n_min + f, sines[:, f::count], cosines[:, f::count]


def parts(z: Tensor) -> Iterator[slice]:
    """Slices of samples of z [B, C, ...], so few at a time that the reference's temporaries fit in the cache."""
    samples = max(1, CACHED // max(1, z[:1].numel()))
    yield from (slice(first, first + samples) for first in range(0, len(z), samples))


def fourier_reference(z: Tensor, n_min: int, n_max: int, dtype: torch.dtype) -> Tensor:
    """Plain PyTorch, one frequency at a time."""
    out = out_like(z, n_min, n_max, dtype)
    out[:, : z.shape[1]] = z
    for part in parts(z):
        whole = z[part].float()
        for n, sine, cosine in feature_planes(out[part], z.shape[1], n_min, n_max):
            angle = reduced_angle(whole, n)
            if dtype == torch.float32:
                torch.sin(angle, out=sine)
                torch.cos(angle, out=cosine)
            else:
                sine.copy_(angle.sin())
                cosine.copy_(angle.cos_())
    return out


def gradient_reference(grad: Tensor, z: Tensor, n_min: int, n_max: int) -> Tensor:
    """Gradient to z: grad_z + Σ_f 2^n pi (grad_sin cos - grad_cos sin), with the features computed again."""
    out = torch.empty_like(z)
    for part in parts(z):
        whole, total = z[part].float(), grad[part, : z.shape[1]].to(torch.float32, copy=True)
        for n, grad_sine, grad_cosine in feature_planes(grad[part], z.shape[1], n_min, n_max):
            angle = reduced_angle(whole, n)
            grad_angle = angle.cos().mul_(grad_sine).sub_(angle.sin_().mul_(grad_cosine))
            total.add_(grad_angle, alpha=2.0**n * math.pi)
        out[part] = total
    return out


# ------------------------------------------------------------------------------------------------ Triton


@jit
def fourier_kernel(z_ptr, out_ptr, channels, n, scale_min, FEATURES: constexpr, BLOCK: constexpr):
    """z and its features for one block of one channel of one sample: the grid's axes 0, 1 and 2.

    Every second frequency is the double angle of the one before.
    """
    HALF: constexpr = out_ptr.dtype.element_ty.primitive_bitwidth == 16
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    base = sample * (channels * n)
    z = tl.load(z_ptr + base + channel * n + i, mask=i < n, other=0.0).to(tl.float32)
    out_ptr += base * (1 + 2 * FEATURES)
    tl.store(out_ptr + channel * n + i, z.to(out_ptr.dtype.element_ty), mask=i < n)
    sin_ptr = out_ptr + (channels + channel * FEATURES) * n
    cos_ptr = sin_ptr + channels * FEATURES * n
    turns = z * scale_min
    sin, cos = turns, turns
    for f in tl.static_range(FEATURES):
        if f % 2 == 0:
            sin, cos = sincos_turns(turns, HALF)
            turns = turns * 4.0
        else:
            sin, cos = double_angle(sin, cos)
        tl.store(sin_ptr + f * n + i, sin.to(out_ptr.dtype.element_ty), mask=i < n)
        tl.store(cos_ptr + f * n + i, cos.to(out_ptr.dtype.element_ty), mask=i < n)


@jit
def fourier_gradient_kernel(grad_ptr, z_ptr, out_ptr, channels, n, scale_min, FEATURES: constexpr, BLOCK: constexpr):
    """Gradient to z for one block of one channel of one sample."""
    HALF: constexpr = out_ptr.dtype.element_ty.primitive_bitwidth == 16
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    base = sample * (channels * n)
    at = base + channel * n + i
    turns = tl.load(z_ptr + at, mask=i < n, other=0.0).to(tl.float32) * scale_min
    grad_ptr += base * (1 + 2 * FEATURES)
    total = tl.load(grad_ptr + channel * n + i, mask=i < n, other=0.0).to(tl.float32)
    sin_ptr = grad_ptr + (channels + channel * FEATURES) * n
    cos_ptr = sin_ptr + channels * FEATURES * n
    rate = scale_min * _TWO_PI
    sin, cos = turns, turns
    for f in tl.static_range(FEATURES):
        if f % 2 == 0:
            sin, cos = sincos_turns(turns, HALF)
            turns = turns * 4.0
        else:
            sin, cos = double_angle(sin, cos)
        grad_sin = tl.load(sin_ptr + f * n + i, mask=i < n, other=0.0).to(tl.float32)
        grad_cos = tl.load(cos_ptr + f * n + i, mask=i < n, other=0.0).to(tl.float32)
        total += rate * (grad_sin * cos - grad_cos * sin)
        rate = rate * 2.0
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=i < n)


def channel_launches(z: Tensor, features: int) -> Iterator[tuple[slice, tuple[int, int, int], int, int]]:
    """Yield ``(samples, grid, n, block)``: launches over (block, channel, sample) for z [B, C, ...], n per channel.

    A grid of three axes needs no division in the kernel. Its second and third axis are limited to 65535 programs, so
    there is one launch per 65535 samples.

    Raises:
        InvalidValueError: the features of one sample are 2³¹ elements or more, or there are more than 65535 channels.
    """
    batch, channels = z.shape[:2]
    if z[:1].numel() * features >= 2**31 - BLOCK or channels > AXIS:
        raise InvalidValueError(
            f"fourier_features: a sample must have at most {AXIS} channels and fewer than 2**31 - {BLOCK} features, "
            f"got shape {tuple(z.shape[1:])}"
        )
    _, n, blocks, block = split(1, z.numel() // (batch * channels) if batch * channels else 0)
    for first in range(0, batch if n and channels else 0, AXIS):
        samples = slice(first, min(first + AXIS, batch))
        yield samples, (blocks, channels, samples.stop - first), n, block


def in_tiles(z: Tensor, features: int) -> bool:
    """Whether z is channels-last and the kernels of `fourier_last` take it."""
    return order_of(z)[0] == torch.channels_last and fourier_last.takes(z, features)


def fourier_triton(z: Tensor, n_min: int, n_max: int, dtype: torch.dtype) -> Tensor:
    """Launch a kernel for contiguous or one for channels-last data. z of another layout is copied."""
    features = n_max - n_min + 1
    out = out_like(z, n_min, n_max, dtype)
    if in_tiles(z, 1 + 2 * features):
        fourier_last.launch_features(z, out, n_min, features)
        return out
    flat = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    whole = z.contiguous()
    for part, grid, n, block in channel_launches(z, 1 + 2 * features):
        fourier_kernel[grid](
            whole[part], flat[part], z.shape[1], n, 2.0 ** (n_min - 1), FEATURES=features, BLOCK=block, num_warps=WARPS
        )
    return out if flat is out else out.copy_(flat)


def gradient_triton(grad: Tensor, z: Tensor, n_min: int, n_max: int) -> Tensor:
    """Launch the gradient."""
    features = n_max - n_min + 1
    if in_tiles(z, 1 + 2 * features):
        out, grad = torch.empty_like(z), grad.contiguous(memory_format=torch.channels_last)
        fourier_last.launch_gradient(grad, z, out, n_min, features)
        return out
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    whole_grad, whole = grad.contiguous(), z.contiguous()
    for part, grid, n, block in channel_launches(z, 1 + 2 * features):
        fourier_gradient_kernel[grid](
            whole_grad[part], whole[part], out[part], z.shape[1], n, 2.0 ** (n_min - 1),
            FEATURES=features, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    return in_layout_of(out, z)


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple[Tensor, int, int, torch.dtype], output: Tensor) -> None:
    z, ctx.n_min, ctx.n_max, _ = inputs
    ctx.save_for_backward(z)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _gradient_op(grad, ctx.saved_tensors[0], ctx.n_min, ctx.n_max), None, None, None


_gradient_op = register(
    "fourier_gradient(Tensor grad, Tensor z, int n_min, int n_max) -> Tensor",
    gradient_reference,
    gradient_triton,
    lambda grad, z, n_min, n_max: torch.empty_like(z),
)
_fourier_op = register(
    "fourier_features(Tensor z, int n_min, int n_max, ScalarType dtype) -> Tensor",
    fourier_reference,
    fourier_triton,
    out_like,
    _backward,
    _save,
)
