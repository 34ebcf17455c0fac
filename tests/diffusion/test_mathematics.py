"""The process and the terms of the bound against closed forms and brute force in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.diffusion import Vlb, process
from fastdiff.diffusion.bound import finite_times, independent_times, prior_nats, stratified_times
from fastdiff.kernels import Noise, decoder_nll, to_unit_range

GAMMA = st.floats(-30.0, 30.0)


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@given(gamma=GAMMA, x=st.floats(-3, 3), eps=st.floats(-3, 3))
def test_conversions_between_predictions(gamma, x, eps):
    """Conversions lose accuracy in proportion to e^{|gamma| / 2}, and no more than a few ulp of it."""
    g, x, eps = tensor(gamma), tensor(x), tensor(eps)
    z = process.alpha(g) * x + process.sigma(g) * eps
    allowed = 8 * torch.finfo(torch.float64).eps * 6 * math.exp(abs(gamma) / 2)
    v = process.alpha(g) * eps - process.sigma(g) * x
    assert abs(process.x_from_eps(z, eps, g) - x) <= allowed
    assert abs(process.eps_from_x(z, x, g) - eps) <= allowed
    assert abs(process.v_from_eps(z, eps, g) - v) <= allowed
    assert abs(process.eps_from_v(z, v, g) - eps) <= allowed
    u = eps - x
    assert abs(process.velocity_from_eps(z, eps, g) - u) <= allowed
    assert abs(process.velocity_from_x(z, x, g) - u) <= allowed
    assert abs(process.eps_from_velocity(z, u, g) - eps) <= 8 * torch.finfo(torch.float64).eps * 6
    assert abs(process.x_from_velocity(z, u, g) - x) <= 8 * torch.finfo(torch.float64).eps * 6
    score = -(z - process.alpha(g) * x) / process.sigma(g) ** 2
    assert abs(process.score_from_eps(eps, g) - score) <= allowed / process.sigma(g)


CONDITIONS = {  # condition numbers as a function of gamma; at most e^{|gamma| / 2} where signal or noise is divided by
    "x_from_eps": lambda g: torch.exp(g / 2).clamp(min=1.0),
    "eps_from_x": lambda g: torch.exp(-g / 2).clamp(min=1.0),
    "v_from_eps": lambda g: torch.exp(g / 2).clamp(min=1.0),
    "eps_from_v": torch.ones_like,
    "v_from_x": lambda g: torch.exp(-g / 2).clamp(min=1.0),
    "x_from_v": torch.ones_like,
    "velocity_from_eps": lambda g: torch.exp(g / 2).clamp(min=1.0),
    "eps_from_velocity": torch.ones_like,
    "velocity_from_x": lambda g: torch.exp(-g / 2).clamp(min=1.0),
    "x_from_velocity": torch.ones_like,
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conversions_in_float32(name):
    """Against float64 on the same float32 inputs, over gamma in [-30, 30]: a few ulp times the condition number.

    Measured: at most 1.9 units of the last place of the largest of |z|, |x|, |eps|, |v|, |u|, times the condition.
    """
    gamma = torch.linspace(-30.0, 30.0, 6001)
    x, eps = torch.randn(6001, 16), torch.randn(6001, 16)
    g = gamma[:, None]
    z = process.alpha(g) * x + process.sigma(g) * eps
    v = process.alpha(g) * eps - process.sigma(g) * x
    known = {"x": x, "eps": eps, "v": v, "velocity": eps - x}[name.rpartition("_")[2]]
    convert = getattr(process, name)
    result, exact = convert(z, known, g), convert(z.double(), known.double(), g.double())
    assert torch.isfinite(result).all()
    size = torch.stack([z.abs(), x.abs(), eps.abs(), v.abs(), (eps - x).abs()]).amax(0)
    allowed = 2.5 * torch.finfo(torch.float32).eps * size * CONDITIONS[name](g)
    assert ((result - exact).abs() <= allowed).all()


def test_scores_in_float32():
    """Both are one product: relative errors of a few ulp at every gamma. Measured: 1.4e-7."""
    g = torch.linspace(-20.0, 20.0, 4001)
    eps = torch.randn(4001)
    score = process.score_from_eps(eps, g)
    torch.testing.assert_close(score.double(), process.score_from_eps(eps.double(), g.double()), rtol=2e-7, atol=0)
    torch.testing.assert_close(process.eps_from_score(score, g), eps, rtol=3e-7, atol=0)


@given(gamma_s=st.floats(-10, 10), gap=st.floats(0.01, 8), x=st.floats(-2, 2), z_t=st.floats(-3, 3))
def test_posterior_by_gaussian_conditioning(gamma_s, gap, x, z_t):
    """q(z_s | z_t, x) from the joint covariance of (z_s, z_t) given x."""
    gs, gt, x, z_t = tensor(gamma_s), tensor(gamma_s + gap), tensor(x), tensor(z_t)
    ratio = process.alpha(gt) / process.alpha(gs)
    variance_s, variance_t = process.sigma(gs) ** 2, process.sigma(gt) ** 2
    covariance = ratio * variance_s
    mean = process.alpha(gs) * x + covariance / variance_t * (z_t - process.alpha(gt) * x)
    variance = variance_s - covariance**2 / variance_t
    a, b, ours = process.posterior(gs, gt)
    torch.testing.assert_close(a * z_t + b * x, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours, variance, rtol=1e-6, atol=1e-12)


def test_posterior_keeps_its_accuracy_over_a_tiny_step():
    """Two gammas 1e-9 apart: the variance by subtraction has no digit left, c sigma_s² has them all."""
    gs, gt = tensor(3.0), tensor(3.0) + 1e-9
    _, _, variance = process.posterior(gs, gt)
    exact = (gt - gs) * process.sigma(gs) ** 2
    torch.testing.assert_close(variance, exact, rtol=1e-8, atol=0)


@given(gamma_1=st.floats(-5, 12), x=st.lists(st.floats(-1, 1), min_size=1, max_size=5))
def test_prior_is_the_textbook_kl(gamma_1, x):
    data, g = torch.tensor([x], dtype=torch.float64), tensor(gamma_1)
    q = torch.distributions.Normal(process.alpha(g) * data, process.sigma(g))
    p = torch.distributions.Normal(tensor(0.0), tensor(1.0))
    expected = torch.distributions.kl_divergence(q, p).sum(1)
    torch.testing.assert_close(prior_nats(data, g), expected, rtol=1e-7, atol=1e-9)


def test_prior_anchors():
    """gamma_1 = 5: 0.00122 bits/dim where E[x²] = 1/4, 0.00163 where it is 1/3."""
    for square, expected in ((0.25, 0.00122), (1 / 3, 0.00163)):
        x = torch.full((1, 1000), square**0.5)
        assert abs(float(prior_nats(x, torch.tensor(5.0))) / (1000 * math.log(2)) - expected) < 5e-6


@pytest.mark.parametrize(("gamma_0", "expected"), [(-13.3, 0.0104), (-10.0, 1.825), (-8.0, 3.253)])
def test_reconstruction_anchors(gamma_0, expected):
    """Uniformly distributed bytes: 0.0104 bits/dim at gamma_0 = -13.3, 1.825 at -10, 3.253 at -8."""
    eps = torch.linspace(-7.0, 7.0, 1401, dtype=torch.float64)
    weight = torch.exp(-0.5 * eps**2) / math.sqrt(2 * math.pi) * 0.01  # quadrature in place of draws
    x = torch.arange(256, dtype=torch.uint8).expand(len(eps), 256)
    mean = to_unit_range(x, 256) + math.exp(gamma_0 / 2) * eps[:, None].float()
    nats = decoder_nll(x, mean, torch.full((len(eps),), gamma_0), 256).double()
    assert abs(float((weight * nats).sum()) / (256 * math.log(2)) - expected) < 6e-4


def test_bits_per_dimension():
    vlb = Vlb(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0]))
    assert vlb.total.tolist() == [9.0, 12.0]
    torch.testing.assert_close(vlb.bpd(64).total, vlb.total / (64 * math.log(2)))
    torch.testing.assert_close(vlb.bpd(64).recon, vlb.recon / (64 * math.log(2)))


@given(seed=st.integers(0, 10**6), batch=st.integers(1, 60), n=st.integers(1, 50))
def test_stratified_times(seed, batch, n):
    u = stratified_times(Noise(seed), batch)
    assert ((u >= 0) & (u < 1)).all()
    assert torch.equal(torch.floor(u.sort().values * batch - 1e-12).unique(), torch.arange(batch).double() - 0.0) or (
        torch.allclose(u.sort().values.diff(), torch.full((batch - 1,), 1 / batch, dtype=torch.float64))
    )
    s, t = finite_times(u, n)
    assert ((s <= u + 1e-9) & (u < t + 1e-9) & (t <= 1) & (s >= 0)).all()
    torch.testing.assert_close(t - s, torch.full_like(t, 1 / n))


def test_times_do_not_depend_on_how_samples_are_batched():
    whole = stratified_times(Noise(4), 30, total=30)
    parts = [stratified_times(Noise(4, first_sample=first), 10, total=30) for first in (0, 10, 20)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    late = stratified_times(Noise(4, first_sample=20_000_000), 3, total=30_000_000)
    assert late.dtype == torch.float64
    torch.testing.assert_close(late.diff(), torch.full((2,), 1 / 30_000_000, dtype=torch.float64), rtol=1e-6, atol=0)
    assert not torch.allclose(stratified_times(Noise(4, step=1), 30), whole)


def test_independent_times_are_independent_and_uniform():
    u = torch.stack([independent_times(Noise(1, step), 8) for step in range(2000)])
    assert u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * u.numel())
    correlation = torch.corrcoef(u.T) - torch.eye(8)
    assert float(correlation.abs().max()) < 4.5 / math.sqrt(2000)
    whole = independent_times(Noise(1, 3), 8)
    parts = torch.cat([independent_times(Noise(1, 3, first_sample=first), 4) for first in (0, 4)])
    assert torch.equal(whole, parts)
