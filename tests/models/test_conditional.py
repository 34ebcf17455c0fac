"""The conditional diffusion model against brute force in the latents of the paper, x_t, in float64: the bound, the
samples of every sampler, guidance. Formulation 2 is written out as its forward recursion in x_t, which the library
never computes: it works in y_t = x_t - cond.
"""

from dataclasses import dataclass

import attrs
import pytest
import torch
from tiny import images, small_diffusevae, small_restoration
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import fastdiff
from fastdiff.data import digits
from fastdiff.diffusion import DDIM, Ancestral, DPMSolver, Heun
from fastdiff.diffusion.bound import stratified_times
from fastdiff.evaluation import evaluate
from fastdiff.kernels import InvalidValueError, Noise, Stream, to_unit_range
from fastdiff.models import AddNoise, ConditionalDDPM, Downsample, Latents
from fastdiff.training import TrainConfig, TrainState, train

MODELS = {
    "diffusevae": small_diffusevae,
    "downsample": lambda formulation, **changes: small_restoration(Downsample(), formulation, **changes),
    "noise": lambda formulation, **changes: small_restoration(AddNoise(), formulation, **changes),
}


@dataclass
class Chain:
    """q(x_1 .. x_T | x_0, cond): the mean of x_t is keep[t] x_0 + shift[t] cond; covariance [T, T]; all float64."""

    keep: Tensor
    shift: Tensor
    covariance: Tensor

    def mean(self, t: int, x_0: Tensor, cond: Tensor) -> Tensor:
        return self.keep[t] * x_0 + self.shift[t] * cond

    def posterior(self, t: int, x_t: Tensor, x_0: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0, cond), by conditioning the joint Gaussian."""
        s, c = t - 1, self.covariance
        mean = self.mean(s, x_0, cond) + c[s, t] / c[t, t] * (x_t - self.mean(t, x_0, cond))
        return mean, c[s, s] - c[s, t] ** 2 / c[t, t]


def chain_of(betas: Tensor, formulation: int) -> Chain:
    """By the forward recursion (Pandey et al. 2022, eq. 10 for formulation 2); index 0 is x_1."""
    steps, keep = len(betas), (1 - betas).sqrt()
    mean, covariance = torch.zeros(2, steps).double(), torch.zeros(steps, steps).double()
    mean[:, 0] = torch.stack([keep[0], torch.ones(()).double() * (formulation == 2)])
    covariance[0, 0] = betas[0]
    for t in range(1, steps):
        mean[0, t] = keep[t] * mean[0, t - 1]
        mean[1, t] = keep[t] * mean[1, t - 1] + (1 - keep[t]) * (formulation == 2)
        covariance[t, :t] = covariance[:t, t] = keep[t] * covariance[t - 1, :t]
        covariance[t, t] = keep[t] ** 2 * covariance[t - 1, t - 1] + betas[t]
    return Chain(mean[0], mean[1], covariance)


def gammas_of(model: ConditionalDDPM, steps: int) -> Tensor:
    return model.gamma(torch.arange(steps, dtype=torch.float64) / (steps - 1))


def betas_of(gamma: Tensor) -> Tensor:
    """The betas of a chain with these gammas: 1 - beta_t is the ratio of alpha² to that of the step before."""
    bar = torch.sigmoid(-gamma)
    return 1 - bar / torch.cat([torch.ones(1).double(), bar[:-1]])


def network_eps(model: ConditionalDDPM, x_t: Tensor, t: Tensor, cond: Tensor, labels=None) -> tuple[Tensor, Tensor]:
    """The network's output for x_t and cond, float64: eps_hat, and v in [0, 1] if there is one."""
    if labels is None and model.num_classes:
        labels = torch.full((len(x_t),), model.null_label)
    with torch.no_grad():
        out = model.network(torch.cat([x_t, cond], 1).float(), t.float().expand(len(x_t)), labels).double()
    return out[:, :1], 0.5 * (out[:, 1:] + 1)


# ------------------------------------------------------------------------------------------------ the bound


@pytest.mark.parametrize("formulation", [1, 2])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize("name", MODELS)
def test_every_term_of_the_bound_by_brute_force(name, variance, formulation):
    """KL of every step, prior and decoder of the chain in x_t. Measured: 2e-6 of the KL."""
    T = 5
    model, x = MODELS[name](formulation, variance=variance, T=T), images(3)
    noise = Noise(4)
    gamma = gammas_of(model, T)
    betas = betas_of(gamma)
    chain = chain_of(betas, formulation)
    with torch.no_grad():
        cond, cond_nats = model.draw_cond(x, noise)
        recon, prior = model.end_terms(x, noise)
        vlb = model.vlb(x, noise, T)
    assert torch.equal(vlb.recon, recon)
    assert torch.equal(vlb.prior, prior)
    cond, x_0 = cond.double(), to_unit_range(x, 17).double()
    eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape).double()
    for t in range(1, T):
        x_t = chain.mean(t, x_0, cond) + chain.covariance[t, t].sqrt() * eps
        eps_hat, v = network_eps(model, x_t, torch.tensor(t / (T - 1)), cond)
        x_hat = (x_t - chain.shift[t] * cond - chain.covariance[t, t].sqrt() * eps_hat) / chain.keep[t]
        (mean_q, small), (mean_p, _) = (chain.posterior(t, x_t, start, cond) for start in (x_0, x_hat))
        large = betas[t]
        widths = {
            "fixed_small": small,
            "fixed_large": large,
            "learned": torch.exp(v * large.log() + (1 - v) * small.log()),
        }
        q, p = Normal(mean_q, small.sqrt().expand_as(x_0)), Normal(mean_p, widths[variance].sqrt().expand_as(x_0))
        u = torch.full((3,), (t - 0.5) / (T - 1), dtype=torch.float64)
        with torch.no_grad():
            term = model.transition_nats(x, noise, u, T - 1) / (T - 1)
        torch.testing.assert_close(term.double(), kl_divergence(q, p).flatten(1).sum(1), rtol=2e-5, atol=0)
    end = torch.tensor(T - 1)
    q = Normal(chain.mean(int(end), x_0, cond), chain.covariance[end, end].sqrt())
    kl = kl_divergence(q, Normal((formulation == 2) * cond, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(prior.double(), kl + (0.0 if cond_nats is None else cond_nats), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        recon.double(), decoder_nats(model, chain, x, noise, cond, variance), rtol=1e-4, atol=1e-4
    )


def decoder_nats(model, chain: Chain, x: Tensor, noise: Noise, cond: Tensor, variance: str) -> Tensor:
    """-log of the mass of N(x_hat(x_1), V) in the bins of the pixels."""
    eps = noise.at(stream=Stream.RECON).normal(x.shape).double()
    deviation = chain.covariance[0, 0].sqrt()
    x_1 = chain.mean(0, to_unit_range(x, 17).double(), cond) + deviation * eps
    eps_hat, v = network_eps(model, x_1, torch.zeros(()), cond)
    low, high = chain.posterior(1, x_1, x_1, cond)[1].log(), chain.covariance[0, 0].log()
    logvar = torch.lerp(low, high, v) if variance == "learned" else low
    normal = Normal((x_1 - chain.shift[0] * cond - deviation * eps_hat) / chain.keep[0], torch.exp(0.5 * logvar))
    upper = normal.cdf(2.0 * (x.double() + 1) / 17 - 1).where(x < 16, torch.ones(()).double())
    lower = normal.cdf(2.0 * x.double() / 17 - 1).where(x > 0, torch.zeros(()).double())
    assert float((upper - lower).min()) > 1e-12  # where this oracle still has digits
    return -(upper - lower).log().flatten(1).sum(1)


@pytest.mark.parametrize("formulation", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_bound_and_the_losses_agree(name, formulation):
    """A stratified batch of T copies of one cond has every term once: the elbo loss is the bound on average."""
    model, noise = MODELS[name](formulation, T=6), Noise(9)
    x = images(1).expand(6, -1, -1, -1)
    with torch.no_grad():
        elbo, simple = model(x, noise), model(x, noise, loss="simple")
        cond, cond_nats = model.draw_cond(x, noise)
        i = torch.floor(stratified_times(noise, 6) * 6).long()
        data, eps = to_unit_range(x, 17).double(), noise.at(stream=Stream.DIFFUSION).normal(x.shape).double()
        gamma = gammas_of(model, 6)[i][:, None, None, None]
        x_t = torch.sigmoid(-gamma).sqrt() * data + torch.sigmoid(gamma).sqrt() * eps + (formulation == 2) * cond
        expected = [
            (eps[b] - network_eps(model, x_t[b : b + 1], i[b] / 5, cond[b : b + 1])[0]).square().sum() for b in range(6)
        ]
    assert sorted(i.tolist()) == list(range(6))
    torch.testing.assert_close(simple.loss.double(), torch.stack(expected), rtol=1e-5, atol=0)
    torch.testing.assert_close(elbo.vlb.total - (0.0 if cond_nats is None else cond_nats), elbo.loss)
    assert torch.equal(elbo.vlb.total, simple.vlb.total)


# ------------------------------------------------------------------------------------------------ samples


@dataclass
class Setting:
    """One way of sampling by hand: a model, conditioning images, options."""

    model: ConditionalDDPM
    cond: Tensor
    noise: Noise
    clip: bool
    labels: Tensor | None = None
    guidance: float | None = None

    def estimate(self, x_t: Tensor, t: Tensor, chain: Chain, i: int) -> Tensor:
        """x_hat of x_t = x_{i+1}, with eps_hat = u + w (c - u)."""
        eps_hat = network_eps(self.model, x_t, t, self.cond, self.labels)[0]
        if self.guidance is not None:
            u = network_eps(self.model, x_t, t, self.cond)[0]
            eps_hat = u + self.guidance * (eps_hat - u)
        x_hat = (x_t - chain.shift[i] * self.cond - chain.covariance[i, i].sqrt() * eps_hat) / chain.keep[i]
        return x_hat.clamp(-1, 1) if self.clip else x_hat

    def step_noise(self, row: int) -> Tensor:
        return self.noise.at(step=row, stream=Stream.SAMPLER).normal(tuple(self.cond.shape)).double()


def sampled_by_hand(setting: Setting, sampler, steps: int) -> list[Tensor]:
    """What the callback shows: x_t after every call of the network, and x_0 at the end."""
    gamma = gammas_of(setting.model, steps)
    chain = chain_of(betas_of(gamma), setting.model.config.formulation)
    alpha, sigma, rho = chain.keep, chain.covariance.diagonal().sqrt(), torch.exp(0.5 * gamma)
    y = sampler.temperature * setting.noise.at(stream=Stream.INITIAL).normal(tuple(setting.cond.shape)).double()
    x_t, shown, before, h_before, row = y + chain.shift[-1] * setting.cond, [], None, None, 0
    for i in range(steps - 1, 0, -1):
        x_hat = setting.estimate(x_t, torch.tensor(i / (steps - 1)), chain, i)
        eps = (x_t - chain.mean(i, x_hat, setting.cond)) / sigma[i]
        shift = chain.shift[i - 1] * setting.cond
        if isinstance(sampler, Ancestral):
            mean, variance = chain.posterior(i, x_t, x_hat, setting.cond)
            variance = betas_of(gamma)[i] if sampler.variance == "fixed_large" else variance
            x_t = mean + variance.sqrt() * setting.step_noise(row)
        elif isinstance(sampler, DDIM):
            d = sampler.eta * chain.posterior(i, x_t, x_hat, setting.cond)[1].sqrt()
            x_t = shift + alpha[i - 1] * x_hat + (sigma[i - 1] ** 2 - d**2).sqrt() * eps + d * setting.step_noise(row)
        elif isinstance(sampler, DPMSolver):
            h = 0.5 * (gamma[i] - gamma[i - 1])
            data = x_hat if before is None else x_hat + 0.5 * h / h_before * (x_hat - before)
            y = x_t - chain.shift[i] * setting.cond
            x_t, before, h_before = (
                sigma[i - 1] / sigma[i] * y - alpha[i - 1] * torch.expm1(-h) * data + shift,
                x_hat,
                h,
            )
        else:
            scaled = (x_t - chain.shift[i] * setting.cond) / alpha[i]  # Heun's method, d scaled / d rho = eps
            predicted = scaled + (rho[i - 1] - rho[i]) * eps
            shown.append(alpha[i - 1] * predicted + shift)
            row += 1
            x_hat = setting.estimate(shown[-1], torch.tensor((i - 1) / (steps - 1)), chain, i - 1)
            after = (predicted - x_hat) / rho[i - 1]
            x_t = alpha[i - 1] * (scaled + (rho[i - 1] - rho[i]) * 0.5 * (eps + after)) + shift
        shown.append(x_t)
        row += 1
    return [*shown, setting.estimate(x_t, torch.zeros(()), chain, 0)]


def compare(setting: Setting, sampler, steps: int, tolerance: float, **options) -> None:
    """Every call of the callback, and the images, against `sampled_by_hand`; relative to the largest value."""
    seen: list[Tensor] = []
    drawn = fastdiff.sample(
        setting.model, len(setting.cond), steps, sampler, seed=7, output="levels",
        guidance=setting.guidance, labels=setting.labels, callback=lambda step, nfe, x_t, x_hat: seen.append(x_t),
        **options,
    )  # fmt: skip
    expected = sampled_by_hand(setting, sampler, steps)
    assert len(seen) == len(expected)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * max(1.0, float(theirs.abs().max())))
    levels = torch.round(0.5 * ((expected[-1] + 1) * 17 - 1)).clamp(0, 16)
    assert float((drawn != levels).double().mean()) < 0.02  # rounding may move a pixel by a level


@pytest.mark.parametrize("formulation", [1, 2])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    "sampler",
    [Ancestral(), Ancestral(variance="fixed_large"), DDIM(), DDIM(eta=0.5), DPMSolver(), Heun()],
    ids=lambda sampler: f"{type(sampler).__name__} {getattr(sampler, 'eta', getattr(sampler, 'variance', ''))}",
)
def test_samples_are_those_of_the_chain_in_x(sampler, clip, formulation):
    """Formulation 2 in x_t = y_t + cond for t >= 1 and x_0 = y_0, written out, for every sampler. Nothing is added to
    the last x_hat, and the callback shows x_t.
    """
    model = small_diffusevae(formulation, variance="fixed_small", prediction="epsilon")
    cond = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sampler = attrs.evolve(sampler, clip_denoised=clip, temperature=0.8)
    compare(Setting(model, cond.double(), Noise(7), clip), sampler, 7, 3e-5, cond=cond)


@pytest.mark.parametrize("formulation", [1, 2])
@pytest.mark.parametrize("guidance", [None, 0.0, 2.5])
@pytest.mark.parametrize("name", MODELS)
def test_guidance_is_the_combination_of_two_predictions(name, guidance, formulation):
    """eps_hat = u + w (c - u), where c has the label and u the null label, and both have cond."""
    model = MODELS[name](formulation, num_classes=3, variance="fixed_small")
    labels = torch.tensor([0, 2, 1])
    if name == "diffusevae":
        cond, options = model.cond_from_latents(model.vae.prior_latents(3, Noise(7))), {}
    else:
        degraded = model.degrade(images(3), Noise(1))
        cond, options = model.config.degradation.upsample(degraded), {"cond": degraded}
    setting = Setting(model, cond.double(), Noise(7), True, labels, guidance)
    compare(setting, Ancestral(clip_denoised=True), 6, 3e-5, **options)
    if guidance is None:  # the conditional model alone, as with guidance 1
        plain, one = (fastdiff.sample(model, 3, 6, labels=labels, guidance=w, **options) for w in (None, 1.0))
        assert torch.equal(plain, one)


# ------------------------------------------------------------------------------------------------ labels and training


@pytest.mark.parametrize("name", MODELS)
def test_labels_reach_the_network_in_training_and_in_the_bound(name):
    model, x, noise = MODELS[name](2, num_classes=3), images(4), Noise(3)
    labels = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        bounds = [model.vlb(x, noise, 12, labels=y).total for y in (None, torch.full((4,), 3), labels)]
    assert torch.equal(bounds[0], bounds[1])
    assert not torch.equal(bounds[0], bounds[2])
    model(x, noise, labels, loss="simple").loss.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    rows = gradients["network.label_embedding.weight"].abs().sum(1)
    assert (rows > 0).tolist() == [True, True, True, False]
    for name, gradient in gradients.items():
        assert (gradient is None) == name.startswith("vae."), name
    assert evaluate(model, x, labels, draws=1).mean != evaluate(model, x, draws=1).mean


@pytest.mark.parametrize("name", MODELS)
def test_training_moves_the_diffusion_model_alone(name):
    model = MODELS[name](2, num_classes=10, continuous_noise_conditioning=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrainConfig(data="digits", max_steps=2, batch_size=16, loss="simple", label_dropout=0.2)
    reports = list(train(TrainState(model, config), digits()))
    assert [report.skipped for report in reports] == [False] * 2
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("vae."), name


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_x_given_cond_needs_cond(name):
    with pytest.raises(InvalidValueError, match="cond must have the shape of z_t"):
        MODELS[name](1).eps_hat(torch.zeros(2, 1, 8, 8), torch.zeros(2))


@pytest.mark.parametrize("formulation", [1, 2])
def test_image_i_depends_on_its_own_cond(formulation):
    model = small_restoration(formulation=formulation, prediction="v")
    cond = model.degrade(images(5), Noise(1))
    whole = fastdiff.sample(model, 5, 4, cond=cond, output="levels")
    cond[2] = -cond[2]
    other = fastdiff.sample(model, 5, 4, cond=cond, output="levels", batch_size=5)
    assert (other != whole).flatten(1).any(1).tolist() == [False, False, True, False, False]
    parts = fastdiff.sample(model, 5, 4, cond=cond, output="levels", batch_size=2)
    assert (other != parts).float().mean() < 0.02  # rounding may move a pixel by a level
    assert fastdiff.sample(model, 0, 4, cond=cond[:0]).shape == (0, 1, 8, 8)


def test_levels_as_cond_are_their_values_in_the_unit_range():
    settings = {"n": 3, "steps": 4, "output": "levels"}
    for model, cond in ((small_restoration(), images(3, shape=(1, 4, 4))), (small_diffusevae(2), images(3))):
        one = fastdiff.sample(model, **settings, cond=cond)
        assert torch.equal(one, fastdiff.sample(model, **settings, cond=to_unit_range(cond, 17)))


@pytest.mark.parametrize("formulation", [1, 2])
def test_a_diffusevae_with_cond_draws_no_latents(formulation):
    model, cond = small_diffusevae(formulation, prediction="v"), images(3)
    settings = {"n": 3, "steps": 4, "seed": 2, "output": "levels"}
    assert not torch.equal(fastdiff.sample(model, **settings, cond=cond), fastdiff.sample(model, **settings))
    z_1 = model.vae.prior_latents(3, Noise(2))
    same = [
        fastdiff.sample(model, **settings),
        fastdiff.sample(model, **settings, latents=Latents(z=z_1)),
        fastdiff.sample(model, **settings, cond=model.cond_from_latents(z_1)),
    ]
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])
    with pytest.raises(InvalidValueError, match="latents"):
        fastdiff.sample(model, **settings, cond=cond, latents=Latents(temperature=0.5))
