"""Improved precision and recall: brute force in NumPy, closed cases, ties, blocks, and wrong input."""

import math

import numpy as np
import pytest
import torch

from fastdiff.evaluation import PrecisionRecall, neighbour_radii, precision_recall
from fastdiff.kernels import InvalidTypeError, InvalidValueError


def normal(seed: int, rows: int, columns: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale + shift


def brute_force(images: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float]:
    """Precision and recall pair by pair, with differences and no products."""

    def radius(points, i):
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    def covered(points, others):
        radii = [radius(others, i) for i in range(len(others))]
        inside = [any(math.dist(p, q) <= r for q, r in zip(others, radii, strict=True)) for p in points]
        return sum(inside) / len(points)

    return covered(images, reference), covered(reference, images)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("rows", "columns", "shift"), [((40, 60), 1, 3.0), ((50, 30), 3, 1.0), ((30, 30), 20, 0.2)])
def test_against_brute_force(k, rows, columns, shift):
    a, b = normal(1, rows[0], columns, shift=shift), normal(2, rows[1], columns, scale=1.3)
    found = precision_recall(a, b, k)
    assert (found.precision, found.recall) == pytest.approx(brute_force(a.numpy(), b.numpy(), k), abs=1e-12)
    assert 0 < found.precision < 1 or 0 < found.recall < 1
    assert (found.images, found.reference, found.k) == (*rows, k)
    swapped = precision_recall(b, a, k)
    assert (swapped.precision, swapped.recall) == (found.recall, found.precision)


def test_blocks_do_not_change_the_result(monkeypatch):
    a, b = normal(3, 101, 4, shift=1.0), normal(4, 67, 4)
    whole = precision_recall(a, b)
    for size in (1, 67, 500):
        monkeypatch.setitem(precision_recall.__globals__, "BLOCK", size)  # the module has the function's name
        assert precision_recall(a, b) == whole


def test_radii_of_the_reference_that_are_computed_once():
    """Each is the distance of brute force; the result is the same bit by bit."""
    a, b = normal(3, 101, 4, shift=1.0), normal(4, 67, 4)
    for k in (1, 3):
        radii = neighbour_radii(b, k)
        expected = [sorted(math.dist(p, q) ** 2 for q in b.tolist())[k] for p in b.tolist()]
        assert radii.tolist() == pytest.approx(expected, rel=1e-12)
        assert precision_recall(a, b, k, radii) == precision_recall(a, b, k)
    with pytest.raises(InvalidValueError, match=r"reference_radii must have shape \[67\], got \(66,\)"):
        precision_recall(a, b, 3, radii[1:])
    with pytest.raises(InvalidValueError, match="N, M > k = 3"):
        neighbour_radii(b[:3])


def test_a_set_against_itself():
    """All duplicates too, whose radii are zero, far from the origin and in single precision."""
    for features in (normal(5, 50, 8), normal(5, 50, 8, shift=1e4).float(), normal(6, 5, 30).repeat(6, 1) + 1e3):
        found = precision_recall(features, features.clone())
        assert found == PrecisionRecall(1.0, 1.0, 0.0, len(features), len(features), 3)


def test_sets_far_apart():
    found = precision_recall(normal(7, 40, 5), normal(8, 30, 5, shift=100.0))
    assert (found.precision, found.recall, found.precision_error) == (0.0, 0.0, 0.0)


def test_points_on_a_line():
    """Radii by hand, k = 1: the reference 0, 1, 10, 12 covers [-1, 2] and [8, 14]; the images 2, 5, 6 cover [-1, 7]."""
    images, reference = torch.tensor([[2.0], [5.0], [6.0]]), torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    found = precision_recall(images, reference, k=1)
    assert (found.precision, found.recall) == (1 / 3, 2 / 4)
    assert found.precision_error == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 3), rel=1e-14)


def test_a_dropped_mode_lowers_the_recall_alone():
    """The reference has two far modes, the images one of them; and the reverse."""
    one, two = normal(9, 300, 2), torch.cat([normal(10, 150, 2), normal(11, 150, 2, shift=50.0)])
    found = precision_recall(one, two)
    assert found.precision > 0.9
    assert 0.4 < found.recall < 0.51
    found = precision_recall(two, one)
    assert found.recall > 0.9
    assert 0.4 < found.precision < 0.51


def test_the_standard_error_is_that_of_drawing_the_images():
    """Its square is the variance of the precision over 400 sets of 50 images, within 4 of its own standard errors."""
    reference = normal(12, 60, 2)
    found = [precision_recall(normal(100 + i, 50, 2, shift=1.0), reference) for i in range(400)]
    variance = np.var([each.precision for each in found], ddof=1)
    predicted = np.mean([each.precision_error**2 for each in found]) * 50 / 49
    assert variance == pytest.approx(predicted, rel=4 * math.sqrt(2 / 399))


@pytest.mark.parametrize(
    ("images", "reference", "k", "error", "words"),
    [
        (torch.ones(9, 2), torch.ones(9, 2), 0, InvalidValueError, "k must be an integer >= 1, got 0"),
        (torch.ones(9, 2), torch.ones(9, 2), 2.0, InvalidValueError, "k must be"),
        (torch.ones(9, 2), torch.ones(9, 2), True, InvalidValueError, "k must be"),
        (torch.ones(3, 2), torch.ones(9, 2), 3, InvalidValueError, "N, M > k = 3"),
        (torch.ones(9, 2), torch.ones(3, 2), 3, InvalidValueError, "N, M > k = 3"),
        (torch.ones(9, 2), torch.ones(9, 3), 3, InvalidValueError, "images and reference must have shapes"),
        (torch.ones(9, 0), torch.ones(9, 0), 3, InvalidValueError, "F >= 1"),
        (torch.ones(9), torch.ones(9), 3, InvalidValueError, "shapes"),
        (torch.ones(9, 2).long(), torch.ones(9, 2), 3, InvalidTypeError, "images must be a floating-point"),
        (torch.ones(9, 2), [1.0], 3, InvalidTypeError, "reference must be a floating-point"),
        (torch.ones(9, 2), torch.full((9, 2), torch.nan), 3, InvalidValueError, "reference must be finite"),
    ],
)
def test_wrong_input(images, reference, k, error, words):
    with pytest.raises(error, match=words):
        precision_recall(images, reference, k)
