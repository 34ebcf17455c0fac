"""Discretised Gaussian likelihood over the levels of the data, without a tensor of size [..., levels].

    -log p(x | mean) = -log softmax_k( -½ e^{-logvar} (mean - x_k)² ) at k = x,   x_k = (2k + 1) / levels - 1

(Kingma et al. 2021, appendix B: a Gaussian evaluated at the bin centres and normalised over them.) VDM passes mean =
z_0 / alpha_0 and logvar = gamma_0; a VAE its decoder's output. x uint8 [B, ...] in [0, levels); mean [B, ...] float32,
bfloat16 or float16; logvar float32 [B] or like mean; result float32 [B] in nats; arithmetic in float32. The reference
works on a chunk of elements at a time; there is no Triton version yet.

With e = e^{-logvar} and expectations over the softmax, the gradients are e (E[x_k] - x) to mean and
½ e (E[(mean - x_k)²] - (mean - x)²) to logvar.
"""

from typing import Any

import torch
from torch import Tensor

from .checks import check_data, check_like, check_vector
from .launch import in_layout_of, per_sample, register

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}  # floats of the [elements, levels] temporary: a cache, or 128 MiB


def decoder_nll(x: Tensor, mean: Tensor, logvar: Tensor, levels: int = 256) -> Tensor:
    """Return -log p(x | mean, logvar) in nats for every sample, float32 [B].

    Args:
        x: data uint8 [B, ...], values in [0, levels) (not checked: that would wait for the device).
        mean: float32, bfloat16 or float16, like x in shape.
        logvar: log-variance, float32 [B] or like mean.
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
    if isinstance(logvar, Tensor) and logvar.dim() == mean.dim() and mean.dim() > 1:
        check_like("decoder_nll", "logvar", logvar, mean, "mean")
    else:
        check_vector("decoder_nll", "logvar", logvar, mean.shape[0], mean, "mean")
        logvar = per_sample(logvar, mean).expand(mean.shape)
    if not 2 <= levels <= 256:
        raise ValueError(f"decoder_nll: levels is {levels}; allowed: 2 to 256")
    return _nll_op(x, mean, logvar, levels)


def level_centres(levels: int, device: torch.device | str | None = None) -> Tensor:
    """x_k = (2k + 1) / levels - 1 for k = 0 .. levels - 1, float32 [levels]."""
    return centre(torch.arange(levels, device=device), levels)


def centre(x: Tensor, levels: int) -> Tensor:
    """Bin centres of integer levels: x in 0 .. levels - 1 to (2x + 1) / levels - 1 in (-1, 1), float32."""
    return (2.0 * x.float() + 1.0) / levels - 1.0


def _chunks(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Any:
    """Yield (slice, mean, x's centre, e^{-logvar}, logits [elements, levels]) over the flattened elements."""
    centres = level_centres(levels, x.device)
    flat_x, flat_mean, flat_logvar = x.reshape(-1), mean.reshape(-1), logvar.reshape(-1)
    size = max(1, CHUNK.get(x.device.type, 1 << 18) // levels)
    for start in range(0, flat_x.numel(), size):
        part = slice(start, start + size)
        m, precision = flat_mean[part].float(), torch.exp(-flat_logvar[part].float())
        logits = (m[:, None] - centres).square_().mul_(-0.5 * precision[:, None])
        yield part, m, centres[flat_x[part].long()], precision, logits


def nll_reference(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Tensor:
    """Plain PyTorch, a chunk of elements at a time."""
    out = torch.empty(x.numel(), dtype=torch.float32, device=x.device)
    for part, m, centre, precision, logits in _chunks(x, mean, logvar, levels):
        out[part] = torch.logsumexp(logits, 1).add_(0.5 * precision * (m - centre).square_())
    return out.view(x.shape[0], -1).sum(1) if x.numel() else out.new_zeros(x.shape[0])


def gradient_reference(grad: Tensor, x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Gradients to mean and to logvar (of mean's shape)."""
    by_mean = torch.empty(x.numel(), dtype=torch.float32, device=x.device)
    by_logvar = torch.empty_like(by_mean)
    upstream = per_sample(grad.float(), mean).expand(mean.shape).reshape(-1)
    centres = level_centres(levels, x.device)
    for part, m, centre, precision, logits in _chunks(x, mean, logvar, levels):
        scale = upstream[part] * precision
        weights = torch.softmax(logits, 1)
        by_mean[part] = scale * (weights @ centres - centre)
        spread = (weights * (m[:, None] - centres).square_()).sum(1)
        by_logvar[part] = 0.5 * scale * ((m - centre).square_() - spread).neg_()
    return (
        in_layout_of(by_mean.view(mean.shape).to(mean.dtype), mean),
        in_layout_of(by_logvar.view(mean.shape).to(logvar.dtype), mean),
    )


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    *tensors, ctx.levels = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
    by_mean, by_logvar = _gradient_op(grad, *ctx.saved_tensors, ctx.levels)
    return None, by_mean, by_logvar, None


_gradient_op = register(
    "decoder_nll_gradient(Tensor grad, Tensor x, Tensor mean, Tensor logvar, int levels) -> (Tensor, Tensor)",
    gradient_reference,
    None,
    lambda grad, x, mean, logvar, levels: (torch.empty_like(mean), torch.empty_like(mean, dtype=logvar.dtype)),
)
_nll_op = register(
    "decoder_nll(Tensor x, Tensor mean, Tensor logvar, int levels) -> Tensor",
    nll_reference,
    None,
    lambda x, mean, logvar, levels: mean.new_empty(mean.shape[0], dtype=torch.float32),
    _backward,
    _save,
)
