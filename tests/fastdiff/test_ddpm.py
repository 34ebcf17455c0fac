"""DDPM: its bound by brute force in float64, its objectives, its decoder, and its chain at other numbers of steps."""

import math

import pytest
import torch
from tiny import SMALL, images
from torch import nn
from torch.distributions import Normal, kl_divergence

import fastdiff
from fastdiff.evaluation import evaluate
from fastdiff.kernels import Noise, Stream, centre
from fastdiff.models import DDPM, DDPMConfig
from fastdiff.process import alpha, sigma
from fastdiff.vlb import stratified_times


def chain(steps: int = 12, seed: int = 0, **changes) -> DDPM:
    torch.manual_seed(seed)
    model = DDPM(DDPMConfig(**({"shape": (1, 8, 8), "levels": 17, "steps": steps, "network": SMALL} | changes)))
    for parameter in model.network.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def levels_of(model: DDPM, steps: int) -> torch.Tensor:
    """gamma of z_1 .. z_T, from DDPM's own formula on its thousand betas where T is a thousand."""
    return model.gamma(torch.arange(steps, dtype=torch.float64) / (steps - 1))


def brute_kl(model: DDPM, x: torch.Tensor, eps: torch.Tensor, i: int, steps: int) -> torch.Tensor:
    """KL(q(z_{i-1} | z_i, x) || p(z_{i-1} | z_i)) from alpha_bar and torch.distributions, float64 [B], for i >= 2."""
    gamma = levels_of(model, steps)
    bar_t, bar_s = torch.sigmoid(-gamma[i - 1]), torch.sigmoid(-gamma[i - 2])
    beta = 1 - bar_t / bar_s
    z = bar_t.sqrt() * x + (1 - bar_t).sqrt() * eps
    with torch.no_grad():
        eps_hat, fraction = model.predict(z.float(), gamma[i - 1].float().expand(len(x)))
    x_hat = (z - (1 - bar_t).sqrt() * eps_hat.double()) / bar_t.sqrt()
    posterior = beta * (1 - bar_s) / (1 - bar_t)

    def mean(x0: torch.Tensor) -> torch.Tensor:
        return bar_s.sqrt() * beta / (1 - bar_t) * x0 + (1 - beta).sqrt() * (1 - bar_s) / (1 - bar_t) * z

    variance = {"small": posterior, "large": beta}.get(model.variance)
    if variance is None:
        assert fraction is not None
        variance = torch.exp(fraction.double() * beta.log() + (1 - fraction.double()) * posterior.log())
    q, p = Normal(mean(x), posterior.sqrt().expand_as(x)), Normal(mean(x_hat), variance.sqrt().expand_as(x))
    return kl_divergence(q, p).flatten(1).sum(1)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("steps", [12, 5])
def test_every_step_is_the_textbook_kl(variance, steps):
    model, x = chain(variance=variance), images(3)
    noise = Noise(4)
    eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape).double()
    for i in range(2, steps + 1):
        u = torch.full((3,), (i - 1.5) / (steps - 1), dtype=torch.float64)
        with torch.no_grad():
            term = model.diffusion_nats(centre(x, 17), noise, u, steps - 1) / (steps - 1)
        torch.testing.assert_close(
            term.double(), brute_kl(model, centre(x, 17).double(), eps, i, steps), rtol=2e-5, atol=0
        )


def test_the_chain_is_ddpms():
    """1000 levels with alpha_bar the product of 1 - beta; the network is told (i - 1) / 999."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = torch.cumprod(1 - betas, 0)
    model = chain(1000)
    torch.testing.assert_close(torch.sigmoid(-levels_of(model, 1000)), expected, rtol=1e-10, atol=0)
    told: list[torch.Tensor] = []
    model.network.register_forward_pre_hook(lambda _, arguments: told.append(arguments[1]))
    with torch.no_grad():
        model.eps_hat(torch.zeros(3, 1, 8, 8), levels_of(model, 1000)[[0, 499, 999]].float())
    torch.testing.assert_close(told[0], torch.tensor([0.0, 499 / 999, 1.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_decoder_by_brute_force(variance):
    """-log of the mass of N(x_hat(z_1), V) in the pixel's bin; V is the posterior variance of z_1 given z_2."""
    model, x = chain(variance=variance), images(2)
    gamma = levels_of(model, 12)
    z = alpha(gamma[0]) * centre(x, 17).double() + sigma(gamma[0]) * torch.randn(x.shape).double()
    bar_1, bar_2 = torch.sigmoid(-gamma[0]), torch.sigmoid(-gamma[1])
    beta_1, beta_2 = 1 - bar_1, 1 - bar_2 / bar_1
    low = beta_2 * (1 - bar_1) / (1 - bar_2)
    with torch.no_grad():
        eps_hat, fraction = model.predict(z.float(), gamma[0].float().expand(2))
        nats = model.recon_nats(x, z.float())
    share = torch.zeros(()) if fraction is None else fraction.double()
    normal = Normal(
        (z - sigma(gamma[0]) * eps_hat) / alpha(gamma[0]),
        torch.exp(0.5 * (share * beta_1.log() + (1 - share) * low.log())),
    )
    upper = normal.cdf(2.0 * (x.double() + 1) / 17 - 1).where(x < 16, torch.ones(()).double())
    lower = normal.cdf(2.0 * x.double() / 17 - 1).where(x > 0, torch.zeros(()).double())
    mass = upper - lower
    assert float(mass.detach().min()) > 1e-9  # where this oracle still has digits
    torch.testing.assert_close(nats.double(), -mass.log().flatten(1).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variance", ["large", "learned"])
def test_elbo_objective_is_the_sum_over_the_chain(variance):
    """A stratified batch of T copies visits every level once: its mean is the exact sum with those draws."""
    model, noise = chain(variance=variance), Noise(9)
    x = images(1).expand(12, -1, -1, -1)
    with torch.no_grad():
        goal = model.objective(x, noise)
        i = torch.floor(stratified_times(noise, 12) * 12).long()
    assert sorted(i.tolist()) == list(range(12))
    for b in range(12):
        own = noise.at(first_sample=b)
        level = int(i[b])
        eps = own.at(stream=Stream.DIFFUSION).normal((1, 1, 8, 8)).double()
        if level:
            expected = 12 * brute_kl(model, centre(x[:1], 17).double(), eps, level + 1, 12)
            assert float(goal.vlb.recon[b]) == 0
            torch.testing.assert_close(goal.vlb.diffusion[b : b + 1].double(), expected, rtol=2e-5, atol=0)
        else:
            gamma_1 = levels_of(model, 12)[0]
            z = alpha(gamma_1) * centre(x[:1], 17).double() + sigma(gamma_1) * eps
            with torch.no_grad():
                expected = 12 * model.recon_nats(x[:1], z.float())
            assert float(goal.vlb.diffusion[b]) == 0
            torch.testing.assert_close(goal.vlb.recon[b : b + 1], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(goal.loss, goal.vlb.total)


def test_simple_objective_is_the_squared_error_at_all_levels():
    model, x, noise = chain(), images(6), Noise(2)
    goal = model.objective(x, noise, loss="simple")
    i = torch.floor(stratified_times(noise, 6) * 12)
    gamma = model.gamma(i / 11)[:, None, None, None]
    eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape)
    z = (alpha(gamma) * centre(x, 17) + sigma(gamma) * eps).float()
    with torch.no_grad():
        expected = (eps - model.eps_hat(z, gamma.flatten().float())).square().flatten(1).sum(1)
    torch.testing.assert_close(goal.loss.detach(), expected, rtol=1e-5, atol=0)


def test_hybrid_trains_the_mean_by_the_simple_loss_and_the_variance_by_the_bound():
    model, x, noise = chain(variance="learned"), images(24), Noise(2)
    last = model.network.conv_out.weight
    hybrid = torch.autograd.grad(model.objective(x, noise, loss="simple").loss.sum(), last)[0]
    bound = torch.autograd.grad(model.objective(x, noise).loss.sum(), last)[0]
    plain = model.objective(x, noise, loss="simple")
    simple = plain.loss - 0.001 / math.log(2) * plain.vlb.total
    by_mean = torch.autograd.grad(simple.sum(), last)[0][:1]
    torch.testing.assert_close(hybrid[:1], by_mean)  # the bound's gradient to the mean is cut
    torch.testing.assert_close(hybrid[1:], 0.001 / math.log(2) * bound[1:], rtol=1e-4, atol=1e-6)


def test_exact_evaluation_is_the_mean_of_many_draws():
    """The sum over all steps against stratified single terms, each with errors of its draws alone."""
    model, x = chain(), images(8)
    exact = [evaluate(model, x, seed=seed, exact=True).mean for seed in range(12)]
    drawn = [evaluate(model, x, seed=seed, draws=32).mean for seed in range(12)]
    exact, drawn = torch.tensor(exact), torch.tensor(drawn)
    error = float((exact.var() / 12 + drawn.var() / 12).sqrt())
    assert abs(float(exact.mean() - drawn.mean())) < 4 * error
    assert evaluate(model, x).steps == 12
    with pytest.raises(ValueError, match="exact at T = infinity; allowed: exact with a finite"):
        evaluate(model, x, steps=None, exact=True)


def test_more_steps_of_the_same_denoiser_approach_continuous_time():
    model, x = chain(), images(16)
    bounds = [evaluate(model, x, steps=steps, draws=64).mean for steps in (20, 200, 2000, None)]
    assert abs(bounds[2] - bounds[3]) < 0.1 * abs(bounds[0] - bounds[3])


@pytest.mark.parametrize("head", ["x", "v", "score"])
def test_heads_say_the_same_thing_in_other_words(head):
    """A network that outputs the named prediction of a known eps: eps_hat comes back."""
    model = chain(head=head)
    gamma = model.gamma(torch.tensor([0.1, 0.5, 0.9]).double()).float()
    g = gamma[:, None, None, None]
    x, eps = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    z = alpha(g) * x + sigma(g) * eps
    output = {"x": x, "v": alpha(g) * eps - sigma(g) * x, "score": -eps / sigma(g)}[head]
    model.network.forward = lambda *_: output
    torch.testing.assert_close(model.eps_hat(z, gamma), eps, rtol=1e-4, atol=1e-4)


def test_saved_and_loaded(tmp_path):
    model = chain(variance="learned", head="v", classes=3)
    model.save(tmp_path / "m")
    again = fastdiff.load(tmp_path / "m")
    assert isinstance(again, DDPM)
    assert again.config == model.config
    x, y = images(2), torch.tensor([0, 2])
    for one, other in zip(
        vars(model.vlb(x, Noise(0), 12, y)).values(), vars(again.vlb(x, Noise(0), 12, y)).values(), strict=True
    ):
        assert torch.equal(one, other)


WRONG = {
    "steps 1, 1000 betas.*allowed: at least 2 steps": {"steps": 1},
    "from 0.3 to 0.1; allowed: .*beta_first <= beta_last < 1": {"beta_first": 0.3, "beta_last": 0.1},
    "variance is 'huge'; allowed: small, large, learned": {"variance": "huge"},
    "head is 'levels'; allowed: eps, x, v, score": {"head": "levels"},
    "DDPMConfig: shape .* levels 300.*allowed: .*2 to 256 levels": {"levels": 300},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_configurations(message):
    with pytest.raises(ValueError, match=message):
        chain(**WRONG[message])


def test_wrong_steps():
    for steps in (1, 0, 2.5, True):
        with pytest.raises(ValueError, match=r"steps is .*allowed: an integer >= 2, or None"):
            chain().vlb(images(1), Noise(0), steps=steps)
    with pytest.raises(ValueError, match="unknown loss 'mse'; allowed: elbo, simple, min-snr, sigmoid"):
        chain().objective(images(1), Noise(0), loss="mse")
