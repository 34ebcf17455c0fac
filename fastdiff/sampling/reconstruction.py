"""Reconstruction of images by a model: a VAE's, a DiffuseVAE's refined one, super-resolution and denoising."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion import Sampler, as_sampler
from ..kernels import InvalidTypeError, InvalidValueError
from ..models import Degradation, Guidance, Model, Request, check_model
from .images import check_count, draw_images


@dataclass(frozen=True)
class Reconstruction:
    """Reconstructed images, on the CPU.

    start: float32 [N, C, H, W] in about [-1, 1], what the model started from: the degraded images at full size, or the
    first stage's reconstructions; None if it started from the images. images: uint8 levels [N, C, H, W].
    """

    start: Tensor | None
    images: Tensor


@torch.no_grad()
def reconstruct(
    model: Model,
    images: Tensor,
    degradation: Degradation | None = None,
    steps: int | None = None,
    sampler: "str | Sampler" = "ancestral",
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    labels: object = None,
    guidance: float | Guidance | None = None,
) -> Reconstruction:
    """Degrade images if asked to, and reconstruct them with a model.

    A VAE encodes the images, or the degraded images at their nearest levels, and decodes the mean of q(z_1 | x). A
    DiffuseVAE refines that reconstruction; with a degradation its second stage refines the degraded images instead,
    which it was not trained for. A restoration model inverts the degradation that it was trained for.

    Args:
        model: a VAE, a DiffuseVAE or a restoration model.
        images: uint8 levels [N, C, H, W], N >= 1.
        degradation: for a VAE or a DiffuseVAE; a restoration model has its own.
        steps, sampler: of the diffusion, see `fastdiff.sample`. A VAE has none.
        seed: of the degradation and of the samples.
        batch_size: images per call of the networks, >= 1.
        progress: show a progress bar on stderr.
        labels, guidance: of a model with classes, see `fastdiff.sample`.

    Raises:
        InvalidTypeError, InvalidValueError: another model, images or a degradation that do not fit, options that the
            model does not accept.
    """
    model = check_model("reconstruct", model)
    model.check_images("reconstruct", images)
    if not len(images):
        raise InvalidValueError("reconstruct: images must hold at least one image, got 0")
    if degradation is not None and not isinstance(degradation, Degradation):
        raise InvalidTypeError(f"reconstruct: degradation must be a Degradation or None, got {degradation!r}")
    check_count("reconstruct", "batch_size", batch_size, 1)
    request = Request(len(images), seed, steps, as_sampler(sampler), labels, guidance)
    model.check_options(request)  # before the work
    start = model.reconstruction_start(images, degradation, seed, batch_size)
    request = replace(request, cond=start.cond, latents=start.latents)
    return Reconstruction(start.shown, draw_images(model, request, batch_size, progress))
