"""From images to latents and back: the map of Gaussian data in closed form, the digits, models, bad arguments."""

import pytest
import torch
from gaussian import COV, MEAN, Gaussian, gammas, scales
from recorded_graph import RecordedGraphs
from tiny import images, small, small_ddpm, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff import Engine
from fastdiff.data import digits
from fastdiff.diffusion import Execution, UniPC
from fastdiff.kernels import FastdiffError
from fastdiff.sampling import from_latents, invert


def gaussian_map(x: torch.Tensor) -> torch.Tensor:
    """z_1 of the ODE for independent pixels N(MEAN, variances of COV), from z_0 = alpha_0 x, float64 like x."""
    mean, variances = (value.view(2, 2) for value in (MEAN, COV.diagonal()))
    (alpha_1, sigma_1), (alpha_0, sigma_0) = (scales(gamma) for gamma in gammas(1))
    ratio = (alpha_1**2 * variances + sigma_1**2) / (alpha_0**2 * variances + sigma_0**2)
    return alpha_1 * mean + (alpha_0 * x - alpha_0 * mean) * ratio.sqrt()


@pytest.mark.parametrize(
    ("sampler", "order", "limit", "round_trip"), [("heun", 2, 0.0041, 4.8e-5), ("ddim", 1, 0.093, 0.053)]
)
def test_the_map_of_gaussian_data(sampler, order, limit, round_trip):
    """Measured with 64 steps: 0.00405 (Heun) and 0.0926 (DDIM) from the closed form; there and back 4.79e-5, 0.0528."""
    model, x = Gaussian(COV.diagonal().diag()), images(50, 0, (1, 2, 2), 256)
    data = (2.0 * x.double() + 1.0) / 256 - 1.0
    z = {steps: invert(model, x, steps, sampler) for steps in (32, 64)}
    error = {steps: float((z[steps] - gaussian_map(data)).abs().max()) for steps in z}
    assert z[64].dtype == torch.float32
    assert error[64] < limit
    assert error[32] / error[64] == pytest.approx(2.0**order, rel=0.05)
    back = from_latents(model, z[64], 64, sampler, output="levels")
    assert float((back - data).abs().max()) < round_trip


def test_digits_come_back():
    """With 16 steps of Heun's method 2 of 128 pixels have another level. Other latents give other images."""
    x = digits().test_images[:2]
    z = invert("digits", x, 16)
    assert int((from_latents("digits", z, 16, output="levels") != x).sum()) <= 2
    assert float((from_latents("digits", 0.3 * z, 4, output="levels") != x).float().mean()) > 0.1


def smooth(build, **changes):
    """A model whose ODE a few steps solve: without Fourier features, and v as its prediction."""
    return build(prediction="v", **changes)


@pytest.mark.parametrize(
    "model",
    [smooth(small_ddpm), smooth(small_ddpm, num_classes=3), smooth(small, num_classes=3, fourier=None)],
    ids=["ddpm", "ddpm with classes", "vdm with classes"],
)
def test_images_come_back(model):
    """With the same labels and guidance; with others they do not."""
    x, options = images(3), {"labels": [0, 1, 2], "guidance": 1.5} if model.num_classes else {}
    z = invert(model, x, 12, **options)
    assert torch.equal(from_latents(model, z, 12, output="levels", **options), x)
    if options:
        other = from_latents(model, z, 12, output="levels", labels=[1, 2, 0], guidance=8.0)
        assert (other != x).any()


@pytest.mark.parametrize("formulation", [1, 2])
def test_a_conditional_model_needs_its_conditioning_images(formulation):
    model, x = smooth(small_diffusevae, formulation=formulation), images(3)
    cond = model.edit_cond(x, 3)
    z = invert(model, x, 12, cond=cond)
    assert torch.equal(from_latents(model, z, 12, cond=cond, output="levels"), x)
    for call, first in ((invert, x), (from_latents, z)):
        with pytest.raises(FastdiffError, match="cond must"):
            call(model, first, 4)


def test_a_replayed_loop_gives_the_latents_of_the_plain_one():
    """And batches of a fixed size the same ones, bit for bit."""
    model, x = small(), images(5)
    engine = Engine(model)
    engine.execution = Execution(graphs=RecordedGraphs())
    assert torch.equal(invert(engine, x[:4], 4, batch_size=2), invert(model, x[:4], 4, batch_size=2))
    engine = Engine(model, batch_invariant=2)
    assert torch.equal(invert(engine, x, 4), invert(engine, x, 4, batch_size=3))


X, Z = images(2), torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("images must have shape", {"images": X[0]}), ("images must be a torch.uint8", {"images": Z}),
        ("images must hold", {"images": X[:0]}), ("model must have a diffusion", {"model": small_vae()}),
        ("sampler must be ddim", {"sampler": "ancestral"}), ("sampler must be ddim", {"sampler": UniPC()}),
        ("steps must", {"steps": 0}), ("steps must", {"model": small_ddpm(), "steps": 1}),
        ("batch_size must", {"batch_size": 0}), ("labels", {"labels": 1}),
        ("cond must", {"model": small_restoration()}),
    ],
)  # fmt: skip
def test_inversions_that_are_rejected(message, changes):
    with pytest.raises(FastdiffError, match=message):
        invert(**({"model": small(), "images": X, "steps": 2} | changes))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("latents must be a floating-point", {"latents": X}), ("latents must have shape", {"latents": Z[:, :, :4]}),
        ("latents must have shape", {"latents": Z[:0]}), ("latents must be finite", {"latents": Z / 0}),
        ("latents must be a floating-point", {"latents": None}), ("output must", {"output": "png"}),
        ("model must have a diffusion", {"model": small_vae()}), ("seed", {"seed": -1}), ("steps must", {"steps": 0}),
    ],
)  # fmt: skip
def test_latents_that_are_rejected(message, changes):
    with pytest.raises(FastdiffError, match=message):
        from_latents(**({"model": small(), "latents": Z, "steps": 2} | changes))


def test_any_sampler_starts_from_latents():
    """From x_T of a sample, the images are the sample."""
    model = small()
    noise = fastdiff.Noise(7, stream=4).normal((3, 1, 8, 8))
    ours = from_latents(model, noise, 5, "ancestral", seed=7)
    assert torch.equal(ours, fastdiff.sample(model, 3, 5, seed=7))
