"""The Triton half of `group_norm`: memory layouts, sizes of programs, and the forward kernels with their launcher.

If a group fits on chip, one kernel reads x once and writes y. Otherwise one kernel computes the moments of tiles of
pixels and channels, a second merges them per group, and a third applies them. A kernel sees x as [pixels, channels] in
either memory order; LAST means that the channels are adjacent, as in channels-last data.
"""

import torch
from torch import Tensor

from ._triton import constant, constexpr, jit, tl
from .launch import in_layout_of, sample_size

ON_CHIP = 1 << 15  # elements at most of a program that normalises whole groups: 64 per thread at 16 warps
TILE = 1 << 12  # elements of a program that works on a tile
ROW_BYTES = 128  # bytes of each pixel's channels in a tile
SECTOR = 32  # bytes of the smallest access to memory
MINUS_LOG2_E = constant(-1.4426950408889634)
MERGED = 32  # channels at most of a program that normalises several groups


def is_last(x: Tensor) -> bool:
    """Whether x [B, C, ...] is dense and its channels are adjacent in memory."""
    if x.dim() == 4:  # faster, since no view is made
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def dense_of(x: Tensor) -> tuple[Tensor, bool]:
    """Return x, or a copy if x is neither channels-last nor contiguous, and whether the result is channels-last."""
    if is_last(x):
        return x, True
    if x.is_contiguous():
        return x, False
    like = torch.empty_like(x)
    return (like.copy_(x), True) if is_last(like) else (x.contiguous(), False)


def laid_out_like(value: Tensor, x: Tensor, last: bool) -> Tensor:
    """Return ``value`` in the layout of x, a result of `dense_of`."""
    same = is_last(value) if last else value.is_contiguous()
    return value if same else torch.empty_like(x, dtype=value.dtype).copy_(value)


def result_like(out: Tensor, dense: Tensor, x: Tensor) -> Tensor:
    """Return ``out``, which has the layout of ``dense``, in the layout of x.

    Without the comparison `in_layout_of` would allocate a tensor only to find that nothing has to be done.
    """
    return out if dense is x else in_layout_of(out, x)


@jit
def gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, used):
    """A and b of v = A xhat + b for the channels c of one sample."""
    a = tl.load(weight_ptr + c, mask=used, other=0.0)
    b = tl.load(bias_ptr + c, mask=used, other=0.0)
    if scale_ptr is not None:
        row = sample.to(tl.int64)
        scale = tl.load(scale_ptr + row * scale_row + c, mask=used, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + row * shift_row + c, mask=used, other=0.0).to(tl.float32)
        a, b = a * (1.0 + scale), b * (1.0 + scale) + shift
    return a, b


@jit
def of_group(value, CG: constexpr, GROUPS: constexpr, BLOCK_C: constexpr):
    """Sum a value per channel over each channel's group. The block holds GROUPS whole groups."""
    if GROUPS == 1:
        total = tl.sum(value) + tl.zeros([BLOCK_C], tl.float32)
    elif CG == 1:
        total = value
    else:
        group = tl.arange(0, BLOCK_C) // CG
        total = tl.sum(tl.where(group[:, None] == group[None, :], value[None, :], 0.0), 1)
    return total


@jit
def places(p, c, used, pixels, C: constexpr, LAST: constexpr):
    """Offsets inside a sample of pixels p and channels c, and whether they are used, both [pixels, channels]."""
    at = p[:, None] * C + c[None, :] if LAST else p[:, None] + c[None, :] * pixels
    return at, (p < pixels)[:, None] & used[None, :]


@jit
def norm_silu_kernel(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, y_ptr, mean_ptr, rstd_ptr, n, pixels, scale_row, shift_row, eps,
    C: constexpr, CG: constexpr, GROUPS: constexpr, LAST: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """y, mean and rstd of GROUPS groups of CG channels of one sample, held on chip from the read to the write."""
    blocks: constexpr = (C + GROUPS * CG - 1) // (GROUPS * CG)
    sample = tl.program_id(0) // blocks
    j = tl.arange(0, BLOCK_C)
    c = (tl.program_id(0) % blocks) * (GROUPS * CG) + j
    used = (j < GROUPS * CG) & (c < C)
    at, inside = places(tl.arange(0, BLOCK_P), c, used, pixels, C, LAST)
    base = sample.to(tl.int64) * n
    x = tl.load(x_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.cast(pixels * CG, tl.float32)
    mean = of_group(tl.sum(x, 0), CG, GROUPS, BLOCK_C) / count
    x = tl.where(inside, x - mean[None, :], 0.0)
    rstd = tl.rsqrt(of_group(tl.sum(x * x, 0), CG, GROUPS, BLOCK_C) / count + eps)
    a, b = gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, used)
    v = x * (a * rstd)[None, :] + b[None, :]
    y = v / (1.0 + tl.exp2(v * MINUS_LOG2_E))
    tl.store(y_ptr + base + at, y.to(y_ptr.dtype.element_ty), mask=inside)
    group, first = sample.to(tl.int64) * (C // CG) + c // CG, used & (j % CG == 0)
    tl.store(mean_ptr + group, mean, mask=first)
    tl.store(rstd_ptr + group, rstd, mask=first)


@jit
def tile(chunks, C: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr):
    """(sample, row of the partial results, pixels, channels) of a program that works on a tile."""
    blocks: constexpr = (C + BLOCK_C - 1) // BLOCK_C
    chunks = tl.cast(chunks, tl.uint32)
    row = tl.program_id(0).to(tl.uint32) // blocks
    sample = row // chunks
    start = (row - sample * chunks).to(tl.int32) * BLOCK_P
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return sample.to(tl.int32), row.to(tl.int64), start + tl.arange(0, BLOCK_P), c


@jit
def moments_kernel(
    x_ptr, mean_ptr, square_ptr, n, pixels, chunks,
    C: constexpr, LAST: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """Mean, and sum of squared distances from it, of each channel over one chunk of pixels: [rows, C]."""
    sample, row, p, c = tile(chunks, C, BLOCK_P, BLOCK_C)
    at, inside = places(p, c, c < C, pixels, C, LAST)
    x = tl.load(x_ptr + sample.to(tl.int64) * n + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / tl.sum((p < pixels).to(tl.float32), 0)
    x = tl.where(inside, x - mean[None, :], 0.0)
    tl.store(mean_ptr + row * C + c, mean, mask=c < C)
    tl.store(square_ptr + row * C + c, tl.sum(x * x, 0), mask=c < C)


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
    x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, y_ptr, n, pixels, chunks, scale_row,
    shift_row, C: constexpr, CG: constexpr, LAST: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """y of a chunk of pixels and some channels of one sample, from mean and rstd."""
    sample, _, p, c = tile(chunks, C, BLOCK_P, BLOCK_C)
    at, inside = places(p, c, c < C, pixels, C, LAST)
    base = sample.to(tl.int64) * n
    group = sample.to(tl.int64) * (C // CG) + c // CG
    mean = tl.load(mean_ptr + group, mask=c < C, other=0.0)
    x = tl.load(x_ptr + base + at, mask=inside, other=mean[None, :]).to(tl.float32)
    rstd = tl.load(rstd_ptr + group, mask=c < C, other=0.0)
    a, b = gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, c < C)
    v = (x - mean[None, :]) * (a * rstd)[None, :] + b[None, :]
    y = v / (1.0 + tl.exp2(v * MINUS_LOG2_E))
    tl.store(y_ptr + base + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def whole_groups(channels: int, groups: int, pixels: int, width: int) -> dict[str, int] | None:
    """Constants of a program of `norm_silu_kernel`, or None if a group does not fit on chip.

    A program takes several groups, until their channels of one pixel fill the sectors of memory that they touch and the
    program is not too small. ``width`` is the size of an element in bytes.
    """
    of_one = channels // groups
    block_p = power_of_two(pixels)
    if block_p * power_of_two(of_one) > ON_CHIP:
        return None
    taken = 1
    while taken < groups and (taken * of_one * width < SECTOR or block_p * power_of_two(taken * of_one) < TILE // 2):
        block_c = power_of_two(2 * taken * of_one)
        if block_c > MERGED or block_p * block_c > ON_CHIP:
            break
        taken *= 2
    block_c = power_of_two(taken * of_one)
    return {"GROUPS": taken, "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": warps(block_p * block_c)}


def pixel_tiles(channels: int, pixels: int, width: int) -> dict[str, int]:
    """Constants of a program that works on a tile: `ROW_BYTES` of channels per pixel, more if there are few pixels."""
    row = min(power_of_two(channels), ROW_BYTES // width)
    block_p = min(power_of_two(pixels), TILE // row)
    block_c = min(power_of_two(channels), TILE // block_p)
    return {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": warps(block_p * block_c)}


def power_of_two(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << (n - 1).bit_length()


def warps(elements: int) -> int:
    """Warps of a program: 16 elements per thread, at most 16 warps (the limit where a warp has 64 threads)."""
    return min(max(elements // 512, 1), 16)


def modulation(scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor | None, Tensor | None, int, int]:
    """scale and shift with adjacent channels, and the strides of their rows. A half of a wider tensor is not copied."""
    if scale is None or shift is None:
        return None, None, 0, 0
    scale, shift = (value if value.stride(1) == 1 else value.contiguous() for value in (scale, shift))
    return scale, shift, scale.stride(0), shift.stride(0)


def forward_triton(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch one kernel if a group fits on chip, else the moments, their merging, and the result."""
    batch, channels = x.shape[:2]
    n, pixels = sample_size(x), x.shape[2:].numel()
    mean, rstd = (x.new_empty(batch, groups, dtype=torch.float32) for _ in range(2))
    if not n:
        return torch.empty_like(x), mean.zero_(), rstd.zero_()
    dense, last = dense_of(x)
    y = torch.empty_like(dense)
    weight, bias = weight.contiguous(), bias.contiguous()
    scale, shift, *rows = modulation(scale, shift)
    shape = {"C": channels, "CG": channels // groups, "LAST": last}
    whole = whole_groups(channels, groups, pixels, x.element_size())
    if whole is not None:
        programs = batch * -(-groups // whole["GROUPS"])
        norm_silu_kernel[(programs,)](
            dense, weight, bias, scale, shift, y, mean, rstd, n, pixels, *rows, eps, **shape, **whole
        )
        return result_like(y, dense, x), mean, rstd
    tiles = pixel_tiles(channels, pixels, x.element_size())
    chunks = -(-pixels // tiles["BLOCK_P"])
    programs = batch * chunks * -(-channels // tiles["BLOCK_C"])
    partial = x.new_empty(2, batch * chunks, channels, dtype=torch.float32)
    moments_kernel[(programs,)](
        dense, partial[0], partial[1], n, pixels, chunks, C=channels, LAST=shape["LAST"], **tiles
    )
    block = min(TILE, power_of_two(chunks * shape["CG"]))
    merge_moments_kernel[(batch * groups,)](
        partial[0], partial[1], mean, rstd, pixels, chunks, eps, C=channels, CG=shape["CG"], BLOCK_P=tiles["BLOCK_P"],
        BLOCK=block, num_warps=warps(block),
    )  # fmt: skip
    norm_apply_kernel[(programs,)](
        dense, mean, rstd, weight, bias, scale, shift, y, n, pixels, chunks, *rows, **shape, **tiles
    )
    return result_like(y, dense, x), mean, rstd
