"""Importance sampling of gamma: a sampling distribution for the continuous-time diffusion term, fitted to a model.

The term ½ ∫ E|eps - eps_hat|² d gamma is the expectation of ½ |eps - eps_hat|² / p(gamma) for any density p > 0 between
the endpoints. A schedule is such a density, p(gamma) = 1 / gamma'(t) with t uniform.
"""

import torch
from torch import Tensor

from ..kernels import InvalidValueError
from .schedules import Schedule, check_increasing

BINS = 64
FLOOR = 0.1  # part of the density that is uniform in gamma: no weight is above 10 times that of the linear schedule


class PiecewiseLinearSchedule(Schedule):
    """gamma(t) through knots, linear between them: the density of gamma is constant between two knots.

    Args:
        gamma: gamma at the knots, float64 [N + 1], increasing, N >= 1.
        t: times of the knots, float64 [N + 1], increasing from 0 to 1.

    Raises:
        InvalidValueError: tensors of other shapes, or times that do not increase from 0 to 1.
        ScheduleError: gamma is not finite and increasing.
    """

    knots: Tensor
    times: Tensor

    def __init__(self, gamma: Tensor, t: Tensor) -> None:
        super().__init__()
        gamma, t = gamma.detach().double(), t.detach().double()
        if gamma.dim() != 1 or len(gamma) < 2 or gamma.shape != t.shape:
            raise InvalidValueError(
                "PiecewiseLinearSchedule: gamma and t must be vectors of the same length >= 2, "
                f"got shapes {tuple(gamma.shape)} and {tuple(t.shape)}"
            )
        if t[0] != 0.0 or t[-1] != 1.0 or not (t.diff() > 0.0).all():
            raise InvalidValueError(f"PiecewiseLinearSchedule: t must increase from 0 to 1, got {t.tolist()}")
        check_increasing("PiecewiseLinearSchedule", gamma)
        self.register_buffer("knots", gamma)
        self.register_buffer("times", t)

    def both(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = t.double()
        low = torch.searchsorted(self.times, u, right=True).sub_(1).clamp_(0, len(self.times) - 2)
        slope = (self.knots.diff() / self.times.diff())[low]
        return (self.knots[low] + slope * (u - self.times[low])).to(t.dtype), slope.to(t.dtype)

    def forward(self, t: Tensor) -> Tensor:
        return self.both(t)[0]

    def slope(self, t: Tensor) -> Tensor:
        return self.both(t)[1]


def fit_proposal(
    gamma: Tensor, values: Tensor, low: float, high: float, bins: int = BINS, floor: float = FLOOR
) -> PiecewiseLinearSchedule:
    """Return the schedule whose density of gamma is proportional to the root mean square of an integrand, by bins.

    That density has the least variance among all that are constant on the bins. The integrand is known at samples only,
    so the density is (1 - floor) times the fitted one plus ``floor`` times the uniform one (Hesterberg 1995, Weighted
    average importance sampling and defensive mixture distributions): the estimate stays unbiased where the samples are
    few, and its variance is at most 1 / floor times that of uniform gamma.

    Args:
        gamma: where the integrand was sampled, float [M] in [low, high].
        values: the samples, float [M] >= 0, finite.
        low, high: endpoints of gamma, low < high.
        bins: number of bins, of equal width in gamma, >= 1. A bin without samples takes the mean of all.
        floor: in (0, 1].

    Raises:
        InvalidValueError: bins < 1, a floor outside (0, 1], or no samples.
    """
    if bins < 1 or not 0.0 < floor <= 1.0 or not len(gamma):
        raise InvalidValueError(
            "fit_proposal: bins must be >= 1, floor in (0, 1] and gamma not empty, "
            f"got {bins}, {floor} and {len(gamma)} samples"
        )
    index = ((gamma.double() - low) / (high - low) * bins).long().clamp_(0, bins - 1)
    sums = torch.zeros(2, bins, dtype=torch.float64, device=gamma.device)
    square = values.double().square()
    sums.index_add_(1, index, torch.stack([square, torch.ones_like(square)]))
    mean = torch.where(sums[1] > 0, sums[0] / sums[1].clamp(min=1.0), square.mean())
    density = mean.sqrt()
    total = density.sum()
    share = density / total if total > 0 else torch.full_like(density, 1.0 / bins)
    times = torch.zeros(bins + 1, dtype=torch.float64, device=gamma.device)
    times[1:] = torch.cumsum((1.0 - floor) * share + floor / bins, 0)
    times[-1] = 1.0
    return PiecewiseLinearSchedule(torch.linspace(low, high, bins + 1, dtype=torch.float64, device=gamma.device), times)
