"""The plan of a sampler on a model's schedule, checked once."""

from dataclasses import replace

import torch
from torch import Tensor

from ..kernels import InvalidValueError
from .beta_schedule import BetaSchedule, linear_betas
from .brownian import brownian_table
from .plan import Plan, check_plan, coefficient_rows
from .samplers import MODEL_SPACING, SAMPLERS, Sampler
from .schedules import Schedule, gamma_table
from .spacings import Spacings, Times

MAX_STEPS = 1_000_000  # far beyond any use, and little memory
NO_VARIANCE = -400.0  # log-variance of a step without noise: the deviation e^-200 is 0 in float32


def make_plan(
    sampler: Sampler,
    schedule: Schedule,
    steps: int,
    variance: str = "fixed_small",
    network_decoder: bool = False,
    spacings: Spacings | None = None,
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

    Raises:
        InvalidValueError: too few steps, options that do not fit the model, or a plan whose values are not finite.
        ScheduleError: gamma is not finite and increasing.
    """
    least = 1 + network_decoder
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
        raise InvalidValueError(f"steps must be an integer >= {least}, got {steps!r}")
    if steps > MAX_STEPS:
        raise InvalidValueError(f"steps must be <= {MAX_STEPS}, got {steps}")
    if sampler.betas is None:
        spacing = sampler.spacing
        if spacing == MODEL_SPACING:
            spacing = _model_times(sampler, steps, spacings or {})
        gamma = gamma_table(schedule, steps - network_decoder, spacing, sampler.rho)
    elif not network_decoder:
        raise InvalidValueError("betas must be None for a model that is not a DDPM")
    elif sampler.spacing != "time":
        raise InvalidValueError(f"spacing must be 'time' where betas are set, got {sampler.spacing!r}")
    else:
        gamma = gamma_table(BetaSchedule(linear_betas(steps, *sampler.betas)), steps - 1)
    sampler = sampler.for_variance(variance)
    plan = sampler.before_decoder(gamma) if network_decoder else sampler(gamma)
    check_plan(plan)
    if network_decoder:
        plan = _with_last_row(plan, gamma[:1])
    if sampler.brownian:
        if plan.noise_span is None:
            raise InvalidValueError("brownian must be False for a sampler without noise, or a Plan without noise_span")
        plan = replace(plan, brownian=brownian_table(plan.noise_span))
    return replace(plan, clip_denoised=sampler.clip_denoised)


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
