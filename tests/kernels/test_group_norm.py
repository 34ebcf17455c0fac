"""GroupNorm + SiLU against float64: three implementations, any channels and groups, any layout, extreme statistics.

Errors are relative to the largest entry of the float64 result, and tolerances are slightly above the measured errors.
Measured in float32: 9.3e-7, and 4e-6 for the gradients to weight and bias of images of 200 × 200. At mean 1000 and
standard deviation 1, where float32 data have four digits: values 7e-5, gradients 3e-4.
"""

from itertools import product

import numpy as np
import oracle
import pytest
import torch
from fastdiff_kernels import group_norm_blocks, group_norm_gradient, group_norm_kernels, group_norm_silu
from lengths import usually
from norms import DTYPES, LAYOUTS, PATHS, arguments, assert_close, draw, error, ours, run
from torch.utils._python_dispatch import TorchDispatchMode

ONE_KERNEL = (
    ((2, 8, 4, 4), 4),
    ((2, 6, 5, 3), 3),
    ((3, 5, 7, 1), 5),  # a channel per group
    ((2, 7, 3, 3), 1),  # one group
    ((1, 192, 4, 4), 32),  # 6 channels per group, several groups per program
    ((2, 48, 9, 9), 8),
    ((2, 130, 5, 5), 2),
    ((3, 12, 5), 4),
    ((2, 4, 3, 2, 5), 2),
    ((4, 10), 2),  # no pixels but one
)
TILES = (((2, 36, 33, 33), 2), ((1, 3, 130, 130), 1), ((1, 1, 200, 200), 1))


EVERY = list(product(PATHS, DTYPES, ("channels last", "contiguous")))
USUAL = [*EVERY[:6], ("interpreter", torch.float32, "channels last"), ("interpreter", torch.bfloat16, "contiguous")]


@pytest.mark.parametrize(("path", "dtype", "layout"), usually(USUAL, EVERY, True), ids=str)
def test_values_and_gradients(path, dtype, layout):
    every = path == "torch" or dtype == torch.float32  # the interpreter is slow, and casts alike at any shape
    for place, (shape, groups) in enumerate(ONE_KERNEL if every else ONE_KERNEL[:4]):
        for modulated in (False, True) if path == "torch" else (place % 2 == 0,):
            tensors = arguments(shape, dtype, layout, modulated)
            upstream = draw(*shape, seed=9).to(dtype)
            found = ours(path, tensors, groups, upstream)
            exact = run(oracle.group_norm_silu, [t.double() for t in tensors], groups, upstream)
            assert found[0].stride() == torch.empty_like(tensors[0]).stride()
            assert [g.dtype for g in found] == [dtype, *(t.dtype for t in tensors)]
            assert_close(path, found, exact)


@pytest.mark.parametrize(
    ("dtype", "layout"), usually([EVERY[0][1:], EVERY[3][1:]], [each[1:] for each in EVERY[:6]], True), ids=str
)
def test_groups_that_do_not_fit_on_chip(dtype, layout):
    """Values, and the gradients to x, scale and shift. Those to weight and bias are long sums that nearly cancel."""
    for shape, groups in TILES if dtype == torch.float32 else TILES[:1]:
        tensors = arguments(shape, dtype, layout)
        assert (
            group_norm_blocks.whole_groups(shape[1], groups, tensors[0][0, 0].numel(), tensors[0].element_size())
            is None
        )
        upstream = draw(*shape, seed=9).to(dtype)
        found = ours("interpreter", tensors, groups, upstream)
        exact = run(oracle.group_norm_silu, [t.double() for t in tensors], groups, upstream)
        assert_close("interpreter", [*found[:2], *found[4:]], [*exact[:2], *exact[4:]])
        for value, expected in zip(found[2:4], exact[2:4], strict=True):
            assert error(value, expected) < 5e-6


@pytest.mark.parametrize("layout", ["channels last", "contiguous"])
@pytest.mark.parametrize("path", [*PATHS, "tiles"])
def test_the_variance_at_a_large_mean(path, layout, monkeypatch):
    """E[x²] - E[x]² of numbers about 1000 has no correct digit in float32."""
    if path == "tiles":
        monkeypatch.setattr(group_norm_blocks, "ON_CHIP", 0)
    shape, groups = (2, 24, 16, 16), 4
    tensors, upstream = arguments(shape, layout=layout, mean=1000.0), draw(*shape, seed=9)
    found = ours("interpreter" if path == "tiles" else path, tensors, groups, upstream)
    exact = run(oracle.group_norm_silu, [t.double() for t in tensors], groups, upstream)
    assert error(found[0], exact[0]) < 1e-4
    for value, expected in zip(found[1:], exact[1:], strict=True):
        assert error(value, expected) < 5e-4


def test_whole_groups_and_tiles_agree(monkeypatch):
    tensors, upstream = arguments((2, 10, 13, 7), layout="contiguous"), draw(2, 10, 13, 7, seed=9)
    whole = ours("interpreter", tensors, 5, upstream)
    monkeypatch.setattr(group_norm_blocks, "ON_CHIP", 0)
    for value, expected in zip(ours("interpreter", tensors, 5, upstream), whole, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, path):
    """The same numbers as for a contiguous x, in the layout of `empty_like`, for any layout of the gradient."""
    tensors = arguments((2, 6, 4, 5), layout=layout)
    plain = [t.contiguous() for t in tensors]
    upstream = draw(2, 6, 4, 5, seed=9)
    expected = ours(path, plain, 3, upstream)
    for there in (upstream, LAYOUTS["channels last"](upstream), upstream[:1, :1].expand(2, 6, 4, 5)):
        found = ours(path, tensors, 3, there)
        assert found[0].stride() == torch.empty_like(tensors[0]).stride()
        torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
        if there.is_contiguous():
            for value, wanted in zip(found[1:], expected[1:], strict=True):
                torch.testing.assert_close(value, wanted, rtol=1e-6, atol=3e-6)


class Copies(TorchDispatchMode):
    """Records the copies of data of some sizes."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes, self.seen = sizes, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.copy_.default, torch.ops.aten.clone.default) and out.numel() in self.sizes:
            self.seen.append(str(func))
        return out


@pytest.mark.parametrize("layout", ["channels last", "contiguous"])
@pytest.mark.parametrize("on_chip", [group_norm_blocks.ON_CHIP, 0])
def test_no_copy_of_dense_data(layout, on_chip, monkeypatch):
    monkeypatch.setattr(group_norm_blocks, "ON_CHIP", on_chip)
    x, skip = (LAYOUTS[layout](draw(2, 6, 4, 5, seed=k)) for k in range(2))
    grad, grad_total = (LAYOUTS[layout](draw(2, 12, 4, 5, seed=k)) for k in (2, 6))
    weight, bias = draw(12, seed=3), draw(12, seed=4)
    pre_shift = draw(6, seed=5).expand(2, 6)
    with Copies(x.numel(), pre_shift.numel()) as copies:
        for activation in (True, False):
            options = *[None] * 2, pre_shift, x, skip, activation
            _, total, mean, rstd = group_norm_kernels.forward_triton(x, 3, weight, bias, *options, 1e-5)
            affine = weight, bias, None, None, pre_shift, x.shape[1], activation, True
            group_norm_gradient.gradient_triton(grad, grad_total, total, mean, rstd, *affine)
    assert copies.seen == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("path", [*PATHS, "tiles"])
def test_nan_and_inf_spread_over_their_group_only(path, value, monkeypatch):
    if path == "tiles":
        monkeypatch.setattr(group_norm_blocks, "ON_CHIP", 0)
    x, weight, bias, *_ = arguments((2, 8, 3, 3))
    x[1, 3, 1, 2] = value
    with np.errstate(all="ignore"):
        y, grad_x, *_ = ours("interpreter" if path == "tiles" else path, [x, weight, bias], 4, torch.ones(2, 8, 3, 3))
    hit = torch.zeros(2, 8, 3, 3, dtype=torch.bool)
    hit[1, 2:4] = True
    for result in (y, grad_x):
        assert torch.equal(result.isnan(), hit)


@pytest.mark.parametrize("path", PATHS)
def test_no_elements_and_single_pixels(path):
    for shape in ((0, 4, 3, 3), (2, 4, 0, 3), (0, 4)):
        tensors = arguments(shape, layout="contiguous")
        y, grad_x, *others = ours(path, tensors, 2, torch.empty(shape))
        assert y.shape == grad_x.shape == shape
        assert all(not gradient.any() for gradient in others)
    for shape in ((2, 4, 1, 1), (2, 4)):  # a group of one element: xhat is 0
        x, weight, bias, *_ = arguments(shape)
        y, grad_x, *_ = ours(path, [x, weight, bias], 4, torch.ones(shape))
        expected = torch.nn.functional.silu(bias).view(1, 4, *[1] * (len(shape) - 2)).expand(shape)
        torch.testing.assert_close(y, expected)
        assert grad_x.abs().max() < 1e-4  # rounding, times an rstd of 316


def test_compiles_without_a_break():
    def loss(x, weight, bias, scale, shift):
        return group_norm_silu(x * 1.5, 3, weight, bias, scale, shift).square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.detach().requires_grad_() for t in arguments((2, 6, 4, 5))]
        value = function(*leaves)
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_programs_take_groups_until_a_sector_is_full():
    """For typical sizes; and for any size no more than a program can hold. Its warps have work for each thread."""
    for dtype, expected in ((torch.float32, 2), (torch.bfloat16, 4)):
        chosen = group_norm_blocks.whole_groups(128, 32, 1024, dtype.itemsize)
        assert chosen is not None
        assert chosen["GROUPS"] == expected
        assert chosen["GROUPS"] * 4 * dtype.itemsize == group_norm_blocks.SECTOR
    for channels in (1, 2, 3, 6, 24, 48, 128, 192, 1000):
        for groups in (g for g in range(1, channels + 1) if channels % g == 0):
            for pixels in (1, 9, 64, 1000, 1024, 5000, 70000):
                chosen = group_norm_blocks.whole_groups(channels, groups, pixels, 4)
                if chosen is None:
                    continue
                taken, p, c = chosen["GROUPS"], chosen["BLOCK_P"], chosen["BLOCK_C"]
                assert pixels <= p
                assert taken * channels // groups <= c
                assert p * c <= group_norm_blocks.ON_CHIP
                assert taken == 1 or c <= group_norm_blocks.MERGED
