"""Walks through the latents: what is held stays, what varies does, and the ends are the ends."""

import pytest
import torch
from tiny import SMALL, images, small, small_diffusevae, small_vae

import fastdiff
from fastdiff.datasets import digits
from fastdiff.interpolation import between, class_direction, noises, render, strips
from fastdiff.kernels import Noise
from fastdiff.models import DDPMConfig, Downsample, Restorer, RestorerConfig


@pytest.mark.parametrize("formulation", [1, 2])
def test_equal_latents_share_everything_else(formulation):
    """Also with an ancestral sampler: the steps' noise is one for all images."""
    model = small_diffusevae(formulation)
    z = torch.randn(1, 5).expand(4, 5)
    for sampler in ("ddim", "ancestral"):
        pictures = render(model, z, steps=5, sampler=sampler)
        assert (pictures != pictures[:1]).float().mean() < 0.01  # rounding may move a pixel by a level
    varied = render(model, z, noises(model, 0, (0, 1, 2, 3)), steps=5)
    assert (varied != varied[:1]).float().mean() > 0.2


def test_a_rendered_noise_is_the_sample_of_that_index():
    """x_T of image i of a request, through the deterministic sampler, is that image."""
    model = small(learn_endpoints=False)
    whole = fastdiff.sample(model, 4, steps=6, sampler="ddim", seed=9, output="levels")
    ours = render(model, initial=noises(model, 9, (0, 3)), steps=6)
    assert (ours != whole[[0, 3]]).float().mean() < 0.01


def test_points_between():
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    line = between(a, b, 5)
    torch.testing.assert_close(line[0], a)
    torch.testing.assert_close(line[4], b)
    torch.testing.assert_close(line[2], (a + b) / 2)
    arc = between(a, 2 * b, 9, spherical=True)
    torch.testing.assert_close(arc[0], a)
    torch.testing.assert_close(arc[8], 2 * b)
    same_norm = between(a / a.norm(), b / b.norm(), 7, spherical=True)
    torch.testing.assert_close(same_norm.flatten(1).norm(dim=1), torch.ones(7))
    torch.testing.assert_close(between(a, a, 3, spherical=True)[1], a)
    with pytest.raises(ValueError, match=r"\(3, 4\) to \(4,\) in 3; allowed: equal shapes"):
        between(a, b[0], 3)
    with pytest.raises(ValueError, match="in 1; allowed: equal shapes, at least 2"):
        between(a, b, 1)


def test_a_class_direction_leads_from_mean_to_mean():
    model, x = small_vae(1), images(20)
    labels = torch.arange(20) % 2
    start, step = class_direction(model, x, labels, 0, 1)
    mean = model.encode(x)[0][0].detach()
    torch.testing.assert_close(start, mean[labels == 0].mean(0))
    torch.testing.assert_close(start + step, mean[labels == 1].mean(0))
    with pytest.raises(ValueError, match=r"no image of target class 5; allowed: \[0, 1\]"):
        class_direction(model, x, labels, 0, 5)


def test_a_vae_renders_its_latents():
    model = small_vae(1)
    z = between(torch.zeros(5), torch.ones(5), 4)
    assert torch.equal(render(model, z), model.decode(z))


def test_what_does_not_fit():
    refiner, z = small_diffusevae(1), torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"z None, initial None for a diffusevae; allowed: z"):
        render(refiner)
    with pytest.raises(ValueError, match=r"z \(2, 5\), initial None for a vdm; allowed: x_T alone"):
        render(small(), z)
    with pytest.raises(ValueError, match=r"initial \(2, 1, 8, 8\) for a VAE, which has no x_T"):
        render(small_vae(1), z, torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"z \(2, 4\); allowed: \[K, 5\]"):
        render(refiner, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"initial \(3, 1, 8, 8\); allowed: \(2, 1, 8, 8\)"):
        render(refiner, z, Noise(0).normal((3, 1, 8, 8)))


@pytest.mark.parametrize(
    ("model", "vary"),
    [
        (small_vae(1), "latent"), (small_vae(2), "class"), (small(), "noise"),
        (small_diffusevae(1), "latent"), (small_diffusevae(2), "noise"), (small_diffusevae(2), "class"),
    ],
)  # fmt: skip
def test_strips_of_every_model(model, vary):
    pictures = strips(model, vary, rows=2, count=3, steps=3, data=digits())
    assert pictures.shape == (6, 1, 8, 8)
    assert pictures.dtype == torch.uint8
    assert torch.equal(pictures, strips(model, vary, rows=2, count=3, steps=3, data=digits()))


def test_strips_that_are_none():
    wrong = {
        "vary is 'colour' for a DiffuseVAE; allowed: latent, noise, class": (small_diffusevae(1), {"vary": "colour"}),
        "vary is 'noise' for a HVAE; allowed: latent, class": (small_vae(1), {"vary": "noise"}),
        "vary is 'latent' for a VDM; allowed: noise": (small(), {"vary": "latent"}),
        "rows is 0; allowed: an integer >= 1": (small(), {"vary": "noise", "rows": 0}),
        "count is 1; allowed: an integer >= 2": (small(), {"vary": "noise", "count": 1}),
        r"without labelled data; allowed: data with labels": (small_vae(1), {"vary": "class"}),
    }
    for message, (model, change) in wrong.items():
        with pytest.raises(ValueError, match=message):
            strips(model, **({"rows": 2, "count": 3, "steps": 2} | change))


def test_latents_that_are_not_finite():
    with pytest.raises(ValueError, match="latents hold values that are not finite; allowed: finite ones"):
        render(small_vae(1), torch.full((1, 5), float("nan")))


def test_class_directions_of_a_diffusevae_are_those_of_its_vae():
    model, data = small_diffusevae(1), digits()
    images, labels = data.train_images[:50], torch.arange(50) % 2
    ours, theirs = (class_direction(each, images, labels, 0, 1) for each in (model, model.vae))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    with pytest.raises(ValueError, match=r"labels have shape \(9,\); allowed: \(50,\)"):
        class_direction(model, images, labels[:9], 0, 1)


def test_a_restorer_has_nothing_to_walk_through():
    refiner = DDPMConfig((1, 8, 8), 17, steps=12, network=SMALL)
    model = Restorer(RestorerConfig((1, 8, 8), 17, refiner=refiner, degradation=Downsample(factor=2)))
    for walk in (lambda: strips(model, "latent"), lambda: render(model, torch.zeros(1, 5))):  # pyright: ignore
        with pytest.raises(TypeError, match="model is a Restorer; allowed: a VAE, a DiffuseVAE or a diffusion model"):
            walk()
