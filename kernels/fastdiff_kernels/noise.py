"""Noise as a pure function of (seed, sample, step, stream, element): Philox4x32-10 and Box-Muller.

Element i (flat, row-major, of one sample's logical shape) of sample b of a batch takes the generator with

    key = seed (64 bits),   counter = (i // 4, first_sample + b, step, stream)  mod 2**32,

exactly ``tl.philox(seed, c0, c1, c2, c3)`` (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3). Its four
words r0..r3 give uniforms u(r) = float32(r) 2**-32 + 2**-33 in (0, 1], and the normals of elements 4q .. 4q + 3 are
(Box and Muller 1958)

    sqrt(-2 ln u(r0)) (cos, sin)(2 pi u(r1)),   sqrt(-2 ln u(r2)) (cos, sin)(2 pi u(r3)).

A kernel draws noise where it needs it, and draws the same noise again in the backward pass, so noise is never stored.
The noise of a sample depends neither on the batch that it is in nor on the device. A float32 normal differs by at most
4e-6 from float64 Box-Muller of the same u. Bytes per element of a materialised draw in fp32: 4 (one write).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_like, described, whole_number
from .errors import InvalidTypeError, InvalidValueError
from .noise_kernels import draw_triton
from .registration import register

MASK = 0xFFFFFFFF
NAMES = ("seed", "step", "first_sample", "stream")
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
WEYL_A, WEYL_B = 0x9E3779B9, 0xBB67AE85
CHUNK = 1 << 15  # counters per step of the reference, so that its int64 temporaries fit in a core's cache


class Stream:
    """What noise is used for. Each use has a number of its own, so that no two draws share a counter.

    Layer k of a hierarchical model, or repetition k of a draw, adds 256 k.
    """

    TIMES = 1  # t of the diffusion loss
    DIFFUSION = 2  # eps of the diffusion loss
    RECON = 3  # eps_0 of the reconstruction term
    INITIAL = 4  # z_1, where sampling starts
    SAMPLER = 5  # noise of the sampler's steps
    VAE = 6  # latents of an autoencoder
    ORDER = 7  # order of the training data
    LABELS = 8  # which labels are dropped in training
    DROPOUT = 9  # which elements are dropped, with 256 k for the k-th dropout layer of a network
    AUGMENTATION = 10  # random shifts of training images
    DECODER = 11  # x from p(x | z_0)
    PROBE = 12  # directions of Hutchinson's estimate of a divergence
    MIXTURE = 13  # component of a mixture of latents
    DEGRADATION = 14  # noise that is added to an image before it is restored
    BROWNIAN = 15  # nodes of a Brownian path of the sampler's noise


class Noise:
    """The four numbers that determine a batch of noise. The module's docstring defines the numbers that are drawn.

    Args:
        seed: an integer in [0, 2**64).
        step: step of training or of the sampler, modulo 2**32.
        first_sample: index of the batch's first sample in its data set, global batch or request, modulo 2**32.
        stream: what the noise is used for, one of `Stream` (+ 256 k), modulo 2**32.

    The numbers are one int64 tensor ``key`` [4]. A compiled function or a captured graph therefore takes a new step
    without being compiled or captured again. ``noise.to(device)`` puts them on the device of the data.

    Raises:
        InvalidTypeError: one of the numbers is not an integer.
        InvalidValueError: the seed is outside [0, 2**64).
    """

    def __init__(self, seed: int, step: int = 0, first_sample: int = 0, stream: int = 0) -> None:
        seed, step, first_sample, stream = (
            whole_number("Noise", name, value)
            for name, value in zip(NAMES, (seed, step, first_sample, stream), strict=True)
        )
        if not 0 <= seed < 2**64:
            raise InvalidValueError(f"Noise: seed must be in [0, 2**64), got {seed}")
        signed = seed - 2**64 if seed >= 2**63 else seed  # the same 64 bits as int64
        self.key = torch.tensor([signed, step & MASK, first_sample & MASK, stream & MASK], dtype=torch.int64)

    @classmethod
    def from_key(cls, key: Tensor) -> "Noise":
        """Wrap an int64 tensor [4] of (seed as int64, step, first_sample, stream), on any device."""
        if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.shape != (4,):
            raise InvalidValueError(
                f"Noise.from_key: key must be a torch.int64 tensor of shape (4,), got {described(key)}"
            )
        noise = cls.__new__(cls)
        noise.key = key.contiguous()
        return noise

    def at(self, *, step: int | None = None, first_sample: int | None = None, stream: int | None = None) -> "Noise":
        """Return the same noise with some of its numbers replaced."""
        key = self.key.clone()
        for position, value in ((1, step), (2, first_sample), (3, stream)):
            if value is not None:
                number = whole_number("Noise.at", NAMES[position], value)
                key[position].fill_(number & MASK)  # an assignment would copy from the host on a GPU
        return Noise.from_key(key)

    def to(self, device: torch.device | str) -> "Noise":
        """Return a copy on ``device``. `advance` of one does not change the other."""
        return Noise.from_key(self.key.to(device, copy=True))

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """Draw standard normals for a batch of shape [B, ...], in float32 and then rounded to ``dtype``."""
        return self._draw(shape, dtype, device, normal=True)

    def uniform(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """Draw uniforms in (0, 1] for a batch of shape [B, ...]. Element i takes word i % 4 of counter i // 4."""
        return self._draw(shape, dtype, device, normal=False)

    @property
    def counter(self) -> Tensor:
        """The step as an int64 tensor [1] that `advance` increments: a row number for `sampler_step`."""
        return self.key[1:2]

    def advance(self) -> None:
        """Increment the step in place on the device, as a captured graph does at each replay."""
        self.counter.add_(1).bitwise_and_(MASK)

    def integer(self) -> int:
        """Return a 63-bit integer, from the first two words of this noise, that can seed another generator."""
        seed, step, first_sample, stream = self.key.tolist()
        counter = [torch.tensor(value & MASK) for value in (0, first_sample, step, stream)]
        low, high, _, _ = (int(word) for word in philox(seed % 2**64, *counter))
        return (high << 32 | low) & (2**63 - 1)

    def _draw(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str | None, normal: bool
    ) -> Tensor:
        if len(shape) < 1 or any(size < 0 for size in shape):
            raise InvalidValueError(f"Noise: shape must be [B, ...] without negative sizes, got {tuple(shape)}")
        if not dtype.is_floating_point:
            raise InvalidTypeError(f"Noise: dtype must be a floating-point dtype, got {dtype}")
        key = self.key if device is None else self.key.to(device)
        return _draw_op(key, list(shape), dtype, normal)

    def __repr__(self) -> str:
        seed, step, first_sample, stream = self.key.tolist()
        return f"Noise(seed={seed % 2**64}, step={step}, first_sample={first_sample}, stream={stream})"


def philox(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 in int64 arithmetic. Counters in [0, 2**32) are broadcast; the four words are in [0, 2**32).

    A product of two 32-bit numbers wraps in int64 to the right 64 bits, so its high word is ``(p >> 32) & MASK``. c1
    and c3 are low words. They are not multiplied before they are masked, so they may keep their upper bits until then.
    """
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * ROUND_A, c2 * ROUND_B
        c0 = (p1 >> 32).bitwise_xor(c1).bitwise_xor_(k0).bitwise_and_(MASK)
        c2 = (p0 >> 32).bitwise_xor(c3).bitwise_xor_(k1).bitwise_and_(MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + WEYL_A) & MASK, (k1 + WEYL_B) & MASK
    return c0, c1 & MASK, c2, c3 & MASK


def uniform_from_word(word: Tensor) -> Tensor:
    """u(r) = float32(r) 2**-32 + 2**-33 in float32, round to nearest."""
    return word.to(torch.float32).mul_(2.0**-32).add_(2.0**-33)


def draw_reference(key: Tensor, shape: Sequence[int], dtype: torch.dtype, normal: bool) -> Tensor:
    """Draw a batch [B, ...] of normals or uniforms in plain PyTorch, a chunk of counters at a time."""
    seed, step, first_sample, stream = key.tolist()
    step = step & MASK
    batch, n = shape[0], math.prod(shape[1:])
    quads = -(-n // 4)
    out = torch.empty(batch, quads, 4, dtype=torch.float32, device=key.device)
    c2, c3 = (torch.tensor(value, device=key.device) for value in (step, stream))
    rows, columns = max(1, CHUNK // max(quads, 1)), max(1, min(quads, CHUNK))
    for b in range(0, batch, rows):
        c1 = torch.arange(b, min(b + rows, batch), device=key.device).add_(first_sample).bitwise_and_(MASK)[:, None]
        for q in range(0, quads, columns):
            c0 = torch.arange(q, min(q + columns, quads), device=key.device)[None].bitwise_and(MASK)
            words = philox(seed % 2**64, c0, c1, c2, c3)
            write_draws(out[b : b + rows, q : q + columns], [uniform_from_word(word) for word in words], normal)
    return out.view(batch, quads * 4)[:, :n].to(dtype).contiguous().view(*shape)


def write_draws(out: Tensor, u: list[Tensor], normal: bool) -> None:
    """Write the four uniforms of each counter, or the normals that they give, into out [..., 4]."""
    if not normal:
        torch.stack(u, dim=-1, out=out) if out.is_contiguous() else out.copy_(torch.stack(u, dim=-1))
        return
    for half in (0, 1):
        radius = u[2 * half].log_().mul_(-2.0).sqrt_()
        angle = u[2 * half + 1].mul_(2 * math.pi)
        torch.mul(radius, torch.cos(angle), out=out[..., 2 * half])
        torch.mul(radius, angle.sin_(), out=out[..., 2 * half + 1])


def noise_argument(where: str, noise: object, x: Tensor, x_name: str) -> Tensor:
    """Turn an operation's ``noise`` into the tensor that its kernels take: a key, or noise of the shape of x.

    Raises:
        InvalidTypeError, InvalidValueError: ``noise`` is neither a `Noise` nor a float tensor like x, or it requires a
            gradient.
    """
    if isinstance(noise, Noise):
        if noise.key.device == x.device:
            return noise.key
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise InvalidValueError(
                f"{where}: noise must be on {x.device} while a CUDA graph is captured (use noise.to), "
                f"got {noise.key.device}"
            )
        return noise.key.to(x.device)
    if not isinstance(noise, Tensor):
        raise InvalidTypeError(f"{where}: noise must be a Noise or a tensor like {x_name}, got {described(noise)}")
    check_like(where, "noise", noise, x, x_name)
    if noise.requires_grad:
        raise InvalidValueError(f"{where}: noise must not require a gradient; detach it")
    return noise


def normal_like(noise: Tensor, x: Tensor) -> Tensor:
    """Return the noise for an operation's reference in float32: drawn if ``noise`` is a key, else the tensor itself."""
    if noise.dtype == torch.int64:
        return draw_reference(noise, x.shape, torch.float32, True)
    return noise.to(torch.float32)


_draw_op = register(
    "draw(Tensor key, SymInt[] shape, ScalarType dtype, bool normal) -> Tensor",
    draw_reference,
    draw_triton,
    lambda key, shape, dtype, normal: torch.empty(shape, dtype=dtype, device=key.device),
)
