"""Gaussian data, for which the best denoiser, the bound, the density and the flow are known in closed form."""

import math

import pytest
import torch
from tiny import diffusion_nats, exact_model, images, plan_of, run, small
from torch import Tensor

from fastdiff.diffusion import BetaLinearSchedule, CosineSchedule, LinearSchedule, Schedule
from fastdiff.diffusion.bound import prior_nats
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.evaluation import evaluate, evaluate_ode, ode_log_density, standard_error
from fastdiff.kernels import InvalidValueError, Noise, Stream, to_unit_range
from fastdiff.models import DiffusionModel, ImageConfig

S2 = 0.25  # variance of the data


class Best(DiffusionModel):
    """x ~ N(0, S2) in every dimension, and its best denoiser: E[eps | z_t] = sigma_t z_t / (alpha_t² S2 + sigma_t²)."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(ImageConfig(shape=(1, 4, 4), levels=17))
        self.gamma = schedule

    def predict(self, z_t: Tensor, gamma: Tensor, labels=None, cond=None) -> tuple[Tensor, None]:
        g = gamma[:, None, None, None]
        return sigma(g) * z_t / (alpha(g) ** 2 * S2 + sigma(g) ** 2), None


def data(count: int, seed: int = 0) -> Tensor:
    return S2**0.5 * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def as_levels(x: Tensor) -> Tensor:
    """Continuous data on the scale of the levels, unrounded: a model maps them back to x."""
    return 0.5 * ((x + 1.0) * 17.0 - 1.0)


def analytic_diffusion(gamma_0: float, gamma_1: float, dims: int = 16) -> float:
    """½ ∫ E|eps - eps_hat|² d gamma = ½ ∫ S2 / (S2 + e^gamma) d gamma per dimension, in nats."""

    def antiderivative(g: float) -> float:
        return g - math.log(S2 + math.exp(g))

    return 0.5 * dims * (antiderivative(gamma_1) - antiderivative(gamma_0))


@pytest.mark.parametrize("schedule", [LinearSchedule, CosineSchedule, BetaLinearSchedule])
def test_the_bound_is_the_entropy(schedule):
    """recon + prior + diffusion against ½ log(2 pi e S2) per dimension, where z_0 is the data but for 1e-5."""
    gamma_0, gamma_1 = -11.0, 9.0
    model = Best(schedule(gamma_0, gamma_1))
    x = data(20_000)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    diffusion = diffusion_nats(model, as_levels(x), Noise(1), u[torch.randperm(20_000)]).double()
    analytic = analytic_diffusion(gamma_0, gamma_1)
    error = standard_error(diffusion)
    assert abs(float(diffusion.mean()) - analytic) < 4 * error  # the stratified times make the true error smaller
    # -log p(x | z_0) with p = N(z_0 / alpha_0, e^gamma_0), the density in the limit of fine levels
    eps = Noise(1, stream=Stream.RECON).normal(x.shape).double()
    recon = (0.5 * eps.square() + 0.5 * math.log(2 * math.pi) + 0.5 * gamma_0).flatten(1).sum(1)
    total = diffusion + recon + prior_nats(x.double(), torch.tensor(gamma_1).double())
    entropy = 8 * math.log(2 * math.pi * math.e * S2)
    ends = 6e-4  # both endpoints are finite: 5.4e-4 analytically
    assert abs(float(total.mean()) - entropy) < 4 * standard_error(total) + ends


@pytest.mark.parametrize("T", [1, 4, 16, 64])
def test_the_finite_bound_in_closed_form(T):
    """Σ ½ expm1(gamma_t - gamma_s) E|eps - eps_hat|² with E = alpha² S2 / (alpha² S2 + sigma²), per dimension."""
    model, x = Best(LinearSchedule(-6.0, 5.0)), data(8000)
    gamma = -6.0 + 11.0 * torch.arange(T + 1, dtype=torch.float64) / T
    rest = S2 / (S2 + torch.exp(gamma[1:]))
    analytic = 16 * 0.5 * float((torch.expm1(gamma.diff()) * rest).sum())
    terms = []
    for i in range(T):
        u = torch.full((8000,), (i + 0.5) / T, dtype=torch.float64)
        terms.append(model.transition_nats(as_levels(x), Noise(i), u, T).double() / T)
    total = torch.stack(terms).sum(0)
    assert abs(float(total.mean()) - analytic) < 4 * standard_error(total)


def test_ode_density_is_the_true_one():
    """log p(z_0) for z_0 ~ N(0, alpha_0² S2 + sigma_0²), to four digits; the divergence of a linear flow has no noise.

    Measured: 6.1e-5 of the value at 64 steps.
    """
    model = Best(LinearSchedule(-11.0, 9.0))
    scale = math.sqrt(float(alpha(torch.tensor(-11.0)) ** 2 * S2 + sigma(torch.tensor(-11.0)) ** 2))
    z_0 = scale * torch.randn(50, 1, 4, 4)
    expected = torch.distributions.Normal(0.0, scale).log_prob(z_0.double()).flatten(1).sum(1)
    density = ode_log_density(model, z_0, Noise(0))
    torch.testing.assert_close(density, expected, rtol=1e-4, atol=0)
    coarse, fine = (float((ode_log_density(model, z_0, Noise(0), n) - expected).abs().max()) for n in (8, 16))
    assert fine < coarse / 16  # order four; measured 72
    with pytest.raises(InvalidValueError, match="steps"):
        ode_log_density(model, z_0, Noise(0), 0)


def test_hutchinsons_estimate_is_unbiased():
    """A linear field with correlations, z' = ½ (sigma M - sigma²) z, whose trace a single probe only estimates."""
    mixing = 0.3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(2))

    class Mixed(Best):
        def predict(self, z_t, gamma, labels=None, cond=None):
            return (z_t.flatten(1) @ mixing.T).view_as(z_t), None

    model, z = Mixed(LinearSchedule(-1.0, 1.0)), torch.zeros(4000, 1, 4, 4)
    density = ode_log_density(model, z, Noise(3), steps=4)
    g = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    rate = 0.5 * (sigma(g) * float(mixing.trace()) - 16 * sigma(g) ** 2)
    expected = float(torch.trapezoid(rate, g)) - 8 * math.log(2 * math.pi)  # z stays at zero
    assert abs(float(density.mean()) - expected) < 4 * standard_error(density)
    assert float(density.std()) > 0.1


def variance_exploding(model: DiffusionModel, steps: int, noise: Noise, count: int) -> Tensor:
    """Ancestral sampling in the variance-exploding process y = x + e^{gamma/2} eps, from its own equations.

    q(y_s | y_t, x) = N(r y_t + (1 - r) x, e^{gamma_s} (1 - r)), r = e^{gamma_s - gamma_t}; the network takes
    z = alpha y.
    """
    gamma = model.gamma(torch.arange(steps + 1, dtype=torch.float64) / steps).detach().flip(0)
    y = noise.at(stream=Stream.INITIAL).normal((count, *model.shape)).double() / alpha(gamma[0])
    for k in range(steps):
        t, s = gamma[k], gamma[k + 1]
        r = torch.exp(s - t)
        eps_hat = model.eps_hat((alpha(t) * y).float(), t.float().expand(count)).double()
        x_hat = y - torch.exp(t / 2) * eps_hat
        eps = noise.at(step=k, stream=Stream.SAMPLER).normal(y.shape).double()
        y = r * y + (1 - r) * x_hat + torch.exp(s / 2) * (1 - r).sqrt() * eps
    return y


@torch.no_grad()
def test_variance_exploding_samples_are_rescaled_ones():
    """The same denoiser and noise: z_0 / alpha_0 in one process is y_0 in the other. Measured: 4.2e-7."""
    model = small(fourier=None, learn_endpoints=False)
    z_0 = run(model, 5, plan_of(model, 10), Noise(7))
    y_0 = variance_exploding(model, 10, Noise(7), 5)
    torch.testing.assert_close(z_0.double() / alpha(torch.tensor(-8.0).double()), y_0, rtol=0, atol=1e-6)


@torch.no_grad()
def test_variance_exploding_has_the_same_bound():
    """-½ d SNR/dt |x - x_hat|² on y = x + e^{gamma/2} eps, SNR = e^{-gamma}, is ½ gamma' |eps - eps_hat|² on z."""
    model = small(fourier=None, learn_endpoints=False)
    levels, noise = images(6), Noise(8)
    x = to_unit_range(levels, 17)
    u = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    gamma = model.gamma(u).detach()[:, None, None, None].double()
    y = x.double() + torch.exp(gamma / 2) * noise.at(stream=Stream.DIFFUSION).normal(x.shape).double()
    eps_hat = model.eps_hat((alpha(gamma) * y).float(), gamma.flatten().float()).double()
    x_hat = y - torch.exp(gamma / 2) * eps_hat
    nats = 0.5 * 13.0 * torch.exp(-gamma) * (x - x_hat).square()
    ours = diffusion_nats(model, levels, noise, u).double()
    torch.testing.assert_close(ours, nats.flatten(1).sum(1), rtol=6e-7, atol=0)


def test_the_ode_bound_on_discrete_data_is_the_entropy():
    """For independent pixels and the exact denoiser, as the variational bound."""
    probabilities = torch.tensor([0.5, 0.1, 0.15, 0.25])
    x = torch.multinomial(probabilities, 300 * 16, replacement=True, generator=torch.Generator().manual_seed(3))
    x = x.view(-1, 1, 4, 4).byte()
    own = -float(probabilities[x.long()].log().mean()) / math.log(2)
    model = exact_model(probabilities, -7.0, 8.0)
    flow = evaluate_ode(model, x, steps=48, draws=6)
    vlb = evaluate(model, x, draws=32)
    error = standard_error(flow - (-probabilities[x.long()].log().flatten(1).mean(1).double() / math.log(2)))
    assert own - 4 * error < float(flow.mean()) < own + 0.02 + 4 * error
    assert abs(float(flow.mean()) - vlb.mean) < 0.02 + 4 * error
