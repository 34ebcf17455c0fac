"""Discretised Gaussian likelihood over the levels of the data, without a tensor of size [..., levels].

    -log p(x | mean) = -log softmax_k( -½ e^{-logvar} (mean - x_k)² ) at k = x,   x_k = (2k + 1) / levels - 1

(Kingma et al. 2021, appendix B: a Gaussian evaluated at the bin centres and normalised over them.) VDM passes mean =
z_0 / alpha_0 and logvar = gamma_0; a VAE its decoder's output. x uint8 [B, ...] in [0, levels); mean [B, ...] float32,
bfloat16 or float16; logvar float32 [B], or data like mean; result float32 [B] in nats; arithmetic in float32. Bytes per
element in fp32: 5 forward (read x and mean) and 9 backward with logvar [B], 9 and 17 with logvar like mean. Sums are
taken in two stages without atomics, so they are deterministic.

The centres are equally spaced. So the nearest level k* has the largest logit, and with r = (mean - x_{k*}) levels / 2,
in units of a level, q = e^{-logvar} (2 / levels)² and u_j = j (j - 2r), the logit of level k* + j is -½ q u_j below it:

    -log p(x | mean) = log Σ_j exp(-½ q u_j) + ½ q u_x,   r exact to rounding, u_j >= |j| (|j| - 1).

Levels with ½ q |j| (|j| - 1) >= 20 add nothing in float32: only a window of levels around k* is summed, as wide as the
smallest precision of a block of elements asks for. With expectations over the softmax the gradients are

    ½ q levels (E[j] - j_x) to mean,   ½ q (E[u] - u_x) to logvar.

For log-variances from -20 to 20 and means anywhere, nats and gradients are within 9e-7 of their largest entry. On one
CPU core 2^20 elements of 256 levels take 0.02 s at logvar -13.3, 0.08 s at -8 and 0.5 s at 0, forward and backward, and
a few MiB, where logits [..., levels] and a cross entropy take 15 s and 5.1 GiB (`benchmarks/decoder_cost.py`).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .checks import check_data, check_like, check_vector, whole_number
from .launch import WARPS, constexpr, flat, grid_of, in_layout_of, jit, locate, register, tl

CHUNK = {"cpu": 1 << 15, "cuda": 1 << 24}  # elements per step of the reference: its temporaries stay in a CPU's cache
NEGLIGIBLE: Any = constexpr(20.0)  # pyright: ignore[reportCallIssue]  # e^-20 of the largest term
LOG2_E: Any = constexpr(1.4426950408889634)  # pyright: ignore[reportCallIssue]
GRID: Any = constexpr(1536.0)  # pyright: ignore[reportCallIssue]  # (v + 1536) - 1536 rounds small v to 2**-13


def decoder_nll(x: Tensor, mean: Tensor, logvar: Tensor, levels: int = 256) -> Tensor:
    """Return -log p(x | mean, logvar) in nats for every sample, float32 [B].

    Args:
        x: data uint8 [B, ...], values in [0, levels) (not checked: that would wait for the device).
        mean: float32, bfloat16 or float16, like x in shape.
        logvar: log-variance, float32 [B] or float data like mean.
        levels: number of levels, 2 to 256.

    Differentiable in mean and logvar.

    Raises:
        TypeError, ValueError: a dtype, shape, device or number of levels that does not fit.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        given = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise TypeError(f"decoder_nll: x is {given}; allowed: a torch.uint8 tensor of levels")
    check_data("decoder_nll", "mean", mean)
    if x.shape != mean.shape or x.device != mean.device:
        raise ValueError(
            f"decoder_nll: x is {tuple(x.shape)} on {x.device}; "
            f"allowed: the shape and device of mean, {tuple(mean.shape)} on {mean.device}"
        )
    if isinstance(logvar, Tensor) and _per_element(logvar, mean):
        check_like("decoder_nll", "logvar", logvar, mean, "mean")
    else:
        check_vector("decoder_nll", "logvar", logvar, mean.shape[0], mean, "mean")
    levels = whole_number("decoder_nll", "levels", levels)
    if not 2 <= levels <= 256:
        raise ValueError(f"decoder_nll: levels is {levels}; allowed: 2 to 256")
    return _nll_op(x, mean, logvar, levels)


def centre(x: Tensor, levels: int) -> Tensor:
    """Bin centres of integer levels: x in 0 .. levels - 1 to (2x + 1) / levels - 1 in (-1, 1), float32."""
    return (2.0 * x.float() + 1.0) / levels - 1.0


def _per_element(logvar: Tensor, mean: Tensor) -> bool:
    return logvar.dim() == mean.dim() > 1


def _chunks(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Iterator[tuple]:
    """Yield (rows, columns, j_x, 2r in two parts, -½ q, first j, width of the window) of chunks of [B, n]."""
    x, mean, logvar = flat(x), flat(mean), flat(logvar)
    batch, n = x.shape
    size = CHUNK.get(x.device.type, CHUNK["cpu"])
    height, length = max(1, size // max(n, 1)), max(1, min(n, size))
    for b in range(0, batch if n else 0, height):
        rows = slice(b, b + height)
        for i in range(0, n, length):
            columns = slice(i, i + length)
            m = mean[rows, columns].float()
            v = logvar[rows, columns] if logvar.shape == mean.shape else logvar[rows]
            c = v.float().neg().exp_().mul_(-2.0 / levels**2)
            reach, width = _window(c, levels)
            nearest = (m * (0.5 * levels)).add_(0.5 * levels).floor_().clamp_(0.0, levels - 1.0)
            coarse = (m + GRID.value).sub_(GRID.value)
            high = (coarse * levels).sub_(nearest, alpha=2.0).add_(levels - 1.0)
            low = (m - coarse).mul_(levels)
            first = (nearest - reach).clamp_(0.0, levels - width).sub_(nearest)
            yield rows, columns, x[rows, columns] - nearest, high, low, c.expand_as(m).contiguous(), first, width


def _window(c: Tensor, levels: int) -> tuple[int, int]:
    """How far the terms that count reach, and the number of levels to sum; all of them where the GPU would wait."""
    smallest = -2.0 * float(c.max()) if c.device.type == "cpu" else 0.0
    if not smallest > 0.0:  # a NaN too
        return levels, levels
    reach = int(min(math.sqrt(0.25 + 2.0 * NEGLIGIBLE.value / smallest) + 0.5, levels))
    return reach, min(2 * reach + 1, levels)


def nll_reference(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Tensor:
    """Plain PyTorch, a chunk of elements and one level of the window at a time."""
    out = torch.zeros(x.shape[0], dtype=torch.float32, device=x.device)
    for rows, _, j_x, high, low, c, j, width in _chunks(x, mean, logvar, levels):
        u, term, total, scaled = torch.empty_like(j), torch.empty_like(j), torch.zeros_like(j), c * LOG2_E.value
        for _ in range(width):
            torch.sub(j, high, out=u).sub_(low).mul_(j)
            total.add_(torch.mul(u, scaled, out=term).exp2_())
            j.add_(1.0)
        torch.sub(j_x, high, out=u).sub_(low).mul_(j_x)
        out[rows] += total.log_().addcmul_(u, c, value=-1.0).sum(1)
    return out


def gradient_reference(grad: Tensor, x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Gradients to mean and to logvar, which is summed over a sample where logvar is per sample."""
    by_mean = torch.empty(flat(mean).shape, dtype=mean.dtype, device=mean.device)
    by_logvar = torch.zeros(flat(logvar).shape, dtype=torch.float32, device=mean.device)
    for rows, columns, j_x, high, low, c, j, width in _chunks(x, mean, logvar, levels):
        u, term, scaled = torch.empty_like(j), torch.empty_like(j), c * LOG2_E.value
        total, with_j, with_u = torch.zeros_like(j), torch.zeros_like(j), torch.zeros_like(j)
        for _ in range(width):
            torch.sub(j, high, out=u).sub_(low).mul_(j)
            total.add_(torch.mul(u, scaled, out=term).exp2_())
            with_j.addcmul_(term, j)
            with_u.addcmul_(term, u)
            j.add_(1.0)
        torch.sub(j_x, high, out=u).sub_(low).mul_(j_x)
        c.mul_(-grad[rows, None])
        by_mean[rows, columns] = with_j.div_(total).sub_(j_x).mul_(c).mul_(levels)
        with_u.div_(total).sub_(u).mul_(c)
        if by_logvar.shape == by_mean.shape:
            by_logvar[rows, columns] = with_u
        else:
            by_logvar[rows] += with_u.sum(1, keepdim=True)
    by_logvar = by_logvar.view(logvar.shape).to(logvar.dtype)
    return in_layout_of(by_mean.view(mean.shape), mean), in_layout_of(by_logvar, logvar)


# ------------------------------------------------------------------------------------------------ Triton


@jit
def load_terms(x_ptr, mean_ptr, logvar_ptr, sample, at, inside, levels, PER_ELEMENT: constexpr):
    """(j_x, 2r in two parts, -½ q, first j, width of the window) of one block; -½ q is a scalar for logvar [B]."""
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
    reach = tl.where(reach < count, reach, count)  # a NaN, too, asks for all levels
    width = tl.minimum(2.0 * reach + 1.0, count)
    nearest = tl.minimum(tl.maximum(tl.floor(0.5 * count * mean + 0.5 * count), 0.0), count - 1.0)
    coarse = (mean + GRID) - GRID  # coarse · count is exact, and so are its differences from integers
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
    grad_ptr, x_ptr, mean_ptr, logvar_ptr, by_mean_ptr, by_logvar_ptr, n, blocks, levels,
    PER_ELEMENT: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradient to mean of one block of one sample, and to logvar: its elements, or its sum into partial [programs]."""
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    j_x, high, low, c, j, width = load_terms(x_ptr, mean_ptr, logvar_ptr, sample, at, i < n, levels, PER_ELEMENT)
    total = tl.zeros([BLOCK], tl.float32)
    with_j = tl.zeros([BLOCK], tl.float32)
    with_u = tl.zeros([BLOCK], tl.float32)
    for _ in range(width):
        u = j * ((j - high) - low)
        term = tl.exp2(c * LOG2_E * u)
        total += term
        with_j += term * j
        with_u += term * u
        j += 1.0
    scale = -tl.load(grad_ptr + sample) * c
    by_mean = scale * levels.to(tl.float32) * (with_j / total - j_x)
    by_logvar = scale * (with_u / total - j_x * ((j_x - high) - low))
    tl.store(by_mean_ptr + at, by_mean.to(by_mean_ptr.dtype.element_ty), mask=i < n)
    if PER_ELEMENT:
        tl.store(by_logvar_ptr + at, by_logvar.to(by_logvar_ptr.dtype.element_ty), mask=i < n)
    else:
        tl.store(by_logvar_ptr + tl.program_id(0), tl.sum(tl.where(i < n, by_logvar, 0.0)))


def nll_triton(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Tensor:
    """Launch the partial sums, then add them up per sample."""
    programs, n, blocks, block = grid_of(mean)
    if not programs:
        return mean.new_zeros(mean.shape[0], dtype=torch.float32)
    partial = mean.new_empty(programs, dtype=torch.float32)
    nll_kernel[(programs,)](
        x.contiguous(), mean.contiguous(), logvar.contiguous(), partial, n, blocks, levels,
        PER_ELEMENT=_per_element(logvar, mean), BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    return partial.view(-1, blocks).sum(1)


def gradient_triton(grad: Tensor, x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Launch both gradients; the one to a logvar per sample is a partial sum per program, added up here."""
    programs, n, blocks, block = grid_of(mean)
    per_element = _per_element(logvar, mean)
    by_mean = torch.empty_like(mean, memory_format=torch.contiguous_format)
    by_logvar = torch.empty_like(logvar, memory_format=torch.contiguous_format)
    if not per_element:
        by_logvar = mean.new_zeros(programs or len(logvar), dtype=torch.float32)
    if programs:
        nll_gradient_kernel[(programs,)](
            grad.contiguous(), x.contiguous(), mean.contiguous(), logvar.contiguous(), by_mean, by_logvar, n, blocks,
            levels, PER_ELEMENT=per_element, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
        by_logvar = by_logvar if per_element else by_logvar.view(-1, blocks).sum(1)
    return in_layout_of(by_mean, mean), in_layout_of(by_logvar, logvar)


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    *tensors, ctx.levels = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
    return None, *_gradient_op(grad, *ctx.saved_tensors, ctx.levels), None


_gradient_op = register(
    "decoder_nll_gradient(Tensor grad, Tensor x, Tensor mean, Tensor logvar, int levels) -> (Tensor, Tensor)",
    gradient_reference,
    gradient_triton,
    lambda grad, x, mean, logvar, levels: (torch.empty_like(mean), torch.empty_like(logvar)),
)
_nll_op = register(
    "decoder_nll(Tensor x, Tensor mean, Tensor logvar, int levels) -> Tensor",
    nll_reference,
    nll_triton,
    lambda x, mean, logvar, levels: mean.new_empty(mean.shape[0], dtype=torch.float32),
    _backward,
    _save,
)
