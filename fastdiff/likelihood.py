"""The discretised Gaussian, DDPM's likelihood of a pixel's level (Ho et al. 2020, section 3.3).

VDM's, a categorical distribution over the levels, is `fastdiff.kernels.decoder_nll`.
"""

import math

import torch
from torch import Tensor

NARROW = 1e-6  # standard deviations: below, a difference of two log Phi has fewer digits than the density times width


def discretized_gaussian_nll(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Tensor:
    """Return -log p(x) in nats per sample, float32 [B], with p(k) the mass of N(mean, e^logvar) in the bin of level k.

    Level k covers [2k / levels - 1, 2 (k + 1) / levels - 1]; the first and the last bin reach to infinity, so that the
    levels' probabilities add up to 1. Computed in float64 from log Phi, without a floor under the probability.

    Args:
        x: levels, uint8 [B, ...] in [0, levels).
        mean: float [B, ...]; logvar: float, broadcastable to mean. Differentiable in both.
        levels: number of levels, at least 2.

    Raises:
        TypeError, ValueError: x of another dtype or shape, fewer than 2 levels.
    """
    if x.dtype != torch.uint8:
        raise TypeError(f"discretized_gaussian_nll: x has dtype {x.dtype}; allowed: torch.uint8")
    if x.shape != mean.shape or levels < 2:
        raise ValueError(
            f"discretized_gaussian_nll: x {tuple(x.shape)}, mean {tuple(mean.shape)}, {levels} levels; "
            "allowed: equal shapes [B, ...], at least 2 levels"
        )
    level = x.double()
    mean, inverse = mean.double(), torch.exp(-0.5 * logvar.double())
    low = (2.0 * level / levels - 1.0 - mean) * inverse
    high = (2.0 * (level + 1.0) / levels - 1.0 - mean) * inverse
    nats = torch.where(x == 0, -torch.special.log_ndtr(high), -torch.special.log_ndtr(-low))
    inner = (x > 0) & (x < levels - 1)
    # The edge bins get bounds that are anything finite, so that no gradient of what is left out is NaN.
    low, high = torch.where(inner, low, -1.0), torch.where(inner, high, 1.0)
    return torch.where(inner, -_log_mass(low, high), nats).flatten(1).sum(1).float()


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), taken in the lower tail, where log Phi keeps its digits."""
    mirrored = low + high > 0.0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    width, middle = high - low, 0.5 * (low + high)
    narrow = width < NARROW
    apart = torch.where(narrow, high - 1.0, low)
    log_high = torch.special.log_ndtr(high)
    wide = log_high + torch.log(-torch.expm1(torch.special.log_ndtr(apart) - log_high))
    density = torch.log(width) - 0.5 * (middle.square() + math.log(2.0 * math.pi))
    return torch.where(narrow, density, wide)
