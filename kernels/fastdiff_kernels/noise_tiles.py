"""Noise for data whose memory has another order than the noise: device functions for kernels that draw.

The noise of an element is that of its place in the logical sample [C, H, W]. Philox gives four elements at a time,
which are neighbours along the pixels of one channel, while in channels-last memory the C channels of a pixel are
neighbours. A thread therefore owns some neighbouring pixels, as many as a 128-bit access has elements (4 of 32 bits, 8
of 16 bits), with all their channels. It draws their normals channel by channel, and they are as many neighbours in
memory, which it reads and writes in C accesses. Tile k of a program holds the k-th access of each thread, and its noise
is put together from the thread's own registers.

So nothing is drawn twice, nothing is exchanged through shared memory, and the instructions per element are those of
contiguous data (42 against 38 for `diffuse` in fp32 with C = 3, 27 against 29 in bf16). An access of a warp touches 32
sectors of 32 bytes, half of each, where a contiguous one touches 16: in all twice the sectors between registers and L2,
and in DRAM the same bytes. The alternatives, by the same counts: one channel of consecutive pixels per access needs 3
times the sectors for C = 3, one element per instruction, and an exchange in shared memory for the noise; a tile of
[pixels, C padded to a power of two] draws a third more noise for C = 3; a gather to the order of memory needs full
sectors only, but also 5 instructions per element for addresses and shared memory.

For C = 1, and for any data without drawn noise, memory and noise have the same order, and the only tile is a block.

WIDTH, the elements of one access of a thread, is smaller for many channels, which would need many registers. Each
function states it as an expression: what a device function returns is a constant in Triton 3.7, and a tensor in 3.6.
"""

from ._triton import constexpr, jit, tl
from .noise_kernels import draw_block, quad_normals


@jit
def tile_offsets(start, tile: constexpr, HALF: constexpr, C: constexpr, BLOCK: constexpr):
    """Offsets in memory of one tile of a program that works on BLOCK pixels of C channels from pixel ``start``."""
    WIDTH: constexpr = 8 if HALF and C <= 4 else 4
    if C == 1:
        offsets = start + tl.arange(0, BLOCK)
    else:
        first = (start + WIDTH * tl.arange(0, BLOCK // WIDTH)) * C + tile * WIDTH
        offsets = first[:, None] + tl.arange(0, WIDTH)[None, :]
    return offsets


@jit
def noise_of(
    noise_ptr, sample, start, n, DRAWN: constexpr, HALF: constexpr, FAST: constexpr, C: constexpr, BLOCK: constexpr
):  # fmt: skip
    """What `tile_noise` takes noise from: a block, or all normals of a program channel by channel, or nothing."""
    noise = ()
    if DRAWN:
        if C == 1:
            noise = (draw_block(noise_ptr, sample, start, HALF, FAST, BLOCK),)
        else:
            WIDTH: constexpr = 8 if HALF and C <= 4 else 4
            quad = start // 4 + (WIDTH // 4) * tl.arange(0, BLOCK // WIDTH)
            for _ in tl.static_range(C):
                noise = noise + quad_normals(noise_ptr, sample, quad, HALF, FAST)
                if WIDTH == 8:
                    noise = noise + quad_normals(noise_ptr, sample, quad + 1, HALF, FAST)
                quad += n // (4 * C)
    return noise


@jit
def tile_noise(noise, noise_ptr, base, at, n, tile: constexpr, DRAWN: constexpr, HALF: constexpr, C: constexpr):
    """Noise of one tile in float32: drawn (see `noise_of`), or read from a tensor in the order of the data."""
    if not DRAWN:
        eps = tl.load(noise_ptr + base + at, mask=at < n, other=0.0).to(tl.float32)
    elif C == 1:
        eps = noise[0]
    else:
        WIDTH: constexpr = 8 if HALF and C <= 4 else 4
        HOP: constexpr = WIDTH // 2
        even, odd = pair(noise, tile * WIDTH, HOP, WIDTH, C), pair(noise, tile * WIDTH + 1, HOP, WIDTH, C)
        if WIDTH == 8:
            even = tl.interleave(even, pair(noise, tile * WIDTH + 2, HOP, WIDTH, C))
            odd = tl.interleave(odd, pair(noise, tile * WIDTH + 3, HOP, WIDTH, C))
        eps = tl.reshape(tl.interleave(even, odd), at.shape)
    return eps


@jit
def pair(noise, first: constexpr, HOP: constexpr, WIDTH: constexpr, C: constexpr):
    """Interleave the normals of a thread's elements ``first`` and ``first + HOP``.

    Element m in memory belongs to channel m % C of pixel m // C; normals were drawn channel by channel.
    """
    SECOND: constexpr = first + HOP
    return tl.interleave(noise[(first % C) * WIDTH + first // C], noise[(SECOND % C) * WIDTH + SECOND // C])
