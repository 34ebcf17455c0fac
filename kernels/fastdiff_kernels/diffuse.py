"""Forward diffusion: a draw z_t ~ q(z_t | x), with noise that is passed in or drawn in the kernel.

    z_t = alpha x + sigma eps,   alpha² = sigmoid(-gamma),   sigma² = sigmoid(gamma)        (Kingma et al. 2021)
    d alpha / d gamma = -alpha sigma² / 2,   d sigma / d gamma = sigma alpha² / 2

x, z_t [B, ...] are float32, bfloat16 or float16, gamma [B] is float32, and arithmetic is float32. Contiguous and
channels-last data are read and written as they are. Bytes per element in fp32: 8 with drawn noise (read x, write z_t),
12 with noise as a tensor. The gradient to gamma reads the upstream gradient and x, and draws the noise again. It is
summed over a sample in two stages without atomics, so it is deterministic.
"""

from typing import Any

import torch
from torch import Tensor

from ._triton import constexpr, jit, tl
from .checks import check_data, check_vector
from .launch import WARPS, fast_math, flat, grid_of, in_layout_of, in_order, locate, order_of, per_sample
from .noise import Noise, noise_argument, normal_like
from .noise_tiles import noise_of, tile_noise, tile_offsets
from .registration import register


def diffuse(x: Tensor, gamma: Tensor, noise: Tensor | Noise) -> Tensor:
    """Return z_t = alpha x + sigma eps in the dtype and layout of x.

    Args:
        x: data [B, ...], float32, bfloat16 or float16.
        gamma: float32 [B], gamma = -log SNR.
        noise: eps, a float tensor like x, or a `Noise` to draw from. It gets no gradient.

    Differentiable in x and gamma.

    Raises:
        InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype, shape or device.
    """
    check_data("diffuse", "x", x)
    check_vector("diffuse", "gamma", gamma, x.shape[0], x, "x")
    return _diffuse_op(x, gamma, noise_argument("diffuse", noise, x, "x"))


def alpha_sigma(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = sqrt(sigmoid(-gamma)), sigma = sqrt(sigmoid(gamma)): the variance-preserving pair."""
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def diffuse_reference(x: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    """Plain PyTorch: two passes, arithmetic in float32."""
    alpha, sigma = (per_sample(value, x) for value in alpha_sigma(gamma))
    z_t = (x.float() * alpha).addcmul_(normal_like(noise, x), sigma)
    return in_layout_of(z_t.to(x.dtype), x)


def gamma_gradient_reference(grad: Tensor, x: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    """Gradient to gamma, float32 [B]: Σ grad · (-alpha sigma² x + sigma alpha² eps) / 2."""
    grad = grad.float()
    sum_x = flat(grad * x).sum(1)
    sum_eps = flat(grad * normal_like(noise, x)).sum(1)
    return _gamma_gradient(gamma, sum_x, sum_eps)


def _gamma_gradient(gamma: Tensor, sum_x: Tensor, sum_eps: Tensor) -> Tensor:
    """The gradient to gamma from Σ grad · x and Σ grad · eps, all [B]."""
    alpha, sigma = alpha_sigma(gamma)
    return 0.5 * alpha * sigma * (alpha * sum_eps - sigma * sum_x)


# ------------------------------------------------------------------------------------------------ Triton


@jit
def diffuse_kernel(
    x_ptr, gamma_ptr, noise_ptr, z_ptr, n, blocks, DRAWN: constexpr, FAST: constexpr, C: constexpr, BLOCK: constexpr
):  # fmt: skip
    """z_t of one block of one sample."""
    HALF: constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    base = sample.to(tl.int64) * n
    gamma = tl.load(gamma_ptr + sample)
    alpha, sigma = tl.rsqrt(1.0 + tl.exp(gamma)), tl.rsqrt(1.0 + tl.exp(-gamma))
    noise = noise_of(noise_ptr, sample, start, n, DRAWN, HALF, FAST, C, BLOCK)
    for tile in tl.static_range(C):
        at = tile_offsets(start, tile, HALF, C, BLOCK)
        x = tl.load(x_ptr + base + at, mask=at < n, other=0.0).to(tl.float32)
        eps = tile_noise(noise, noise_ptr, base, at, n, tile, DRAWN, HALF, C)
        z = alpha * x + sigma * eps
        tl.store(z_ptr + base + at, z.to(z_ptr.dtype.element_ty), mask=at < n)


@jit
def gamma_gradient_kernel(
    grad_ptr, x_ptr, noise_ptr, partial_ptr, n, blocks, DRAWN: constexpr, FAST: constexpr, C: constexpr,
    BLOCK: constexpr,
):  # fmt: skip
    """Sums of grad · x and grad · eps over one block, into partial [2, programs]."""
    HALF: constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    base = sample.to(tl.int64) * n
    noise = noise_of(noise_ptr, sample, start, n, DRAWN, HALF, FAST, C, BLOCK)
    sum_x, sum_eps = 0.0, 0.0  # replaced by the first tile
    for tile in tl.static_range(C):
        at = tile_offsets(start, tile, HALF, C, BLOCK)
        grad = tl.load(grad_ptr + base + at, mask=at < n, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + base + at, mask=at < n, other=0.0).to(tl.float32)
        eps = tile_noise(noise, noise_ptr, base, at, n, tile, DRAWN, HALF, C)
        sum_x = grad * x if tile == 0 else sum_x + grad * x
        sum_eps = grad * eps if tile == 0 else sum_eps + grad * eps
    tl.store(partial_ptr + tl.program_id(0), tl.sum(sum_x))
    tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(sum_eps))


def diffuse_triton(x: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    """Launch the kernel."""
    drawn = noise.dtype == torch.int64
    order, channels = order_of(x, drawn)
    programs, n, blocks, block = grid_of(x, channels, drawn)
    z_t = torch.empty_like(x, memory_format=order)
    if programs:
        diffuse_kernel[(programs,)](
            *in_order(order, x, gamma, noise), z_t, n, blocks,
            DRAWN=drawn, FAST=fast_math(x), C=channels, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    return in_layout_of(z_t, x)


def gamma_gradient_triton(grad: Tensor, x: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    """Launch the partial sums, then add them up per sample."""
    drawn = noise.dtype == torch.int64
    order, channels = order_of(x, drawn)
    programs, n, blocks, block = grid_of(x, channels)
    partial = x.new_empty(2, programs, dtype=torch.float32)
    if programs:
        gamma_gradient_kernel[(programs,)](
            *in_order(order, grad, x, noise), partial, n, blocks,
            DRAWN=drawn, FAST=fast_math(x), C=channels, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    sums = partial.view(2, x.shape[0], -1).sum(-1) if programs else partial.new_zeros(2, x.shape[0])
    return _gamma_gradient(gamma, *sums)


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, gamma, noise = ctx.saved_tensors
    grad_x = grad_gamma = None
    if ctx.needs_input_grad[0]:
        grad_x = (grad * per_sample(alpha_sigma(gamma)[0], x)).to(x.dtype)
    if ctx.needs_input_grad[1]:
        grad_gamma = _gamma_gradient_op(grad, x, gamma, noise)
    return grad_x, grad_gamma, None


_gamma_gradient_op = register(
    "diffuse_gamma_gradient(Tensor grad, Tensor x, Tensor gamma, Tensor noise) -> Tensor",
    gamma_gradient_reference,
    gamma_gradient_triton,
    lambda grad, x, gamma, noise: torch.empty_like(gamma),
)
_diffuse_op = register(
    "diffuse(Tensor x, Tensor gamma, Tensor noise) -> Tensor",
    diffuse_reference,
    diffuse_triton,
    lambda x, gamma, noise: torch.empty_like(x),
    _backward,
    _save,
)
