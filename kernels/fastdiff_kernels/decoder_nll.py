"""Discretised Gaussian likelihood over the levels of the data, without a tensor of size [..., levels].

    -log p(x | mean) = -log softmax_k( -½ e^{-logvar} (mean - x_k)² ) at k = x,   x_k = (2k + 1) / levels - 1

is a Gaussian evaluated at the bin centres x_k and normalised over them (Kingma et al. 2021, appendix B). VDM passes
mean = z_0 / alpha_0 and logvar = gamma_0, a VAE the output of its decoder. x [B, ...] is uint8 in [0, levels), mean
[B, ...] is float32, bfloat16 or float16, logvar is float32 [B] or data like mean, the result is float32 [B] in nats,
and arithmetic is float32. Bytes per element in fp32: 5 forward (read x and mean) and 9 backward with logvar [B]; 9 and
17 with logvar like mean. Sums are taken in two stages without atomics, so they are deterministic.

The centres are equally spaced, so the nearest level k* has the largest logit. With r = (mean - x_{k*}) levels / 2, in
units of a level, q = e^{-logvar} (2 / levels)² and u_j = j (j - 2r), the logit of level k* + j is smaller by ½ q u_j:

    -log p(x | mean) = log Σ_j exp(-½ q u_j) + ½ q u_x,   r exact to rounding, u_j >= |j| (|j| - 1).

Levels with ½ q |j| (|j| - 1) >= 20 add nothing in float32, so only a window of levels around k* is summed. The largest
variance in a block of elements determines its width. With expectations E over the softmax the gradients are

    ½ q levels (E[j] - j_x) to mean,   ½ q (E[u] - u_x) to logvar.

For log-variances from -20 to 20, nats and gradients differ from float64 by about 9e-7 of their largest entry for normal
means, by 2e-6 for means of 1e6, and by 4e-6 in samples of a few elements, whose largest entry may be small. On one CPU
core, forward and backward for 2^20 elements of 256 levels take 0.02 s at logvar -13.3, 0.08 s at -8 and 0.5 s at 0, and
a few MiB. Logits [..., levels] and a cross entropy take 15 s and 5.1 GiB (`benchmarks/decoder_cost.py`).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .checks import check_data, check_like, check_vector, described, whole_number
from .decoder_nll_kernels import LOG2_E, NEGLIGIBLE, ROUNDER, gradient_triton, nll_triton, per_element
from .errors import InvalidTypeError, InvalidValueError
from .launch import flat, in_layout_of
from .registration import register, values_visible

CHUNK = {
    "cpu": 1 << 15,
    "cuda": 1 << 24,
}  # elements per step of the reference, so that its temporaries fit in a CPU's cache


def decoder_nll(x: Tensor, mean: Tensor, logvar: Tensor, levels: int = 256) -> Tensor:
    """Return -log p(x | mean, logvar) in nats for every sample, float32 [B].

    Args:
        x: data uint8 [B, ...], values in [0, levels). On a GPU the values are not checked.
        mean: float32, bfloat16 or float16, with the shape of x.
        logvar: log-variance, float32 [B] or float data like mean.
        levels: number of levels, 2 to 256.

    Differentiable in mean and logvar.

    Raises:
        InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype, shape or device, or a value of x or
            ``levels`` is out of range.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        raise InvalidTypeError(f"decoder_nll: x must be a torch.uint8 tensor of levels, got {described(x)}")
    check_data("decoder_nll", "mean", mean)
    if x.shape != mean.shape or x.device != mean.device:
        wanted = f"the shape and device of mean, {tuple(mean.shape)} on {mean.device}"
        raise InvalidValueError(f"decoder_nll: x must have {wanted}, got {tuple(x.shape)} on {x.device}")
    if isinstance(logvar, Tensor) and per_element(logvar, mean):
        check_like("decoder_nll", "logvar", logvar, mean, "mean")
    else:
        check_vector("decoder_nll", "logvar", logvar, mean.shape[0], mean, "mean")
    levels = _check_levels("decoder_nll", x, levels)
    return _nll_op(x, mean, logvar, levels)


def to_unit_range(x: Tensor, levels: int) -> Tensor:
    """Map integer levels x in [0, levels) to their bin centres (2x + 1) / levels - 1 in (-1, 1), float32.

    Raises:
        InvalidTypeError: x is no tensor of real numbers, or levels no integer.
        InvalidValueError: levels outside 2 .. 256, or x an integer tensor on a CPU with a value outside [0, levels).
    """
    if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
        raise InvalidTypeError(f"to_unit_range: x must be a tensor of integers or floats, got {described(x)}")
    levels = _check_levels("to_unit_range", x, levels)
    return (2.0 * x.float() + 1.0) / levels - 1.0


def _check_levels(where: str, x: Tensor, levels: object) -> int:
    """Return the number of levels, checked; check the values of x where that costs next to nothing."""
    levels = whole_number(where, "levels", levels)
    if not 2 <= levels <= 256:
        raise InvalidValueError(f"{where}: levels must be in 2 .. 256, got {levels}")
    if not x.is_floating_point() and x.numel() and values_visible(x):
        low, high = (int(value) for value in x.aminmax())
        if low < 0 or high >= levels:
            raise InvalidValueError(f"{where}: x must have values in [0, {levels}), got {low} to {high}")
    return levels


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
            coarse = (m + ROUNDER.value).sub_(ROUNDER.value)
            high = (coarse * levels).sub_(nearest, alpha=2.0).add_(levels - 1.0)
            low = (m - coarse).mul_(levels)
            first = (nearest - reach).clamp_(0.0, levels - width).sub_(nearest)
            yield rows, columns, x[rows, columns] - nearest, high, low, c.expand_as(m).contiguous(), first, width


def _window(c: Tensor, levels: int) -> tuple[int, int]:
    """Distance of the farthest level that counts, and the number of levels to sum. On a GPU all levels are summed,
    since reading c would wait for the device.
    """
    smallest = -2.0 * float(c.max()) if c.device.type == "cpu" else 0.0
    if not smallest > 0.0:  # a NaN too
        return levels, levels
    reach = int(min(math.sqrt(0.25 + 2.0 * NEGLIGIBLE.value / smallest) + 0.5, levels))
    return reach, min(2 * reach + 1, levels)


def nll_reference(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Tensor:
    """Plain PyTorch, one chunk of elements and one level of the window at a time."""
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
    """Gradients to mean and to logvar; the latter is summed over a sample if logvar is [B]."""
    grad_mean = torch.empty(flat(mean).shape, dtype=mean.dtype, device=mean.device)
    grad_logvar = torch.zeros(flat(logvar).shape, dtype=torch.float32, device=mean.device)
    for rows, columns, j_x, high, low, c, j, width in _chunks(x, mean, logvar, levels):
        u, term, scaled = torch.empty_like(j), torch.empty_like(j), c * LOG2_E.value
        total, sum_j, sum_u = torch.zeros_like(j), torch.zeros_like(j), torch.zeros_like(j)
        for _ in range(width):
            torch.sub(j, high, out=u).sub_(low).mul_(j)
            total.add_(torch.mul(u, scaled, out=term).exp2_())
            sum_j.addcmul_(term, j)
            sum_u.addcmul_(term, u)
            j.add_(1.0)
        torch.sub(j_x, high, out=u).sub_(low).mul_(j_x)
        c.mul_(-grad[rows, None])
        grad_mean[rows, columns] = sum_j.div_(total).sub_(j_x).mul_(c).mul_(levels)
        sum_u.div_(total).sub_(u).mul_(c)
        if grad_logvar.shape == grad_mean.shape:
            grad_logvar[rows, columns] = sum_u
        else:
            grad_logvar[rows] += sum_u.sum(1, keepdim=True)
    grad_logvar = grad_logvar.view(logvar.shape).to(logvar.dtype)
    return in_layout_of(grad_mean.view(mean.shape), mean), in_layout_of(grad_logvar, logvar)


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
