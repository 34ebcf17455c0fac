"""Restoration of images that are already degraded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion import Plan, Sampler, as_sampler
from ..kernels import InvalidTypeError, InvalidValueError
from ..models import Guidance, Model, Request
from .engine import Engine
from .images import check_count, draw_images
from .reconstruction import Reconstruction


@torch.no_grad()
def restore(
    model: Engine | Model | nn.Module | str | Path,
    images: Tensor,
    steps: int | None = None,
    sampler: str | Sampler | Callable[[Tensor], Plan] = "ancestral",
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    labels: object = None,
    guidance: float | Guidance | None = None,
) -> Reconstruction:
    """Restore degraded images with a model; `reconstruct` degrades images of its own instead.

    A restoration model draws from p(x | y), y being the images, of the size that its degradation gives. A DiffuseVAE
    draws from p(x | cond) with the images in the place of its first stage's, and a VAE encodes them and decodes the
    mean of q(z_1 | y); both see what they were not trained for.

    Args:
        model: a restoration model, a DiffuseVAE or a VAE; a checkpoint folder, or an `Engine`.
        images: degraded images, uint8 levels [N, C, H, W], N >= 1, of ``model.degraded_shape``: the small images of a
            model for super-resolution, and else images of the model's shape. A restoration model also takes floats, on
            the scale of [-1, 1], which noise may exceed.
        steps, sampler: of the diffusion, see `fastdiff.sample`. A VAE has none.
        seed: of the samples; image i is a function of (images[i], seed, i).
        batch_size: images per call of the networks, >= 1.
        progress: show a progress bar on stderr.
        labels, guidance: of a model with classes, see `fastdiff.sample`.

    Returns:
        The images that the model started from, at full size, and the restored ones.

    Raises:
        InvalidTypeError, InvalidValueError: another model, images that do not fit it, options that it does not accept;
            a `CheckpointError` for a model that cannot be loaded.
    """
    engine = model if isinstance(model, Engine) else Engine(model)
    check_count("restore", "batch_size", batch_size, 1)
    if not isinstance(images, Tensor):
        raise InvalidTypeError(f"restore: images must be a tensor [N, C, H, W], got a {type(images).__name__}")
    if not len(images.shape) or not len(images):
        raise InvalidValueError(f"restore: images must hold at least one image, got shape {tuple(images.shape)}")
    request = Request(len(images), seed, steps, as_sampler(sampler), labels, guidance, execution=engine.execution)
    engine.model.check_options(request)  # before the work
    start = engine.model.restoration_start(images, batch_size)
    request = replace(request, cond=start.cond, latents=start.latents)
    return Reconstruction(start.shown, draw_images(engine.model, request, batch_size, progress))
