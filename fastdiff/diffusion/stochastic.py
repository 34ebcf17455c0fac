"""The rows of stochastic samplers: DPM-Solver++ for the reverse SDE, with one or two calls a step, and Euler ancestral.

Each function maps gamma, float64 [steps + 1] with gamma at t = 0 first, to a `Plan`, as those of
`fastdiff.diffusion.rows`. With lambda = -gamma / 2 and h the step in lambda, the reverse SDE from t to s for a constant
x_hat is solved exactly by ancestral sampling,

    z_s = (sigma_s / sigma_t) e^{-h} z_t + alpha_s (1 - e^{-2h}) x_hat + sigma_s sqrt(1 - e^{-2h}) eps

(Lu et al. 2022, DPM-Solver++, section 6). The solvers here replace x_hat by an estimate for the middle of the step.
"""

import torch
from torch import Tensor

from .plan import A, B, D, Plan, S, coefficient_rows
from .process import alpha, sigma
from .rows import ancestral, ddim, pairs, spans


def dpm_solver_sde(gamma: Tensor, eta: float = 1.0) -> Plan:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, section 6), in its midpoint form. The first step has x_hat alone.

        z_s = (sigma_s / sigma_t) e^{-eta h} z_t + sigma_s sqrt(1 - e^{-2 eta h}) eps
              + alpha_s (1 - e^{-(1 + eta) h}) ((1 + 1 / 2r) x_hat - (1 / 2r) x_hat_1),

    r being the previous h divided by this one. ``eta`` scales the noise as in k-diffusion (``dpmpp_2m_sde``): 1 is the
    SDE, and 0 is `fastdiff.diffusion.rows.dpm_solver`.
    """
    gamma_t, gamma_s = pairs(gamma)
    h = 0.5 * (gamma_t - gamma_s)
    a, b = sigma(gamma_s) / sigma(gamma_t) * torch.exp(-eta * h), -alpha(gamma_s) * torch.expm1(-(1.0 + eta) * h)
    half = torch.zeros_like(h)
    half[1:] = 0.5 * h[1:] / h[:-1]
    s = sigma(gamma_s) * (-torch.expm1(-2.0 * eta * h)).sqrt()
    table = coefficient_rows(gamma_t, a, (1.0 + half) * b, s, history=(-half * b,))
    return Plan(gamma_t, table, noise_span=None if eta == 0.0 else spans(gamma))


def dpm_solver_sde_2s(gamma: Tensor) -> Plan:
    """SDE-DPM-Solver++ with two calls of the network a step (``dpmpp_sde`` of k-diffusion with r = 1 / 2).

    The first row is ancestral sampling from t to the middle m of the step in gamma. The second goes from t to s with
    x_hat at m: z_s = D z_t + B x_hat + S eps, D, B and S being A, B and S of ancestral sampling from t to s. The noise
    of the first row is the increment of a Brownian path over (t, m), and that of the second over (t, s), so that x_hat
    at m is an estimate along the path that z_s ends.
    """
    gamma_t, gamma_s = pairs(gamma)
    middle = 0.5 * (gamma_t + gamma_s)
    points = torch.stack([gamma_t, middle], dim=1).flatten()
    halves = ancestral(torch.cat([points, gamma_s[-1:]]).flip(0)).table[::2]
    whole = ancestral(gamma).table
    zero = torch.zeros_like(middle)
    second = coefficient_rows(middle, zero, whole[:, B], whole[:, S])
    second[:, D] = whole[:, A]
    table = torch.stack([halves, second], dim=1).flatten(0, 1)
    ends = torch.stack([torch.stack([middle, gamma_t], dim=1), spans(gamma)], dim=1).flatten(0, 1)
    return Plan(points, table, calls_per_step=2, noise_span=ends)


def euler_ancestral(gamma: Tensor, eta: float = 1.0) -> Plan:
    """Euler's method with ancestral steps (``euler_ancestral`` of k-diffusion).

    In y = z / alpha and rho = e^{gamma / 2}, with u = min(rho_s, eta rho_s sqrt(1 - rho_s² / rho_t²)): an Euler step of
    the probability-flow ODE from rho_t to sqrt(rho_s² - u²), and noise u eps. An Euler step is a DDIM step, so this is
    DDIM of the same eta. With eta = 1 it is ancestral sampling with ``fixed_small``. For eta > 1 u is bounded by rho_s.
    """
    gamma_t, gamma_s = pairs(gamma)
    return ddim(gamma, (-torch.expm1(gamma_s - gamma_t)).rsqrt().clamp(max=eta))
