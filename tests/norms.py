"""Arguments of `group_norm_silu`, its values and gradients, and errors relative to the largest exact entry."""

import torch
from fastdiff_kernels import group_norm_silu, use_backend
from torch import Tensor

PATHS = ("torch", "interpreter")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCES = {torch.float32: 1.1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LAYOUTS = {
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "sliced, channels last": lambda x: LAYOUTS["channels last"](torch.cat([x, x], dim=1))[:, : x.shape[1]],
    "expanded": lambda x: x[:1].expand(x.shape),
    "misaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arguments(shape, dtype=torch.float32, layout="channels last", modulated=True, mean=0.0) -> list[Tensor]:
    x = LAYOUTS[layout]((draw(*shape, seed=0) + mean).to(dtype))
    affine = [draw(shape[1], seed=1), draw(shape[1], seed=2)]
    modulation = draw(shape[0], 2 * shape[1], seed=3).to(dtype).chunk(2, 1)  # rows that are not adjacent
    return [x, *affine, *(modulation if modulated else [])]


def run(function, tensors: list[Tensor], groups: int, upstream: Tensor, **others) -> list[Tensor]:
    """The value and the gradients to all tensors."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(leaves[0], groups, *leaves[1:], **others)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]


def ours(path: str, tensors: list[Tensor], groups: int, upstream: Tensor, **others) -> list[Tensor]:
    with use_backend(path):
        return run(group_norm_silu, tensors, groups, upstream, **others)


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1.0)) if exact.numel() else 0.0


def assert_close(path: str, found: list[Tensor], exact: list[Tensor]) -> None:
    for value, expected in zip(found, exact, strict=True):
        truncated = path == "interpreter" and value.dtype == torch.bfloat16
        allowed = TOLERANCES[value.dtype] * (2.0 if truncated else 1.0)
        assert error(value, expected) <= allowed
