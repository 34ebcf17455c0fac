"""DDPM asked at all noise levels in training, and sampled in a few steps of other betas."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SMALL, filled, images, small, small_diffusevae

import fastdiff
from fastdiff.evaluation import standard_error
from fastdiff.kernels import Noise, Stream, centre
from fastdiff.models import DDPM, DDPMConfig
from fastdiff.models.ddpm import LEAST_BETA
from fastdiff.process import alpha, sigma
from fastdiff.sample import sample_latents, sampling_plan
from fastdiff.samplers import SAMPLERS, VARIANCES
from fastdiff.schedules import linear_betas
from fastdiff.vlb import LOSSES, independent_times, prior_nats

CHAINS = [(10, (1e-6, 0.8)), (25, (1e-6, 0.6)), (50, (1e-6, 0.3)), (1000, (1e-4, 0.02))]


def chain(steps: int = 12, continuous: bool = True, **changes) -> DDPM:
    torch.manual_seed(0)
    config = {"shape": (1, 8, 8), "levels": 17, "steps": steps, "continuous": continuous, "network": SMALL}
    return filled(DDPM(DDPMConfig(**(config | changes))))  # pyright: ignore[reportReturnType]


def chain_alpha(model: DDPM, intervals: int) -> torch.Tensor:
    """alpha of the lowest level that training may ask at, and of the levels 0 .. intervals, float64."""
    least = torch.tensor([1 - LEAST_BETA], dtype=torch.float64).sqrt()
    return torch.cat([least, alpha(model.gamma(torch.arange(intervals + 1).double() / intervals))])


@pytest.mark.parametrize("steps", [2, 12, 1000])
def test_without_continuous_the_levels_are_the_chains(steps):
    model, i = chain(steps, continuous=False), torch.arange(steps).double()
    here, below = model._levels(i, steps - 1, Noise(3))
    assert torch.equal(here, model.gamma(i / (steps - 1)))
    assert torch.equal(below, model.gamma((i - 1).clamp(min=0) / (steps - 1)))


@pytest.mark.parametrize(("steps", "betas"), CHAINS)
def test_levels_in_fifty_digits(steps, betas):
    """alpha = (1 - f) alpha_i + f alpha_{i-1}, gamma = log((1 - alpha²) / alpha²), in decimals; within 8e-15."""
    model = chain(steps, beta_first=betas[0], beta_last=betas[1], beta_count=steps)
    chosen = torch.linspace(0, steps - 1, 20).round()
    here, below = model._levels(chosen.double(), steps - 1, Noise(7, step=2, first_sample=5))
    fractions = Noise(7, step=2, first_sample=5, stream=Stream.TIMES).uniform((20, 2))[:, 1].double()
    with localcontext() as context:
        context.prec = 50
        bar, alphas = Decimal(1), [(1 - Decimal(LEAST_BETA)).sqrt()]
        for beta in linear_betas(steps, *betas).tolist():
            bar *= 1 - Decimal(beta)
            alphas.append(bar.sqrt())
        alphas[0] = max(alphas[:2])
        for b, (i, fraction) in enumerate(zip(chosen.int().tolist(), fractions.tolist(), strict=True)):
            for level, ours in ((i, here[b]), (max(i - 1, 0), below[b])):
                square = (alphas[level + 1] + Decimal(fraction) * (alphas[level] - alphas[level + 1])) ** 2
                assert abs(float(ours) - float(((1 - square) / square).ln())) < 1.5e-14


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**64 - 1), st.booleans())
def test_levels_stay_between_their_neighbours_and_move_together(steps, seed, few):
    """The fraction that either level tells is the drawn one. Measured: 5e-13 (alphas 5e-5 apart)."""
    betas = {"beta_first": 1e-6, "beta_last": 0.3} if few else {}
    model = DDPM(DDPMConfig((1, 4, 4), 2, steps=steps, beta_count=60, continuous=True, network=SMALL, **betas))
    alphas = chain_alpha(model, steps - 1)
    noise = Noise(seed)
    here, below = model._levels(torch.arange(steps).double(), steps - 1, noise)
    assert bool((alpha(here) >= alphas[1:] - 1e-15).all())
    assert bool((alpha(here) <= alphas[:-1] + 1e-15).all())
    assert bool((here[1:] > below[1:]).all())
    assert here[0] == below[0]
    drawn = noise.at(stream=Stream.TIMES).uniform((steps, 2))[:, 1].double()
    own = (alpha(here) - alphas[1:]) / (alphas[:-1] - alphas[1:])
    torch.testing.assert_close(own[1:], drawn[1:], rtol=0, atol=1e-11)
    other = (alpha(below)[2:] - alphas[2:-1]) / (alphas[1:-2] - alphas[2:-1])
    torch.testing.assert_close(other, drawn[2:], rtol=0, atol=1e-11)


def test_fractions_are_uniform_and_know_nothing_of_the_times():
    """Mean, variance, and covariance with the times and the next sample, each within 4 standard errors."""
    model, n, noise = chain(12), 20_000, Noise(11)
    alphas = chain_alpha(model, 11)
    here, _ = model._levels(torch.full((n,), 6.0).double(), 11, noise)
    fraction = (alpha(here) - alphas[7]) / (alphas[6] - alphas[7])
    assert float(fraction.min()) >= -1e-12
    assert abs(float(fraction.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert abs(float(fraction.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    for other in (independent_times(noise, n), fraction.roll(1)):
        assert abs(float(((fraction - 0.5) * (other - 0.5)).mean())) < 4 / 12 / math.sqrt(n)
    apart = torch.cat([model._levels(torch.full((5,), 6.0).double(), 11, Noise(11, first_sample=f))[0] for f in (0, 5)])
    assert torch.equal(apart, here[:10])
    assert not torch.equal(model._levels(torch.full((5,), 6.0).double(), 11, Noise(11, step=1))[0], here[:5])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", ["eps", "x", "v", "score"])
def test_objectives_and_their_gradients_are_finite(head, loss):
    for variance, steps in (("learned", 2), ("learned", 1000), ("large", 2), ("small", 1000)):
        model = chain(1000, head=head, variance=variance)
        goal = model.objective(images(8), Noise(5), loss=loss, steps=steps)
        goal.loss.mean().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        assert all(torch.isfinite(values).all() for values in (goal.loss, goal.vlb.total, *gradients))
        assert bool(torch.cat(gradients).any())
        assert float(goal.vlb.diffusion.min()) >= 0


class Denoiser(torch.nn.Module):
    """The best prediction of the noise in x ~ N(mean, data), by the time that a DDPM tells its network."""

    def __init__(self, model: DDPM, mean: float, data: float) -> None:
        super().__init__()
        self.gamma, self.unused = model.gamma, torch.nn.Parameter(torch.zeros(()))  # says where the model is
        self.mean, self.data, self.times = mean, data, []

    def forward(self, z, time, labels=None):
        self.times += time.tolist()
        g = self.gamma(time.double())[:, None, None, None]
        return (sigma(g) * (z - alpha(g) * self.mean) / (alpha(g) ** 2 * self.data + sigma(g) ** 2)).float()


def denoising(mean: float = 0.0, data: float = 0.25, **changes) -> DDPM:
    model = chain(**({"shape": (1, 4, 4)} | changes))
    model.network = Denoiser(model, mean, data)  # pyright: ignore[reportAttributeAccessIssue]
    return model


@pytest.mark.parametrize("continuous", [False, True])
def test_expected_losses_in_closed_form(continuous):
    """E|eps - eps_hat|² = Σ alpha² (alpha² v² + sigma² x²) / (alpha² v + sigma²)², in the mean. In 4 errors."""
    steps, v = 4, 0.25
    model = denoising(steps=steps, continuous=continuous, variance="small")
    x = images(20_000, shape=(1, 4, 4))
    square = float(centre(x, 17).double().square().mean())
    alphas = chain_alpha(model, steps - 1)
    f = (torch.arange(2000).double() + 0.5) / 2000 if continuous else torch.zeros(1).double()
    a2 = torch.lerp(alphas[1:, None], alphas[:-1, None], f).square()
    error = 16 * a2 * (a2 * v**2 + (1 - a2) * square) / (a2 * v + 1 - a2) ** 2
    excess = a2[:-1] * (1 - a2[1:]) / ((1 - a2[:-1]) * a2[1:]) - 1  # SNR_s / SNR_t - 1
    simple = model.objective(x, Noise(3), loss="simple", stratified=False)
    kl = (0.5 * excess * error[1:]).sum(0).mean()
    for ours, expected in ((simple.loss, error.mean()), (simple.vlb.diffusion, kl)):
        assert abs(float(ours.double().mean() - expected)) < 4 * standard_error(ours)
    assert not continuous or abs(float(error.mean() - error[:, 0].mean())) > 10 * standard_error(simple.loss)


def test_the_estimated_bound_has_the_prior_of_its_own_chain():
    """Level T moves as well: the prior term is that of the moved level, at T = 2 14.7 nats on average for 4e-4."""
    model, x, noise = chain(2), images(200), Noise(1)
    top, _ = model._levels(torch.ones(200).double(), 1, noise)
    prior = model.objective(x, noise).vlb.prior
    expected = torch.cat([prior_nats(centre(x[b : b + 1], 17), top[b].float()) for b in range(200)])
    torch.testing.assert_close(prior, expected, rtol=5e-7, atol=0)


def test_levels_of_betas_that_leave_no_signal():
    """alpha_T = 1e-24: 1 - alpha is 1 in float64, gamma must not be infinite."""
    model = chain(1000, beta_last=0.2)
    here, below = model._levels(torch.arange(1000.0).double(), 999, Noise(0))
    assert bool(((here[1:] > below[1:]) & here[1:].isfinite()).all())


@pytest.mark.parametrize(("steps", "betas"), CHAINS)
def test_rows_of_few_steps_are_the_cumulative_products(steps, betas):
    """log((1 - abar) / abar) in float64; measured 2.9e-11, the digits that 1 - abar loses at beta = 1e-6."""
    walk = sampling_plan(chain(), steps, betas=betas)
    beta = torch.linspace(*betas, steps, dtype=torch.float64)
    bar = torch.cumprod(1 - beta, 0).flip(0)
    torch.testing.assert_close(walk.gamma, torch.log((1 - bar) / bar), rtol=0, atol=4e-11)
    torch.testing.assert_close(walk.table[:-1, 5].square(), beta.flip(0)[:-1], rtol=2e-13, atol=0)  # 1.3e-13
    own = sampling_plan(chain(1000), steps)
    assert torch.equal(walk.table, own.table) == (steps == 1000)  # DDPM's own betas are the default
    assert walk.table[-1, 2:].tolist() == [0, 1, 0, 0, 0]  # x_hat of the lowest level, and no noise


def moments(steps, betas, variance, mean, data):
    """Mean and variance of the result, by DDPM's algorithm 2 with the best denoiser, float64."""
    beta = torch.linspace(*betas, steps, dtype=torch.float64)
    bar = torch.cumprod(1 - beta, 0)
    m, v = 0.0, 1.0
    for t in range(steps - 1, -1, -1):
        b, a = float(beta[t]), float(bar[t])
        slope = math.sqrt(1 - a) / (a * data + 1 - a)  # eps_hat = slope (z - sqrt(abar) mean)
        pull = b / math.sqrt(1 - a)
        keep = (1 - pull * slope) / math.sqrt(1 - b)
        noise = 0.0 if t == 0 else b if variance == "large" else b * (1 - float(bar[t - 1])) / (1 - a)
        m, v = keep * m + pull * slope * math.sqrt(a) * mean / math.sqrt(1 - b), keep**2 * v + noise
    return m, v


MISSED = {"small": (0.125, 0.082, 0.049), "large": (0.074, 0.034, 0.016)}


@pytest.mark.parametrize("few", [0, 1, 2])
@pytest.mark.parametrize("variance", MISSED)
def test_few_steps_of_the_best_denoiser(few, variance):
    """4 standard errors from algorithm 2's own moments; these miss N(0.3, 0.25) by 1.5e-4 and `MISSED`."""
    steps, betas = CHAINS[few]
    model = denoising(mean=0.3)
    walk = sampling_plan(model, steps, variance=variance, betas=betas)
    samples = sample_latents(model, 2000, walk, Noise(1)).double()
    m, v = moments(steps, betas, variance, 0.3, 0.25)
    assert abs(float(samples.mean()) - m) < 4 * math.sqrt(v / samples.numel())
    assert abs(float(samples.var()) - v) < 4 * v * math.sqrt(2 / samples.numel())
    assert abs(m - 0.3) < 2e-4
    assert abs(abs(v - 0.25) - MISSED[variance][few]) < 1e-3
    low = float(model.time(torch.tensor(math.log(LEAST_BETA))))  # below the table, where training at all levels ends
    assert low - 1e-7 <= min(model.network.times) < max(model.network.times) <= 1.0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_through_few_steps(sampler):
    """With the best denoiser of data that is one point every sampler ends on it. Measured: 9.6e-7 off."""
    model = denoising(mean=0.3, data=0.0)
    x = sample_latents(model, 3, sampling_plan(model, 10, sampler, betas=(1e-6, 0.8)), Noise(2))
    torch.testing.assert_close(x, torch.full_like(x, 0.3), rtol=0, atol=2e-6)


@pytest.mark.parametrize("variance", VARIANCES)
def test_images_of_few_steps_depend_on_the_seed_and_the_index(variance):
    model = chain(variance=variance, head="v")
    choice = {"steps": 10, "betas": (1e-6, 0.8), "output": "levels"}
    whole = fastdiff.sample(model, 5, seed=2, **choice)
    assert (whole != fastdiff.sample(model, 5, seed=2, batch_size=2, **choice)).float().mean() < 0.02  # rounding
    assert not torch.equal(whole, fastdiff.sample(model, 5, seed=2, steps=10, output="levels"))
    assert fastdiff.sample(small_diffusevae(2), 2, **choice).shape == (2, 1, 8, 8)


PAIR = "; allowed: (first, last), numbers with 0 < first <= last < 1"
WRONG = [
    (small, {"betas": (1e-4, 0.02)}, "sample: betas is (0.0001, 0.02) for a vdm, with grid None; allowed: for a DDPM"),
    (chain, {"betas": (0.1, 0.2), "grid": "gamma"}, "sample: betas is (0.1, 0.2) for a ddpm, with grid 'gamma'"),
    *(
        (chain, {"betas": b}, f"sample: betas is {b!r}{PAIR}")
        for b in ((0, 0.5), (0.2, 0.1), (0.1,), "x", (0.1, 1.0), (0.1, "a"))
    ),
    (chain, {"betas": (0.1, 0.2), "steps": 1}, "sample: steps is 1; allowed: an integer >= 2"),
]


@pytest.mark.parametrize(("model", "options", "message"), WRONG)
def test_wrong_betas(model, options, message):
    with pytest.raises(ValueError, match=r"sample: .*allowed: ") as caught:
        fastdiff.sample(model(), 1, **({"steps": 10} | options))
    assert str(caught.value).startswith(message)
