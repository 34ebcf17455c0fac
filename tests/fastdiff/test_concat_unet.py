"""The U-Net with concatenated skips: its size, its function against float64, its configuration."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastdiff.config import ConfigError, from_dict, to_dict
from fastdiff.models.concat_unet import ConcatUNet, ConcatUNetConfig, build_network
from fastdiff.models.unet import UNet, UNetConfig

TINY = ConcatUNetConfig(
    width=8, multipliers=(1, 2, 1), blocks=2, attention=(8, 2), dropout=0.0, heads=2, max_groups=4, embedding_bias=True
)
SCORE = ConcatUNetConfig(
    width=8, multipliers=(1,), blocks=3, attention=(), dropout=0.0, max_groups=4, embedding_bias=False
)
SIZE = (8, 12)


def perturbed(config: ConcatUNetConfig, conditions: int = 3) -> ConcatUNet:
    """A small network none of whose parameters has its initial zeros (or ones)."""
    torch.manual_seed(0)
    network = ConcatUNet(3, 2, SIZE, conditions, config)
    for parameter in network.parameters():
        if parameter.dim() == 1 or not parameter.detach().any():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return network


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, *SIZE, generator=generator), torch.tensor([0.0, 0.37, 1.0]), torch.tensor([2, 0, 1])


def count_on_meta(channels_in: int, config: ConcatUNetConfig) -> int:
    with torch.device("meta"):
        network = ConcatUNet(channels_in, 3, (32, 32), 0, config)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("width", "blocks", "expected"), [(128, 32, 30_577_667), (256, 32, 122_136_579), (256, 64, 237_602_819)]
)
def test_the_score_networks_of_vdm_have_their_size(width, blocks, expected):
    """The sum over the blocks as a polynomial of the width w; 15 channels are the image and its Fourier features."""
    w = width
    embedding = (4 * w**2 + 4 * w) + (16 * w**2 + 4 * w)
    down = 22 * w**2 + 6 * w  # two norms 4 w, two convolutions 18 w² + 2 w, the projection 4 w²
    up = 33 * w**2 + 9 * w  # on 2 w channels: norms 6 w, convolutions 27 w² + 2 w, projection 4 w², shortcut 2 w² + w
    attention = 4 * w**2 + 6 * w
    ends = (9 * 15 * w + w) + 2 * w + (9 * w * 3 + 3)
    config = ConcatUNetConfig(width=width, multipliers=(1,), blocks=blocks, attention=(), embedding_bias=False)
    counted = count_on_meta(15, config)
    assert counted == embedding + (blocks + 2) * down + (blocks + 1) * up + attention + ends == expected
    assert blocks > 32 or width > 128 or round(counted / 1e6, 1) == 30.6


def test_ddpm_has_its_size():
    """35 746 307 is also what another library counts with the configuration of the published CIFAR-10 weights."""
    down = [(128, 128), (128, 128), (128, 256), *[(256, 256)] * 5]
    middle = [(256, 256)] * 2
    up = [*[(512, 256)] * 8, (384, 256), (384, 128), (256, 128), (256, 128)]  # 3 for each of the 4 resolutions
    total = (128 * 512 + 512) + (512 * 512 + 512) + (9 * 3 * 128 + 128) + 2 * 128 + (9 * 128 * 3 + 3)
    for c, d in down + middle + up:
        total += 2 * c + 9 * c * d + d + 512 * d + d + 2 * d + 9 * d * d + d + (c * d + d if c != d else 0)
    total += (2 + 1 + 3) * (2 * 256 + 4 * (256 * 256 + 256))  # attention: down, middle, up
    total += 9 * (128 * 128 + 2 * 256 * 256) + 128 + 2 * 256  # strided convolutions
    total += 3 * (9 * 256 * 256 + 256)  # after enlargements
    counted = count_on_meta(3, ConcatUNetConfig())
    assert counted == total == 35_746_307
    assert round(counted / 1e6, 1) == 35.7


class Plain:
    """The network as functions of its weights in float64, written from the papers."""

    def __init__(self, network: ConcatUNet, config: ConcatUNetConfig) -> None:
        self.weights = {name: value.double() for name, value in network.state_dict().items()}
        self.config = config

    def norm(self, name, x):
        groups = math.gcd(x.shape[1], self.config.max_groups)
        return F.group_norm(x, groups, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps=1e-6)

    def conv(self, name, x, stride=1, padding=1):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride, padding)

    def linear(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def block(self, name, x, embedding):
        h = self.conv(f"{name}.conv_in", F.silu(self.norm(f"{name}.norm_in.norm", x)))
        h = h + self.linear(f"{name}.projection", F.silu(embedding))[:, :, None, None]
        h = self.conv(f"{name}.conv_out", F.silu(self.norm(f"{name}.norm_out.norm", h)))
        return h + (x if x.shape == h.shape else self.conv(f"{name}.shortcut", x, padding=0))

    def attention(self, name, x):
        pixels = self.norm(f"{name}.norm", x).flatten(2).transpose(1, 2)
        parts = [part.chunk(self.config.heads, 2) for part in self.linear(f"{name}.qkv", pixels).chunk(3, 2)]
        heads = [
            torch.softmax(q @ k.transpose(1, 2) / q.shape[2] ** 0.5, 2) @ v for q, k, v in zip(*parts, strict=True)
        ]
        return x + self.linear(f"{name}.out", torch.cat(heads, 2)).transpose(1, 2).reshape(x.shape)

    def block_and_attention(self, stage, i, x, embedding):
        h = self.block(f"{stage}.blocks.{i}", x, embedding)
        return self.attention(f"{stage}.attentions.{i}", h) if h.shape[2] in self.config.attention else h

    def embedding(self, number, labels):
        half = self.config.width // 2
        frequencies = [10000.0 ** (-i / (half - 1)) for i in range(half)]
        angle = 1000 * number.double()[:, None] * torch.tensor(frequencies, dtype=torch.float64)
        h = self.linear("number.mlp.0", torch.cat([torch.sin(angle), torch.cos(angle)], 1))
        h = self.linear("number.mlp.2", F.silu(h))
        return h if labels is None else h + self.weights["label.weight"][labels]

    def __call__(self, x, number, labels):
        config, embedding = self.config, self.embedding(number, labels)
        levels = len(config.multipliers)
        skips = [self.conv("conv_in", x.double())]
        for level in range(levels):
            for i in range(config.blocks):
                skips.append(self.block_and_attention(f"down.{level}", i, skips[-1], embedding))
            if level < levels - 1:
                padded = F.pad(skips[-1], (0, 1, 0, 1))
                skips.append(self.conv(f"down.{level}.resample", padded, stride=2, padding=0))
        h = self.attention("attention", self.block("middle_in", skips[-1], embedding))
        h = self.block("middle_out", h, embedding)
        for level in range(levels):
            for i in range(config.blocks + 1):
                h = self.block_and_attention(f"up.{level}", i, torch.cat([h, skips.pop()], 1), embedding)
            if level < levels - 1:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                h = self.conv(f"up.{level}.resample", h)
        assert not skips
        return self.conv("conv_out", F.silu(self.norm("norm_out.norm", h)))


@pytest.mark.parametrize(("config", "conditions"), [(TINY, 3), (SCORE, 0)], ids=["ddpm", "vdm"])
def test_the_function_is_that_of_a_plain_version_in_float64(config, conditions):
    network = perturbed(config, conditions).eval()
    x, number, labels = batch()
    x *= 0.1  # small, so that the normalisations' eps counts
    given = labels if conditions else None
    with torch.no_grad():
        out = network(x, number, given)
        expected = Plain(network, config)(x, number, given)
    assert out.shape == (3, 2, *SIZE)
    assert (out - expected).abs().max() < 2e-6 * expected.abs().max()  # measured: 8e-7


@pytest.mark.parametrize("config", [TINY, SCORE], ids=["ddpm", "vdm"])
def test_the_initial_output_is_zero(config):
    x, number, labels = batch()
    assert not ConcatUNet(3, 2, SIZE, 3, config)(x, number, labels).any()


@pytest.mark.parametrize("config", [TINY, SCORE], ids=["ddpm", "vdm"])
def test_every_parameter_gets_a_gradient(config):
    network = perturbed(config)
    network(*batch()).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6]
    assert not without


def test_labels_and_numbers_matter():
    network = perturbed(TINY).eval()
    x, number, labels = batch()
    with torch.no_grad():
        out = network(x, number, labels)
        assert (network(x, number, labels.flip(0)) - out)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3
        assert (network(x, number.flip(0), labels) - out)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3


def test_dropout_is_in_the_blocks_and_for_training_only():
    x, number, labels = batch()
    network = perturbed(ConcatUNetConfig(**(to_dict(TINY) | {"dropout": 0.5})))
    assert not torch.equal(network(x, number, labels), network(x, number, labels))
    torch.testing.assert_close(network.eval()(x, number, labels), perturbed(TINY)(x, number, labels))
    dropouts = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    attentions = 1 + 5 * 2  # the middle's, and those of two resolutions with two blocks down and three up
    assert sorted(dropouts) == [0.0] * attentions + [0.5] * (2 + 5 * 3)


def test_memory_is_channels_last_and_the_projections_start_as_the_papers_have_them():
    for config, biased in ((TINY, True), (SCORE, False)):
        network = ConcatUNet(3, 2, SIZE, 0, config)
        projection = network.middle_in.projection
        assert network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert network(*batch()[:2]).is_contiguous(memory_format=torch.channels_last)
        assert (projection.bias is not None) == bool(projection.weight.detach().any()) == biased
        assert {module.eps for module in network.modules() if isinstance(module, nn.GroupNorm)} == {1e-6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "unet"}, "kind is 'unet'; allowed: 'concat'"),
        ({"width": 9}, "width is 9; allowed: an even number >= 4"),
        ({"width": 2}, "width is 2; allowed: an even number >= 4"),
        ({"multipliers": ()}, r"multipliers \(\), .*; allowed: positive numbers, at least one multiplier"),
        ({"multipliers": (1, 0)}, r"multipliers \(1, 0\), .*; allowed: positive numbers"),
        ({"blocks": 0}, "blocks 0, .*; allowed: positive numbers"),
        ({"attention": (0,)}, r"attention \(0,\); allowed: positive numbers"),
        ({"heads": 3}, "heads 3 over 8 channels; allowed: positive numbers, heads that divide the width"),
        ({"heads": 0}, "heads 0 over 8 channels; allowed: positive numbers"),
        ({"max_groups": 0}, "max_groups 0, .*; allowed: positive numbers"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed: 0 <= dropout < 1"),
    ],
)
def test_wrong_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        ConcatUNetConfig(**(to_dict(TINY) | change))


@pytest.mark.parametrize("size", [(10, 8), (8, 6), (0, 8)])
def test_sizes_that_the_resolutions_do_not_divide(size):
    with pytest.raises(ValueError, match=r"ConcatUNet: size .* with 3 multipliers; allowed: positive multiples of 4"):
        ConcatUNet(1, 1, size, 0, TINY)


@dataclass(frozen=True)
class Holder:
    """What a model's configuration does with its network's."""

    network: UNetConfig | ConcatUNetConfig = field(default_factory=UNetConfig)
    other: ConcatUNetConfig | UNetConfig | None = None
    number: int | None = None


@pytest.mark.parametrize(
    "config",
    [Holder(), Holder(TINY, UNetConfig(), 3), Holder(UNetConfig(widths=(8,)), TINY), Holder(other=ConcatUNetConfig())],
)
def test_the_union_of_configurations_survives_the_passage_through_json(config):
    assert from_dict(Holder, to_dict(config), "here") == config


@dataclass(frozen=True)
class Left:
    """A member of a union all of whose members have a kind."""

    kind: str = "left"


@dataclass(frozen=True)
class Right:
    """Another."""

    kind: str = "right"


@dataclass(frozen=True)
class Tagged:
    """A union without a default member."""

    side: Left | Right
    maybe: Right | None = None


def test_a_kind_is_needed_only_where_more_than_one_member_has_one():
    expected = Tagged(Right(), Right())
    assert from_dict(Tagged, {"side": {"kind": "right"}, "maybe": {}}, "here") == expected
    assert from_dict(Tagged, {"side": {"kind": "left"}, "maybe": None}, "here") == Tagged(Left())


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (Holder, {"network": {"kind": "vit"}}, "network: unknown kind 'vit'; allowed: 'concat', or no kind for UNetC"),
        (Holder, {"network": {"kind": ["concat"]}}, r"unknown kind \['concat'\]; allowed: 'concat'"),
        (Holder, {"network": {"kind": None}}, "unknown kind None; allowed: 'concat'"),
        (Holder, {"network": {"width": 8}}, "network: unknown keys width; allowed: widths"),
        (Holder, {"network": {"kind": "concat", "widths": [8]}}, "network: unknown keys widths; allowed: kind, width"),
        (Holder, {"network": None}, "network: None is no object; allowed: the fields of UNetConfig"),
        (Holder, {"number": "3"}, "number: '3' is a str; allowed: int"),
        (Tagged, {"side": {}}, "side: unknown kind None; allowed: 'left', 'right'"),
        (Tagged, {"side": 3}, "side: unknown kind None; allowed: 'left', 'right'"),
    ],
)
def test_wrong_unions(kind, data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(kind, data, "here")


def test_the_configuration_chooses_the_network():
    assert type(build_network(1, 2, SIZE, 0, SCORE)) is ConcatUNet
    assert type(build_network(1, 2, SIZE, 0, UNetConfig(widths=(8, 8)))) is UNet
