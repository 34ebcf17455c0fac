"""Peak signal-to-noise ratio."""

import torch
from torch import Tensor

from ..kernels import InvalidTypeError, InvalidValueError

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
