"""Means over images that belong together, such as those of a font family: by group, and the error over the groups.

Images of one group resemble each other, so the standard error over the images, which takes them as independent, is too
small. The groups are independent, and differ in size. The mean over all N images is the ratio of two sums over the G
groups, m = sum_g S_g / sum_g n_g, and to first order it deviates by sum_g r_g / N with r_g = S_g - n_g m. So its
variance is estimated by

    G / (G - 1) · sum_g r_g² / N²,

the ratio estimator of cluster sampling (Cochran 1977, Sampling Techniques, chapter 9A). It is the cluster-robust
variance of a regression on a constant with the correction G / (G - 1) (Cameron and Miller 2015, A Practitioner's Guide
to Cluster-Robust Inference, Journal of Human Resources 50), and for groups of one image the square of the standard
error over the images.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import InvalidTypeError, InvalidValueError


class GroupMean(NamedTuple):
    """A group's number, how many images it has, and the mean of their values."""

    group: int
    n: int
    mean: float


def group_means(values: Tensor, groups: Tensor) -> list[GroupMean]:
    """Return the mean of every group, in the order of the groups' numbers.

    Args:
        values: [N], of each image.
        groups: int64 [N], the number of each image's group, such as `fastdiff.data.Dataset.test_groups`.

    Raises:
        InvalidTypeError, InvalidValueError: groups that are not one number for each value.
    """
    numbers, sums, sizes = _sums(values, groups)
    rows = zip(numbers.tolist(), sizes.tolist(), (sums / sizes).tolist(), strict=True)
    return [GroupMean(number, size, mean) for number, size, mean in rows]


def group_standard_error(values: Tensor, groups: Tensor) -> float:
    """Return the standard error of the mean of [N] over independent groups, see the module; NaN for one group.

    Arguments and errors as in `group_means`. For the difference of two models pass the differences of the images.
    """
    _, sums, sizes = _sums(values, groups)
    count, total = len(sums), int(sizes.sum())
    if count < 2:
        return math.nan
    residuals = sums - sizes * (sums.sum() / total)
    return math.sqrt(count / (count - 1) * float(residuals.square().sum())) / total


def spread_order(count: int) -> Tensor:
    """Return a permutation int64 [N] that puts consecutive images far apart: image i to place K i modulo N.

    The times of a bound are stratified over the places. In the data's own order the images of a group, which lie
    together, have their times close together, and with few draws the mean of a group says more about these times than
    about its images. K is the first integer from (sqrt(5) - 1) / 2 · N on that has no common divisor with N, so that
    the times of any run of images are spread evenly (a Kronecker sequence; Niederreiter 1992, chapter 3).
    """
    first = max(1, int((math.sqrt(5.0) - 1.0) / 2.0 * count))
    factor = next((k for k in range(first, count) if math.gcd(k, count) == 1), 1)
    return (torch.arange(count) * factor % max(count, 1)).argsort()


def check_groups(groups: object, count: int) -> None:
    """Check that groups are one number for each of ``count`` images.

    Raises:
        InvalidTypeError, InvalidValueError: they are not.
    """
    if not isinstance(groups, Tensor) or groups.dtype != torch.int64:
        got = f"dtype {groups.dtype}" if isinstance(groups, Tensor) else f"a {type(groups).__name__}"
        raise InvalidTypeError(f"groups must be a torch.int64 tensor [N], got {got}")
    if groups.shape != (count,):
        raise InvalidValueError(
            f"groups must have shape ({count},), one number for each image, got {tuple(groups.shape)}"
        )


def _sums(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of the groups that occur, the sums of their values, float64, and their sizes, [G] each."""
    check_groups(groups, len(values))
    numbers, places, sizes = groups.cpu().unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, places, values.double().cpu())
    return numbers, sums, sizes
