"""Noise schedules: gamma(t) = -log SNR(t), increasing and finite on t in [0, 1], 0 = data, 1 = noise.

A schedule is a module with ``forward(t)`` and its derivative ``slope(t)``, both differentiable in the parameters, for
float32 or float64 t of any shape. alpha, sigma, loss weights and sampler coefficients all derive from gamma.
`FunctionSchedule` makes a schedule of any callable gamma(t).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..kernels import FastdiffError, InvalidValueError
from .spacings import WANTED, Times, check_times

SPACINGS = ("time", "gamma", "quadratic", "karras")
RHO = 7.0  # of the spacing "karras", the value of the paper


class ScheduleError(FastdiffError, ValueError):
    """A schedule that is not finite and increasing where it is used."""


class Schedule(nn.Module):
    """Base class of noise schedules. Subclasses implement ``forward(t)`` and ``slope(t)``."""

    def slope(self, t: Tensor) -> Tensor:
        """Return gamma'(t), of the shape of t."""
        raise NotImplementedError

    def endpoints(self) -> tuple[Tensor, Tensor]:
        """Return gamma(0) and gamma(1), differentiable scalars in float32."""
        ends = self(torch.arange(2.0, device=device_of(self)))  # made on the device: a graph cannot capture a copy
        return ends[0], ends[1]

    def both(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma(t) and gamma'(t)."""
        return self(t), self.slope(t)

    def for_training(self, t: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], None]]:
        """Return gamma(t) and gamma'(t) at times t [B], and a function that makes the gradients the schedule's own.

        The function is called before the backward pass with the continuous-time diffusion loss of each sample, [B],
        without a graph. Only `LearnedSchedule`, whose interior minimises the variance of that loss, makes use of it.
        """
        return *self.both(t), lambda loss: None

    def interior_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that `for_training` trains on the variance of the loss instead of the bound."""
        return []


class FunctionSchedule(Schedule):
    """A schedule from any callable gamma(t); gamma'(t) is computed by automatic differentiation.

    Args:
        function: maps t, float32 or float64 of any shape, to gamma(t) of that shape by differentiable operations. It
            must be finite and increasing on [0, 1]. The parameters of a module are trained on the bound and saved with
            the model.

    Raises:
        ScheduleError: gamma is not finite and increasing at 65 points of [0, 1].
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("place", torch.empty(0), persistent=False)  # a plain function has no device of its own
        gamma_table(self, 64)

    def forward(self, t: Tensor) -> Tensor:
        return self.function(t)

    def slope(self, t: Tensor) -> Tensor:
        keeps_graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            t = t.detach().clone().requires_grad_()
            return torch.autograd.grad(self.function(t).sum(), t, create_graph=keeps_graph)[0]


def as_schedule(schedule: Callable[[Tensor], Tensor]) -> Schedule:
    """Return a schedule as it is, and any other callable as a `FunctionSchedule`.

    Raises:
        InvalidValueError: the argument is not callable.
    """
    if not callable(schedule):
        raise InvalidValueError(f"schedule must be a callable gamma(t), got {schedule!r}")
    return schedule if isinstance(schedule, Schedule) else FunctionSchedule(schedule)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer; the default device if it has none."""
    return next(iter([*module.parameters(), *module.buffers()]), torch.empty(0)).device


def check_increasing(where: str, gamma: Tensor) -> None:
    """Check by value that gamma at increasing t, float [N], is finite and increasing.

    Raises:
        ScheduleError: naming the first entry that is not.
    """
    values = gamma.detach().double().cpu()
    finite = torch.isfinite(values)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise ScheduleError(f"{where}: gamma must be finite, got {float(values[index])} at entry {index}")
    rising = torch.diff(values) > 0
    if not rising.all():
        index = int((~rising).nonzero()[0])
        low, high = float(values[index]), float(values[index + 1])
        raise ScheduleError(
            f"{where}: gamma must increase with t, but goes from {low:.6g} to {high:.6g} at entry {index + 1}"
        )


@torch.no_grad()
def gamma_table(schedule: nn.Module, steps: int, spacing: str | Times = "time", rho: float = RHO) -> Tensor:
    """Return gamma at steps + 1 points from t = 0 to t = 1, float64 [steps + 1] on the CPU, checked by value.

    Args:
        schedule: gamma(t).
        steps: number of steps between the points, >= 1.
        spacing: ``"time"``: t = i / steps. ``"quadratic"``: t = (i / steps)², denser near the data. ``"gamma"``: evenly
            spaced in gamma. ``"karras"``: evenly spaced in (sigma / alpha)^{1 / rho} = e^{gamma / (2 rho)} (Karras et
            al. 2022, eq. 5). Or the steps + 1 times themselves, increasing from 0 to 1.
        rho: exponent of ``"karras"``, > 0: the larger, the denser near the data; "gamma" is the limit of large rho.

    Raises:
        InvalidValueError: steps < 1, an unknown spacing, times that do not fit, or rho that is not finite and > 0.
        ScheduleError: the schedule is not finite and increasing at these points.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidValueError(f"gamma_table: steps must be an integer >= 1, got {steps!r}")
    if isinstance(spacing, str) and spacing not in SPACINGS:
        raise InvalidValueError(f"gamma_table: spacing must be one of {', '.join(SPACINGS)}, or times, got {spacing!r}")
    if not 0.0 < rho < math.inf:
        raise InvalidValueError(f"gamma_table: rho must be finite and > 0, got {rho!r}")
    i = torch.arange(steps + 1, dtype=torch.float64, device=device_of(schedule)) / steps
    times = i.square() if spacing == "quadratic" else i if isinstance(spacing, str) else _times(spacing, i)
    gamma = schedule(times).double().cpu()
    check_increasing(f"{type(schedule).__name__} at {steps} steps", gamma)
    i, first, last = i.cpu(), gamma[:1], gamma[-1:]
    if spacing == "karras":
        between = torch.logaddexp(torch.log1p(-i) + first / (2.0 * rho), i.log() + last / (2.0 * rho))[1:-1]
        return torch.cat([first, 2.0 * rho * between, last])
    return first + (last - first) * i if spacing == "gamma" else gamma


def _times(spacing: Times, i: Tensor) -> Tensor:
    """Return explicit times as a tensor like i [steps + 1], checked."""
    wanted = check_times(spacing)
    if wanted is not None or len(spacing) != len(i):
        raise InvalidValueError(
            f"spacing must be {len(i)} {WANTED} for {len(i) - 1} steps between them, got {len(spacing)} times {spacing}"
        )
    return torch.tensor(spacing, dtype=i.dtype, device=i.device)
