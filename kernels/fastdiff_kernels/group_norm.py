"""GroupNorm, an optional scale and shift per sample and channel, and SiLU, without a copy of channels-last data.

    y = silu(v),   v = (xhat weight + bias) (1 + scale) + shift,   xhat = (x - mean_g) rstd_g,   rstd = (var + eps)^-½

(Wu and He 2018, eq. 1 to 3; scale and shift: Perez et al. 2018.) mean_g and var_g run over the channels of a group and
all pixels of one sample; var is the mean of (x - mean)², never E[x²] - E[x]². x, y [B, C, ...] float32, bfloat16 or
float16; weight, bias float32 [C]; scale, shift [B, C]; arithmetic in float32. With d = grad silu'(v), A = weight
(1 + scale), and per sample and channel S1 = Σ d, S2 = Σ d xhat,

    dx = rstd (A d - mean_g(A d) - xhat mean_g(A d xhat)),   the means from A S1 and A S2
    dshift = S1,   dscale = weight S2 + bias S1,   dweight = Σ_b (1 + scale) S2,   dbias = Σ_b (1 + scale) S1

Bytes per element in fp32: 8 forward where a group fits on a multiprocessor (read x, write y), else 12 (x is read once
more for its statistics); 20 backward (read x and grad for the sums, and again to write dx). Sums are taken in two
stages without atomics, so they are deterministic. A kernel sees x as [pixels, channels] in either memory order.

Largest error against float64, of the largest entry: 2e-7 for y and 1e-6 for the gradients in float32 (4e-6 for those to
weight and bias over 40000 pixels); at mean 1000 and standard deviation 1, 7e-5 and 3e-4, where mean itself is rounded.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_data, check_vector
from .group_norm_kernels import dense_of, forward_triton, gradient_triton, laid_out_like, result_like
from .launch import register

CHUNK = 1 << 16  # elements of a temporary of the reference on a CPU


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
        x: data [B, C, ...], float32, bfloat16 or float16; fastest where channels-last or contiguous.
        groups: number of groups, a divisor of C.
        weight, bias: float32 [C].
        scale, shift: [B, C], float32 or the dtype of x; both or neither.
        eps: added to the variance.

    Differentiable in x, weight, bias, scale and shift.

    Raises:
        TypeError, ValueError: a dtype, shape, device or combination that does not fit, named with what is allowed.
    """
    where = "group_norm_silu"
    check_data(where, "x", x, min_dim=2)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"{where}: groups is a {type(groups).__name__}; allowed: an int that divides the channels")
    if groups < 1 or not x.shape[1] or x.shape[1] % groups:
        raise ValueError(f"{where}: groups is {groups} for {x.shape[1]} channels; allowed: a divisor of the channels")
    check_vector(where, "weight", weight, x.shape[1], x, "x")
    check_vector(where, "bias", bias, x.shape[1], x, "x")
    if (scale is None) != (shift is None):
        raise ValueError(f"{where}: allowed: both scale and shift, or neither; one of them was given")
    _check_modulation("scale", scale, x)
    _check_modulation("shift", shift, x)
    if not eps >= 0.0:
        raise ValueError(f"{where}: eps is {eps}; allowed: a number >= 0")
    return _forward_op(x, groups, weight, bias, scale, shift, float(eps))[0]


def _check_modulation(name: str, value: object, x: Tensor) -> None:
    if value is None:
        return
    check_data("group_norm_silu", name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in (torch.float32, x.dtype):
        raise TypeError(
            f"group_norm_silu: {name} is {value.dtype}; allowed: torch.float32 or the dtype of x, {x.dtype}"
        )
    if value.shape != x.shape[:2] or value.device != x.device:
        raise ValueError(
            f"group_norm_silu: {name} is {tuple(value.shape)} on {value.device}; "
            f"allowed: {tuple(x.shape[:2])} on {x.device}, as x of shape {tuple(x.shape)}"
        )


def _rows(x: Tensor, last: bool) -> Tensor:
    """A dense x in float32 as it lies in memory: [B, pixels, C] if channels-last, else [B, C, pixels]."""
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2:].numel()
    shape = (batch, pixels, channels) if last else (batch, channels, pixels)
    return (x.movedim(1, -1) if last else x).reshape(shape).float()


def _from_rows(rows: Tensor, dense: Tensor, x: Tensor) -> Tensor:
    """Undo `_rows` and `dense_of`: the shape, dtype and layout of x."""
    return result_like(rows.to(x.dtype).as_strided(dense.shape, dense.stride()), dense, x)


def _gain_and_offset(weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """A and b of v = A xhat + b, float32 [C], or [B, C] where there is a scale."""
    if scale is None or shift is None:
        return weight, bias
    factor = 1.0 + scale.float()
    return weight * factor, torch.addcmul(shift.float(), bias, factor)


def _spread(value: Tensor, channels: int) -> Tensor:
    """[..., groups] to [..., channels]."""
    return value.unsqueeze(-1).expand(*value.shape, channels // value.shape[-1]).flatten(-2)


def _line(centre: Tensor, rstd: Tensor, gain: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of v = a x + b, float32 [B, C], from the mean of each channel's group."""
    a = (gain.unflatten(-1, (rstd.shape[1], -1)) * rstd.unsqueeze(2)).view(centre.shape)
    return a, torch.addcmul(offset, a, centre, value=-1.0)


def _affine(rows: Tensor, dim: int, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """rows · a + b for a, b [B, C]; one pass over the data where the channels are innermost."""
    if dim == 1:
        return torch.addcmul(b.unsqueeze(1), rows, a.unsqueeze(1), out=out)
    return torch.mul(rows, a.unsqueeze(2), out=out).add_(b.unsqueeze(2))


def _dot(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Σ a · b over the pixels, [B, C]; on a CPU a few samples at a time, so that the products stay in its cache."""
    size = max(1, CHUNK // a[0].numel())
    if a.device.type != "cpu" or size >= len(a):
        return (a * b).sum(dim)
    return torch.cat([(u * v).sum(dim) for u, v in zip(a.split(size), b.split(size), strict=True)])


def forward_reference(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain PyTorch, arithmetic in float32: y, mean and rstd, the last two float32 [B, groups].

    PyTorch's own channels-last statistics on a CPU are E[x²] - E[x]², so they are taken here, in two passes.
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
        centre = _spread(mean, channels)
        y = torch.ops.aten.mse_loss(rows, centre.unsqueeze(1), 0)  # (x - mean)² in one pass
        rstd = y.sum(1).view(shape).sum(2).mul_(1.0 / count).add_(eps).rsqrt_()
        y = _affine(rows, 1, *_line(centre, rstd, gain, offset), out=y)
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
    """dx, and S1 and S2 as float32 [2, B, C]; in float32 dx is the only tensor of the size of x."""
    batch, channels = x.shape[:2]
    if not x.numel():
        return torch.empty_like(x), x.new_zeros(2, batch, channels, dtype=torch.float32)
    dense, last = dense_of(x)
    rows, upstream = _rows(dense, last), _rows(laid_out_like(grad, dense, last), last)
    shape, dim = (2, batch, mean.shape[1], channels // mean.shape[1]), 1 if last else 2
    centre = _spread(mean, channels)
    a, b = _line(centre, rstd, *_gain_and_offset(weight, bias, scale, shift))
    d = _affine(rows, dim, a, b)
    torch.ops.aten.silu_backward.grad_input(upstream, d, grad_input=d)
    s1 = d.sum(dim)
    by_distance = torch.addcmul(_dot(d, rows, dim), centre, s1, value=-1.0)  # Σ d (x - mean) = S2 / rstd
    sums = torch.stack([s1, by_distance])
    level, slope = (a * sums).view(shape).sum(3).mul_(channels / rows[0].numel() / shape[3])
    slope = slope * rstd * rstd
    level, slope = _spread(torch.stack([slope * mean - level, -slope]), channels)
    out = _affine(d, dim, a, level, out=d)
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
    by_x, (s1, s2) = _gradient_op(grad, x, mean, rstd, weight, bias, scale, shift)
    if scale is None:
        return by_x, None, s2.sum(0), s1.sum(0), None, None, None
    factor = 1.0 + scale.float()
    by_scale = torch.addcmul(weight * s2, bias, s1).to(scale.dtype)
    return by_x, None, (factor * s2).sum(0), (factor * s1).sum(0), by_scale, s1.to(shift.dtype), None


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
