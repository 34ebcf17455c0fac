"""The one way from a request to images that all callers take, batch by batch."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..diffusion import Callback
from ..io.processes import count, is_first, rank
from ..io.shares import divide_work
from ..kernels import FastdiffError, InvalidTypeError, InvalidValueError
from ..models import Draw, Latents, Model, Request, evaluating
from .mixtures import load_mixture


class OutOfMemoryError(FastdiffError, RuntimeError):
    """One image does not fit into the memory of the device."""


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
    batches = prepare_batches(model, request, batch_size)
    firsts, rows = range(0, request.n, batches.size), batches.draw.rows
    shares, own = (count(), rank()) if sharded else (1, 0)
    total = len(firsts[own::shares]) * rows
    shown = progress and (not sharded or is_first())
    images = [torch.empty(0, *model.shape, dtype=torch.uint8)]
    with (
        evaluating(model),
        tqdm(total=total, unit="step", desc=f"sampling {request.n} images", disable=not shown) as bar,
    ):

        def batch(index: int) -> Tensor:
            drawn = batches.images(firsts[index], _reporting(bar, callback) if shown else callback)
            bar.update((index // shares + 1) * rows - bar.n)  # a VAE calls no callback
            return drawn

        images.extend(divide_work(len(firsts), batch, sharded))
    return torch.cat(images)


@dataclass(frozen=True)
class Batches:
    """A checked request that is drawn in batches of ``size`` images; ``padded`` ones have that size exactly."""

    draw: Draw
    request: Request
    size: int
    padded: bool

    def images(self, first: int, callback: Callback | None = None) -> Tensor:
        """Draw the batch from the image ``first`` on, uint8 levels on the CPU; the model must be in eval mode."""
        wanted = min(self.size, self.request.n - first)
        return _draw(
            self.draw, self.request, first, wanted, self.size if self.padded else wanted, self.padded, callback
        )


def prepare_batches(model: Model, request: Request, batch_size: int) -> Batches:
    """Check a request, and return its batches.

    Raises:
        FastdiffError: as `fastdiff.sample`.
    """
    request, execution = _with_mixture(model, request), request.execution
    draw = model.prepare(request)
    if execution.micro_batch:
        return Batches(draw, request, execution.micro_batch, True)
    return Batches(draw, request, max(1, min(batch_size, request.n)), execution.is_fixed(model.device))


def _draw(
    draw: Draw, request: Request, first: int, wanted: int, largest: int, padded: bool, callback: Callback | None
) -> Tensor:
    """Draw ``wanted`` images on the CPU, in batches of ``largest`` images; ``padded`` ones have that size exactly.

    Where the memory of the device is too small, they are drawn in smaller batches. They are the same images.
    """
    execution, parts, done = request.execution, [], 0
    while done < wanted:
        size = min(largest, execution.largest_batch or largest)
        count = min(size, wanted - done)
        size = size if padded else count
        try:
            images = draw.batch(first + done, size, _first_of_batch(callback, count, size))
            parts.append(images[:count].cpu().contiguous())
        except torch.OutOfMemoryError as error:
            if size == 1 or execution.micro_batch:
                what = "one image" if size == 1 else f"batch_invariant = {size} images at once; choose a smaller number"
                raise OutOfMemoryError(f"the memory of the device is too small for {what}: {error}") from error
        else:
            done += count
            continue
        # outside of the except clause, whose exception holds the tensors of the attempt
        execution.clear()
        execution.largest_batch = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return torch.cat(parts)


def _first_of_batch(callback: Callback | None, count: int, size: int) -> Callback | None:
    """Return a callback that sees the first ``count`` images of a batch of ``size``."""
    if callback is None or count == size:
        return callback
    return lambda step, nfe, z_t, x_hat: callback(step, nfe, z_t[:count], x_hat[:count])


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
