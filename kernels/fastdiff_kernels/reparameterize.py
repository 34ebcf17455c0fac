"""A draw from a diagonal Gaussian, with its KL divergence to the standard normal.

    z = mean + e^{logvar/2} eps,   kl_b = ½ Σ_i (mean² + e^{logvar} - logvar - 1)      (Kingma and Welling 2014, app. B)

mean, logvar, z [B, ...] are float32, bfloat16 or float16, kl is float32 [B] in nats, and arithmetic is float32. Bytes
per element in fp32 with drawn noise: 12 forward (read mean and logvar, write z) and 20 backward (read the gradient of z
as well, write two; the noise is drawn again). Sums are taken in two stages without atomics, so they are deterministic.

e^v - 1 - v keeps its digits for small v, as in a collapsed posterior: at |v| = 1e-3 its relative error is at most 3e-7
in the kernel and 2e-4 in the reference, and 0.5 as written. For standard normal arguments values and gradients differ
from float64 by at most 2e-7 of the largest entry, besides the error of the noise.
"""

from typing import Any

import torch
from torch import Tensor

from ._triton import constant, constexpr, jit, tl
from .checks import check_data, check_like
from .launch import WARPS, fast_math, flat, grid_of, in_layout_of, locate, per_sample
from .noise import Noise, noise_argument, normal_like
from .noise_kernels import noise_block
from .registration import register

# e^{v/2} is computed as a power of 2, which is the faster exponential on CPUs and GPUs
HALF_LOG2_E = constant(0.5 * 1.4426950408889634)


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
    terms = torch.expm1(v).sub_(v).addcmul_(m, m)
    return in_layout_of(z.to(mean.dtype), mean), flat(terms).sum(1).mul_(0.5)


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
    """e^v - 1 - v from v and e^v, by a series where the difference would cancel; relative error at most 2.2e-6."""
    series = 1.0 / 2 + v * (1.0 / 6 + v * (1.0 / 24 + v * (1.0 / 120 + v * (1.0 / 720 + v * (1.0 / 5040 + v / 40320)))))
    return tl.where(tl.abs(v) < 0.5, v * v * series, exponential - 1.0 - v)


@jit
def reparameterize_kernel(
    mean_ptr, logvar_ptr, noise_ptr, z_ptr, partial_ptr, n, blocks,
    DRAWN: constexpr, FAST: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """z of one block of one sample, and the block's share of the KL."""
    HALF: constexpr = mean_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    mean = tl.load(mean_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    logvar = tl.load(logvar_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    sigma = tl.exp2(logvar * HALF_LOG2_E)
    eps = noise_block(noise_ptr, sample, start, n, DRAWN, HALF, FAST, BLOCK)
    z = mean + sigma * eps
    tl.store(z_ptr + at, z.to(z_ptr.dtype.element_ty), mask=i < n)
    terms = mean * mean + exponential_excess(logvar, sigma * sigma)  # 0 outside the mask
    tl.store(partial_ptr + tl.program_id(0), 0.5 * tl.sum(terms))


@jit
def reparameterize_gradient_kernel(
    grad_kl_ptr, grad_z_ptr, mean_ptr, logvar_ptr, noise_ptr, grad_mean_ptr, grad_logvar_ptr, n, blocks,
    DRAWN: constexpr, FAST: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients to mean and logvar of one block of one sample."""
    HALF: constexpr = mean_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    grad_kl = tl.load(grad_kl_ptr + sample)
    mean = tl.load(mean_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    logvar = tl.load(logvar_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    sigma = tl.exp2(logvar * HALF_LOG2_E)
    grad_mean = grad_kl * mean
    grad_logvar = grad_kl * (exponential_excess(logvar, sigma * sigma) + logvar)
    if grad_z_ptr is not None:
        grad_z = tl.load(grad_z_ptr + at, mask=i < n, other=0.0).to(tl.float32)
        eps = noise_block(noise_ptr, sample, start, n, DRAWN, HALF, FAST, BLOCK)
        grad_mean += grad_z
        grad_logvar += grad_z * sigma * eps
    tl.store(grad_mean_ptr + at, grad_mean.to(grad_mean_ptr.dtype.element_ty), mask=i < n)
    tl.store(grad_logvar_ptr + at, (0.5 * grad_logvar).to(grad_logvar_ptr.dtype.element_ty), mask=i < n)


def reparameterize_triton(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the kernel, then add up the KL per sample. Arguments that are not contiguous are copied."""
    programs, n, blocks, block = grid_of(mean)
    z = torch.empty_like(mean, memory_format=torch.contiguous_format)
    if not programs:
        return in_layout_of(z, mean), mean.new_zeros(mean.shape[0], dtype=torch.float32)
    partial = mean.new_empty(programs, dtype=torch.float32)
    drawn = noise.dtype == torch.int64
    reparameterize_kernel[(programs,)](
        mean.contiguous(), logvar.contiguous(), noise.contiguous(), z, partial, n, blocks,
        DRAWN=drawn, FAST=fast_math(mean), BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    return in_layout_of(z, mean), partial.view(-1, blocks).sum(1)


def reparameterize_gradient_triton(
    grad_kl: Tensor, grad_z: Tensor | None, mean: Tensor, logvar: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch the gradients to mean and logvar. Without grad_z the noise is not drawn."""
    programs, n, blocks, block = grid_of(mean)
    grad_mean, grad_logvar = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (mean, logvar))
    if programs:
        reparameterize_gradient_kernel[(programs,)](
            grad_kl.contiguous(), None if grad_z is None else grad_z.contiguous(), mean.contiguous(),
            logvar.contiguous(), noise.contiguous(), grad_mean, grad_logvar, n, blocks,
            DRAWN=noise.dtype == torch.int64, FAST=fast_math(mean), BLOCK=block, num_warps=WARPS,
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
