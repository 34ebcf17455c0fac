"""The forward kernels of `group_norm`, and their launcher.

If a group fits on chip, one kernel reads each source once and writes y, and the total if there is a residual or a skip.
Otherwise one kernel computes the moments of tiles of pixels and channels, and writes the total; a second merges the
moments per group, and a third applies them to x or to the total.
"""

import torch
from torch import Tensor

from ._triton import constexpr, jit, tl
from .group_norm_blocks import (
    TILE,
    adjacent,
    gain_and_offset,
    groups_of_program,
    load_sum,
    of_group,
    of_sample,
    pixel_tiles,
    pixels_of,
    places,
    silu,
    tile_of_program,
    warps,
    whole_groups,
    within,
)
from .group_norm_layout import dense_of, empty, laid_out, no_result, result_like
from .launch import power_of_two


@jit
def norm_silu_kernel(
    x_ptr, pre_shift_ptr, residual_ptr, skip_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, y_ptr, total_ptr,
    mean_ptr, rstd_ptr, pixels, pre_shift_row, scale_row, shift_row, eps,
    C: constexpr, CX: constexpr, CG: constexpr, GROUPS: constexpr, LAST: constexpr, FULL_P: constexpr,
    FULL_C: constexpr,
    ACTIVATION: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """y, total, mean and rstd of GROUPS groups of CG channels of one sample, kept on chip from read to write."""
    sample, c, used = groups_of_program(C, CG, GROUPS, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    inside = within(p, used, pixels, FULL_P, FULL_C, BLOCK_P, BLOCK_C)
    u = load_sum(
        x_ptr, pre_shift_ptr, residual_ptr, skip_ptr, total_ptr, pre_shift_row, sample, p, c, used, pixels,
        C, CX, LAST, FULL_P, FULL_C, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    count = tl.cast(pixels * CG, tl.float32)
    mean = of_group(tl.sum(u, 0), CG, GROUPS, BLOCK_C) / count
    u = tl.where(inside, u - mean[None, :], 0.0)
    rstd = tl.rsqrt(of_group(tl.sum(u * u, 0), CG, GROUPS, BLOCK_C) / count + eps)
    a, b = gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, used)
    v = u * (a * rstd)[None, :] + b[None, :]
    y = silu(v) if ACTIVATION else v
    target = of_sample(y_ptr, sample, pixels * C) + places(p, c, pixels, C, LAST)
    tl.store(target, y.to(y_ptr.dtype.element_ty), mask=inside)
    group, first = sample.to(tl.int64) * (C // CG) + c // CG, used & (c % CG == 0)
    tl.store(mean_ptr + group, mean, mask=first)
    tl.store(rstd_ptr + group, rstd, mask=first)


@jit
def moments_kernel(
    x_ptr, pre_shift_ptr, residual_ptr, skip_ptr, total_ptr, mean_ptr, square_ptr, pixels, chunks, pre_shift_row,
    C: constexpr, CX: constexpr, LAST: constexpr, FULL_P: constexpr, FULL_C: constexpr, BLOCK_P: constexpr,
    BLOCK_C: constexpr,
):  # fmt: skip
    """Mean of u, and sum of squared distances from it, of each channel over one chunk of pixels: [rows, C]."""
    sample, row, p, c = tile_of_program(chunks, C, BLOCK_P, BLOCK_C)
    u = load_sum(
        x_ptr, pre_shift_ptr, residual_ptr, skip_ptr, total_ptr, pre_shift_row, sample, p, c, c < C, pixels,
        C, CX, LAST, FULL_P, FULL_C, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    mean = tl.sum(u, 0) / tl.sum((p < pixels).to(tl.float32), 0)
    u = tl.where(within(p, c < C, pixels, FULL_P, FULL_C, BLOCK_P, BLOCK_C), u - mean[None, :], 0.0)
    tl.store(mean_ptr + row * C + c, mean, mask=c < C)
    tl.store(square_ptr + row * C + c, tl.sum(u * u, 0), mask=c < C)


@jit
def merge_moments_kernel(
    partial_mean_ptr, square_ptr, mean_ptr, rstd_ptr, pixels, chunks, eps,
    C: constexpr, CG: constexpr, BLOCK_P: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Mean and rstd of one group from the moments of its channels and chunks, in a fixed order (Chan et al. 1983)."""
    program = tl.program_id(0)
    first = (program // (C // CG)).to(tl.int64) * chunks * C + (program % (C // CG)) * CG
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks * CG, BLOCK):
        k = start + tl.arange(0, BLOCK)
        chunk, inside = k // CG, k < chunks * CG
        size = tl.minimum(pixels - chunk * BLOCK_P, BLOCK_P).to(tl.float32)
        total += size * tl.load(partial_mean_ptr + first + chunk * C + k % CG, mask=inside, other=0.0)
    count = tl.cast(pixels * CG, tl.float32)
    mean = tl.sum(total) / count
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks * CG, BLOCK):
        k = start + tl.arange(0, BLOCK)
        chunk, inside = k // CG, k < chunks * CG
        size = tl.minimum(pixels - chunk * BLOCK_P, BLOCK_P).to(tl.float32)
        distance = tl.load(partial_mean_ptr + first + chunk * C + k % CG, mask=inside, other=0.0) - mean
        square = tl.load(square_ptr + first + chunk * C + k % CG, mask=inside, other=0.0)
        squares += tl.where(inside, square + size * distance * distance, 0.0)
    tl.store(mean_ptr + program, mean)
    tl.store(rstd_ptr + program, tl.rsqrt(tl.sum(squares) / count + eps))


@jit
def norm_apply_kernel(
    x_ptr, pre_shift_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, y_ptr,
    pixels, chunks, pre_shift_row, scale_row, shift_row, C: constexpr, CG: constexpr, LAST: constexpr,
    FULL_P: constexpr, FULL_C: constexpr, ACTIVATION: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """y of a chunk of pixels and some channels of one sample, from mean and rstd."""
    sample, _, p, c = tile_of_program(chunks, C, BLOCK_P, BLOCK_C)
    group = sample.to(tl.int64) * (C // CG) + c // CG
    mean = tl.load(mean_ptr + group, mask=c < C, other=0.0)
    rstd = tl.load(rstd_ptr + group, mask=c < C, other=0.0)
    a, b = gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, c < C)
    u = load_sum(
        x_ptr, pre_shift_ptr, None, None, None, pre_shift_row, sample, p, c, c < C, pixels,
        C, C, LAST, FULL_P, FULL_C, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    v = (u - mean[None, :]) * (a * rstd)[None, :] + b[None, :]
    y = silu(v) if ACTIVATION else v
    inside = within(p, c < C, pixels, FULL_P, FULL_C, BLOCK_P, BLOCK_C)
    target = of_sample(y_ptr, sample, pixels * C) + places(p, c, pixels, C, LAST)
    tl.store(target, y.to(y_ptr.dtype.element_ty), mask=inside)


def forward_triton(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
    pre_shift: Tensor | None, residual: Tensor | None, skip: Tensor | None, activation: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch one kernel if a group fits on chip, else the moments, their merging, and the result."""
    batch, channels = x.shape[0], len(weight)
    pixels = pixels_of(x, channels)
    if not x.numel():
        return no_result(x, groups, weight, residual, skip)
    mean, rstd = (x.new_empty(batch, groups, dtype=torch.float32) for _ in range(2))
    dense, last = dense_of(x)
    y = empty((batch, channels, *x.shape[2:]), x, last)
    total = None if residual is None and skip is None else torch.empty_like(y)
    residual, skip = (None if part is None else laid_out(part, last) for part in (residual, skip))
    (added, added_row), (scale, scale_row), (shift, shift_row) = adjacent(pre_shift), adjacent(scale), adjacent(shift)
    affine = weight.contiguous(), bias.contiguous(), scale, shift
    rows = added_row, scale_row, shift_row
    sources = dense, added, residual, skip
    shape = {"C": channels, "CG": channels // groups, "LAST": last, "ACTIVATION": activation}
    whole = whole_groups(channels, groups, pixels, x.element_size())
    if whole is not None:
        programs = batch * -(-groups // whole["GROUPS"])
        norm_silu_kernel[(programs,)](
            *sources, *affine, y, total, mean, rstd, pixels, *rows, eps, CX=x.shape[1], **shape, **whole
        )
    else:
        _launch_tiles(sources, affine, y, total, mean, rstd, pixels, rows, eps, shape)
    total = x.new_empty(0) if total is None else result_like(total, dense, x)
    return result_like(y, dense, x), total, mean, rstd


def _launch_tiles(
    sources: tuple, affine: tuple, y: Tensor, total: Tensor | None, mean: Tensor, rstd: Tensor, pixels: int,
    rows: tuple[int, int, int], eps: float, shape: dict[str, int],
) -> None:  # fmt: skip
    """Launch the moments, which write the total, their merging, and the result from x, or from the total."""
    x, pre_shift, *_ = sources
    batch, channels, of_group = x.shape[0], shape["C"], shape["CG"]
    tiles = pixel_tiles(channels, pixels, x.element_size())
    chunks = -(-pixels // tiles["BLOCK_P"])
    programs = batch * chunks * -(-channels // tiles["BLOCK_C"])
    partial = x.new_empty(2, batch * chunks, channels, dtype=torch.float32)
    where = {"C": channels, "CX": x.shape[1], "LAST": shape["LAST"], **tiles}
    moments_kernel[(programs,)](*sources, total, partial[0], partial[1], pixels, chunks, rows[0], **where)
    block = min(TILE, power_of_two(chunks * of_group))
    merge_moments_kernel[(mean.numel(),)](
        partial[0], partial[1], mean, rstd, pixels, chunks, eps, C=channels, CG=of_group, BLOCK_P=tiles["BLOCK_P"],
        BLOCK=block, num_warps=warps(block),
    )  # fmt: skip
    if total is not None:
        x, pre_shift = total, None
    norm_apply_kernel[(programs,)](x, pre_shift, mean, rstd, *affine, y, pixels, chunks, *rows, **shape, **tiles)
