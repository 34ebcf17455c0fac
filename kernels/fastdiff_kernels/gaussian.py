"""Gaussian latents: a draw with its KL to the standard normal, and the log-ratio of two Gaussians at a point.

    z = mean + e^{logvar/2} eps,   kl_b = ½ Σ_i (mean² + e^{logvar} - logvar - 1)      (Kingma and Welling 2014, app. B)
    log N(z; mean_q, e^{logvar_q}) / N(z; mean_p, e^{logvar_p}) = ½ Σ_i (logvar_p - logvar_q + u_p² - u_q²),
    u = (z - mean) e^{-logvar/2}

Data [B, ...] float32, bfloat16 or float16; kl and the log-ratio float32 [B] in nats; arithmetic in float32. Bytes per
element in fp32 with drawn noise: `reparameterize` 12 forward (read mean and logvar, write z) and 20 backward (read the
gradient of z too, write two; the noise is drawn again); `gaussian_log_ratio` 20 forward and 40 backward. Sums are taken
in two stages without atomics, so they are deterministic.

e^v - 1 - v is computed so that it keeps its digits where it is small, for a posterior that has collapsed: at |v| = 1e-3
its relative error is at most 3e-7 in the kernel and 2e-4 in the reference, and 0.5 as written. With u_p² - u_q² as
(u_p - u_q)(u_p + u_q) the log-ratio of a distribution to itself is 0. Largest error against float64, relative to the
largest entry, for standard normal arguments: 2e-7 in values and gradients, beside the noise's own.
"""

from typing import Any

import torch
from torch import Tensor

from .checks import check_data, check_like
from .launch import WARPS, constexpr, fast_math, flat, grid_of, in_layout_of, jit, locate, per_sample, register, tl
from .noise import Noise, noise_argument, noise_block, normal_like

# e^{v/2} as a power of 2: the faster exponential on CPUs and GPUs alike
HALF_LOG2_E: Any = constexpr(0.5 * 1.4426950408889634)  # pyright: ignore[reportCallIssue]


def reparameterize(mean: Tensor, logvar: Tensor, noise: Tensor | Noise) -> tuple[Tensor, Tensor]:
    """Return z = mean + e^{logvar/2} eps, and its KL to N(0, I) in nats, float32 [B].

    Args:
        mean: [B, ...], float32, bfloat16 or float16; z has its dtype and layout.
        logvar: log-variance, float data like mean in shape.
        noise: a float tensor like mean, or a `Noise` to draw from. It gets no gradient.

    Differentiable in mean and logvar, through both results.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit, named with what is allowed.
    """
    check_data("reparameterize", "mean", mean)
    check_like("reparameterize", "logvar", logvar, mean, "mean")
    return _reparameterize_op(mean, logvar, noise_argument("reparameterize", noise, mean, "mean"))


def gaussian_log_ratio(z: Tensor, mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor) -> Tensor:
    """Return log q(z) - log p(z) in nats for every sample, float32 [B].

    Args:
        z: the point [B, ...], float32, bfloat16 or float16.
        mean_q, logvar_q, mean_p, logvar_p: the two diagonal Gaussians, float data like z in shape.

    Differentiable in all five.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit, named with what is allowed.
    """
    check_data("gaussian_log_ratio", "z", z)
    others = {"mean_q": mean_q, "logvar_q": logvar_q, "mean_p": mean_p, "logvar_p": logvar_p}
    for name, value in others.items():
        check_like("gaussian_log_ratio", name, value, z, "z")
    return _log_ratio_op(z, mean_q, logvar_q, mean_p, logvar_p)


def reparameterize_reference(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Plain PyTorch, in place where it can be."""
    m, v = mean.float(), logvar.float()
    z = torch.addcmul(m, torch.mul(v, HALF_LOG2_E.value).exp2_(), normal_like(noise, mean))
    terms = torch.expm1(v).sub_(v).addcmul_(m, m)
    return in_layout_of(z.to(mean.dtype), mean), flat(terms).sum(1).mul_(0.5)


def reparameterize_gradient_reference(
    grad_kl: Tensor, grad_z: Tensor | None, mean: Tensor, logvar: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to mean, grad_z + grad_kl mean, and to logvar, ½ (grad_z e^{logvar/2} eps + grad_kl (e^{logvar} - 1)).

    Without grad_z the noise is not drawn.
    """
    upstream, m, v = per_sample(grad_kl, mean), mean.float(), logvar.float()
    by_logvar = torch.expm1(v).mul_(0.5 * upstream)
    if grad_z is None:
        by_mean = upstream * m
    else:
        by_mean = torch.addcmul(grad_z.float(), upstream, m)
        step = torch.mul(v, HALF_LOG2_E.value).exp2_().mul_(normal_like(noise, mean))  # z - mean
        by_logvar.addcmul_(step, grad_z.float(), value=0.5)
    return in_layout_of(by_mean.to(mean.dtype), mean), in_layout_of(by_logvar.to(logvar.dtype), logvar)


def log_ratio_reference(z: Tensor, mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor) -> Tensor:
    """Plain PyTorch, in place where it can be."""
    u_q, u_p = _standardised(z, mean_q, logvar_q), _standardised(z, mean_p, logvar_p)
    terms = torch.sub(logvar_p.float(), logvar_q.float())
    difference = u_p - u_q
    return flat(terms.addcmul_(difference, u_q.add_(u_p))).sum(1).mul_(0.5)


def log_ratio_gradient_reference(
    grad: Tensor, z: Tensor, mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to the five arguments: u e^{-logvar/2} to the means, ½ (u² - 1) to the log-variances, q and -p."""
    results = []
    upstream = per_sample(grad, z)
    for mean, logvar, sign in ((mean_q, logvar_q, 1.0), (mean_p, logvar_p, -1.0)):
        inverse = torch.mul(logvar.float(), -HALF_LOG2_E.value).exp2_()
        u = torch.sub(z.float(), mean.float()).mul_(inverse)
        by_mean = inverse.mul_(u).mul_(sign * upstream)
        by_logvar = u.square_().sub_(1.0).mul_(0.5 * sign * upstream)
        results += [(by_mean, mean), (by_logvar, logvar)]
    by_z = (results[0][0] + results[2][0]).neg_()
    by_z, by_mean_q, by_logvar_q, by_mean_p, by_logvar_p = (
        in_layout_of(value.to(like.dtype), like) for value, like in [(by_z, z), *results]
    )
    return by_z, by_mean_q, by_logvar_q, by_mean_p, by_logvar_p


def _standardised(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return torch.mul(logvar.float(), -HALF_LOG2_E.value).exp2_().mul_(torch.sub(z.float(), mean.float()))


# ------------------------------------------------------------------------------------------------ Triton


@jit
def exponential_excess(v, exponential):
    """e^v - 1 - v, given e^v: a series where that difference would cancel (relative error 2.2e-6 at most)."""
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
    terms = mean * mean + exponential_excess(logvar, sigma * sigma)  # 0 where mean and logvar are
    tl.store(partial_ptr + tl.program_id(0), 0.5 * tl.sum(terms))


@jit
def reparameterize_gradient_kernel(
    grad_kl_ptr, grad_z_ptr, mean_ptr, logvar_ptr, noise_ptr, by_mean_ptr, by_logvar_ptr, n, blocks,
    WITH_Z: constexpr, DRAWN: constexpr, FAST: constexpr, BLOCK: constexpr,
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
    by_mean = grad_kl * mean
    by_logvar = grad_kl * (exponential_excess(logvar, sigma * sigma) + logvar)
    if WITH_Z:
        grad_z = tl.load(grad_z_ptr + at, mask=i < n, other=0.0).to(tl.float32)
        eps = noise_block(noise_ptr, sample, start, n, DRAWN, HALF, FAST, BLOCK)
        by_mean += grad_z
        by_logvar += grad_z * sigma * eps
    tl.store(by_mean_ptr + at, by_mean.to(by_mean_ptr.dtype.element_ty), mask=i < n)
    tl.store(by_logvar_ptr + at, (0.5 * by_logvar).to(by_logvar_ptr.dtype.element_ty), mask=i < n)


@jit
def standardised(z, mean_ptr, logvar_ptr, at, mask):
    """u = (z - mean) e^{-logvar/2}, with logvar and e^{-logvar/2}; all zero but the last outside the mask."""
    mean = tl.load(mean_ptr + at, mask=mask, other=0.0).to(tl.float32)
    logvar = tl.load(logvar_ptr + at, mask=mask, other=0.0).to(tl.float32)
    inverse = tl.exp2(-logvar * HALF_LOG2_E)
    return (z - mean) * inverse, logvar, inverse


@jit
def log_ratio_kernel(
    z_ptr, mean_q_ptr, logvar_q_ptr, mean_p_ptr, logvar_p_ptr, partial_ptr, n, blocks, BLOCK: constexpr
):  # fmt: skip
    """The log-ratio's sum over one block of one sample."""
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    z = tl.load(z_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    u_q, logvar_q, _ = standardised(z, mean_q_ptr, logvar_q_ptr, at, i < n)
    u_p, logvar_p, _ = standardised(z, mean_p_ptr, logvar_p_ptr, at, i < n)
    u_q, u_p = tl.abs(u_q), tl.abs(u_p)  # the same squares; no multiply-add rounds u_p and u_q differently
    terms = (logvar_p - logvar_q) + (u_p - u_q) * (u_p + u_q)
    tl.store(partial_ptr + tl.program_id(0), 0.5 * tl.sum(terms))


@jit
def log_ratio_gradient_kernel(
    grad_ptr, z_ptr, mean_q_ptr, logvar_q_ptr, mean_p_ptr, logvar_p_ptr,
    by_z_ptr, by_mean_q_ptr, by_logvar_q_ptr, by_mean_p_ptr, by_logvar_p_ptr, n, blocks, BLOCK: constexpr,
):  # fmt: skip
    """Gradients to the five arguments of one block of one sample."""
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    grad = tl.load(grad_ptr + sample)
    z = tl.load(z_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    u_q, _, inverse_q = standardised(z, mean_q_ptr, logvar_q_ptr, at, i < n)
    by_mean_q = grad * u_q * inverse_q
    by_logvar_q = 0.5 * grad * (u_q * u_q - 1.0)
    tl.store(by_mean_q_ptr + at, by_mean_q.to(by_mean_q_ptr.dtype.element_ty), mask=i < n)
    tl.store(by_logvar_q_ptr + at, by_logvar_q.to(by_logvar_q_ptr.dtype.element_ty), mask=i < n)
    u_p, _, inverse_p = standardised(z, mean_p_ptr, logvar_p_ptr, at, i < n)
    by_mean_p = -grad * u_p * inverse_p
    by_logvar_p = 0.5 * grad * (1.0 - u_p * u_p)
    tl.store(by_mean_p_ptr + at, by_mean_p.to(by_mean_p_ptr.dtype.element_ty), mask=i < n)
    tl.store(by_logvar_p_ptr + at, by_logvar_p.to(by_logvar_p_ptr.dtype.element_ty), mask=i < n)
    by_z = -(by_mean_q + by_mean_p)
    tl.store(by_z_ptr + at, by_z.to(by_z_ptr.dtype.element_ty), mask=i < n)


def reparameterize_triton(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the kernel over contiguous copies where the layout of an argument asks for one, then add up the KL."""
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
    """Launch the gradients to mean and logvar; without grad_z the noise is not drawn."""
    programs, n, blocks, block = grid_of(mean)
    by_mean, by_logvar = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (mean, logvar))
    if programs:
        reparameterize_gradient_kernel[(programs,)](
            grad_kl.contiguous(), None if grad_z is None else grad_z.contiguous(), mean.contiguous(),
            logvar.contiguous(), noise.contiguous(), by_mean, by_logvar, n, blocks,
            WITH_Z=grad_z is not None, DRAWN=noise.dtype == torch.int64, FAST=fast_math(mean), BLOCK=block,
            num_warps=WARPS,
        )  # fmt: skip
    return in_layout_of(by_mean, mean), in_layout_of(by_logvar, logvar)


def log_ratio_triton(z: Tensor, mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor) -> Tensor:
    """Launch the partial sums, then add them up per sample."""
    programs, n, blocks, block = grid_of(z)
    if not programs:
        return z.new_zeros(z.shape[0], dtype=torch.float32)
    partial = z.new_empty(programs, dtype=torch.float32)
    given = (x.contiguous() for x in (z, mean_q, logvar_q, mean_p, logvar_p))
    log_ratio_kernel[(programs,)](*given, partial, n, blocks, BLOCK=block, num_warps=WARPS)
    return partial.view(-1, blocks).sum(1)


def log_ratio_gradient_triton(
    grad: Tensor, z: Tensor, mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the five gradients, over contiguous copies where the layout of an argument asks for one."""
    programs, n, blocks, block = grid_of(z)
    given = (z, mean_q, logvar_q, mean_p, logvar_p)
    results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in given]
    if programs:
        log_ratio_gradient_kernel[(programs,)](
            grad.contiguous(),
            *(x.contiguous() for x in given),
            *results,
            n,
            blocks,
            BLOCK=block,
            num_warps=WARPS,
        )
    by_z, by_mean_q, by_logvar_q, by_mean_p, by_logvar_p = map(in_layout_of, results, given)
    return by_z, by_mean_q, by_logvar_q, by_mean_p, by_logvar_p


# ------------------------------------------------------------------------------------------------ registration


def _save_reparameterize(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _reparameterize_backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor, Tensor, None]:
    mean, logvar, noise = ctx.saved_tensors
    if grad_kl is None:
        grad_kl = mean.new_zeros(mean.shape[0], dtype=torch.float32)
    return *_reparameterize_gradient_op(grad_kl, grad_z, mean, logvar, noise), None


def _save_log_ratio(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _log_ratio_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return _log_ratio_gradient_op(grad, *ctx.saved_tensors)


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
    _reparameterize_backward,
    _save_reparameterize,
)
_log_ratio_gradient_op = register(
    "gaussian_log_ratio_gradient(Tensor grad, Tensor z, Tensor mean_q, Tensor logvar_q, Tensor mean_p, "
    "Tensor logvar_p) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    log_ratio_gradient_reference,
    log_ratio_gradient_triton,
    lambda grad, *given: tuple(torch.empty_like(x) for x in given),
)
_log_ratio_op = register(
    "gaussian_log_ratio(Tensor z, Tensor mean_q, Tensor logvar_q, Tensor mean_p, Tensor logvar_p) -> Tensor",
    log_ratio_reference,
    log_ratio_triton,
    lambda z, *given: z.new_empty(z.shape[0], dtype=torch.float32),
    _log_ratio_backward,
    _save_log_ratio,
)
