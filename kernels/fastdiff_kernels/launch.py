"""What the launchers share: block size, the split of samples into blocks, and memory layouts."""

import torch
from torch import Tensor

from ._triton import INTERPRETED, constexpr, jit, tl
from .errors import InvalidValueError

BLOCK = 1024  # elements of one program
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


def grid_of(x: Tensor) -> tuple[int, int, int, int]:
    """Split samples into blocks: ``(programs, n, blocks, block)`` for x [B, ...] of n elements per sample.

    Program ``p`` works on block ``p % blocks`` of sample ``p // blocks``. A one-dimensional grid is not limited to
    65535 programs, and the division is done once per program. Small samples get small blocks.

    Raises:
        InvalidValueError: one sample holds 2³¹ elements or more (offsets inside a sample have 32 bits).
    """
    return split(x.shape[0], sample_size(x))


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


def split(rows: int, n: int) -> tuple[int, int, int, int]:
    """Split rows of n elements into blocks of a power of two from 16 to `BLOCK`: ``(programs, n, blocks, block)``.

    Raises:
        InvalidValueError: there would be more programs than a grid can have.
    """
    block = min(BLOCK, max(16, 1 << (n - 1).bit_length())) if n else 16
    blocks = -(-n // block)
    if rows * blocks >= 2**31:
        raise InvalidValueError(
            f"A batch must have fewer than 2**31 blocks of {block} elements, got {rows * blocks}: "
            f"{rows} samples of {n} elements"
        )
    return rows * blocks, n, blocks, block


def in_layout_of(result: Tensor, x: Tensor) -> Tensor:
    """Return ``result`` with the strides of ``torch.empty_like(x)``, which every fake implementation promises."""
    if result.is_contiguous() and x.is_contiguous():  # the usual case: nothing is allocated
        return result
    out = torch.empty_like(x, dtype=result.dtype)
    return result if result.stride() == out.stride() else out.copy_(result)


def flat(x: Tensor) -> Tensor:
    """View x [B, ...] as [B, n], and x [B] as [B, 1]."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """View a per-sample tensor [B] so that it broadcasts against x [B, ...]."""
    return value.view(-1, *(1,) * (x.dim() - 1))
