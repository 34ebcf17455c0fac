"""Plans: what a sampler does, as a table of coefficients with one row per call of the network.

A row is (1/alpha_t, sigma_t/alpha_t, A, B, S, w, C_1, C_2, C_3, D), as `fastdiff.kernels.sampler_step` takes it:

    x_hat = z_t / alpha_t - (sigma_t / alpha_t) eps_hat,   z_s = A z_t + B x_hat + Σ C_k x_hat_k + D z_prev + S eps,

with w the weight of classifier-free guidance, x_hat_k the estimate k calls before and z_prev the latent before z_t.
Arithmetic is float64.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels import InvalidValueError
from .brownian import BrownianTable
from .process import alpha

COLUMNS = 10
A, B, S, W, C_1, C_3, D = 2, 3, 4, 5, 6, 8, 9  # columns of a row; C_2 lies between C_1 and C_3


@dataclass(frozen=True)
class Plan:
    """The steps of a sampler, one row per call of the network.

    gamma: float64 [rows], the noise level that the network is called with. table: float64 [rows, 10]. log_variance:
    float64 [rows, 2], the log-variances between which a network with learned variances interpolates; None if S in the
    table scales the noise. calls_per_step: rows of one step. clip_denoised: whether x_hat is clipped to [-1, 1].
    third_is_latent: C_3 multiplies the latent two calls before z_t, and not x_hat_3. d_is_eps_hat: D multiplies the
    network's eps_hat, and not the latent before z_t.

    noise_span: float64 [rows, 2], the (gamma_s, gamma_t) over which a row's noise is the increment of a Brownian path
    (`fastdiff.diffusion.brownian`), equal for a row without noise; None for a plan that has no noise, or whose noise is
    not such an increment. brownian: the table of that path; None draws the noise of every row independently.
    """

    gamma: Tensor
    table: Tensor
    log_variance: Tensor | None = None
    calls_per_step: int = 1
    clip_denoised: bool = False
    third_is_latent: bool = False
    d_is_eps_hat: bool = False
    noise_span: Tensor | None = None
    brownian: BrownianTable | None = None

    @property
    def guided(self) -> list[bool]:
        """Which rows need the unconditional estimate: those whose weight of guidance is not 1."""
        return (self.table[:, W] != 1.0).tolist()

    def with_guidance(self, weight: float | None, low: float = -math.inf, high: float = math.inf) -> "Plan":
        """Return the plan with a weight of classifier-free guidance in the rows whose gamma lies in [low, high].

        The other rows have the weight 1, that of the conditional model; None stands for 1.
        """
        table = self.table.clone()
        inside = (self.gamma >= low) & (self.gamma <= high)
        table[:, W] = torch.where(inside, 1.0 if weight is None else weight, 1.0)
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
    parts = {
        "gamma": plan.gamma, "table": plan.table, "log_variance": plan.log_variance, "noise_span": plan.noise_span,
    }  # fmt: skip
    for name, value in parts.items():
        if value is not None and not torch.isfinite(value).all():
            raise InvalidValueError(f"{name} of a Plan must be finite")
    if plan.noise_span is not None and plan.noise_span.shape != (rows, 2):
        raise InvalidValueError(f"noise_span of a Plan must be [{rows}, 2], got {tuple(plan.noise_span.shape)}")
