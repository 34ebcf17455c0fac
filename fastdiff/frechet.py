"""Fréchet distance between two sets of images, on the features of a network that the caller names.

The squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982) with the means and covariances of the sets:

    d² = |mu_a - mu_b|² + tr(A + B - 2 (A B)^{1/2}).

On the features of one particular Inception network this is FID (Heusel et al. 2017). `fd_digits` takes the features of
the small classifier in `digit_features`: it is FD-digits, and no number of it compares with an FID.

The estimate is biased upwards, by about 1 / N, and how much depends on the model (Chong and Forsyth 2020): compare only
values of equal N, against the same reference.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .datasets import DIGITS_LEVELS, digits
from .digit_features import load_digit_classifier
from .models.base import evaluating


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance d² of ``images`` images against ``reference`` others.

    The standard error is that of drawing the images, the reference held fixed, to first order; the bias is not in it.
    """

    value: float
    standard_error: float
    images: int
    reference: int


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance d² >= 0 between two sets of features, [N, F] and [M, F], in float64 on the CPU.

    Covariances are divided by N - 1. The estimate is biased upwards for small N: only equal N compare. With N <= F the
    covariance has not full rank: the value is still defined, and rounding is about 1e-8 of the traces.

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: fewer than 2 rows, different F, values that are not finite.
    """
    return _compare(*_checked(a, b))[0]


def fd(images: Tensor, reference: Tensor, features: Callable[[Tensor], Tensor], batch_size: int = 512) -> Frechet:
    """Fréchet distance of images against reference images, on the features of any network, with a standard error.

    Biased upwards for small N: compare only values of equal N, against the same reference and on the same features.

    Args:
        images, reference: uint8 [N, C, H, W], at least 2 of each.
        features: takes a batch of the images as they are and gives float [n, F]. It moves them to its device and
            scales them itself. A module is run in eval mode and left as it was. So an Inception network gives FID.
        batch_size: images per call, >= 1; it changes the features by rounding only.

    Raises:
        TypeError, ValueError: images of another dtype or rank or fewer than 2; features of another shape or not finite.
    """
    if batch_size < 1:
        raise ValueError(f"fd: batch_size is {batch_size}; allowed: at least 1")
    for name, value in (("images", images), ("reference", reference)):
        if value.dtype != torch.uint8:
            raise TypeError(f"fd: {name} have dtype {value.dtype}; allowed: torch.uint8")
        if value.dim() != 4 or len(value) < 2:
            raise ValueError(f"fd: {name} have shape {tuple(value.shape)}; allowed: [N, C, H, W], N >= 2")
    a, b = _checked(_features(images, features, batch_size), _features(reference, features, batch_size))
    return Frechet(*_compare(a, b), len(a), len(b))


def fd_digits(images: Tensor, reference: Tensor | None = None) -> Frechet:
    """FD-digits: Fréchet distance on the 32 features of the shipped classifier of digits. It is not FID.

    Biased upwards for small N: compare only values of equal N, against the same reference. The classifier was trained
    on the training images: new digits, however good, lie a little farther from these than these from one another.

    Args:
        images: raw levels 0 .. 16, uint8 [N, 1, 8, 8], N >= 2, as ``fastdiff.sample(..., output="levels")`` gives them.
        reference: images of the same kind; by default the 1500 training images of the digits.

    Raises:
        TypeError, ValueError: images of another dtype, shape or range, or fewer than 2.
    """
    reference = digits().train_images if reference is None else reference
    for name, value in (("images", images), ("reference", reference)):
        if value.dtype != torch.uint8:
            raise TypeError(f"fd_digits: {name} have dtype {value.dtype}; allowed: torch.uint8")
        if value.dim() != 4 or value.shape[1:] != (1, 8, 8) or len(value) < 2:
            raise ValueError(f"fd_digits: {name} have shape {tuple(value.shape)}; allowed: [N, 1, 8, 8], N >= 2")
        if int(value.max()) >= DIGITS_LEVELS:
            raise ValueError(
                f"fd_digits: {name} hold the value {int(value.max())}; allowed: levels 0 .. {DIGITS_LEVELS - 1}, "
                'as of sample(..., output="levels")'
            )
    classifier = load_digit_classifier()
    return fd(images.cpu(), reference.cpu(), classifier)


@torch.no_grad()
def _features(images: Tensor, features: Callable[[Tensor], Tensor], batch_size: int) -> Tensor:
    """Features of all images, float64 [N, F] on the CPU."""
    parts = []
    with evaluating(features) if isinstance(features, nn.Module) else nullcontext():
        for batch in images.split(batch_size):
            part = features(batch)
            if part.dim() != 2 or len(part) != len(batch):
                raise ValueError(
                    f"fd: features of {len(batch)} images have shape {tuple(part.shape)}; allowed: [{len(batch)}, F]"
                )
            parts.append(_float64("fd: features", part))
    return torch.cat(parts)


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    for name, value in (("a", a), ("b", b)):
        if value.dim() != 2 or len(value) < 2 or value.shape[1] != a.shape[1] or not value.shape[1]:
            raise ValueError(
                f"frechet_distance: features a {tuple(a.shape)} and b {tuple(b.shape)}; "
                "allowed: [N, F] and [M, F] with N >= 2, M >= 2 and one F >= 1"
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"frechet_distance: features {name} hold values that are not finite; allowed: finite ones")
    return _float64("frechet_distance: a", a), _float64("frechet_distance: b", b)


def _float64(name: str, features: Tensor) -> Tensor:
    if not features.is_floating_point():
        raise TypeError(f"{name} have dtype {features.dtype}; allowed: a floating-point dtype")
    return features.detach().cpu().double()


def _compare(a: Tensor, b: Tensor) -> tuple[float, float]:
    """d² of two checked sets of features, and its standard error over the rows of ``a``: the delta method.

    tr (A B)^{1/2} is the sum of the roots of the eigenvalues of the symmetric A^{1/2} B A^{1/2} = R². Its derivative by
    A is T / 2, where T = A^{-1/2} R A^{-1/2} is the map that transports the one Gaussian to the other. So one row x,
    off the mean, moves d² by (2 x·(mu_a - mu_b) + x·(1 - T) x) / N up to a constant. Rows lie in the range of A, so
    the pseudo-inverse serves where A is singular.
    """
    mean_a, mean_b = a.mean(0), b.mean(0)
    centred = a - mean_a
    cov_a, cov_b = centred.mT @ centred / (len(a) - 1), torch.cov(b.mT).reshape(len(mean_b), len(mean_b))
    values, vectors = torch.linalg.eigh(cov_a)
    roots = values.clamp_min(0.0).sqrt()
    tiny = values <= values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(tiny, 0.0, 1.0 / roots.clamp_min(torch.finfo(values.dtype).tiny))
    root_a, inverse_a = (vectors * roots) @ vectors.mT, (vectors * inverse) @ vectors.mT
    inner = root_a @ cov_b @ root_a
    values, vectors = torch.linalg.eigh((inner + inner.mT) / 2.0)
    roots = values.clamp_min(0.0).sqrt()
    offset = mean_a - mean_b
    distance = offset @ offset + cov_a.trace() + cov_b.trace() - 2.0 * roots.sum()
    transport = inverse_a @ ((vectors * roots) @ vectors.mT) @ inverse_a
    influence = 2.0 * centred @ offset + (centred * (centred - centred @ transport)).sum(1)
    return max(0.0, float(distance)), float(influence.std()) / math.sqrt(len(a))
