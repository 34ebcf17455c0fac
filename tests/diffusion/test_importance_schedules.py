"""Importance sampling of gamma: the closed-form densities, the piecewise-constant ones, and what they are fitted to."""

import math

import pytest
import torch

from fastdiff.diffusion import (
    SCHEDULES,
    LinearSchedule,
    PiecewiseLinearSchedule,
    VelocityImportanceSchedule,
    VImportanceSchedule,
    fit_proposal,
)
from fastdiff.diffusion.velocity_density import inverse_tail, tail
from fastdiff.kernels import FastdiffError

T = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
LOW, HIGH = -8.0, 5.0
DENSITIES = {
    VImportanceSchedule: lambda gamma: torch.sigmoid(-gamma),
    VelocityImportanceSchedule: lambda gamma: torch.sigmoid(-0.5 * gamma).square(),
}


# ------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("kind", DENSITIES)
@pytest.mark.parametrize("high", [5.0, 25.0])
def test_the_density_of_gamma(kind, high):
    """p(gamma) = 1 / gamma'(t) is proportional to the density, whose integral by quadrature is the constant."""
    schedule, density = kind(LOW, high), DENSITIES[kind]
    gamma, slope = schedule.both(T)
    fine = torch.linspace(LOW, high, 400_001, dtype=torch.float64)
    total = float(torch.trapezoid(density(fine), fine))
    torch.testing.assert_close(density(gamma) * slope, torch.full_like(gamma, total), rtol=1e-8, atol=0)
    torch.testing.assert_close(schedule(T.float()).double(), schedule(T.float().double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", DENSITIES)
def test_a_constant_error_of_the_velocity_has_the_same_loss_everywhere(kind):
    """½ gamma' |eps - eps_hat|², for an error of the predicted velocity that does not depend on gamma."""
    schedule = kind(LOW, HIGH)
    gamma, slope = schedule.both(T)
    alpha = torch.sigmoid(-gamma).sqrt()
    sigma = torch.sigmoid(gamma).sqrt()
    factor = alpha if kind is VImportanceSchedule else alpha / (alpha + sigma)  # of the error in eps
    loss = 0.5 * slope * factor.square()
    assert float(loss.std() / loss.mean()) < 1e-12
    linear = LinearSchedule(LOW, HIGH)
    at_linear = 0.5 * linear.slope(T) * torch.sigmoid(-linear(T))
    assert float(at_linear.std() / at_linear.mean()) > 0.5


def test_the_tail_and_its_inverse():
    """Against the series of d = sigmoid(-s) and, where it converges badly, the difference; measured: 4e-15 each."""
    s = torch.linspace(-18.0, 18.0, 721, dtype=torch.float64)
    d = torch.sigmoid(-s)
    series = sum(d**n / n for n in range(2, 60))
    expected = torch.where(d < 0.4, series, torch.nn.functional.softplus(-s) - d)
    torch.testing.assert_close(tail(s), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(inverse_tail(expected), s, rtol=0, atol=3e-14)
    around = torch.linspace(2.1, 2.3, 41, dtype=torch.float64)  # where the two formulas meet
    slope = torch.gradient(tail(around), spacing=(around,))[0][1:-1]
    torch.testing.assert_close(slope, -torch.sigmoid(-around[1:-1]).square(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", DENSITIES)
def test_gradients_of_the_endpoints(kind):
    """Of gamma and gamma' by central differences; endpoints are float32, so that they move by a power of two."""
    t, step = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64), 2.0**-9
    schedule = kind(LOW, HIGH, learned=True)
    for k in range(2):
        for value, name in enumerate(("gamma_0", "gamma_1")):
            end = getattr(schedule, name)
            gradients = [torch.autograd.grad(each, end, retain_graph=True)[0] for each in schedule.both(t)[k]]
            ends = [[LOW, HIGH], [LOW, HIGH]]
            ends[0][value] -= step
            ends[1][value] += step
            down, up = (kind(*pair).both(t)[k] for pair in ends)
            expected = (up - down) / (2.0 * step)
            torch.testing.assert_close(torch.stack(gradients).double(), expected, rtol=2e-5, atol=1e-7)


def test_the_names_of_the_schedules():
    assert SCHEDULES["importance-v"] is VImportanceSchedule
    assert SCHEDULES["importance-velocity"] is VelocityImportanceSchedule


# ------------------------------------------------------------------------------------------------ fitted densities


def test_a_piecewise_linear_schedule():
    knots, times = torch.tensor([-3.0, 0.0, 4.0]), torch.tensor([0.0, 0.25, 1.0])
    schedule = PiecewiseLinearSchedule(knots, times)
    t = torch.tensor([0.0, 0.125, 0.25, 0.5, 1.0])
    gamma, slope = schedule.both(t)
    torch.testing.assert_close(gamma, torch.tensor([-3.0, -1.5, 0.0, 4.0 / 3.0, 4.0]))
    torch.testing.assert_close(slope, torch.tensor([12.0, 12.0, 16.0 / 3.0, 16.0 / 3.0, 16.0 / 3.0]))
    assert [float(end) for end in schedule.endpoints()] == [-3.0, 4.0]


def test_a_fit_without_noise():
    """An integrand that is constant on the bins: its density makes the estimate exact, with a floor nearly so."""
    levels = torch.tensor([1.0, 5.0, 0.5, 0.0], dtype=torch.float64)
    gamma = LOW + (HIGH - LOW) * (torch.arange(400, dtype=torch.float64) + 0.5) / 400

    def integrand(gamma: torch.Tensor) -> torch.Tensor:
        return levels[((gamma - LOW) / (HIGH - LOW) * 4).long().clamp(0, 3)]

    u = torch.rand(20_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    integral, spread = float(levels.mean()) * (HIGH - LOW), {}
    for floor in (1e-9, 0.1, 1.0):
        at, slope = fit_proposal(gamma, integrand(gamma), LOW, HIGH, bins=4, floor=floor).both(u)
        values = integrand(at) * slope
        spread[floor] = float(values.std())
        assert abs(float(values.mean()) - integral) < 4.0 * spread[floor] / math.sqrt(len(u)) + 1e-6
    assert spread[1e-9] < 1e-3
    assert spread[0.1] < 0.4 * spread[1.0]  # measured 0.23


def test_a_fit_to_few_samples():
    """A bin without samples takes the mean of all, and samples that are all zero give the uniform density."""
    empty = fit_proposal(torch.tensor([-7.9, -7.8]), torch.tensor([3.0, 4.0]), LOW, HIGH, bins=2)
    torch.testing.assert_close(empty.times, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    zero = fit_proposal(torch.tensor([LOW, HIGH]), torch.zeros(2), LOW, HIGH, bins=5)
    torch.testing.assert_close(zero(T), LinearSchedule(LOW, HIGH)(T))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PiecewiseLinearSchedule(torch.ones(2), torch.ones(3)), "same length"),
        (lambda: PiecewiseLinearSchedule(torch.arange(2.0), torch.tensor([0.0, 0.5])), "from 0 to 1"),
        (lambda: PiecewiseLinearSchedule(torch.arange(3.0), torch.tensor([0.0, 0.0, 1.0])), "from 0 to 1"),
        (lambda: PiecewiseLinearSchedule(torch.zeros(2), torch.arange(2.0)), "increase"),
        (lambda: fit_proposal(torch.ones(0), torch.ones(0), LOW, HIGH), "not empty"),
        (lambda: fit_proposal(torch.ones(1), torch.ones(1), LOW, HIGH, bins=0), "bins"),
        (lambda: fit_proposal(torch.ones(1), torch.ones(1), LOW, HIGH, floor=0.0), "floor"),
    ],
)
def test_what_is_rejected(build, message):
    with pytest.raises(FastdiffError, match=message):
        build()
