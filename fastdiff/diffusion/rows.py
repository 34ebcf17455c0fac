"""The rows of ancestral sampling, DDIM, DPM-Solver++(2M) and Heun.

Each function maps gamma, float64 [steps + 1] with gamma at t = 0 first, to a `Plan` with one row of coefficients for
every call of the network, from t = 1 down. Arithmetic is float64. `fastdiff.diffusion.samplers` gives them options.
"""

import torch
from torch import Tensor

from .plan import C_1, A, B, D, Plan, S, coefficient_rows
from .process import alpha, posterior, sigma, transition_variance


def ancestral(gamma: Tensor, variance: str = "fixed_small") -> Plan:
    """Ancestral sampling: draw z_s from N(mean of q(z_s | z_t, x = x_hat), variance) (Ho et al. 2020).

    Args:
        gamma: float64 [steps + 1].
        variance: ``"fixed_small"``: the variance of q(z_s | z_t, x). ``"fixed_large"``: that of q(z_t | z_s), DDPM's
            beta_t. ``"learned"``: the network interpolates between their logarithms (Nichol and Dhariwal 2021).
    """
    gamma_t, gamma_s = pairs(gamma)
    a, b, small = posterior(gamma_s, gamma_t)
    large = transition_variance(gamma_s, gamma_t)
    if variance == "learned":
        bounds = torch.stack([small.log(), large.log()], dim=1)
        return Plan(gamma_t, coefficient_rows(gamma_t, a, b), bounds, noise_span=spans(gamma))
    table = coefficient_rows(gamma_t, a, b, (large if variance == "fixed_large" else small).sqrt())
    return Plan(gamma_t, table, noise_span=spans(gamma))


def ddim(gamma: Tensor, eta: float | Tensor = 0.0, keep_eps_hat: bool = False) -> Plan:
    """DDIM (Song et al. 2021): z_s = alpha_s x_hat + sqrt(sigma_s² - d²) eps_hat + d eps.

    d is eta times the deviation of the posterior: eta = 0 is deterministic, eta = 1 is ancestral sampling. With
    r = exp((gamma_s - gamma_t) / 2) and c = 1 - r²: A = (sigma_s / sigma_t) sqrt(1 - eta² c), and
    B = alpha_s - alpha_t A, computed without cancellation as alpha_s c (1 + eta² r²) / (1 + r sqrt(1 - eta² c)).
    ``eta`` is a number, or float64 [steps] from t = 1 down. With eta = 0 the steps may also lead from data to noise.

    Where x_hat is clipped, eps_hat is that of the clipped x_hat, (z_t - alpha_t x_hat) / sigma_t. With ``keep_eps_hat``
    it is the network's (the column D, see `Plan.d_is_eps_hat`).
    """
    gamma_t, gamma_s = pairs(gamma)
    r, c = torch.exp(0.5 * (gamma_s - gamma_t)), -torch.expm1(gamma_s - gamma_t)
    root = (r.square() + (1.0 - eta) * (1.0 + eta) * c).clamp(min=0.0).sqrt()  # accurate where c is near 1
    root = torch.where(c < 0.0, 1.0, root)  # from data to noise, where eta is 0
    a = sigma(gamma_s) / sigma(gamma_t) * root
    b = alpha(gamma_s) * c * (1.0 + eta**2 * r**2) / (1.0 + r * root)
    table = coefficient_rows(gamma_t, a, b, eta * c.clamp(min=0.0).sqrt() * sigma(gamma_s))
    if keep_eps_hat:
        table[:, A], table[:, B], table[:, D] = 0.0, alpha(gamma_s), sigma(gamma_t) * a
    noise_span = spans(gamma) if (table[:, S] != 0).any() else None
    return Plan(gamma_t, table, noise_span=noise_span, d_is_eps_hat=keep_eps_hat)


def dpm_solver(gamma: Tensor) -> Plan:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with lambda = -gamma / 2. The first step is a DDIM step.

    z_s = (sigma_s / sigma_t) z_t - alpha_s expm1(-h) ((1 + 1 / 2r) x_hat - (1 / 2r) x_hat_1), where h is the step in
    lambda and r is the previous h divided by this one.
    """
    plan = ddim(gamma)
    table = plan.table.clone()
    h = 0.5 * -torch.diff(gamma.flip(0))
    half = torch.zeros_like(h)
    half[1:] = 0.5 * h[1:] / h[:-1]
    table[:, C_1] = -half * table[:, B]
    table[:, B] = (1.0 + half) * table[:, B]
    return Plan(plan.gamma, table)


def heun(gamma: Tensor) -> Plan:
    """Heun's method on the probability-flow ODE (Karras et al. 2022, algorithm 1), two calls of the network a step.

    In y = z / alpha and the noise-to-signal ratio rho = e^{gamma / 2} the ODE is dy / d rho = eps_hat. The predictor is
    a DDIM step. The corrector calls the network at s and replaces half of the step: with
    B = ½ alpha_s (e^{(gamma_t - gamma_s) / 2} - 1), z_s <- z_s + B (x_hat at s - x_hat at t).
    """
    gamma_t, gamma_s = pairs(gamma)
    b = 0.5 * alpha(gamma_s) * torch.expm1(0.5 * (gamma_t - gamma_s))
    corrector = coefficient_rows(gamma_s, torch.ones_like(b), b, history=(-b,))
    rows = torch.stack([ddim(gamma).table, corrector], dim=1).flatten(0, 1)
    return Plan(torch.stack([gamma_t, gamma_s], dim=1).flatten(), rows, calls_per_step=2)


def pairs(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Return (gamma_t, gamma_s) of every step, from t = 1 down."""
    descending = gamma.flip(0)
    return descending[:-1], descending[1:]


def spans(gamma: Tensor) -> Tensor:
    """Return (gamma_s, gamma_t) of every step, float64 [steps, 2]: `Plan.noise_span` of one row a step."""
    gamma_t, gamma_s = pairs(gamma)
    return torch.stack([gamma_s, gamma_t], dim=1)
