"""Weighted noise-prediction loss per sample, with target noise that is passed in or drawn again in the kernel.

    loss_b = weight_b Σ_i (eps_bi - eps_hat_bi)²                                          (Ho et al. 2020, eq. 14)

The weight is 1 for L_simple and gamma'(t) / 2 for the continuous-time bound (Kingma et al. 2021). eps_hat [B, ...] is
float32, bfloat16 or float16, the weight float32 [B], the loss float32 [B] in the unit of the weight, and arithmetic is
float32. Contiguous and channels-last eps_hat are read as they are. Bytes per element in fp32 with drawn noise: 4
forward (read eps_hat), 8 backward (read it again, write its gradient). Sums are taken in two stages without atomics, so
they are deterministic.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._triton import constexpr, jit, tl
from .checks import check_data, check_vector
from .launch import WARPS, fast_math, flat, grid_of, in_layout_of, in_order, locate, order_of, per_sample
from .noise import Noise, noise_argument, normal_like
from .noise_tiles import noise_of, tile_noise, tile_offsets
from .registration import register


def eps_loss(eps_hat: Tensor, noise: Tensor | Noise, weight: Tensor) -> Tensor:
    """Return weight · Σ (eps - eps_hat)² for every sample, float32 [B].

    Args:
        eps_hat: predicted noise [B, ...], float32, bfloat16 or float16.
        noise: the target eps, a float tensor like eps_hat, or the `Noise` that drew it. It gets no gradient.
        weight: float32 [B].

    Differentiable in eps_hat and weight.

    Raises:
        InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype, shape or device.
    """
    check_data("eps_loss", "eps_hat", eps_hat)
    check_vector("eps_loss", "weight", weight, eps_hat.shape[0], eps_hat, "eps_hat")
    return weight * _squared_error_op(eps_hat, noise_argument("eps_loss", noise, eps_hat, "eps_hat"))


def squared_error_reference(eps_hat: Tensor, noise: Tensor) -> Tensor:
    """Σ (eps - eps_hat)² per sample, float32 [B]."""
    return flat(F.mse_loss(eps_hat.float(), normal_like(noise, eps_hat), reduction="none")).sum(1)


def error_gradient_reference(grad: Tensor, eps_hat: Tensor, noise: Tensor) -> Tensor:
    """Gradient of the squared error to eps_hat: 2 grad_b (eps_hat - eps)."""
    upstream = per_sample(grad, eps_hat).expand(eps_hat.shape)
    eps = normal_like(noise, eps_hat)
    out = torch.empty_like(eps_hat, dtype=torch.float32)
    torch.ops.aten.mse_loss_backward.grad_input(upstream, eps_hat.float(), eps, 0, grad_input=out)  # 0: no reduction
    return out.to(eps_hat.dtype)


# ------------------------------------------------------------------------------------------------ Triton


@jit
def squared_error_kernel(
    eps_hat_ptr, noise_ptr, partial_ptr, n, blocks, DRAWN: constexpr, FAST: constexpr, C: constexpr, BLOCK: constexpr
):  # fmt: skip
    """Σ (eps - eps_hat)² of one block of one sample."""
    HALF: constexpr = eps_hat_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    base = sample.to(tl.int64) * n
    noise = noise_of(noise_ptr, sample, start, n, DRAWN, HALF, FAST, C, BLOCK)
    total = 0.0  # replaced by the first tile
    for tile in tl.static_range(C):
        at = tile_offsets(start, tile, HALF, C, BLOCK)
        eps_hat = tl.load(eps_hat_ptr + base + at, mask=at < n, other=0.0).to(tl.float32)
        eps = tile_noise(noise, noise_ptr, base, at, n, tile, DRAWN, HALF, C)
        difference = tl.where(at < n, eps - eps_hat, 0.0)
        total = difference * difference if tile == 0 else total + difference * difference
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total))


@jit
def error_gradient_kernel(
    grad_ptr, eps_hat_ptr, noise_ptr, out_ptr, n, blocks, DRAWN: constexpr, FAST: constexpr, C: constexpr,
    BLOCK: constexpr,
):  # fmt: skip
    """2 grad_b (eps_hat - eps) of one block of one sample."""
    HALF: constexpr = eps_hat_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    base = sample.to(tl.int64) * n
    noise = noise_of(noise_ptr, sample, start, n, DRAWN, HALF, FAST, C, BLOCK)
    for tile in tl.static_range(C):
        at = tile_offsets(start, tile, HALF, C, BLOCK)
        eps_hat = tl.load(eps_hat_ptr + base + at, mask=at < n, other=0.0).to(tl.float32)
        eps = tile_noise(noise, noise_ptr, base, at, n, tile, DRAWN, HALF, C)
        out = 2.0 * tl.load(grad_ptr + sample) * (eps_hat - eps)
        tl.store(out_ptr + base + at, out.to(out_ptr.dtype.element_ty), mask=at < n)


def squared_error_triton(eps_hat: Tensor, noise: Tensor) -> Tensor:
    """Launch the partial sums, then add them up per sample."""
    drawn = noise.dtype == torch.int64
    order, channels = order_of(eps_hat, drawn)
    programs, n, blocks, block = grid_of(eps_hat, channels, drawn)
    if not programs:
        return eps_hat.new_zeros(eps_hat.shape[0], dtype=torch.float32)
    partial = eps_hat.new_empty(programs, dtype=torch.float32)
    squared_error_kernel[(programs,)](
        *in_order(order, eps_hat, noise), partial, n, blocks,
        DRAWN=drawn, FAST=fast_math(eps_hat), C=channels, BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    return partial.view(eps_hat.shape[0], blocks).sum(1)


def error_gradient_triton(grad: Tensor, eps_hat: Tensor, noise: Tensor) -> Tensor:
    """Launch the gradient."""
    drawn = noise.dtype == torch.int64
    order, channels = order_of(eps_hat, drawn)
    programs, n, blocks, block = grid_of(eps_hat, channels, drawn)
    out = torch.empty_like(eps_hat, memory_format=order)
    if programs:
        error_gradient_kernel[(programs,)](
            *in_order(order, grad, eps_hat, noise), out, n, blocks,
            DRAWN=drawn, FAST=fast_math(eps_hat), C=channels, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    return in_layout_of(out, eps_hat)


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _error_gradient_op(grad, *ctx.saved_tensors), None


_error_gradient_op = register(
    "eps_loss_gradient(Tensor grad, Tensor eps_hat, Tensor noise) -> Tensor",
    error_gradient_reference,
    error_gradient_triton,
    lambda grad, eps_hat, noise: torch.empty_like(eps_hat),
)
_squared_error_op = register(
    "eps_squared_error(Tensor eps_hat, Tensor noise) -> Tensor",
    squared_error_reference,
    squared_error_triton,
    lambda eps_hat, noise: eps_hat.new_empty(eps_hat.shape[0], dtype=torch.float32),
    _backward,
    _save,
)
