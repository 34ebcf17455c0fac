"""Samplers with their options: callables from gammas to a `Plan`, by name or as objects.

The mathematics is in `fastdiff.diffusion.rows`, `fastdiff.diffusion.multistep` and `fastdiff.diffusion.stochastic`.
`fastdiff.diffusion.make_plan` applies a sampler to a schedule.
"""

import math
from collections.abc import Callable
from typing import ClassVar

from attrs import evolve
from torch import Tensor

from ..io.configuration import ConfigError, between, configuration, field, more_than, one_of
from ..kernels import InvalidTypeError, InvalidValueError
from .multistep import ORDERS, deis, unipc
from .plan import Plan
from .rows import ancestral, ddim, dpm_solver, heun
from .schedules import RHO, SPACINGS
from .spacings import CHAIN_SPACINGS, WANTED, Times, check_times
from .stochastic import dpm_solver_sde, dpm_solver_sde_2s, euler_ancestral

VARIANCES = ("fixed_small", "fixed_large", "learned")
MODEL_SPACING = "model"
LOW_ORDER_STEPS = 15  # diffusers' DEIS lowers the order of the last steps only of fewer steps than these


def _increasing(betas: tuple[float, float]) -> str | None:
    return None if 0.0 < betas[0] <= betas[1] < 1.0 else "be (first, last) with 0 < first <= last < 1"


def _spacing(value: str | Times) -> str | None:
    if isinstance(value, str):
        known = (*SPACINGS, MODEL_SPACING, *CHAIN_SPACINGS)
        return None if value in known else f"be one of {', '.join(map(repr, known))}, or {WANTED}"
    return check_times(value)


@configuration
class Sampler:
    """The options that all samplers share; subclasses are the samplers.

    Args:
        spacing: where the steps lie: evenly in t (``"time"``), evenly in sqrt(t) (``"quadratic"``), evenly in gamma
            (``"gamma"``), or evenly in e^{gamma / (2 rho)} (``"karras"``, Karras et al. 2022). ``"model"``: at the
            times that the model brings for this sampler and number of steps (``model.spacings``). ``"leading"``,
            ``"trailing"``, ``"linspace"``: only for a DDPM, at the steps of its chain that diffusers' schedulers of
            these names take; the first two begin below t = 1 or end above t = 0. Or the times
            themselves, increasing from 0 (data) to 1, one more than steps; for a DDPM, whose decoder takes the last
            step, as many as steps.
        rho: exponent of the spacing ``"karras"``, > 0; the larger, the denser near the data.
        betas: (first, last) of evenly spaced betas, one per step, whose noise levels replace those of the model's
            schedule: few-step chains such as (1e-6, 0.8) with 10 steps (DiffuseVAE, Pandey et al. 2022). Only for a
            DDPM. Use a model that was trained at all noise levels (``continuous_noise_conditioning``). With steps this
            long, ancestral sampling with ``fixed_large`` leaves residual noise and with ``fixed_small`` reduces
            diversity.
        temperature: factor on the standard deviation of the initial latent, > 0.
        clip_denoised: clip x_hat to [-1, 1] at every step, as DDPM does.
        brownian: draw the noise of the steps from a Brownian path, so that the same seed gives the same composition
            with any number of steps (`fastdiff.diffusion.brownian`). Only for samplers with noise.
    """

    calls_per_step: ClassVar[int] = 1  # of the network

    spacing: str | Times = field(_spacing, default="time")
    rho: float = field(more_than(0.0), default=RHO)
    betas: tuple[float, float] | None = field(_increasing, default=None)
    temperature: float = field(more_than(0.0), default=1.0)
    clip_denoised: bool = False
    brownian: bool = False

    def __attrs_post_init__(self) -> None:
        if self.rho != RHO and self.spacing != "karras":
            raise ConfigError(
                f"{type(self).__name__}: rho must be {RHO:g} unless spacing is 'karras', got {self.rho:g} with spacing "
                f"{self.spacing!r}"
            )

    def __call__(self, gamma: Tensor) -> Plan:
        """Return the plan for gamma float64 [steps + 1], gamma at t = 0 first."""
        raise NotImplementedError

    def before_decoder(self, gamma: Tensor) -> Plan:
        """Return the plan for gamma where a last row follows that maps z_0 to x_hat (the decoder of a DDPM)."""
        return self(gamma)

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
        return evolve(self, variance=self.variance or variance)


@configuration
class DDIM(Sampler):
    """DDIM, see `ddim`.

    Args:
        eta: in [0, 1]: 0 is deterministic, 1 is ancestral sampling.
        keep_eps_hat: where ``clip_denoised`` clips x_hat, step with the network's eps_hat and not with that of the
            clipped x_hat, as diffusers' DDIM does by default.
    """

    eta: float = field(between(0.0, 1.0), default=0.0)
    keep_eps_hat: bool = False

    def __call__(self, gamma: Tensor) -> Plan:
        return ddim(gamma, self.eta, self.keep_eps_hat and self.clip_denoised)


@configuration
class Euler(Sampler):
    """Euler's method on the probability-flow ODE: the sampler `DDIM` with eta = 0.

    In y = z / alpha and rho = sigma / alpha the ODE is dy / d rho = eps_hat, and Euler's step in it is DDIM's (Karras
    et al. 2022 call it Euler's method). So is Euler's step of flow matching in the time sigma of (1 - sigma) x + sigma
    eps, which is z rescaled.
    """

    def __call__(self, gamma: Tensor) -> Plan:
        return ddim(gamma)


@configuration
class DPMSolver(Sampler):
    """DPM-Solver++(2M), see `dpm_solver`."""

    def __call__(self, gamma: Tensor) -> Plan:
        return dpm_solver(gamma)


@configuration
class Heun(Sampler):
    """Heun's method, see `heun`. It calls the network twice a step."""

    calls_per_step = 2

    def __call__(self, gamma: Tensor) -> Plan:
        return heun(gamma)


@configuration
class Multistep(Sampler):
    """The options of `UniPC` and `DEIS`.

    Args:
        order: 1, 2 or 3. The first steps have a lower order, since they have fewer estimates.
        lower_order_final: whether the last step has order 1 and the one before it at most 2, as in diffusers. The last
            row of a DDPM, which gives x_hat, counts as such a step.
    """

    order: int = field(one_of(*ORDERS), default=3)
    lower_order_final: bool = True

    def __call__(self, gamma: Tensor) -> Plan:
        return self.rows(gamma, 1 if self.lower_order_final else None)

    def before_decoder(self, gamma: Tensor) -> Plan:
        return self.rows(gamma, 2 if self.lower_order_final else None)

    def rows(self, gamma: Tensor, final_order: int | None) -> Plan:
        """Return the plan for gamma, with an order of the last step that is lower than ``order``; None for the same."""
        raise NotImplementedError


@configuration
class UniPC(Multistep):
    """UniPC, see `unipc`.

    Args:
        corrector: whether to correct each step with the estimate at its end, at no further call of the network.
        solver: ``"bh2"`` or ``"bh1"``.
    """

    corrector: bool = True
    solver: str = field(one_of("bh2", "bh1"), default="bh2")

    def rows(self, gamma: Tensor, final_order: int | None) -> Plan:
        return unipc(gamma, self.order, self.corrector, self.solver, final_order)


@configuration
class DEIS(Multistep):
    """DEIS, see `deis`. Fewer than 15 steps alone have a lower order at the end, as in diffusers."""

    def rows(self, gamma: Tensor, final_order: int | None) -> Plan:
        few = len(gamma) - 2 + (final_order or 0) < LOW_ORDER_STEPS
        return deis(gamma, self.order, final_order if few else None)


@configuration
class DPMSolverSDE(Sampler):
    """SDE-DPM-Solver++(2M), see `dpm_solver_sde`. ``eta`` in [0, 1]: 0 is `DPMSolver`, 1 is the reverse SDE."""

    eta: float = field(between(0.0, 1.0), default=1.0)

    def __call__(self, gamma: Tensor) -> Plan:
        return dpm_solver_sde(gamma, self.eta)


@configuration
class DPMSolverSDE2S(Sampler):
    """SDE-DPM-Solver++ with two calls of the network a step, see `dpm_solver_sde_2s`.

    The two calls share their noise, so ``brownian`` is always True.
    """

    calls_per_step = 2

    brownian: bool = field(one_of(True), default=True)

    def __call__(self, gamma: Tensor) -> Plan:
        return dpm_solver_sde_2s(gamma)


@configuration
class EulerAncestral(Sampler):
    """Euler ancestral, see `euler_ancestral`. ``eta`` >= 0 scales the noise; 1 is ancestral sampling."""

    eta: float = field(between(0.0, math.inf, open_above=True), default=1.0)

    def __call__(self, gamma: Tensor) -> Plan:
        return euler_ancestral(gamma, self.eta)


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
    "ancestral": Ancestral, "ddim": DDIM, "dpm-solver": DPMSolver, "heun": Heun, "euler": Euler, "unipc": UniPC,
    "deis": DEIS, "dpm-solver-sde": DPMSolverSDE, "dpm-solver-sde-2s": DPMSolverSDE2S, "euler-a": EulerAncestral,
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
