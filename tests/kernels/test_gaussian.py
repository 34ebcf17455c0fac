"""`reparameterize` and `gaussian_log_ratio` against closed forms: collapsed posteriors, identical distributions."""

import math

import oracle
import pytest
import torch
from fastdiff_kernels import Noise, gaussian_log_ratio, reparameterize, use_backend
from torch.distributions import Normal, kl_divergence

BACKENDS = ("torch", "interpreter")


def data(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_kl_is_that_of_torch(backend):
    mean, logvar = data(5, 3, 7), data(5, 3, 7, seed=1)
    with use_backend(backend):
        _, kl = reparameterize(mean, logvar, Noise(5))
    expected = kl_divergence(Normal(mean.double(), (0.5 * logvar.double()).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl.double(), expected.flatten(1).sum(1), rtol=3e-7, atol=0.0)


def test_draws_have_the_moments_of_the_posterior():
    """20000 draws of a latent of 8 numbers, within 4.5 standard errors."""
    mean, logvar, draws = data(8), data(8, seed=1), 20000
    z, _ = reparameterize(mean.expand(draws, 8), logvar.expand(draws, 8), Noise(5))
    standard = (z - mean) / (0.5 * logvar).exp()
    assert (standard.mean(0).abs() * math.sqrt(draws)).max() < 4.5
    assert ((standard.var(0) - 1.0).abs() * math.sqrt(0.5 * draws)).max() < 4.5


@pytest.mark.parametrize(("backend", "tolerance"), [("torch", 3e-6), ("interpreter", 3e-7)])
def test_kl_of_a_collapsed_posterior_keeps_its_digits(backend, tolerance):
    """Mean and logvar about 1e-3, where e^v - v - 1 as written has a relative error of 1e-3 in float32."""
    mean, logvar = data(2, 200, scale=1e-3), data(2, 200, seed=1, scale=1e-3)
    with use_backend(backend):
        _, kl = reparameterize(mean, logvar, Noise(5))
    m, v = mean.double(), logvar.double()
    series = (m**2 / 2 + v**2 / 4 + v**3 / 12 + v**4 / 48).sum(1)
    torch.testing.assert_close(kl.double(), series, rtol=tolerance, atol=0.0)
    naive = 0.5 * (mean**2 + logvar.exp() - logvar - 1.0).sum(1)
    assert ((naive - series) / series).abs().min() > 3e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("used", ["z", "kl"])
def test_one_result_used_alone(used, backend):
    """The gradient through one of the two results, eager and compiled. Through the KL alone no noise is drawn."""

    def loss(mean, logvar):
        z, kl = reparameterize(mean, logvar, Noise(5))
        return (z**2).sum() if used == "z" else kl.sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [data(2, 3, 5).requires_grad_(), data(2, 3, 5, seed=1).requires_grad_()]
        with use_backend(backend):
            function(*leaves).backward()
        gradients.append([leaf.grad for leaf in leaves])
    mean, logvar = data(2, 3, 5).double(), data(2, 3, 5, seed=1).double()
    noise = (0.5 * logvar).exp() * Noise(5).normal((2, 3, 5)).double()
    expected = [2 * (mean + noise), (mean + noise) * noise] if used == "z" else [mean, 0.5 * torch.expm1(logvar)]
    for found in gradients:
        for ours, exact in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=4e-6, atol=4e-6)  # the noise's own error


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_drawn_again_in_the_gradient(backend):
    """d sum(z) / d logvar is half the noise in z."""
    mean, logvar = data(2, 3, 19), torch.zeros(2, 3, 19, requires_grad=True)
    with use_backend(backend):
        z, _ = reparameterize(mean, logvar, Noise(5, 6, 7, 8))
        (gradient,) = torch.autograd.grad(z.sum(), logvar)
    torch.testing.assert_close(gradient, 0.5 * (z - mean).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_log_ratio_of_a_distribution_to_itself_is_zero(backend):
    z, mean, logvar = (data(3, 2, 5, 7, seed=k, scale=3.0).requires_grad_() for k in range(3))
    with use_backend(backend):
        ratio = gaussian_log_ratio(z, mean, logvar, mean, logvar)
        gradients = torch.autograd.grad(ratio.sum(), (z, mean, logvar))
    assert (ratio == 0.0).all()
    assert all((gradient == 0.0).all() for gradient in gradients)


def test_expected_log_ratio_is_the_analytic_kl():
    """The mean over 20000 draws from q, within 4.5 standard errors; each draw agrees with torch's densities."""
    mean_q, logvar_q, mean_p, logvar_p = wide = [data(6, seed=k).expand(20000, 6) for k in range(4)]
    q, p = (Normal(m.double(), (0.5 * v.double()).exp()) for m, v in ((mean_q, logvar_q), (mean_p, logvar_p)))
    z, _ = reparameterize(mean_q, logvar_q, Noise(9))
    ratio = gaussian_log_ratio(z, *wide).double()
    torch.testing.assert_close(ratio, (q.log_prob(z.double()) - p.log_prob(z.double())).sum(1), rtol=1e-6, atol=1e-5)
    analytic = kl_divergence(q, p)[0].sum()
    assert (ratio.mean() - analytic).abs() < 4.5 * ratio.std() / math.sqrt(len(ratio))


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_variances_stay_finite(backend):
    """Log-variances of ±30, where e^{-logvar} is 1e13, are exact up to rounding."""
    logvar = torch.tensor([[-30.0], [30.0], [-30.0], [30.0]])
    other = torch.tensor([[-30.0], [-30.0], [30.0], [30.0]])
    z, mean_q, mean_p = (data(4, 1, seed=k) for k in range(3))
    with use_backend(backend):
        ratio = gaussian_log_ratio(z, mean_q, logvar, mean_p, other)
        _, kl = reparameterize(mean_q, logvar, Noise(5))
    exact = oracle.gaussian_log_ratio(*(x.double() for x in (z, mean_q, logvar, mean_p, other)))
    torch.testing.assert_close(ratio.double(), exact, rtol=2e-6, atol=1e-12)
    _, exact_kl = oracle.reparameterize(mean_q.double(), logvar.double(), z.double())
    torch.testing.assert_close(kl.double(), exact_kl, rtol=2e-6, atol=0.0)
