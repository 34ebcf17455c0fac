"""DiffuseVAE: formulation 2 by brute-force conditioning, both formulations' bounds, sampling through the offset."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import SMALL, SMALL_VAE, images
from tiny import small_diffusevae as refined

import fastdiff
from fastdiff.datasets import digits
from fastdiff.evaluation import evaluate
from fastdiff.kernels import Noise, Stream, centre
from fastdiff.models import DDPMConfig, DiffuseVAE, DiffuseVAEConfig, HVAEConfig
from fastdiff.process import alpha, sigma
from fastdiff.sample import sample_latents, sampling_plan
from fastdiff.samplers import ancestral
from fastdiff.training import TrainConfig, TrainState, train

VAE = HVAEConfig(**SMALL_VAE)
REFINER = DDPMConfig((1, 8, 8), 17, steps=12, network=SMALL)


def shifted_chain(steps: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Joint mean coefficients (of x_0 and x_hat) and covariance of x_1 .. x_T, by the forward recursion of eq. 10."""
    betas = torch.linspace(0.05, 0.5, steps, dtype=torch.float64)
    mean = torch.zeros(steps, 2, dtype=torch.float64)
    covariance = torch.zeros(steps, steps, dtype=torch.float64)
    keep = (1 - betas).sqrt()
    mean[0] = torch.tensor([keep[0], 1.0])
    covariance[0, 0] = betas[0]
    for t in range(1, steps):
        mean[t] = keep[t] * mean[t - 1] + torch.tensor([0.0, 1 - keep[t]])
        covariance[t, :t] = covariance[:t, t] = keep[t] * covariance[t - 1, :t]
        covariance[t, t] = keep[t] ** 2 * covariance[t - 1, t - 1] + betas[t]
    return betas, mean, covariance


def test_marginals_of_formulation_2():
    """N(sqrt(alpha_bar) x_0 + x_hat, 1 - alpha_bar): to 1e-14 of the recursion."""
    betas, mean, covariance = shifted_chain()
    bar = torch.cumprod(1 - betas, 0)
    torch.testing.assert_close(mean[:, 0], bar.sqrt(), rtol=1e-13, atol=0)
    torch.testing.assert_close(mean[:, 1], torch.ones(6).double(), rtol=1e-13, atol=0)
    torch.testing.assert_close(covariance.diagonal(), 1 - bar, rtol=1e-13, atol=0)


def test_posterior_of_formulation_2_by_conditioning():
    """q(x_s | x_t, x_0, x_hat) from the joint Gaussian, against A (x_t - x_hat) + B x_0 + x_hat, to 1e-10."""
    betas, mean, covariance = shifted_chain()
    bar = torch.cumprod(1 - betas, 0)
    gamma = torch.log((1 - bar) / bar)
    plan = ancestral(gamma)
    x_0, x_hat, x_t = 0.3, -0.7, 1.1
    means = mean @ torch.tensor([x_0, x_hat], dtype=torch.float64)
    for t in range(5, 0, -1):
        s = t - 1
        conditional = means[s] + covariance[s, t] / covariance[t, t] * (x_t - means[t])
        variance = covariance[s, s] - covariance[s, t] ** 2 / covariance[t, t]
        row = plan.table[5 - t]
        ours = row[2] * (x_t - x_hat) + row[3] * x_0 + row[6] * x_hat
        assert abs(float(ours - conditional)) < 1e-10
        assert abs(float(row[5] ** 2 - variance)) < 1e-10


@pytest.mark.parametrize("formulation", [1, 2])
def test_the_bound_is_the_latents_kl_and_the_refiners_bound(formulation):
    """Recomputed in x coordinates: the latents of formulation 2 carry x_hat, and the network sees them so."""
    model, x, noise = refined(formulation), images(5), Noise(3)
    with torch.no_grad():
        vlb = model.vlb(x, noise, 12)
        mean, logvar = model.vae.encoder(centre(x, 17))
        z = mean + (0.5 * logvar).exp() * noise.at(stream=Stream.VAE).normal((5, 5))
        kl = 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)
        x_hat = model.vae.decoder(z)[0].clamp(-1, 1)
        shift = x_hat if formulation == 2 else torch.zeros_like(x_hat)
        gamma_1 = model.refiner.gamma.endpoints()[1]
        marginal = torch.distributions.Normal(alpha(gamma_1) * centre(x, 17) + shift, sigma(gamma_1))
        prior = torch.distributions.kl_divergence(marginal, torch.distributions.Normal(shift, 1.0)).flatten(1).sum(1)
        torch.testing.assert_close(vlb.prior, kl + prior, rtol=1e-4, atol=1e-4)
        gamma = model.refiner.gamma(torch.tensor([0.5] * 5).double()).float()
        g = gamma[:, None, None, None]
        eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape)
        x_t = alpha(g) * centre(x, 17) + sigma(g) * eps + shift
        told = model.refiner.network(torch.cat([x_t, x_hat], 1), model.refiner.time(gamma))
        ours = model.refiner.on(x_hat).eps_hat(x_t - shift, gamma)
        torch.testing.assert_close(ours, told, rtol=1e-5, atol=1e-5)
    assert float((vlb.prior - prior).min()) > 0
    result = evaluate(model, x, draws=2)
    assert result.steps == 12
    assert math.isfinite(result.mean)


@pytest.mark.parametrize(("sampler", "eta"), [("ancestral", None), ("ddim", None), ("ddim", 0.5)])
def test_sampling_through_the_offset_is_sampling_less_the_picture(sampler, eta):
    """x_T = x_hat + noise stepped with the offset ends where y_T = noise stepped without it does; measured 1.4e-5."""
    model = refined(2)
    x_hat = 0.5 * torch.randn(3, 1, 8, 8)
    bound = model.refiner.on(x_hat)
    walk = sampling_plan(bound, 12, sampler, eta)
    with_offset = sample_latents(bound, 3, walk, Noise(4))
    bound.formulation = 1  # no offset: the loop then works in y, and the network must be given x itself

    def predict(z_t, gamma, labels=None):
        out = model.refiner.network(torch.cat([z_t + x_hat, x_hat], 1), model.refiner.time(gamma))
        return model.refiner.read(out, z_t, gamma)

    bound.predict = predict
    without = sample_latents(bound, 3, walk, Noise(4))
    torch.testing.assert_close(with_offset, without, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("formulation", [1, 2])
@pytest.mark.parametrize("depth", [1, 3])
def test_samples_depend_on_the_seed_and_the_index_alone(formulation, depth):
    model = refined(formulation, depth=depth)
    whole = fastdiff.sample(model, 5, steps=4, seed=2, output="levels")
    parts = fastdiff.sample(model, 5, steps=4, seed=2, batch_size=2, output="levels")
    assert (whole != parts).float().mean() < 0.02  # rounding may move a pixel by a level
    assert not torch.equal(whole, fastdiff.sample(model, 5, steps=4, seed=3, output="levels"))
    quiet = fastdiff.sample(
        model, 5, steps=4, sampler="ddim", temperature=1e-6, latent_temperature=1e-6, output="float"
    )
    if depth == 1:
        assert float(quiet.std(0).max()) < 0.2  # nothing but rounding between two images


def test_training_moves_the_second_stage_alone():
    model = refined(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = TrainState(model, TrainConfig("digits", steps=3, batch_size=8, loss="simple"))
    reports = list(train(state, digits()))
    assert all(report.bpd.prior > 0 for report in reports)
    for name, value in model.state_dict().items():
        if name.startswith("vae."):
            assert torch.equal(value, before[name]), name
    assert any(not torch.equal(v, before[n]) for n, v in model.state_dict().items() if n.startswith("refiner."))
    assert not model.vae.training


def test_round_trip_and_first_stage(tmp_path):
    model = refined(1)
    model.save(tmp_path / "m")
    again = fastdiff.load(tmp_path / "m")
    assert isinstance(again, DiffuseVAE)
    assert again.config == model.config
    x = images(2)
    assert torch.equal(again.vlb(x, Noise(1), 12).total, model.vlb(x, Noise(1), 12).total)
    other = refined(1, seed=5)
    other.take_first_stage(model.vae)
    assert torch.equal(other.picture(torch.ones(1, 5)), model.picture(torch.ones(1, 5)))
    with pytest.raises(ValueError, match="first stage has depth 3; allowed: depth 1"):
        other.take_first_stage(refined(1, depth=3).vae)


def test_no_training_without_a_first_stage():
    fresh = DiffuseVAE(DiffuseVAEConfig((1, 8, 8), 17, vae=VAE, refiner=REFINER))
    with pytest.raises(ValueError, match=r"a DiffuseVAE without a first stage; allowed: after take_first_stage"):
        next(train(TrainState(fresh, TrainConfig("digits", steps=1, batch_size=2, loss="simple")), digits()))
    with pytest.raises(ValueError, match="the first stage is a Refiner; allowed: a VAE"):
        fresh.take_first_stage(fresh.refiner)
    fresh.load_state_dict(refined(1).state_dict())
    assert fresh.has_first_stage


WRONG = {
    "formulation is 3; allowed: 1 or 2": {"formulation": 3},
    r"vae has shape \(1, 4, 4\), 17 levels.*allowed: \(1, 8, 8\), 17 levels": {"vae": replace(VAE, shape=(1, 4, 4))},
    "refiner has .* 10 classes, augmented False; allowed": {"refiner": replace(REFINER, classes=10)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_combinations(message):
    settings = {"vae": VAE, "refiner": REFINER, "formulation": 2} | WRONG[message]
    with pytest.raises(ValueError, match=message):
        DiffuseVAEConfig((1, 8, 8), 17, **settings)


def test_what_a_diffusevae_has_not():
    model = refined(1)
    with pytest.raises(ValueError, match="labels is 3 for a DiffuseVAE, which has no labels; allowed: None"):
        fastdiff.sample(model, 1, labels=3)
    with pytest.raises(ValueError, match=r"a picture of shape None; allowed: \(2, 1, 8, 8\), bound by `on`"):
        model.refiner.eps_hat(torch.zeros(2, 1, 8, 8), torch.zeros(2))
