"""The diffusion process: its marginals, its posterior, and the four names of a prediction.

    q(z_t | x) = N(alpha_t x, sigma_t²),   alpha² = sigmoid(-gamma),   sigma² = sigmoid(gamma)   (Kingma et al. 2021)

is the variance-preserving process; the variance-exploding one, N(x, e^gamma), is its rescaling z / alpha.

Functions of gamma work in the dtype of gamma (float64 for coefficient tables) and broadcast: per-sample gamma must be
shaped [B, 1, ...] against data [B, ...]. A conversion between predictions is as accurate as its conditioning allows:
a few units in the last place, times e^{|gamma| / 2} (in float32 for |gamma| below 80, where alpha and sigma leave its
range).
"""

from collections.abc import Callable

import torch
from torch import Tensor


def alpha(gamma: Tensor) -> Tensor:
    """sqrt(sigmoid(-gamma)), the scale of the signal."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Tensor) -> Tensor:
    """sqrt(sigmoid(gamma)), the scale of the noise."""
    return torch.sigmoid(gamma).sqrt()


def x_from_eps(z_t: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """x_hat = (z_t - sigma_t eps_hat) / alpha_t."""
    return (z_t - sigma(gamma) * eps) / alpha(gamma)


def eps_from_x(z_t: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """eps_hat = (z_t - alpha_t x_hat) / sigma_t."""
    return (z_t - alpha(gamma) * x) / sigma(gamma)


def v_from_eps(z_t: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """v = alpha_t eps - sigma_t x (Salimans and Ho 2022), written in z_t and eps: v = (eps - sigma_t z_t) / alpha_t."""
    return (eps - sigma(gamma) * z_t) / alpha(gamma)


def eps_from_v(z_t: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """eps_hat = alpha_t v + sigma_t z_t."""
    return alpha(gamma) * v + sigma(gamma) * z_t


def v_from_x(z_t: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """v = (alpha_t z_t - x) / sigma_t."""
    return (alpha(gamma) * z_t - x) / sigma(gamma)


def x_from_v(z_t: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """x_hat = alpha_t z_t - sigma_t v."""
    return alpha(gamma) * z_t - sigma(gamma) * v


def score_from_eps(eps: Tensor, gamma: Tensor) -> Tensor:
    """Gradient of log q(z_t): -eps_hat / sigma_t."""
    return -eps / sigma(gamma)


def eps_from_score(score: Tensor, gamma: Tensor) -> Tensor:
    """eps_hat = -sigma_t score."""
    return -sigma(gamma) * score


# What a network may predict, and how eps_hat follows from (z_t, prediction, gamma).
PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "eps": lambda z_t, eps, gamma: eps,
    "x": eps_from_x,
    "v": eps_from_v,
    "score": lambda z_t, score, gamma: eps_from_score(score, gamma),
}


def posterior(gamma_s: Tensor, gamma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q(z_s | z_t, x) = N(A z_t + B x, variance) for s < t; return (A, B, variance).

    With c = -expm1(gamma_s - gamma_t): A = (1 - c) alpha_s / alpha_t, B = alpha_s c, variance = c sigma_s². No variance
    is computed by subtracting two others, so all three keep their relative accuracy for any gap s < t.
    """
    c = -torch.expm1(gamma_s - gamma_t)
    return torch.exp(gamma_s - gamma_t) * alpha(gamma_s) / alpha(gamma_t), alpha(gamma_s) * c, c * sigma(gamma_s) ** 2


def transition_variance(gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
    """Variance of q(z_t | z_s), beta_t for neighbours in DDPM's chain: c sigma_t², c = -expm1(gamma_s - gamma_t)."""
    return -torch.expm1(gamma_s - gamma_t) * sigma(gamma_t) ** 2
