"""Noise schedules: gamma(t) = -log SNR(t), increasing on t in [0, 1], 0 = data, 1 = noise.

A schedule is a module with ``forward(t)`` and its derivative ``slope(t)``, both differentiable in the parameters, for
float32 or float64 t of any shape. Everything else (alpha, sigma, weights, sampler coefficients) derives from gamma.
"""

import torch
from torch import Tensor, nn


class ScheduleError(ValueError):
    """A schedule that is not finite and increasing where it is used."""


class Schedule(nn.Module):
    """gamma(t); subclasses give ``forward(t)`` and ``slope(t)``."""

    def slope(self, t: Tensor) -> Tensor:
        """Return gamma'(t), of the shape of t."""
        raise NotImplementedError

    def endpoints(self) -> tuple[Tensor, Tensor]:
        """Return gamma(0) and gamma(1), differentiable scalars in float32."""
        tensor = next(iter([*self.parameters(), *self.buffers()]), torch.empty(0))
        ends = self(torch.arange(2.0, device=tensor.device))  # made on the device: no copy that a graph cannot capture
        return ends[0], ends[1]


class LinearSchedule(Schedule):
    """gamma(t) = gamma_0 + (gamma_1 - gamma_0) t, with fixed or learnable endpoints (Kingma et al. 2021, section 5).

    Args:
        gamma_0, gamma_1: initial endpoints, gamma_0 < gamma_1, finite.
        learned: whether the endpoints are parameters, which then follow the gradient of the bound.

    Raises:
        ScheduleError: endpoints that are not finite and increasing.
    """

    gamma_0: Tensor
    gamma_1: Tensor

    def __init__(self, gamma_0: float, gamma_1: float, learned: bool = False) -> None:
        super().__init__()
        check_increasing("LinearSchedule(gamma_0, gamma_1)", torch.tensor([gamma_0, gamma_1], dtype=torch.float64))
        for name, value in (("gamma_0", gamma_0), ("gamma_1", gamma_1)):
            tensor = torch.tensor(float(value))
            if learned:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def forward(self, t: Tensor) -> Tensor:
        return self.gamma_0 + (self.gamma_1 - self.gamma_0) * t

    def endpoints(self) -> tuple[Tensor, Tensor]:
        """Return gamma_0 and gamma_1, float32 scalars."""
        return self.gamma_0, self.gamma_1

    def slope(self, t: Tensor) -> Tensor:
        return (self.gamma_1 - self.gamma_0) * torch.ones_like(t)


def check_increasing(where: str, gamma: Tensor) -> None:
    """Check by value that a table of gamma at increasing t is finite and increasing.

    Raises:
        ScheduleError: with the first entry that is not.
    """
    values = gamma.detach().double().cpu()
    finite = torch.isfinite(values)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise ScheduleError(f"{where}: gamma is {float(values[index])} at entry {index}; allowed: finite values")
    rising = torch.diff(values) > 0
    if not rising.all():
        index = int((~rising).nonzero()[0])
        low, high = float(values[index]), float(values[index + 1])
        raise ScheduleError(
            f"{where}: gamma goes from {low:.6g} to {high:.6g} at entry {index + 1}; "
            "allowed: values that increase with t"
        )


@torch.no_grad()
def gamma_table(schedule: nn.Module, steps: int) -> Tensor:
    """Return gamma(i / steps) for i = 0 .. steps, float64 [steps + 1] on the CPU, checked by value.

    Raises:
        ValueError: steps < 1.
        ScheduleError: a schedule that is not finite and increasing on this grid.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"gamma_table: steps is {steps!r}; allowed: an integer >= 1")
    parameters = [*schedule.parameters(), *schedule.buffers()]
    device = parameters[0].device if parameters else torch.device("cpu")
    t = torch.arange(steps + 1, dtype=torch.float64, device=device) / steps
    gamma = schedule(t).double().cpu()
    check_increasing(f"{type(schedule).__name__} at {steps} steps", gamma)
    return gamma
