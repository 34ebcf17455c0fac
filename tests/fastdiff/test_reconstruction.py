"""Reconstruction: PSNR by its definition, what every model begins with and gives, and what has none."""

import math

import pytest
import torch
from tiny import SMALL, filled, images, small, small_diffusevae, small_vae
from torch import nn

import fastdiff
from fastdiff.evaluation import evaluate_levels
from fastdiff.kernels import Noise, centre
from fastdiff.models import AddNoise, ConvVAEConfig, DDPMConfig, Downsample, Restorer, RestorerConfig
from fastdiff.reconstruction import psnr, reconstruct

X = images(6)


def restorer(degradation, formulation: int = 1) -> Restorer:
    torch.manual_seed(0)
    refiner = DDPMConfig((1, 8, 8), 17, steps=12, network=SMALL)
    return filled(Restorer(RestorerConfig((1, 8, 8), 17, refiner=refiner, degradation=degradation)))


class TwoUnits(nn.Module):
    """An encoder of which two of five means vary by more than a hundredth, and a third by less."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))  # says on which device the model is

    def forward(self, x):
        mean = torch.zeros(len(x), 5)
        mean[::2, :2], mean[::2, 2] = 0.3, 0.1  # half of the images: variances 0.0225 and 0.0025
        return mean, torch.zeros(len(x), 5)


def test_psnr_by_its_definition():
    """In units of levels: 20 log10(16) - 10 log10(mean squared difference)."""
    y = images(6, seed=2)
    for row, value in zip(range(6), psnr(X, y, 17), strict=True):
        squares = [(int(a) - int(b)) ** 2 for a, b in zip(X[row].flatten(), y[row].flatten(), strict=True)]
        assert abs(float(value) - 10 * math.log10(16**2 / (sum(squares) / 64))) < 1e-12
    torch.testing.assert_close(psnr(X, centre(y, 17), 17), psnr(X, y, 17), rtol=0, atol=1e-5)
    assert psnr(X, X, 17).isinf().all()
    with pytest.raises(ValueError, match=r"others lie in 0 .. 16; allowed: levels as torch.uint8, or as"):
        psnr(X, X.float(), 17)
    with pytest.raises(TypeError, match=r"images have dtype torch.float32; allowed: torch.uint8"):
        psnr(X.float(), y, 17)
    with pytest.raises(ValueError, match=r"\(6, 1, 8, 8\) and \(5, 1, 8, 8\), 17 levels; allowed: equal shapes"):
        psnr(X, y[:5], 17)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_vae_decodes_the_mean(depth):
    vae = small_vae(depth)
    result = reconstruct(vae, X)
    assert result.picture is None
    assert torch.equal(result.images, vae.decode(vae.encode(X)[0][0]))
    half = reconstruct(vae, X, Downsample(factor=4))
    assert half.picture is not None
    blocks = centre(X, 17).reshape(6, 1, 2, 4, 2, 4).mean((3, 5))
    torch.testing.assert_close(half.picture[:, :, ::4, ::4], blocks)
    seen = vae.nearest_level(half.picture)
    assert torch.equal(half.images, vae.decode(vae.encode(seen)[0][0]))
    with pytest.raises(ValueError, match="steps for a VAE, which refines nothing; allowed: none"):
        reconstruct(vae, X, steps=3)


def test_a_model_in_training_reconstructs_without_dropout():
    vae = small_vae(1, network=ConvVAEConfig(widths=(8, 12), max_groups=4, dropout=0.9))
    expected = reconstruct(vae, X).images
    assert torch.equal(reconstruct(vae.train(), X).images, expected)
    assert vae.training


@pytest.mark.parametrize("formulation", [1, 2])
def test_a_diffusevae_refines_its_vaes_picture_or_another(formulation):
    model = small_diffusevae(formulation)
    result = reconstruct(model, X, seed=3, steps=4)
    expected = model.picture(model.vae.encode(X)[0][0])
    assert result.picture is not None
    torch.testing.assert_close(result.picture, expected)
    again = fastdiff.sample(model, 6, steps=4, seed=3, given=result.picture, output="levels")
    assert torch.equal(result.images, again)
    noisy = reconstruct(model, X, AddNoise(deviation=0.3), seed=3, steps=4)
    assert noisy.picture is not None
    deviation = float((noisy.picture - centre(X, 17)).std())
    assert abs(deviation - 0.3) < 4 * 0.3 / math.sqrt(2 * 6 * 64)


@pytest.mark.parametrize("degradation", [Downsample(factor=2), AddNoise(deviation=0.5)])
def test_a_restorer_has_its_own_degradation(degradation):
    model = restorer(degradation)
    result = reconstruct(model, X, seed=5, steps=3)
    degraded = model.degrade(X, Noise(5))
    assert result.picture is not None
    assert torch.equal(result.picture, degradation.picture(degraded))
    assert torch.equal(result.images, fastdiff.sample(model, 6, steps=3, seed=5, given=degraded, output="levels"))
    with pytest.raises(ValueError, match="for a restorer; allowed: None, it has its own"):
        reconstruct(model, X, degradation)


def test_what_has_no_reconstruction():
    with pytest.raises(TypeError, match="degradation is 'down-2'; allowed: Downsample, AddNoise or None"):
        reconstruct(small_vae(1), X, "down-2")  # pyright: ignore[reportArgumentType]
    for size in (0, "x"):
        with pytest.raises(ValueError, match=f"batch_size is {size!r}; allowed: an integer >= 1"):
            reconstruct(small_vae(1), X, batch_size=size)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="unknown sampler 'euler'"):
        reconstruct(small_diffusevae(1), X, sampler="euler")
    with pytest.raises(TypeError, match="model is a VDM; allowed: a VAE, a DiffuseVAE or a restorer"):
        reconstruct(small(), X)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="0 images; allowed: at least 1"):
        reconstruct(small_vae(1), X[:0])
    with pytest.raises(ValueError, match=r"factor 3 for images \(1, 8, 8\); allowed: a divisor"):
        reconstruct(small_vae(1), X, Downsample(factor=3))


def test_levels_of_the_latents_are_evaluated():
    """The terms add up to the bound less the reconstruction; a unit is active where its mean varies."""
    vae = small_vae(3)
    found = evaluate_levels(vae, X)
    bound = vae.vlb(X, Noise(0, step=2**32 - 1))
    assert abs(sum(found["level_nats"]) - float((bound.prior + bound.diffusion).detach().mean())) < 1e-5
    vae.encoder = TwoUnits()  # pyright: ignore[reportAttributeAccessIssue]
    assert evaluate_levels(vae, X)["active_units"][0] == 2
    assert evaluate_levels(vae, X[:1])["active_units"] == [0, 0, 0]
    with pytest.raises(ValueError, match="evaluate: no images; allowed: at least 1"):
        evaluate_levels(vae, X[:0])
    vae = small_vae(3)
    assert evaluate_levels(small(), X) == {}
    refined = small_diffusevae(1, depth=2)
    assert len(evaluate_levels(refined, X)["level_nats"]) == 2
    big = images(600, seed=7)
    noise = Noise(0, step=2**32 - 1)
    walk = vae.walk(big, noise)
    for ours, theirs in zip(evaluate_levels(vae, big)["level_nats"], walk.levels, strict=True):
        assert abs(ours - float(theirs.detach().double().mean())) < 1e-4
