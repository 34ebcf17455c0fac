"""A draw from a diagonal Gaussian, with its KL divergence to the standard normal.

    z = mean + e^{logvar/2} eps,   kl_b = ½ Σ_i (mean² + e^{logvar} - logvar - 1)      (Kingma and Welling 2014, app. B)

mean, logvar, z [B, ...] are float32, bfloat16 or float16, kl is float32 [B] in nats, and arithmetic is float32. Bytes
per element in fp32 with drawn noise: 12 forward (read mean and logvar, write z) and 20 backward (read the gradient of z
as well, write two; the noise is drawn again). Sums are taken in two stages without atomics, so they are deterministic.

e^v - 1 - v keeps its digits for small v, as in a collapsed posterior: v² (1/2 + v P(v)) replaces the difference where
|v| < 1. Its relative error is at most 2e-7 for |v| < 1 down to 1e-18, where v² leaves the range of float32, and 1e-6
for |v| up to 30 (3e-6 with a GPU's approximate exponential); as written it is 0.5 at |v| = 1e-3. For standard normal
arguments values and gradients differ from float64 by at most 2e-7 of the largest entry, besides the error of the noise.
"""

from typing import Any

import torch
from torch import Tensor

from ._triton import constant, constexpr, jit, tl
from .checks import check_data, check_like
from .launch import WARPS, fast_math, flat, grid_of, in_layout_of, in_order, locate, order_of, per_sample
from .noise import Noise, noise_argument, normal_like
from .noise_tiles import noise_of, tile_noise, tile_offsets
from .registration import register

# e^{v/2} is computed as a power of 2, which is the faster exponential on CPUs and GPUs
HALF_LOG2_E = constant(0.5 * 1.4426950408889634)
# (e^v - 1 - v) / v² = A0 + A1 v + ... + A6 v^6, minimax in relative error on [-1, 1]: 9e-8
A0, A1, A2 = constant(0.5), constant(0.1666669398546219), constant(0.041666559875011444)
A3, A4, A5 = constant(0.008331016637384892), constant(0.001389079145155847), constant(0.0002031930343946442)
A6 = constant(2.4979994122986682e-05)
CACHED = 1 << 17  # elements that the reference works on at a time, so that its temporaries stay in the cache


def reparameterize(mean: Tensor, logvar: Tensor, noise: Tensor | Noise) -> tuple[Tensor, Tensor]:
    """Return z = mean + e^{logvar/2} eps, and the KL of N(mean, e^logvar) to N(0, I) in nats, float32 [B].

    Args:
        mean: [B, ...], float32, bfloat16 or float16. z has its dtype and layout.
        logvar: log-variance, float data with the shape of mean.
        noise: eps, a float tensor like mean, or a `Noise` to draw from. It gets no gradient.

    Differentiable in mean and logvar, through both results.

    Raises:
        InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype, shape or device.
    """
    check_data("reparameterize", "mean", mean)
    check_like("reparameterize", "logvar", logvar, mean, "mean")
    return _reparameterize_op(mean, logvar, noise_argument("reparameterize", noise, mean, "mean"))


def reparameterize_reference(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Plain PyTorch, in place where possible."""
    m, v = mean.float(), logvar.float()
    z = torch.addcmul(m, torch.mul(v, HALF_LOG2_E.value).exp2_(), normal_like(noise, mean))
    kl = flat(exponential_excess_reference(v).addcmul_(m, m)).sum(1).mul_(0.5)
    return in_layout_of(z.to(mean.dtype), mean), kl


def exponential_excess_reference(v: Tensor) -> Tensor:
    """e^v - 1 - v in float32, as accurate as `exponential_excess`.

    With w = clamp(v, -1, 1), r = v - w and f(w) = e^w - 1 - w from the polynomial, it is f(w) + e^w (e^r - 1) - r.
    Where |v| < 1, r is 0 and f(w) remains. On a CPU these arithmetic passes take half the time of a comparison and a
    choice.
    """
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    for excess, part in zip(out.view(-1).split(CACHED), v.reshape(-1).split(CACHED), strict=True):
        w = part.clamp(-1.0, 1.0)
        square, rest = w * w, part - w
        low, middle, high = (torch.mul(w, a.value).add_(b.value) for a, b in ((A1, A0), (A3, A2), (A5, A4)))
        middle.addcmul_(high.add_(square, alpha=A6.value), square)
        torch.mul(low.addcmul_(middle, square), square, out=excess)
        w.add_(1.0).add_(excess)  # e^w
        excess.addcmul_(w, torch.expm1(rest)).sub_(rest)
    return out.view(v.shape)


def reparameterize_gradient_reference(
    grad_kl: Tensor, grad_z: Tensor | None, mean: Tensor, logvar: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to mean, grad_z + grad_kl mean, and to logvar, ½ (grad_z e^{logvar/2} eps + grad_kl (e^logvar - 1)).

    Without grad_z the noise is not drawn.
    """
    upstream, m, v = per_sample(grad_kl, mean), mean.float(), logvar.float()
    grad_logvar = torch.expm1(v).mul_(0.5 * upstream)
    if grad_z is None:
        grad_mean = upstream * m
    else:
        grad_mean = torch.addcmul(grad_z.float(), upstream, m)
        step = torch.mul(v, HALF_LOG2_E.value).exp2_().mul_(normal_like(noise, mean))  # z - mean
        grad_logvar.addcmul_(step, grad_z.float(), value=0.5)
    return in_layout_of(grad_mean.to(mean.dtype), mean), in_layout_of(grad_logvar.to(logvar.dtype), logvar)


# ------------------------------------------------------------------------------------------------ Triton


@jit
def exponential_excess(v, exponential):
    """e^v - 1 - v from v and e^v, by a polynomial where the difference would cancel."""
    series = A0 + v * (A1 + v * (A2 + v * (A3 + v * (A4 + v * (A5 + v * A6)))))
    return tl.where(tl.abs(v) < 1.0, v * v * series, exponential - 1.0 - v)


@jit
def reparameterize_kernel(
    mean_ptr, logvar_ptr, noise_ptr, z_ptr, partial_ptr, n, blocks,
    DRAWN: constexpr, FAST: constexpr, C: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """z of one block of one sample, and the block's share of the KL."""
    HALF: constexpr = mean_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    base = sample.to(tl.int64) * n
    noise = noise_of(noise_ptr, sample, start, n, DRAWN, HALF, FAST, C, BLOCK)
    terms = 0.0  # replaced by the first tile
    for tile in tl.static_range(C):
        at = tile_offsets(start, tile, HALF, C, BLOCK)
        mean = tl.load(mean_ptr + base + at, mask=at < n, other=0.0).to(tl.float32)
        logvar = tl.load(logvar_ptr + base + at, mask=at < n, other=0.0).to(tl.float32)
        sigma = tl.exp2(logvar * HALF_LOG2_E)
        z = mean + sigma * tile_noise(noise, noise_ptr, base, at, n, tile, DRAWN, HALF, C)
        tl.store(z_ptr + base + at, z.to(z_ptr.dtype.element_ty), mask=at < n)
        term = mean * mean + exponential_excess(logvar, sigma * sigma)  # 0 outside the mask
        terms = term if tile == 0 else terms + term
    tl.store(partial_ptr + tl.program_id(0), 0.5 * tl.sum(terms))


@jit
def reparameterize_gradient_kernel(
    grad_kl_ptr, grad_z_ptr, mean_ptr, logvar_ptr, noise_ptr, grad_mean_ptr, grad_logvar_ptr, n, blocks,
    DRAWN: constexpr, FAST: constexpr, C: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients to mean and logvar of one block of one sample."""
    HALF: constexpr = mean_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    base = sample.to(tl.int64) * n
    grad_kl = tl.load(grad_kl_ptr + sample)
    noise = noise_of(noise_ptr, sample, start, n, DRAWN and grad_z_ptr is not None, HALF, FAST, C, BLOCK)
    for tile in tl.static_range(C):
        inside = tile_offsets(start, tile, HALF, C, BLOCK)
        mask, at = inside < n, base + inside
        mean = tl.load(mean_ptr + at, mask=mask, other=0.0).to(tl.float32)
        logvar = tl.load(logvar_ptr + at, mask=mask, other=0.0).to(tl.float32)
        sigma = tl.exp2(logvar * HALF_LOG2_E)
        grad_mean = grad_kl * mean
        grad_logvar = grad_kl * (exponential_excess(logvar, sigma * sigma) + logvar)
        if grad_z_ptr is not None:
            grad_z = tl.load(grad_z_ptr + at, mask=mask, other=0.0).to(tl.float32)
            eps = tile_noise(noise, noise_ptr, base, inside, n, tile, DRAWN, HALF, C)
            grad_mean += grad_z
            grad_logvar += grad_z * sigma * eps
        tl.store(grad_mean_ptr + at, grad_mean.to(grad_mean_ptr.dtype.element_ty), mask=mask)
        tl.store(grad_logvar_ptr + at, (0.5 * grad_logvar).to(grad_logvar_ptr.dtype.element_ty), mask=mask)


def reparameterize_triton(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the kernel, then add up the KL per sample."""
    drawn = noise.dtype == torch.int64
    order, channels = order_of(mean, drawn)
    programs, n, blocks, block = grid_of(mean, channels)
    z = torch.empty_like(mean, memory_format=order)
    if not programs:
        return in_layout_of(z, mean), mean.new_zeros(mean.shape[0], dtype=torch.float32)
    partial = mean.new_empty(programs, dtype=torch.float32)
    reparameterize_kernel[(programs,)](
        *in_order(order, mean, logvar, noise), z, partial, n, blocks,
        DRAWN=drawn, FAST=fast_math(mean), C=channels, BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    return in_layout_of(z, mean), partial.view(-1, blocks).sum(1)


def reparameterize_gradient_triton(
    grad_kl: Tensor, grad_z: Tensor | None, mean: Tensor, logvar: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch the gradients to mean and logvar. Without grad_z the noise is not drawn."""
    drawn = noise.dtype == torch.int64
    order, channels = order_of(mean, drawn and grad_z is not None)
    programs, n, blocks, block = grid_of(mean, channels)
    grad_mean, grad_logvar = (torch.empty_like(x, memory_format=order) for x in (mean, logvar))
    if programs:
        reparameterize_gradient_kernel[(programs,)](
            *in_order(order, grad_kl, grad_z, mean, logvar, noise), grad_mean, grad_logvar, n, blocks,
            DRAWN=drawn, FAST=fast_math(mean), C=channels, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    return in_layout_of(grad_mean, mean), in_layout_of(grad_logvar, logvar)


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor, Tensor, None]:
    mean, logvar, noise = ctx.saved_tensors
    if grad_kl is None:
        grad_kl = mean.new_zeros(mean.shape[0], dtype=torch.float32)
    return *_reparameterize_gradient_op(grad_kl, grad_z, mean, logvar, noise), None


_reparameterize_gradient_op = register(
    "reparameterize_gradient(Tensor grad_kl, Tensor? grad_z, Tensor mean, Tensor logvar, Tensor noise) "
    "-> (Tensor, Tensor)",
    reparameterize_gradient_reference,
    reparameterize_gradient_triton,
    lambda grad_kl, grad_z, mean, logvar, noise: (torch.empty_like(mean), torch.empty_like(logvar)),
)
_reparameterize_op = register(
    "reparameterize(Tensor mean, Tensor logvar, Tensor noise) -> (Tensor, Tensor)",
    reparameterize_reference,
    reparameterize_triton,
    lambda mean, logvar, noise: (torch.empty_like(mean), mean.new_empty(mean.shape[0], dtype=torch.float32)),
    _backward,
    _save,
)
