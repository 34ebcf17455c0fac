"""GroupNorm, an optional scale and shift per sample and channel, and SiLU, without copying channels-last data.

    u = [x + pre_shift + residual, skip] on the channels
    y = silu(v),   v = (uhat weight + bias) (1 + scale) + shift,   uhat = (u - mean_g) rstd_g,   rstd = (var + eps)^-½

(Wu and He 2018, eq. 1 to 3; scale and shift: Perez et al. 2018). mean_g and var_g are taken over the channels of a
group and all pixels of one sample; var is the mean of (u - mean)², not E[u²] - E[u]². x [B, Cx, ...] is float32,
bfloat16 or float16, y [B, Cx + Cs, ...] has its dtype, weight and bias are float32 [Cx + Cs], and arithmetic is
float32. ``pre_shift`` [B, Cx], ``residual`` like x, ``skip`` [B, Cs, ...], ``scale`` and ``shift`` [B, Cx + Cs] are
optional. If there is a residual or a skip, u is rounded to the dtype of x, written, and returned as the total, which a
convolution beside the norm can read. Else u is the sum in float32. Backward reads the total, or x, so it differentiates
what was computed.

With d = grad silu'(v) (or grad, without the activation), A = weight (1 + scale), and per sample and channel S1 = Σ d
and S2 = Σ d uhat, the gradients are

    du = rstd (A d - mean_g(A d) - uhat mean_g(A d uhat)),   the means from A S1 and A S2
    dx = dresidual = (du + grad_total) on the channels of x,   dskip = the same on the others,   dpre_shift = Σ dx
    dshift = S1,   dscale = weight S2 + bias S1,   dweight = Σ_b (1 + scale) S2,   dbias = Σ_b (1 + scale) S1

One registered operation computes y and the total, one computes all gradients. Sums are taken in two stages without
atomics, so they are deterministic. Bytes per element of y in fp32, if a group fits on chip (in tiles), and those of
separate operations, the norm itself on chip:

    |              | forward | backward | separate forward | separate backward          |
    | norm         | 8 (12)  | 12 (20)  |                  |                            |
    | + pre_shift  | 8 (12)  | 12 (20)  | 16: add          | 16: sum over the pixels    |
    | + residual   | 16 (20) | 16 (24)  | 20: add          | 24: add of two gradients   |
    | + skip       | 12 (16) | 16 (24)  | 16: concatenate  | 24: add, strided gradients |

In float32 and at mean 0 and standard deviation 1, y differs from float64 by at most 2e-7 of the largest entry, and the
gradients by 1.1e-6 (those to weight and bias over 40000 pixels by 4e-6). At mean 1000 four digits of the data are left:
over groups of 4 to 1536 elements the largest errors found were 1.8e-4 in y and 5.8e-4 in the gradients. A pre_shift of
1000 costs the same digits.
"""

from typing import Any, overload

import torch
from torch import Tensor

from .checks import check_data, check_like, check_vector, described, real_number
from .errors import InvalidTypeError, InvalidValueError
from .group_norm_gradient import gradient_triton
from .group_norm_kernels import forward_triton
from .group_norm_layout import empty_gradients, joined_like, total_like
from .group_norm_reference import forward_reference, gradient_reference
from .group_norm_traced import forward_traced, is_traced
from .registration import register

WHERE = "group_norm_silu"


@overload
def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None = None, shift: Tensor | None = None,
    eps: float = 1e-5, *, pre_shift: Tensor | None = None, residual: None = None, skip: None = None,
    activation: bool = True,
) -> Tensor: ...  # fmt: skip
@overload
def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None = None, shift: Tensor | None = None,
    eps: float = 1e-5, *, pre_shift: Tensor | None = None, residual: Tensor | None = None, skip: Tensor | None = None,
    activation: bool = True,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    *,
    pre_shift: Tensor | None = None,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
    activation: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return y in the dtype and layout of x, or (y, total) if there is a residual or a skip.

    Args:
        x: data [B, Cx, ...], float32, bfloat16 or float16. Only data that are neither channels-last nor contiguous are
            copied.
        groups: number of groups, a divisor of the number of channels, Cx + Cs. A group may hold channels of both.
        weight, bias: float32 [Cx + Cs].
        scale, shift: [B, Cx + Cs], float32 or the dtype of x; both or neither.
        eps: added to the variance, >= 0.
        pre_shift: [B, Cx], float32 or the dtype of x; added to x. Its rows are read by their stride, which may be 0.
        residual: data of the shape of x; added to x. Copied if its layout differs.
        skip: data [B, Cs, ...] with the pixels of x; its channels follow those of x. Copied if its layout or its dtype
            differs.
        activation: whether silu is applied; else y = v.

    Differentiable in all tensors.

    Raises:
        InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype, shape, device or value.
    """
    check_data(WHERE, "x", x, min_dim=2)
    channels = x.shape[1]
    if residual is not None:
        check_like(WHERE, "residual", residual, x, "x")
    if skip is not None:
        channels += _skip_channels(skip, x)
        skip = skip.to(x.dtype)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise InvalidTypeError(f"{WHERE}: groups must be an int, got {described(groups)}")
    if groups < 1 or not x.shape[1] or channels % groups:
        whose = "x" if skip is None else "x and skip"
        raise InvalidValueError(f"{WHERE}: groups must divide the {channels} channels of {whose}, got {groups}")
    check_vector(WHERE, "weight", weight, channels, x, "x")
    check_vector(WHERE, "bias", bias, channels, x, "x")
    if (scale is None) != (shift is None):
        raise InvalidValueError(f"{WHERE}: scale and shift must be both tensors or both None, got only one tensor")
    _check_per_channel("scale", scale, channels, x)
    _check_per_channel("shift", shift, channels, x)
    _check_per_channel("pre_shift", pre_shift, x.shape[1], x)
    if not isinstance(activation, bool):
        raise InvalidTypeError(f"{WHERE}: activation must be a bool, got {described(activation)}")
    eps = real_number(WHERE, "eps", eps)
    if not eps >= 0.0:
        raise InvalidValueError(f"{WHERE}: eps must be >= 0, got {eps}")
    y, total, *_ = _forward(x, groups, weight, bias, scale, shift, pre_shift, residual, skip, activation, eps)
    return y if residual is None and skip is None else (y, total)


def _forward(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Call the registered operation, or what a compiler sees in its place on a CPU."""
    return forward_traced(x, *others) if is_traced(x) else _forward_op(x, *others)


def _check_per_channel(name: str, value: object, channels: int, x: Tensor) -> None:
    if value is None:
        return
    check_data(WHERE, name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in (torch.float32, x.dtype):
        wanted = f"torch.float32 or the dtype of x, {x.dtype}"
        raise InvalidTypeError(f"{WHERE}: {name} must be {wanted}, got {value.dtype}")
    if value.shape != (x.shape[0], channels) or value.device != x.device:
        wanted = f"of shape {(x.shape[0], channels)} on {x.device}, like x"
        raise InvalidValueError(f"{WHERE}: {name} must be {wanted}, got {described(value)}")


def _same_but_channels(skip: Tensor, x: Tensor) -> bool:
    same_pixels = skip.dim() == x.dim() and skip.shape[0] == x.shape[0] and skip.shape[2:] == x.shape[2:]
    return same_pixels and skip.shape[1] > 0


def _skip_channels(skip: object, x: Tensor) -> int:
    check_data(WHERE, "skip", skip)
    assert isinstance(skip, Tensor)
    if not _same_but_channels(skip, x) or skip.device != x.device:
        wanted = f"[{', '.join(map(str, (x.shape[0], 'Cs', *x.shape[2:])))}] on {x.device}, like x"
        raise InvalidValueError(f"{WHERE}: skip must be {wanted}, got {described(skip)}")
    return skip.shape[1]


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, _, weight, bias, scale, shift, pre_shift, residual, skip, ctx.activation, _ = inputs
    _, total, mean, rstd = output
    ctx.summed, ctx.of_x = residual is not None or skip is not None, x.shape[1]
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd, *(() if ctx.summed else (total,)))
    ctx.save_for_backward(total if ctx.summed else x, mean, rstd, weight, bias, scale, shift, pre_shift)


def _backward(ctx: Any, grad: Tensor | None, grad_total: Tensor | None, *_: Tensor) -> tuple:
    u, mean, rstd, weight, bias, scale, shift, pre_shift = ctx.saved_tensors
    if grad is None:  # only the total was used
        grad = torch.zeros_like(u)
    if not ctx.summed:
        grad_total = None
    others = weight, bias, scale, shift, pre_shift
    found = iter(_gradient_op(grad, grad_total, u, mean, rstd, *others, ctx.of_x, ctx.activation, ctx.summed))
    grad_x = next(found)
    others = [None if value is None else next(found) for value in others]
    # x and the residual get the same tensor, as both addends do in PyTorch's own add
    grad_residual = None if ctx.residual_dtype is None else grad_x.to(ctx.residual_dtype)
    return grad_x, None, *others, grad_residual, next(found, None), None, None


def _forward_fake(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
    pre_shift: Tensor | None, residual: Tensor | None, skip: Tensor | None, *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    mean, rstd = (x.new_empty(x.shape[0], groups, dtype=torch.float32) for _ in range(2))
    return joined_like(x, weight.shape[0]), total_like(x, weight.shape[0], residual, skip), mean, rstd


def _gradient_fake(
    grad: Tensor, grad_total: Tensor | None, u: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
    scale: Tensor | None, shift: Tensor | None, pre_shift: Tensor | None, of_x: int, *rest: Any,
) -> list[Tensor]:  # fmt: skip
    return empty_gradients(u, of_x, weight, scale, shift, pre_shift)


_gradient_op = register(
    "group_norm_silu_gradient(Tensor grad, Tensor? grad_total, Tensor u, Tensor mean, Tensor rstd, Tensor weight, "
    "Tensor bias, Tensor? scale, Tensor? shift, Tensor? pre_shift, int of_x, bool activation, bool summed) "
    "-> Tensor[]",
    gradient_reference,
    gradient_triton,
    _gradient_fake,
)
_forward_op = register(
    "group_norm_silu(Tensor x, int groups, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, "
    "Tensor? pre_shift, Tensor? residual, Tensor? skip, bool activation, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    forward_reference,
    forward_triton,
    _forward_fake,
    _backward,
    _save,
)
