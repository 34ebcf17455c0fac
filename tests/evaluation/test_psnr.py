"""PSNR by its definition."""

import math

import pytest
import torch
from tiny import images

from fastdiff.evaluation import psnr
from fastdiff.kernels import FastdiffError, to_unit_range


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_psnr_by_its_definition(levels):
    """In units of levels: 20 log10(levels - 1) - 10 log10(mean squared difference)."""
    x, y = (images(6, seed, levels=levels) for seed in (1, 2))
    for row, value in zip(range(6), psnr(x, y, levels), strict=True):
        squares = [(int(a) - int(b)) ** 2 for a, b in zip(x[row].flatten(), y[row].flatten(), strict=True)]
        assert abs(float(value) - 10 * math.log10((levels - 1) ** 2 / (sum(squares) / 64))) < 1e-12
    torch.testing.assert_close(psnr(x, to_unit_range(y, levels), levels), psnr(x, y, levels), rtol=0, atol=1e-5)
    assert psnr(x, x, levels).isinf().all()


def test_arguments_that_are_rejected():
    x = images(6)
    with pytest.raises(FastdiffError, match="others must be"):
        psnr(x, x.float(), 17)
    with pytest.raises(TypeError, match="images must have dtype"):
        psnr(x.float(), x, 17)
    for others, levels in ((x[:5], 17), (x, 1)):
        with pytest.raises(FastdiffError, match="one shape"):
            psnr(x, others, levels)
