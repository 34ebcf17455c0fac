"""Samplers as tables of coefficients: every one is z_s = A z_t + B x_hat + C x_hat_prev + S eps.

A sampler is a function from gamma on its time grid (float64 [steps + 1], gamma at t = 0 first) to a `Plan`: for every
call of the network, from the noise down, the gamma that it is asked at and a row of coefficients in the layout that
`fastdiff.kernels.sampler_step` reads, (1/alpha, sigma/alpha, A, B, C, S, O). Arithmetic is float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .process import alpha, posterior, sigma, transition_variance

SAMPLERS = ("ancestral", "ddim", "dpm-solver", "heun")
VARIANCES = ("small", "large", "learned")


@dataclass(frozen=True)
class Plan:
    """What the sampling loop does: one row per call of the network.

    gamma: float64 [rows], the noise level that the network is told; table: float64 [rows, 7];
    log_variance: float64 [rows, 2], log variances between which a network that predicts its own interpolates, for the
    rows whose noise it scales; None where the table holds S.
    """

    gamma: Tensor
    table: Tensor
    log_variance: Tensor | None = None


def ancestral(gamma: Tensor, variance: str = "small") -> Plan:
    """Draw from p(z_s | z_t) = N(mean of q(z_s | z_t, x = x_hat), variance) (Ho et al. 2020; Kingma et al. 2021).

    Args:
        gamma: the time grid.
        variance: ``"small"``, that of q(z_s | z_t, x); ``"large"``, that of q(z_t | z_s), DDPM's beta_t; ``"learned"``,
            between the two in the logarithm, as the network says (Nichol and Dhariwal 2021).
    """
    gamma_t, gamma_s = _pairs(gamma)
    a, b, small = posterior(gamma_s, gamma_t)
    large = transition_variance(gamma_s, gamma_t)
    none = torch.zeros_like(a)
    if variance == "learned":
        return Plan(gamma_t, _table(gamma_t, a, b, none, none), torch.stack([small.log(), large.log()], dim=1))
    return Plan(gamma_t, _table(gamma_t, a, b, none, (large if variance == "large" else small).sqrt()))


def ddim(gamma: Tensor, eta: float = 0.0) -> Plan:
    """DDIM (Song et al. 2021): z_s = alpha_s x_hat + sqrt(sigma_s² - d²) eps_hat + d eps.

    d is eta times the posterior's deviation: eta = 0 is deterministic, eta = 1 ancestral sampling. With
    r = exp((gamma_s - gamma_t) / 2) and c = 1 - r²: A = (sigma_s / sigma_t) sqrt(1 - eta² c), and
    B = alpha_s - alpha_t A, written without the cancellation as alpha_s c (1 + eta² r²) / (1 + r sqrt(1 - eta² c)).
    """
    gamma_t, gamma_s = _pairs(gamma)
    r, c = torch.exp(0.5 * (gamma_s - gamma_t)), -torch.expm1(gamma_s - gamma_t)
    kept = (r.square() + (1.0 - eta) * (1.0 + eta) * c).sqrt()  # sqrt(1 - eta² c), with its digits where c is near 1
    a = sigma(gamma_s) / sigma(gamma_t) * kept
    b = alpha(gamma_s) * c * (1.0 + eta**2 * r**2) / (1.0 + r * kept)
    return Plan(gamma_t, _table(gamma_t, a, b, torch.zeros_like(a), eta * c.sqrt() * sigma(gamma_s)))


def dpm_solver(gamma: Tensor) -> Plan:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with lambda = -gamma / 2; its first step is DDIM's.

    z_s = (sigma_s / sigma_t) z_t - alpha_s expm1(-h) ((1 + 1 / 2r) x_hat - (1 / 2r) x_hat_prev), where h is the step in
    lambda and r the previous step's h over this one's.
    """
    plan = ddim(gamma)
    table = plan.table.clone()
    h = 0.5 * -torch.diff(gamma.flip(0))
    half = torch.zeros_like(h)
    half[1:] = 0.5 * h[1:] / h[:-1]
    table[:, 4] = -half * table[:, 3]
    table[:, 3] = (1.0 + half) * table[:, 3]
    return Plan(plan.gamma, table)


def heun(gamma: Tensor) -> Plan:
    """Heun's method on the probability-flow ODE (Karras et al. 2022, algorithm 1), two calls of the network a step.

    In y = z / alpha and the noise-to-signal ratio e^{gamma / 2} the ODE is dy / d(ratio) = eps_hat. The predictor is
    DDIM's step; the corrector asks at s and replaces half of the step: with
    B = ½ alpha_s (e^{(gamma_t - gamma_s) / 2} - 1), z_s <- z_s + B (x_hat at s - x_hat at t).
    """
    gamma_t, gamma_s = _pairs(gamma)
    b = 0.5 * alpha(gamma_s) * torch.expm1(0.5 * (gamma_t - gamma_s))
    corrector = _table(gamma_s, torch.ones_like(b), b, -b, torch.zeros_like(b))
    rows = torch.stack([ddim(gamma).table, corrector], dim=1).flatten(0, 1)
    return Plan(torch.stack([gamma_t, gamma_s], dim=1).flatten(), rows)


def plan(name: str, gamma: Tensor, eta: float | None = None, variance: str = "small", to_x: bool = False) -> Plan:
    """Return the plan of the sampler ``name`` on a time grid.

    Args:
        name: one of `SAMPLERS`.
        gamma: float64 [steps + 1], increasing, gamma at t = 0 first.
        eta: of ``"ddim"`` alone: 0 (the default) to 1.
        variance: of ``"ancestral"``.
        to_x: whether a last row takes z_0 to x_hat, for a model whose decoder is the network at t = 0 (DDPM).

    Raises:
        ValueError: an unknown name or variance, eta out of range or for another sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; allowed: {', '.join(SAMPLERS)}")
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; allowed: {', '.join(VARIANCES)}")
    if variance != "small" and name != "ancestral":
        raise ValueError(f"variance is {variance!r} for the sampler {name!r}; allowed: variance with ancestral")
    if eta is not None and name != "ddim":
        raise ValueError(f"eta is {eta!r} for the sampler {name!r}; allowed: eta with ddim")
    if eta is not None and (isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0.0 <= eta <= 1.0):
        raise ValueError(f"eta is {eta!r}; allowed: 0 <= eta <= 1")
    gamma = gamma.double()
    steps = {
        "ancestral": lambda: ancestral(gamma, variance),
        "ddim": lambda: ddim(gamma, eta or 0.0),
        "dpm-solver": lambda: dpm_solver(gamma),
        "heun": lambda: heun(gamma),
    }[name]()
    return _and_to_x(steps, gamma[:1]) if to_x else steps


def _and_to_x(steps: Plan, gamma_0: Tensor) -> Plan:
    one, none = torch.ones_like(gamma_0), torch.zeros_like(gamma_0)
    last = _table(gamma_0, none, one, none, none)
    last[:, 6] = 0.0  # x_hat is a picture, not a latent that a picture has shifted
    bounds = steps.log_variance
    if bounds is not None:
        bounds = torch.cat([bounds, bounds.new_full((1, 2), -400.0)])  # a deviation of e^-200, 0 in float32
    return Plan(torch.cat([steps.gamma, gamma_0]), torch.cat([steps.table, last]), bounds)


def _pairs(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """(gamma_t, gamma_s) of every step, from t = 1 down."""
    descending = gamma.flip(0)
    return descending[:-1], descending[1:]


def _table(gamma_t: Tensor, a: Tensor, b: Tensor, c: Tensor, s: Tensor) -> Tensor:
    one_over_alpha = 1.0 / alpha(gamma_t)
    return torch.stack([one_over_alpha, torch.exp(0.5 * gamma_t), a, b, c, s, torch.ones_like(a)], dim=1)
