"""Editing of images by a diffusion model: variations of an image, and inpainting of what a mask covers."""

import math
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..diffusion import Plan, Sampler, as_sampler
from ..kernels import InvalidTypeError, InvalidValueError
from ..models import Edit, Guidance, Model, Request
from .engine import Engine, as_output, check_output
from .images import check_count, draw_images

if TYPE_CHECKING:
    from PIL import Image


@torch.no_grad()
def edit(
    model: Engine | Model | nn.Module | str | Path,
    images: Tensor,
    strength: float = 0.5,
    steps: int | None = None,
    sampler: str | Sampler | Callable[[Tensor], Plan] = "ancestral",
    seed: int = 0,
    labels: object = None,
    guidance: float | Guidance | None = None,
    cond: Tensor | None = None,
    batch_size: int = 64,
    output: str = "uint8",
    progress: bool = False,
) -> "Tensor | list[Image.Image]":
    """Vary images: add noise up to the time t = ``strength``, and denoise them from there (SDEdit, Meng et al. 2022).

        z_t = alpha_t x + sigma_t eps,   t = strength,   then the sampler from t to 0.

    At a small strength the images stay close to the given ones, at strength 1 little more than chance is left of them.
    If the images are the model's data and its denoiser is exact, z_t has the model's marginal distribution at t, and
    the results are samples of the model at any strength. For other images (strokes, another style) the strength weighs
    how close the result is to the image against how likely it is under the model.

    Args:
        model: a diffusion model, a checkpoint folder, the name of an embedded model, or an `Engine`.
        images: uint8 levels [N, C, H, W] of the model's shape, N >= 1.
        strength: time in (0, 1] that the noise is added up to.
        steps: steps of the sampler over [0, strength], 250 by default. Its spacing is that of the whole interval,
            rescaled.
        sampler, seed, labels, guidance, batch_size, output, progress: as in `fastdiff.sample`. The sampler's
            temperature scales the noise that is added.
        cond: conditioning images [N, ...] of a restoration model; of a DiffuseVAE too, whose first stage's
            reconstructions of the images are taken by default.

    Returns:
        N images, as ``output`` says. Image i is a function of (images[i], seed, i).

    Raises:
        InvalidTypeError, InvalidValueError: a model without a diffusion, images that do not fit it, a strength outside
            of (0, 1], options that do not fit; a `CheckpointError` for a model that cannot be loaded.
    """
    engine = diffusion_engine("edit", model)
    check_editing("edit", engine.model, images, batch_size, output, strength)
    if cond is None:
        cond = engine.model.edit_cond(images, batch_size)
    check_conditional("edit", engine.model, cond)
    request = Request(
        len(images), seed, steps, as_sampler(sampler), labels, guidance, cond, edit=Edit(images.cpu(), float(strength)),
        execution=engine.execution,
    )  # fmt: skip
    return as_output(draw_images(engine.model, request, batch_size, progress), engine.model, output)


@torch.no_grad()
def inpaint(
    model: Engine | Model | nn.Module | str | Path,
    images: Tensor,
    mask: Tensor,
    steps: int | None = None,
    sampler: str | Sampler | Callable[[Tensor], Plan] = "ancestral",
    resample: int = 1,
    strength: float = 1.0,
    seed: int = 0,
    labels: object = None,
    guidance: float | Guidance | None = None,
    cond: Tensor | None = None,
    batch_size: int = 64,
    output: str = "uint8",
    progress: bool = False,
) -> "Tensor | list[Image.Image]":
    """Fill in the pixels of images that a mask covers; the other pixels are kept exactly.

    The replacement method: the known pixels of the latent follow the forward process of the image, and the model
    denoises the others beside them (Song et al. 2021, Score-based generative modeling, appendix I.2; Ho et al. 2022,
    Video diffusion models, section 3.1). The estimate of the known pixels is the image, x_hat = x, so a step of
    ancestral sampling draws them from q(z_s | z_t, x), and any other sampler applies as it is.

    It draws from p(x_unknown | x_known) exactly where the pixels are independent, and approximately else: the step to
    z_s is made without knowledge of the z_s of the known pixels, whose information arrives one step late.
    ``resample`` makes every step that many times, with a step of the forward process in between (Lugmayr et al. 2022,
    RePaint; `fastdiff.diffusion.editing_plans.resampled`), which brings the unknown pixels into agreement with the
    known ones, at that many calls of the network.

    Args:
        model: a diffusion model, a checkpoint folder, the name of an embedded model, or an `Engine`.
        images: uint8 levels [N, C, H, W] of the model's shape, N >= 1.
        mask: True or a number other than 0 where pixels are to be filled in; bool or uint8, of shape [H, W],
            [1 or C, H, W] or [1 or N, 1 or C, H, W]. Every image must have pixels of both kinds.
        steps: steps of the sampler, 250 by default; ``resample`` times as many calls of the network.
        sampler, seed, labels, guidance, batch_size, output, progress: as in `fastdiff.sample`. With ``resample`` > 1
            the sampler must be ancestral (without learned variances), ddim, euler or euler-a.
        resample: number of times that each step is made, >= 1.
        strength: time in (0, 1] at which the sampler starts; at 1 what lies below the mask does not matter,
            below 1 it is varied, as by `edit`.
        cond: conditioning images [N, ...], for a conditional model, which needs them here.

    Returns:
        N images, as ``output`` says; outside of the mask they equal ``images``.

    Raises:
        InvalidTypeError, InvalidValueError: a model without a diffusion, images or a mask that do not fit it, options
            that do not fit; a `CheckpointError` for a model that cannot be loaded.
    """
    engine = diffusion_engine("inpaint", model)
    check_editing("inpaint", engine.model, images, batch_size, output, strength)
    images, unknown = images.cpu(), mask_of(mask, tuple(images.shape))
    check_conditional("inpaint", engine.model, cond)
    request = Request(
        len(images), seed, steps, as_sampler(sampler), labels, guidance, cond,
        edit=Edit(images, float(strength), unknown, check_count("inpaint", "resample", resample, 1)),
        execution=engine.execution,
    )  # fmt: skip
    filled = draw_images(engine.model, request, batch_size, progress)
    return as_output(torch.where(unknown, filled, images), engine.model, output)


def mask_of(mask: object, shape: tuple[int, ...]) -> Tensor:
    """Return a mask for images of shape (N, C, H, W) as bool [N, C, H, W], True where pixels are to be filled in.

    Raises:
        InvalidTypeError, InvalidValueError: another dtype or shape, or an image without pixels of both kinds.
    """
    number, channels, height, width = shape
    wanted = f"[{height}, {width}], [1 or {channels}, {height}, {width}] or [1 or {number}, 1 or {channels}, "
    if not isinstance(mask, Tensor) or mask.dtype not in (torch.bool, torch.uint8):
        got = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise InvalidTypeError(f"inpaint: mask must be a torch.bool or torch.uint8 tensor, got {got}")
    sizes = [1, 1, *mask.shape][-4:]
    known = mask.dim() in (2, 3, 4) and sizes[0] in (1, number) and sizes[1] in (1, channels)
    if not known or sizes[2:] != [height, width]:
        raise InvalidValueError(f"inpaint: mask must have shape {wanted}{height}, {width}], got {tuple(mask.shape)}")
    unknown = (mask.cpu() != 0).reshape(sizes)
    for kind, found in (("to fill in (True)", unknown), ("to keep (False)", ~unknown)):
        empty = (~found.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise InvalidValueError(
                f"inpaint: mask must have at least one pixel {kind} in every image, got none in image {empty[0]}"
            )
    return unknown.expand(shape)


def diffusion_engine(where: str, model: Engine | Model | nn.Module | str | Path) -> Engine:
    """Return an engine of a model with a diffusion.

    Raises:
        InvalidTypeError: any other model.
    """
    engine = model if isinstance(model, Engine) else Engine(model)
    if "edit" not in engine.model.sampling_options:
        raise InvalidTypeError(
            f"{where}: model must have a diffusion (a VDM, a DDPM, a DiffuseVAE or a restoration model), got a "
            f"{engine.model.kind} model"
        )
    return engine


def check_editing(
    where: str, model: Model, images: object, batch_size: int, output: str = "uint8", strength: float = 1.0
) -> None:
    """Check the arguments that the functions of this module share.

    Raises:
        InvalidTypeError, InvalidValueError: one that is not allowed.
    """
    model.check_images(where, images, "images")
    assert isinstance(images, Tensor)
    if not len(images):
        raise InvalidValueError(f"{where}: images must hold at least one image, got 0")
    check_count(where, "batch_size", batch_size, 1)
    check_output(where, output)
    number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not number or not math.isfinite(strength) or not 0.0 < strength <= 1.0:
        raise InvalidValueError(f"{where}: strength must be a number in (0, 1], got {strength!r}")


def check_conditional(where: str, model: Model, cond: object) -> None:
    """Raise an InvalidValueError if a conditional model has no conditioning images."""
    if cond is None and "cond" in model.sampling_options:
        raise InvalidValueError(
            f"{where}: cond must be the conditioning images of a {model.kind} model, as in fastdiff.sample, got None"
        )
