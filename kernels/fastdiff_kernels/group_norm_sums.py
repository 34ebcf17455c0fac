"""Sums of the backward kernels of `group_norm` over chunks of pixels and over the batch, in a fixed order."""

from torch import Tensor

from ._triton import constexpr, jit, tl
from .group_norm_blocks import gain_and_offset, warps
from .launch import power_of_two


@jit
def store_channels(
    s1, s2, weight_ptr, bias_ptr, scale_ptr, scale_row, dscale_ptr, dshift_ptr, partial_ptr, batch, sample, c, used,
    C: constexpr,
):  # fmt: skip
    """Write dscale and dshift, and the sample's parts (1 + scale) S1 of dbias and (1 + scale) S2 of dweight."""
    at = sample.to(tl.int64) * C + c
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + sample.to(tl.int64) * scale_row + c, mask=used, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + c, mask=used, other=0.0)
        bias = tl.load(bias_ptr + c, mask=used, other=0.0)
        tl.store(dscale_ptr + at, (weight * s2 + bias * s1).to(dscale_ptr.dtype.element_ty), mask=used)
        tl.store(dshift_ptr + at, s1.to(dshift_ptr.dtype.element_ty), mask=used)
        s1, s2 = s1 * (1.0 + scale), s2 * (1.0 + scale)
    tl.store(partial_ptr + at, s1, mask=used)
    tl.store(partial_ptr + tl.cast(batch, tl.int64) * C + at, s2, mask=used)


@jit
def column_sums(table_ptr, rows, c, used, WIDTH: constexpr, BLOCK_K: constexpr, BLOCK_C: constexpr):
    """Add up the rows of a table [rows, WIDTH] in its columns c, in a fixed order."""
    total = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, rows, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (k < rows)[:, None] & used[None, :]
        at = k.to(tl.int64)[:, None] * WIDTH + c[None, :]
        total += tl.sum(tl.load(table_ptr + at, mask=inside, other=0.0), 0)
    return total


@jit
def collect_sums_kernel(
    s1_ptr, s2_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, dscale_ptr, dshift_ptr, partial_ptr, mean_d_ptr,
    mean_d_uhat_ptr, batch, pixels, chunks, scale_row, shift_row,
    C: constexpr, CG: constexpr, BLOCK_K: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """S1 and S2 of one group's channels from the chunks, the gradients from them, and their means with weights A."""
    program = tl.program_id(0)
    sample, group = program // (C // CG), program % (C // CG)
    first = sample.to(tl.int64) * chunks * C
    total_d, total_d_uhat = 0.0, 0.0
    for start in range(0, CG, BLOCK_C):
        j = start + tl.arange(0, BLOCK_C)
        c, used = group * CG + j, j < CG
        s1 = column_sums(s1_ptr + first, chunks, c, used, C, BLOCK_K, BLOCK_C)
        s2 = column_sums(s2_ptr + first, chunks, c, used, C, BLOCK_K, BLOCK_C)
        a, _ = gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, used)
        total_d += tl.sum(a * s1)
        total_d_uhat += tl.sum(a * s2)
        store_channels(
            s1, s2, weight_ptr, bias_ptr, scale_ptr, scale_row, dscale_ptr, dshift_ptr, partial_ptr, batch, sample, c,
            used, C,
        )  # fmt: skip
    count = tl.cast(pixels * CG, tl.float32)
    tl.store(mean_d_ptr + program, total_d / count)
    tl.store(mean_d_uhat_ptr + program, total_d_uhat / count)


@jit
def add_rows_kernel(
    table_ptr, out_ptr, other_ptr, sets, rows, WIDTH: constexpr, BLOCK_K: constexpr, BLOCK_C: constexpr
):
    """out [sets, WIDTH], the sums over the rows of a table [sets, rows, WIDTH]; ``other`` those of a second one."""
    blocks: constexpr = (WIDTH + BLOCK_C - 1) // BLOCK_C
    group = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    used = c < WIDTH
    total = column_sums(table_ptr + group * rows * WIDTH, rows, c, used, WIDTH, BLOCK_K, BLOCK_C)
    tl.store(out_ptr + group * WIDTH + c, total.to(out_ptr.dtype.element_ty), mask=used)
    if other_ptr is not None:
        total = column_sums(table_ptr + (sets + group) * rows * WIDTH, rows, c, used, WIDTH, BLOCK_K, BLOCK_C)
        tl.store(other_ptr + group * WIDTH + c, total, mask=used)


def add_rows(table: Tensor, out: Tensor, other: Tensor | None = None) -> None:
    """Write the sums over the rows of a table [sets, rows, C] to out [sets, C]. With ``other`` the table holds two."""
    sets, rows, width = table.shape
    if other is not None:
        sets //= 2
    block_c = min(power_of_two(width), 32)
    block_k = min(power_of_two(rows), 2048 // block_c)
    add_rows_kernel[(sets * -(-width // block_c),)](
        table, out, other, sets, rows, WIDTH=width, BLOCK_K=block_k, BLOCK_C=block_c,
        num_warps=warps(block_k * block_c),
    )  # fmt: skip
