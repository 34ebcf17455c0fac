"""Reconstruction: what every model starts from and gives, by hand, and what has none."""

import math

import pytest
import torch
from tiny import images, small, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff.kernels import FastdiffError, Noise, Stream, to_unit_range
from fastdiff.models import AddNoise, ConvVAEConfig, Downsample
from fastdiff.sampling import reconstruct

X = images(6)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_vae_decodes_the_mean(depth):
    vae = small_vae(depth)
    result = reconstruct(vae, X)
    assert result.start is None
    assert torch.equal(result.images, vae.decode(vae.encode(X)[0][0]))
    half = reconstruct(vae, X, Downsample(factor=4))
    assert half.start is not None
    blocks = to_unit_range(X, 17).reshape(6, 1, 2, 4, 2, 4).mean((3, 5))
    torch.testing.assert_close(half.start, blocks.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert torch.equal(half.images, vae.decode(vae.encode(vae.nearest_level(half.start))[0][0]))
    noisy = reconstruct(vae, X, AddNoise(deviation=0.5), seed=3)
    assert noisy.start is not None
    eps = Noise(3, stream=Stream.DEGRADATION).normal((6, 1, 8, 8))
    torch.testing.assert_close(noisy.start, to_unit_range(X, 17) + 0.5 * eps)
    centers = (2 * torch.arange(17) + 1) / 17 - 1
    nearest = (noisy.start.unsqueeze(-1) - centers).abs().argmin(-1).byte()
    assert torch.equal(noisy.images, vae.decode(vae.encode(nearest)[0][0]))


def test_a_model_in_training_reconstructs_without_dropout():
    vae = small_vae(1, network=ConvVAEConfig(widths=(8, 12), max_groups=4, dropout=0.9))
    expected = reconstruct(vae, X).images
    assert torch.equal(reconstruct(vae.train(), X).images, expected)
    assert vae.training


@pytest.mark.parametrize("formulation", [1, 2])
def test_a_diffusevae_refines_the_images_of_its_vae_or_degraded_ones(formulation):
    model = small_diffusevae(formulation)
    result = reconstruct(model, X, seed=3, steps=4)
    with torch.no_grad():
        expected = model.vae.decoder(model.vae.encode(X)[0][0])[0].clamp(-1, 1)
    assert result.start is not None
    torch.testing.assert_close(result.start, expected)
    again = fastdiff.sample(model, 6, steps=4, seed=3, cond=result.start, output="levels")
    assert torch.equal(result.images, again)
    noisy = reconstruct(model, X, AddNoise(deviation=0.3), seed=3, steps=4)
    assert noisy.start is not None
    deviation = float((noisy.start - to_unit_range(X, 17)).std())
    assert abs(deviation - 0.3) < 4 * 0.3 / math.sqrt(2 * 6 * 64)
    assert torch.equal(noisy.images, fastdiff.sample(model, 6, 4, seed=3, cond=noisy.start, output="levels"))


@pytest.mark.parametrize("degradation", [Downsample(factor=2), AddNoise(deviation=0.5)])
def test_a_restoration_model_has_its_own_degradation(degradation):
    """Block means, or data and noise of `Stream.DEGRADATION`, by image index; the same for every batch size."""
    model, data = small_restoration(degradation), to_unit_range(X, 17)
    if degradation.kind == "downsample":
        degraded = data.reshape(6, 1, 4, 2, 4, 2).mean((3, 5))
        start = degraded.repeat_interleave(2, 2).repeat_interleave(2, 3)
    else:
        degraded = start = data + 0.5 * Noise(5, stream=Stream.DEGRADATION).normal((6, 1, 8, 8))
    result = reconstruct(model, X, seed=5, steps=3)
    assert result.start is not None
    torch.testing.assert_close(result.start, start)
    images_ = fastdiff.sample(model, 6, 3, seed=5, cond=degraded, output="levels")
    assert (result.images != images_).float().mean() < 0.01
    parts = reconstruct(model, X, seed=5, steps=3, batch_size=4)
    assert torch.equal(parts.start, result.start)
    assert (parts.images != result.images).float().mean() < 0.02  # rounding may move a pixel by a level


@pytest.mark.parametrize(
    ("message", "model", "arguments"),
    [
        ("degradation must be a Degradation", small_vae(), {"degradation": "down-2"}),
        ("degradation must be None", small_restoration(), {"degradation": Downsample()}),
        ("factor must divide", small_vae(), {"degradation": Downsample(factor=3)}),
        ("batch_size must", small_vae(), {"batch_size": 0}), ("batch_size must", small_vae(), {"batch_size": "x"}),
        ("sampler must", small_diffusevae(), {"sampler": "runge"}), ("no steps", small_vae(), {"steps": 3}),
        ("x must", small_vae(), {"images": X.float()}), ("x must", small_vae(), {"images": X[..., :4]}),
        ("images must", small_vae(), {"images": X[:0]}), ("takes no labels", small_vae(), {"labels": 0}),
        ("cannot reconstruct", small(), {}), ("model must", None, {}),
    ],
)  # fmt: skip
def test_reconstructions_that_are_rejected(message, model, arguments):
    with pytest.raises(FastdiffError, match=message):
        reconstruct(model, **({"images": X} | arguments))
