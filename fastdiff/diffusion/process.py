"""The diffusion process: marginals, posterior, and conversions between the five predictions.

A network may predict epsilon, x, v, velocity or score.

    q(z_t | x) = N(alpha_t x, sigma_t²),   alpha² = sigmoid(-gamma),   sigma² = sigmoid(gamma)   (Kingma et al. 2021)

is the variance-preserving process; the variance-exploding one, N(x, e^gamma), is its rescaling z / alpha.

Functions of gamma work in the dtype of gamma (float64 for coefficient tables) and broadcast: per-sample gamma has shape
[B, 1, ...] for data [B, ...]. The error of a conversion between predictions is a few units in the last place times
e^{|gamma| / 2}, its condition number, for |gamma| < 80 in float32. From v and from velocity to epsilon and x the
condition number is 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def alpha(gamma: Tensor) -> Tensor:
    """Return sqrt(sigmoid(-gamma)), the scale of the signal."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Tensor) -> Tensor:
    """Return sqrt(sigmoid(gamma)), the scale of the noise."""
    return torch.sigmoid(gamma).sqrt()


def x_from_eps(z_t: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """Return x_hat = (z_t - sigma_t eps_hat) / alpha_t."""
    return (z_t - sigma(gamma) * eps) / alpha(gamma)


def eps_from_x(z_t: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """Return eps_hat = (z_t - alpha_t x_hat) / sigma_t."""
    return (z_t - alpha(gamma) * x) / sigma(gamma)


def v_from_eps(z_t: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """Return v = alpha_t eps - sigma_t x (Salimans and Ho 2022), computed as v = (eps - sigma_t z_t) / alpha_t."""
    return (eps - sigma(gamma) * z_t) / alpha(gamma)


def eps_from_v(z_t: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """Return eps_hat = alpha_t v + sigma_t z_t."""
    return alpha(gamma) * v + sigma(gamma) * z_t


def v_from_x(z_t: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """Return v = (alpha_t z_t - x) / sigma_t."""
    return (alpha(gamma) * z_t - x) / sigma(gamma)


def x_from_v(z_t: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """Return x_hat = alpha_t z_t - sigma_t v."""
    return alpha(gamma) * z_t - sigma(gamma) * v


def velocity_from_eps(z_t: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """Return u = eps - x = eps - (z_t - sigma_t eps) / alpha_t (Lipman et al. 2023, Flow matching; Liu et al. 2023,
    Rectified flow).

    u is the derivative in tau of (1 - tau) x + tau eps, which is z_t / (alpha_t + sigma_t) at
    tau = sigma_t / (alpha_t + sigma_t). The condition number is max(1, e^{gamma / 2}).
    """
    return eps - x_from_eps(z_t, eps, gamma)


def eps_from_velocity(z_t: Tensor, velocity: Tensor, gamma: Tensor) -> Tensor:
    """Return eps_hat = (z_t + alpha_t u) / (alpha_t + sigma_t), of condition number 1."""
    signal = alpha(gamma)
    return (z_t + signal * velocity) / (signal + sigma(gamma))


def velocity_from_x(z_t: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """Return u = (z_t - alpha_t x) / sigma_t - x, of condition number max(1, e^{-gamma / 2})."""
    return eps_from_x(z_t, x, gamma) - x


def x_from_velocity(z_t: Tensor, velocity: Tensor, gamma: Tensor) -> Tensor:
    """Return x_hat = (z_t - sigma_t u) / (alpha_t + sigma_t), of condition number 1."""
    scale = sigma(gamma)
    return (z_t - scale * velocity) / (alpha(gamma) + scale)


def score_from_eps(eps: Tensor, gamma: Tensor) -> Tensor:
    """Return the gradient of log q(z_t), -eps_hat / sigma_t."""
    return -eps / sigma(gamma)


def eps_from_score(score: Tensor, gamma: Tensor) -> Tensor:
    """Return eps_hat = -sigma_t score."""
    return -sigma(gamma) * score


# What a network may predict, and the conversion of (z_t, prediction, gamma) to eps_hat.
PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda z_t, eps, gamma: eps,
    "x": eps_from_x,
    "v": eps_from_v,
    "velocity": eps_from_velocity,
    "score": lambda z_t, score, gamma: eps_from_score(score, gamma),
}


def posterior(gamma_s: Tensor, gamma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q(z_s | z_t, x) = N(A z_t + B x, variance) for s < t; return (A, B, variance).

    With c = -expm1(gamma_s - gamma_t): A = (1 - c) alpha_s / alpha_t, B = alpha_s c, variance = c sigma_s². No two
    variances are subtracted, so all three keep their relative accuracy for any s < t.
    """
    c = -torch.expm1(gamma_s - gamma_t)
    return torch.exp(gamma_s - gamma_t) * alpha(gamma_s) / alpha(gamma_t), alpha(gamma_s) * c, c * sigma(gamma_s) ** 2


def transition_variance(gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
    """Return the variance of q(z_t | z_s), c sigma_t² with c = -expm1(gamma_s - gamma_t); beta_t in DDPM's chain."""
    return -torch.expm1(gamma_s - gamma_t) * sigma(gamma_t) ** 2
