"""The configurations of the networks: what they reject, JSON, and building on the meta device."""

import json
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file

from fastdiff.io.configuration import ConfigError, configuration, field, from_dict, to_dict
from fastdiff.io.renamed import renamed_tensors
from fastdiff.networks import (
    BottleneckVAEConfig,
    ConcatUNetConfig,
    ConvVAEConfig,
    UNetConfig,
    UNetConfigs,
    VAENetworkConfigs,
)

CONCAT = ConcatUNetConfig(width=8, multipliers=(1, 2), attention=(4,), heads=2, max_groups=4)
SCORE = ConcatUNetConfig(width=8, multipliers=(1,), blocks=3, attention=(), embedding_bias=False)
BOTTLENECK = BottleneckVAEConfig(widths=(4, 6, 8), rates=(2, 4), encoder=(1, 2, 1), decoder=(1, 0, 2))

# The names in config.json files; renaming one makes old files unreadable.
FIELDS = {
    UNetConfig: "widths blocks embedding dropout heads max_groups positions",
    ConcatUNetConfig: "kind width multipliers blocks attention dropout heads max_groups embedding_bias attention_up "
    "middle_attention head_size eps scale_shift padding timesteps timestep_scale frequency_shift",
    ConvVAEConfig: "kind widths blocks dropout max_groups",
    BottleneckVAEConfig: "kind widths rates encoder decoder",
}


@pytest.mark.parametrize("config", FIELDS)
def test_the_names_of_the_fields(config):
    assert [each.name for each in attrs.fields(config)] == FIELDS[config].split()


WRONG = [
    (UNetConfig, "widths", [(), (8, 0), 8, (8.0,)]),
    (UNetConfig, "blocks", [0, -1, 1.5, True]),
    (UNetConfig, "embedding", [0]),
    (UNetConfig, "dropout", [1.0, -0.1, float("nan")]),
    (UNetConfig, "heads", [0, 5]),  # the last width is 48
    (UNetConfig, "max_groups", [0]),
    (UNetConfig, "positions", [1]),
    (ConcatUNetConfig, "kind", ["unet"]),
    (ConcatUNetConfig, "width", [9, 2, 0]),
    (ConcatUNetConfig, "multipliers", [(), (1, 0)]),
    (ConcatUNetConfig, "blocks", [0]),
    (ConcatUNetConfig, "attention", [(0,), (16, -8)]),
    (ConcatUNetConfig, "heads", [3, 0]),  # the width is 128
    (ConcatUNetConfig, "max_groups", [0]),
    (ConcatUNetConfig, "dropout", [1.0]),
    (ConcatUNetConfig, "embedding_bias", ["no"]),
    (ConcatUNetConfig, "attention_up", [(0,)]),
    (ConcatUNetConfig, "head_size", [0]),
    (ConcatUNetConfig, "eps", [0.0]),
    (ConcatUNetConfig, "padding", ["left"]),
    (ConcatUNetConfig, "timesteps", [1]),
    (ConcatUNetConfig, "timestep_scale", [0.0, 0.25]),  # without timesteps
    (ConcatUNetConfig, "frequency_shift", [2]),
    (ConvVAEConfig, "kind", ["bottleneck"]),
    (ConvVAEConfig, "widths", [(), (0,)]),
    (ConvVAEConfig, "blocks", [0]),
    (ConvVAEConfig, "dropout", [1.0]),
    (ConvVAEConfig, "max_groups", [0]),
    (BottleneckVAEConfig, "kind", ["conv"]),
    (BottleneckVAEConfig, "widths", [(63, 128, 256, 256, 512), (0, 2, 2, 2, 2), (8,), ()]),
    (BottleneckVAEConfig, "rates", [(2, 2, 1, 4), (2.0, 2, 2, 4), (32,), (2, 2, 2, 2, 2)]),
    (BottleneckVAEConfig, "encoder", [(7, 4, 4, -1, 3), (7,)]),
    (BottleneckVAEConfig, "decoder", [(1, 2, 3, 7, -1), (1,)]),
]


@pytest.mark.parametrize(
    ("config", "name", "value"), [(config, name, value) for config, name, values in WRONG for value in values]
)
def test_wrong_values_are_rejected_under_their_name(config, name, value):
    with pytest.raises(ConfigError, match=rf"{config.__name__}: {name}(\[\d\])? must "):
        config(**{name: value})


def test_the_smallest_values_are_accepted():
    UNetConfig(widths=(1,), blocks=1, embedding=1, dropout=0.0, heads=1, max_groups=1)
    ConcatUNetConfig(width=4, multipliers=(1,), blocks=1, attention=(), heads=4, max_groups=1)
    ConvVAEConfig(widths=(1,), blocks=1, dropout=0.0, max_groups=1)
    BottleneckVAEConfig(widths=(2, 2), rates=(2,), encoder=(0, 0), decoder=(0, 0))


@configuration
class Holder:
    """The fields of a model's configuration that hold those of networks."""

    network: UNetConfigs = field(factory=UNetConfig)
    vae: VAENetworkConfigs = field(factory=ConvVAEConfig)
    other: ConcatUNetConfig | UNetConfig | None = field(default=None)


@pytest.mark.parametrize(
    "config",
    [
        Holder(),
        Holder(network=CONCAT, vae=BOTTLENECK, other=UNetConfig()),
        Holder(network=UNetConfig(widths=(8,)), other=SCORE),
    ],
)
def test_the_unions_survive_json(config):
    data = json.loads(json.dumps(to_dict(config)))
    assert from_dict(Holder, data, "here") == config
    assert ("kind" in data["network"]) == isinstance(config.network, ConcatUNetConfig)


@pytest.mark.parametrize(
    "data",
    [
        {"network": {"kind": "vit"}},
        {"network": {"kind": ["concat"]}},
        {"network": {"width": 8}},
        {"network": {"kind": "concat", "widths": [8]}},
        {"network": None},
        {"vae": {"kind": "other"}},
        {"vae": {"widths": [8]}},
        {"other": 3},
    ],
)
def test_wrong_members_of_the_unions(data):
    with pytest.raises(ConfigError, match=rf"here\.{next(iter(data))}"):
        from_dict(Holder, data, "here")


UNETS = [UNetConfig(), UNetConfig(widths=(8,), heads=2, positions=False), CONCAT, SCORE]
VAES = [ConvVAEConfig(), ConvVAEConfig(widths=(8,), blocks=2), BOTTLENECK]


@pytest.mark.parametrize("config", UNETS + VAES)
def test_the_meta_device_gives_the_tensors_that_building_gives(config):
    """Names, shapes and dtypes in the same order; and the same seed draws the same weights."""

    def build() -> tuple[torch.nn.Module, ...]:
        torch.manual_seed(3)
        return config.build((2, 8, 8), 8) if config in VAES else (config.build(3, 2, (8, 8), 4),)

    with torch.device("meta"):
        expected = build()
    for network, again, planned in zip(build(), build(), expected, strict=True):
        state = network.state_dict()
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())
        tensors = [(name, value.shape, value.dtype) for name, value in state.items()]
        assert tensors == [(name, value.shape, value.dtype) for name, value in planned.state_dict().items()]
        assert all(value.is_meta for value in planned.state_dict().values())


def test_the_embedded_weights_are_those_of_this_network():
    """A file written by the first version: its tensors are the network's, under their present names."""
    folder = Path(__file__).parents[2] / "fastdiff" / "assets" / "digits"
    config = json.loads((folder / "config.json").read_text())["config"]["network"]
    tensors = renamed_tensors(load_file(folder / "model.safetensors"))
    network = from_dict(UNetConfig, config, "here").build(5, 17, (8, 8), 12)  # 1 + 4 Fourier features; 10 classes
    expected = {f"network.{name}": tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("network.")}
    assert found == expected
