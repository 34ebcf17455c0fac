"""Noise that is a weighted sum of normals: the increment of a Brownian path over its nodes, drawn in one pass.

    eps = Σ_j weights[row, j] N(seed, sample, step = nodes[row, j], stream = Stream.BROWNIAN)

N is the normal of `noise` with these numbers (Lévy's construction of Brownian motion; `fastdiff.diffusion.brownian`
makes the tables). The row of the table is the step of a `Noise`, read on the device, so that a captured CUDA graph
takes the next one at each replay. eps [B, ...] is float32, and so is the sum, in the order of j. Bytes per element: 4
(one write); four elements take J calls of Philox.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._triton import constexpr, jit, tl
from .checks import described
from .errors import InvalidTypeError, InvalidValueError
from .launch import WARPS, grid_of, locate
from .noise import CHUNK, MASK, Noise, Stream, philox, uniform_from_word, write_draws
from .noise_kernels import box_muller, philox_words
from .registration import register


def noise_sum(noise: Noise, nodes: Tensor, weights: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw Σ_j weights[row, j] N(nodes[row, j]) for a batch of shape [B, ...], float32 on the device of ``nodes``.

    Args:
        noise: its step is the row; its seed and first sample are those of the normals, its stream is not used. A row
            outside the table gives NaN, since checking it would wait for the device.
        nodes: int64 [rows, J] in [0, 2**32), J >= 1.
        weights: float32 [rows, J] on the same device.
        shape: [B, ...].

    Raises:
        InvalidTypeError, InvalidValueError: an argument of the wrong type, dtype, shape or device.
    """
    where = "noise_sum"
    if not isinstance(noise, Noise):
        raise InvalidTypeError(f"{where}: noise must be a Noise, got {described(noise)}")
    if not isinstance(nodes, Tensor) or nodes.dtype != torch.int64 or nodes.dim() != 2 or not nodes.numel():
        raise InvalidValueError(f"{where}: nodes must be a torch.int64 tensor [rows, J], got {described(nodes)}")
    fits = isinstance(weights, Tensor) and weights.dtype == torch.float32 and weights.shape == nodes.shape
    if not fits or weights.device != nodes.device:
        wanted = f"a torch.float32 tensor of shape {tuple(nodes.shape)} on {nodes.device}"
        raise InvalidValueError(f"{where}: weights must be {wanted}, got {described(weights)}")
    if noise.key.device != nodes.device:
        raise InvalidValueError(f"{where}: noise must be on {nodes.device} (use noise.to), got {noise.key.device}")
    if len(shape) < 1 or any(size < 0 for size in shape):
        raise InvalidValueError(f"{where}: shape must be [B, ...] without negative sizes, got {tuple(shape)}")
    return _sum_op(noise.key, nodes.contiguous(), weights.contiguous(), list(shape))


def sum_reference(key: Tensor, nodes: Tensor, weights: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw in plain PyTorch, all nodes of some counters at a time; NaN for a row outside the table."""
    seed, row, first_sample, _ = key.tolist()
    batch, n = shape[0], math.prod(shape[1:])
    quads = -(-n // 4)
    if not 0 <= row < len(nodes):
        return torch.full(tuple(shape), torch.nan, device=key.device)
    used = weights[row].nonzero()[:, 0]  # a row of few nodes ends in weights of 0
    c2, w = nodes[row, used][:, None, None], weights[row, used]
    c3 = torch.tensor(Stream.BROWNIAN, device=key.device)
    out = torch.zeros(batch, quads, 4, device=key.device)
    chunk = max(1, CHUNK // max(1, len(used)))
    rows, columns = max(1, chunk // max(quads, 1)), max(1, min(quads, chunk))
    for b in range(0, batch, rows):
        c1 = torch.arange(b, min(b + rows, batch), device=key.device).add_(first_sample).bitwise_and_(MASK)[:, None]
        for q in range(0, quads, columns):
            c0 = torch.arange(q, min(q + columns, quads), device=key.device).bitwise_and(MASK)[None]
            words = philox(seed % 2**64, c0, c1, c2, c3)
            normals = torch.empty(*words[0].shape, 4, device=key.device)
            write_draws(normals, [uniform_from_word(word) for word in words], True)
            total = out[b : b + rows, q : q + columns]
            for normal, weight in zip(normals, w, strict=True):
                total.addcmul_(normal, weight)
    return out.view(batch, quads * 4)[:, :n].contiguous().view(*shape)


@jit
def noise_sum_kernel(
    key_ptr, nodes_ptr, weights_ptr, out_ptr, rows, columns, n, blocks, STREAM: constexpr, BLOCK: constexpr
):  # fmt: skip
    """Write one block of a batch."""
    sample, start = locate(blocks, BLOCK)
    row = tl.load(key_ptr + 1)
    inside = (row >= 0) & (row < rows)
    first = tl.where(inside, row, 0) * columns
    quad = start // 4 + tl.arange(0, BLOCK // 4)
    poison = tl.where(inside, 0.0, float("nan"))
    sum_0 = tl.zeros([BLOCK // 4], tl.float32) + poison
    sum_1, sum_2, sum_3 = sum_0, sum_0, sum_0
    for j in range(columns):
        weight = tl.load(weights_ptr + first + j)
        r0, r1, r2, r3 = philox_words(key_ptr, sample, quad, STREAM, tl.load(nodes_ptr + first + j))
        e0, e1 = box_muller(r0, r1, False, False)
        e2, e3 = box_muller(r2, r3, False, False)
        sum_0 += weight * e0
        sum_1 += weight * e1
        sum_2 += weight * e2
        sum_3 += weight * e3
    value = tl.interleave(tl.interleave(sum_0, sum_2), tl.interleave(sum_1, sum_3))
    i = start + tl.arange(0, BLOCK)
    tl.store(out_ptr + sample.to(tl.int64) * n + i, value, mask=i < n)


def sum_triton(key: Tensor, nodes: Tensor, weights: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw with the kernel."""
    out = torch.empty(shape, dtype=torch.float32, device=key.device)
    programs, n, blocks, block = grid_of(out)
    if programs:
        rows, columns = nodes.shape
        noise_sum_kernel[(programs,)](
            key, nodes, weights, out, rows, columns, n, blocks, STREAM=Stream.BROWNIAN, BLOCK=block, num_warps=WARPS
        )
    return out


_sum_op = register(
    "noise_sum(Tensor key, Tensor nodes, Tensor weights, SymInt[] shape) -> Tensor",
    sum_reference,
    sum_triton,
    lambda key, nodes, weights, shape: torch.empty(shape, dtype=torch.float32, device=key.device),
)
