"""The ODE's bound on discrete data: dequantisation, importance samples, the divergence, against closed forms."""

import math

import pytest
import torch
from tiny import exact_model, images, small, small_vae
from torch import Tensor, nn

from fastdiff.diffusion import LinearSchedule
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.evaluation import OdeBound, evaluate_ode, ode_log_density, ode_nats
from fastdiff.evaluation.dequantization import dequantize, truncated_normal
from fastdiff.evaluation.ode import integration_weights
from fastdiff.evaluation.ode_bound import importance_weighted_nats
from fastdiff.kernels import FastdiffError, Noise, decoder_nll, to_unit_range
from fastdiff.models import DiffusionModel, ImageConfig

S2, LEVELS = 0.25, 17
GAMMA = (-4.0, 3.0)  # tau = 0.43 here, and 1.5 in `NARROW`
NARROW = (-6.5, 3.0)


class Gaussian(DiffusionModel):
    """x ~ N(0, S2) in every dimension and its best denoiser, so that the flow is linear and p_ODE(z_0) is normal."""

    def __init__(self, ends: tuple[float, float], size: int = 4) -> None:
        super().__init__(ImageConfig(shape=(1, size, size), levels=LEVELS))
        self.gamma = LinearSchedule(*ends)

    def predict(self, z_t: Tensor, gamma: Tensor, labels=None, cond=None) -> tuple[Tensor, None]:
        g = gamma[:, None, None, None]
        return sigma(g) * z_t / (alpha(g) ** 2 * S2 + sigma(g) ** 2), None

    def recon_nats(self, x: Tensor, z_0: Tensor, labels=None, cond=None) -> Tensor:
        gamma_0 = self.gamma.endpoints()[0]
        return decoder_nll(x, z_0.float() / alpha(gamma_0), gamma_0.expand(len(x)), LEVELS)

    @property
    def scale(self) -> float:
        """The standard deviation of p_ODE(z_0): the flow multiplies z_0 by sqrt(v_1 / v_0), v the variance of z_t."""
        v_0, v_1 = (1.0 + (S2 - 1.0) / (1.0 + math.exp(g)) for g in self.gamma_range())
        return math.sqrt(v_0 / v_1)

    def log_density(self, z_0: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, self.scale).log_prob(z_0.double()).flatten(1).sum(1)

    def log_mass(self, x: Tensor) -> Tensor:
        """log P(x): the integral of p_ODE over the bins of x."""
        normal = torch.distributions.Normal(0.0, self.scale)
        edges = [(2.0 * (x.double() + k) / LEVELS - 1.0) * float(alpha(self.gamma_range()[0].double())) for k in (0, 1)]
        return torch.log(normal.cdf(edges[1]) - normal.cdf(edges[0])).flatten(1).sum(1)


# ------------------------------------------------------------------------------------------------ dequantisation


@pytest.mark.parametrize("tau", [0.05, 1.0, 3.2, 40.0])
def test_the_truncated_normal_distribution(tau):
    """The distribution function of the draws is uniform (Kolmogorov-Smirnov at 1e-4), and none is out of range."""
    draws = truncated_normal(Noise(3), torch.empty(2000, 10), torch.tensor(tau, dtype=torch.float64)).flatten()
    assert draws.dtype == torch.float64
    assert float(draws.abs().max()) <= tau
    low, high = (torch.special.ndtr(torch.tensor(v, dtype=torch.float64)) for v in (-tau, tau))
    u = ((torch.special.ndtr(draws) - low) / (high - low)).sort().values
    n = len(u)
    distance = float((u - (torch.arange(n) + 0.5) / n).abs().max()) + 0.5 / n
    assert distance < 2.23 / math.sqrt(n)


def test_the_tails_of_the_truncated_normal_are_accurate():
    """Phi(-|eps|) against the numbers that were inverted, relative; measured: 4e-16 to 2e-14 down to 1e-10."""
    like, tau = torch.empty(3000, 32), torch.tensor(8.0, dtype=torch.float64)
    u = Noise(5).uniform((3000, 2, 32))[:, 0].double()
    u[0, :4] = torch.tensor([2.0**-33, 1e-6, 0.5, 1.0])

    class Fixed(Noise):
        def uniform(self, shape, dtype=torch.float32, device=None):
            return torch.stack([u, torch.zeros_like(u)], 1)

    size = truncated_normal(Fixed(5), like, tau)
    outside = torch.special.ndtr(-tau)
    expected = outside + u * (0.5 - outside)
    torch.testing.assert_close(torch.special.ndtr(-size), expected, rtol=1e-13, atol=0)
    assert float(size[0, 0]) > 6.2


@pytest.mark.parametrize("ends", [GAMMA, NARROW])
@pytest.mark.parametrize("name", ["truncated-normal", "uniform"])
def test_the_density_of_what_is_drawn(name, ends):
    """z_0 / alpha_0 lies in the bin, and log q is that of torch.distributions with its normaliser."""
    model, x = Gaussian(ends), images(6, shape=(1, 4, 4))
    z_0, log_q = dequantize(name, model, x, Noise(2))
    gamma_0 = torch.tensor(ends[0], dtype=torch.float64)
    a, s, middle = alpha(gamma_0), sigma(gamma_0), to_unit_range(x, LEVELS).double()
    assert float(((z_0 / a - middle).abs() * LEVELS).max()) <= 1.0 + 1e-6  # the levels are float32
    if name == "uniform":
        expected = -16.0 * torch.log(2.0 * a / LEVELS).expand(6)
    else:
        q = torch.distributions.Normal(a * (2.0 * x.double() + 1.0 - LEVELS) / LEVELS, s)
        edge = a / LEVELS / s
        log_mass = torch.log(torch.special.ndtr(edge) - torch.special.ndtr(-edge))
        expected = (q.log_prob(z_0) - log_mass).flatten(1).sum(1)
    torch.testing.assert_close(log_q, expected, rtol=1e-12, atol=0)
    again, _ = dequantize(name, model, x, Noise(2), repeat=1)
    assert not torch.equal(again, z_0)


@pytest.mark.parametrize("name", ["truncated-normal", "uniform"])
def test_the_probabilities_of_all_images_of_one_pixel(name):
    """Σ_x E w over all levels is the density's mass in [-alpha_0, alpha_0], which is below 1."""
    model, count = Gaussian(GAMMA, size=1), 4000
    x = torch.arange(LEVELS, dtype=torch.uint8).repeat(count).view(-1, 1, 1, 1)
    z_0, log_q = dequantize(name, model, x, Noise(4))
    weights = torch.exp(model.log_density(z_0) - log_q).view(count, LEVELS)
    total = weights.sum(1)
    inside = math.erf(float(alpha(torch.tensor(GAMMA[0]))) / model.scale / math.sqrt(2.0))
    assert abs(float(total.mean()) - inside) < 4.0 * float(total.std()) / math.sqrt(count)
    assert inside < 0.95


# ------------------------------------------------------------------------------------------------ importance samples


@pytest.mark.parametrize("ends", [GAMMA, NARROW])
@pytest.mark.parametrize("name", ["truncated-normal", "uniform"])
def test_the_bound_of_gaussian_data(name, ends):
    """Against -log P(x) by the normal distribution function, for K = 1, 5, 50.

    The weights through the ODE are off by at most 1.1e-6 nats, the error of 64 steps.
    """
    model, x = Gaussian(ends, size=2), images(60, shape=(1, 2, 2), levels=LEVELS)
    drawn = [dequantize(name, model, x, Noise(6), repeat=k) for k in range(50)]
    log_w = torch.stack([model.log_density(z_0) - log_q for z_0, log_q in drawn])[None]  # [1, K, B]
    through_ode = OdeBound(64, name, 2, "exact").log_weights(model, x, Noise(6), dtype=torch.float64)
    torch.testing.assert_close(through_ode, log_w[:, :2], rtol=0, atol=2e-6)
    nats = ode_nats(model, x, Noise(6), 64, None, name, 2, "exact", dtype=torch.float64)
    torch.testing.assert_close(nats, importance_weighted_nats(through_ode), rtol=1e-14, atol=0)
    true = -model.log_mass(x)
    ratio = torch.exp(log_w[0] + true).mean(0)  # E w / P = 1
    assert abs(float(ratio.mean()) - 1.0) < 4.0 * float(ratio.std()) / math.sqrt(60)
    gaps = []
    for samples in (1, 5, 50):
        parts = torch.stack([importance_weighted_nats(part) for part in log_w.split(samples, 1)])
        gaps.append(parts.mean(0) - true)
        assert float(gaps[-1].mean()) > -4.0 * float(gaps[-1].std()) / math.sqrt(60)
    for tighter, looser in ((gaps[1], gaps[0]), (gaps[2], gaps[1])):  # the same weights: by Jensen, for every image
        assert (tighter <= looser + 1e-12).all()


def test_the_bound_of_independent_pixels():
    """-log P(x) of the exact denoiser is that of the pixels, with every dequantisation but for the bins' edges."""
    probabilities = torch.tensor([0.5, 0.1, 0.15, 0.25])
    x = torch.multinomial(probabilities, 60 * 16, replacement=True, generator=torch.Generator().manual_seed(3))
    x = x.view(-1, 1, 4, 4).byte()
    true = -probabilities.double().log()[x.long()].flatten(1).sum(1)
    for name in ("normal", "truncated-normal"):
        gap = ode_nats(exact_model(probabilities, -7.0, 8.0), x, Noise(1), 40, None, name, divergence="exact") - true
        error = float(gap.std()) / math.sqrt(60)
        assert -4.0 * error - 0.05 < float(gap.mean()) < 0.4 + 4.0 * error  # the integrator's error is below 0.05 nats


def test_noisy_weights_give_a_bound():
    """Ten samples of known weights with a noise of 2 nats in each of three probes.

    The noise inside of the logarithm gives a number below the exact one, leaving one probe out a number above it.
    """
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(10, generator=generator).double()
    noise = 2.0 * torch.randn(3, 10, 20_000, generator=generator).double()
    noisy = exact[None, :, None] + noise
    true = float(importance_weighted_nats(exact[None, :, None])[0])
    assert true == pytest.approx(math.log(10) - float(exact.logsumexp(0)), rel=1e-14)
    ours = importance_weighted_nats(noisy)
    inside = math.log(10) - torch.logsumexp(noisy, 1).mean(0)
    assert float(inside.mean()) < true - 0.5  # measured: 1.41 below
    assert true < float(ours.mean()) < true + 1.0  # measured: 0.62 above
    one = importance_weighted_nats(noisy[:, :1])
    torch.testing.assert_close(one, -noisy[:, 0].mean(0), rtol=1e-12, atol=1e-12)
    same = importance_weighted_nats(exact[None, :, None].expand(3, 10, 1))  # without noise: slack is of pi alone, none
    assert float(same[0]) == pytest.approx(true, rel=1e-12)


# ------------------------------------------------------------------------------------------------ divergence


def test_the_exact_divergence_of_a_network():
    """One step of the integrator by hand, with the Jacobian of torch.autograd.functional; probes average to it."""
    model, z = small("v", fourier=None), 0.5 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    low, high = (float(g) for g in model.gamma_range())

    def flow(z: Tensor, g: float) -> Tensor:
        s = math.sqrt(1.0 / (1.0 + math.exp(-g)))
        return 0.5 * (s * model.eps_hat(z, torch.full((len(z),), g)) - s * s * z)

    def trace(z: Tensor, g: float) -> Tensor:
        jacobians = [torch.autograd.functional.jacobian(lambda v: flow(v[None], g)[0], each) for each in z]
        return torch.stack([jacobian.reshape(64, 64).double().trace() for jacobian in jacobians])

    with torch.no_grad():
        h, middle = high - low, 0.5 * (low + high)
        v_1 = flow(z, low)
        v_2 = flow(z + 0.5 * h * v_1, middle)
        v_3 = flow(z + 0.5 * h * v_2, middle)
        v_4 = flow(z + h * v_3, high)
        end = z + h / 6.0 * (v_1 + 2.0 * v_2 + 2.0 * v_3 + v_4)
    expected = 0.5 * h * (trace(z, low) + trace(end, high))
    expected -= 0.5 * (end.double().square() + math.log(2.0 * math.pi)).flatten(1).sum(1)
    exact = ode_log_density(model, z, Noise(0), 1, divergence="exact")
    torch.testing.assert_close(exact, expected, rtol=2e-6, atol=2e-4)
    many = torch.stack([ode_log_density(model, z, Noise(seed), 1, probes=8) for seed in range(8)])
    error = many.std(0) / math.sqrt(8)
    assert float(error.max()) > 0.0
    assert (abs(many.mean(0) - exact) < 4.0 * error).all()


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_weights_of_integration(count):
    """Exact at uneven nodes for polynomials of degree three, or of one less than the number of nodes."""
    nodes = torch.linspace(0.0, 1.0, count, dtype=torch.float64) ** 1.5 * 2.0 - 0.5
    weights = integration_weights(nodes)
    for power in range(min(count, 4)):
        integral = (1.5 ** (power + 1) - (-0.5) ** (power + 1)) / (power + 1)
        assert float((weights * nodes**power).sum()) == pytest.approx(integral, abs=1e-12)


def test_the_order_of_integration():
    errors = []
    for n in (40, 80):
        even = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64)
        errors.append(abs(float((integration_weights(even) * even.exp()).sum()) - math.expm1(1.0)))
    assert errors[1] < errors[0] / 14.0  # order four


# ------------------------------------------------------------------------------------------------ the evaluation


def test_options_reach_the_bound_in_any_batch():
    model, x = small(fourier=None), images(2)
    options = {"dequantization": "truncated-normal", "samples": 2, "probes": 2}
    rounds = [ode_nats(model, x, Noise(5, 2**32 - 1, first_sample=2 * r), 1, None, **options) for r in range(2)]
    expected = torch.stack(rounds).mean(0) / (64 * math.log(2.0))
    for batch_size in (1, 4):
        result = evaluate_ode(model, x, steps=1, draws=2, seed=5, batch_size=batch_size, **options)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    others = [{"dequantization": "uniform"}, {"samples": 3}, {"probes": 3}, {"divergence": "exact", "probes": 1}]
    for other in others:
        result = evaluate_ode(model, x, steps=1, draws=2, seed=5, **(options | other))
        assert float((result - expected).abs().max()) > 1e-3


REJECTED = [
    ("dequantization must be one of normal, truncated-normal, uniform, got 'none'", {"dequantization": "none"}),
    ("samples must be an integer >= 1, got 0", {"samples": 0}), ("samples must", {"samples": 2.0}),
    ("probes must be an integer >= 1, got 0", {"probes": 0}), ("probes must", {"probes": True}),
    ("divergence must be one of hutchinson, exact", {"divergence": "trace"}),
    ("probes must be 1 for the exact divergence", {"divergence": "exact", "probes": 2}),
    ("probes must be >= 2 for samples > 1", {"samples": 2}), ("steps must", {"steps": 0}),
    ("no diffusion model", {"model": small_vae(), "dequantization": "uniform"}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "options"), REJECTED)
def test_arguments_that_are_rejected(message, options):
    model: nn.Module = options.get("model", small(fourier=None))
    options = {name: value for name, value in options.items() if name != "model"}
    with pytest.raises(FastdiffError, match=message):
        evaluate_ode(model, images(2), **({"steps": 1} | options))
