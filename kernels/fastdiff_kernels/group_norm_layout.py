"""Memory layouts of the data of `group_norm`: channels-last or contiguous, without a copy of either."""

import torch
from torch import Tensor

from .launch import in_layout_of


def is_last(x: Tensor) -> bool:
    """Whether x [B, C, ...] is dense and its channels are adjacent in memory."""
    if x.dim() == 4:  # faster, since no view is made
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def dense_of(x: Tensor) -> tuple[Tensor, bool]:
    """Return x, or a copy if x is neither channels-last nor contiguous, and whether the result is channels-last."""
    if is_last(x):
        return x, True
    if x.is_contiguous():
        return x, False
    like = torch.empty_like(x)
    return (like.copy_(x), True) if is_last(like) else (x.contiguous(), False)


def laid_out(value: Tensor, last: bool) -> Tensor:
    """Return ``value`` in channels-last layout, or contiguous; a copy only if it has another layout."""
    if not last:
        return value.contiguous()
    return value if is_last(value) else empty(value.shape, value, True).copy_(value)


def empty(shape: tuple[int, ...], like: Tensor, last: bool) -> Tensor:
    """Allocate [B, C, ...] of the dtype and on the device of ``like``, channels-last or contiguous."""
    if not last:
        return like.new_empty(shape)
    if len(shape) == 4:
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return like.new_empty(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def joined_like(x: Tensor, channels: int) -> Tensor:
    """Allocate the result for x: like x, or of more channels if a second source follows those of x.

    The layout is then channels-last if that of x, or of ``torch.empty_like(x)``, is; else contiguous.
    """
    if channels == x.shape[1]:
        return torch.empty_like(x)
    last = is_last(x) or not (x.is_contiguous() or not is_last(torch.empty_like(x)))
    return empty((x.shape[0], channels, *x.shape[2:]), x, last)


def result_like(out: Tensor, dense: Tensor, x: Tensor) -> Tensor:
    """Return ``out``, which has the layout of ``dense``, in the layout of x; as it is if it has more channels.

    Without the comparison `in_layout_of` would allocate a tensor only to find that nothing has to be done.
    """
    return out if dense is x or out.shape != x.shape else in_layout_of(out, x)


def empty_gradients(
    u: Tensor, of_x: int, weight: Tensor, scale: Tensor | None, shift: Tensor | None, pre_shift: Tensor | None
) -> list[Tensor]:
    """Allocate the gradients to x, weight, bias, then to scale, shift, pre_shift and skip as far as there are any.

    u: x or the total; ``of_x``: the channels of u that belong to x, the others belong to skip.
    """
    dx, *dskip = inputs_like(u, of_x)
    found = [dx, weight.new_empty(weight.shape), weight.new_empty(weight.shape)]
    found += [value.new_empty(value.shape) for value in (scale, shift, pre_shift) if value is not None]
    return [*found, *dskip]


def inputs_like(u: Tensor, of_x: int) -> list[Tensor]:
    """Allocate tensors like the channels of u that belong to x and to skip; only the first if there is no skip."""
    if of_x == u.shape[1]:
        return [torch.empty_like(u)]
    last = is_last(u)
    return [empty((u.shape[0], width, *u.shape[2:]), u, last) for width in (of_x, u.shape[1] - of_x)]


def no_result(
    x: Tensor, groups: int, weight: Tensor, residual: Tensor | None, skip: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results for an x without elements."""
    mean, rstd = (x.new_zeros(x.shape[0], groups, dtype=torch.float32) for _ in range(2))
    return joined_like(x, len(weight)), total_like(x, len(weight), residual, skip), mean, rstd


def total_like(x: Tensor, channels: int, residual: Tensor | None, skip: Tensor | None) -> Tensor:
    """Allocate the total, which has no elements if there is neither a residual nor a skip."""
    return x.new_empty(0) if residual is None and skip is None else joined_like(x, channels)
