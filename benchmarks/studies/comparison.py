"""Statistics of the studies: means over seeds and images, their standard errors, Student's t.

Results are rows by name, ``SETTING-seedK``. A row has the mean ``bpd`` and what errors are computed from: the bits/dim
of every image, ``images``; or, where images come in groups, as letters in font families, the mean of every group,
``group_means``, and its number of images, ``group_sizes``. Images of one group are not independent, so the error of a
mean is then one over the groups (`fastdiff.evaluation.groups`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

Rows = dict[str, Any]


def critical(freedom: int) -> float:
    """Return the two-sided 95 % point of Student's t for a number of degrees of freedom >= 2, to 0.04, from 3 on to
    0.004.

    By the expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5).
    """
    z = 1.959964
    terms = (
        (z**3 + z) / 4.0,
        (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0,
        (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0,
        (79.0 * z**9 + 776.0 * z**7 + 1482.0 * z**5 - 1920.0 * z**3 - 945.0 * z) / 92160.0,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


# ------------------------------------------------------------------------------------------------ groups


def group_error(means: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the standard error of the mean over all images from the means of groups of these sizes.

    sqrt(G / (G - 1) sum_g (n_g (m_g - m))²) / N, see `fastdiff.evaluation.group_standard_error`. For groups of one
    image it is the error over the images.
    """
    mean, total = _mean(means, sizes), sum(sizes)
    squares = sum((size * (value - mean)) ** 2 for value, size in zip(means, sizes, strict=True))
    return math.sqrt(len(sizes) / (len(sizes) - 1) * squares) / total


def _mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def evaluated(row: dict[str, Any]) -> str:
    """Return what the bound of a row was evaluated on, in words."""
    if "images" in row:
        return f"{len(row['images'])} held-out images"
    sizes = row["group_sizes"]
    return f"{sum(sizes):,} held-out images of {len(sizes)} font families, none of which is in training"


# ------------------------------------------------------------------------------------------------ seeds


def seeds_of(rows: Rows, name: str) -> list[int]:
    """Return the seeds of a setting that the rows have, in ascending order; [] for none."""
    found = (row.rpartition("-seed") for row in rows)
    return sorted(int(seed) for setting, _, seed in found if setting == name)


def over_seeds(rows: Rows, name: str) -> tuple[list[float], list[int]]:
    """Return the bits/dim of every image, averaged over the seeds of a setting, and ones; or both by group."""
    runs = [rows[f"{name}-seed{seed}"] for seed in seeds_of(rows, name)]
    key = "group_means" if "group_means" in runs[0] else "images"
    values = [sum(column) / len(runs) for column in zip(*(run[key] for run in runs), strict=True)]
    return values, runs[0].get("group_sizes", [1] * len(values))


def mean_over_seeds(rows: Rows, name: str, key: str = "bpd") -> float:
    """Return the mean of a figure over the seeds of a setting."""
    values = [rows[f"{name}-seed{seed}"][key] for seed in seeds_of(rows, name)]
    return sum(values) / len(values)


def freedom(rows: Rows, names: Iterable[str]) -> int:
    """Return the degrees of freedom of `seed_variance`."""
    return sum(max(len(seeds_of(rows, name)) - 1, 0) for name in names)


def seed_variance(rows: Rows, names: Iterable[str]) -> float:
    """Return the variance of bits/dim between the seeds of a setting, pooled over the settings ``names``.

    Settings without rows, or with a single seed, do not count.
    """
    names, total = list(names), 0.0
    for name in names:
        values = [rows[f"{name}-seed{seed}"]["bpd"] for seed in seeds_of(rows, name)]
        total += sum((value - sum(values) / len(values)) ** 2 for value in values)
    return total / freedom(rows, names)


def summary(rows: Rows, names: Iterable[str], name: str) -> tuple[float, float]:
    """Return the mean bits/dim of a setting, and its standard error over images or groups and over seeds.

    The variance between seeds is pooled over all settings ``names``, since the seeds of one are too few to estimate it.
    """
    values, sizes = over_seeds(rows, name)
    between = seed_variance(rows, names) / len(seeds_of(rows, name))
    return _mean(values, sizes), math.hypot(group_error(values, sizes), math.sqrt(between))


def difference(
    rows: Rows, names: Iterable[str], one: str, other: str, other_names: Iterable[str] | None = None
) -> tuple[float, float]:
    """Return the mean of bits/dim of ``one`` minus ``other``, paired by image or group, and its standard error.

    Each seed trains another model, so the variance between the seeds of both is added, pooled over ``names``; that of
    ``other`` over ``other_names`` where these are given.
    """
    (first, sizes), (second, _) = over_seeds(rows, one), over_seeds(rows, other)
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    pools = {one: list(names), other: list(names if other_names is None else other_names)}
    between = sum(seed_variance(rows, pool) / len(seeds_of(rows, name)) for name, pool in pools.items())
    return _mean(gaps, sizes), math.hypot(group_error(gaps, sizes), math.sqrt(between))


def direction(mean: float, error: float, degrees: int) -> str:
    """Return "lower" or "higher" for a difference that is significant at 95 % for degrees of freedom, else "equal"."""
    limit = critical(degrees) * error
    return "lower" if mean < -limit else "higher" if mean > limit else "equal"


def verdict(difference: float, error: float, degrees: int) -> str:
    """Return whether a claim that a difference is negative holds, at 95 % for degrees of freedom, and the figures."""
    state = {"lower": "holds", "higher": "does not hold", "equal": "not decided"}[direction(difference, error, degrees)]
    return f"**{state}** ({difference:+.4f} ± {error:.4f} bits/dim)"
