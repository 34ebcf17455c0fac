"""Counts of operations, bytes and launches: by hand for small pieces, and as ceilings for whole models."""

import json
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import footprint
from benchmarks.dispatch_counts import Count, DispatchCounts, counted, counting_kernels, launches_of
from fastdiff.kernels import Noise, diffuse, eps_loss, fourier_features, group_norm_silu, sampler_step
from fastdiff.presets import preset


def counts_of(call):
    return {name: (count.calls, count.launches, count.bytes) for name, count in counted(call).items()}


def test_element_wise_operations_by_hand():
    """silu reads and writes 48 floats; add_ takes two tensors and returns one of them; a sum returns one number."""
    x = torch.randn(2, 4, 3, 2)
    assert counts_of(lambda: F.silu(x)) == {"silu": (1, 1, 4 * 96)}
    assert counts_of(lambda: x.clone().add_(x[:1])) == {"clone": (1, 1, 384), "add_.Tensor": (1, 1, 4 * (48 + 24 + 48))}
    assert counts_of(lambda: x.sum()) == {"sum": (1, 1, 4 * 49)}
    assert counts_of(lambda: x.to(torch.bfloat16)) == {"_to_copy": (1, 1, 48 * 6)}


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(8, 6),
        lambda x: x.reshape(8, 6),
        lambda x: x.flatten().t().expand(3, 48),
        lambda x: x.detach().permute(1, 0, 2, 3)[1:, None],
        lambda x: x.unbind(1)[0].chunk(2),
        lambda x: torch.empty_like(x),
        lambda x: torch.empty(7),
        lambda x: x.new_empty(3).numel(),
        lambda x: x.sum,
        lambda x: x.contiguous(),
        lambda x: float(x.view(-1)[0]),
    ],
)
def test_what_launches_nothing_is_left_out(view):
    x = torch.randn(2, 4, 3, 2)
    assert counts_of(lambda: view(x)) == {}


def test_a_reshape_that_copies_is_one_operation():
    x = torch.randn(2, 4, 3, 2).permute(3, 0, 1, 2)
    assert counts_of(lambda: x.reshape(-1)) == {"clone": (1, 1, 384)}


def test_products_move_no_element_wise_bytes_and_a_bias_is_a_launch():
    layers = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, bias=False), nn.Flatten(), nn.Linear(24, 3))
    x = torch.randn(2, 4, 3, 2, requires_grad=True)
    assert counts_of(lambda: layers(x)) == {"addmm": (1, 1, 0), "convolution": (2, 3, 0)}
    queries = torch.randn(2, 1, 8, 4)
    (found,) = counts_of(lambda: F.scaled_dot_product_attention(queries, queries, queries)).values()
    assert found == (1, 1, 0)
    with DispatchCounts() as mode:
        layers[:2](x).backward(torch.ones_like(x))
    assert mode.counts["convolution_backward"] == Count(2, 3 + 2, 0)  # to x, weight and bias; to x and weight


def test_operations_of_fastdiff_count_with_the_kernels_of_their_launchers():
    """At sizes where the number of kernels follows from the equations: one kernel, or the moments in three."""
    x, gamma = torch.randn(2, 8, 4, 4), torch.zeros(2)
    row = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    scale = torch.ones(8)
    noise = Noise(1)
    assert counts_of(lambda: diffuse(x, gamma, noise)) == {"fastdiff.diffuse": (1, 1, 4 * (256 + 2 + 256) + 32)}
    assert counts_of(lambda: sampler_step(x, x, row, noise, keep_x_hat=False))["fastdiff.sampler_step"][:2] == (1, 1)
    assert counts_of(lambda: fourier_features(x))["fastdiff.fourier_features"] == (1, 1, 4 * 6 * 256)
    assert counts_of(lambda: group_norm_silu(x, 2, scale, scale))["fastdiff.group_norm_silu"][:2] == (1, 1)
    large = torch.zeros(1, 2, 256, 256)  # a group of 2¹⁷ elements does not fit on chip
    two = torch.ones(2)
    assert counts_of(lambda: group_norm_silu(large, 1, two, two))["fastdiff.group_norm_silu"][:2] == (1, 3)
    launches = {name: found[1] for name, found in counts_of(lambda: eps_loss(x, noise, gamma)).items()}
    assert launches["fastdiff.eps_squared_error"] == 2  # the squares of blocks, and their sum


def test_launchers_run_with_the_real_kernels_again_afterwards():
    module = import_module("fastdiff_kernels.diffuse")
    before = module.diffuse_kernel
    with counting_kernels() as launched:
        assert module.diffuse_kernel is not before
        module.diffuse_kernel[(3,)](1, BLOCK=2)
        assert launched == ["diffuse_kernel"]
    assert module.diffuse_kernel is before
    assert launches_of(lambda x: x.sqrt().add_(1.0).view(-1), [torch.ones(3)]) == 2


def test_values_are_those_of_an_uncounted_call():
    x, noise = torch.randn(2, 3, 8, 8), Noise(3)
    expected = diffuse(x, torch.zeros(2), noise)
    found = []
    counted(lambda: found.append(diffuse(x, torch.zeros(2), noise)))
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize(("model", "what"), footprint.BARS)
def test_models_stay_within_their_bars(model, what):
    operations, megabytes = footprint.BARS[model, what]
    total = footprint.footprint(model, what).total
    assert total.calls <= operations
    assert total.bytes <= 1e6 * megabytes


def test_the_network_beside_has_as_many_parameters():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(**footprint.GOOGLE_DDPM_CIFAR10)
    ours = preset("ddpm-cifar10").build()
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters()) == 35_746_307


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    path = tmp_path / "footprint.json"
    arguments = ["--model", "digits", "--what", "forward,optimizer", "--by-operation", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["footprint.py", *arguments])
    assert footprint.main() == 0
    printed = capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [row["what"] for row in rows] == ["forward", "optimizer"]
    for row in rows:
        for key in ("calls", "launches", "bytes"):
            assert row["total"][key] == sum(count[key] for count in row["by_operation"].values())
        assert f"{row['total']['calls']:>11}" in printed
        assert row["total"]["launches"] >= row["total"]["calls"]
    assert "fastdiff.group_norm_silu" in printed
