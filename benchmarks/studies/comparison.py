"""Statistics of the studies: means over seeds and images, their standard errors, Student's t.

Results are rows by name, ``SETTING-seedK``. A row has the mean ``bpd`` and the bits/dim of every image, ``images``.
"""

import math
from collections.abc import Sequence
from typing import Any

Rows = dict[str, Any]


def critical(freedom: int) -> float:
    """Return the two-sided 95 % point of Student's t for a number of degrees of freedom.

    By the expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5).
    """
    z = 1.959964
    first, second = (z**3 + z) / 4.0, (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0
    return z + first / freedom + second / freedom**2


def over_seeds(rows: Rows, name: str, seeds: int) -> list[float]:
    """Return the bits/dim of every image, averaged over the seeds of a setting."""
    columns = zip(*(rows[f"{name}-seed{seed}"]["images"] for seed in range(seeds)), strict=True)
    return [sum(column) / seeds for column in columns]


def mean_and_error(values: Sequence[float], between_seeds: float) -> tuple[float, float]:
    """Return the mean of per-image values and its standard error over the images and the seeds.

    ``between_seeds`` is the variance of the mean due to the seeds, which is added to that due to the images.
    """
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values) + between_seeds)


def difference(rows: Rows, names: Sequence[str], seeds: int, one: str, other: str) -> tuple[float, float]:
    """Return the mean of bits/dim of ``one`` minus ``other``, paired by image, and its standard error.

    Each seed trains another model. The variance between seeds is pooled over all settings ``names``, since the seeds of
    one setting are too few to estimate it.
    """
    pairs = zip(over_seeds(rows, one, seeds), over_seeds(rows, other, seeds), strict=True)
    return mean_and_error([a - b for a, b in pairs], 2.0 * seed_variance(rows, names, seeds) / seeds)


def seed_variance(rows: Rows, names: Sequence[str], seeds: int) -> float:
    """Return the variance of bits/dim between the seeds of a setting, pooled over the settings ``names``."""
    total = 0.0
    for name in names:
        values = [rows[f"{name}-seed{seed}"]["bpd"] for seed in range(seeds)]
        mean = sum(values) / seeds
        total += sum((value - mean) ** 2 for value in values)
    return total / (len(names) * (seeds - 1))
