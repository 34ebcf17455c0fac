"""Fréchet distance between two sets of images, on the features of a network of the caller's choice.

The squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982) with the means mu_a, mu_b and the
covariances A, B of the two sets of features is

    d² = |mu_a - mu_b|² + tr(A + B - 2 (A B)^{1/2}).

On the features of one particular Inception network this is FID (Heusel et al. 2017). `fd_digits` and `fd_letters` use
the features of the small classifiers of `classifiers`. Their results, FD-digits and FD-letters, cannot be compared with
an FID, nor with each other.

The estimate is biased upwards, by about 1 / N times a factor that depends on the model (Chong and Forsyth 2020).
Compare only values of equal N, against the same reference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..data import load_dataset
from ..kernels import InvalidTypeError, InvalidValueError
from .batches import Images
from .classifiers import ClassifierConfig, classifier_config, load_classifier
from .features import check_set, image_features

FD_BATCH = 512  # images per call of the network


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance d², its standard error, and the numbers of images and of reference images.

    The standard error is that of drawing the images, with the reference fixed, to first order. It does not include the
    bias.
    """

    value: float
    standard_error: float
    images: int
    reference: int


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance d² >= 0 of two sets of features, [N, F] and [M, F], in float64 on the CPU.

    Covariances are divided by N - 1. The estimate is biased upwards for small N, so compare only values of equal N.
    With N <= F the covariance does not have full rank; d² is still defined, with a rounding error of about 1e-8 times
    the traces.

    Raises:
        InvalidTypeError: the features are not floating-point tensors.
        InvalidValueError: fewer than 2 rows, different F, or values that are not finite.
    """
    return _compare(*_checked(a, b))[0]


def compare_features(a: Tensor, b: Tensor) -> Frechet:
    """Return the Fréchet distance d² of two sets of features with its standard error over the rows of ``a``.

    Args and errors as `frechet_distance`.
    """
    a, b = _checked(a, b)
    return Frechet(*_compare(a, b), len(a), len(b))


def fd(
    images: Tensor | Images,
    reference: Tensor | Images,
    features: Callable[[Tensor], Tensor],
    batch_size: int = FD_BATCH,
) -> Frechet:
    """Return the Fréchet distance between two sets of images on the features of a network.

    It is biased upwards for small N: compare only values of equal N, against the same reference and on the same
    features.

    Args:
        images, reference: uint8 [N, C, H, W], at least 2 of each; or what reads such batches when it is indexed, such
            as the images of a `fastdiff.data.Dataset`, which are then never in memory together.
        features: maps a batch of these uint8 images to floats [n, F], and moves and scales the images itself. A module
            is called in eval mode, and its mode restored. With an Inception network the result is FID.
        batch_size: images per call of ``features``, >= 1; it changes the features by rounding only.

    Raises:
        InvalidTypeError, InvalidValueError: images of another dtype or rank, or fewer than 2; features of another
            dtype or shape, or not finite.
    """
    for name, each in (("images", images), ("reference", reference)):
        check_set(name, each, batch_size)
    return compare_features(*(image_features(each, features, batch_size) for each in (images, reference)))


def fd_digits(images: Tensor, reference: Tensor | None = None) -> Frechet:
    """Return FD-digits: `fd_embedded` of images uint8 [N, 1, 8, 8] in 0 .. 16, on 32 features. It is not FID.

    By default the reference are the 1,500 training images.
    """
    return fd_embedded(images, "digits", reference)


def fd_letters(images: Tensor, reference: Tensor | None = None) -> Frechet:
    """Return FD-letters: `fd_embedded` of images uint8 [N, 1, 28, 28] in 0 .. 15, on 64 features. It is not FID.

    By default the reference are the 23,205 training images, whose features are computed once in a process.
    """
    return fd_embedded(images, "letters", reference)


def fd_embedded(images: Tensor, data: str = "digits", reference: Tensor | None = None) -> Frechet:
    """Return the Fréchet distance on the features of the classifier of an embedded data set (`load_classifier`).

    It is biased upwards for small N: compare only values of equal N, against the same reference. The classifier was
    trained on the training images, so even real images that it has not seen lie a little farther from the training
    images than these lie from each other.

    Args:
        images: uint8 [N, 1, H, W] of the size and with the levels of the data set, N >= 2, as
            ``fastdiff.sample(..., output="levels")`` returns them.
        data: ``"digits"``, for FD-digits, or ``"letters"``, for FD-letters.
        reference: the same as images; by default the training images of the data set.

    Raises:
        InvalidTypeError, InvalidValueError: another data set; images of another dtype, shape or range, or fewer than 2.
    """
    config = classifier_config(data)
    _check_images(f"fd_{data}: images", images, config)
    if reference is not None:
        _check_images(f"fd_{data}: reference", reference, config)
    features = image_features(images.cpu(), load_classifier(data), FD_BATCH)
    if reference is None:
        return compare_features(features, _training_features(data))
    return compare_features(features, image_features(reference.cpu(), load_classifier(data), FD_BATCH))


def _check_images(name: str, images: Tensor, config: ClassifierConfig) -> None:
    """Check images for the classifier of an embedded data set."""
    if images.dtype != torch.uint8:
        raise InvalidTypeError(f"{name} must have dtype torch.uint8, got {images.dtype}")
    if images.dim() != 4 or images.shape[1:] != config.shape or len(images) < 2:
        shape = ", ".join(map(str, config.shape))
        raise InvalidValueError(f"{name} must have shape [N, {shape}] with N >= 2, got {tuple(images.shape)}")
    if int(images.max()) >= config.levels:
        raise InvalidValueError(
            f"{name} must lie in 0 .. {config.levels - 1}, as those of "
            f'sample(..., output="levels"), got {int(images.max())}'
        )


@cache
def _training_features(data: str) -> Tensor:
    """Return the features of the training images of an embedded data set, [N, F]; nothing may change them."""
    return image_features(load_dataset(data).train_images, load_classifier(data), FD_BATCH)


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Check two sets of features, and return them as float64 on the CPU."""
    for name, value in (("a", a), ("b", b)):
        if value.dim() != 2 or len(value) < 2 or value.shape[1] != a.shape[1] or not value.shape[1]:
            raise InvalidValueError(
                "frechet_distance: features a and b must have shapes [N, F] and [M, F] with N, M >= 2 and F >= 1, "
                f"got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        if not torch.isfinite(value).all():
            raise InvalidValueError(f"frechet_distance: features {name} must be finite")
    return _float64("frechet_distance: features a", a), _float64("frechet_distance: features b", b)


def _float64(name: str, features: Tensor) -> Tensor:
    if not features.is_floating_point():
        raise InvalidTypeError(f"{name} must have a floating-point dtype, got {features.dtype}")
    return features.detach().cpu().double()


def _compare(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return d² of two checked sets of features, and its standard error over the rows of ``a`` by the delta method.

    tr (A B)^{1/2} is the sum of the square roots of the eigenvalues of A^{1/2} B A^{1/2} = R², which is symmetric. Its
    derivative with respect to A is T / 2, where T = A^{-1/2} R A^{-1/2} is the linear map that transports the first
    Gaussian to the second. So a row at the distance x from the mean changes d² by
    (2 x·(mu_a - mu_b) + x·(1 - T) x) / N, up to a constant. The rows lie in the range of A, so the pseudo-inverse
    replaces A^{-1/2} where A is singular.
    """
    mean_a, mean_b = a.mean(0), b.mean(0)
    deviations = a - mean_a
    cov_a, cov_b = deviations.mT @ deviations / (len(a) - 1), torch.cov(b.mT).reshape(len(mean_b), len(mean_b))
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
    influence = 2.0 * deviations @ offset + (deviations * (deviations - deviations @ transport)).sum(1)
    return max(0.0, float(distance)), float(influence.std()) / math.sqrt(len(a))
