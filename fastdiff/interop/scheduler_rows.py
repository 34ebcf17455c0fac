"""The steps of DDPM and DDIM over a chain of betas as rows of `sampler_step`, with diffusers' rounding.

z_t is the sample at timestep t, alpha_t² = Π_{j <= t} (1 - beta_j), sigma_t² = 1 - alpha_t², and m is what the network
predicts: eps, v or x. Both estimates are linear in z_t and m:

    x_hat = p z_t - r m,   eps_hat = f z_t + g m       (`PREDICTIONS`)

p and r are the first two columns of a row, so that no prediction is converted before the step. With s the next timestep
(alpha_s = 1 for none), beta = 1 - alpha_t² / alpha_s² and clip the bound on x_hat, if there is one:

    z_s = (alpha_t sigma_s² / alpha_s sigma_t²) z_t + (alpha_s beta / sigma_t²) clip(x_hat) + S eps

is a step of DDPM (Ho et al. 2020, eq. 7), and

    z_s = alpha_s clip(x_hat) + d eps_hat + S eps,   S² = eta² sigma_s² beta / sigma_t²,   d² = sigma_s² - S²

one of DDIM (Song et al. 2021, eq. 12). Its eps_hat is that of x_hat before it is clipped; if there is a clip, m enters
by column D. Arithmetic is float64, from alpha_t² and alpha_t² / alpha_s² in float32: near t = 0, where 1 - alpha² keeps
three digits of float32, a step from exact values would differ from one of diffusers'.

From eps, x_hat is the difference of two numbers 1 / alpha_t larger. Where 1 / alpha_t > `LARGEST_SCALE`, the step takes
the residual z_t - sigma_t eps, rounded as diffusers rounds it, in place of m: p = 0 and r = -1 / alpha_t.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.beta_schedule import cosine_betas
from ..diffusion.plan import COLUMNS, A, B, D, S, W

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
LARGEST_SCALE = 32.0  # keeps the difference of x_hat from that of diffusers below 1e-5
SMALLEST_VARIANCE = 1e-20  # of DDPM in diffusers, whose logarithm is finite

# (p, r, f, g) of alpha_t and sigma_t for each prediction
PREDICTIONS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]] = {
    "epsilon": lambda alpha, sigma: (1.0 / alpha, sigma / alpha, torch.zeros_like(alpha), torch.ones_like(alpha)),
    "v_prediction": lambda alpha, sigma: (alpha, sigma, sigma, alpha),
    "sample": lambda alpha, sigma: (torch.zeros_like(alpha), -torch.ones_like(alpha), 1.0 / sigma, -alpha / sigma),
}


def betas_in_float32(kind: str, count: int, first: float, last: float) -> Tensor:
    """Return the betas of one of `BETAS`, float32 [count], with diffusers' rounding."""
    if kind == "squaredcos_cap_v2":
        return cosine_betas(count).float()
    if kind == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, count)) * (last - first) + first
    if kind == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, count).square()
    return torch.linspace(first, last, count)


@dataclass(frozen=True)
class Steps:
    """One step from every timestep of a chain, all float64 [T].

    alpha_t, sigma_t, alpha_s: roots of alpha_t², sigma_t² and alpha_s². ratio: alpha_t² / alpha_s². variance_s:
    sigma_s². beta: 1 - ratio.
    """

    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    variance_s: Tensor
    ratio: Tensor
    beta: Tensor

    @classmethod
    def between(cls, kept: Tensor, previous: Tensor, last: float) -> "Steps":
        """Return the steps from t to previous[t] for alpha² = ``kept``, float32 [T], and ``previous``, int64 [T].

        ``last`` is alpha_s² where previous[t] is negative.
        """
        kept_s = torch.where(previous >= 0, kept[previous.clamp(min=0)], last)
        ratio = kept / kept_s  # rounded to float32, as all differences from 1
        alpha_t, sigma_t, alpha_s = (each.double().sqrt() for each in (kept, 1.0 - kept, kept_s))
        return cls(alpha_t, sigma_t, alpha_s, (1.0 - kept_s).double(), ratio.double(), (1.0 - ratio).double())

    @property
    def posterior_variance(self) -> Tensor:
        """The variance of q(z_s | z_t, x), sigma_s² beta / sigma_t²."""
        return self.variance_s / self.sigma_t**2 * self.beta


@dataclass(frozen=True)
class StepTable:
    """The rows of all timesteps.

    rows: float32 [T, 10], see `sampler_step`. residual_from: the first timestep whose row takes the residual.
    reads_prediction: whether column D multiplies the network's prediction. log_variance: float32 [T, 2], the logarithms
    of the smallest and the largest variance of DDPM for networks that predict it; else None, and S scales the noise.
    """

    rows: Tensor
    residual_from: int
    reads_prediction: bool = False
    log_variance: Tensor | None = None

    def to(self, device: torch.device) -> "StepTable":
        """Return the table on a device."""
        log_variance = None if self.log_variance is None else self.log_variance.to(device)
        return replace(self, rows=self.rows.to(device), log_variance=log_variance)


def ddpm_table(steps: Steps, prediction: str, variance: str) -> StepTable:
    """Return the rows of ancestral sampling.

    S² is the posterior's variance for ``"fixed_small"``, beta for ``"fixed_large"``, and the same for their logarithms.
    It is 0 for ``"learned"`` and ``"learned_range"``, whose noise is not scaled by the row.
    """
    small = steps.posterior_variance.clamp(min=SMALLEST_VARIANCE)
    rows, residual_from = _rows(steps, prediction)
    rows[:, A] = steps.ratio.sqrt() * steps.variance_s / steps.sigma_t**2
    rows[:, B] = steps.alpha_s * steps.beta / steps.sigma_t**2
    if variance.startswith("learned"):
        log_variance = torch.stack([small, steps.beta], dim=1).log().float()
        return StepTable(rows.float(), residual_from, log_variance=log_variance)
    rows[1:, S] = (steps.beta if variance.startswith("fixed_large") else small)[1:].sqrt()  # none from t = 0
    return StepTable(rows.float(), residual_from)


def ddim_table(steps: Steps, prediction: str, eta: float, keeps_eps_hat: bool) -> StepTable:
    """Return the rows of DDIM.

    Args:
        steps: the steps.
        prediction: one of `PREDICTIONS`.
        eta: 0 for DDIM, 1 for ancestral sampling with the posterior's variance.
        keeps_eps_hat: whether eps_hat is that of x_hat before it is clipped. If False, it is computed from x_hat
            after it was clipped (Nichol et al. 2021, GLIDE); both are the same where x_hat is not clipped.
    """
    variance = eta**2 * steps.posterior_variance
    direction = (steps.variance_s - variance).clamp(min=0.0).sqrt()
    rows, residual_from = _rows(steps, prediction)
    rows[:, S] = variance.sqrt()
    if keeps_eps_hat:
        _, _, of_z, of_prediction = PREDICTIONS[prediction](steps.alpha_t, steps.sigma_t)
        rows[:, A], rows[:, B], rows[:, D] = direction * of_z, steps.alpha_s, direction * of_prediction
    else:
        rows[:, A] = direction / steps.sigma_t
        rows[:, B] = steps.alpha_s - direction * steps.alpha_t / steps.sigma_t
    return StepTable(rows.float(), residual_from, reads_prediction=keeps_eps_hat)


def _rows(steps: Steps, prediction: str) -> tuple[Tensor, int]:
    """Rows with the first two columns and w = 1, float64 [T, 10], and the first timestep that takes the residual."""
    rows = torch.zeros(len(steps.beta), COLUMNS, dtype=torch.float64)
    rows[:, 0], rows[:, 1], *_ = PREDICTIONS[prediction](steps.alpha_t, steps.sigma_t)
    rows[:, W] = 1.0
    if prediction != "epsilon":
        return rows, len(rows)
    residual_from = int((rows[:, 0] <= LARGEST_SCALE).sum())  # 1 / alpha_t increases with t
    rows[residual_from:, 1] = -rows[residual_from:, 0]
    rows[residual_from:, 0] = 0.0
    return rows, residual_from
