"""Improved precision and recall of a set of images (Kynkäänniemi et al. 2019, arXiv:1904.06991), on features.

The manifold of a set of features Φ is estimated by balls around its points, each with the distance to the point's k-th
nearest neighbour within the set, itself not counted, as radius (equation 1 of the paper):

    f(φ, Φ) = 1 if |φ - φ'| <= |φ' - NN_k(φ', Φ)| for at least one φ' in Φ, else 0

    precision(Φ_r, Φ_g) = 1 / |Φ_g| Σ_{φ in Φ_g} f(φ, Φ_r)        how many of the images lie on the reference's manifold
    recall(Φ_r, Φ_g)    = 1 / |Φ_r| Σ_{φ in Φ_r} f(φ, Φ_g)        how much of the reference the images cover

with Φ_g the features of the images and Φ_r those of the reference. Both depend on the numbers of images and on k:
compare only values of equal numbers, k and features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..kernels import InvalidTypeError, InvalidValueError
from .batches import BAR_DELAY

BLOCK = 1 << 23  # distances that are in memory at once: 64 MiB
ROUNDING = 1e-12  # relative: squared distances that differ by less times the squared norms count as equal


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, and the numbers that they depend on.

    ``precision_error`` is the standard error of drawing the images, sqrt(p (1 - p) / N), with the reference fixed. The
    recall has none: one image more changes the radii of others, so its terms are not independent.
    """

    precision: float
    recall: float
    precision_error: float
    images: int
    reference: int
    k: int


def precision_recall(
    images: Tensor, reference: Tensor, k: int = 3, reference_radii: Tensor | None = None, progress: bool = False
) -> PrecisionRecall:
    """Return the improved precision and recall of images against a reference, from their features.

    Distances are computed in float64, in blocks of 64 MiB, on the device of ``images``: 2 (N + M)² F operations. Those
    that are equal up to rounding count as equal, so that a set has precision and recall 1 against itself.

    Args:
        images: features [N, F] of the images, floating point, N > k (`image_features`).
        reference: features [M, F] of the reference, M > k.
        k: the neighbour whose distance is the radius, >= 1; the paper takes 3.
        reference_radii: what `neighbour_radii` returns for this reference and k, where several sets are compared with
            one reference: most of the time goes into them if it is the larger one.
        progress: show progress bars on stderr.

    Raises:
        InvalidTypeError: features that are not floating-point tensors.
        InvalidValueError: another shape, too few rows, values that are not finite, k < 1; radii that are not [M].
    """
    _check(images, reference, k)
    if reference_radii is not None and reference_radii.shape != (len(reference),):
        raise InvalidValueError(
            f"precision_recall: reference_radii must have shape [{len(reference)}], got {tuple(reference_radii.shape)}"
        )
    a, b = images.detach().double(), reference.detach().to(images.device).double()
    center = b.mean(0)  # distances do not depend on it, and rounding is smaller around it
    a, b = a - center, b - center
    radii = _radii(b, k, progress) if reference_radii is None else reference_radii.to(b)
    on_reference = _covered(a, b, radii, progress)
    on_images = _covered(b, a, _radii(a, k, progress), progress)
    precision = float(on_reference.double().mean())
    error = math.sqrt(precision * (1.0 - precision) / len(a))
    return PrecisionRecall(precision, float(on_images.double().mean()), error, len(a), len(b), k)


def neighbour_radii(reference: Tensor, k: int = 3, progress: bool = False) -> Tensor:
    """Return the squared distance of each row of features [M, F] to its k-th nearest neighbour, float64 [M].

    Args:
        reference: features of the reference, floating point, M > k.
        k, progress: as for `precision_recall`.

    Raises:
        InvalidTypeError, InvalidValueError: as `precision_recall`.
    """
    _check(reference, reference, k)
    points = reference.detach().double()
    return _radii(points - points.mean(0), k, progress)


def _check(images: Tensor, reference: Tensor, k: int) -> None:
    """Check the arguments of `precision_recall`."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InvalidValueError(f"precision_recall: k must be an integer >= 1, got {k!r}")
    for name, value in (("images", images), ("reference", reference)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InvalidTypeError(f"precision_recall: {name} must be a floating-point tensor, got {kind}")
        if value.dim() != 2 or len(value) <= k or value.shape[1] != images.shape[1] or not value.shape[1]:
            raise InvalidValueError(
                f"precision_recall: images and reference must have shapes [N, F] and [M, F] with N, M > k = {k} and "
                f"F >= 1, got {tuple(images.shape)} and {tuple(reference.shape)}"
            )
        if not torch.isfinite(value).all():
            raise InvalidValueError(f"precision_recall: {name} must be finite")


def _blocks(rows: int, columns: int, progress: bool) -> "tqdm[int]":
    """Return the first rows of blocks of a matrix of distances, behind a bar that appears after some seconds."""
    blocks = range(0, rows, _height(columns))
    return tqdm(blocks, desc="neighbours", unit="block", disable=not progress, leave=False, delay=BAR_DELAY)


def _height(columns: int) -> int:
    return max(1, BLOCK // columns)


def _squares(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return |a_i - b_j|² and |a_i|² + |b_j|², which bounds its rounding, [N, M] each."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(norms, a, b.mT, alpha=-2.0), norms


def _radii(points: Tensor, k: int, progress: bool) -> Tensor:
    """Return the squared distance of every point to its k-th nearest neighbour, itself not counted, [N]."""
    radii = points.new_empty(len(points))
    height = _height(len(points))
    for first in _blocks(len(points), len(points), progress):
        block = slice(first, min(first + height, len(points)))
        squares, _ = _squares(points[block], points)
        own = torch.arange(len(squares), device=points.device)
        squares[own, own + first] = -math.inf  # the point itself comes first
        radii[block] = squares.topk(k + 1, dim=1, largest=False).values[:, -1]  # kthvalue is slower
    return radii


def _covered(points: Tensor, others: Tensor, radii: Tensor, progress: bool) -> Tensor:
    """Return whether each point lies in at least one of the balls around the others, bool [N]."""
    covered = torch.empty(len(points), dtype=torch.bool, device=points.device)
    height = _height(len(others))
    for first in _blocks(len(points), len(others), progress):
        block = slice(first, min(first + height, len(points)))
        squares, norms = _squares(points[block], others)
        covered[block] = (squares <= radii + ROUNDING * norms).any(1)
    return covered
