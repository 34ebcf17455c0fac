"""Presets: they build what the papers describe, fit their data, and train."""

import pytest
import torch
from tiny import images

from fastdiff.datasets import check_fit, digits
from fastdiff.kernels import Noise
from fastdiff.models import DDPM, VDM
from fastdiff.presets import PRESETS, preset
from fastdiff.schedules import LearnedSchedule


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
        assert model.config.head == "eps"
    else:
        assert isinstance(model, DDPM)
        assert (model.steps, model.variance) == (1000, "large")
        assert count(model) == 35_746_307


@pytest.mark.parametrize("name", ["digits", "vdm-digits", "ddpm-digits"])
def test_digits_presets_fit_the_digits(name):
    chosen = preset(name)
    model, x = chosen.build().eval(), images(3)
    check_fit(model, digits())
    goal = model.objective(x, Noise(0), torch.tensor([0, 5, 10]), chosen.train.loss)
    assert goal.loss.isfinite().all()
    goal.loss.sum().backward()
    assert chosen.train.data == "digits"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_settings_of_every_preset_are_valid(name):
    assert preset(name).train.steps > 0  # a TrainConfig checks itself


@pytest.mark.parametrize("name", ["vae-digits", "hvae-digits", "diffusevae-digits", "diffusevae2-digits"])
def test_latent_presets_fit_the_digits(name):
    chosen = preset(name)
    model, x = chosen.build().eval(), images(3)
    check_fit(model, digits())
    model.objective(x, Noise(0), None, chosen.train.loss).loss.sum().backward()


def test_unknown_preset():
    with pytest.raises(ValueError, match="unknown preset 'vdm'; allowed: digits, vdm-digits"):
        preset("vdm")
