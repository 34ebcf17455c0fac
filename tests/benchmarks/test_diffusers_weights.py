"""Weights of diffusers' UNet2DModel in our network: equal outputs, and errors for what cannot be expressed."""

import json
import sys

import pytest
import torch
from sources import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # as its modules import each other

from diffusers_weights import OLD_NAMES, config_of, match_times, noise_level, weights_of
from footprint import GOOGLE_DDPM_CIFAR10

from fastdiff.models import DDPM, DDPMConfig

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
SMALL = {
    **GOOGLE_DDPM_CIFAR10, "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}  # fmt: skip
OTHER = {
    **GOOGLE_DDPM_CIFAR10, "sample_size": 16, "block_out_channels": (12, 24, 24), "layers_per_block": 2,
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"), "norm_num_groups": 4, "in_channels": 2,
    "flip_sin_to_cos": True, "num_class_embeds": 3,
}  # fmt: skip
TIMESTEPS = torch.tensor([0, 517, 999])


def pair(config, seed=0):
    """Their network with random norms too, and ours with its weights."""
    torch.manual_seed(seed)
    theirs = diffusers.UNet2DModel(**config).eval()
    for parameter in theirs.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    size = (config["sample_size"],) * 2
    ours = config_of(config).build(config["in_channels"], 3, size, config.get("num_class_embeds") or 0).eval()
    ours.load_state_dict(weights_of(theirs.state_dict(), ours, config["flip_sin_to_cos"]))
    return theirs, ours


def outputs(config):
    theirs, ours = pair(config)
    x = torch.randn(3, config["in_channels"], config["sample_size"], config["sample_size"])
    labels = torch.tensor([2, 0, 1]) if config.get("num_class_embeds") else None
    with torch.no_grad():
        expected = theirs(x, TIMESTEPS, class_labels=labels).sample
        return ours(x, noise_level(TIMESTEPS), labels), expected


@pytest.mark.parametrize("config", [SMALL, OTHER], ids=["one attention", "other order, labels"])
def test_small_networks_are_equal(config):
    """Measured 1.3e-6 and 8.6e-7, of outputs up to 1.5 and 1.0."""
    found, expected = outputs(config)
    assert expected.std() > 0.2
    assert (found - expected).abs().max() < 4e-6


def test_the_network_of_ddpm_cifar10_is_equal():
    """Of one image at two times, in float32: measured 3.9e-6, of outputs up to 1.4."""
    torch.manual_seed(0)
    theirs, x = diffusers.UNet2DModel(**GOOGLE_DDPM_CIFAR10).eval(), torch.randn(1, 3, 32, 32)
    config = config_of(GOOGLE_DDPM_CIFAR10)
    ours = config.build(3, 3, (32, 32), 0).eval()
    ours.load_state_dict(weights_of(theirs.state_dict(), ours))
    assert sum(p.numel() for p in ours.parameters()) == 35_746_307
    with torch.no_grad():
        for t in (torch.tensor([3]), torch.tensor([917])):
            assert (ours(x, noise_level(t)) - theirs(x, t).sample).abs().max() < 1e-5


def test_a_ddpm_embeds_their_timesteps():
    """Its times are timestep / 999; without `match_times` angles are off by a thousandth. Measured 2.7e-6, 0.027."""
    theirs, ours = pair(SMALL)
    model = DDPM(DDPMConfig(shape=(3, 16, 16), levels=256, network=config_of(SMALL))).eval()
    model.network.load_state_dict(ours.state_dict())
    x, gamma = torch.randn(3, 3, 16, 16), model.gamma(TIMESTEPS.double() / 999).float()
    with torch.no_grad():
        expected, before = theirs(x, TIMESTEPS).sample, model.eps_hat(x, gamma)
        match_times(model.network)
        found = model.eps_hat(x, gamma)
    assert (found - expected).abs().max() < 5e-6
    assert (before - expected).abs().max() > 1e-2


def test_old_names_of_attention_are_read():
    theirs, ours = pair(SMALL)
    state = theirs.state_dict()
    for new, old in OLD_NAMES.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    assert any("proj_attn" in name for name in state)
    found = weights_of(state, ours)
    assert all(torch.equal(value, found[name]) for name, value in ours.state_dict().items())


def test_tensors_that_are_missing_or_left_over_are_named():
    theirs, ours = pair(SMALL)
    state = theirs.state_dict()
    with pytest.raises(ValueError, match=r"tensors that ConcatUNet does not: extra\.weight"):
        weights_of(state | {"extra.weight": torch.zeros(1)}, ours)
    del state["mid_block.resnets.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"must have mid_block\.resnets\.0\.conv1\.weight"):
        weights_of(state, ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_eps": 1e-5}, "norm_eps 1e-05"),
        ({"freq_shift": 0}, "freq_shift 0"),
        ({"downsample_padding": 1}, "downsample_padding 1"),
        ({"block_out_channels": (16, 24)}, "only multiples of the first"),
        ({"norm_num_groups": 32}, "only a divisor of all channels"),
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "SkipDownBlock2D"),
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 8}, "blocks"),
        ({"resnet_time_scale_shift": "scale_shift"}, "scale_shift"),
    ],
)
def test_what_our_network_does_not_have_is_an_error(change, message):
    with pytest.raises(ValueError, match="ConcatUNet has no") as error:
        config_of({**SMALL, **change})
    assert message in str(error.value)


def test_a_configuration_may_come_from_json():
    assert config_of(json.loads(json.dumps(SMALL))) == config_of(SMALL)
