"""The operations in float64, written from their equations and independent of the kernels."""

import math

import numpy as np
import torch
from torch import Tensor


def shaped(value: Tensor, x: Tensor) -> Tensor:
    """A per-sample vector against data."""
    return value.reshape(-1, *[1] * (x.dim() - 1))


def diffuse(x: Tensor, gamma: Tensor, eps: Tensor) -> Tensor:
    """sqrt(1 / (1 + e^gamma)) x + sqrt(e^gamma / (1 + e^gamma)) eps."""
    snr_inverse = torch.exp(shaped(gamma, x))
    return x / torch.sqrt(1.0 + snr_inverse) + torch.sqrt(snr_inverse / (1.0 + snr_inverse)) * eps


def eps_loss(eps_hat: Tensor, eps: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared distance per sample."""
    return weight * torch.einsum("bi,bi->b", (eps - eps_hat).flatten(1), (eps - eps_hat).flatten(1))


def fourier(z: Tensor, n_min: int, n_max: int) -> Tensor:
    """z, then all sines, then all cosines; channel by channel, frequency by frequency."""
    channels = [z[:, c] for c in range(z.shape[1])]
    pairs = [(c, n) for c in range(z.shape[1]) for n in range(n_min, n_max + 1)]
    sines = [torch.sin(2.0**n * torch.pi * channels[c]) for c, n in pairs]
    cosines = [torch.cos(2.0**n * torch.pi * channels[c]) for c, n in pairs]
    return torch.stack([*channels, *sines, *cosines], dim=1)


def sampler_step(z_t, eps_hat, row, eps=None, clip=None, history=(), z_prev=None, u=None):
    """The linear step, term by term; row = (1/alpha_t, sigma_t/alpha_t, A, B, S, w, C1, C2, C3, D)."""
    one_over_alpha, ratio, a, b, s, w, *c, d = row
    guided = eps_hat if u is None else (1.0 - w) * u + w * eps_hat
    x_hat = one_over_alpha * z_t - ratio * guided
    if clip is not None:
        x_hat = torch.clamp(x_hat, -clip, clip)
    z_s = a * z_t + b * x_hat
    for coefficient, remembered in zip(c, history, strict=False):
        z_s = z_s + coefficient * remembered
    if z_prev is not None:
        z_s = z_s + d * z_prev
    if eps is not None:
        z_s = z_s + s * eps
    return z_s, x_hat


def reparameterize(mean: Tensor, logvar: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """A draw from N(mean, e^logvar), and KL(N(mean, e^logvar) || N(0, 1)) per sample."""
    variance = torch.exp(logvar)
    kl = -0.5 * torch.log(variance) + 0.5 * (variance + mean**2) - 0.5
    return mean + torch.sqrt(variance) * eps, kl.flatten(1).sum(1)


def philox(seed: int, c0: np.ndarray, c1: np.ndarray, c2: int, c3: int) -> list[np.ndarray]:
    """The four words of Philox4x32-10 in uint64 arithmetic, one round after the other as published."""
    low, half = np.uint64(2**32 - 1), np.uint64(32)
    c = [np.asarray(value, dtype=np.uint64) for value in np.broadcast_arrays(c0, c1, c2, c3)]
    for k in range(10):
        key = [(seed % 2**32 + k * 0x9E3779B9) % 2**32, (seed // 2**32 + k * 0xBB67AE85) % 2**32]
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> half) ^ c[1] ^ np.uint64(key[0]), b & low, (a >> half) ^ c[3] ^ np.uint64(key[1]), a & low]
    return c


def dropout_bytes(shape, seed: int, step: int = 0, first_sample: int = 0, layer: int = 0) -> np.ndarray:
    """The byte of every element: byte i % 16, from the lowest of the first word, of counter i // 16; stream 9."""
    n = math.prod(shape[1:])
    calls, samples = np.arange(n // 16 + 1)[None], (np.arange(shape[0])[:, None] + first_sample) % 2**32
    words = philox(seed, calls, samples, step, 9 + 256 * layer)
    found = np.stack([(word >> np.uint64(8 * j)) & np.uint64(255) for word in words for j in range(4)], axis=-1)
    return found.reshape(shape[0], 16 * words[0].shape[1])[:, :n].reshape(shape)


def dropout(x: Tensor, p: float, seed: int, step: int = 0, first_sample: int = 0, layer: int = 0) -> Tensor:
    """x / (1 - k/256) where the byte is at least k = round(256 p), else 0."""
    k = round(256 * p)
    kept = torch.from_numpy(dropout_bytes(tuple(x.shape), seed, step, first_sample, layer) >= k)
    return torch.where(kept, x / (1.0 - k / 256.0), torch.zeros_like(x))


def gaussian_log_density(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, e^logvar) per sample."""
    variance = torch.exp(logvar)
    return (-0.5 * torch.log(2.0 * torch.pi * variance) - (z - mean) ** 2 / (2.0 * variance)).flatten(1).sum(1)


def gaussian_log_ratio(z: Tensor, mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor) -> Tensor:
    """log q(z) - log p(z) per sample."""
    return gaussian_log_density(z, mean_q, logvar_q) - gaussian_log_density(z, mean_p, logvar_p)


def decoder_nll(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Tensor:
    """-log of the normalised Gaussian weights, with the full tensor of levels."""
    centres = (2.0 * torch.arange(levels, dtype=torch.float64) + 1.0) / levels - 1.0
    logits = -0.5 * torch.exp(-logvar)[..., None] * (mean[..., None] - centres) ** 2
    chosen = torch.log_softmax(logits, -1).gather(-1, x.long()[..., None])[..., 0]
    return -chosen.flatten(1).sum(1)


def group_norm_silu(
    x, groups, weight, bias, scale=None, shift=None, eps=1e-5, *, pre_shift=None, residual=None, skip=None,
    activation=True, rounded_to=torch.float64,
):  # fmt: skip
    """Normalise group by group, channel by channel; silu(v) = v / (1 + e^-v). ``rounded_to``: dtype of the total."""
    total = x
    if pre_shift is not None:
        total = total + pre_shift.reshape(*x.shape[:2], *[1] * (x.dim() - 2))
    if residual is not None:
        total = total + residual
    u = total if skip is None else torch.cat([total, skip], dim=1)
    if residual is not None or skip is not None:
        u = u + (u.detach().to(rounded_to).double() - u.detach())  # of derivative 1
    size, columns = u.shape[1] // groups, []
    for c in range(u.shape[1]):
        group = u[:, c // size * size : (c // size + 1) * size].flatten(1)
        mean = group.sum(1) / group.shape[1]
        variance = ((group - mean[:, None]) ** 2).sum(1) / group.shape[1]
        v = (u[:, c] - shaped(mean, u[:, c])) / torch.sqrt(shaped(variance, u[:, c]) + eps) * weight[c] + bias[c]
        if scale is not None:
            v = v * shaped(1.0 + scale[:, c], v) + shaped(shift[:, c], v)
        columns.append(v / (1.0 + torch.exp(-v)) if activation else v)
    y = torch.stack(columns, dim=1)
    return y if residual is None and skip is None else (y, u)
