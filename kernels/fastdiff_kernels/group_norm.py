"""GroupNorm, an optional scale and shift per sample and channel, and SiLU, without copying channels-last data.

    y = silu(v),   v = (xhat weight + bias) (1 + scale) + shift,   xhat = (x - mean_g) rstd_g,   rstd = (var + eps)^-½

(Wu and He 2018, eq. 1 to 3; scale and shift: Perez et al. 2018). mean_g and var_g are taken over the channels of a
group and all pixels of one sample; var is the mean of (x - mean)², not E[x²] - E[x]². x, y [B, C, ...] are float32,
bfloat16 or float16, weight and bias float32 [C], scale and shift [B, C], and arithmetic is float32. With
d = grad silu'(v), A = weight (1 + scale), and per sample and channel S1 = Σ d and S2 = Σ d xhat, the gradients are

    dx = rstd (A d - mean_g(A d) - xhat mean_g(A d xhat)),   the means from A S1 and A S2
    dshift = S1,   dscale = weight S2 + bias S1,   dweight = Σ_b (1 + scale) S2,   dbias = Σ_b (1 + scale) S1

Bytes per element in fp32: 8 forward if a group fits on a multiprocessor (read x, write y), else 12 (x is read once more
for its statistics); 20 backward (read x and grad for the sums, and again to write dx). Sums are taken in two stages
without atomics, so they are deterministic.

In float32, y differs from float64 by at most 2e-7 of the largest entry, and the gradients by 1e-6 (those to weight and
bias over 40000 pixels by 4e-6). At mean 1000 and standard deviation 1 it is 7e-5 and 3e-4, since the mean is rounded.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_data, check_vector, described, real_number
from .errors import InvalidTypeError, InvalidValueError
from .group_norm_gradient import gradient_triton
from .group_norm_kernels import dense_of, forward_triton, laid_out_like, result_like
from .registration import register

CHUNK = 1 << 16  # elements of a temporary of the reference on a CPU, so that it fits in the cache


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return silu((xhat weight + bias) (1 + scale) + shift) in the dtype and layout of x.

    Args:
        x: data [B, C, ...], float32, bfloat16 or float16. Only data that are neither channels-last nor contiguous are
            copied.
        groups: number of groups, a divisor of C.
        weight, bias: float32 [C].
        scale, shift: [B, C], float32 or the dtype of x; both or neither.
        eps: added to the variance, >= 0.

    Differentiable in x, weight, bias, scale and shift.

    Raises:
        InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype, shape, device or value.
    """
    where = "group_norm_silu"
    check_data(where, "x", x, min_dim=2)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise InvalidTypeError(f"{where}: groups must be an int, got {described(groups)}")
    if groups < 1 or not x.shape[1] or x.shape[1] % groups:
        raise InvalidValueError(f"{where}: groups must divide the {x.shape[1]} channels of x, got {groups}")
    check_vector(where, "weight", weight, x.shape[1], x, "x")
    check_vector(where, "bias", bias, x.shape[1], x, "x")
    if (scale is None) != (shift is None):
        raise InvalidValueError(f"{where}: scale and shift must be both tensors or both None, got only one tensor")
    _check_modulation("scale", scale, x)
    _check_modulation("shift", shift, x)
    eps = real_number(where, "eps", eps)
    if not eps >= 0.0:
        raise InvalidValueError(f"{where}: eps must be >= 0, got {eps}")
    return _forward_op(x, groups, weight, bias, scale, shift, eps)[0]


def _check_modulation(name: str, value: object, x: Tensor) -> None:
    if value is None:
        return
    check_data("group_norm_silu", name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in (torch.float32, x.dtype):
        wanted = f"torch.float32 or the dtype of x, {x.dtype}"
        raise InvalidTypeError(f"group_norm_silu: {name} must be {wanted}, got {value.dtype}")
    if value.shape != x.shape[:2] or value.device != x.device:
        wanted = f"of shape {tuple(x.shape[:2])} on {x.device}, like x"
        raise InvalidValueError(f"group_norm_silu: {name} must be {wanted}, got {described(value)}")


def _rows(x: Tensor, last: bool) -> Tensor:
    """A dense x in float32 in its memory order: [B, pixels, C] if channels-last (``last``), else [B, C, pixels]."""
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2:].numel()
    shape = (batch, pixels, channels) if last else (batch, channels, pixels)
    return (x.movedim(1, -1) if last else x).reshape(shape).float()


def _from_rows(rows: Tensor, dense: Tensor, x: Tensor) -> Tensor:
    """Undo `_rows` and `dense_of`: give ``rows`` the shape, dtype and layout of x."""
    return result_like(rows.to(x.dtype).as_strided(dense.shape, dense.stride()), dense, x)


def _gain_and_offset(weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """A and b of v = A xhat + b, float32 [C], or [B, C] if there is a scale."""
    if scale is None or shift is None:
        return weight, bias
    factor = 1.0 + scale.float()
    return weight * factor, torch.addcmul(shift.float(), bias, factor)


def _spread(value: Tensor, channels: int) -> Tensor:
    """Repeat a value per group, [..., groups], for each of its channels: [..., channels]."""
    return value.unsqueeze(-1).expand(*value.shape, channels // value.shape[-1]).flatten(-2)


def _line(channel_mean: Tensor, rstd: Tensor, gain: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of v = a x + b, float32 [B, C], from the mean of each channel's group."""
    a = (gain.unflatten(-1, (rstd.shape[1], -1)) * rstd.unsqueeze(2)).view(channel_mean.shape)
    return a, torch.addcmul(offset, a, channel_mean, value=-1.0)


def _affine(rows: Tensor, dim: int, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """rows · a + b for a, b [B, C], in one pass over the data if the channels are innermost."""
    if dim == 1:
        return torch.addcmul(b.unsqueeze(1), rows, a.unsqueeze(1), out=out)
    return torch.mul(rows, a.unsqueeze(2), out=out).add_(b.unsqueeze(2))


def _dot(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Σ a · b over the pixels, [B, C]. On a CPU a few samples at a time, so that the products fit in its cache."""
    size = max(1, CHUNK // a[0].numel())
    if a.device.type != "cpu" or size >= len(a):
        return (a * b).sum(dim)
    return torch.cat([(u * v).sum(dim) for u, v in zip(a.split(size), b.split(size), strict=True)])


def forward_reference(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain PyTorch, arithmetic in float32. Return y, and mean and rstd as float32 [B, groups].

    PyTorch computes channels-last statistics on a CPU as E[x²] - E[x]², so they are computed here, in two passes.
    """
    batch, channels = x.shape[:2]
    if not x.numel():
        mean, rstd = (x.new_zeros(batch, groups, dtype=torch.float32) for _ in range(2))
        return torch.empty_like(x), mean, rstd
    dense, last = dense_of(x)
    rows = _rows(dense, last)
    gain, offset = _gain_and_offset(weight, bias, scale, shift)
    if last:
        shape, count = (batch, groups, channels // groups), rows[0].numel() // groups
        mean = rows.sum(1).view(shape).sum(2).mul_(1.0 / count)
        channel_mean = _spread(mean, channels)
        y = torch.ops.aten.mse_loss(rows, channel_mean.unsqueeze(1), 0)  # (x - mean)² in one pass
        rstd = y.sum(1).view(shape).sum(2).mul_(1.0 / count).add_(eps).rsqrt_()
        y = _affine(rows, 1, *_line(channel_mean, rstd, gain, offset), out=y)
    elif scale is None:
        y, mean, rstd = torch.native_group_norm(rows, gain, offset, batch, channels, rows.shape[2], groups, eps)
    else:  # samples as channels: a weight per sample
        rows, sizes = rows.view(1, -1, rows.shape[2]), (batch * channels, rows.shape[2], batch * groups)
        y, mean, rstd = torch.native_group_norm(rows, gain.flatten(), offset.flatten(), 1, *sizes, eps)
    return _from_rows(F.silu(y, inplace=True), dense, x), mean.view(batch, groups), rstd.view(batch, groups)


def gradient_reference(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return dx, and S1 and S2 as float32 [2, B, C]. For float32 x, dx is the only tensor of its size."""
    batch, channels = x.shape[:2]
    if not x.numel():
        return torch.empty_like(x), x.new_zeros(2, batch, channels, dtype=torch.float32)
    dense, last = dense_of(x)
    rows, upstream = _rows(dense, last), _rows(laid_out_like(grad, dense, last), last)
    shape, dim = (2, batch, mean.shape[1], channels // mean.shape[1]), 1 if last else 2
    channel_mean = _spread(mean, channels)
    a, b = _line(channel_mean, rstd, *_gain_and_offset(weight, bias, scale, shift))
    d = _affine(rows, dim, a, b)
    torch.ops.aten.silu_backward.grad_input(upstream, d, grad_input=d)
    s1 = d.sum(dim)
    sum_distance = torch.addcmul(_dot(d, rows, dim), channel_mean, s1, value=-1.0)  # Σ d (x - mean) = S2 / rstd
    sums = torch.stack([s1, sum_distance])
    offset, slope = (a * sums).view(shape).sum(3).mul_(channels / rows[0].numel() / shape[3])
    slope = slope * rstd * rstd
    offset, slope = _spread(torch.stack([slope * mean - offset, -slope]), channels)
    out = _affine(d, dim, a, offset, out=d)
    out = out.addcmul_(rows, slope.unsqueeze(1)) if last else out.add_(rows * slope.unsqueeze(2))
    sums[1].view(shape[1:]).mul_(rstd.unsqueeze(2))
    return _from_rows(out, dense, x), sums


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, weight, bias, scale, shift, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *output[1:], weight, bias, scale, shift)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple:
    x, mean, rstd, weight, bias, scale, shift = ctx.saved_tensors
    grad_x, (s1, s2) = _gradient_op(grad, x, mean, rstd, weight, bias, scale, shift)
    if scale is None:
        return grad_x, None, s2.sum(0), s1.sum(0), None, None, None
    factor = 1.0 + scale.float()
    grad_scale = torch.addcmul(weight * s2, bias, s1).to(scale.dtype)
    return grad_x, None, (factor * s2).sum(0), (factor * s1).sum(0), grad_scale, s1.to(shift.dtype), None


def _forward_fake(x: Tensor, groups: int, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[0], groups, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), mean, rstd


_gradient_op = register(
    "group_norm_silu_gradient(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight, Tensor bias, "
    "Tensor? scale, Tensor? shift) -> (Tensor, Tensor)",
    gradient_reference,
    gradient_triton,
    lambda grad, x, *rest: (torch.empty_like(x), x.new_empty(2, *x.shape[:2], dtype=torch.float32)),
)
_forward_op = register(
    "group_norm_silu(Tensor x, int groups, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    forward_reference,
    forward_triton,
    _forward_fake,
    _backward,
    _save,
)
