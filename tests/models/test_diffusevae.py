"""DiffuseVAE: what its two stages share; see test_conditional for the second stage, its bound and its samples."""

import attrs
import pytest
import torch
from tiny import SMALL_DDPM, SMALL_VAE, images, small_ddpm, small_vae
from tiny import small_diffusevae as diffusevae

import fastdiff
from fastdiff.data import digits
from fastdiff.diffusion import DDIM
from fastdiff.evaluation import evaluate
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import InvalidTypeError, Noise, Stream, to_unit_range
from fastdiff.models import DiffuseVAE, DiffuseVAEConfig, HVAEConfig, Latents
from fastdiff.training import TrainConfig, TrainState, train

VAE = HVAEConfig(**SMALL_VAE)


@pytest.mark.parametrize("depth", [1, 3])
def test_cond_is_the_mean_of_the_decoder_and_costs_the_kl_of_the_latents(depth):
    """By the networks of the first stage; the KL of all layers is part of the prior term."""
    model, x, noise = diffusevae(2, depth=depth), images(5), Noise(3)
    with torch.no_grad():
        cond, nats = model.draw_cond(x, noise)
        terms = model.vae.terms(x, noise)
        mean, logvar = model.vae.encoder(to_unit_range(x, 17))
        z_1 = mean + (0.5 * logvar).exp() * noise.at(stream=Stream.VAE).normal((5, 5))
        torch.testing.assert_close(cond, model.vae.decoder(z_1)[0].clamp(-1, 1))
        torch.testing.assert_close(nats, torch.stack(terms.layers).sum(0))
        if depth == 1:
            torch.testing.assert_close(nats, 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1))
    assert evaluate(model, x, draws=1).T == 12


@pytest.mark.parametrize("depth", [1, 3])
def test_samples_depend_on_the_seed_and_the_index(depth):
    model = diffusevae(2, depth=depth)
    whole = fastdiff.sample(model, 5, 4, seed=2, output="levels")
    parts = fastdiff.sample(model, 5, 4, seed=2, batch_size=2, output="levels")
    assert (whole != parts).float().mean() < 0.02  # rounding may move a pixel by a level
    assert not torch.equal(whole, fastdiff.sample(model, 5, 4, seed=3, output="levels"))


def test_cold_samples_are_equal():
    """With both temperatures near 0 nothing but rounding differs between two images."""
    cold = {"sampler": DDIM(temperature=1e-6), "latents": Latents(temperature=1e-6), "output": "float"}
    assert float(fastdiff.sample(diffusevae(1), 5, 4, **cold).std(0).max()) < 0.2


def test_a_loaded_model_has_its_first_stage(tmp_path):
    model = diffusevae(1)
    fastdiff.load(model.save(tmp_path / "m")).check_trainable()
    other = diffusevae(1, seed=5)
    other.take_first_stage(model.vae)
    z = torch.ones(1, 5)
    assert torch.equal(other.cond_from_latents(z), model.cond_from_latents(z))
    with pytest.raises(ConfigError, match="depth is 3, expected 1"):
        other.take_first_stage(diffusevae(1, depth=3).vae)


def test_training_needs_a_first_stage():
    model = DiffuseVAE(DiffuseVAEConfig(**SMALL_DDPM, vae=VAE))
    config = TrainConfig(data="digits", max_steps=1, batch_size=2, loss="simple")
    with pytest.raises(ConfigError, match="take_first_stage"):
        next(train(TrainState(model, config), digits()))
    with pytest.raises(InvalidTypeError, match="first_stage must be a VAE, got a ddpm model"):
        model.take_first_stage(small_ddpm())
    with pytest.raises(ConfigError, match="first_stage must be None for a ddpm model"):
        small_ddpm().take_first_stage(small_vae())
    model.take_first_stage(small_vae(1))
    assert len(list(train(TrainState(model, config), digits()))) == 1
    assert not model.vae.training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"formulation": 3}, "formulation must be one of 1, 2"),
        ({"vae": attrs.evolve(VAE, shape=(1, 4, 4))}, r"vae must have shape \(1, 8, 8\)"),
        ({"vae": attrs.evolve(VAE, levels=9)}, "vae must have .* 17 levels"),
    ],
)
def test_wrong_configurations(change, words):
    with pytest.raises(ConfigError, match=words):
        DiffuseVAEConfig(**(SMALL_DDPM | {"vae": VAE} | change))
