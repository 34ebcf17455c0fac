"""The Triton half of `decoder_nll`: the likelihood, its gradients, and their launchers; see there for the method."""

import torch
from torch import Tensor

from ._triton import constant, constexpr, jit, tl
from .launch import WARPS, grid_of, in_layout_of, in_order, locate, order_of

NEGLIGIBLE = constant(20.0)  # e^-20 of the largest term
LOG2_E = constant(1.4426950408889634)
ROUNDER = constant(1536.0)  # (v + 1536) - 1536 rounds small v to 2**-13


def per_element(logvar: Tensor, mean: Tensor) -> bool:
    """Whether logvar is like mean, and not [B]."""
    return logvar.dim() == mean.dim() > 1


@jit
def load_terms(x_ptr, mean_ptr, logvar_ptr, sample, at, inside, levels, PER_ELEMENT: constexpr):
    """(j_x, 2r in two parts, -½ q, first j, width of the window) of one block. -½ q is a scalar for logvar [B]."""
    count = levels.to(tl.float32)
    x = tl.load(x_ptr + at, mask=inside, other=0).to(tl.float32)
    mean = tl.load(mean_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if PER_ELEMENT:
        logvar = tl.load(logvar_ptr + at, mask=inside, other=0.0).to(tl.float32)
        c = tl.exp2(-logvar * LOG2_E) * (-2.0 / (count * count))
        smallest = -2.0 * tl.max(tl.where(inside, c, float("-inf")))
    else:
        c = tl.exp2(-tl.load(logvar_ptr + sample) * LOG2_E) * (-2.0 / (count * count))
        smallest = -2.0 * c
    reach = tl.floor(tl.sqrt((2.0 / smallest) * NEGLIGIBLE + 0.25) + 0.5)
    reach = tl.where(reach < count, reach, count)  # all levels for a NaN
    width = tl.minimum(2.0 * reach + 1.0, count)
    nearest = tl.minimum(tl.maximum(tl.floor(0.5 * count * mean + 0.5 * count), 0.0), count - 1.0)
    coarse = (mean + ROUNDER) - ROUNDER  # coarse · count is exact, and so are its differences from integers
    high = coarse * count - (2.0 * nearest + 1.0 - count)
    low = (mean - coarse) * count
    first = tl.minimum(tl.maximum(nearest - reach, 0.0), count - width) - nearest
    return x - nearest, high, low, c, first, width.to(tl.int32)


@jit
def nll_kernel(
    x_ptr, mean_ptr, logvar_ptr, partial_ptr, n, blocks, levels, PER_ELEMENT: constexpr, BLOCK: constexpr
):  # fmt: skip
    """Nats of one block of one sample."""
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    j_x, high, low, c, j, width = load_terms(x_ptr, mean_ptr, logvar_ptr, sample, at, i < n, levels, PER_ELEMENT)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(width):
        total += tl.exp2(c * LOG2_E * (j * ((j - high) - low)))
        j += 1.0
    nats = tl.log(total) - c * (j_x * ((j_x - high) - low))
    tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.where(i < n, nats, 0.0)))


@jit
def nll_gradient_kernel(
    grad_ptr, x_ptr, mean_ptr, logvar_ptr, grad_mean_ptr, grad_logvar_ptr, n, blocks, levels,
    PER_ELEMENT: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients to mean and logvar of one block of one sample. For logvar [B] it is the block's sum, [programs]."""
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    j_x, high, low, c, j, width = load_terms(x_ptr, mean_ptr, logvar_ptr, sample, at, i < n, levels, PER_ELEMENT)
    total = tl.zeros([BLOCK], tl.float32)
    sum_j = tl.zeros([BLOCK], tl.float32)
    sum_u = tl.zeros([BLOCK], tl.float32)
    for _ in range(width):
        u = j * ((j - high) - low)
        term = tl.exp2(c * LOG2_E * u)
        total += term
        sum_j += term * j
        sum_u += term * u
        j += 1.0
    scale = -tl.load(grad_ptr + sample) * c
    grad_mean = scale * levels.to(tl.float32) * (sum_j / total - j_x)
    grad_logvar = scale * (sum_u / total - j_x * ((j_x - high) - low))
    tl.store(grad_mean_ptr + at, grad_mean.to(grad_mean_ptr.dtype.element_ty), mask=i < n)
    if PER_ELEMENT:
        tl.store(grad_logvar_ptr + at, grad_logvar.to(grad_logvar_ptr.dtype.element_ty), mask=i < n)
    else:
        tl.store(grad_logvar_ptr + tl.program_id(0), tl.sum(tl.where(i < n, grad_logvar, 0.0)))


def nll_triton(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Tensor:
    """Launch the partial sums, then add them up per sample."""
    programs, n, blocks, block = grid_of(mean)
    if not programs:
        return mean.new_zeros(mean.shape[0], dtype=torch.float32)
    partial = mean.new_empty(programs, dtype=torch.float32)
    nll_kernel[(programs,)](
        *in_order(order_of(mean)[0], x, mean, logvar), partial, n, blocks, levels,
        PER_ELEMENT=per_element(logvar, mean), BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    return partial.view(-1, blocks).sum(1)


def gradient_triton(grad: Tensor, x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Launch both gradients. For logvar [B] each program writes a partial sum, and the sums are added up here."""
    programs, n, blocks, block = grid_of(mean)
    order, elementwise = order_of(mean)[0], per_element(logvar, mean)
    grad_mean = torch.empty_like(mean, memory_format=order)
    if elementwise:
        grad_logvar = torch.empty_like(logvar, memory_format=order)
    else:
        grad_logvar = mean.new_zeros(programs or len(logvar), dtype=torch.float32)
    if programs:
        nll_gradient_kernel[(programs,)](
            *in_order(order, grad, x, mean, logvar), grad_mean, grad_logvar, n, blocks, levels,
            PER_ELEMENT=elementwise, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
        grad_logvar = grad_logvar if elementwise else grad_logvar.view(-1, blocks).sum(1)
    return in_layout_of(grad_mean, mean), in_layout_of(grad_logvar, logvar)
