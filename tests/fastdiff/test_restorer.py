"""Restorers: what is left of images by plain loops, their bound, and sampling from what is given."""

import json
import math
from typing import Any

import pytest
import torch
from tiny import SMALL, filled, images, small, small_diffusevae, small_vae

import fastdiff
from fastdiff.checkpoint import CheckpointError
from fastdiff.config import ConfigError
from fastdiff.datasets import digits
from fastdiff.evaluation import evaluate
from fastdiff.kernels import Noise, Stream, centre
from fastdiff.models import AddNoise, DDPMConfig, DiffuseVAEConfig, Downsample, Restorer, RestorerConfig
from fastdiff.process import alpha, sigma
from fastdiff.training import TrainConfig, TrainState, train
from fastdiff.vlb import prior_nats

DEGRADATIONS = [Downsample(), Downsample(factor=4), AddNoise(), AddNoise(deviation=0.1)]


def restorer(degradation: Any = DEGRADATIONS[0], formulation: int = 1, **changes) -> Restorer:
    torch.manual_seed(0)
    refiner = DDPMConfig(**({"shape": (1, 8, 8), "levels": 17, "steps": 12, "network": SMALL} | changes))
    config = RestorerConfig((1, 8, 8), 17, refiner=refiner, formulation=formulation, degradation=degradation)
    return filled(Restorer(config))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(("factor", "shape"), [(2, (3, 8, 12)), (3, (1, 6, 9)), (4, (2, 4, 8)), (8, (1, 8, 8))])
def test_downsample_by_loops(factor, shape):
    """Block means in float64 and repetition; measured 3e-8. The enlarged picture has the image's mean: 7.5e-9."""
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kind = Downsample(factor=factor)
    less = kind.apply(x, Noise(0))
    again = kind.picture(less)
    assert tuple(less.shape[1:]) == kind.shape(shape) == (shape[0], shape[1] // factor, shape[2] // factor)
    assert again.shape == x.shape
    for h in range(shape[1]):
        for w in range(shape[2]):
            i, j = h // factor, w // factor
            block = [x[:, :, i * factor + k, j * factor + m].double() for k in range(factor) for m in range(factor)]
            assert float((less[:, :, i, j] - sum(block) / factor**2).abs().max()) < 1e-7
            assert torch.equal(again[:, :, h, w], less[:, :, i, j])
    torch.testing.assert_close(again.double().mean((2, 3)), x.double().mean((2, 3)), rtol=0, atol=2e-8)


def test_added_noise_is_a_function_of_seed_step_and_sample():
    """Bit for bit; and its deviation and mean within 4 standard errors, apart from every other stream."""
    model, x = restorer(AddNoise(deviation=0.25)), images(500)
    noise = Noise(5, step=3, first_sample=2)
    whole = model.degrade(x, noise)
    parts = [model.degrade(x[f : f + 200], Noise(5, step=3, first_sample=2 + f)) for f in (0, 200, 400)]
    assert torch.equal(whole, torch.cat(parts))
    added = (whole - centre(x, 17)).double()
    n = added.numel()
    assert abs(float(added.mean())) < 4 * 0.25 / math.sqrt(n)
    assert abs(float(added.std()) - 0.25) < 4 * 0.25 / math.sqrt(2 * n)
    for other in (Noise(6, step=3, first_sample=2), Noise(5, step=4, first_sample=2), Noise(5, step=3)):
        assert not torch.equal(model.degrade(x, other), whole)
    for stream in (Stream.DIFFUSION, Stream.RECON, Stream.INITIAL, Stream.SAMPLER, Stream.VAE):
        eps = noise.at(stream=stream).normal(x.shape).double()
        assert abs(float((added * eps).mean())) < 4 * 0.25 / math.sqrt(n)
    assert model.config.degradation.picture(whole) is whole


DIVISOR = "Downsample: factor 3 for images (1, 8, 8); allowed: a divisor of the height and the width"
FACTOR = "; allowed: 'downsample', an integer >= 2"
DEVIATION = "; allowed: 'noise', a number > 0"
WRONG = [
    (lambda: restorer(Downsample(factor=3)), DIVISOR),
    (lambda: Downsample(factor=3).apply(torch.zeros(2, 1, 8, 8), Noise(0)), DIVISOR),
    (lambda: restorer(Downsample(factor=16)), DIVISOR.replace("factor 3", "factor 16")),
    (lambda: Downsample(factor=1), "Downsample: kind 'downsample', factor 1" + FACTOR),
    (lambda: Downsample(kind="noise"), "Downsample: kind 'noise', factor 2" + FACTOR),
    (lambda: Downsample(factor=2.0), "Downsample.factor: 2.0 is a float; allowed: int"),  # pyright: ignore
    (lambda: AddNoise(deviation=0.0), "AddNoise: kind 'noise', deviation 0.0" + DEVIATION),
    (lambda: AddNoise(deviation=math.nan), "AddNoise: kind 'noise', deviation nan" + DEVIATION),
    (lambda: AddNoise(kind="downsample"), "AddNoise: kind 'downsample', deviation 0.5" + DEVIATION),
    (lambda: restorer(3), "RestorerConfig.degradation: 3 is a int; allowed: Downsample, AddNoise"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_configurations(make, message):
    with pytest.raises(ValueError, match=r".*allowed: ") as caught:
        make()
    assert str(caught.value) == message


def test_a_vae_is_no_refiner():
    vae = small_vae().config
    with pytest.raises(ConfigError, match=r"^DiffuseVAEConfig.refiner: HVAEConfig\(.* allowed: DDPMConfig$"):
        DiffuseVAEConfig((1, 8, 8), 17, refiner=vae, vae=vae, formulation=2)  # pyright: ignore


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_round_trip(degradation, tmp_path):
    model = restorer(degradation, 2, continuous=True)
    model.save(tmp_path / "m")
    again = fastdiff.load(tmp_path / "m")
    assert isinstance(again, Restorer)
    assert again.config == model.config
    text = json.loads((tmp_path / "m" / "config.json").read_text())
    assert text["config"]["degradation"]["kind"] == degradation.kind
    assert torch.equal(again.vlb(images(2), Noise(1), 12).total, model.vlb(images(2), Noise(1), 12).total)


KINDS = "; allowed: 'downsample', 'noise'"
TEXTS = [
    ({"kind": "blur"}, f"config.degradation: unknown kind 'blur'{KINDS}"),
    (None, f"config.degradation: unknown kind None{KINDS}"),
    ({"kind": "noise", "factor": 2}, "config.degradation: unknown keys factor; allowed: deviation, kind"),
    ({"kind": "noise", "deviation": 0}, "AddNoise: kind 'noise', deviation 0.0" + DEVIATION),
    ({"kind": "downsample", "factor": 3}, DIVISOR),
]


@pytest.mark.parametrize(("text", "message"), TEXTS)
def test_a_config_json_that_says_no_degradation(text, message, tmp_path):
    """The description as a file would hold it; `fastdiff.load` checks the file's digest before."""
    model = restorer()
    description = model.description()
    description["config"]["degradation"] = text
    model.description = lambda: description  # pyright: ignore[reportAttributeAccessIssue]
    model.save(tmp_path / "m")
    with pytest.raises(CheckpointError) as caught:
        fastdiff.load(tmp_path / "m")
    assert str(caught.value).endswith(message)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("formulation", [1, 2])
@pytest.mark.parametrize("degradation", [Downsample(), AddNoise()])
def test_the_bound_is_the_refiners_given_the_picture(degradation, formulation):
    """One step's KL in x coordinates, by hand at small variances. Measured: 1.6e-7 of it, and the prior to the bit."""
    model, x, noise = restorer(degradation, formulation, variance="small"), images(5), Noise(3)
    if degradation.kind == "noise":
        x_hat = centre(x, 17) + 0.5 * noise.at(stream=Stream.DEGRADATION).normal(x.shape)
    else:
        x_hat = centre(x, 17).view(5, 1, 4, 2, 4, 2).mean((3, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    shift = x_hat if formulation == 2 else torch.zeros_like(x_hat)
    refiner = model.refiner
    with torch.no_grad():
        vlb = model.vlb(x, noise, 12)
        u = (noise.at(stream=Stream.TIMES).uniform((1, 1)).double() + torch.arange(5.0) / 5).remainder(1.0).squeeze(0)
        i = torch.floor(u * 11)
        gamma_s, gamma_t = refiner.gamma(i / 11), refiner.gamma((i + 1) / 11)
        g = gamma_t[:, None, None, None]
        eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape)
        x_t = (alpha(g) * centre(x, 17) + sigma(g) * eps).float() + shift
        eps_hat = refiner.network(torch.cat([x_t, x_hat], 1), refiner.time(gamma_t))
        weight = 0.5 * 11 * (torch.exp(gamma_t - gamma_s) - 1)
        expected = weight * (eps - eps_hat).double().square().flatten(1).sum(1)
        torch.testing.assert_close(vlb.diffusion.double(), expected, rtol=5e-7, atol=0)
        torch.testing.assert_close(vlb.prior, prior_nats(centre(x, 17), refiner.gamma.endpoints()[1]))
        assert torch.equal(vlb.recon, refiner.on(x_hat).vlb(x, noise, 12).recon)
        assert not torch.equal(vlb.recon, refiner.on(0.9 * x_hat).vlb(x, noise, 12).recon)
        goal = model.objective(x, noise, loss="simple")
        assert torch.equal(goal.loss, refiner.on(x_hat).objective(x, noise, loss="simple").loss)


@pytest.mark.parametrize("degradation", [Downsample(), AddNoise()])
def test_evaluation_ignores_the_batch_size(degradation):
    """Measured: 3e-8 of the bound."""
    model, x = restorer(degradation, 2), images(6)
    one, other = (evaluate(model, x, draws=3, batch_size=size) for size in (4, 18))
    assert one.steps == 12
    torch.testing.assert_close(one.bpd.total, other.bpd.total, rtol=2e-7, atol=0)


@pytest.mark.parametrize("degradation", [Downsample(), AddNoise()])
def test_training_moves_the_parameters(degradation):
    model = restorer(degradation, 2, continuous=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = TrainState(model, TrainConfig("digits", steps=3, batch_size=8, loss="simple", seed=1))
    reports = list(train(state, digits()))
    assert [report.skipped for report in reports] == [False] * 3
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) == len(list(model.parameters()))


SETTINGS = {"steps": 4, "seed": 2, "output": "levels"}


@pytest.mark.parametrize("degradation", [Downsample(), AddNoise()])
@pytest.mark.parametrize("formulation", [1, 2])
def test_image_i_depends_on_seed_index_and_its_given_alone(degradation, formulation):
    model = restorer(degradation, formulation, head="v")
    given = model.degrade(images(5), Noise(1))
    whole = fastdiff.sample(model, 5, given=given, **SETTINGS)
    assert whole.shape == (5, 1, 8, 8)
    parts = fastdiff.sample(model, 5, given=given, batch_size=2, **SETTINGS)
    assert (whole != parts).float().mean() < 0.02  # rounding may move a pixel by a level
    assert not torch.equal(whole, fastdiff.sample(model, 5, given=given, **(SETTINGS | {"seed": 3})))
    changed = given.clone()
    changed[2] = -changed[2]
    other = fastdiff.sample(model, 5, given=changed, **SETTINGS)
    assert (other != whole).flatten(1).any(1).tolist() == [False, False, True, False, False]
    assert fastdiff.sample(model, 5, given=given, steps=10, betas=(1e-6, 0.8)).shape == whole.shape
    assert fastdiff.sample(model, 0, given=given[:0]).shape == (0, 1, 8, 8)


def test_levels_given_are_their_centred_values():
    levels = images(3, shape=(1, 4, 4))
    for model, given in ((restorer(), levels), (small_diffusevae(2), images(3))):
        one = fastdiff.sample(model, 3, given=given, **SETTINGS)
        assert torch.equal(one, fastdiff.sample(model, 3, given=centre(given, 17), **SETTINGS))


@pytest.mark.parametrize("formulation", [1, 2])
def test_a_diffusevae_given_pictures_ignores_its_prior(formulation):
    model, given = small_diffusevae(formulation, head="v"), images(3)
    one = fastdiff.sample(model, 3, given=given, **SETTINGS)
    with pytest.raises(ValueError, match=r"given with mixture None, latent_temperature 0.5; allowed: None and 1.0"):
        fastdiff.sample(model, 3, given=given, latent_temperature=0.5, **SETTINGS)
    assert not torch.equal(one, fastdiff.sample(model, 3, **SETTINGS))
    z_1 = model.vae.prior_latents(3, Noise(2))
    drawn = fastdiff.sample(model, 3, given=model.picture(z_1).detach(), **SETTINGS)
    assert torch.equal(drawn, fastdiff.sample(model, 3, **SETTINGS))


ALLOWED, NONE = "; allowed: (2, 1, 4, 4)", "; allowed: None"
HINT = "(`fastdiff reconstruct` makes them from a data set)"
TENSOR = "; allowed: a tensor of uint8 levels, or floats as `kernels.centre` makes of them"
PICTURES = {"given": torch.zeros(2, 1, 8, 8)}
LESS = {"given": torch.zeros(2, 1, 4, 4)}
REQUESTS = [
    (restorer, {}, "given is None for a restorer; allowed: the degraded images, (2, 1, 4, 4) " + HINT),
    (restorer, PICTURES, "given has shape (2, 1, 8, 8)" + ALLOWED),
    (restorer, {"given": torch.zeros(3, 1, 4, 4)}, "given has shape (3, 1, 4, 4)" + ALLOWED),
    (restorer, {"given": LESS["given"].byte() + 17}, "given holds the level 17; allowed: 0 .. 16"),
    (restorer, {"given": LESS["given"] + math.nan}, "given holds values that are not finite; allowed: finite ones"),
    (
        restorer,
        {"given": LESS["given"] + 100},
        "given lies in 100 .. 100; allowed: within ±1, levels as `kernels.centre` brings them into [-1, 1]",
    ),
    (restorer, {"given": LESS["given"].long()}, "given is torch.int64" + TENSOR),
    (restorer, {"given": [0.0]}, "given is a list" + TENSOR),
    (small_diffusevae, LESS, "given has shape (2, 1, 4, 4); allowed: (2, 1, 8, 8)"),
    (small_vae, PICTURES, "given is (2, 1, 8, 8) for a VAE, which has one chain and no labels" + NONE),
    (small, PICTURES, "given is (2, 1, 8, 8) for a model that refines nothing" + NONE),
    (restorer, LESS | {"labels": 3}, "labels is 3 for a Restorer, which has no labels" + NONE),
    (restorer, LESS | {"latent_temperature": 0.5}, "latent_temperature is 0.5; allowed: 1.0 but for a DiffuseVAE"),
    (restorer, LESS | {"mixture": "m"}, "mixture is 'm' for a model without a VAE" + NONE),
]


@pytest.mark.parametrize(("make", "options", "message"), REQUESTS)
def test_wrong_requests(make, options, message):
    model = make(1) if make is small_diffusevae else make()
    with pytest.raises(TypeError if TENSOR in message else ValueError) as caught:
        fastdiff.sample(model, 2, **options)
    assert str(caught.value) == "sample: " + message
