"""Statistics of the studies: Student's t, errors over groups, differences between models of several seeds."""

import math

import pytest
import torch

from benchmarks.studies.bounds import bound_row, mean_and_error
from benchmarks.studies.comparison import (
    critical,
    difference,
    freedom,
    group_error,
    mean_over_seeds,
    seed_variance,
    seeds_of,
    summary,
    verdict,
)
from fastdiff.diffusion import Vlb
from fastdiff.evaluation import Evaluation, group_means, group_standard_error, standard_error


def test_students_t():
    assert abs(critical(2) - 4.3027) < 0.04
    for degrees, expected in ((3, 3.1824), (4, 2.7764), (8, 2.3060), (30, 2.0423), (1000, 1.9623)):  # tables
        assert abs(critical(degrees) - expected) < 0.004  # measured: 0.0038 at 3, 0.0009 at 4


def test_verdicts():
    assert verdict(-0.1, 0.02, 8) == "**holds** (-0.1000 ± 0.0200 bits/dim)"
    assert verdict(0.1, 0.02, 8).startswith("**does not hold**")
    assert verdict(-0.045, 0.02, 8).startswith("**not decided**")


# ------------------------------------------------------------------------------------------------ groups


def grouped() -> tuple[torch.Tensor, torch.Tensor]:
    """Values [20] of four groups of 2 to 8 images, which are not in the groups' order."""
    generator = torch.Generator().manual_seed(2)
    groups = torch.tensor([7, 0, 3, 12]).repeat_interleave(torch.tensor([2, 8, 4, 6]))
    groups = groups[torch.randperm(20, generator=generator)]
    return 1.5 + 0.1 * groups + torch.randn(20, dtype=torch.float64, generator=generator), groups


def test_the_error_from_means_and_sizes_is_that_from_the_images():
    values, groups = grouped()
    means = group_means(values, groups)
    error = group_error([group.mean for group in means], [group.n for group in means])
    assert error == pytest.approx(group_standard_error(values, groups), rel=1e-12)
    alone = group_error(values.tolist(), [1] * 20)
    assert alone == pytest.approx(standard_error(values), rel=1e-12)
    assert mean_and_error(values, groups) == (pytest.approx(float(values.mean())), pytest.approx(error))
    assert mean_and_error(values, None) == (pytest.approx(float(values.mean())), pytest.approx(alone))


def test_rows_hold_means_and_sizes_of_groups():
    values, groups = grouped()
    zeros = torch.zeros(20, dtype=torch.float64)
    row = bound_row(Evaluation(Vlb(zeros, zeros, values), None, groups=groups))
    assert row["group_sizes"] == [8, 4, 2, 6]  # of the groups 0, 3, 7, 12
    assert row["group_means"] == pytest.approx([float(values[groups == g].mean()) for g in (0, 3, 7, 12)], abs=1e-7)
    assert row["se_groups"] == pytest.approx(group_error(row["group_means"], row["group_sizes"]), rel=1e-6)
    assert "images" not in row
    row = bound_row(Evaluation(Vlb(zeros, zeros, values), None))
    assert row["images"] == pytest.approx(values.tolist(), abs=1e-6)
    assert "group_means" not in row


# ------------------------------------------------------------------------------------------------ seeds


def rows_of(values: dict[str, list[list[float]]], **more) -> dict:
    key = "group_means" if more else "images"
    return {
        f"{name}-seed{seed}": {key: each, "bpd": sum(each) / len(each), **more}
        for name, seeds in values.items()
        for seed, each in enumerate(seeds)
    }


def test_differences_are_paired_by_image_and_pooled_over_seeds():
    nothing = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    rows = rows_of({"a": [[1.0, 2.0, 4.0], [1.0, 2.0, 2.0]], "b": nothing, "c": nothing})
    mean, error = difference(rows, ("a", "b", "c", "unknown"), "a", "b")
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    between = torch.tensor([7 / 3, 5 / 3], dtype=torch.float64).var() / 3  # pooled over the three settings
    assert abs(mean - float(values.mean())) < 1e-12
    assert abs(error - float((values.var() / 3 + between).sqrt())) < 1e-12  # half of it for each of two settings


def test_a_setting_of_one_seed_takes_the_variance_between_seeds_from_the_others():
    rows = rows_of({"a": [[1.0, 2.0], [1.2, 2.2], [0.8, 1.8]], "ab": [[3.0, 5.0]]})
    names = ("a", "ab")
    assert [seeds_of(rows, name) for name in (*names, "b")] == [[0, 1, 2], [0], []]
    assert freedom(rows, names) == 2
    between = seed_variance(rows, names)
    assert between == pytest.approx(0.04, rel=1e-9)
    assert mean_over_seeds(rows, "a") == pytest.approx(1.5)
    assert difference(rows, names, "ab", "a") == pytest.approx((2.5, math.sqrt(0.25 + between + between / 3)))
    other = rows_of({"c": [[1.0, 1.0], [1.4, 1.4]]})  # 0.08 between its seeds
    mean, error = difference(rows | other, names, "ab", "c", ("c",))
    assert (mean, error) == pytest.approx((2.8, math.sqrt(1.0 + between + 0.08 / 2)))
    assert summary(rows, names, "ab") == pytest.approx((4.0, math.sqrt(1.0 + between)))


def test_means_over_groups_are_weighted_by_size():
    rows = rows_of({"a": [[1.0, 2.0], [1.0, 2.0]], "b": [[0.0, 0.0], [0.0, 0.0]]}, group_sizes=[1, 3])
    mean, error = difference(rows, ("a", "b"), "a", "b")
    assert mean == pytest.approx(1.75)
    assert error == pytest.approx(group_error([1.0, 2.0], [1, 3]))  # no variance between these seeds
