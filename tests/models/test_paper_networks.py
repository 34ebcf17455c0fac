"""Models with the networks of the papers: DiffuseVAE's bottleneck VAE as a model, its start, training and files."""

import json
import math

import pytest
import torch
from tiny import images

import fastdiff
from fastdiff.data import digits
from fastdiff.io.configuration import ConfigError, from_dict, to_dict
from fastdiff.kernels import Noise, to_unit_range
from fastdiff.models import HVAE, HVAEConfig
from fastdiff.networks import BottleneckVAEConfig, ConvVAEConfig

TINY = BottleneckVAEConfig(widths=(4, 6, 8), rates=(2, 4), encoder=(1, 2, 1), decoder=(1, 0, 2))


def test_the_parameters_of_the_model_are_those_of_its_networks():
    """9.2 M at CIFAR-10; the authors' tables give 5 830 528 and 3 412 579, and the log-variances add 9 · 64 · 3 + 3."""
    with torch.device("meta"):
        model = HVAE(HVAEConfig(shape=(3, 32, 32), levels=256, latent=512, network=BottleneckVAEConfig()))
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_830_528 + 3_412_579 + 1731


def test_an_untrained_decoder_is_a_standard_normal_over_the_levels():
    torch.manual_seed(0)
    model = HVAE(HVAEConfig(shape=(3, 32, 32), levels=256, latent=512, network=BottleneckVAEConfig()))
    x = images(2, shape=(3, 32, 32), levels=256)
    with torch.no_grad():
        bits = model.vlb(x, Noise(0)).bpd(3072).total
    normalizer = torch.log2(torch.exp(-0.5 * to_unit_range(torch.arange(256), 256) ** 2).sum())
    expected = float(normalizer) + 0.5 * float(to_unit_range(x, 256).square().mean()) / math.log(2)
    assert abs(float(bits.mean()) - expected) < 0.3


def fit(x: torch.Tensor, max_steps: int) -> list[float]:
    """Train a small model on one batch; return its bits per dimension at every step."""
    torch.manual_seed(0)
    network = BottleneckVAEConfig(widths=(16, 32, 32), rates=(2, 4), encoder=(1, 1, 1), decoder=(1, 1, 2))
    model, bits = HVAE(HVAEConfig(shape=(1, 8, 8), levels=17, latent=32, network=network)), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(max_steps):
        objective = model(x, Noise(0, step))
        optimizer.zero_grad()
        objective.loss.mean().backward()
        optimizer.step()
        bits.append(float(objective.vlb.bpd(64).total.mean()))
    assert all(parameter.grad is not None for parameter in model.parameters())
    return bits


def test_it_overfits_a_batch_of_digits():
    bits = fit(digits().train_images[:16], 60)
    assert sum(bits[-5:]) < 0.75 * sum(bits[:5])


def test_the_decoder_uses_z():
    """Black and white quarters, each image with its negative: a decoder that ignores z needs at least log2(17) bits.

    Its logits f are concave in the level, so that the sum of exp(f) is at least that of their chord's, and by Jensen
    at least 17 exp((f(0) + f(16)) / 2).
    """
    quarters = [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    black = torch.tensor(quarters, dtype=torch.uint8).reshape(4, 1, 2, 2)
    x = 16 * torch.cat([black, 1 - black]).repeat_interleave(4, 2).repeat_interleave(4, 3)
    bits = fit(x, 80)
    assert sum(bits[-10:]) / 10 < math.log2(17) - 0.1


@pytest.mark.parametrize("depth", [1, 3])
def test_round_trips(tmp_path, depth):
    torch.manual_seed(0)
    config = HVAEConfig(shape=(1, 8, 8), levels=17, depth=depth, latent=8, hidden=8, network=TINY)
    model = HVAE(config).eval()
    model.save(tmp_path / "m")
    again = fastdiff.load(tmp_path / "m")
    assert isinstance(again, HVAE)
    assert again.config == config
    x = images(2)
    assert torch.equal(again.vlb(x, Noise(1)).total, model.vlb(x, Noise(1)).total)
    assert fastdiff.sample(model, 2, output="levels").shape == (2, 1, 8, 8)


@pytest.mark.parametrize("network", [TINY, ConvVAEConfig()])
def test_the_configuration_survives_json(network):
    config = HVAEConfig(shape=(1, 8, 8), levels=17, latent=8, network=network)
    data = json.loads(json.dumps(to_dict(config)))
    assert data["network"]["kind"] == network.kind
    assert from_dict(HVAEConfig, data, "here") == config


def test_an_unknown_network_in_a_configuration():
    with pytest.raises(ConfigError, match=r"x\.network: kind"):
        from_dict(HVAEConfig, {"shape": [1, 8, 8], "levels": 17, "network": {"kind": "other"}}, "x")


def test_the_network_must_fit_the_images_and_the_latent():
    with pytest.raises(ConfigError, match="HVAEConfig: height and width must be 8"):
        HVAEConfig(shape=(1, 16, 16), levels=17, latent=8, network=TINY)
    with pytest.raises(ConfigError, match="HVAEConfig: latent must be 8"):
        HVAEConfig(shape=(1, 8, 8), levels=17, latent=16, network=TINY)
