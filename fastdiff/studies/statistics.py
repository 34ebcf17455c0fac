"""What the verdicts of studies rest on: means over seeds and images, and their errors.

Results are rows by name, ``SETTING-seedK``, with ``bpd`` and the per-image values ``images``.
"""

import math
from collections.abc import Sequence
from typing import Any

Rows = dict[str, Any]


def critical(freedom: int) -> float:
    """Two-sided 95 % point of Student's t, by the expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5)."""
    z = 1.959964
    first, second = (z**3 + z) / 4.0, (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0
    return z + first / freedom + second / freedom**2


def over_seeds(rows: Rows, name: str, seeds: int) -> list[float]:
    """A setting's bits/dim of every image, averaged over its seeds."""
    columns = zip(*(rows[f"{name}-seed{seed}"]["images"] for seed in range(seeds)), strict=True)
    return [sum(column) / seeds for column in columns]


def mean_and_error(values: Sequence[float], between_seeds: float) -> tuple[float, float]:
    """Mean of per-image values, and its error: that of the images beside a variance that the seeds add."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values) + between_seeds)


def difference(rows: Rows, names: Sequence[str], seeds: int, one: str, other: str) -> tuple[float, float]:
    """Mean of bits/dim of ``one`` minus ``other``, paired by image, and its standard error over images and seeds.

    Another seed trains another model; its variance is pooled over all settings ``names``, since a few seeds of one
    setting would not tell it.
    """
    pairs = zip(over_seeds(rows, one, seeds), over_seeds(rows, other, seeds), strict=True)
    return mean_and_error([a - b for a, b in pairs], 2.0 * seed_variance(rows, names, seeds) / seeds)


def seed_variance(rows: Rows, names: Sequence[str], seeds: int) -> float:
    """Variance of bits/dim between seeds of one setting, pooled over the settings."""
    total = 0.0
    for name in names:
        values = [rows[f"{name}-seed{seed}"]["bpd"] for seed in range(seeds)]
        mean = sum(values) / seeds
        total += sum((value - mean) ** 2 for value in values)
    return total / (len(names) * (seeds - 1))
