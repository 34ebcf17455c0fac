"""The layers that the networks share: normalised activation, residual block, attention, embedding, Gaussian output.

Images are [B, C, H, W] in channels-last memory, embeddings [B, E].
"""

import math
from typing import TypeVar

import torch
from einops import rearrange
from fastdiff_kernels.errors import InvalidValueError
from torch import Tensor, nn
from torch.nn import functional as F

from .dropout import Dropout
from .sums import Convolved, Sum, as_sum

LOGVAR_LIMIT = 10.0  # log-variances lie within ±10, so that variances and their inverses stay far from overflow

M = TypeVar("M", bound=nn.Module)


class NormSiLU(nn.Module):
    """Group normalisation followed by SiLU, with an optional scale and shift [B, C] in between.

    y = silu(norm(x) (1 + scale) + shift)

    Args:
        channels: channels of the input.
        max_groups: the number of groups is the greatest common divisor of this and ``channels``.
        eps: added to the variances.
    """

    def __init__(self, channels: int, max_groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(channels, max_groups), channels, eps=eps)

    def forward(self, x: Tensor | Sum, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return as_sum(x).normalized(self.norm, scale, shift)


class ResBlock(nn.Module):
    """Residual block whose second normalisation is modulated by an embedding.

    h = conv_in(silu(norm_in(x)))
    y = shortcut(x) + conv_out(dropout(silu(norm_out(h) (1 + scale) + shift))),  (scale, shift) = linear(embedding)

    This is the adaptive group normalisation of Dhariwal and Nichol (2021, arXiv:2105.05233, section 3.1). ``conv_out``
    and the linear layer start at zero, so that an untrained block returns x.

    The network that holds the blocks takes their linear layers and computes them at once (`Projections`).
    """

    projection: nn.Linear

    def __init__(self, channels: int, embedding: int, dropout: float, max_groups: int) -> None:
        super().__init__()
        self.norm_in = NormSiLU(channels, max_groups)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.projection = zero(nn.Linear(embedding, 2 * channels))
        self.norm_out = NormSiLU(channels, max_groups)
        self.dropout = Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(
        self, x: Tensor | Sum, modulation: Tensor, biases: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> Sum:
        """Return y, not added up.

        Args:
            x: [B, channels, H, W].
            modulation: scale and shift side by side, [B, 2 channels].
            biases: those of ``conv_in`` and ``conv_out``, [B, channels] each, or None, see `Convolved`.
        """
        x = as_sum(x)
        scale, shift = modulation.chunk(2, dim=1)  # [B, channels] each
        h = Sum(Convolved(self.conv_in, self.norm_in(x), biases[0]))
        h = self.dropout(self.norm_out(h, scale, shift))  # [B, channels, H, W]
        return Sum(Convolved(self.conv_out, h, biases[1]), residual=x.tensor())


class Attention(nn.Module):
    """Multi-head self-attention over the pixels (Vaswani et al. 2017, arXiv:1706.03762), added to its input.

    y = x + dropout(linear(softmax(q kᵀ / sqrt(C / heads)) v)),  (q, k, v) = linear(norm(x))

    The output projection starts at zero, so that an untrained layer returns x.

    Raises:
        InvalidValueError: ``heads`` does not divide ``channels``.
    """

    def __init__(self, channels: int, heads: int, dropout: float, max_groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        if channels % heads:
            raise InvalidValueError(f"Attention: heads must divide channels, {channels}, got {heads}")
        self.heads = heads
        self.norm = nn.GroupNorm(math.gcd(channels, max_groups), channels, eps=eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.dropout = Dropout(dropout)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor | Sum) -> Sum:
        """Return y, not added up, for x [B, channels, H, W]."""
        x = as_sum(x)
        normal = x.normalized(self.norm, activation=False)
        pixels = rearrange(normal, "b c h w -> b (h w) c")
        q, k, v = (
            rearrange(part, "b n (heads c) -> b heads n c", heads=self.heads) for part in self.qkv(pixels).chunk(3, 2)
        )
        h = rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n c -> b n (heads c)")
        h = rearrange(self.dropout(self.out(h)), "b (h w) c -> b c h w", h=normal.shape[2])
        return Sum(h, residual=x.tensor())


class NoiseEmbedding(nn.Module):
    """Embedding of the noise level: [B] to [B, embedding].

    MLP([sin(f_i noise_level), cos(f_i noise_level)]), with ``features // 2`` frequencies f_i spaced evenly in their
    logarithm from 1 to ``max_frequency``.
    """

    frequencies: Tensor

    def __init__(self, embedding: int, features: int = 32, max_frequency: float = 200.0) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(0.0, math.log(max_frequency), features // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

    def forward(self, noise_level: Tensor) -> Tensor:
        angle = noise_level[:, None] * self.frequencies  # [B, features / 2]
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))


class Gaussian(nn.Module):
    """Linear layer from features [B, F] to the mean and log-variance, [B, size] each, of a diagonal Gaussian.

    Its parameters start at zero, so that an untrained layer returns N(0, I).
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.linear = zero(nn.Linear(features, 2 * size))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = not_narrowed(self.linear(h)).chunk(2, dim=1)
        return mean, bounded(raw)


def not_narrowed(out: Tensor) -> Tensor:
    """Return the parameters of a distribution in float32 where autocast has computed them in 16 bits."""
    device = out.device.type
    return out.float() if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) else out


def bounded(raw: Tensor) -> Tensor:
    """Map any number to a log-variance in (-`LOGVAR_LIMIT`, `LOGVAR_LIMIT`) by L tanh(raw / L), of slope 1 at 0."""
    return LOGVAR_LIMIT * torch.tanh(raw / LOGVAR_LIMIT)


def zero(module: M) -> M:
    """Set the parameters of a layer to zero and return the layer."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def check_size(where: str, size: tuple[int, int], resolutions: int) -> None:
    """Check that an image can be halved ``resolutions - 1`` times.

    Raises:
        InvalidValueError: a height or width that is not a positive multiple of 2 ** (resolutions - 1).
    """
    factor = 2 ** (resolutions - 1)
    if min(size) < 1 or size[0] % factor or size[1] % factor:
        raise InvalidValueError(
            f"{where}: size must be positive multiples of {factor} for {resolutions} resolutions, got {size}"
        )
