"""What the kernels of `group_norm` share: the sizes of their programs, and the device functions that load and store.

A program works on some channels of one sample: on whole groups with all pixels, or on a tile of pixels and channels. A
kernel sees its data as [pixels, channels] in either memory order; LAST means that the channels are adjacent, as in
channels-last data. Of the C channels the first CX belong to x and the others to ``skip``. FULL_P
and FULL_C mean that the programs cover the pixels, or the channels, exactly, so that these need no mask.
"""

from functools import cache

from torch import Tensor

from ._triton import constant, constexpr, jit, tl
from .errors import InvalidValueError
from .launch import BLOCK, power_of_two

ON_CHIP = 1 << 15  # numbers at most that a program for whole groups keeps: 64 per thread at 16 warps
SMALLEST = 1 << 10  # elements at least of a program for several groups: 32 per thread of one warp
TILE = 1 << 12  # elements of a program that works on a tile
ROW_BYTES = 128  # bytes of each pixel's channels in a tile
SECTOR = 32  # bytes of the smallest access to memory
MERGED, MERGED_BYTES = 32, 1 << 16  # channels and bytes at most of a program for several groups
MINUS_LOG2_E = constant(-1.4426950408889634)


def whole_groups(channels: int, groups: int, pixels: int, width: int, kept: int = 1) -> dict[str, int] | None:
    """Constants of a program for whole groups that keeps ``kept`` numbers per element, or None if a group is too large.

    A program takes several groups, until their channels of one pixel fill the sectors of memory that they touch and the
    program is not too small. ``width`` is the size of an element in bytes.
    """
    return _whole_groups(channels, groups, pixels, width, kept, ON_CHIP // kept)


@cache
def _whole_groups(channels: int, groups: int, pixels: int, width: int, kept: int, limit: int) -> dict[str, int] | None:
    of_one = channels // groups
    block_p = power_of_two(pixels)
    if block_p * power_of_two(of_one) > limit:
        return None
    taken = 1
    while taken < groups and (taken * of_one * width < SECTOR or block_p * power_of_two(taken * of_one) < SMALLEST):
        block_c = power_of_two(2 * taken * of_one)
        if block_c > MERGED or block_p * block_c > min(limit, MERGED_BYTES // width):
            break
        taken *= 2
    block_c = power_of_two(taken * of_one)
    full = {"FULL_P": block_p == pixels, "FULL_C": block_c == taken * of_one and channels % block_c == 0}
    num_warps = warps(block_p * block_c, 128 // width if kept == 1 else 32)
    return {"GROUPS": taken, **full, "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": num_warps}


@cache
def pixel_tiles(channels: int, pixels: int, width: int) -> dict[str, int]:
    """Constants of a program that works on a tile: `ROW_BYTES` of channels per pixel, more if there are few pixels."""
    row = min(power_of_two(channels), ROW_BYTES // width)
    block_p = min(power_of_two(pixels), TILE // row)
    block_c = min(power_of_two(channels), TILE // block_p)
    full = {"FULL_P": pixels % block_p == 0, "FULL_C": channels % block_c == 0}
    return {**full, "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": warps(block_p * block_c)}


def warps(elements: int, per_thread: int = 32) -> int:
    """Warps of a program of some elements per thread, at most 16 warps (the limit where a warp has 64 threads)."""
    return min(max(elements // (32 * per_thread), 1), 16)


def pixels_of(x: Tensor, channels: int) -> int:
    """Count the pixels of x.

    Raises:
        InvalidValueError: a sample of ``channels`` channels holds 2³¹ elements or more (offsets have 32 bits).
    """
    pixels = x.shape[2:].numel()
    if channels * pixels >= 2**31 - BLOCK:
        raise InvalidValueError(
            f"A sample must have fewer than 2**31 - {BLOCK} elements, got {channels * pixels}: {channels} channels of "
            f"{pixels} pixels"
        )
    return pixels


def adjacent(value: Tensor | None) -> tuple[Tensor | None, int]:
    """A tensor [B, C] with adjacent channels and the stride of its rows. A part of a wider tensor is not copied."""
    if value is None:
        return None, 0
    if value.stride(1) != 1:
        value = value.contiguous()
    return value, value.stride(0)


@jit
def gain_and_offset(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_row, shift_row, sample, c, used):
    """A and b of v = A uhat + b for the channels c of one sample."""
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
def groups_of_program(C: constexpr, CG: constexpr, GROUPS: constexpr, BLOCK_C: constexpr):
    """(sample, channels, whether they are used) of a program that works on GROUPS whole groups."""
    blocks: constexpr = (C + GROUPS * CG - 1) // (GROUPS * CG)
    j = tl.arange(0, BLOCK_C)
    c = (tl.program_id(0) % blocks) * (GROUPS * CG) + j
    return tl.program_id(0) // blocks, c, (j < GROUPS * CG) & (c < C)


@jit
def tile_of_program(chunks, C: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr):
    """(sample, row of the partial results, pixels, channels) of a program that works on a tile."""
    blocks: constexpr = (C + BLOCK_C - 1) // BLOCK_C
    chunks = tl.cast(chunks, tl.uint32)
    row = tl.program_id(0).to(tl.uint32) // blocks
    sample = row // chunks
    start = (row - sample * chunks).to(tl.int32) * BLOCK_P
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return sample.to(tl.int32), row.to(tl.int64), start + tl.arange(0, BLOCK_P), c


@jit
def within(p, used, pixels, FULL_P: constexpr, FULL_C: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr):
    """Which pixels p and used channels there are, [pixels, channels]."""
    if FULL_P and FULL_C:
        inside = tl.full([BLOCK_P, BLOCK_C], True, tl.int1)
    elif FULL_P:
        inside = tl.broadcast_to(used[None, :], [BLOCK_P, BLOCK_C])
    elif FULL_C:
        inside = tl.broadcast_to((p < pixels)[:, None], [BLOCK_P, BLOCK_C])
    else:
        inside = (p < pixels)[:, None] & used[None, :]
    return inside


@jit
def of_sample(ptr, sample, size):
    """A pointer to one sample of ``size`` elements. Offsets inside a sample then have 32 bits."""
    return ptr + sample.to(tl.int64) * size


@jit
def places(p, c, pixels, WIDTH: constexpr, LAST: constexpr):
    """Offsets of pixels p and channels c in a sample of WIDTH channels, [pixels, channels]."""
    return p[:, None] * WIDTH + c[None, :] if LAST else p[:, None] + c[None, :] * pixels


@jit
def of_either(x_ptr, skip_ptr, sample, p, c, pixels, C: constexpr, CX: constexpr, LAST: constexpr):
    """Pointers to the channels below CX of x and to the others of skip, [pixels, channels]: one access for both."""
    in_x, step = c < CX, 1 if LAST else pixels
    x_ptr, skip_ptr = of_sample(x_ptr, sample, pixels * CX), of_sample(skip_ptr, sample, pixels * (C - CX))
    channel = tl.where(in_x, x_ptr + c * step, skip_ptr + (c - CX) * step)
    return channel[None, :] + (p[:, None] * tl.where(in_x, CX, C - CX)[None, :] if LAST else p[:, None])


@jit
def load_sum(
    x_ptr, pre_shift_ptr, residual_ptr, skip_ptr, total_ptr, pre_shift_row, sample, p, c, used, pixels,
    C: constexpr, CX: constexpr, LAST: constexpr, FULL_P: constexpr, FULL_C: constexpr, BLOCK_P: constexpr,
    BLOCK_C: constexpr,
):  # fmt: skip
    """u in float32, 0 outside: x + pre_shift + residual, then the channels of skip. Write it if there is a total."""
    inside = within(p, used, pixels, FULL_P, FULL_C, BLOCK_P, BLOCK_C)
    of_x = used & (c < CX) if CX < C else used
    if CX < C:
        source = of_either(x_ptr, skip_ptr, sample, p, c, pixels, C, CX, LAST)
    else:
        source = of_sample(x_ptr, sample, pixels * C) + places(p, c, pixels, C, LAST)
    u = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if pre_shift_ptr is not None:
        added = tl.load(of_sample(pre_shift_ptr, sample, pre_shift_row) + c, mask=of_x, other=0.0)
        u += added.to(tl.float32)[None, :]
    if residual_ptr is not None:
        source = of_sample(residual_ptr, sample, pixels * CX) + places(p, c, pixels, CX, LAST)
        in_x = within(p, of_x, pixels, FULL_P, FULL_C and CX == C, BLOCK_P, BLOCK_C)
        u += tl.load(source, mask=in_x, other=0.0).to(tl.float32)
    if total_ptr is not None:
        total = u.to(total_ptr.dtype.element_ty)
        tl.store(of_sample(total_ptr, sample, pixels * C) + places(p, c, pixels, C, LAST), total, mask=inside)
        u = total.to(tl.float32)
    return tl.where(inside, u, 0.0) if pre_shift_ptr is not None else u


@jit
def silu(v):
    """v / (1 + e^-v)."""
    return v / (1.0 + tl.exp2(v * MINUS_LOG2_E))
