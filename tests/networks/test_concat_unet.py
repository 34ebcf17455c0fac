"""The U-Net with concatenated skips: its size, its function against float64, and its start."""

import math

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastdiff.io.configuration import ConfigError
from fastdiff.networks import ConcatUNet, ConcatUNetConfig, Dropout, sums

TINY = ConcatUNetConfig(
    width=8, multipliers=(1, 2, 1), blocks=2, attention=(8, 2), dropout=0.0, heads=2, max_groups=4, embedding_bias=True
)
SCORE = ConcatUNetConfig(
    width=8, multipliers=(1,), blocks=3, attention=(), dropout=0.0, max_groups=4, embedding_bias=False
)
SIZE = (8, 12)


def perturbed(config: ConcatUNetConfig, num_labels: int = 3) -> ConcatUNet:
    """A small network none of whose parameters has its initial zeros (or ones)."""
    torch.manual_seed(0)
    network = config.build(3, 2, SIZE, num_labels)
    for parameter in network.parameters():
        if parameter.dim() == 1 or not parameter.detach().any():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return network


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, *SIZE, generator=generator), torch.tensor([0.0, 0.37, 1.0]), torch.tensor([2, 0, 1])


def count_on_meta(channels_in: int, config: ConcatUNetConfig) -> int:
    with torch.device("meta"):
        network = config.build(channels_in, 3, (32, 32), 0)
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
        h = h + self.projected(embedding, h.shape[1])[:, :, None, None]
        h = self.conv(f"{name}.conv_out", F.silu(self.norm(f"{name}.norm_out.norm", h)))
        return h + (x if x.shape == h.shape else self.conv(f"{name}.shortcut", x, padding=0))

    def projected(self, embedding, size):
        """The next rows of the layer that holds every block's projection, in the order of the calls."""
        first, self.taken = self.taken, self.taken + size
        return self.linear("projections", F.silu(embedding))[:, first : self.taken]

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

    def embedding(self, noise_level, labels):
        half = self.config.width // 2
        frequencies = [10000.0 ** (-i / (half - 1)) for i in range(half)]
        angle = 1000 * noise_level.double()[:, None] * torch.tensor(frequencies, dtype=torch.float64)
        h = self.linear("noise_embedding.mlp.0", torch.cat([torch.sin(angle), torch.cos(angle)], 1))
        h = self.linear("noise_embedding.mlp.2", F.silu(h))
        return h if labels is None else h + self.weights["label_embedding.weight"][labels]

    def __call__(self, x, noise_level, labels):
        config, embedding, self.taken = self.config, self.embedding(noise_level, labels), 0
        resolutions = len(config.multipliers)
        skips = [self.conv("conv_in", x.double())]
        for resolution in range(resolutions):
            for i in range(config.blocks):
                skips.append(self.block_and_attention(f"down.{resolution}", i, skips[-1], embedding))
            if resolution < resolutions - 1:
                padded = F.pad(skips[-1], (0, 1, 0, 1))
                skips.append(self.conv(f"down.{resolution}.resample", padded, stride=2, padding=0))
        h = self.attention("attention", self.block("middle_in", skips[-1], embedding))
        h = self.block("middle_out", h, embedding)
        for resolution in range(resolutions):
            for i in range(config.blocks + 1):
                h = self.block_and_attention(f"up.{resolution}", i, torch.cat([h, skips.pop()], 1), embedding)
            if resolution < resolutions - 1:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                h = self.conv(f"up.{resolution}.resample", h)
        assert not skips
        assert self.taken == len(self.weights["projections.weight"])
        return self.conv("conv_out", F.silu(self.norm("norm_out.norm", h)))


@pytest.mark.parametrize(("config", "num_labels"), [(TINY, 3), (SCORE, 0)], ids=["ddpm", "vdm"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_function_is_that_of_a_plain_version_in_float64(config, num_labels, device, monkeypatch):
    """With the biases of the convolutions added as on each device."""
    monkeypatch.setattr(sums, "bias_is_a_pass", lambda _: device == "cuda")
    network = perturbed(config, num_labels).eval()
    x, noise_level, labels = batch()
    x *= 0.1  # small, so that eps of the normalisations matters
    labels = labels if num_labels else None
    with torch.no_grad():
        out = network(x, noise_level, labels)
        expected = Plain(network, config)(x, noise_level, labels)
    assert out.shape == (3, 2, *SIZE)
    assert (out - expected).abs().max() < 2e-6 * expected.abs().max()  # measured: 8e-7


@pytest.mark.parametrize("config", [TINY, SCORE], ids=["ddpm", "vdm"])
def test_the_initial_output_is_zero(config):
    x, noise_level, labels = batch()
    assert not config.build(3, 2, SIZE, 3)(x, noise_level, labels).any()


@pytest.mark.parametrize("config", [TINY, SCORE], ids=["ddpm", "vdm"])
def test_every_parameter_gets_a_gradient(config):
    network = perturbed(config)
    network(*batch()).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6]
    assert not without


def test_labels_and_noise_levels_matter():
    network = perturbed(TINY).eval()
    x, noise_level, labels = batch()
    with torch.no_grad():
        out = network(x, noise_level, labels)
        assert (network(x, noise_level, labels.flip(0)) - out)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3
        assert (network(x, noise_level.flip(0), labels) - out)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3


def test_dropout_is_in_the_blocks_and_for_training_only():
    x, noise_level, labels = batch()
    network = perturbed(attrs.evolve(TINY, dropout=0.5))
    assert not torch.equal(network(x, noise_level, labels), network(x, noise_level, labels))
    torch.testing.assert_close(network.eval()(x, noise_level, labels), perturbed(TINY)(x, noise_level, labels))
    dropouts = [module.p for module in network.modules() if isinstance(module, Dropout)]
    attentions = 1 + 5 * 2  # the middle's, and those of two resolutions with two blocks down and three up
    assert sorted(dropouts) == [0.0] * attentions + [0.5] * (2 + 5 * 3)


def test_memory_is_channels_last_and_the_projections_start_as_the_papers_have_them():
    for config, biased in ((TINY, True), (SCORE, False)):
        network = config.build(3, 2, SIZE, 0)
        projection = network.projections
        assert network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert network(*batch()[:2]).is_contiguous(memory_format=torch.channels_last)
        assert (projection.bias is not None) == bool(projection.weight.detach().any()) == biased
        assert {module.eps for module in network.modules() if isinstance(module, nn.GroupNorm)} == {1e-6}


@pytest.mark.parametrize("size", [(10, 8), (8, 6), (0, 8)])
def test_sizes_that_cannot_be_halved_twice(size):
    with pytest.raises(ValueError, match="size must be positive multiples of 4"):
        TINY.build(1, 1, size, 0)


def test_a_network_in_16_bits_takes_float32_inputs_and_embeds_the_noise_level_in_float32():
    """As rounding of weights and features alone. Frequencies or levels in 16 bits would give another embedding."""
    x, level, labels = batch()
    level = torch.tensor([0.1234, 0.5711, 0.9987])  # angles up to 999, whose spacing in bfloat16 is 4
    exact, network = (perturbed(TINY).eval() for _ in range(2))
    before = network.noise_embedding.frequencies.clone()
    network.bfloat16()
    with torch.no_grad():
        expected = exact(x, level, labels)
        found = network(x, level, labels)
        rounded = network(x, level.bfloat16().float(), labels)
    assert found.dtype == torch.bfloat16
    assert torch.equal(network.noise_embedding.frequencies, before)

    def error(out: torch.Tensor) -> float:
        return float(torch.linalg.vector_norm(out.float() - expected) / torch.linalg.vector_norm(expected))

    assert error(found) < 0.012
    assert error(rounded) > 2 * error(found)


def test_the_embedding_of_timesteps():
    """sin and cos of f_i k scale in float64, for k the timestep; times next to a step are the step's."""
    config = attrs.evolve(TINY, timesteps=1000, timestep_scale=0.25, frequency_shift=0)
    embedding = perturbed(config).noise_embedding
    k = torch.tensor([0, 1, 517, 999])
    level = (k.double() / 999).float()
    frequencies = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angle = 0.25 * k[:, None] * frequencies
    first, second = embedding.mlp[0].double(), embedding.mlp[2].double()
    with torch.no_grad():
        expected = second(F.silu(first(torch.cat([angle.sin(), angle.cos()], dim=1))))
        found = embedding.float()(level)
        off = embedding(level * 0.5 + 0.25)  # between steps
    assert (found - expected).abs().max() < 2e-6  # measured 7e-7; f in float32 alone costs 250 · 6e-8
    assert torch.isfinite(off).all()
    near = (k[:, None] + torch.tensor([-0.009, 0.009])).flatten() / 999
    with torch.no_grad():
        assert torch.equal(embedding(near).unflatten(0, (4, 2))[:, 0], embedding(near).unflatten(0, (4, 2))[:, 1])


def test_variants_start_at_zero_and_have_their_parts():
    variant = attrs.evolve(
        TINY, heads=1, head_size=4, attention_up=(4,), middle_attention=False, scale_shift=True, padding="both"
    )
    network = variant.build(3, 2, SIZE, 0)
    assert not network(batch()[0], batch()[1]).any()
    assert isinstance(network.attention, nn.Identity)
    names = [name.removesuffix(".qkv") for name, _ in network.named_modules() if name.endswith(".qkv")]
    assert names == [
        "down.0.attentions.0", "down.0.attentions.1", "down.2.attentions.0", "down.2.attentions.1",
        "up.1.attentions.0", "up.1.attentions.1", "up.1.attentions.2",
    ]  # fmt: skip
    assert [network.get_submodule(name).heads for name in names[-1:]] == [4]
    with pytest.raises(ConfigError, match="head_size must divide the 8 channels"):
        attrs.evolve(variant, head_size=3).build(3, 2, SIZE, 0)
