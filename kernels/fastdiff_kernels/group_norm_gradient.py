"""The gradient of the Triton half of `group_norm`: kernels over tiles of pixels and channels, and their launcher.

Three launches: partial sums S1 and S2 of each tile, their collection per sample and channel with the means over each
group, and dx. The equations stand in `group_norm`.
"""

import torch
from torch import Tensor

from ._triton import constexpr, jit, tl
from .group_norm_kernels import (
    MINUS_LOG2_E,
    dense_of,
    gain_and_offset,
    laid_out_like,
    modulation,
    pixel_tiles,
    places,
    power_of_two,
    result_like,
    tile,
)
from .launch import sample_size


@jit
def upstream_of_norm(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, pixels, scale_row, shift_row,
    sample, p, c, C: constexpr, CG: constexpr, LAST: constexpr,
):  # fmt: skip
    """d = grad silu'(v), 0 outside, and xhat of a tile; A and rstd of its channels; offsets and mask."""
    at, inside = places(p, c, c < C, pixels, C, LAST)
    base = sample.to(tl.int64) * n
    grad = tl.load(grad_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
    group = sample.to(tl.int64) * (C // CG) + c // CG
    mean = tl.load(mean_ptr + group, mask=c < C, other=0.0)
    x = tl.load(x_ptr + base + at, mask=inside, other=mean[None, :]).to(tl.float32)
    rstd = tl.load(rstd_ptr + group, mask=c < C, other=0.0)
    a, b = gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, c < C)
    xhat = (x - mean[None, :]) * rstd[None, :]
    v = xhat * a[None, :] + b[None, :]
    s = 1.0 / (1.0 + tl.exp2(v * MINUS_LOG2_E))
    return grad * (s * (1.0 + v * (1.0 - s))), xhat, a, rstd, at, inside


@jit
def norm_sums_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, s1_ptr, s2_ptr, n, pixels, chunks,
    scale_row, shift_row, C: constexpr, CG: constexpr, LAST: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """Σ d and Σ d xhat of each channel over one chunk of pixels: [rows, C]."""
    sample, row, p, c = tile(chunks, C, BLOCK_P, BLOCK_C)
    d, xhat, _, _, _, _ = upstream_of_norm(
        grad_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, pixels, scale_row,
        shift_row, sample, p, c, C, CG, LAST,
    )  # fmt: skip
    tl.store(s1_ptr + row * C + c, tl.sum(d, 0), mask=c < C)
    tl.store(s2_ptr + row * C + c, tl.sum(d * xhat, 0), mask=c < C)


@jit
def collect_sums_kernel(
    partial_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, sums_ptr, means_ptr, batch, pixels, chunks, scale_row,
    shift_row, C: constexpr, CG: constexpr, BLOCK_K: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """Add up the partial sums S1 or S2 of one group's channels, and take their mean over the group with weights A."""
    program = tl.program_id(0) // 2
    which = (tl.program_id(0) % 2).to(tl.int64)
    sample, group = program // (C // CG), program % (C // CG)
    partial_ptr += (which * batch + sample) * chunks * C
    total = 0.0
    for start in range(0, CG, BLOCK_C):
        j = start + tl.arange(0, BLOCK_C)
        c, used = group * CG + j, j < CG
        value = tl.zeros([BLOCK_C], tl.float32)
        for chunk in range(0, chunks, BLOCK_K):
            k = chunk + tl.arange(0, BLOCK_K)
            inside = (k < chunks)[:, None] & used[None, :]
            value += tl.sum(tl.load(partial_ptr + k[:, None] * C + c[None, :], mask=inside, other=0.0), 0)
        a, _ = gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, used)
        tl.store(sums_ptr + (which * batch + sample) * C + c, value, mask=used)
        total += tl.sum(a * value)
    tl.store(means_ptr + which * batch * (C // CG) + program, total / tl.cast(pixels * CG, tl.float32))


@jit
def norm_gradient_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, mean_d_ptr, mean_d_xhat_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
    out_ptr, n, pixels, chunks, scale_row, shift_row,
    C: constexpr, CG: constexpr, LAST: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """rstd (A d - mean(A d) - xhat mean(A d xhat)) of a chunk of pixels and some channels of one sample."""
    sample, _, p, c = tile(chunks, C, BLOCK_P, BLOCK_C)
    d, xhat, a, rstd, at, inside = upstream_of_norm(
        grad_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, pixels, scale_row,
        shift_row, sample, p, c, C, CG, LAST,
    )  # fmt: skip
    group = sample.to(tl.int64) * (C // CG) + c // CG
    mean_d = tl.load(mean_d_ptr + group, mask=c < C, other=0.0)
    mean_d_xhat = tl.load(mean_d_xhat_ptr + group, mask=c < C, other=0.0)
    out = d * (a * rstd)[None, :] - (mean_d * rstd)[None, :] - xhat * (mean_d_xhat * rstd)[None, :]
    tl.store(out_ptr + sample.to(tl.int64) * n + at, out.to(out_ptr.dtype.element_ty), mask=inside)


def gradient_triton(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the partial sums, their collection, and dx."""
    batch, channels = x.shape[:2]
    groups = mean.shape[1]
    n, pixels = sample_size(x), x.shape[2:].numel()
    sums = x.new_empty(2, batch, channels, dtype=torch.float32)
    if not n:
        return torch.empty_like(x), sums.zero_()
    dense, last = dense_of(x)
    grad = laid_out_like(grad, dense, last)
    out = torch.empty_like(dense)
    means = x.new_empty(2, batch, groups, dtype=torch.float32)
    weight, bias = weight.contiguous(), bias.contiguous()
    scale, shift, *rows = modulation(scale, shift)
    shape = {"C": channels, "CG": channels // groups}
    tiles = pixel_tiles(channels, pixels, x.element_size())
    chunks = -(-pixels // tiles["BLOCK_P"])
    programs = batch * chunks * -(-channels // tiles["BLOCK_C"])
    partial = x.new_empty(2, batch * chunks, channels, dtype=torch.float32)
    where = {"LAST": last, **shape, **tiles}
    affine = weight, bias, scale, shift
    norm_sums_kernel[(programs,)](
        grad, dense, mean, rstd, *affine, partial[0], partial[1], n, pixels, chunks, *rows, **where
    )
    block_c = min(power_of_two(shape["CG"]), 128)
    collect_sums_kernel[(2 * batch * groups,)](
        partial, *affine, sums, means, batch, pixels, chunks, *rows, **shape,
        BLOCK_K=min(power_of_two(chunks), 2048 // block_c), BLOCK_C=block_c,
    )  # fmt: skip
    norm_gradient_kernel[(programs,)](
        grad, dense, mean, rstd, means[0], means[1], *affine, out, n, pixels, chunks, *rows, **where
    )
    return result_like(out, dense, x), sums
