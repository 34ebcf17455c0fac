"""Dropout whose mask is counter noise, drawn in the kernel and drawn again for the gradient (Srivastava et al. 2014).

    y_i = 256 / (256 - k) x_i  if byte_i >= k,  else 0,      k = round(256 p)

byte_i is byte i % 16 of counter i // 16 of the noise with the stream ``Stream.DROPOUT + 256 layer``, for element i
(flat, row-major) of one sample's logical shape: bytes are counted from the lowest of r0 to the highest of r3. The
probability is k / 256, the multiple of 1/256 that is nearest to p. The mask of a sample depends on (seed, step, index
of the sample, layer) alone: not on the batch, the device or the layout.

x, y [B, ...] are float32, bfloat16 or float16; the product is float32 and rounded once. A dropped element is 0 whatever
it was, NaN and infinity included. Contiguous and channels-last data are read and written as they are. Bytes per element
in fp32: 8 (read x, write y), and 8 for the gradient (the same operation on the upstream gradient). No mask is stored.

One call of Philox gives the bytes of 16 elements. In contiguous memory they are neighbours, which a thread reads in
accesses of 128 bits. In channels-last memory they are 16 pixels of one channel, and a thread has the channels of one
access: so 16 accesses, each next to that of the neighbouring thread. If the pixels of an image are no multiple of 16, a
call gives as many bytes as are the pixels' greatest common divisor with 16.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ._triton import constexpr, jit, tl
from .checks import check_data, described, real_number, whole_number
from .errors import InvalidTypeError, InvalidValueError
from .launch import BLOCK, WARPS, in_layout_of, locate, order_of, power_of_two, sample_size, split
from .noise import CHUNK, MASK, Noise, Stream, noise_argument, philox
from .noise_kernels import philox_words
from .registration import register

CALL = 16  # bytes of one call of Philox
LAYERS = 2**23  # layers whose streams are different, as integers of 32 bits
ACCESS = 16  # bytes of the widest access
LARGEST = 2 * BLOCK  # elements of one program for contiguous data, so two calls of each thread
MOST_CHANNELS = 64  # of one program for channels-last data with many pixels
BITS = {4: torch.int32, 2: torch.int16}  # integers of the width of data


def dropout(x: Tensor, p: float, noise: Noise, layer: int = 0) -> Tensor:
    """Return x with elements set to 0 with probability p, and the others multiplied by 1 / (1 - p).

    Args:
        x: data [B, ...], float32, bfloat16 or float16.
        p: a number in [0, 255.5 / 256), rounded to the nearest multiple of 1/256. Below 1/512 x itself is returned.
        noise: what the mask is drawn from; its stream is ignored.
        layer: which of the dropout layers of a network this is, in [0, 2**23). Each has a mask of its own.

    Differentiable in x. The gradient of a dropped element is 0.

    Raises:
        InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype or shape, or is out of range.
    """
    check_data("dropout", "x", x)
    if not isinstance(noise, Noise):
        raise InvalidTypeError(f"dropout: noise must be a Noise, got {described(noise)}")
    layer = whole_number("dropout", "layer", layer)
    if not 0 <= layer < LAYERS:
        raise InvalidValueError(f"dropout: layer must be in [0, {LAYERS}), got {layer}")
    drop = dropped_bytes("dropout", p)
    if not drop:
        return x
    return _dropout_op(x, noise_argument("dropout", noise, x, "x"), Stream.DROPOUT + 256 * layer, drop)


def dropped_bytes(where: str, p: object) -> int:
    """Return k = round(256 p), the number of the 256 values of a byte that drop an element.

    Raises:
        InvalidTypeError: p is not a number.
        InvalidValueError: p is outside [0, 255.5 / 256).
    """
    number = real_number(where, "p", p)
    if not 0.0 <= number < 255.5 / 256.0:
        raise InvalidValueError(f"{where}: p must be in [0, 255.5/256), since it is rounded to 1/256, got {number}")
    return math.floor(256.0 * number + 0.5)


def bytes_reference(key: Tensor, stream: int, batch: int, n: int) -> Tensor:
    """The bytes of n elements of each sample, uint8 [batch, n], a chunk of counters at a time."""
    seed, step, first_sample, _ = key.tolist()
    calls = -(-n // CALL)
    out = torch.empty(batch, calls, 4, dtype=torch.int32, device=key.device)
    c2, c3 = (torch.tensor(value & MASK, device=key.device) for value in (step, stream))
    rows, columns = max(1, CHUNK // max(calls, 1)), max(1, min(calls, CHUNK))
    for b in range(0, batch, rows):
        c1 = torch.arange(b, min(b + rows, batch), device=key.device).add_(first_sample).bitwise_and_(MASK)[:, None]
        for q in range(0, calls, columns):
            c0 = torch.arange(q, min(q + columns, calls), device=key.device)[None]
            for r, word in enumerate(philox(seed % 2**64, c0, c1, c2, c3)):
                out[b : b + rows, q : q + columns, r] = word  # its lower 32 bits
    return out.view(torch.uint8).flatten(1)[:, :n]  # the lowest byte comes first in memory


def dropout_reference(x: Tensor, key: Tensor, stream: int, drop: int) -> Tensor:
    """Plain PyTorch. An integer of zeros or of ones chooses by its bits: `torch.where` takes 8 times as long on a CPU.

    ``drop - 1 - clamp(byte, drop - 1, drop)`` is 0 for a byte below ``drop`` and -1, all ones, for the others.
    """
    drawn = bytes_reference(key, stream, x.shape[0], sample_size(x))
    kept = torch.rsub(drawn.clamp(drop - 1, drop), drop - 1).view(torch.int8).view(x.shape)
    bits = torch.empty_like(x, dtype=BITS[x.element_size()]).copy_(kept)
    y = bits.bitwise_and_(x.view(bits.dtype)).view(x.dtype)
    return in_layout_of(y.float().mul_(scale_of(drop)).to(x.dtype), x)


def scale_of(drop: int) -> float:
    """256 / (256 - k): one over the probability that an element is kept."""
    return 256.0 / (256 - drop)


# ------------------------------------------------------------------------------------------------ Triton


@jit
def bytes_on_top(word):
    """The four bytes of each word in order, each at the top of a uint32: [n] to [4 n]."""
    return tl.interleave(tl.interleave(word << 24, word << 8), tl.interleave(word << 16, word))


@jit
def dropout_kernel(x_ptr, key_ptr, out_ptr, stream, drop, scale, n, blocks, BLOCK: constexpr):
    """One block of one sample. A thread has the 16 elements of each of its calls; tile k holds their k-th access."""
    WIDTH: constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    sample, start = locate(blocks, BLOCK)
    base = sample.to(tl.int64) * n
    call = tl.arange(0, BLOCK // 16)
    words = philox_words(key_ptr, sample, start // 16 + call, stream)
    threshold = tl.cast(drop, tl.uint32) << 24
    for tile in tl.static_range(16 // WIDTH):
        inside = (16 * call + tile * WIDTH)[:, None] + tl.arange(0, WIDTH)[None, :]
        mask, at = inside < n - start, base + start + inside
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        word = words[tile] if WIDTH == 4 else tl.interleave(words[2 * tile], words[2 * tile + 1])
        byte = tl.reshape(bytes_on_top(word), inside.shape)
        y = tl.where(byte >= threshold, x * scale, 0.0)
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def byte_on_top(words, channel: constexpr, first, j: constexpr, GROUP: constexpr):
    """The byte of the j-th pixel of a group at the top of a uint32, from the words of each channel of a thread.

    ``first`` is the logical index of the group's first pixel in that channel.
    """
    r0, r1, r2, r3 = words[4 * channel], words[4 * channel + 1], words[4 * channel + 2], words[4 * channel + 3]
    if GROUP == 16:
        top = words[4 * channel + j // 4] << (24 - 8 * (j % 4))
    else:
        byte = (first & 15) + j
        word = tl.where(byte < 8, tl.where(byte < 4, r0, r1), tl.where(byte < 12, r2, r3))
        top = word << (24 - 8 * (byte & 3)).to(tl.uint32)
    return top


@jit
def side_by_side(parts, WIDTH: constexpr):
    """Tensors [n] as one [n * WIDTH], with the elements of one index next to each other."""
    if WIDTH == 4:
        whole = tl.interleave(tl.interleave(parts[0], parts[2]), tl.interleave(parts[1], parts[3]))
    else:
        even = tl.interleave(tl.interleave(parts[0], parts[4]), tl.interleave(parts[2], parts[6]))
        odd = tl.interleave(tl.interleave(parts[1], parts[5]), tl.interleave(parts[3], parts[7]))
        whole = tl.interleave(even, odd)
    return whole


@jit
def dropout_last_kernel(
    x_ptr, key_ptr, out_ptr, stream, drop, scale, pixels, channels, chunks,
    GROUP: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """Channels-last data: BLOCK_P groups of GROUP pixels, which divides ``pixels`` and 16, with BLOCK_C channels.

    A thread has a group of pixels of as many channels as one access holds, so that threads exchange nothing.
    """
    WIDTH: constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    ACCESSES: constexpr = BLOCK_C // WIDTH
    sample, start = locate(chunks, BLOCK_P)
    base = sample.to(tl.int64) * pixels * channels
    thread = tl.arange(0, BLOCK_P * ACCESSES)
    pixel = (start + thread // ACCESSES) * GROUP
    channel = tl.program_id(1) * BLOCK_C + thread % ACCESSES * WIDTH
    inside = tl.arange(0, WIDTH)[None, :]
    mask = (pixel < pixels)[:, None] & (channel[:, None] + inside < channels)
    first = channel * pixels + pixel
    words = ()
    for c in tl.static_range(WIDTH):
        words = words + philox_words(key_ptr, sample, (first + c * pixels) >> 4, stream)
    threshold = tl.cast(drop, tl.uint32) << 24
    for j in tl.static_range(GROUP):
        at = base + (((pixel + j) * channels + channel)[:, None] + inside)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        parts = ()
        for c in tl.static_range(WIDTH):
            parts = parts + (byte_on_top(words, c, first + c * pixels, j, GROUP),)  # noqa: RUF005
        byte = tl.reshape(side_by_side(parts, WIDTH), mask.shape)
        y = tl.where(byte >= threshold, x * scale, 0.0)
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def last_tile(pixels: int, channels: int, width: int) -> dict[str, int]:
    """Constants and warps of `dropout_last_kernel` for elements of ``width`` bytes.

    Where there are groups of pixels enough for all threads, a block of channels is the largest power of two that
    divides them, if that gives full transactions of 32 bytes. Few groups of pixels get more channels.
    """
    group, lanes = math.gcd(pixels, CALL), 32 * WARPS * ACCESS // width  # channels of all threads
    groups, dividing = power_of_two(pixels // group), channels & -channels
    divides = dividing >= 16 and dividing * groups >= lanes
    most = max(MOST_CHANNELS, lanes // groups)
    block_c = min(most, dividing if divides else max(ACCESS // width, power_of_two(channels)))
    block_p = min(lanes // block_c, groups)
    warps = WARPS if block_p * block_c > lanes // WARPS else 1
    return {"GROUP": group, "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": warps}


def last_grid(x: Tensor) -> tuple[tuple[int, int], dict[str, int], int] | None:
    """Grid, `last_tile` and chunks of `dropout_last_kernel`; None if x is not channels-last or the grid too large."""
    if order_of(x)[0] == torch.contiguous_format or not x.numel():
        return None
    batch, channels, height, width = x.shape
    tile = last_tile(height * width, channels, x.element_size())
    chunks = -(-(height * width) // (tile["GROUP"] * tile["BLOCK_P"]))
    blocks = -(-channels // tile["BLOCK_C"])
    if batch * chunks >= 2**31 or blocks >= 2**16:
        return None
    return (batch * chunks, blocks), tile, chunks


def dropout_triton(x: Tensor, key: Tensor, stream: int, drop: int) -> Tensor:
    """Launch a kernel for channels-last or one for contiguous data. x of another layout is copied."""
    n, scale, last = sample_size(x), scale_of(drop), last_grid(x)
    if last is not None:
        grid, tile, chunks = last
        out = torch.empty_like(x, memory_format=torch.channels_last)
        pixels = n // x.shape[1]
        dropout_last_kernel[grid](x, key, out, stream, drop, scale, pixels, x.shape[1], chunks, **tile)
        return in_layout_of(out, x)
    programs, n, blocks, block = split(x.shape[0], n, LARGEST)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if programs:
        dropout_kernel[(programs,)](
            x.contiguous(), key, out, stream, drop, scale, n, blocks, BLOCK=block, num_warps=WARPS
        )
    return in_layout_of(out, x)


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
    _, key, ctx.stream, ctx.drop = inputs
    ctx.save_for_backward(key)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _dropout_op(grad, *ctx.saved_tensors, ctx.stream, ctx.drop), None, None, None


_dropout_op = register(
    "dropout(Tensor x, Tensor key, int stream, int drop) -> Tensor",
    dropout_reference,
    dropout_triton,
    lambda x, key, stream, drop: torch.empty_like(x),
    _backward,
    _save,
)
