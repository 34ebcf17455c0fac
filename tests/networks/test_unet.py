"""The U-Net: its function against float64, its start, and its size."""

import math

import attrs
import pytest
import torch
from torch.nn import functional as F

from fastdiff.networks import Dropout, UNet, UNetConfig, sums

TINY = UNetConfig(widths=(8, 12, 6), blocks=2, embedding=10, dropout=0.0, heads=2, max_groups=4)
BARE = UNetConfig(widths=(8,), blocks=1, embedding=6, dropout=0.0, heads=1, max_groups=8, positions=False)
SIZE = (8, 12)


def perturbed(config: UNetConfig, num_labels: int = 3) -> UNet:
    """A network none of whose parameters has its initial zeros or ones."""
    torch.manual_seed(0)
    network = config.build(3, 2, SIZE, num_labels)
    for parameter in network.parameters():
        if parameter.dim() == 1 or not parameter.detach().any():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return network


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, *SIZE, generator=generator), torch.tensor([0.0, 0.37, 1.0]), torch.tensor([2, 0, 1])


class Plain:
    """The network as functions of its weights in float64."""

    def __init__(self, network: UNet, config: UNetConfig) -> None:
        self.weights = {name: value.double() for name, value in network.state_dict().items()}
        self.config = config

    def norm(self, name, x):
        groups = math.gcd(x.shape[1], self.config.max_groups)
        return F.group_norm(x, groups, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def conv(self, name, x, stride=1, padding=1):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride, padding)

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def block(self, name, x, embedding):
        h = self.conv(f"{name}.conv_in", F.silu(self.norm(f"{name}.norm_in.norm", x)))
        first, self.taken = self.taken, self.taken + 2 * h.shape[1]  # each block's rows, in the order of the calls
        scale, shift = self.linear("projections", embedding)[:, first : self.taken, None, None].chunk(2, 1)
        return x + self.conv(f"{name}.conv_out", F.silu(self.norm(f"{name}.norm_out.norm", h) * (1 + scale) + shift))

    def attention(self, x):
        pixels = self.norm("attention.norm", x).flatten(2).transpose(1, 2)
        parts = [part.chunk(self.config.heads, 2) for part in self.linear("attention.qkv", pixels).chunk(3, 2)]
        heads = [
            torch.softmax(q @ k.transpose(1, 2) / q.shape[2] ** 0.5, 2) @ v for q, k, v in zip(*parts, strict=True)
        ]
        return x + self.linear("attention.out", torch.cat(heads, 2)).transpose(1, 2).reshape(x.shape)

    def embedding(self, noise_level, labels):
        frequencies = torch.tensor([200.0 ** (i / 15) for i in range(16)], dtype=torch.float64)
        angle = noise_level.double()[:, None] * frequencies
        h = self.linear("noise_embedding.mlp.0", torch.cat([torch.sin(angle), torch.cos(angle)], 1))
        h = self.linear("noise_embedding.mlp.2", F.silu(h))
        return F.silu(h if labels is None else h + self.weights["label_embedding.weight"][labels])

    def __call__(self, x, noise_level, labels):
        config, embedding, self.taken = self.config, self.embedding(noise_level, labels), 0
        h, skips = self.conv("conv_in", x.double()), {}
        lowest = len(config.widths) - 1
        for r in range(lowest + 1):
            if r:
                h = self.conv(f"down.{r}.resample", h, stride=2, padding=0)
            if config.positions:
                h = h + self.weights[f"down.{r}.position"]
            for i in range(config.blocks):
                h = skips[r, i] = self.block(f"down.{r}.blocks.{i}", h, embedding)
        h = self.block("middle_out", self.attention(self.block("middle_in", h, embedding)), embedding)
        for i in range(lowest + 1):
            r = lowest - i
            for j in range(config.blocks):
                both = torch.cat([h, skips[r, config.blocks - 1 - j]], 1)
                h = self.block(f"up.{i}.blocks.{j}", self.conv(f"up.{i}.merges.{j}", both, padding=0), embedding)
            if r:
                weight, bias = self.weights[f"up.{i}.resample.weight"], self.weights[f"up.{i}.resample.bias"]
                cells = torch.einsum("bchw,cdij->bdhiwj", h, weight)  # each pixel becomes 2×2 pixels
                h = cells.flatten(4, 5).flatten(2, 3) + bias[:, None, None]
        return self.conv("conv_out", F.silu(self.norm("norm_out.norm", h)))


@pytest.mark.parametrize(("config", "num_labels"), [(TINY, 3), (BARE, 0)], ids=["tiny", "bare"])
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
    assert (out - expected).abs().max() < 4e-6 * expected.abs().max()


def test_the_initial_output_is_zero_and_the_attention_and_blocks_start_as_identities():
    x, noise_level, labels = batch()
    network = TINY.build(3, 2, SIZE, 3)
    assert not network(x, noise_level, labels).any()
    h = torch.randn(3, 6, 2, 3)
    assert torch.equal(network.attention(h).tensor(), h)
    assert torch.equal(network.middle_in(h, torch.randn(3, 12)).tensor(), h)
    assert float(network.down[0].position.detach().std()) == pytest.approx(0.05, rel=0.1)


def test_every_parameter_gets_a_gradient():
    network = perturbed(TINY)
    network(*batch()).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6]
    assert not without


def test_labels_noise_levels_and_positions_matter():
    network = perturbed(TINY).eval()
    x, noise_level, labels = batch()
    with torch.no_grad():
        out = network(x, noise_level, labels)
        assert (network(x, noise_level, labels.flip(0)) - out)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3
        assert (network(x, noise_level.flip(0), labels) - out)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3
        network.down[2].position.zero_()
        assert (network(x, noise_level, labels) - out).abs().max() > 1e-4
    names = set(perturbed(attrs.evolve(TINY, positions=False)).state_dict())
    assert {f"down.{i}.position" for i in range(3)} == set(network.state_dict()) - names


def test_samples_do_not_mix():
    network = perturbed(TINY).eval()
    x, noise_level, labels = batch()
    with torch.no_grad():
        alone = [network(x[i : i + 1], noise_level[i : i + 1], labels[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(network(x, noise_level, labels), torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_only():
    x, noise_level, labels = batch()
    network = perturbed(attrs.evolve(TINY, dropout=0.5))
    assert not torch.equal(network(x, noise_level, labels), network(x, noise_level, labels))
    torch.testing.assert_close(network.eval()(x, noise_level, labels), perturbed(TINY)(x, noise_level, labels))
    dropouts = [module.p for module in network.modules() if isinstance(module, Dropout)]
    assert dropouts == [0.5] * (2 * 2 * 3 + 2 + 1)  # blocks down and up, in the middle, and after attention


def test_memory_is_channels_last():
    network = TINY.build(3, 2, SIZE, 0)
    assert network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert network(*batch()[:2]).is_contiguous(memory_format=torch.channels_last)


def test_the_number_of_parameters_follows_from_the_config():
    """The sum over the layers for widths v, w and one block per resolution."""
    v, w, e, labels = 8, 12, 16, 5
    config = UNetConfig(widths=(v, w), blocks=1, embedding=e, heads=2)

    def block(c: int) -> int:
        return 2 * (2 * c) + 2 * (9 * c * c + c) + (e * 2 * c + 2 * c)

    total = (32 * e + e) + (e * e + e) + labels * e + (9 * 3 * v + v) + 2 * v + (9 * v * 2 + 2)
    total += block(v) + v * 8 * 12 + block(w) + w * 4 * 6 + (4 * v * w + w)  # down
    total += 2 * block(w) + 2 * w + (3 * w * w + 3 * w) + (w * w + w)  # middle
    total += block(w) + (2 * w * w + w) + (4 * w * v + v) + block(v) + (2 * v * v + v)  # up
    network = config.build(3, 2, SIZE, labels)
    assert sum(parameter.numel() for parameter in network.parameters()) == total


@pytest.mark.parametrize("size", [(10, 8), (8, 6), (0, 8)])
def test_sizes_that_cannot_be_halved_twice(size):
    with pytest.raises(ValueError, match="size must be positive multiples of 4"):
        TINY.build(1, 1, size, 0)
