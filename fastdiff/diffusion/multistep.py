"""The rows of UniPC and DEIS: exponential multistep methods, one call of the network a step.

In lambda = -gamma / 2 the probability-flow ODE is solved exactly but for the prediction of the network. Over a step of
length h from t to s, with u in [0, 1] the place within the step,

    z_s = (sigma_s / sigma_t) z_t + alpha_s h ∫ e^{-h (1 - u)} x_hat(u) du       (data prediction: UniPC)
    z_s = (alpha_s / alpha_t) z_t - sigma_s h ∫ e^{h (1 - u)} eps_hat(u) du      (noise prediction: DEIS)

and the prediction is replaced by the polynomial in u through the predictions of this call and of earlier ones. So the
weights w of the predictions at u = r_k satisfy Σ w_k r_k^j = ∫ e^{±h (1 - u)} u^j du = j! phi_{j+1}(±h), up to the
factor, with phi_1(x) = (e^x - 1) / x and phi_{j+1}(x) = (phi_j(x) - 1 / j!) / x.

Each function maps gamma, float64 [steps + 1] with gamma at t = 0 first, to a `Plan`. Arithmetic is float64. The first
steps have fewer predictions to use, and so a lower order; ``final_order`` lowers the order of the last ones.
"""

import math

import torch
from torch import Tensor

from .plan import C_1, C_3, A, B, D, Plan, coefficient_rows
from .process import alpha, sigma
from .rows import ddim, pairs

ORDERS = (1, 2, 3)
SERIES = 18  # terms of phi's power series: 1 / 19! is below the rounding of float64


def unipc(
    gamma: Tensor, order: int = 3, corrector: bool = True, solver: str = "bh2", final_order: int | None = None
) -> Plan:
    """UniPC (Zhao et al. 2023, algorithms 5 and 6), data prediction.

    The predictor (UniP) uses ``order`` estimates x_hat. The corrector (UniC) repeats the step with the estimate at its
    end as well, which the next call of the network gives for nothing: it raises the order by one, and is not applied
    after the last step. With z_t the predicted latent that the network sees, the corrected one is

        z_t + Σ_k (w_k of the corrector - w_k of the predictor) x_hat_k,

    since both start from the same latent with the same factor. The next prediction is linear in it, so a row needs no
    latent but z_t. A step with two estimates has one weight to choose, which the paper sets to B(h) / 2, with B(h) =
    e^{-h} - 1 (``"bh2"``) or -h (``"bh1"``); from three estimates on the weights do not depend on B(h).

    Args:
        gamma: float64 [steps + 1].
        order: 1, 2 or 3.
        corrector: whether to correct.
        solver: ``"bh2"`` or ``"bh1"``, the paper's B_2(h) and B_1(h).
        final_order: order of the last step, the one before it has at most one more, and so on; None for ``order``.
    """
    gamma_t, gamma_s = pairs(gamma)
    orders = _orders(len(gamma_t), order, final_order)
    weights, change = gamma.new_zeros(len(gamma_t), 4), gamma.new_zeros(len(gamma_t) + 1, 4)
    for p in ORDERS[:order]:
        rows = (orders == p).nonzero().flatten()
        h, nodes = _nodes(gamma, rows, p)
        scale = (alpha(gamma_s[rows]) * h)[:, None]
        moments = scale * _moments(-h, p + 1)
        simple = scale[:, 0] * 0.5 * (_moments(-h, 1)[:, 0] if solver == "bh2" else 1.0)
        weights[rows, :p] = _solve(nodes, torch.stack([moments[:, 0], simple], 1) if p == 2 else moments[:, :p])
        if p == 1:
            moments = torch.stack([moments[:, 0], simple], 1)
        change[rows + 1, : p + 1] = _solve(torch.cat([torch.ones_like(nodes[:, :1]), nodes], 1), moments)
        change[rows + 1, 1 : p + 1] -= weights[rows, :p]
    a = sigma(gamma_s) / sigma(gamma_t)
    if corrector:
        weights += a[:, None] * change[:-1]
    b, *history = weights.unbind(1)
    return Plan(gamma_t, coefficient_rows(gamma_t, a, b, history=tuple(history)))


def deis(gamma: Tensor, order: int = 3, final_order: int | None = None) -> Plan:
    """DEIS (Zhang and Chen 2023), the log-rho variant of tAB-DEIS: the polynomial is one in log(sigma / alpha).

    Remembered noise is that of remembered estimates and latents, eps_hat_k = (z_k - alpha_k x_hat_k) / sigma_k: order 2
    reads the latent before z_t (column D), and order 3 the one before that (column C_3, see `Plan.third_is_latent`).

    Args:
        gamma: float64 [steps + 1].
        order: 1 (DDIM), 2 or 3.
        final_order: order of the last step, the one before it has at most one more, and so on; None for ``order``.
    """
    gamma_t, gamma_s = pairs(gamma)
    orders = _orders(len(gamma_t), order, final_order)
    weights = gamma.new_zeros(len(gamma_t), 3)  # of eps_hat, eps_hat_1 and eps_hat_2
    for p in ORDERS[:order]:
        rows = (orders == p).nonzero().flatten()
        h, nodes = _nodes(gamma, rows, p)
        weights[rows, :p] = _solve(nodes, -(sigma(gamma_s[rows]) * h)[:, None] * _moments(h, p))
    earlier = weights[:, 1:].sum(1)
    plan = ddim(gamma)  # all the weight on eps_hat; `earlier` of it goes to the noise of earlier calls
    table = plan.table.clone()
    table[:, A] -= earlier / sigma(gamma_t)
    table[:, B] += earlier * torch.exp(-0.5 * gamma_t)
    for k, latent in ((1, D), (2, C_3)):
        if k < order:
            gamma_k = gamma_t[:-k]
            table[k:, latent] = weights[k:, k] / sigma(gamma_k)
            table[k:, C_1 + k - 1] = -weights[k:, k] * torch.exp(-0.5 * gamma_k)
    return Plan(gamma_t, table, third_is_latent=order == 3)


def _orders(steps: int, order: int, final_order: int | None) -> Tensor:
    """Return the order of every step, int64 [steps]: one more at each of the first, one less at each of the last."""
    step = torch.arange(steps)
    last = (order if final_order is None else final_order) + (steps - 1 - step)
    return torch.minimum(step + 1, last).clamp(max=order)


def _nodes(gamma: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return h [rows] of the steps ``rows``, and r_k [rows, count] of the calls at their start and before, r_0 = 0."""
    half = -0.5 * gamma.flip(0)  # lambda
    h = half[rows + 1] - half[rows]
    return h, torch.stack([(half[rows - k] - half[rows]) / h for k in range(count)], dim=1)


def _moments(x: Tensor, count: int) -> Tensor:
    """Return j! phi_{j+1}(x) = ∫ e^{x (1 - u)} u^j du for j = 0 .. count - 1, [rows, count]."""
    large = torch.where(x.abs() < 1.0, 1.0, x)  # the recursion cancels where x is small
    phi, columns = torch.expm1(large) / large, []
    for j in range(count):
        series = sum(x**n / float(math.factorial(n + j + 1)) for n in range(SERIES))
        columns.append(math.factorial(j) * torch.where(x.abs() < 1.0, series, phi))
        phi = (phi - 1.0 / math.factorial(j + 1)) / large
    return torch.stack(columns, dim=1)


def _solve(nodes: Tensor, moments: Tensor) -> Tensor:
    """Return w [rows, count] with Σ_k w_k r_k^j = moments_j, from r_k and the moments, [rows, count] each."""
    powers = torch.stack([nodes**j for j in range(nodes.shape[1])], dim=1)
    return torch.linalg.solve(powers, moments)
