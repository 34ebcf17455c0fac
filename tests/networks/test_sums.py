"""Unevaluated sums against the same sums in plain PyTorch, and the joint layer against separate ones."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastdiff.networks import sums
from fastdiff.networks.sums import Convolved, Projections, Sum, as_sum, rows


def parts(names: str) -> dict[str, torch.Tensor]:
    """The parts of a sum that are named, channels-last."""
    torch.manual_seed(0)
    shapes = {"value": (2, 8, 4, 6), "shift": (2, 8), "residual": (2, 8, 4, 6), "skip": (2, 4, 4, 6)}
    drawn = {name: torch.randn(shape) for name, shape in shapes.items()}
    layouts = {4: torch.channels_last, 2: torch.contiguous_format}
    return {name: drawn[name].contiguous(memory_format=layouts[drawn[name].dim()]) for name in names.split()}


def added(value, shift=None, residual=None, skip=None) -> torch.Tensor:
    total = value if shift is None else value + shift[:, :, None, None]
    total = total if residual is None else total + residual
    return total if skip is None else torch.cat([total, skip], 1)


EACH = [
    "value",
    "value shift",
    "value residual",
    "value skip",
    "value shift residual",
    "value shift skip",
    "value residual skip",
    "value shift residual skip",
]


@pytest.mark.parametrize("names", EACH)
@pytest.mark.parametrize("groups", [1, 4])
def test_a_sum_has_one_value_whoever_adds_it_up(names, groups):
    """The tensor, the tensor that the norm wrote, and both norms, with their gradients. Measured: 5e-7."""
    given = parts(names)
    expected = added(**given)
    norm = nn.GroupNorm(groups, expected.shape[1])
    for parameter in norm.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    torch.testing.assert_close(Sum(**given).tensor(), expected, rtol=0, atol=1e-6)
    upstream = torch.randn_like(expected), torch.randn_like(expected)

    def results(evaluate) -> list[torch.Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
        outputs = evaluate(leaves)
        wanted = [*leaves.values(), *norm.parameters()]
        return [*outputs, *torch.autograd.grad(outputs, wanted, upstream)]

    def ours(leaves):
        features = Sum(**leaves)
        return features.normalized(norm), features.tensor()

    def plain(leaves):
        return F.silu(norm(added(**leaves))), added(**leaves)

    for found, exact in zip(results(ours), results(plain), strict=True):
        torch.testing.assert_close(found, exact, rtol=2e-6, atol=5e-6)


def test_without_the_activation_and_with_scale_and_shift():
    given, norm = parts("value shift residual"), nn.GroupNorm(4, 8)
    scale, shift = torch.randn(2, 8), torch.randn(2, 8)
    exact = norm(added(**given))
    torch.testing.assert_close(Sum(**given).normalized(norm, activation=False), exact, rtol=0, atol=2e-6)
    exact = F.silu(exact * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    torch.testing.assert_close(Sum(**given).normalized(norm, scale, shift), exact, rtol=0, atol=4e-6)


@pytest.mark.parametrize("names", EACH[3:5])
def test_parts_of_another_dtype_are_added_up_as_pytorch_does(names):
    """As under autocast, where a convolution returns 16 bits for features in float32."""
    given = parts(names)
    given["value"] = given["value"].bfloat16()
    norm = nn.GroupNorm(4, added(**given).shape[1])
    found = Sum(**given).normalized(norm)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.silu(norm(added(**given))), rtol=0, atol=2e-6)


def test_a_sum_is_added_up_once_and_can_be_extended_before_and_after():
    given = parts("value residual skip")
    skip = given.pop("skip")
    features = Sum(**given)
    before = features.with_skip(skip)
    total = features.tensor()
    assert features.tensor() is total
    for extended in (before, features.with_skip(skip)):
        torch.testing.assert_close(extended.tensor(), torch.cat([total, skip], 1), rtol=0, atol=1e-6)
    value = given["value"]
    assert as_sum(value).tensor() is value
    assert as_sum(features) is features


@pytest.mark.parametrize("residual", [True, False])
def test_a_convolution_is_computed_once_and_its_bias_added_once(residual, monkeypatch):
    convolution = F.conv2d
    conv, x, norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.randn(2, 3, 8, 8), nn.GroupNorm(4, 8)
    added = torch.randn(2, 8, 4, 4) if residual else None

    def features() -> Sum:
        return Sum(Convolved(conv, x, conv.bias.expand(2, -1)), residual=added)

    exact = conv(x) + added if residual else conv(x)
    for each in (features, lambda: Sum(Convolved(conv, x), residual=added)):
        torch.testing.assert_close(each().tensor(), exact, rtol=0, atol=1e-6)
        torch.testing.assert_close(each().normalized(norm), F.silu(norm(exact)), rtol=0, atol=2e-6)
    used_twice, calls = features(), []
    monkeypatch.setattr(F, "conv2d", lambda *arguments: calls.append(0) or convolution(*arguments))
    used_twice.normalized(norm)
    torch.testing.assert_close(used_twice.tensor(), exact, rtol=0, atol=1e-6)
    assert len(calls) == 1
    assert used_twice.residual is None  # the parts are not kept
    shift = torch.randn(2, 8)
    both = Sum(Convolved(conv, x, conv.bias.expand(2, -1)), shift, added)
    torch.testing.assert_close(both.normalized(norm), F.silu(norm(exact + shift[:, :, None, None])), rtol=0, atol=2e-6)
    both = Sum(Convolved(conv, x, conv.bias.expand(2, -1)), shift, added)
    torch.testing.assert_close(both.tensor(), exact + shift[:, :, None, None], rtol=0, atol=1e-6)


def test_rows_are_the_biases_of_every_sample_where_adding_them_is_a_pass(monkeypatch):
    assert rows([nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)], 4) == [None, None]
    assert sums.bias_is_a_pass(torch.device("cuda"))
    monkeypatch.setattr(sums, "bias_is_a_pass", lambda _: True)
    convolutions = [nn.Conv2d(1, size, 1) for size in (3, 5, 2)]
    biases = [conv.bias for conv in convolutions]
    found = rows(convolutions, 4)
    for row, bias in zip(found, biases, strict=True):
        assert row.shape == (4, len(bias))
        assert torch.equal(row, bias.expand(4, -1))
    sum((k + 1.0) * row.sum() for k, row in enumerate(found)).backward()
    assert [bias.grad.tolist() for bias in biases] == [[4.0] * 3, [8.0] * 5, [12.0] * 2]


class Block(nn.Module):
    def __init__(self, size: int, bias: bool) -> None:
        super().__init__()
        self.projection = nn.Linear(6, size, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("more", [True, False])
def test_the_joint_layer_is_each_blocks_layer(bias, more):
    torch.manual_seed(0)
    blocks = [Block(size, bias) for size in (4, 7, 3)]
    layers = [copy.deepcopy(block.projection) for block in blocks]
    joint, embedding = Projections(blocks), torch.randn(5, 6)
    assert not any(list(block.parameters()) for block in blocks)
    assert sum(p.numel() for p in joint.parameters()) == sum(p.numel() for layer in layers for p in layer.parameters())
    convolutions = [nn.Conv2d(1, layer.out_features, 1) for layer in layers] if more else []
    found = joint(embedding, convolutions)
    for k, layer in enumerate(layers):
        exact = layer(embedding) + (convolutions[k].bias if more else 0.0)
        torch.testing.assert_close(found[k], exact, rtol=0, atol=1e-6)
