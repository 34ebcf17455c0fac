"""The backward kernels of `group_norm`, and their launcher. The equations stand in `group_norm`.

u is x, or the total if one was written. If a group fits on chip, one kernel reads u and the upstream gradients once,
keeps d and uhat, and writes all gradients but those to weight and bias: of these it writes the part of each sample.
Otherwise one kernel writes partial sums S1 and S2 of each tile, a second adds them up per sample and channel and takes
the means over each group, and a third writes dx and dskip. A last kernel adds up the samples' parts, and in tiles a
further one those of dpre_shift.
"""

import torch
from torch import Tensor

from ._triton import constexpr, jit, tl
from .group_norm_blocks import (
    MINUS_LOG2_E,
    adjacent,
    gain_and_offset,
    groups_of_program,
    load_sum,
    of_either,
    of_group,
    of_sample,
    pixel_tiles,
    pixels_of,
    places,
    tile_of_program,
    whole_groups,
    within,
)
from .group_norm_layout import dense_of, empty_gradients, laid_out, result_like
from .group_norm_sums import add_rows, collect_sums_kernel, store_channels
from .launch import power_of_two


@jit
def of_groups(first_ptr, second_ptr, sample, c, used, C: constexpr, CG: constexpr):
    """Two values per group of one sample, for its channels c."""
    group = sample.to(tl.int64) * (C // CG) + c // CG
    return tl.load(first_ptr + group, mask=used, other=0.0), tl.load(second_ptr + group, mask=used, other=0.0)


@jit
def upstream_of_norm(
    grad_ptr, u_ptr, pre_shift_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
    pre_shift_row, scale_row, shift_row, sample, p, c, used, pixels, C: constexpr, CG: constexpr, LAST: constexpr,
    FULL_P: constexpr, FULL_C: constexpr, ACTIVATION: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """d = grad silu'(v) and uhat, 0 outside; A and rstd of the channels."""
    inside = within(p, used, pixels, FULL_P, FULL_C, BLOCK_P, BLOCK_C)
    source = of_sample(grad_ptr, sample, pixels * C) + places(p, c, pixels, C, LAST)
    d = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    u = load_sum(
        u_ptr, pre_shift_ptr, None, None, None, pre_shift_row, sample, p, c, used, pixels,
        C, C, LAST, FULL_P, FULL_C, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    mean, rstd = of_groups(mean_ptr, rstd_ptr, sample, c, used, C, CG)
    gain, offset = gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, used)
    uhat = tl.where(inside, (u - mean[None, :]) * rstd[None, :], 0.0)
    if ACTIVATION:
        v = uhat * gain[None, :] + offset[None, :]
        s = 1.0 / (1.0 + tl.exp2(v * MINUS_LOG2_E))
        d = d * (s * (1.0 + v * (1.0 - s)))
    return d, uhat, gain, rstd


@jit
def store_inputs(
    d, uhat, gain, mean_d, mean_d_uhat, rstd, grad_total_ptr, dx_ptr, dskip_ptr, sample, p, c, used, pixels,
    C: constexpr, CX: constexpr, LAST: constexpr, FULL_P: constexpr, FULL_C: constexpr, BLOCK_P: constexpr,
    BLOCK_C: constexpr,
):  # fmt: skip
    """Write du + grad_total to dx and dskip. Return the sums of dx over the pixels, and the channels of x."""
    du = d * (gain * rstd)[None, :] - (mean_d * rstd)[None, :] - uhat * (mean_d_uhat * rstd)[None, :]
    inside = within(p, used, pixels, FULL_P, FULL_C, BLOCK_P, BLOCK_C)
    of_x = used & (c < CX) if CX < C else used
    at = places(p, c, pixels, C, LAST)
    if grad_total_ptr is not None:
        addend = tl.load(of_sample(grad_total_ptr, sample, pixels * C) + at, mask=inside, other=0.0)
        du += addend.to(tl.float32)
    if CX < C:
        target = of_either(dx_ptr, dskip_ptr, sample, p, c, pixels, C, CX, LAST)
    else:
        target = of_sample(dx_ptr, sample, pixels * C) + at
    tl.store(target, du.to(dx_ptr.dtype.element_ty), mask=inside)
    return tl.sum(tl.where(inside, du, 0.0), 0), of_x


@jit
def whole_gradient_kernel(
    grad_ptr, grad_total_ptr, u_ptr, pre_shift_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr,
    shift_ptr, dx_ptr, dskip_ptr, dpre_shift_ptr, dscale_ptr, dshift_ptr, partial_ptr,
    batch, pixels, pre_shift_row, scale_row, shift_row, C: constexpr, CX: constexpr, CG: constexpr,
    GROUPS: constexpr, LAST: constexpr, FULL_P: constexpr, FULL_C: constexpr, ACTIVATION: constexpr, BLOCK_P: constexpr,
    BLOCK_C: constexpr,
):  # fmt: skip
    """All gradients of GROUPS groups of CG channels of one sample; those to weight and bias before the batch's sum."""
    sample, c, used = groups_of_program(C, CG, GROUPS, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    d, uhat, gain, rstd = upstream_of_norm(
        grad_ptr, u_ptr, pre_shift_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
        pre_shift_row, scale_row, shift_row, sample, p, c, used, pixels, C, CG, LAST, FULL_P, FULL_C,
        ACTIVATION, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    s1, s2 = tl.sum(d, 0), tl.sum(d * uhat, 0)
    count = tl.cast(pixels * CG, tl.float32)
    mean_d = of_group(gain * s1, CG, GROUPS, BLOCK_C) / count
    mean_d_uhat = of_group(gain * s2, CG, GROUPS, BLOCK_C) / count
    sum_dx, of_x = store_inputs(
        d, uhat, gain, mean_d, mean_d_uhat, rstd, grad_total_ptr, dx_ptr, dskip_ptr, sample, p, c, used, pixels,
        C, CX, LAST, FULL_P, FULL_C, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    if dpre_shift_ptr is not None:
        at = sample.to(tl.int64) * CX + c
        tl.store(dpre_shift_ptr + at, sum_dx.to(dpre_shift_ptr.dtype.element_ty), mask=of_x)
    store_channels(
        s1, s2, weight_ptr, bias_ptr, scale_ptr, scale_row, dscale_ptr, dshift_ptr, partial_ptr, batch, sample, c,
        used, C,
    )  # fmt: skip


@jit
def norm_sums_kernel(
    grad_ptr, u_ptr, pre_shift_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, s1_ptr,
    s2_ptr, pixels, chunks, pre_shift_row, scale_row, shift_row, C: constexpr, CG: constexpr,
    LAST: constexpr, FULL_P: constexpr, FULL_C: constexpr, ACTIVATION: constexpr, BLOCK_P: constexpr,
    BLOCK_C: constexpr,
):  # fmt: skip
    """Σ d and Σ d uhat of each channel over one chunk of pixels: [rows, C]."""
    sample, row, p, c = tile_of_program(chunks, C, BLOCK_P, BLOCK_C)
    d, uhat, _, _ = upstream_of_norm(
        grad_ptr, u_ptr, pre_shift_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
        pre_shift_row, scale_row, shift_row, sample, p, c, c < C, pixels, C, CG, LAST, FULL_P, FULL_C,
        ACTIVATION, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    tl.store(s1_ptr + row * C + c, tl.sum(d, 0), mask=c < C)
    tl.store(s2_ptr + row * C + c, tl.sum(d * uhat, 0), mask=c < C)


@jit
def norm_gradient_kernel(
    grad_ptr, grad_total_ptr, u_ptr, pre_shift_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr,
    shift_ptr, mean_d_ptr, mean_d_uhat_ptr, dx_ptr, dskip_ptr, sum_dx_ptr,
    pixels, chunks, pre_shift_row, scale_row, shift_row, C: constexpr, CX: constexpr, CG: constexpr,
    LAST: constexpr, FULL_P: constexpr, FULL_C: constexpr, ACTIVATION: constexpr, BLOCK_P: constexpr,
    BLOCK_C: constexpr,
):  # fmt: skip
    """dx and dskip of a chunk of pixels and some channels of one sample, and Σ dx of the chunk: [rows, CX]."""
    sample, row, p, c = tile_of_program(chunks, C, BLOCK_P, BLOCK_C)
    d, uhat, gain, rstd = upstream_of_norm(
        grad_ptr, u_ptr, pre_shift_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
        pre_shift_row, scale_row, shift_row, sample, p, c, c < C, pixels, C, CG, LAST, FULL_P, FULL_C,
        ACTIVATION, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    mean_d, mean_d_uhat = of_groups(mean_d_ptr, mean_d_uhat_ptr, sample, c, c < C, C, CG)
    sum_dx, of_x = store_inputs(
        d, uhat, gain, mean_d, mean_d_uhat, rstd, grad_total_ptr, dx_ptr, dskip_ptr, sample, p, c, c < C, pixels,
        C, CX, LAST, FULL_P, FULL_C, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    if sum_dx_ptr is not None:
        tl.store(sum_dx_ptr + row * CX + c, sum_dx, mask=of_x)


def gradient_triton(
    grad: Tensor, grad_total: Tensor | None, u: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
    scale: Tensor | None, shift: Tensor | None, pre_shift: Tensor | None, of_x: int, activation: bool, summed: bool,
) -> list[Tensor]:  # fmt: skip
    """Launch one kernel if a group fits on chip, else the partial sums, their collection, and dx; then the sum over
    the batch. The gradients have the order of `empty_gradients`.
    """
    batch, channels, groups = u.shape[0], len(weight), mean.shape[1]
    pixels = pixels_of(u, channels)
    if not u.numel():
        return [value.zero_() for value in empty_gradients(u, of_x, weight, scale, shift, pre_shift)]
    dense, last = dense_of(u)
    dx, dweight, dbias, *others = empty_gradients(dense, of_x, weight, scale, shift, pre_shift)
    dscale, dshift = others[:2] if scale is not None else (None, None)
    dskip = others[-1] if of_x < channels else None
    dpre_shift = others[-1 if dskip is None else -2] if pre_shift is not None else None
    grad_total = None if grad_total is None else laid_out(grad_total, last)
    (added, added_row), (scale, scale_row), (shift, shift_row) = adjacent(pre_shift), adjacent(scale), adjacent(shift)
    inputs = laid_out(grad, last), grad_total, dense, None if summed else added, mean, rstd
    affine = weight.contiguous(), bias.contiguous(), scale, shift
    outputs = dx, dskip, dpre_shift, dscale, dshift
    partial = u.new_empty(2, batch, channels, dtype=torch.float32)
    rows = added_row, scale_row, shift_row
    shape = {"C": channels, "CG": channels // groups, "LAST": last, "ACTIVATION": activation}
    whole = whole_groups(channels, groups, pixels, u.element_size(), kept=2)
    if whole is not None:
        programs = batch * -(-groups // whole["GROUPS"])
        whole_gradient_kernel[(programs,)](
            *inputs, *affine, *outputs, partial, batch, pixels, *rows, CX=of_x, **shape, **whole
        )
    else:
        _launch_tiles(inputs, affine, outputs, partial, pixels, rows, shape)
    add_rows(partial, dbias, dweight)
    return [result_like(dx, dense, u), dweight, dbias, *others]


def _launch_tiles(
    inputs: tuple, affine: tuple, outputs: tuple, partial: Tensor, pixels: int, rows: tuple[int, int, int],
    shape: dict[str, int],
) -> None:  # fmt: skip
    """Launch the partial sums, their collection, dx and dskip, and if it is wanted the sum of dx."""
    grad, grad_total, u, pre_shift, mean, rstd = inputs
    dx, dskip, dpre_shift, dscale, dshift = outputs
    batch, groups, channels, of_group = *mean.shape, shape["C"], shape["CG"]
    tiles = pixel_tiles(channels, pixels, u.element_size())
    chunks = -(-pixels // tiles["BLOCK_P"])
    programs = batch * chunks * -(-channels // tiles["BLOCK_C"])
    s1, s2 = u.new_empty(2, batch * chunks, channels, dtype=torch.float32)
    mean_d, mean_d_uhat = u.new_empty(2, batch, groups, dtype=torch.float32)
    sources = u, pre_shift, mean, rstd
    norm_sums_kernel[(programs,)](grad, *sources, *affine, s1, s2, pixels, chunks, *rows, **shape, **tiles)
    block_c = min(power_of_two(of_group), 128)
    collect_sums_kernel[(batch * groups,)](
        s1, s2, *affine, dscale, dshift, partial, mean_d, mean_d_uhat, batch, pixels, chunks, *rows[1:],
        C=channels, CG=of_group, BLOCK_K=min(power_of_two(chunks), 2048 // block_c), BLOCK_C=block_c,
    )  # fmt: skip
    sum_dx = None
    if dpre_shift is not None:
        sum_dx = u.new_empty(batch, chunks, dx.shape[1], dtype=torch.float32)
    norm_gradient_kernel[(programs,)](
        grad, grad_total, *sources, *affine, mean_d, mean_d_uhat, dx, dskip, sum_dx, pixels, chunks, *rows,
        CX=dx.shape[1], **shape, **tiles,
    )  # fmt: skip
    if sum_dx is not None and dpre_shift is not None:
        add_rows(sum_dx, dpre_shift)
