"""Plans: what a sampler does, as a table of coefficients with one row per call of the network.

A row is (1/alpha_t, sigma_t/alpha_t, A, B, S, w, C_1, C_2, C_3, D), as `fastdiff.kernels.sampler_step` takes it:

    x_hat = z_t / alpha_t - (sigma_t / alpha_t) eps_hat,   z_s = A z_t + B x_hat + Σ C_k x_hat_k + D z_prev + S eps,

with w the weight of classifier-free guidance and x_hat_k the estimate k calls before. Arithmetic is float64.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels import InvalidValueError
from .process import alpha

COLUMNS = 10
A, B, S, W, C_1, D = 2, 3, 4, 5, 6, 9  # columns of a row; C_2 and C_3 follow C_1


@dataclass(frozen=True)
class Plan:
    """The steps of a sampler, one row per call of the network.

    gamma: float64 [rows], the noise level that the network is called with. table: float64 [rows, 10]. log_variance:
    float64 [rows, 2], the log-variances between which a network with learned variances interpolates; None if S in the
    table scales the noise. calls_per_step: rows of one step. clip_denoised: whether x_hat is clipped to [-1, 1].
    """

    gamma: Tensor
    table: Tensor
    log_variance: Tensor | None = None
    calls_per_step: int = 1
    clip_denoised: bool = False

    def with_guidance(self, weight: float | None) -> "Plan":
        """Return the plan with the weight of classifier-free guidance in every row; None stands for 1."""
        table = self.table.clone()
        table[:, W] = 1.0 if weight is None else weight
        return replace(self, table=table)


def coefficient_rows(
    gamma_t: Tensor, a: Tensor, b: Tensor, s: Tensor | None = None, history: tuple[Tensor, ...] = ()
) -> Tensor:
    """Return the rows z_s = A z_t + B x_hat + S eps + Σ C_k x_hat_k of the steps from gamma_t, float64 [rows, 10].

    ``history`` holds C_1, C_2 and C_3, as many as are used; x_hat_1 is the previous estimate. All arguments are [rows].
    """
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    estimates = [*history, *[zero] * (3 - len(history))]
    columns = [1.0 / alpha(gamma_t), torch.exp(0.5 * gamma_t), a, b, zero if s is None else s, one, *estimates, zero]
    return torch.stack(columns, dim=1)


def check_plan(plan: Plan) -> None:
    """Check a plan by value, once: nothing looks at it in the sampling loop.

    Raises:
        InvalidValueError: shapes that do not fit, or values that are not finite.
    """
    rows = len(plan.gamma) if plan.gamma.dim() == 1 else 0
    if not rows or plan.table.shape != (rows, COLUMNS):
        shapes = f"{tuple(plan.gamma.shape)} and {tuple(plan.table.shape)}"
        raise InvalidValueError(f"a Plan must have gamma [rows] and table [rows, {COLUMNS}], got {shapes}")
    parts = {"gamma": plan.gamma, "table": plan.table, "log_variance": plan.log_variance}
    for name, value in parts.items():
        if value is not None and not torch.isfinite(value).all():
            raise InvalidValueError(f"{name} of a Plan must be finite")
