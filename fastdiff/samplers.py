"""Samplers as tables of coefficients: every one is z_s = A z_t + B x_hat + C x_hat_prev + S eps.

A sampler is a function from gamma on its time grid (float64 [steps + 1], gamma at t = 0 first) to a float64 table
[steps, 7] whose row k takes z at t = 1 - k / steps one step towards the data, in the layout that
`fastdiff.kernels.sampler_step` reads: (1/alpha_t, sigma_t/alpha_t, A, B, C, S, O).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .process import alpha, posterior, sigma


def ancestral(gamma: Tensor) -> Tensor:
    """Draw from p(z_s | z_t) = q(z_s | z_t, x = x_hat) (Kingma et al. 2021, section 2.3)."""
    gamma_t, gamma_s = _pairs(gamma)
    a, b, variance = posterior(gamma_s, gamma_t)
    return _table(gamma_t, a, b, torch.zeros_like(a), variance.sqrt())


def ddim(gamma: Tensor) -> Tensor:
    """The deterministic step of Song et al. 2021 (DDIM, eta = 0): z_s = alpha_s x_hat + sigma_s eps_hat."""
    gamma_t, gamma_s = _pairs(gamma)
    a = sigma(gamma_s) / sigma(gamma_t)
    b = -alpha(gamma_s) * torch.expm1(
        0.5 * (gamma_s - gamma_t)
    )  # alpha_s - alpha_t sigma_s / sigma_t without cancelling
    return _table(gamma_t, a, b, torch.zeros_like(a), torch.zeros_like(a))


def dpm_solver(gamma: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with lambda = -gamma / 2; its first step is DDIM's.

    z_s = (sigma_s / sigma_t) z_t - alpha_s expm1(-h) ((1 + 1 / 2r) x_hat - (1 / 2r) x_hat_prev), where h is the step in
    lambda and r the previous step's h over this one's.
    """
    table = ddim(gamma)
    h = 0.5 * -torch.diff(gamma.flip(0))
    half = torch.zeros_like(h)
    half[1:] = 0.5 * h[1:] / h[:-1]
    table[:, 4] = -half * table[:, 3]
    table[:, 3] = (1.0 + half) * table[:, 3]
    return table


SAMPLERS: dict[str, Callable[[Tensor], Tensor]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm-solver": dpm_solver,
}


def sampler_table(name: str, gamma: Tensor) -> Tensor:
    """Return the coefficients of the sampler ``name``, float32 [steps, 7], computed in float64.

    Raises:
        ValueError: a name that is no sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; allowed: {', '.join(SAMPLERS)}")
    return SAMPLERS[name](gamma.double()).float()


def _pairs(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """(gamma_t, gamma_s) of every step, from t = 1 down."""
    descending = gamma.flip(0)
    return descending[:-1], descending[1:]


def _table(gamma_t: Tensor, a: Tensor, b: Tensor, c: Tensor, s: Tensor) -> Tensor:
    one_over_alpha = 1.0 / alpha(gamma_t)
    return torch.stack([one_over_alpha, torch.exp(0.5 * gamma_t), a, b, c, s, torch.ones_like(a)], dim=1)
