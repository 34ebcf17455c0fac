"""A kernel that reads a tensor once and writes it five times: a lower limit for Fourier features of two frequencies."""

from collections.abc import Callable

import torch
from fastdiff_kernels._triton import constexpr, jit, tl
from fastdiff_kernels.launch import BLOCK, WARPS
from torch import Tensor


@jit
def spread_kernel(x_ptr, out_ptr, n, COPIES: constexpr, BLOCK: constexpr):
    """One block to all copies."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    for copy in tl.static_range(COPIES):
        tl.store(out_ptr + copy * n + i, x, mask=i < n)


def spread(x: Tensor, copies: int = 5) -> Callable[[], None]:
    """Return a call that writes ``copies`` of x into its own buffer."""
    out = torch.empty(copies, *x.shape, dtype=x.dtype, device=x.device)
    blocks = -(-x.numel() // BLOCK)

    def call() -> None:
        spread_kernel[(blocks,)](x, out, x.numel(), COPIES=copies, BLOCK=BLOCK, num_warps=WARPS)

    return call
