"""The shared layers against their equations in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from fastdiff.networks.blocks import (
    LOGVAR_LIMIT,
    Attention,
    Gaussian,
    NoiseEmbedding,
    NormSiLU,
    ResBlock,
    bounded,
    zero,
)


def perturbed(module: torch.nn.Module) -> torch.nn.Module:
    """The layer with no parameter at its initial zeros or ones."""
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return module


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("channels", "max_groups", "groups"), [(12, 8, 4), (16, 8, 8), (9, 8, 1), (6, 32, 2)])
def test_groups_are_the_greatest_common_divisor(channels, max_groups, groups):
    layer = perturbed(NormSiLU(channels, max_groups))
    w = weights_of(layer)
    x, scale, shift = 0.05 * torch.randn(3, channels, 5, 4), torch.randn(3, channels), torch.randn(3, channels)
    parts = x.double().reshape(3, groups, -1)
    normal = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
    normal = normal.reshape(x.shape) * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]
    torch.testing.assert_close(layer(x).double(), F.silu(normal), rtol=1e-5, atol=1e-5)
    modulated = F.silu(normal * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    torch.testing.assert_close(layer(x, scale, shift).double(), modulated, rtol=1e-5, atol=1e-5)


def test_a_norm_in_16_bits_passes_its_parameters_as_float32():
    layer = perturbed(NormSiLU(8, 4)).bfloat16()
    x = torch.randn(2, 8, 4, 4).bfloat16()
    expected = F.silu(F.group_norm(x.double(), 4, layer.norm.weight.double(), layer.norm.bias.double()))
    out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)


def test_a_residual_block_is_its_equation():
    """h = conv_in(silu(norm_in(x))), y = x + conv_out(silu(norm_out(h) (1 + scale) + shift))."""
    block = perturbed(ResBlock(8, 5, 0.5, 4)).eval()
    w = weights_of(block)
    x, scale, shift = torch.randn(2, 8, 4, 4), torch.randn(2, 8), torch.randn(2, 8)
    h = F.silu(F.group_norm(x.double(), 4, w["norm_in.norm.weight"], w["norm_in.norm.bias"]))
    h = F.conv2d(h, w["conv_in.weight"], w["conv_in.bias"], padding=1)
    h = F.group_norm(h, 4, w["norm_out.norm.weight"], w["norm_out.norm.bias"])
    h = F.silu(h * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    expected = x + F.conv2d(h, w["conv_out.weight"], w["conv_out.bias"], padding=1)
    for given in (biases(block), (None, None)):
        out = block(x, torch.cat([scale, shift], 1), given).tensor()
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def biases(block: ResBlock, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return block.conv_in.bias.expand(batch, -1), block.conv_out.bias.expand(batch, -1)


def test_an_untrained_residual_block_is_the_identity():
    block, x = ResBlock(8, 5, 0.5, 4), torch.randn(2, 8, 4, 4)
    assert not any(parameter.any() for parameter in block.projection.parameters())
    assert torch.equal(block(x, torch.randn(2, 16)).tensor(), x)


@pytest.mark.parametrize("layer", [ResBlock(8, 5, 0.5, 4), Attention(8, 2, 0.5, 4)])
def test_dropout_acts_in_training_only(layer):
    perturbed(layer)
    x, more = torch.randn(2, 8, 4, 4), ()
    if isinstance(layer, ResBlock):
        more = (torch.randn(2, 16),)
    assert not torch.equal(layer(x, *more).tensor(), layer(x, *more).tensor())
    layer.eval()
    assert torch.equal(layer(x, *more).tensor(), layer(x, *more).tensor())


def test_attention_is_softmax_of_scaled_products():
    layer = perturbed(Attention(6, 2, 0.0, 4))
    w = weights_of(layer)
    x = torch.randn(2, 6, 3, 5)
    pixels = F.group_norm(x.double(), 2, w["norm.weight"], w["norm.bias"]).flatten(2).transpose(1, 2)
    q, k, v = (pixels @ w["qkv.weight"].T + w["qkv.bias"]).split(6, 2)
    heads = []
    for c in (slice(0, 3), slice(3, 6)):
        weights = torch.exp(q[..., c] @ k[..., c].transpose(1, 2) / math.sqrt(3))
        heads.append(weights / weights.sum(2, keepdim=True) @ v[..., c])
    h = torch.cat(heads, 2) @ w["out.weight"].T + w["out.bias"]
    torch.testing.assert_close(layer(x).tensor().double(), x + h.transpose(1, 2).reshape(x.shape), rtol=1e-5, atol=1e-5)


def test_attention_starts_as_the_identity_and_needs_heads_that_divide_its_channels():
    x = torch.randn(2, 6, 3, 5)
    assert torch.equal(Attention(6, 3, 0.1, 4)(x).tensor(), x)
    with pytest.raises(ValueError, match="heads must divide channels"):
        Attention(6, 4, 0.0, 4)


def test_the_frequencies_of_the_noise_embedding_grow_geometrically():
    layer = NoiseEmbedding(4, features=8, max_frequency=64.0)
    torch.testing.assert_close(layer.frequencies, torch.tensor([1.0, 4.0, 16.0, 64.0]))
    w, t = weights_of(layer), torch.tensor([0.0, 0.3, 1.0])
    angles = [[f * float(each) for f in (1, 4, 16, 64)] for each in t]
    features = torch.tensor([[*map(math.sin, row), *map(math.cos, row)] for row in angles], dtype=torch.float64)
    h = F.silu(features @ w["mlp.0.weight"].T + w["mlp.0.bias"]) @ w["mlp.2.weight"].T + w["mlp.2.bias"]
    torch.testing.assert_close(layer(t).double(), h, rtol=1e-5, atol=1e-5)
    assert set(layer.state_dict()) == {f"mlp.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
    default = NoiseEmbedding(4).frequencies
    assert len(default) == 16
    assert float(default[0]) == 1.0
    assert float(default[-1]) == pytest.approx(200.0, rel=1e-5)


def test_log_variances_are_bounded_with_slope_one_at_zero():
    raw = torch.tensor([-1e6, -3.0, 0.0, 1e-3, 7.0, 1e6], requires_grad=True)
    out = bounded(raw)
    expected = [10.0 * math.tanh(float(each) / 10.0) for each in raw.detach()]
    torch.testing.assert_close(out, torch.tensor(expected))
    assert float(out.detach().abs().max()) <= LOGVAR_LIMIT == 10.0
    out.sum().backward()
    assert float(raw.grad[2]) == 1.0


def test_an_untrained_gaussian_is_standard_normal():
    layer, h = Gaussian(6, 3), torch.randn(4, 6)
    mean, logvar = layer(h)
    assert mean.shape == logvar.shape == (4, 3)
    assert not mean.any()
    assert not logvar.any()
    mean, logvar = perturbed(layer)(h)
    out = h @ layer.linear.weight.T + layer.linear.bias
    torch.testing.assert_close(mean, out[:, :3])
    torch.testing.assert_close(logvar, 10 * torch.tanh(out[:, 3:] / 10))


def test_zero_returns_the_layer_that_it_was_given():
    layer = torch.nn.Linear(3, 2)
    assert zero(layer) is layer
    assert not any(parameter.any() for parameter in layer.parameters())
