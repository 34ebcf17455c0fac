"""Presets: they build what the papers describe, fit their data, and train."""

from itertools import pairwise

import pytest
import torch
from tiny import images

import fastdiff
from fastdiff.data import digits
from fastdiff.data.loading import NOT_SHIPPED
from fastdiff.diffusion import LearnedSchedule
from fastdiff.kernels import FastdiffError, Noise
from fastdiff.models import DDPM, HVAE, VDM, DiffuseVAE
from fastdiff.presets import preset
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
        ("vae-digits", 438_722),
        ("hvae-digits", 435_778),
        ("diffusevae-digits", 438_722 + 424_529),
        ("diffusevae2-digits", 438_722 + 424_529),
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


def test_unknown_preset():
    with pytest.raises(FastdiffError, match="vdm-digits"):
        preset("vdm")
