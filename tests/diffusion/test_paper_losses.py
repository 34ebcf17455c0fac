"""The losses of flow matching and of EDM, integrated over their own times, against ours over t."""

import math

import pytest
import torch

from fastdiff.diffusion import SCHEDULES
from fastdiff.diffusion.bound import loss_weight
from fastdiff.diffusion.process import alpha, sigma

ENDS = (-9.0, 6.0)


def error_of_x(gamma: torch.Tensor) -> torch.Tensor:
    """A made-up |x - x_hat|²: grows with the noise, with a bump."""
    return 0.4 * torch.exp(gamma) / (0.3 + torch.exp(gamma)) * (1.0 + 0.5 * torch.exp(-((gamma + 1.0) ** 2)))


def midpoints(low: float, high: float, count: int = 40_000) -> tuple[torch.Tensor, float]:
    width = (high - low) / count
    return low + width * (torch.arange(count, dtype=torch.float64) + 0.5), width


def ratio_at(gamma: float) -> torch.Tensor:
    """tau = sigma / (alpha + sigma)."""
    g = torch.tensor(gamma, dtype=torch.float64)
    return sigma(g) / (alpha(g) + sigma(g))


def flow_matching() -> float:
    """E |u - u_hat|² over uniform tau: with z = (1 - tau) x + tau eps, u = (z - x) / tau."""
    tau, width = midpoints(float(ratio_at(ENDS[0])), float(ratio_at(ENDS[1])))
    gamma = 2.0 * (tau.log() - torch.log1p(-tau))
    return float((error_of_x(gamma) / tau**2).sum()) * width


def edm() -> float:
    """E (s² + sigma_data²) / (s sigma_data)² |x - x_hat|² over ln s ~ N(-1.2, 1.2²) (Karras et al. 2022, table 1)."""
    log_s, width = midpoints(ENDS[0] / 2, ENDS[1] / 2)
    s = log_s.exp()
    density = torch.exp(-0.5 * ((log_s + 1.2) / 1.2) ** 2) / (1.2 * math.sqrt(2.0 * math.pi))
    return float((density * (s**2 + 0.5**2) / (s * 0.5) ** 2 * error_of_x(2.0 * log_s)).sum()) * width


@pytest.mark.parametrize(("loss", "expected"), [("flow", flow_matching()), ("edm", edm())])
@pytest.mark.parametrize("name", SCHEDULES)
@torch.no_grad()
def test_our_loss_is_the_papers(name, loss, expected):
    """The integral over t of the weighted |eps - eps_hat|² = |x - x_hat|² / s²; the factor is 1 for every schedule.

    Measured: 1.5e-8, of the quadratures. With T steps the sum approaches the integral as 1 / T.
    """
    schedule = SCHEDULES[name](*ENDS)
    finer = 10 if name.startswith("importance") else 1  # these are steep near t = 1
    t, width = midpoints(0.0, 1.0, 40_000 * finer)
    gamma, slope = schedule.both(t)
    ours = float((loss_weight(loss, gamma, slope) * error_of_x(gamma) * torch.exp(-gamma)).sum()) * width
    assert ours == pytest.approx(expected, rel=3e-8)
    excess = []
    for steps in (2000 * finer, 4000 * finer):
        gamma = schedule(torch.arange(steps + 1, dtype=torch.float64) / steps)
        weight = loss_weight(loss, gamma[1:], steps * torch.expm1(gamma.diff()))
        excess.append(float((weight * error_of_x(gamma[1:]) * torch.exp(-gamma[1:])).mean()) / ours - 1.0)
    assert abs(excess[0]) < 0.03
    assert excess[0] == pytest.approx(2.0 * excess[1], rel=0.02)


def test_flow_matching_at_flow_times_has_a_constant_weight_on_the_velocity():
    """|eps - eps_hat| = (1 - tau) |u - u_hat| at a given z, so the factor of |u - u_hat|² is tau_1 - tau_0."""
    schedule = SCHEDULES["flow"](*ENDS)
    gamma, slope = schedule.both(torch.linspace(0.0, 1.0, 101, dtype=torch.float64))
    signal = alpha(gamma) / (alpha(gamma) + sigma(gamma))
    width = (ratio_at(ENDS[1]) - ratio_at(ENDS[0])).expand(101)
    torch.testing.assert_close(loss_weight("flow", gamma, slope) * signal**2, width, rtol=1e-13, atol=0)
