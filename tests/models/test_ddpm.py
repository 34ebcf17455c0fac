"""DDPM: its bound by brute force in float64, its losses, its decoder, and its chain at other numbers of steps."""

import math

import pytest
import torch
from tiny import images
from tiny import small_ddpm as chain
from torch.distributions import Normal, kl_divergence

from fastdiff.diffusion.bound import stratified_times
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.evaluation import evaluate
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import InvalidValueError, Noise, Stream, to_unit_range
from fastdiff.models import DDPM


def gammas_of(model: DDPM, T: int) -> torch.Tensor:
    """gamma of z_1 .. z_T, from DDPM's own formula on its thousand betas where T is a thousand."""
    return model.gamma(torch.arange(T, dtype=torch.float64) / (T - 1))


def brute_kl(model: DDPM, x: torch.Tensor, eps: torch.Tensor, i: int, T: int) -> torch.Tensor:
    """KL(q(z_{i-1} | z_i, x) || p(z_{i-1} | z_i)) from alpha_bar and torch.distributions, float64 [B], for i >= 2."""
    gamma = gammas_of(model, T)
    bar_t, bar_s = torch.sigmoid(-gamma[i - 1]), torch.sigmoid(-gamma[i - 2])
    beta = 1 - bar_t / bar_s
    z = bar_t.sqrt() * x + (1 - bar_t).sqrt() * eps
    with torch.no_grad():
        eps_hat, v = model.predict(z.float(), gamma[i - 1].float().expand(len(x)))
    x_hat = (z - (1 - bar_t).sqrt() * eps_hat.double()) / bar_t.sqrt()
    posterior = beta * (1 - bar_s) / (1 - bar_t)

    def mean(x0: torch.Tensor) -> torch.Tensor:
        return bar_s.sqrt() * beta / (1 - bar_t) * x0 + (1 - beta).sqrt() * (1 - bar_s) / (1 - bar_t) * z

    variance = {"fixed_small": posterior, "fixed_large": beta}.get(model.variance)
    if variance is None:
        assert v is not None
        variance = torch.exp(v.double() * beta.log() + (1 - v.double()) * posterior.log())
    q, p = Normal(mean(x), posterior.sqrt().expand_as(x)), Normal(mean(x_hat), variance.sqrt().expand_as(x))
    return kl_divergence(q, p).flatten(1).sum(1)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize("T", [12, 5])
def test_every_step_is_the_textbook_kl(variance, T):
    model, x = chain(variance=variance), images(3)
    noise = Noise(4)
    eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape).double()
    for i in range(2, T + 1):
        u = torch.full((3,), (i - 1.5) / (T - 1), dtype=torch.float64)
        with torch.no_grad():
            term = model.transition_nats(x, noise, u, T - 1) / (T - 1)
        torch.testing.assert_close(
            term.double(), brute_kl(model, to_unit_range(x, 17).double(), eps, i, T), rtol=2e-5, atol=0
        )


def test_the_chain_is_ddpms():
    """1000 steps with alpha_bar the product of 1 - beta; the network is called with noise_level (i - 1) / 999."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = torch.cumprod(1 - betas, 0)
    model = chain(1000)
    torch.testing.assert_close(torch.sigmoid(-gammas_of(model, 1000)), expected, rtol=1e-10, atol=0)
    called: list[torch.Tensor] = []
    model.network.register_forward_pre_hook(lambda _, arguments: called.append(arguments[1]))
    with torch.no_grad():
        model.eps_hat(torch.zeros(3, 1, 8, 8), gammas_of(model, 1000)[[0, 499, 999]].float())
    torch.testing.assert_close(called[0], torch.tensor([0.0, 499 / 999, 1.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_decoder_by_brute_force(variance):
    """-log of the mass of N(x_hat(z_1), V) in the pixel's bin; V is the posterior variance of z_1 given z_2."""
    model, x = chain(variance=variance), images(2)
    gamma = gammas_of(model, 12)
    z = alpha(gamma[0]) * to_unit_range(x, 17).double() + sigma(gamma[0]) * torch.randn(x.shape).double()
    bar_1, bar_2 = torch.sigmoid(-gamma[0]), torch.sigmoid(-gamma[1])
    beta_1, beta_2 = 1 - bar_1, 1 - bar_2 / bar_1
    low = beta_2 * (1 - bar_1) / (1 - bar_2)
    with torch.no_grad():
        eps_hat, v = model.predict(z.float(), gamma[0].float().expand(2))
        nats = model.recon_nats(x, z.float())
    v = torch.zeros(()) if v is None else v.double()
    normal = Normal(
        (z - sigma(gamma[0]) * eps_hat) / alpha(gamma[0]),
        torch.exp(0.5 * (v * beta_1.log() + (1 - v) * low.log())),
    )
    upper = normal.cdf(2.0 * (x.double() + 1) / 17 - 1).where(x < 16, torch.ones(()).double())
    lower = normal.cdf(2.0 * x.double() / 17 - 1).where(x > 0, torch.zeros(()).double())
    mass = upper - lower
    assert float(mass.detach().min()) > 1e-9  # where this oracle still has digits
    torch.testing.assert_close(nats.double(), -mass.log().flatten(1).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_large", "learned"])
def test_the_elbo_loss_is_the_sum_over_the_chain(variance):
    """A stratified batch of T copies has every step once: its mean is the exact sum with those draws."""
    model, noise = chain(variance=variance), Noise(9)
    x = images(1).expand(12, -1, -1, -1)
    with torch.no_grad():
        objective = model(x, noise)
        i = torch.floor(stratified_times(noise, 12) * 12).long()
    assert sorted(i.tolist()) == list(range(12))
    for b in range(12):
        own = noise.at(first_sample=b)
        step = int(i[b])
        eps = own.at(stream=Stream.DIFFUSION).normal((1, 1, 8, 8)).double()
        if step:
            expected = 12 * brute_kl(model, to_unit_range(x[:1], 17).double(), eps, step + 1, 12)
            assert float(objective.vlb.recon[b]) == 0
            torch.testing.assert_close(objective.vlb.diffusion[b : b + 1].double(), expected, rtol=2e-5, atol=0)
        else:
            gamma_1 = gammas_of(model, 12)[0]
            z = alpha(gamma_1) * to_unit_range(x[:1], 17).double() + sigma(gamma_1) * eps
            with torch.no_grad():
                expected = 12 * model.recon_nats(x[:1], z.float())
            assert float(objective.vlb.diffusion[b]) == 0
            torch.testing.assert_close(objective.vlb.recon[b : b + 1], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(objective.loss, objective.vlb.total)


def test_the_simple_loss_is_the_squared_error_at_all_steps():
    model, x, noise = chain(), images(6), Noise(2)
    objective = model(x, noise, loss="simple")
    i = torch.floor(stratified_times(noise, 6) * 12)
    gamma = model.gamma(i / 11)[:, None, None, None]
    eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape)
    z = (alpha(gamma) * to_unit_range(x, 17) + sigma(gamma) * eps).float()
    with torch.no_grad():
        expected = (eps - model.eps_hat(z, gamma.flatten().float())).square().flatten(1).sum(1)
    torch.testing.assert_close(objective.loss.detach(), expected, rtol=1e-5, atol=0)


def test_hybrid_trains_the_mean_by_the_simple_loss_and_the_variance_by_the_bound():
    model, x, noise = chain(variance="learned"), images(24), Noise(2)
    last = model.network.conv_out.weight
    hybrid = torch.autograd.grad(model(x, noise, loss="simple").loss.sum(), last)[0]
    bound = torch.autograd.grad(model(x, noise).loss.sum(), last)[0]
    plain = model(x, noise, loss="simple")
    simple = plain.loss - 0.001 / math.log(2) * plain.vlb.total
    grad_mean = torch.autograd.grad(simple.sum(), last)[0][:1]
    torch.testing.assert_close(hybrid[:1], grad_mean)  # the bound's gradient to the mean is cut
    torch.testing.assert_close(hybrid[1:], 0.001 / math.log(2) * bound[1:], rtol=1e-4, atol=1e-6)


def test_more_steps_of_the_same_denoiser_approach_continuous_time():
    model, x = chain(), images(16)
    bounds = [evaluate(model, x, T=T, draws=32).mean for T in (20, 200, 2000, None)]
    assert abs(bounds[2] - bounds[3]) < 0.1 * abs(bounds[0] - bounds[3])


@pytest.mark.parametrize("prediction", ["x", "v", "velocity", "score"])
def test_a_network_may_predict_something_else(prediction):
    """A network that outputs the prediction of a known eps: eps_hat is that eps."""
    model = chain(prediction=prediction)
    gamma = model.gamma(torch.tensor([0.1, 0.5, 0.9]).double()).float()
    g = gamma[:, None, None, None]
    x, eps = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    z = alpha(g) * x + sigma(g) * eps
    v, score = alpha(g) * eps - sigma(g) * x, -eps / sigma(g)
    output = {"x": x, "v": v, "velocity": eps - x, "score": score}[prediction]
    model.network.forward = lambda *_: output
    torch.testing.assert_close(model.eps_hat(z, gamma), eps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"T": 1}, "T must be >= 2"),
        ({"beta_first": 0.3, "beta_last": 0.1}, "beta_first must be <= beta_last"),
        ({"variance": "huge"}, "variance must be one of"),
        ({"prediction": "categorical"}, "prediction must be one of"),
    ],
)
def test_wrong_configurations(change, words):
    with pytest.raises(ConfigError, match=words):
        chain(**change)


@pytest.mark.parametrize("T", [1, 0, 2.5, True])
def test_a_bound_has_at_least_two_steps(T):
    for call in (chain().vlb, chain()):
        with pytest.raises(InvalidValueError, match="T must be an integer >= 2"):
            call(images(1), Noise(0), T=T)
