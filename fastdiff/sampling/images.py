"""The implementation of `fastdiff.sample`, and the one way from a request to images that all callers take."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoints import load
from ..diffusion import Callback, Plan, Sampler, as_sampler
from ..io.pictures import to_pil, to_uint8
from ..io.processes import check_device, count, is_first, rank
from ..io.shares import divide_work
from ..kernels import FastdiffError, InvalidTypeError, InvalidValueError, Noise
from ..models import Draw, Latents, Model, Request, check_model, evaluating
from .mixtures import load_mixture

if TYPE_CHECKING:
    from PIL import Image

OUTPUTS = ("uint8", "levels", "float", "pil")


class OutOfMemoryError(FastdiffError, RuntimeError):
    """One image does not fit into the memory of the device."""


def sample_images(
    model: Model | str | Path,
    n: int,
    steps: int | None,
    sampler: str | Sampler | Callable[[Tensor], Plan],
    seed: int,
    labels: object,
    guidance: float | None,
    cond: Tensor | None,
    latents: Latents | None,
    batch_size: int,
    output: str,
    device: torch.device | str | None,
    progress: bool,
    callback: Callback | None,
    sharded: bool = False,
) -> "Tensor | list[Image.Image]":
    """Draw images from a model; see `fastdiff.sample`, and `draw_images` for ``sharded``."""
    n, batch_size = check_count("sample", "n", n, 0), check_count("sample", "batch_size", batch_size, 1)
    if output not in OUTPUTS:
        raise InvalidValueError(f"sample: output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    if callback is not None and not callable(callback):
        raise InvalidTypeError(f"sample: callback must be a callable (step, nfe, z_t, x_hat) or None, got {callback!r}")
    Noise(seed)  # checks it
    model = check_model("sample", load(model) if isinstance(model, (str, Path)) else model)
    model = model if device is None else model.to(check_device(device))
    request = Request(n, seed, steps, as_sampler(sampler), labels, guidance, cond, latents)
    images = draw_images(model, request, batch_size, progress, callback, sharded)
    if output == "levels":
        return images
    if output == "float":
        return images.float() * (2.0 / (model.levels - 1)) - 1.0
    images = to_uint8(images, model.levels)
    return images if output == "uint8" else [to_pil(image) for image in images]


def draw_images(
    model: Model,
    request: Request,
    batch_size: int = 64,
    progress: bool = False,
    callback: Callback | None = None,
    sharded: bool = False,
) -> Tensor:
    """Draw the images of a request, batch by batch, uint8 levels [n, C, H, W] on the CPU.

    With ``sharded`` the processes of the run (`fastdiff.io.processes`) divide the batches among themselves, and each
    returns all images, the same as a single process. All of them must make the same call. ``callback`` is called in the
    process that draws the batch; the progress bar is the first process's, and counts its own batches.

    Raises:
        FastdiffError: as `fastdiff.sample`; a `ProcessError` if another process has failed or ended.
    """
    request = _with_mixture(model, request)
    draw = model.prepare(request)
    firsts = range(0, request.n, batch_size)
    shares, own = (count(), rank()) if sharded else (1, 0)
    total = len(firsts[own::shares]) * draw.rows
    shown = progress and (not sharded or is_first())
    images = [torch.empty(0, *model.shape, dtype=torch.uint8)]
    with (
        evaluating(model),
        tqdm(total=total, unit="step", desc=f"sampling {request.n} images", disable=not shown) as bar,
    ):

        def batch(index: int) -> Tensor:
            first, reporting = firsts[index], _reporting(bar, callback) if shown else callback
            drawn = _draw(draw, first, min(batch_size, request.n - first), reporting)
            bar.update((index // shares + 1) * draw.rows - bar.n)  # a VAE calls no callback
            return drawn

        images.extend(divide_work(len(firsts), batch, sharded))
    return torch.cat(images)


def _draw(draw: Draw, first: int, count: int, callback: Callback | None) -> Tensor:
    """Draw images, on the CPU: in halves where the memory of the device is too small. They are the same ones."""
    try:
        return draw.batch(first, count, callback).cpu().contiguous()
    except torch.OutOfMemoryError as error:
        if count == 1:
            raise OutOfMemoryError(f"the memory of the device is too small for one image: {error}") from error
    # outside of the except clause, whose exception holds the tensors of the attempt
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = count // 2
    return torch.cat([_draw(draw, first, half, callback), _draw(draw, first + half, count - half, callback)])


def _reporting(bar: tqdm, callback: Callback | None) -> Callback:
    """Return a callback that advances a progress bar, and then calls ``callback``."""

    def report(step: int, nfe: int, z_t: Tensor, x_hat: Tensor) -> None:
        bar.update()
        if callback is not None:
            callback(step, nfe, z_t, x_hat)

    return report


def _with_mixture(model: Model, request: Request) -> Request:
    """Return the request with its mixture loaded, and checked against the model's latents."""
    latents = request.latents
    if latents is not None and not isinstance(latents, Latents):
        raise InvalidTypeError(f"sample: latents must be a fastdiff.Latents or None, got {latents!r}")
    if latents is None or latents.mixture is None or "latents" not in model.sampling_options:
        return request
    mixture = load_mixture(latents.mixture) if isinstance(latents.mixture, (str, Path)) else latents.mixture
    mixture.check_fits(model.autoencoder)
    return replace(request, latents=replace(latents, mixture=mixture))


def check_count(where: str, name: str, value: object, least: int) -> int:
    """Return an integer argument, checked.

    Raises:
        InvalidTypeError, InvalidValueError: it is not an integer, or < ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(f"{where}: {name} must be an integer >= {least}, got {value!r}")
    if value < least:
        raise InvalidValueError(f"{where}: {name} must be an integer >= {least}, got {value}")
    return value
