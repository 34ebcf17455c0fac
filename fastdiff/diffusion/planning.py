"""The plan of a sampler on a model's schedule, checked once."""

from dataclasses import replace

import torch
from torch import Tensor

from ..kernels import InvalidValueError
from .beta_schedule import BetaSchedule, linear_betas, log_expm1
from .brownian import brownian_table
from .editing_plans import UpTo, inverse_plan, resampled
from .plan import Plan, check_plan, coefficient_rows
from .samplers import MODEL_SPACING, SAMPLERS, Sampler
from .schedules import Schedule, ScheduleError, gamma_table
from .spacings import CHAIN_SPACINGS, Spacings, Times, chain_steps

LEAST_START = 1e-3  # below it, a schedule that does not increase on [0, start] is one whose gammas are rounded together
MAX_STEPS = 1_000_000  # far beyond any use, and little memory
NO_VARIANCE = -400.0  # log-variance of a step without noise: the deviation e^-200 is 0 in float32


def make_plan(
    sampler: Sampler,
    schedule: Schedule,
    steps: int,
    variance: str = "fixed_small",
    network_decoder: bool = False,
    spacings: Spacings | None = None,
    start: float = 1.0,
    resample: int = 1,
    inverse: bool = False,
) -> Plan:
    """Return the plan of a sampler on a model's schedule.

    Args:
        sampler: the sampler.
        schedule: gamma(t).
        steps: number of steps, >= 1; >= 2 with a network decoder, which takes the last one.
        variance: reverse variance of the model, one of `VARIANCES`.
        network_decoder: whether the model's decoder calls the network at t = 0 (DDPM): a last row then maps z_0 to
            x_hat.
        spacings: the model's own spacings, for a sampler with the spacing ``"model"``.
        start: time in (0, 1] at which the plan starts: the times of the sampler's spacing are those of [0, start]. At
            steps of a chain (``"leading"``, ...) the chain ends at ``start``.
        resample: number of times that each step is made, see `fastdiff.diffusion.editing_plans.resampled`.
        inverse: return the plan from data to noise, see `fastdiff.diffusion.editing_plans.inverse_plan`; the decoder's
            step is left out, so that its gammas are those of the plan from noise to data.

    Raises:
        InvalidValueError: too few steps, options that do not fit the model, or a plan whose values are not finite.
        ScheduleError: gamma is not finite and increasing.
    """
    _check_steps(steps, 1 + network_decoder, resample)
    if not 0.0 < start <= 1.0:
        raise InvalidValueError(f"start must be a time in (0, 1], got {start!r}")
    try:
        gamma = _gammas(sampler, schedule, steps, network_decoder, spacings or {}, start)
    except ScheduleError as error:
        if start >= LEAST_START:
            raise
        raise InvalidValueError(f"the start (strength) must be larger for {steps} steps, got {start:g}") from error
    sampler = sampler.for_variance(variance)
    if inverse:
        return inverse_plan(sampler, gamma)
    plan = sampler.before_decoder(gamma) if network_decoder else sampler(gamma)
    check_plan(plan)
    plan = resampled(plan, gamma, resample)
    if network_decoder:
        plan = _with_last_row(plan, gamma[:1])
    if sampler.brownian:
        if plan.noise_span is None:
            raise InvalidValueError(
                "brownian must be False for a sampler without noise, with resample > 1, or a Plan without noise_span"
            )
        plan = replace(plan, brownian=brownian_table(plan.noise_span))
    return replace(plan, clip_denoised=sampler.clip_denoised)


def _check_steps(steps: int, least: int, resample: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
        raise InvalidValueError(f"steps must be an integer >= {least}, got {steps!r}")
    if steps > MAX_STEPS:
        raise InvalidValueError(f"steps must be <= {MAX_STEPS}, got {steps}")
    if isinstance(resample, int) and steps * resample > MAX_STEPS:
        raise InvalidValueError(f"steps · resample must be <= {MAX_STEPS}, got {steps} · {resample}")


def _gammas(
    sampler: Sampler, schedule: Schedule, steps: int, network_decoder: bool, spacings: Spacings, start: float
) -> Tensor:
    """Return gamma at the ends of the steps between 0 and ``start``, float64 on the CPU, gamma at t = 0 first."""
    spacing = sampler.spacing
    if sampler.betas is not None:
        if not network_decoder:
            raise InvalidValueError("betas must be None for a model that is not a DDPM")
        if spacing != "time":
            raise InvalidValueError(f"spacing must be 'time' where betas are set, got {spacing!r}")
        return gamma_table(_up_to(BetaSchedule(linear_betas(steps, *sampler.betas)), start), steps - 1)
    if spacing in CHAIN_SPACINGS:
        return _chain_gamma(schedule, str(spacing), steps, network_decoder, start)
    if spacing == MODEL_SPACING:
        spacing = _model_times(sampler, steps, spacings)
    return gamma_table(_up_to(schedule, start), steps - network_decoder, spacing, sampler.rho)


def _up_to(schedule: Schedule, start: float) -> Schedule:
    return schedule if start == 1.0 else UpTo(schedule, start)


def _chain_gamma(schedule: Schedule, spacing: str, steps: int, network_decoder: bool, start: float) -> Tensor:
    """Return gamma at steps of a DDPM's chain up to ``start``, float64 [steps] on the CPU; the decoder takes the last
    of them.
    """
    if not isinstance(schedule, BetaSchedule) or not network_decoder:
        raise InvalidValueError(f"spacing must be other than {spacing!r} for a model that is not a DDPM")
    count = 1 + round(start * (len(schedule.decay) - 1))  # step i of the chain lies at t = i / (len - 1)
    chosen = torch.tensor(chain_steps(spacing, count, steps))
    return log_expm1(schedule.decay.cpu()[chosen])


def _model_times(sampler: Sampler, steps: int, spacings: Spacings) -> Times:
    """Return the times that a model brings for a sampler and a number of steps."""
    name = next((name for name, kind in SAMPLERS.items() if type(sampler) is kind), "of a function")
    known = spacings.get(name, {})
    if steps not in known:
        has = f"has one for {', '.join(map(str, sorted(known)))} steps" if known else "has none"
        raise InvalidValueError(
            f"spacing must be other than {MODEL_SPACING!r} where the model has no spacing of its own for the sampler "
            f"and the steps: for the sampler {name} it {has}, got {steps} steps"
        )
    return known[steps]


def _with_last_row(plan: Plan, gamma_0: Tensor) -> Plan:
    """Append the row z_s = x_hat at gamma_0."""
    last = coefficient_rows(gamma_0, torch.zeros_like(gamma_0), torch.ones_like(gamma_0))
    bounds, spans = plan.log_variance, plan.noise_span
    if bounds is not None:
        bounds = torch.cat([bounds, bounds.new_full((1, 2), NO_VARIANCE)])
    if spans is not None:
        spans = torch.cat([spans, gamma_0.expand(1, 2)])
    return replace(
        plan, gamma=torch.cat([plan.gamma, gamma_0]), table=torch.cat([plan.table, last]), log_variance=bounds,
        noise_span=spans,
    )  # fmt: skip
