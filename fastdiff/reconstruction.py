"""What a model makes of images: a VAE's reconstruction, DiffuseVAE's refined one, super-resolution and denoising."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kernels import Noise, centre
from .models import HVAE, Degradation, DiffuseVAE, Refined, Restorer
from .models.base import evaluating
from .sample import sample

FAR = 8.0  # what no picture in [-1, 1] reaches, noise included; levels as floats, or 0 .. 255, do


@dataclass(frozen=True)
class Reconstruction:
    """What a model made of images, all on the CPU.

    picture: float32 [N, C, H, W] in about [-1, 1], what the model began with: the degraded images at full size, or the
    first stage's reconstructions; None where it began with the images themselves. images: uint8 levels [N, C, H, W].
    """

    picture: Tensor | None
    images: Tensor


def reconstruct(
    model: HVAE | Refined,
    images: Tensor,
    degradation: Degradation | None = None,
    seed: int = 0,
    batch_size: int = 64,
    **options: Any,
) -> Reconstruction:
    """Degrade images if asked to, and restore them with a model.

    A VAE encodes the images, or the degraded images at their nearest levels, and decodes the mean of q(z_1 | x). A
    DiffuseVAE refines that picture; with a degradation its second stage refines the degraded image instead, which it
    was not trained for. A restorer undoes the degradation that it was trained for.

    Args:
        model: a VAE, a DiffuseVAE or a restorer.
        images: uint8 levels [N, C, H, W], N >= 1.
        degradation: what to restore from, for a VAE or a DiffuseVAE; a restorer has its own.
        seed: of the degradation's noise and of the samples.
        batch_size: images per call of the networks.
        options: of `fastdiff.sample`, where the model refines: steps, sampler, eta, betas, ...

    Raises:
        TypeError, ValueError: another model, images or a degradation that do not fit, options that `sample` refuses.
    """
    _check(model, images, degradation, batch_size, options)
    if isinstance(model, HVAE):
        picture = None if degradation is None else _degraded(images, model.levels, degradation, seed)[1]
        seen = images if picture is None else model.nearest_level(picture)
        with evaluating(model):
            return Reconstruction(picture, torch.cat([model.decode(z).cpu() for z in _means(model, seen, batch_size)]))
    options = {"seed": seed, "batch_size": batch_size} | options
    sample(model, 0, given=torch.empty(0, *model.given_shape), **options)  # checks the options before the work
    if isinstance(model, DiffuseVAE) and degradation is None:
        with evaluating(model):
            given = picture = torch.cat([model.picture(z).cpu() for z in _means(model.vae, images, batch_size)])
    else:
        own = model.config.degradation if isinstance(model, Restorer) else degradation
        given, picture = _degraded(images, model.levels, own, seed)
        given = given if isinstance(model, Restorer) else picture
    return Reconstruction(picture, sample(model, len(images), given=given, output="levels", **options))


def _check(model: object, images: Tensor, degradation: object, batch_size: object, options: dict[str, Any]) -> None:
    if not isinstance(model, (HVAE, Refined)):
        raise TypeError(f"reconstruct: model is a {type(model).__name__}; allowed: a VAE, a DiffuseVAE or a restorer")
    model.check_images("reconstruct", images)
    if not len(images):
        raise ValueError("reconstruct: 0 images; allowed: at least 1")
    if degradation is not None and isinstance(model, Restorer):
        raise ValueError(f"reconstruct: degradation is {degradation} for a restorer; allowed: None, it has its own")
    if degradation is not None and not isinstance(degradation, Degradation):
        raise TypeError(f"reconstruct: degradation is {degradation!r}; allowed: Downsample, AddNoise or None")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"reconstruct: batch_size is {batch_size!r}; allowed: an integer >= 1")
    if isinstance(model, HVAE) and options:
        raise ValueError(f"reconstruct: {', '.join(options)} for a VAE, which refines nothing; allowed: none")


def _degraded(images: Tensor, levels: int, degradation: Any, seed: int) -> tuple[Tensor, Tensor]:
    """What is left of the images, and the same at full size."""
    degraded = degradation.apply(centre(images.cpu(), levels), Noise(seed))
    return degraded, degradation.picture(degraded)


@torch.no_grad()
def _means(vae: HVAE, images: Tensor, batch_size: int) -> list[Tensor]:
    """Means of q(z_1 | x), batch by batch, on the VAE's device."""
    with evaluating(vae):
        return [vae.encode(batch.to(vae.device))[0][0] for batch in images.split(batch_size)]


def psnr(images: Tensor, others: Tensor, levels: int) -> Tensor:
    """Peak signal-to-noise ratio in decibels, float64 [N]; infinite where nothing differs.

    10 log10(peak² / mean squared error), the peak being the distance from the lowest to the highest level.

    Args:
        images: uint8 levels [N, ...].
        others: the same, or floats as `fastdiff.kernels.centre` makes of levels, such as `Reconstruction.picture`.
        levels: number of levels.

    Raises:
        TypeError, ValueError: images that are no levels, other shapes, fewer than 2 levels.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"psnr: images have dtype {images.dtype}; allowed: torch.uint8")
    if images.shape != others.shape or images.dim() < 2 or levels < 2:
        raise ValueError(
            f"psnr: {tuple(images.shape)} and {tuple(others.shape)}, {levels} levels; "
            "allowed: equal shapes [N, ...], at least 2 levels"
        )
    if others.is_floating_point() and others.numel() and not float(others.abs().max()) <= FAR:
        raise ValueError(
            f"psnr: others lie in {float(others.min()):g} .. {float(others.max()):g}; "
            "allowed: levels as torch.uint8, or as `kernels.centre` brings them into [-1, 1]"
        )
    a = 2.0 * (images.double() + 0.5) / levels - 1.0
    b = 2.0 * (others.double() + 0.5) / levels - 1.0 if others.dtype == torch.uint8 else others.double()
    peak = 2.0 * (levels - 1) / levels
    return 10.0 * torch.log10(peak**2 / (a - b).square().flatten(1).mean(1))
