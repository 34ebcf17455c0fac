"""The pieces of the networks: normalised activation, residual block, attention, resampling, embeddings of numbers.

Images are [B, C, H, W] in channels-last memory; embeddings [B, E].
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import group_norm_silu


class NormSiLU(nn.Module):
    """SiLU of GroupNorm, with an optional scale and shift per sample and channel: silu(norm(x) (1 + scale) + shift)."""

    def __init__(self, channels: int, max_groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(channels, max_groups), channels, eps=eps)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        norm = self.norm
        weight, bias = norm.weight.float(), norm.bias.float()  # of a model that was cast to 16 bits, too
        return group_norm_silu(x, norm.num_groups, weight, bias, scale, shift, norm.eps)


class ResBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))))))), the second norm scaled and shifted by the embedding.

    The last convolution starts at zero, so that the block starts as its shortcut; the projection of the embedding too.
    """

    def __init__(self, channels_in: int, channels: int, embedding: int, dropout: float, max_groups: int) -> None:
        super().__init__()
        self.norm_in = NormSiLU(channels_in, max_groups)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.modulation = zero(nn.Linear(embedding, 2 * channels))
        self.norm_out = NormSiLU(channels, max_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = self.norm_out(self.conv_in(self.norm_in(x)), scale, shift)
        return self.shortcut(x) + self.conv_out(self.dropout(h))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, added to its input; the output projection starts at zero."""

    def __init__(self, channels: int, heads: int, dropout: float, max_groups: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"Attention: {channels} channels over {heads} heads; allowed: a divisor of the channels")
        self.heads = heads
        self.norm = nn.GroupNorm(math.gcd(channels, max_groups), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.dropout = nn.Dropout(dropout)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        pixels = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = rearrange(self.qkv(pixels), "b n (three heads c) -> three b heads n c", three=3, heads=self.heads)
        h = rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n c -> b n (heads c)")
        return x + rearrange(self.dropout(self.out(h)), "b (h w) c -> b c h w", h=height)


class NumberEmbedding(nn.Module):
    """A number per sample, [B] to [B, E]: sines and cosines of frequencies 1 .. max_frequency, then an MLP."""

    frequencies: Tensor

    def __init__(self, embedding: int, features: int = 32, max_frequency: float = 200.0) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(0.0, math.log(max_frequency), features // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

    def forward(self, number: Tensor) -> Tensor:
        angle = number[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))


def zero(module: nn.Module) -> nn.Module:
    """Set the parameters of a layer to zero, and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
