"""Samplers as tables of coefficients: every step is z_s = A z_t + B x_hat + Σ C_k x_hat_k + D z_prev + S eps.

A sampler is a callable from gamma, float64 [steps + 1] with gamma at t = 0 first, to a `Plan`, which has one row of
coefficients for every call of the network, from t = 1 down. Arithmetic is float64.

The functions `ancestral`, `ddim`, `dpm_solver` and `heun` are the mathematics. The classes `Ancestral`, `DDIM`,
`DPMSolver` and `Heun` are the same samplers with their options. `make_plan` applies any of them to a model's schedule.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..io.configuration import between, configuration, field, more_than, one_of
from ..kernels import InvalidTypeError, InvalidValueError
from .beta_schedule import BetaSchedule, linear_betas
from .plan import C_1, B, Plan, check_plan, coefficient_rows
from .process import alpha, posterior, sigma, transition_variance
from .schedules import SPACINGS, Schedule, gamma_table

VARIANCES = ("fixed_small", "fixed_large", "learned")
MAX_STEPS = 1_000_000  # far beyond any use, and little memory
NO_VARIANCE = -400.0  # log-variance of a step without noise: the deviation e^-200 is 0 in float32


# ------------------------------------------------------------------------------------------------ mathematics


def ancestral(gamma: Tensor, variance: str = "fixed_small") -> Plan:
    """Ancestral sampling: draw z_s from N(mean of q(z_s | z_t, x = x_hat), variance) (Ho et al. 2020).

    Args:
        gamma: float64 [steps + 1].
        variance: ``"fixed_small"``: the variance of q(z_s | z_t, x). ``"fixed_large"``: that of q(z_t | z_s), DDPM's
            beta_t. ``"learned"``: the network interpolates between their logarithms (Nichol and Dhariwal 2021).
    """
    gamma_t, gamma_s = _pairs(gamma)
    a, b, small = posterior(gamma_s, gamma_t)
    large = transition_variance(gamma_s, gamma_t)
    if variance == "learned":
        bounds = torch.stack([small.log(), large.log()], dim=1)
        return Plan(gamma_t, coefficient_rows(gamma_t, a, b), bounds)
    return Plan(gamma_t, coefficient_rows(gamma_t, a, b, (large if variance == "fixed_large" else small).sqrt()))


def ddim(gamma: Tensor, eta: float = 0.0) -> Plan:
    """DDIM (Song et al. 2021): z_s = alpha_s x_hat + sqrt(sigma_s² - d²) eps_hat + d eps.

    d is eta times the deviation of the posterior: eta = 0 is deterministic, eta = 1 is ancestral sampling. With
    r = exp((gamma_s - gamma_t) / 2) and c = 1 - r²: A = (sigma_s / sigma_t) sqrt(1 - eta² c), and
    B = alpha_s - alpha_t A, computed without cancellation as alpha_s c (1 + eta² r²) / (1 + r sqrt(1 - eta² c)).
    """
    gamma_t, gamma_s = _pairs(gamma)
    r, c = torch.exp(0.5 * (gamma_s - gamma_t)), -torch.expm1(gamma_s - gamma_t)
    root = (r.square() + (1.0 - eta) * (1.0 + eta) * c).sqrt()  # sqrt(1 - eta² c), accurate where c is near 1
    a = sigma(gamma_s) / sigma(gamma_t) * root
    b = alpha(gamma_s) * c * (1.0 + eta**2 * r**2) / (1.0 + r * root)
    return Plan(gamma_t, coefficient_rows(gamma_t, a, b, eta * c.sqrt() * sigma(gamma_s)))


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
    gamma_t, gamma_s = _pairs(gamma)
    b = 0.5 * alpha(gamma_s) * torch.expm1(0.5 * (gamma_t - gamma_s))
    corrector = coefficient_rows(gamma_s, torch.ones_like(b), b, history=(-b,))
    rows = torch.stack([ddim(gamma).table, corrector], dim=1).flatten(0, 1)
    return Plan(torch.stack([gamma_t, gamma_s], dim=1).flatten(), rows, calls_per_step=2)


def _pairs(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Return (gamma_t, gamma_s) of every step, from t = 1 down."""
    descending = gamma.flip(0)
    return descending[:-1], descending[1:]


# ------------------------------------------------------------------------------------------------ samplers with options


def _increasing(betas: tuple[float, float]) -> str | None:
    return None if 0.0 < betas[0] <= betas[1] < 1.0 else "be (first, last) with 0 < first <= last < 1"


@configuration
class Sampler:
    """The options that all samplers share; subclasses are the samplers.

    Args:
        spacing: where the steps lie: evenly in t (``"time"``), evenly in sqrt(t) (``"quadratic"``) or evenly in gamma
            (``"gamma"``).
        betas: (first, last) of evenly spaced betas, one per step, whose noise levels replace those of the model's
            schedule: few-step chains such as (1e-6, 0.8) with 10 steps (DiffuseVAE, Pandey et al. 2022). Only for a
            DDPM. Use a model that was trained at all noise levels (``continuous_noise_conditioning``). With steps this
            long, ancestral sampling with ``fixed_large`` leaves residual noise and with ``fixed_small`` reduces
            diversity.
        temperature: factor on the standard deviation of the initial latent, > 0.
        clip_denoised: clip x_hat to [-1, 1] at every step, as DDPM does.
    """

    spacing: str = field(one_of(*SPACINGS), default="time")
    betas: tuple[float, float] | None = field(_increasing, default=None)
    temperature: float = field(more_than(0.0), default=1.0)
    clip_denoised: bool = False

    def __call__(self, gamma: Tensor) -> Plan:
        """Return the plan for gamma float64 [steps + 1], gamma at t = 0 first."""
        raise NotImplementedError

    def for_variance(self, variance: str) -> "Sampler":
        """Return the sampler for a model whose own reverse variance is ``variance``, one of `VARIANCES`."""
        return self


@configuration
class Ancestral(Sampler):
    """Ancestral sampling, see `ancestral`. ``variance`` is one of `VARIANCES`, or None for the model's own."""

    variance: str | None = field(one_of(*VARIANCES), default=None)

    def __call__(self, gamma: Tensor) -> Plan:
        return ancestral(gamma, self.variance or "fixed_small")

    def for_variance(self, variance: str) -> "Sampler":
        if self.variance == "learned" and variance != "learned":
            raise InvalidValueError("variance must be fixed_small or fixed_large for a model without learned variances")
        own = {name: getattr(self, name) for name in ("spacing", "betas", "temperature", "clip_denoised")}
        return Ancestral(**own, variance=self.variance or variance)


@configuration
class DDIM(Sampler):
    """DDIM, see `ddim`. ``eta`` in [0, 1]: 0 is deterministic, 1 is ancestral sampling."""

    eta: float = field(between(0.0, 1.0), default=0.0)

    def __call__(self, gamma: Tensor) -> Plan:
        return ddim(gamma, self.eta)


@configuration
class DPMSolver(Sampler):
    """DPM-Solver++(2M), see `dpm_solver`."""

    def __call__(self, gamma: Tensor) -> Plan:
        return dpm_solver(gamma)


@configuration
class Heun(Sampler):
    """Heun's method, see `heun`."""

    def __call__(self, gamma: Tensor) -> Plan:
        return heun(gamma)


@configuration
class FunctionSampler(Sampler):
    """A function of the user's own, from gamma float64 [steps + 1] to a `Plan`, with the options of `Sampler`."""

    function: object

    def __call__(self, gamma: Tensor) -> Plan:
        plan = self.function(gamma) if callable(self.function) else None
        if not isinstance(plan, Plan):
            raise InvalidTypeError(f"sampler must be a callable that returns a Plan, got {type(plan).__name__}")
        return plan


SAMPLERS: dict[str, type[Sampler]] = {
    "ancestral": Ancestral, "ddim": DDIM, "dpm-solver": DPMSolver, "heun": Heun,
}  # fmt: skip


def as_sampler(sampler: "str | Sampler | Callable[[Tensor], Plan]") -> Sampler:
    """Return the sampler of a name, of a sampler object, or of a function from gammas to a `Plan`.

    Raises:
        InvalidValueError, InvalidTypeError: an unknown name, or something that is not callable.
    """
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise InvalidValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
        return SAMPLERS[sampler]()
    if isinstance(sampler, type):
        raise InvalidTypeError(f"sampler must be an instance such as {sampler.__name__}(), got the class")
    if isinstance(sampler, Sampler):
        return sampler
    if not callable(sampler):
        raise InvalidTypeError(f"sampler must be a name, a Sampler or a callable, got {sampler!r}")
    return FunctionSampler(function=sampler)


# ------------------------------------------------------------------------------------------------ plans


def make_plan(
    sampler: Sampler, schedule: Schedule, steps: int, variance: str = "fixed_small", network_decoder: bool = False
) -> Plan:
    """Return the plan of a sampler on a model's schedule.

    Args:
        sampler: the sampler.
        schedule: gamma(t).
        steps: number of steps, >= 1; >= 2 with a network decoder, which takes the last one.
        variance: reverse variance of the model, one of `VARIANCES`.
        network_decoder: whether the model's decoder calls the network at t = 0 (DDPM): a last row then maps z_0 to
            x_hat.

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
        gamma = gamma_table(schedule, steps - network_decoder, sampler.spacing)
    elif not network_decoder:
        raise InvalidValueError("betas must be None for a model that is not a DDPM")
    elif sampler.spacing != "time":
        raise InvalidValueError(f"spacing must be 'time' where betas are set, got {sampler.spacing!r}")
    else:
        gamma = gamma_table(BetaSchedule(linear_betas(steps, *sampler.betas)), steps - 1)
    plan = sampler.for_variance(variance)(gamma)
    check_plan(plan)
    if network_decoder:
        plan = _with_last_row(plan, gamma[:1])
    return replace(plan, clip_denoised=sampler.clip_denoised)


def _with_last_row(plan: Plan, gamma_0: Tensor) -> Plan:
    """Append the row z_s = x_hat at gamma_0."""
    last = coefficient_rows(gamma_0, torch.zeros_like(gamma_0), torch.ones_like(gamma_0))
    bounds = plan.log_variance
    if bounds is not None:
        bounds = torch.cat([bounds, bounds.new_full((1, 2), NO_VARIANCE)])
    return replace(
        plan, gamma=torch.cat([plan.gamma, gamma_0]), table=torch.cat([plan.table, last]), log_variance=bounds
    )
