"""The runs of `executed_cost`: operations on data of the sizes of training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fastdiff_kernels import (
    Noise,
    decoder_nll,
    diffuse,
    dropout,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    group_norm_silu,
    reparameterize,
    sampler_step,
)
from torch import Tensor

Make = Callable[[tuple[int, ...], torch.dtype], list[Tensor]]
CIFAR = (64, 3, 32, 32)
NOISE = Noise(20, 1, 2, 3)
ANCESTRAL = torch.tensor([1.25, 0.75, 0.6, 0.3, 0.4, 1.0, 0.0, 0.0, 0.0, 0.0])
MULTISTEP = torch.tensor([1.25, 0.75, 0.6, 0.3, 0.0, 1.0, -0.2, 0.0, 0.0, 0.0])
LOGVARS = (-13.3, -8.0, -4.0, 0.0)
SIZES = ((2, 128, 32, 32), (2, 256, 16, 16), (2, 512, 8, 8))  # of a U-Net
GROUPS = 32


@dataclass(frozen=True)
class Run:
    """An operation on data: forward, and backward to the tensors that it is differentiable in.

    Args:
        operation: its name.
        data: what is special about the data.
        shape: of the data, with a skip of both parts together.
        function: takes the tensors.
        make: returns the tensors for a shape and a dtype.
        differentiable: positions of the tensors that get a gradient.
        order: memory format of all tensors [B, C, H, W].
        tiles: whether group norm works on tiles, as where a group does not fit on chip.
    """

    operation: str
    data: str
    shape: tuple[int, ...]
    function: Callable[..., Any]
    make: Make
    differentiable: tuple[int, ...] = ()
    order: torch.memory_format = torch.contiguous_format
    tiles: bool = False


def normal(count: int) -> Make:
    """Normal tensors of one shape."""
    return lambda shape, dtype: [torch.randn(shape).to(dtype) for _ in range(count)]


def with_vector(count: int) -> Make:
    """Normal tensors of one shape, and a positive number for each sample."""
    return lambda shape, dtype: [*normal(count)(shape, dtype), torch.rand(shape[0]) + 0.5]


def pixels(logvar: float | None) -> Make:
    """Bytes, means near them, and a log-variance for each sample; or, for None, one for each element."""

    def make(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        x = torch.randint(256, shape, dtype=torch.uint8)
        if logvar is None:
            spread = torch.empty(shape).uniform_(LOGVARS[0], LOGVARS[2])
        else:
            spread = torch.full(shape[:1], logvar)
        noise = torch.randn(shape) * (0.5 * (spread if logvar is None else spread[:, None, None, None])).exp()
        mean = ((2 * x.float() + 1) / 256 - 1 + noise).to(dtype)
        return [x, mean, spread.to(dtype) if logvar is None else spread]

    return make


def norm_run(shape: tuple[int, ...], used: str = "", **more: Any) -> Run:
    """Group norm with the optional tensors that ``used`` names; a skip has half of the channels of the norm."""
    names, (batch, channels, *rest) = used.split(), shape
    of_x = channels // 2 if "skip" in names else channels
    sizes = {"skip": (batch, channels - of_x, *rest), "residual": (batch, of_x, *rest), "pre_shift": (batch, of_x)}

    def make(_: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        others = [torch.randn(sizes[name]).to(torch.float32 if name == "pre_shift" else dtype) for name in names]
        return [torch.randn(batch, of_x, *rest).to(dtype), torch.randn(channels), torch.randn(channels), *others]

    def function(x: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> Any:
        return group_norm_silu(x, GROUPS, weight, bias, **dict(zip(names, others, strict=True)))

    how = ["tiles" if more.get("tiles") else "whole groups", *names]
    more = {"order": torch.channels_last} | more
    how += ["contiguous"] if more["order"] == torch.contiguous_format else []
    differentiable = tuple(range(3 + len(names)))
    return Run("group_norm_silu", ", ".join(how), shape, function, make, differentiable, **more)


def both_orders(operation: str, data: str, *arguments: Any) -> Iterator[Run]:
    """A run on contiguous and one on channels-last data."""
    yield Run(operation, data, CIFAR, *arguments)
    yield Run(operation, f"{data}, channels last", CIFAR, *arguments, order=torch.channels_last)


RUNS = (
    *both_orders("diffuse", "noise drawn", lambda x, gamma: diffuse(x, gamma, NOISE), with_vector(1), (0, 1)),
    Run("diffuse", "noise given", CIFAR, lambda x, eps, gamma: diffuse(x, gamma, eps), with_vector(2), (0, 2)),
    Run("dropout", "contiguous", SIZES[1], lambda x: dropout(x, 0.3, NOISE), normal(1)),
    Run("dropout", "channels last", SIZES[1], lambda x: dropout(x, 0.3, NOISE), normal(1), order=torch.channels_last),
    *both_orders("eps_loss", "noise drawn", lambda x, weight: eps_loss(x, NOISE, weight), with_vector(1), (0,)),
    *both_orders("fourier_features", "2 frequencies", fourier_features, normal(1), (0,)),
    *both_orders("sampler_step", "ancestral", lambda z, eps: sampler_step(z, eps, ANCESTRAL, NOISE), normal(2)),
    Run("sampler_step", "multistep", CIFAR, lambda z, eps, x: sampler_step(z, eps, MULTISTEP, None, 1.0, (x,)),
        normal(3), (0, 1, 2)),
    *both_orders("reparameterize", "noise drawn", lambda mean, logvar: reparameterize(mean, logvar, NOISE), normal(2),
                 (0, 1)),
    Run("gaussian_log_ratio", "", CIFAR, gaussian_log_ratio, normal(5), (0, 1, 2, 3, 4)),
    *(Run("decoder_nll", f"logvar {value}", CIFAR, decoder_nll, pixels(value), (1, 2)) for value in LOGVARS),
    Run("decoder_nll", "logvar of each element, -13.3 to -4.0", CIFAR, decoder_nll, pixels(None), (1, 2)),
    *(norm_run(shape) for shape in SIZES),
    norm_run(SIZES[0], order=torch.contiguous_format),
    *(norm_run(SIZES[0], used) for used in ("pre_shift", "residual")),
    norm_run(SIZES[1], "skip"),
    norm_run(SIZES[1], "pre_shift residual"),
    *(norm_run(shape, tiles=True) for shape in SIZES),
    norm_run(SIZES[0], "pre_shift residual", tiles=True),
    norm_run(SIZES[1], "skip", tiles=True),
)  # fmt: skip
