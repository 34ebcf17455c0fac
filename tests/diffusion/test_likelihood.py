"""DDPM's discretised Gaussian against the normal distribution's own integral."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.diffusion import discretized_gaussian_nll
from fastdiff.kernels import InvalidTypeError, InvalidValueError


def masses(mean: float, logvar: float, levels: int) -> torch.Tensor:
    """p(k) for all k, by differences of a float64 normal distribution's cumulative function."""
    inner = 2.0 * torch.arange(1, levels, dtype=torch.float64) / levels - 1.0
    normal = torch.distributions.Normal(torch.tensor(mean).double(), torch.tensor(0.5 * logvar).double().exp())
    edges = torch.cat([torch.zeros(1), normal.cdf(inner), torch.ones(1)]).double()
    return edges.diff()


@given(mean=st.floats(-1.5, 1.5), logvar=st.floats(-11, 30), levels=st.sampled_from([2, 3, 17, 256]))
def test_masses_add_up_and_equal_the_integral(mean, logvar, levels):
    x = torch.arange(levels, dtype=torch.uint8)[:, None]
    nats = discretized_gaussian_nll(x, torch.full((levels, 1), mean), torch.tensor(logvar), levels).double()
    mean = float(torch.tensor(mean))  # as float32 holds it
    logvar = float(torch.tensor(logvar))
    expected = masses(mean, logvar, levels)
    assert abs(float(torch.exp(-nats).sum()) - 1) < 2e-6  # nats are float32
    resolved = expected > 1e-9  # below, the difference of two cumulative values has no digits left
    torch.testing.assert_close(nats[resolved], -expected[resolved].log(), rtol=1e-6, atol=1e-6)


def test_far_tails_keep_their_digits_and_their_gradients():
    """A mean 50 deviations away from the bin: -log of a mass that float64 cannot hold."""
    mean = torch.tensor([[5.0], [-5.0], [0.9], [0.0]], requires_grad=True)
    logvar = torch.tensor(-4.6, requires_grad=True)
    x = torch.tensor([[0], [16], [16], [8]], dtype=torch.uint8)
    nats = discretized_gaussian_nll(x, mean, logvar, 17)
    deviation = 2.718281828 ** (-2.3)
    edge = (5.0 - (2.0 / 17 - 1.0)) / deviation  # from the mean down to the upper edge of bin 0
    asymptotic = 0.5 * edge**2 + torch.log(torch.tensor(edge * 2.5066282746))
    torch.testing.assert_close(nats[0].detach(), asymptotic.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(nats[1], nats[0])  # the mirror image
    nats.sum().backward()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(logvar.grad)
    assert float(mean.grad[0]) > 0 > float(mean.grad[1])


@given(mean=st.floats(-1.2, 1.2), logvar=st.floats(-6, 2), level=st.integers(0, 16))
def test_gradients_by_differences(mean, logvar, level):
    x = torch.tensor([[level]], dtype=torch.uint8)
    point = torch.tensor([mean, logvar], dtype=torch.float64, requires_grad=True)

    def nats(p: torch.Tensor) -> torch.Tensor:
        return discretized_gaussian_nll(x, p[:1, None], p[1], 17).double().sum()

    gradient = torch.autograd.grad(nats(point), point)[0]
    h = 1e-2
    for k in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[k] = h
        with torch.no_grad():
            slope = (nats(point + step) - nats(point - step)) / (2 * h)
        scale = 1 + abs(float(gradient[k])) + float(torch.exp(-torch.tensor(logvar)))
        assert abs(float(slope - gradient[k])) < 2e-2 * scale


@pytest.mark.parametrize(
    ("levels", "x", "mean", "sigma"), [(2, 0, -0.5, 0.005), (17, 0, -1.3, 0.0074), (2, 1, 9.0, 0.01)]
)
def test_an_edge_bin_reaches_to_infinity(levels, x, mean, sigma):
    """A mean hundreds of deviations inside an open bin: its mass is 1, its gradient 0."""
    point = torch.tensor([[mean]], requires_grad=True)
    nats = discretized_gaussian_nll(
        torch.tensor([[x]], dtype=torch.uint8), point, torch.tensor(2 * math.log(sigma)), levels
    )
    nats.sum().backward()
    assert nats.tolist() == [0.0]
    assert point.grad.tolist() == [[0.0]]


@pytest.mark.parametrize("logvar", [-40.0, 60.0])
def test_extreme_variances_stay_finite(logvar):
    mean, spread = torch.tensor([[0.01]], requires_grad=True), torch.tensor(logvar, requires_grad=True)
    nats = discretized_gaussian_nll(torch.tensor([[8]], dtype=torch.uint8), mean, spread, 17)
    nats.sum().backward()
    assert all(torch.isfinite(value).all() for value in (nats, mean.grad, spread.grad))
    if logvar > 0:  # the density at the centre, times the width
        expected = -math.log(2 / 17) + 0.5 * (logvar + math.log(2 * math.pi))
        assert abs(float(nats.detach()) - expected) < 1e-5


def test_wrong_arguments():
    x = torch.zeros(1, 2, dtype=torch.uint8)
    with pytest.raises(InvalidTypeError, match="uint8"):
        discretized_gaussian_nll(x.long(), x.float(), torch.tensor(0.0), 17)
    with pytest.raises(InvalidValueError, match="mean"):
        discretized_gaussian_nll(x, torch.zeros(1, 3), torch.tensor(0.0), 17)
    with pytest.raises(InvalidValueError, match="levels"):
        discretized_gaussian_nll(x, x.float(), torch.tensor(0.0), 1)
