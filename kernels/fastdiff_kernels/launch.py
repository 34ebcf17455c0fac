"""What the launchers share: the order of data in memory, and the split of samples into blocks.

A kernel works through memory from its first element to its last. If the first argument of an operation is channels-last
[B, C, H, W], so are the other data and the results, otherwise all are contiguous; an argument of another layout is
copied. Only drawn noise has an order of its own (`noise_tiles`).
"""

from typing import Any

import torch
from torch import Tensor

from ._triton import INTERPRETED, constexpr, jit, tl
from .errors import InvalidValueError

BLOCK = 1024  # elements of one program
MANY = 4096  # programs that keep a large GPU busy: two rounds of 16 on each of 132 multiprocessors
MOST_CHANNELS = 16  # for which a thread holds the noise of all channels of its pixels
TILE_THREADS = 64  # threads with pixels of their own in a program that draws noise for channels-last data
WARPS = 2  # so 16 elements per thread: the fixed cost of a program is small per element


@jit
def locate(blocks, BLOCK: constexpr):
    """(sample, first element) of this program. Both are below 2**31, and unsigned division is cheaper."""
    blocks = tl.cast(blocks, tl.uint32)
    program = tl.program_id(0).to(tl.uint32)
    sample = program // blocks
    return sample.to(tl.int32), (program - sample * blocks).to(tl.int32) * BLOCK


def fast_math(x: Tensor) -> bool:
    """Whether kernels on x may use NVIDIA's approximate instructions: the result is rounded to 16 bits anyway."""
    return x.element_size() == 2 and torch.version.cuda is not None and not INTERPRETED


def order_of(x: Tensor, drawn: bool = False) -> tuple[torch.memory_format, int]:
    """The order in memory of an operation whose first argument is x, and C for drawn noise in channels-last data.

    C is 1 where noise and memory have the same order. Channels-last data for which noise cannot be drawn in tiles are
    copied: with more than 16 channels, or pixels that are no multiple of an access.
    """
    if x.is_contiguous() or x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format, 1
    if not drawn:
        return torch.channels_last, 1
    _, channels, height, width = x.shape
    pixels = height * width
    if channels > MOST_CHANNELS or pixels % tile_width(x, channels) or pixels * channels >= 2**31 - 2**16:
        return torch.contiguous_format, 1
    return torch.channels_last, channels


def tile_width(x: Tensor, channels: int) -> int:
    """Elements of one access, as in `noise_tiles`."""
    return 8 if x.element_size() == 2 and channels <= 4 else 4


def in_order(order: torch.memory_format, *values: Tensor | None) -> list[Any]:
    """Data in this order in memory, and other tensors contiguous, copied where they are not. None stays None."""
    if order == torch.contiguous_format:
        return [None if value is None else value.contiguous() for value in values]
    return [
        None if value is None else value.contiguous(memory_format=order) if value.dim() == 4 else value.contiguous()
        for value in values
    ]


def grid_of(x: Tensor, channels: int = 1, draws: bool = False) -> tuple[int, int, int, int]:
    """Split samples into blocks: ``(programs, n, blocks, block)`` for x [B, ...] of n elements per sample.

    Program ``p`` works on block ``p % blocks`` of sample ``p // blocks``. A one-dimensional grid is not limited to
    65535 programs, and the division is done once per program. Small samples get small blocks. With ``channels`` a block
    is one of pixels with that many channels.

    A kernel that ``draws`` noise for 16-bit data is bound by instructions. If there are many programs, it gets blocks
    of twice the size, 32 elements per thread: 25.6 instead of 29.3 instructions per element for `diffuse`, in 62
    instead of 38 registers. Kernels that would need more than 64 registers, and float32 data, keep the smaller blocks.

    Raises:
        InvalidValueError: one sample holds 2³¹ elements or more (offsets inside a sample have 32 bits).
    """
    n = sample_size(x)
    if channels == 1:
        double = draws and x.element_size() == 2 and n < 2**30 and x.shape[0] * (n // (2 * BLOCK)) >= MANY
        return split(x.shape[0], n, 2 * BLOCK if double else BLOCK)
    programs, _, blocks, block = split(x.shape[0], n // channels, TILE_THREADS * tile_width(x, channels))
    return programs, n, blocks, block


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below count >= 1."""
    return 1 << (count - 1).bit_length()


def sample_size(x: Tensor) -> int:
    """Count the elements of one sample of x [B, ...].

    Raises:
        InvalidValueError: one sample holds 2³¹ elements or more (offsets inside a sample have 32 bits).
    """
    n = x.numel() // x.shape[0] if x.shape[0] else 0
    if n >= 2**31 - BLOCK:
        raise InvalidValueError(
            f"A sample must have fewer than 2**31 - {BLOCK} elements, got {n}: shape {tuple(x.shape[1:])}"
        )
    return n


def split(rows: int, n: int, largest: int = BLOCK) -> tuple[int, int, int, int]:
    """Split rows of n elements into blocks of a power of two from 16 to ``largest``: ``(programs, n, blocks, block)``.

    Raises:
        InvalidValueError: there would be more programs than a grid can have.
    """
    block = min(largest, max(16, power_of_two(n))) if n else 16
    blocks = -(-n // block)
    if rows * blocks >= 2**31:
        raise InvalidValueError(
            f"A batch must have fewer than 2**31 blocks of {block} elements, got {rows * blocks}: "
            f"{rows} samples of {n} elements"
        )
    return rows * blocks, n, blocks, block


def in_layout_of(result: Tensor, x: Tensor) -> Tensor:
    """Return ``result`` with the strides of ``torch.empty_like(x)``, which every fake implementation promises."""
    if (result.is_contiguous() and x.is_contiguous()) or result.stride() == x.stride():  # nothing is allocated
        return result
    out = torch.empty_like(x, dtype=result.dtype)
    return result if result.stride() == out.stride() else out.copy_(result)


def flat(x: Tensor) -> Tensor:
    """View x [B, ...] as [B, n], and x [B] as [B, 1]."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """View a per-sample tensor [B] so that it broadcasts against x [B, ...]."""
    return value.view(-1, *(1,) * (x.dim() - 1))
