"""`group_norm` as plain operations that a compiler fuses with their neighbours: the path of ``torch.compile`` on a CPU.

There the registered operation would be opaque, and all passes over the data that eager mode makes would remain. On a
GPU the kernel takes fewer passes than a compiler finds.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ._torch_private import constant_result
from .backend import backend
from .group_norm_layout import dense_of


@constant_result
def reference_on_cpu() -> bool:
    """Whether the reference runs on a CPU, and not the interpreter; asked while a function is traced."""
    return backend() != "interpreter"


def is_traced(x: Tensor) -> bool:
    """Whether a compiler is tracing an operation on a CPU, whose data may not be empty."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() > 0 and reference_on_cpu()


def forward_traced(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
    pre_shift: Tensor | None, residual: Tensor | None, skip: Tensor | None, activation: bool, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return y and the total, which is u in the dtype of x; both in the layout of x. Differentiable as it is.

    The variance of ``var_mean`` is accurate at any mean, as is that of the kernels.
    """
    x, last = dense_of(x)
    pixels = (1,) * (x.dim() - 2)
    u = x.float()
    if pre_shift is not None:
        u = u + pre_shift.unflatten(1, (-1, *pixels))
    if residual is not None:
        u = u + residual
    if residual is not None or skip is not None:
        u = u.to(x.dtype)
    if skip is not None:
        u = torch.cat([u, skip], dim=1)
    rows = u.movedim(1, -1) if last else u
    grouped = rows.float().unflatten(-1 if last else 1, (groups, -1))  # [B, ..., groups, C / groups] or [B, groups, ..]
    dims = [*range(1, grouped.dim() - 2), grouped.dim() - 1] if last else list(range(2, grouped.dim()))
    var, mean = torch.var_mean(grouped, dims, correction=0, keepdim=True)
    v = ((grouped - mean) * torch.rsqrt(var + eps)).view(rows.shape)
    v = v.movedim(-1, 1) if last else v
    v = v * weight.unflatten(0, (-1, *pixels)) + bias.unflatten(0, (-1, *pixels))
    if scale is not None and shift is not None:
        v = v * (1.0 + scale.float().unflatten(1, (-1, *pixels))) + shift.float().unflatten(1, (-1, *pixels))
    return (F.silu(v) if activation else v).to(x.dtype), u
