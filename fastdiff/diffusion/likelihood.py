"""The discretised Gaussian decoder of DDPM (Ho et al. 2020, section 3.3).

VDM's decoder, a categorical distribution over the levels, is `fastdiff.kernels.decoder_nll`.
"""

import math

import torch
from torch import Tensor

from ..kernels import InvalidTypeError, InvalidValueError

NARROW = 1e-6  # bin width in standard deviations below which density · width is more accurate than Phi(b) - Phi(a)


def discretized_gaussian_nll(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Tensor:
    """Return -log p(x) in nats per sample, float32 [B], with p(k) the mass of N(mean, e^logvar) in the bin of level k.

    Level k covers [2k / levels - 1, 2 (k + 1) / levels - 1]. The first and the last bin extend to infinity, so the
    probabilities of all levels sum to 1. Computed in float64 from log Phi; the probability is not clamped from below.

    Args:
        x: levels, uint8 [B, ...] in [0, levels).
        mean: float [B, ...]; logvar: float, broadcastable to mean. Differentiable in both.
        levels: number of levels, at least 2.

    Raises:
        InvalidTypeError, InvalidValueError: x has another dtype or shape than above, or levels < 2.
    """
    if x.dtype != torch.uint8:
        raise InvalidTypeError(f"discretized_gaussian_nll: x must have dtype torch.uint8, got {x.dtype}")
    if x.shape != mean.shape or levels < 2:
        raise InvalidValueError(
            "discretized_gaussian_nll: x and mean must have equal shapes and levels be >= 2, "
            f"got {tuple(x.shape)}, {tuple(mean.shape)} and {levels}"
        )
    level = x.double()
    mean, inverse = mean.double(), torch.exp(-0.5 * logvar.double())
    low = (2.0 * level / levels - 1.0 - mean) * inverse
    high = (2.0 * (level + 1.0) / levels - 1.0 - mean) * inverse
    nats = torch.where(x == 0, -torch.special.log_ndtr(high), -torch.special.log_ndtr(-low))
    inner = (x > 0) & (x < levels - 1)
    # torch.where differentiates both branches: the edge bins get finite bounds, so that the unused branch is not NaN.
    low, high = torch.where(inner, low, -1.0), torch.where(inner, high, 1.0)
    return torch.where(inner, -_log_mass(low, high), nats).flatten(1).sum(1).float()


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """Return log(Phi(high) - Phi(low)), computed in the lower tail, where log Phi is accurate."""
    mirrored = low + high > 0.0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    width, middle = high - low, 0.5 * (low + high)
    narrow = width < NARROW
    apart = torch.where(narrow, high - 1.0, low)
    log_high = torch.special.log_ndtr(high)
    wide = log_high + torch.log(-torch.expm1(torch.special.log_ndtr(apart) - log_high))
    density = torch.log(width) - 0.5 * (middle.square() + math.log(2.0 * math.pi))
    return torch.where(narrow, density, wide)
