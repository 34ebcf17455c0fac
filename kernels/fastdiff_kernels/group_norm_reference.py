"""The plain-PyTorch half of `group_norm`: any device, arithmetic in float32, and the path of data on a CPU.

Data are rows in memory order: [B, pixels, C] if they are channels-last, else [B, C, pixels]. To add pre_shift alone
needs no pass, since x + pre_shift - mean = x - origin with an origin per channel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .group_norm_layout import dense_of, empty_gradients, inputs_like, laid_out, no_result, result_like

CHUNK = 1 << 16  # elements of a temporary on a CPU, so that it fits in the cache


def forward_reference(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
    pre_shift: Tensor | None, residual: Tensor | None, skip: Tensor | None, activation: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return y, the total (no elements without residual and skip), and mean and rstd as float32 [B, groups]."""
    if not x.numel():
        return no_result(x, groups, weight, residual, skip)
    dense, last = dense_of(x)
    u, total = dense, x.new_empty(0)
    if residual is not None or skip is not None:
        u = _total(dense, pre_shift, residual, skip, last)
        total, pre_shift = result_like(u, dense, x), None
    gain, offset = _gain_and_offset(weight, bias, scale, shift)
    added = None if pre_shift is None else pre_shift.float()
    y, mean, rstd = (_forward_last if last else _forward_first)(_rows(u, last), added, groups, gain, offset, eps)
    if activation:
        F.silu(y, inplace=True)
    return _from_rows(y, u, x), total, mean, rstd


def _total(x: Tensor, pre_shift: Tensor | None, residual: Tensor | None, skip: Tensor | None, last: bool) -> Tensor:
    """[x + pre_shift + residual, skip], added in float32 and rounded to the dtype of x."""
    total = x.float() if residual is None else torch.add(x.float(), laid_out(residual, last))
    if pre_shift is not None:
        pre_shift = pre_shift.view(*x.shape[:2], *(1,) * (x.dim() - 2))
        total = total + pre_shift if residual is None else total.add_(pre_shift)
    total = total.to(x.dtype)
    if skip is None:
        return total
    parts = [_in_rows(part, last) for part in (total, laid_out(skip, last))]
    rows, pixels = torch.cat(parts, 2 if last else 1), x.shape[2:]  # on a CPU faster than two strided copies
    return rows.view(len(x), *pixels, -1).movedim(-1, 1) if last else rows.view(len(x), -1, *pixels)


def _in_rows(x: Tensor, last: bool) -> Tensor:
    """A dense x in its memory order: [B, pixels, C] if channels-last (``last``), else [B, C, pixels]."""
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2:].numel()
    shape = (batch, pixels, channels) if last else (batch, channels, pixels)
    return (x.movedim(1, -1) if last else x).reshape(shape)


def _rows(x: Tensor, last: bool) -> Tensor:
    """The same in float32."""
    return _in_rows(x, last).float()


def _from_rows(rows: Tensor, dense: Tensor, x: Tensor) -> Tensor:
    """Undo `_rows` and `dense_of`: give ``rows`` the shape of ``dense``, the dtype of x, and its layout."""
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


def _origin(mean: Tensor, channels: int, added: Tensor | None) -> Tensor:
    """What to subtract from x: the mean of each channel's group, less what is added to x: [B, channels]."""
    origin = _spread(mean, channels)
    if added is not None:
        origin = origin - added  # not in place: with one channel per group it is a view of the mean
    return origin


def _line(origin: Tensor, rstd: Tensor, gain: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of v = a x + b, float32 [B, C]."""
    a = (gain.unflatten(-1, (rstd.shape[1], -1)) * rstd.unsqueeze(2)).view(origin.shape)
    return a, torch.addcmul(offset, a, origin, value=-1.0)


def _affine(rows: Tensor, dim: int, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """rows · a + b for a, b [B, C], in one pass over the data if the channels are innermost (``dim`` 1)."""
    if dim == 1:
        return torch.addcmul(b.unsqueeze(1), rows, a.unsqueeze(1), out=out)
    return torch.mul(rows, a.unsqueeze(2), out=out).add_(b.unsqueeze(2))


def _forward_last(
    rows: Tensor, added: Tensor | None, groups: int, gain: Tensor, offset: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """v of channels-last rows, mean and rstd. PyTorch takes their variance on a CPU as E[x²] - E[x]², here (x - mean)²
    is averaged.
    """
    batch, pixels, channels = rows.shape
    shape, count = (batch, groups, channels // groups), pixels * (channels // groups)
    sums = rows.sum(1)
    if added is not None:
        sums.add_(added, alpha=pixels)
    mean = sums.view(shape).sum(2).mul_(1.0 / count)
    origin = _origin(mean, channels, added)
    v = torch.ops.aten.mse_loss(rows, origin.unsqueeze(1), 0)  # (x - origin)² in one pass
    rstd = v.sum(1).view(shape).sum(2).mul_(1.0 / count).add_(eps).rsqrt_()
    return _affine(rows, 1, *_line(origin, rstd, gain, offset), out=v), mean, rstd


def _forward_first(
    rows: Tensor, added: Tensor | None, groups: int, gain: Tensor, offset: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """v of contiguous rows, mean and rstd, by PyTorch's own norm."""
    if added is not None:
        rows = rows + added.unsqueeze(2)
    batch, channels, pixels = rows.shape
    if gain.dim() == 1:
        v, mean, rstd = torch.native_group_norm(rows, gain, offset, batch, channels, pixels, groups, eps)
    else:  # samples as channels: a weight per sample
        sizes = batch * channels, pixels, batch * groups
        rows, gain, offset = rows.view(1, -1, pixels), gain.flatten(), offset.flatten()
        v, mean, rstd = torch.native_group_norm(rows, gain, offset, 1, *sizes, eps)
    return v.view(batch, channels, pixels), mean.view(batch, groups), rstd.view(batch, groups)


def gradient_reference(
    grad: Tensor, grad_total: Tensor | None, u: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
    scale: Tensor | None, shift: Tensor | None, pre_shift: Tensor | None, of_x: int, activation: bool, summed: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients, in the order of `group_norm_layout.empty_gradients`; u is x, or the total.

    For float32 data without a skip, dx is the only tensor of its size.
    """
    if not u.numel():
        return [value.zero_() for value in empty_gradients(u, of_x, weight, scale, shift, pre_shift)]
    dense, last = dense_of(u)
    dim, shape = 1 if last else 2, (2, *mean.shape, len(weight) // mean.shape[1])
    rows, d = _rows(dense, last), _rows(laid_out(grad, last), last)
    origin = _origin(mean, len(weight), None if summed or pre_shift is None else pre_shift.float())
    a, b = _line(origin, rstd, *_gain_and_offset(weight, bias, scale, shift))
    if activation:
        v = _affine(rows, dim, a, b)
        d = torch.ops.aten.silu_backward.grad_input(d, v, grad_input=v)
    s1 = d.sum(dim)
    sum_d_u = torch.addcmul(_dot(d, rows, dim), origin, s1, value=-1.0)  # Σ d (u - mean) = S2 / rstd
    sums = torch.stack([s1, sum_d_u])
    means = (a * sums).view(shape).sum(3).mul_(-1.0 / (rows.shape[dim] * shape[3]))
    means[1].mul_(rstd).mul_(rstd)
    mean_d, slope = _spread(means, len(weight))
    du = _affine(d, dim, a, torch.addcmul(mean_d, slope, origin, value=-1.0), out=d if activation else None)
    du = du.addcmul_(rows, slope.unsqueeze(1)) if last else du.add_(rows * slope.unsqueeze(2))
    if grad_total is not None:
        du.add_(_rows(laid_out(grad_total, last), last))
    sums[1].view(shape[1:]).mul_(rstd.unsqueeze(2))
    dx, *dskip = _inputs(du, dense, u, of_x)
    results = [dx, *_affine_gradients(sums, weight, bias, scale, shift)]
    if pre_shift is not None:
        results.append(du.narrow(3 - dim, 0, of_x).sum(dim).to(pre_shift.dtype))
    return [*results, *dskip]


def _inputs(du: Tensor, dense: Tensor, u: Tensor, of_x: int) -> list[Tensor]:
    """dx, and dskip if there are further channels, dense and in the dtype and layout of u."""
    whole = _from_rows(du, dense, u)
    if of_x == u.shape[1]:
        return [whole]
    return [out.copy_(part) for out, part in zip(inputs_like(u, of_x), whole.tensor_split([of_x], 1), strict=True)]


def _dot(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Σ a · b over the pixels, [B, C]. On a CPU a few samples at a time, so that the products fit in its cache."""
    size = max(1, CHUNK // a[0].numel())
    if a.device.type != "cpu" or size >= len(a):
        return (a * b).sum(dim)
    return torch.cat([(u * v).sum(dim) for u, v in zip(a.split(size), b.split(size), strict=True)])


def _affine_gradients(
    sums: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None
) -> list[Tensor]:
    """The gradients to weight and bias, and to scale and shift if there are any, from S1 and S2."""
    s1, s2 = sums
    if scale is None or shift is None:
        return [s2.sum(0), s1.sum(0)]
    factor = 1.0 + scale.float()
    grad_scale = torch.addcmul(weight * s2, bias, s1).to(scale.dtype)
    return [(factor * s2).sum(0), (factor * s1).sum(0), grad_scale, s1.to(shift.dtype, copy=True)]
