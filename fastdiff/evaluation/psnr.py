"""Peak signal-to-noise ratio."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..io.pictures import to_uint8
from ..kernels import InvalidTypeError, InvalidValueError
from .batches import BAR_DELAY, Images

LIMIT = 8.0  # images in [-1, 1], noise included, are smaller; levels as floats, or 0 .. 255, are not


def psnr(images: Tensor, others: Tensor, levels: int) -> Tensor:
    """Return the peak signal-to-noise ratio in decibels, float64 [N]; infinite where two images are equal.

    10 log10(peak² / mean squared error), where peak is the distance from the lowest to the highest level.

    Args:
        images: uint8 levels [N, ...].
        others: the same, or floats as `fastdiff.kernels.to_unit_range` makes them, such as `Reconstruction.start`.
        levels: number of levels, >= 2.

    Raises:
        InvalidTypeError, InvalidValueError: images that are not levels, different shapes, levels < 2.
    """
    if images.dtype != torch.uint8:
        raise InvalidTypeError(f"psnr: images must have dtype torch.uint8, got {images.dtype}")
    if images.shape != others.shape or images.dim() < 2 or levels < 2:
        shapes = f"{tuple(images.shape)} and {tuple(others.shape)}, {levels} levels"
        raise InvalidValueError(f"psnr: images and others must have one shape [N, ...] and levels >= 2, got {shapes}")
    if others.is_floating_point() and others.numel() and not float(others.abs().max()) <= LIMIT:
        low, high = float(others.min()), float(others.max())
        raise InvalidValueError(f"psnr: others must be uint8 levels or floats in [-1, 1], got {low:g} .. {high:g}")
    a = 2.0 * (images.double() + 0.5) / levels - 1.0
    b = 2.0 * (others.double() + 0.5) / levels - 1.0 if others.dtype == torch.uint8 else others.double()
    peak = 2.0 * (levels - 1) / levels
    return 10.0 * torch.log10(peak**2 / (a - b).square().flatten(1).mean(1))


@dataclass(frozen=True)
class PairedPsnr:
    """The mean PSNR of pairs of images in decibels, its standard error, the number of pairs, and of equal pairs.

    Two equal images have an infinite PSNR, and so has a mean over them; its standard error is NaN then.
    """

    value: float
    standard_error: float
    images: int
    equal: int


def paired_psnr(
    images: Tensor | Images,
    others: Tensor | Images,
    levels: int = 256,
    batch_size: int = 64,
    other_levels: int | None = None,
    progress: bool = False,
) -> PairedPsnr:
    """Return the mean over i of the PSNR between ``images[i]`` and ``others[i]``.

    Args:
        images, others: uint8 levels [N, C, H, W] of one shape, N >= 1, or what reads such batches when it is indexed.
        levels: number of levels of ``images``, >= 2.
        batch_size: images that are read at once, >= 1.
        other_levels: number of levels of ``others``, >= 2; None for the same. Where the numbers differ, both are scaled
            to 0 .. 255 and rounded first, as they are in files.
        progress: show a progress bar on stderr.

    Raises:
        InvalidTypeError, InvalidValueError: as `psnr`; no images, different numbers of them, or other_levels < 2.
    """
    if len(images) != len(others) or not len(images) or batch_size < 1:
        found = f"{len(images)} and {len(others)}, batch_size {batch_size}"
        raise InvalidValueError(f"paired_psnr: images and others must be N >= 1 each, and batch_size >= 1, got {found}")
    other_levels = levels if other_levels is None else other_levels
    if min(levels, other_levels) < 2:
        found = f"{levels} and {other_levels}"
        raise InvalidValueError(f"paired_psnr: levels and other_levels must be integers >= 2, got {found}")
    parts = []
    firsts = range(0, len(images), batch_size)
    for first in tqdm(firsts, desc="PSNR", unit="batch", disable=not progress, leave=False, delay=BAR_DELAY):
        index = torch.arange(first, min(first + batch_size, len(images)))
        a, b = images[index], others[index]
        if levels == other_levels:
            parts.append(psnr(a, b, levels))
            continue
        if {a.dtype, b.dtype} != {torch.uint8}:
            raise InvalidTypeError(f"paired_psnr: images must have dtype torch.uint8, got {a.dtype} and {b.dtype}")
        parts.append(psnr(to_uint8(a, levels), to_uint8(b, other_levels), 256))
    values = torch.cat(parts)
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return PairedPsnr(float(values.mean()), error, len(values), int(values.isinf().sum()))
