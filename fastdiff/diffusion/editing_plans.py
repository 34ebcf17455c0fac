"""Plans for editing images: from a noise level below t = 1, with steps that are repeated, and from data to noise."""

from dataclasses import replace

import torch
from torch import Tensor

from ..kernels import InvalidValueError
from .plan import C_1, A, B, D, Plan, S, check_plan
from .process import alpha, transition_variance
from .rows import pairs
from .samplers import DDIM, Euler, Heun, Sampler
from .schedules import Schedule


class UpTo(Schedule):
    """The part of a schedule on [0, end], with its times rescaled to [0, 1]: gamma(end t)."""

    def __init__(self, schedule: Schedule, end: float) -> None:
        super().__init__()
        self.schedule, self.end = schedule, end

    def forward(self, t: Tensor) -> Tensor:
        return self.schedule(self.end * t)

    def slope(self, t: Tensor) -> Tensor:
        return self.end * self.schedule.slope(self.end * t)


def resampled(plan: Plan, gamma: Tensor, resample: int) -> Plan:
    """Return the plan that makes every step ``resample`` times, going back to its noise level in between.

    After a step from t to s, the forward process leads back to t and the step is made again, so that the pixels that
    are filled in agree better with the known ones (Lugmayr et al. 2022, RePaint, algorithm 1 with jumps of one step).
    With z_s = A z_t + B x_hat + S eps and alpha_{t|s} = alpha_t / alpha_s, a step and the way back are one linear row,

        z_t' = alpha_{t|s} z_s + sigma_{t|s} eps' = alpha_{t|s} (A z_t + B x_hat)
               + sqrt(alpha_{t|s}² S² + sigma_{t|s}²) eps,

    so no call of the network is spent on the way back. It needs a variance S² that is known before the call: with
    log-variances between two bounds it is exact at the bounds alone.

    Args:
        plan: one row per step, which reads no earlier estimates or latents, without the last row of a network decoder.
        gamma: float64 [steps + 1], gamma at t = 0 first.
        resample: number of times that each step is made, >= 1; 1 returns the plan as it is.

    Raises:
        InvalidValueError: a sampler whose steps read earlier estimates or take more than one call.
    """
    if isinstance(resample, bool) or not isinstance(resample, int) or resample < 1:
        raise InvalidValueError(f"resample must be an integer >= 1, got {resample!r}")
    if resample == 1:
        return plan
    earlier = plan.table[:, C_1 : D if plan.d_is_eps_hat else D + 1] != 0
    if plan.calls_per_step != 1 or bool(earlier.any()) or len(plan.gamma) != len(gamma) - 1:
        raise InvalidValueError(
            "resample must be 1 for a sampler other than ancestral, ddim, euler and euler-a, whose steps depend on the "
            f"steps before them, got {resample}"
        )
    gamma_t, gamma_s = pairs(gamma)
    ratio, forward = alpha(gamma_t) / alpha(gamma_s), transition_variance(gamma_s, gamma_t)
    back, bounds = plan.table.clone(), plan.log_variance
    for column in (A, B, D):  # D is that of eps_hat, or 0
        back[:, column] *= ratio
    if bounds is None:
        back[:, S] = (ratio.square() * back[:, S].square() + forward).sqrt()
    else:
        wider = (ratio.square()[:, None] * bounds.exp() + forward[:, None]).log()
        bounds = _interleaved(wider, bounds, resample)
    return replace(
        plan, gamma=plan.gamma.repeat_interleave(resample), table=_interleaved(back, plan.table, resample),
        log_variance=bounds, calls_per_step=resample, noise_span=None,
    )  # fmt: skip


def _interleaved(back: Tensor, rows: Tensor, resample: int) -> Tensor:
    """Return every row after ``resample`` - 1 copies of its row of ``back``."""
    return torch.stack([back] * (resample - 1) + [rows], dim=1).flatten(0, 1)


def inverse_plan(sampler: Sampler, gamma: Tensor) -> Plan:
    """Return the plan that solves the probability-flow ODE from data to noise, from gamma_0 up to gamma_1.

    In y = z / alpha and rho = e^{gamma / 2} the ODE is dy / d rho = eps_hat, and the rows of DDIM (Euler's method) and
    of Heun's method hold for steps of both signs: the plan is that of the sampler for the gammas in reverse. This is
    the inversion of DDIM (Song et al. 2021, section 4.3).

    Args:
        sampler: `DDIM` with eta = 0, `Euler` or `Heun`, without ``clip_denoised``.
        gamma: float64 [steps + 1], gamma at t = 0 first.

    Raises:
        InvalidValueError: any other sampler, or a plan whose values are not finite.
    """
    known = isinstance(sampler, (Euler, Heun)) or (isinstance(sampler, DDIM) and sampler.eta == 0.0)
    if not known or sampler.clip_denoised:
        raise InvalidValueError(
            "sampler must be ddim with eta = 0, euler or heun, without clip_denoised, to go from images to latents, "
            f"got {sampler!r}"
        )
    plan = replace(sampler(gamma.flip(0)), noise_span=None)
    check_plan(plan)
    return plan
