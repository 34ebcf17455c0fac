"""Presets: they build what the papers describe, fit their data, and train."""

import math
from itertools import pairwise

import pytest
import torch
from tiny import images

import fastdiff
from fastdiff.data import Dataset, digits
from fastdiff.data.loading import NOT_SHIPPED
from fastdiff.diffusion import LearnedSchedule
from fastdiff.kernels import FastdiffError, Noise
from fastdiff.models import DDPM, HVAE, VDM, AddNoise, DiffuseVAE, Downsample, VDMConfig, model_of
from fastdiff.models.small import SMALL_MODELS, small_config, small_options, small_widths
from fastdiff.presets import own_training, preset
from fastdiff.training import TrainState, train
from fastdiff.training.batches import check_fit


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [("vdm-cifar10", 30.6), ("vdm-imagenet32", 122.1), ("vdm-imagenet64", 237.6), ("ddpm-cifar10", 35.7)],
)
def test_networks_of_the_papers(name, millions):
    """Parameters of the network; the learned schedule of a VDM has some hundred more."""
    with torch.device("meta"):
        model = preset(name).build()
    assert round(count(model.network) / 1e6, 1) == millions
    assert count(model) - count(model.network) < 1000
    if name.startswith("vdm"):
        assert isinstance(model, VDM)
        assert isinstance(model.gamma, LearnedSchedule)
        assert model.config.fourier == (7, 8)
        assert (model.config.gamma_0, model.config.gamma_1) == (-13.3, 5.0)
        assert model.config.prediction == "epsilon"
    else:
        assert isinstance(model, DDPM)
        assert (model.T, model.variance) == (1000, "fixed_large")
        assert count(model) == 35_746_307


def bottleneck_vae(rows: list[tuple[int, int, int, int]]) -> int:
    """Parameters of DiffuseVAE's first stage by (resolution, width, blocks down with those that are pooled, blocks up);
    the last convolution has 6 channels, the means and the log-variances."""
    total = 9 * 3 * 64 + 2 * 512 * 512 + (9 * 64 * 6 + 6)
    for side, w, down, up in rows:
        m = w // 2
        total += (down + up) * (2 * w * m + 3 * m + w + 2 * (9 if side > 1 else 1) * m * m)
    return total + 2 * sum(a[1] * b[1] for a, b in pairwise(rows))


def celeba_second_stage() -> int:
    """DDPM's network at five resolutions, 128, 256, 256, 256, 512 channels; attention at the third and the middle."""
    down = [(128, 128)] * 2 + [(128, 256)] + [(256, 256)] * 5 + [(256, 512), (512, 512)]
    middle = [(512, 512)] * 2
    up = [
        (1024, 512),
        (1024, 512),
        (768, 512),
        (768, 256),
        *[(512, 256)] * 7,
        (384, 256),
        (384, 128),
        *[(256, 128)] * 2,
    ]
    total = (128 * 512 + 512) + (512 * 512 + 512) + (9 * 6 * 128 + 128) + 2 * 128 + (9 * 128 * 3 + 3)
    for c, d in down + middle + up:
        total += 2 * c + 9 * c * d + d + 512 * d + d + 2 * d + 9 * d * d + d + (c * d + d if c != d else 0)
    for c in (256, 256, 512, 256, 256, 256):
        total += 2 * c + 4 * (c * c + c)
    for c in (128, 256, 256, 256, 512, 256, 256, 256):  # strided, then after enlargements
        total += 9 * c * c + c
    return total


CIFAR_VAE = bottleneck_vae([(32, 64, 8, 15), (16, 128, 5, 7), (8, 256, 5, 3), (4, 256, 4, 2), (1, 512, 3, 1)])
CELEBA_VAE = bottleneck_vae(
    [(64, 64, 8, 10), (32, 128, 5, 8), (16, 256, 8, 7), (8, 256, 4, 3), (4, 256, 4, 2), (1, 512, 2, 1)]
)
CIFAR_SECOND_STAGE = 35_746_307 + 3 * 128 * 9  # DDPM's network with the three channels of the conditioning image


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("vae-cifar10", CIFAR_VAE, 0),
        ("vae-celeba64", CELEBA_VAE, 0),
        ("diffusevae-cifar10", CIFAR_VAE, CIFAR_SECOND_STAGE),
        ("diffusevae2-cifar10", CIFAR_VAE, CIFAR_SECOND_STAGE),
        ("diffusevae-celeba64", CELEBA_VAE, celeba_second_stage()),
    ],
)
def test_diffusevae_of_the_paper(name, first, second):
    assert (CIFAR_VAE, CELEBA_VAE, CIFAR_SECOND_STAGE) == (9_244_838, 14_013_638, 35_749_763)
    chosen = preset(name)
    with torch.device("meta"):
        model = chosen.build()
    assert count(model) == first + second
    if not second:
        assert isinstance(model, HVAE)
        return
    assert isinstance(model, DiffuseVAE)
    assert count(model.vae) == first
    assert model.config.vae == preset(name.replace("diffusevae2", "vae").replace("diffusevae", "vae")).model
    assert model.config.formulation == (2 if "2-" in name else 1)
    assert (model.T, model.config.beta_first, model.config.beta_last) == (1000, 1e-4, 0.02)


@pytest.mark.parametrize(
    ("name", "data", "epochs", "images", "batch"),
    [
        ("vae-cifar10", "cifar10", 500, 50_000, 128),
        ("vae-celeba64", "celeba64", 245, 162_770, 32),
        ("diffusevae-cifar10", "cifar10", 2850, 50_000, 128),
        ("diffusevae2-cifar10", "cifar10", 2850, 50_000, 128),
    ],
)
def test_epochs_of_the_paper(name, data, epochs, images, batch):
    training = preset(name).train
    assert (training.data, training.batch_size) == (data, batch)
    assert 0 <= epochs * images - training.max_steps * batch < batch
    assert training.data in NOT_SHIPPED


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vdm-digits", 430_787),
        ("ddpm-digits", 425_009),
        ("flow-digits", 426_161),
        ("edm-digits", 426_161),
        ("vae-digits", 99_062),
        ("hvae-digits", 143_030),
        ("diffusevae-digits", 99_062 + 424_529),
        ("diffusevae2-digits", 99_062 + 424_529),
        ("superresolution2-digits", 424_529),
        ("superresolution4-digits", 424_529),
        ("denoising-digits", 424_529),
    ],
)
def test_digits_presets_fit_the_digits(name, parameters):
    """Three images and their labels, with the preset's loss."""
    chosen = preset(name)
    model, x = chosen.build(), images(3)
    assert count(model) == parameters
    assert chosen.train.data == "digits"
    check_fit(model, digits())
    labels = torch.tensor([0, 5, 10]) if model.num_classes else None
    objective = model(x, Noise(0), labels, chosen.train.loss)
    assert objective.loss.isfinite().all()
    objective.loss.sum().backward()


def test_the_name_of_the_embedded_model_is_a_preset():
    assert preset("digits") is preset("vdm-digits")
    assert fastdiff.load("digits").config == preset("digits").model


@pytest.mark.parametrize("kind", SMALL_MODELS)
@pytest.mark.parametrize(
    ("shape", "levels", "width"),
    [((1, 1, 7), 256, None), ((3, 1, 1), 2, 1), ((1, 28, 28), 17, 6), ((3, 9, 12), 256, 5), ((2, 32, 8), 256, 4)],
)
def test_small_models_fit_any_images(kind, shape, levels, width):
    """A step of training on images of that shape, with the settings for own data."""
    vae = small_config("vae", shape, levels, width=width) if kind == "diffusevae" else None
    degradation = AddNoise() if kind == "restoration" else None  # not every size can be down-sampled
    model = model_of(small_config(kind, shape, levels, width=width, blocks=1, vae=vae, degradation=degradation))
    x = images(2, shape=shape, levels=levels)
    objective = model(x, Noise(0), None, own_training(kind, "").loss)
    objective.loss.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    found = small_options(model.config)
    assert (found["model"], found["blocks"]) == (kind, 1)
    assert width is None or found["width"] == width


def test_a_small_restoration_model_learns_what_it_restores():
    """Images whose 2×2 blocks have one of two levels: the small image says all of them, and is a coin toss of itself.

    87 % of the pixels are restored after 150 steps; without the small image half of them would be.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> torch.Tensor:
        small = torch.randint(2, (count, 1, 2, 2), dtype=torch.uint8, generator=generator)
        return small.repeat_interleave(2, 2).repeat_interleave(2, 3)

    data, x = Dataset("blocks", 2, 0, drawn(200), None, drawn(20), None), drawn(64)
    torch.manual_seed(0)
    model = model_of(small_config("restoration", (1, 4, 4), 2, width=16, blocks=1))
    settings = {"max_steps": 150, "batch_size": 32, "learning_rate": 1e-2, "ema": 0.9}
    state = TrainState(model, own_training("restoration", "blocks", **settings))
    for _ in train(state, data):
        pass
    restored = fastdiff.sample(state.averaged, 64, 10, cond=x[:, :, ::2, ::2].contiguous(), output="levels")
    assert float((restored == x).double().mean()) > 0.8


def test_small_networks_halve_the_images_while_they_can():
    """Down to four to seven pixels, or until a side is odd; the width grows by halves to twice of it."""
    assert small_widths((3, 32, 32), 64) == (64, 96, 128, 128)
    assert small_widths((1, 28, 28), 32) == (32, 48, 64)
    assert small_widths((3, 128, 128), 64) == (64, 96, 128, 128, 128, 128)
    assert small_widths((3, 30, 64), 8) == (8, 12)
    assert small_widths((3, 31, 64), 8) == small_widths((3, 1, 64), 8) == (8,)


def test_small_models_follow_the_levels():
    """gamma_0 scales the noise with the distance of two levels; categorical predictions for few levels."""
    bytes_, digits_ = small_config("vdm", (3, 8, 8), 256), small_config("vdm", (1, 8, 8), 17, num_classes=10)
    assert isinstance(bytes_, VDMConfig)
    assert isinstance(digits_, VDMConfig)
    assert (bytes_.gamma_0, bytes_.fourier, bytes_.prediction) == (-13.3, (7, 8), "epsilon")
    assert (digits_.fourier, digits_.prediction, digits_.num_classes) == ((3, 4), "categorical", 10)
    noise = [math.exp(0.5 * config.gamma_0) * config.levels for config in (bytes_, digits_)]
    assert noise[0] == pytest.approx(noise[1], rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"kind": "gan"}, "gan"),
        ({"kind": "diffusevae"}, "first_stage"),
        ({"kind": "vdm", "width": 0}, "width"),
        ({"kind": "vae", "num_classes": 2}, "num_classes"),
        ({"kind": "vdm", "degradation": AddNoise()}, "degradation must not be set for a vdm model, got noise-0.5"),
        ({"kind": "restoration", "degradation": Downsample(factor=3)}, "factor must divide"),
    ],
)
def test_small_models_that_cannot_be(arguments, word):
    with pytest.raises(FastdiffError, match=word):
        small_config(**{"shape": (3, 8, 8), "levels": 256} | arguments)


def test_settings_for_own_data():
    """A warm-up of a tenth of few steps, unless it is given."""
    assert [own_training("vdm", "x", max_steps=steps).warm_up for steps in (50, 5000, 50_000)] == [5, 500, 500]
    assert own_training("vae", "x", max_steps=50, warm_up=20).warm_up == 20
    losses = {kind: own_training(kind, "x").loss for kind in SMALL_MODELS}
    assert {kind for kind, loss in losses.items() if loss == "simple"} == {"ddpm", "diffusevae", "restoration"}
    assert set(losses.values()) == {"simple", "elbo"}


def test_unknown_preset():
    with pytest.raises(FastdiffError, match="vdm-digits"):
        preset("vdm")
