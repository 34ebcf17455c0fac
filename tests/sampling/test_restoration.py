"""Restoration of images that are already degraded."""

import pytest
import torch
from tiny import images, small, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff import Engine
from fastdiff.kernels import FastdiffError
from fastdiff.models import AddNoise, Downsample
from fastdiff.sampling import reconstruct, restore


def unit(x: torch.Tensor) -> torch.Tensor:
    return (2.0 * x + 1.0) / 17.0 - 1.0


@pytest.mark.parametrize(("degradation", "size"), [(Downsample(factor=2), 4), (AddNoise(deviation=0.3), 8)])
def test_a_restoration_model_draws_from_the_images(degradation, size):
    """As `fastdiff.sample` with ``cond``; the small images are shown at full size, by repeated pixels."""
    model, x = small_restoration(degradation), images(3, shape=(1, size, size))
    assert model.degraded_shape == (1, size, size)
    result = restore(model, x, 4, seed=2, batch_size=2)
    assert torch.equal(result.images, fastdiff.sample(model, 3, 4, seed=2, cond=x, output="levels", batch_size=2))
    assert result.start is not None
    full = x.repeat_interleave(8 // size, 2).repeat_interleave(8 // size, 3)
    torch.testing.assert_close(result.start, unit(full))
    again = restore(Engine(model), unit(x), 4, "ancestral", 2, 2)  # floats on the scale of [-1, 1]
    assert float((again.images != result.images).float().mean()) < 0.02


def test_labels_and_guidance():
    """Those of `fastdiff.sample`; labels change the images, and a model without classes takes none."""
    model, x = small_restoration(AddNoise(deviation=0.3), num_classes=3), images(3)
    asked = {"labels": [2, 0, 1], "guidance": 2.0}
    expected = fastdiff.sample(model, 3, 4, seed=2, cond=x, output="levels", **asked)
    assert torch.equal(restore(model, x, 4, seed=2, **asked).images, expected)
    assert not torch.equal(restore(model, x, 4, seed=2).images, expected)
    degraded = model.config.degradation.of_levels(x, 17, 5)
    again = reconstruct(model, x, steps=4, seed=5, **asked)
    assert torch.equal(again.images, restore(model, degraded, 4, seed=5, **asked).images)


def test_its_own_degradation_is_what_reconstruct_starts_from():
    model, x = small_restoration(AddNoise(deviation=0.3)), images(3)
    degraded = model.config.degradation.of_levels(x, 17, 5)
    assert torch.equal(restore(model, degraded, 4, seed=5).images, reconstruct(model, x, steps=4, seed=5).images)


def test_autoencoders_restore_what_they_were_not_trained_for():
    x = images(3)
    vae = small_vae()
    assert torch.equal(restore(vae, x).images, vae.decode(vae.encode(x)[0][0]))
    model = small_diffusevae()
    ours = restore(model, x, 4, seed=1)
    assert torch.equal(ours.images, fastdiff.sample(model, 3, 4, seed=1, cond=x, output="levels"))
    assert ours.start is not None
    torch.testing.assert_close(ours.start, unit(x))


X = images(2)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("model must be a restoration", {"model": small()}), ("images must be degraded", {"images": X}),
        ("images must be degraded", {"images": X[0, 0]}), ("images must be a tensor", {"images": None}),
        ("images must hold", {"images": X[:0]}), ("cond must", {"images": X[:, :, :4, :4].long()}),
        ("images must have shape", {"model": small_vae(), "images": X[:, :, :4], "steps": None}),
        ("no steps", {"model": small_vae(), "images": X}), ("batch_size must", {"batch_size": 0}),
        ("images must be a torch.uint8", {"model": small_diffusevae(), "images": X.float()}),
        ("steps must", {"images": X[:, :, :4, :4], "steps": 0}), ("without classes takes no labels", {"labels": 1}),
    ],
)  # fmt: skip
def test_restorations_that_are_rejected(message, changes):
    with pytest.raises(FastdiffError, match=message):
        restore(**({"model": small_restoration(), "images": X, "steps": 2} | changes))
