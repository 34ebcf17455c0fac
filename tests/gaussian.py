"""Correlated Gaussian data with its exact denoiser, and the law of a sampler's result by a recursion in float64."""

from itertools import pairwise

import torch
from torch import Tensor

from fastdiff.diffusion import LinearSchedule
from fastdiff.models import DiffusionModel, ImageConfig

GAMMA_0, GAMMA_1 = -6.0, 5.0
MEAN = torch.tensor([0.3, -0.2, 0.1, -0.4], dtype=torch.float64)
COV = torch.tensor(
    [[0.10, 0.07, 0.05, 0.02], [0.07, 0.12, 0.06, 0.04], [0.05, 0.06, 0.09, 0.05], [0.02, 0.04, 0.05, 0.08]],
    dtype=torch.float64,
)
LEVELS = 256
Law = tuple[Tensor, Tensor]  # mean [4] and covariance [4, 4]


def levels_of(*numbers: int) -> tuple[Tensor, Tensor]:
    """An image of four levels, uint8 [1, 1, 2, 2], and the same data in [-1, 1], float64 [4]."""
    levels = torch.tensor(numbers, dtype=torch.uint8)
    return levels.view(1, 1, 2, 2), (2.0 * levels.double() + 1.0) / LEVELS - 1.0


def scales(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma from their definitions."""
    return (1.0 / (1.0 + gamma.exp())).sqrt(), (1.0 / (1.0 + (-gamma).exp())).sqrt()


def denoiser(gamma: Tensor, cov: Tensor = COV) -> tuple[Tensor, Tensor]:
    """K and b of the exact estimate E[x | z_t] = K z_t + b, for x ~ N(MEAN, cov)."""
    alpha, sigma = scales(gamma)
    gain = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(4, dtype=torch.float64))
    return gain, MEAN - gain @ (alpha * MEAN)


class Gaussian(DiffusionModel):
    """x ~ N(MEAN, cov) over four pixels, and its exact denoiser. Results are z_0 / alpha_0, float32, and not levels."""

    kind = "gaussian"

    def __init__(self, cov: Tensor = COV) -> None:
        super().__init__(ImageConfig(shape=(1, 2, 2), levels=LEVELS))
        self.gamma, self.cov = LinearSchedule(GAMMA_0, GAMMA_1), cov

    def predict(self, z_t: Tensor, gamma: Tensor, labels=None, cond=None) -> tuple[Tensor, None]:
        gain, shift = denoiser(gamma[0].double(), self.cov)
        alpha, sigma = scales(gamma[0].double())
        z = z_t.flatten(1).double()
        return ((z - alpha * (z @ gain.T + shift)) / sigma).float().view_as(z_t), None

    def most_likely(self, z_0: Tensor) -> Tensor:
        return z_0 / scales(torch.tensor(GAMMA_0))[0]


def gammas(steps: int, start: float = 1.0) -> Tensor:
    """Gamma at evenly spaced times from ``start`` down to 0."""
    return GAMMA_0 + (GAMMA_1 - GAMMA_0) * start * torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def noised(x: Tensor, gamma: Tensor) -> Law:
    """q(z_t | x)."""
    alpha, sigma = scales(gamma)
    return alpha * x, sigma**2 * torch.eye(4, dtype=torch.float64)


def ancestral_law(law: Law, gamma: Tensor, x: Tensor, unknown: Tensor, resample: int = 1, cov: Tensor = COV) -> Law:
    """The law of z_0 / alpha_0 after ancestral sampling from ``law``, where the pixels that are not ``unknown`` are x.

    Each step is made ``resample`` times, with a step of the forward process in between. The coefficients are those of
    q(z_s | z_t, x) and q(z_t | z_s) in alpha and sigma (Ho et al. 2020, eq. 7), without a table of rows.
    """
    mean, spread = law
    eye = torch.eye(4, dtype=torch.float64)
    for t, s in pairwise(gamma):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(t), scales(s)
        ratio = alpha_t / alpha_s
        forward = sigma_t**2 - ratio**2 * sigma_s**2
        gain, shift = denoiser(t, cov)
        gain, shift = torch.where(unknown[:, None], gain, 0.0), torch.where(unknown, shift, x)
        for repetition in range(resample):
            step = (ratio * sigma_s**2 * eye + alpha_s * forward * gain) / sigma_t**2
            mean = step @ mean + alpha_s * forward / sigma_t**2 * shift
            spread = step @ spread @ step.T + forward * sigma_s**2 / sigma_t**2 * eye
            if repetition < resample - 1:
                mean, spread = ratio * mean, ratio**2 * spread + forward * eye
    alpha_0 = scales(gamma[-1])[0]
    return mean / alpha_0, spread / alpha_0**2


def errors(samples: Tensor, law: Law) -> tuple[float, float]:
    """The largest deviations of samples' mean and covariance from a law, in standard errors."""
    x, (mean, cov) = samples.flatten(1).double(), law
    n = len(x)
    variances = cov.diagonal()
    of_mean = (x.mean(0) - mean).abs() / (variances / n).sqrt()
    of_cov = (x.T.cov() - cov).abs() / ((variances[:, None] * variances + cov**2) / n).sqrt()
    return float(of_mean.max()), float(of_cov.max())
