"""Interpolation between latents: what is fixed stays, what varies does, and the ends are samples of a request."""

import pytest
import torch
from tiny import images, small, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff.data import digits
from fastdiff.diffusion import Ancestral
from fastdiff.kernels import FastdiffError, Noise
from fastdiff.sampling import interpolate
from fastdiff.sampling.interpolation import between, class_direction, noises, render

ROUNDING = 0.02  # part of the pixels that the rounding of a network may move by a level


def differing(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a != b).float().mean())


# ------------------------------------------------------------------------------------------------ points


def test_points_between():
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    line = between(a, b, 5)
    for k in range(5):
        torch.testing.assert_close(line[k], a + 0.25 * k * (b - a))
    arc = between(a, 2 * b, 9, arc=True)
    torch.testing.assert_close(arc[0], a)
    torch.testing.assert_close(arc[8], 2 * b)
    on_sphere = between(a / a.norm(), b / b.norm(), 7, arc=True)
    torch.testing.assert_close(on_sphere.flatten(1).norm(dim=1), torch.ones(7))
    angles = torch.acos((on_sphere[1:] * on_sphere[:-1]).flatten(1).sum(1))
    torch.testing.assert_close(angles, angles.mean().expand(6), rtol=1e-3, atol=0)  # evenly spaced
    torch.testing.assert_close(between(a, a, 3, arc=True)[1], a)
    for other, count in ((b[0], 3), (b, 1)):
        with pytest.raises(FastdiffError, match="between"):
            between(a, other, count)


def test_a_class_direction_leads_from_mean_to_mean():
    """Of a DiffuseVAE it is that of its first stage."""
    refined, x = small_diffusevae(), images(20)
    labels = torch.arange(20) % 2
    with torch.no_grad():
        mean = refined.vae.encode(x)[0][0]
    for model in (refined, refined.vae):
        start, step = class_direction(model, x, labels, 0, 1)
        torch.testing.assert_close(start, mean[labels == 0].mean(0))
        torch.testing.assert_close(start + step, mean[labels == 1].mean(0))
    with pytest.raises(FastdiffError, match="target must be a class of the data"):
        class_direction(refined, x, labels, 0, 5)
    with pytest.raises(FastdiffError, match="labels must have shape"):
        class_direction(refined, x, labels[:9], 0, 1)
    with pytest.raises(FastdiffError, match="no latents z"):
        class_direction(small(), x, labels, 0, 1)


# ------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("formulation", [1, 2])
def test_equal_latents_share_everything_else(formulation):
    """Also with an ancestral sampler: the step noise is one for all images."""
    model = small_diffusevae(formulation)
    z = torch.randn(1, 5).expand(4, 5)
    for sampler in ("ddim", "ancestral"):
        result = render(model, z, steps=5, sampler=sampler)
        assert differing(result, result[:1]) < ROUNDING
    varied = render(model, z, torch.stack(noises(model, 0, (0, 1, 2, 3))), steps=5)
    assert differing(varied, varied[:1]) > 0.2


def test_rows_of_classes():
    """The ends of a row are the samples of its class with the same x_T; one class for all rows, or one for each."""
    model = small("categorical", fourier=None, num_classes=3, class_names=("a", "b", "c"))
    rows = interpolate(model, "noise", 2, 3, seed=4, steps=4, labels=["c", "a"], guidance=2.0).unflatten(0, (2, 3))
    for row, label in enumerate((2, 0)):
        expected = fastdiff.sample(model, 4, 4, "ddim", 4, label, 2.0, output="levels")[2 * row : 2 * row + 2]
        assert differing(rows[row, [0, 2]], expected) < ROUNDING
        same = interpolate(model, "noise", 2, 3, seed=4, steps=4, labels=label, guidance=2.0).unflatten(0, (2, 3))
        assert differing(same[row], rows[row]) < ROUNDING
        assert differing(same[1 - row], rows[1 - row]) > 2 * ROUNDING


@pytest.mark.parametrize("sampler", ["ddim", Ancestral()])
def test_shared_noise_is_that_of_the_first_sample(sampler):
    """Row k with x_T of image k and the step noise of image 0: by hand for k = 1, and image 0 of the request itself."""
    model = small("categorical", fourier=None)
    x_T = torch.stack(noises(model, 9, (0, 1)))
    result = render(model, initial=x_T, seed=9, steps=4, sampler=sampler)
    whole = fastdiff.sample(model, 2, 4, sampler, seed=9, output="levels")
    assert differing(result[0], whole[0]) < ROUNDING
    if sampler == "ddim":
        assert differing(result[1], whole[1]) < ROUNDING
    else:
        assert differing(result[1], whole[1]) > 0.2
        alone = render(model, initial=x_T[1:], seed=9, steps=4, sampler=sampler)
        assert differing(result[1], alone[0]) < ROUNDING


def test_the_ends_of_a_row_of_noise_are_samples():
    """x_T goes from that of image 2 r to that of image 2 r + 1 of the seed."""
    model = small("categorical", fourier=None)
    result = interpolate(model, "noise", rows=2, count=3, seed=9, steps=5)
    whole = fastdiff.sample(model, 4, 5, "ddim", seed=9, output="levels")
    assert differing(result[[0, 2, 3, 5]], whole) < ROUNDING
    assert result.float().std() > 1


@pytest.mark.parametrize("depth", [1, 2])
def test_the_ends_of_a_row_of_latents_are_samples(depth):
    """z goes from that of image 2 r to that of image 2 r + 1 of the seed, and the middle is the middle."""
    model = small_vae(depth)
    result = interpolate(model, "latent", rows=2, count=3, seed=9)
    whole = fastdiff.sample(model, 4, seed=9, output="levels")
    assert differing(result[[0, 2, 3, 5]], whole) < ROUNDING
    z = torch.cat([model.prior_latents(1, Noise(9, first_sample=k)) for k in range(4)])
    assert differing(result[[1, 4]], model.decode((z[::2] + z[1::2]) / 2)) < ROUNDING


@pytest.mark.parametrize("build", [small_vae, small_diffusevae])
def test_rows_of_classes_start_and_end_at_their_means(build):
    model, data = build(depth=1), digits()
    result = interpolate(model, "class", rows=2, count=3, steps=None if build is small_vae else 3, data=data)
    assert data.train_labels is not None
    with torch.no_grad():
        means = model.autoencoder.encode(data.train_images)[0][0]
    z = torch.stack([means[data.train_labels == k].mean(0) for k in (0, 1, 1, 2)])
    expected = render(model, z, steps=None if build is small_vae else 3)
    assert differing(result[[0, 2, 3, 5]], expected) < ROUNDING


def test_a_vae_renders_its_latents():
    model = small_vae(1)
    z = between(torch.zeros(5), torch.ones(5), 4)
    assert torch.equal(render(model, z), model.decode(z))


@pytest.mark.parametrize(
    ("model", "vary"),
    [(small(), "noise"), (small_diffusevae(1), "latent"), (small_diffusevae(2), "noise"), (small_vae(2), "latent")],
)
def test_rows_repeat(model, vary):
    first, again = (interpolate(model, vary, rows=2, count=3, steps=None if model.kind == "hvae" else 3) for _ in "ab")
    assert first.shape == (6, 1, 8, 8)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)


# ------------------------------------------------------------------------------------------------ rejections


@pytest.mark.parametrize(
    ("name", "model", "options"),
    [
        ("vary", small_diffusevae(), {"vary": "color"}), ("vary", small_vae(), {"vary": "noise"}),
        ("vary", small(), {"vary": "latent"}), ("rows", small(), {"rows": 0}), ("count", small(), {"count": 1}),
        ("data", small_vae(), {"vary": "class"}), ("model", None, {}), ("no steps", small_vae(), {"vary": "latent"}),
        ("no labels", small(), {"labels": 1}),
        ("no labels", small_vae(), {"vary": "latent", "steps": None, "labels": 1}),
        ("labels must be .* n = 2", small(num_classes=3), {"rows": 2, "labels": [0, 1, 2]}),
        ("guidance must be None without labels", small(num_classes=3), {"guidance": 2.0}),
    ],
)  # fmt: skip
def test_interpolations_that_are_rejected(name, model, options):
    with pytest.raises(FastdiffError, match=name):
        interpolate(model, **({"vary": "noise", "rows": 2, "count": 3, "steps": 2} | options))


Z, X_T = torch.zeros(2, 5), Noise(0).normal((2, 1, 8, 8))


@pytest.mark.parametrize(
    ("name", "model", "latents"),
    [
        ("z must", small_diffusevae(), (None, None)), ("z must", small(), (Z, None)),
        ("z must", small_diffusevae(), (torch.zeros(2, 4), None)),
        ("z must", small_vae(), (torch.full((1, 5), torch.nan), None)),
        ("initial", small(), (None, None)), ("initial", small_vae(), (Z, X_T)),
        ("initial", small_diffusevae(), (Z, X_T[:1])), ("initial", small(), (None, X_T * torch.inf)),
        ("z must", small_restoration(), (Z, None)), ("cond must", small_restoration(), (None, X_T)),
    ],
)  # fmt: skip
def test_latents_that_do_not_fit(name, model, latents):
    with pytest.raises(FastdiffError, match=name):
        render(model, *latents)
