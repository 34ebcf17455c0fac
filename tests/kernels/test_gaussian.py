"""`reparameterize` and `gaussian_log_ratio` against closed forms: collapsed posteriors, identical distributions."""

import math
from decimal import Decimal, localcontext

import oracle
import pytest
import torch
from fastdiff_kernels import Noise, gaussian_log_ratio, reparameterize, use_backend
from lengths import usually
from torch.distributions import Normal, kl_divergence

BACKENDS = ("torch", "interpreter")
LENGTHS = [("torch", 1), ("interpreter", 10), ("interpreter", 1)]


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_kl_of_a_collapsed_posterior_keeps_its_digits(backend):
    """Mean and logvar about 1e-3, where e^v - v - 1 as written has a relative error of 1e-3 in float32."""
    mean, logvar = data(2, 200, scale=1e-3), data(2, 200, seed=1, scale=1e-3)
    with use_backend(backend):
        _, kl = reparameterize(mean, logvar, Noise(5))
    m, v = mean.double(), logvar.double()
    series = (m**2 / 2 + v**2 / 4 + v**3 / 12 + v**4 / 48).sum(1)
    torch.testing.assert_close(kl.double(), series, rtol=3e-7, atol=0.0)
    naive = 0.5 * (mean**2 + logvar.exp() - logvar - 1.0).sum(1)
    assert ((naive - series) / series).abs().min() > 3e-4


@pytest.mark.parametrize(("backend", "every"), usually(LENGTHS[:2], LENGTHS, True))
def test_kl_in_one_variance_against_exact_arithmetic(backend, every):
    """½ (e^v - 1 - v) of float32 v, in 100 decimal digits: relative error 1.7e-7 for |v| from 1e-18 to 1, 8.7e-7 to 30.

    For smaller |v| the result is below the smallest float32 that has all its digits. By default the interpreter, which
    runs a program for each v, takes a tenth of them.
    """
    sizes = [10.0 ** (k / 16) for k in range(-480, 23, every)] + [0.9999999, 1.0, 1.0000001]
    logvar = torch.tensor([sign * size for size in sizes for sign in (1.0, -1.0)])[:, None]
    with use_backend(backend):
        _, kl = reparameterize(torch.zeros_like(logvar), logvar, torch.zeros_like(logvar))
    with localcontext(prec=100):
        for v, found in zip(map(Decimal, logvar.flatten().tolist()), map(Decimal, kl.tolist()), strict=True):
            exact = (v.exp() - 1 - v) / 2
            allowed = (
                exact * Decimal("2e-7" if abs(v) < 1 else "1e-6") if abs(v) >= Decimal("1e-18") else Decimal("1e-36")
            )
            assert abs(found - exact) <= allowed, f"logvar {v:.8g}: {found:.9g} instead of {exact:.9g}"


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_log_ratio_to_z_with_unequal_precisions(backend):
    """Precisions that differ by up to e^16 and means next to z: relative to the larger term, 6e-7 from float64."""
    z, mean_q, mean_p = (data(3, 400, seed=k) for k in range(3))
    logvar_q, logvar_p = data(3, 400, seed=3, scale=4.0), data(3, 400, seed=4, scale=4.0)
    mean_q[:, ::3] = z[:, ::3] + 1e-4
    mean_p[:, 1::3] = z[:, 1::3]
    z.requires_grad_()
    with use_backend(backend):
        (gradient,) = torch.autograd.grad(gaussian_log_ratio(z, mean_q, logvar_q, mean_p, logvar_p).sum(), z)
    terms = [
        (z.detach().double() - mean) * torch.exp(-v.double()) for mean, v in ((mean_p, logvar_p), (mean_q, logvar_q))
    ]
    scale = torch.maximum(terms[0].abs(), terms[1].abs())
    assert ((gradient.double() - (terms[0] - terms[1])).abs() / scale).max() < 1e-6


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
