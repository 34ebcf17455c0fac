"""What the studies of bounds share: the held-out images with their groups, and the rows that comparisons need."""

from typing import Any

from torch import Tensor

from fastdiff.evaluation import Evaluation, group_standard_error, standard_error

from .data_sets import DataSet


def held_out(data: DataSet) -> tuple[Tensor, Tensor | None]:
    """Return the held-out images of a data set, uint8 [N, C, H, W], and their groups int64 [N]; None without any."""
    content = data.load()
    return content.test_images[:], content.test_groups


def bound_row(result: Evaluation) -> dict[str, Any]:
    """Return the figures of a bound, and what errors of comparisons are computed from, see `comparison`.

    With groups: their means and sizes, beside the standard errors over them and over the images. Otherwise the bits/dim
    of every image.
    """
    groups = result.by_group()
    if not groups:
        return {**result.row(), "images": [round(value, 6) for value in result.bpd.total.tolist()]}
    means = [round(group.mean, 7) for group in groups]
    return {**result.row(), "group_means": means, "group_sizes": [group.n for group in groups]}


def mean_and_error(values: Tensor, groups: Tensor | None) -> tuple[float, float]:
    """Return the mean of the values [N], and its standard error over the groups, or over the images without any."""
    error = standard_error(values) if groups is None else group_standard_error(values, groups)
    return float(values.double().mean()), error
