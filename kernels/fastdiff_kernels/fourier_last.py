"""Fourier features of channels-last data, without a copy: kernels and launchers of `fourier`.

A pixel has C numbers z and K = C (1 + 2 F) features, which are neighbours in memory: z, then F sines for each channel,
then F cosines. A program computes all features of its pixels channel by channel, as the kernel for contiguous data
does, brings them to the order of memory through shared memory, and writes rows of K neighbours. For C = 3 and F = 2
it asks for 1.2 times the sectors of 32 bytes that it needs in float32 and 1.4 times in 16 bits, half of its accesses to
shared memory meet a bank conflict, and it takes 110 instructions per element of z, against 29 for contiguous data; a
copy before and after would move three times the bytes. By estimate, threads that write what they
computed need half as many instructions, but twice the sectors or more, and computing each feature from its place in
memory, without sharing sine and cosine, needs 160 instructions.

The gradient reads rows of K neighbours, in the order of z. Each of their sectors is read from L2 once.
"""

from torch import Tensor

from ._triton import constant, constexpr, jit, tl
from .launch import WARPS, locate, power_of_two, split
from .noise_kernels import double_angle, sincos_turns

TILE = 2048  # features of one program, with those that pad a pixel's to a power of two
_TWO_PI = constant(6.283185307179586)


@jit
def fourier_last_kernel(
    z_ptr, out_ptr, n, blocks, scale_min, C: constexpr, FEATURES: constexpr, PADDED_C: constexpr, PADDED_K: constexpr,
    DEPTH: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """z and its features for BLOCK pixels of one sample. PADDED are powers of two, as is 2^DEPTH > 2 FEATURES."""
    HALF: constexpr = out_ptr.dtype.element_ty.primitive_bitwidth == 16
    K: constexpr = C * (1 + 2 * FEATURES)
    sample, start = locate(blocks, BLOCK)
    z_ptr += sample.to(tl.int64) * n * C
    out_ptr += sample.to(tl.int64) * n * K
    pixel, channel = start + tl.arange(0, BLOCK)[:, None], tl.arange(0, PADDED_C)[None, :]
    z = tl.load(z_ptr + pixel * C + channel, mask=(pixel < n) & (channel < C), other=0.0)
    z = tl.reshape(z.to(tl.float32), BLOCK * PADDED_C)
    turns = z * scale_min
    sin, cos = turns, turns
    sines, cosines = (), ()
    for f in tl.static_range(FEATURES):
        if f % 2 == 0:
            sin, cos = sincos_turns(turns, HALF)
            turns = turns * 4.0
        else:
            sin, cos = double_angle(sin, cos)
        sines += (sin,)
        cosines += (cos,)
    slots = (z,)
    slots += sines
    slots += cosines
    for _ in tl.static_range(1 + 2 * FEATURES, 1 << DEPTH):
        slots += (z,)  # never read
    for turn in tl.static_range(DEPTH):
        joined = ()
        for k in tl.static_range(1 << (DEPTH - 1 - turn)):
            joined += (tl.interleave(slots[k], slots[k + (1 << (DEPTH - 1 - turn))]),)
        slots = joined
    k = tl.arange(0, PADDED_K)[None, :]  # of a feature in its row; slot: of its kind, of its channel
    angle = tl.maximum(k - C, 0) % (C * FEATURES)
    slot = tl.where(k < C, 0, 1 + angle % FEATURES + tl.where(k < C + C * FEATURES, 0, FEATURES))
    owner = tl.where(k < C, k, angle // FEATURES)
    row = tl.arange(0, BLOCK)[:, None]
    place = ((row * PADDED_C + owner) << DEPTH) + slot
    features = slots[0]  # pyright: ignore[reportGeneralTypeIssues]
    out = tl.reshape(tl.gather(features, tl.reshape(place, BLOCK * PADDED_K), 0), BLOCK, PADDED_K)
    tl.store(out_ptr + pixel * K + k, out.to(out_ptr.dtype.element_ty), mask=(pixel < n) & (k < K))


@jit
def fourier_last_gradient_kernel(
    grad_ptr, z_ptr, out_ptr, n, blocks, scale_min, C: constexpr, FEATURES: constexpr, BLOCK: constexpr
):  # fmt: skip
    """Gradient to z for BLOCK numbers of one sample, which has n."""
    HALF: constexpr = out_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    # neighbouring threads take neighbouring numbers, not four each, so that a warp's accesses share sectors
    i = tl.max_contiguous(start + tl.arange(0, BLOCK), 1)
    base = sample.to(tl.int64) * n
    grad_ptr += base * (1 + 2 * FEATURES)
    turns = tl.load(z_ptr + base + i, mask=i < n, other=0.0).to(tl.float32) * scale_min
    pixel = i.to(tl.uint32) // C
    channel = i - pixel.to(tl.int32) * C
    row_ptr = grad_ptr + pixel.to(tl.int32) * (C * (1 + 2 * FEATURES))
    total = tl.load(row_ptr + channel, mask=i < n, other=0.0).to(tl.float32)
    sin_ptr = row_ptr + (C + channel * FEATURES)
    rate = scale_min * _TWO_PI
    sin, cos = turns, turns
    for f in tl.static_range(FEATURES):
        if f % 2 == 0:
            sin, cos = sincos_turns(turns, HALF)
            turns = turns * 4.0
        else:
            sin, cos = double_angle(sin, cos)
        grad_sin = tl.load(sin_ptr + f, mask=i < n, other=0.0).to(tl.float32)
        grad_cos = tl.load(sin_ptr + (C * FEATURES + f), mask=i < n, other=0.0).to(tl.float32)
        total += rate * (grad_sin * cos - grad_cos * sin)
        rate = rate * 2.0
    tl.store(out_ptr + base + i, total.to(out_ptr.dtype.element_ty), mask=i < n)


def takes(z: Tensor, features: int) -> bool:
    """Whether these kernels take channels-last z [B, C, H, W]: a pixel fits in a program, and offsets in 32 bits."""
    return power_of_two(z.shape[1] * features) <= TILE and z[:1].numel() * features < 2**31 - 2**16


def tile_of(channels: int, frequencies: int) -> dict[str, int]:
    """The constants of `fourier_last_kernel`."""
    padded = power_of_two(channels * (1 + 2 * frequencies))
    depth = power_of_two(1 + 2 * frequencies).bit_length() - 1
    return {
        "C": channels, "FEATURES": frequencies, "PADDED_C": power_of_two(channels), "PADDED_K": padded,
        "DEPTH": depth, "BLOCK": TILE // padded,
    }  # fmt: skip


def launch_features(z: Tensor, out: Tensor, n_min: int, frequencies: int) -> None:
    """Write the features of z to out, both channels-last."""
    batch, channels, height, width = z.shape
    tile = tile_of(channels, frequencies)
    blocks = -(-height * width // tile["BLOCK"])
    if batch * blocks:
        fourier_last_kernel[(batch * blocks,)](
            z, out, height * width, blocks, 2.0 ** (n_min - 1), **tile, num_warps=WARPS
        )


def launch_gradient(grad: Tensor, z: Tensor, out: Tensor, n_min: int, frequencies: int) -> None:
    """Write the gradient to z, all channels-last."""
    programs, n, blocks, block = split(z.shape[0], z[:1].numel())
    if programs:
        fourier_last_gradient_kernel[(programs,)](
            grad, z, out, n, blocks, 2.0 ** (n_min - 1), C=z.shape[1], FEATURES=frequencies, BLOCK=block,
            num_warps=WARPS,
        )  # fmt: skip
