"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B), whose skips are concatenated to the way up.

With one resolution, many blocks and no attention but the middle's it is the score network of variational diffusion
models (Kingma et al. 2021, arXiv:2107.00630, appendix B); see `ConcatUNetConfig` for both sizes at CIFAR-10.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import check_fields
from .blocks import Attention, NormSiLU, zero
from .unet import UNet, UNetConfig

EPS = 1e-6  # of the normalisations of both papers


@dataclass(frozen=True)
class ConcatUNetConfig:
    """Size of a U-Net with concatenated skips; the defaults are DDPM's at CIFAR-10, 35.7 M parameters.

    VDM's at CIFAR-10 is ``ConcatUNetConfig(width=128, multipliers=(1,), blocks=32, attention=(),
    embedding_bias=False)``, 30.6 M parameters with 15 input channels.

    Args:
        kind: ``"concat"``, which tells this configuration from `UNetConfig` in a config.json.
        width: channels of the first convolution, and features of the embedded number.
        multipliers: channels at each resolution in units of ``width``, from the full one down; each further entry
            halves the resolution.
        blocks: residual blocks per resolution on the way down; the way up has one more.
        attention: heights of the feature maps at which every block, down and up, is followed by self-attention;
            a height that does not occur does nothing. The middle always has attention.
        dropout: probability, before the last convolution of each block.
        heads: heads of every attention.
        max_groups: groups of the normalisations (their greatest common divisor with the channels is used).
        embedding_bias: True: each block's projection of the embedding has a bias (DDPM). False: it has none, and its
            weights start at zero (VDM).
    """

    kind: str = "concat"
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    heads: int = 1
    max_groups: int = 32
    embedding_bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind != "concat":
            raise ValueError(f"ConcatUNetConfig: kind is {self.kind!r}; allowed: 'concat'")
        if self.width < 4 or self.width % 2:  # the frequencies are width / 2 numbers from 1 down to 1 / 10000
            raise ValueError(f"ConcatUNetConfig: width is {self.width}; allowed: an even number >= 4")
        if not self.multipliers or min(self.multipliers) < 1 or self.blocks < 1 or min(self.attention, default=1) < 1:
            raise ValueError(
                f"ConcatUNetConfig: multipliers {self.multipliers}, blocks {self.blocks}, attention {self.attention}; "
                "allowed: positive numbers, at least one multiplier"
            )
        if self.max_groups < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"ConcatUNetConfig: max_groups {self.max_groups}, heads {self.heads} over {self.width} channels; "
                "allowed: positive numbers, heads that divide the width"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"ConcatUNetConfig: dropout is {self.dropout}; allowed: 0 <= dropout < 1")


class ConcatUNet(nn.Module):
    """Images [B, channels_in, H, W] and a number [B] in [0, 1] to images [B, channels_out, H, W].

    Down: residual blocks, then a strided convolution to the next resolution. Middle: block, attention, block. Up: one
    block more per resolution, each on the concatenation with the last output of the way down that is left (of the
    first convolution, a block or a strided convolution), then a nearest-neighbour enlargement and a convolution. The
    last convolution starts at zero.

    Args:
        channels_in, channels_out: of the image.
        size: (H, W), divisible by 2 for each resolution after the first.
        conditions: number of conditions (labels and the like), one embedding each; 0 for none.
        config: width, resolutions and depth.

    Raises:
        ValueError: a size that the resolutions do not divide.
    """

    def __init__(
        self, channels_in: int, channels_out: int, size: tuple[int, int], conditions: int, config: ConcatUNetConfig
    ) -> None:
        super().__init__()
        lowest = len(config.multipliers) - 1
        factor = 2**lowest
        if min(size) < 1 or size[0] % factor or size[1] % factor:
            raise ValueError(
                f"ConcatUNet: size {size} with {lowest + 1} multipliers; allowed: positive multiples of {factor}"
            )
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.number = _NumberEmbedding(config.width)
        self.label = nn.Embedding(conditions, 4 * config.width) if conditions else None
        self.conv_in = nn.Conv2d(channels_in, config.width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, channels = [config.width], config.width
        for level, width in enumerate(widths):
            self.down.append(_Down(channels, width, size[0] >> level, level == lowest, config))
            skips += [width] * (config.blocks + (level < lowest))
            channels = width
        self.middle_in = _ResBlock(channels, channels, config)
        self.attention = _attention(channels, config)
        self.middle_out = _ResBlock(channels, channels, config)
        for level, width in reversed(list(enumerate(widths))):
            merged = [skips.pop() for _ in range(config.blocks + 1)]
            self.up.append(_Up(channels, merged, width, size[0] >> level, level == 0, config))
            channels = width
        self.norm_out = NormSiLU(channels, config.max_groups, EPS)
        self.conv_out = zero(nn.Conv2d(channels, channels_out, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, number: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.number(number)
        if self.label is not None:
            embedding = embedding + self.label(labels)
        embedding = F.silu(embedding)
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for down in self.down:
            h = down(h, embedding, skips)
        h = self.middle_out(self.attention(self.middle_in(h, embedding)), embedding)
        for up in self.up:
            h = up(h, embedding, skips)
        return self.conv_out(self.norm_out(h))


class _NumberEmbedding(nn.Module):
    """A number in [0, 1] per sample, [B] to [B, 4 width]: sines and cosines of 1000 · number, then an MLP.

    The frequencies fall from 1 to 1 / 10000 (Vaswani et al. 2017, section 3.5, as Ho et al. 2020 space them).
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, dtype=torch.float32))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

    def forward(self, number: Tensor) -> Tensor:
        angle = 1000.0 * number[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))


class _ResBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + projection(embedding))))); the last convolution starts at zero.

    It differs from `blocks.ResBlock` in that the embedding shifts the features before the norm, not after it.
    """

    def __init__(self, channels_in: int, channels: int, config: ConcatUNetConfig) -> None:
        super().__init__()
        self.norm_in = NormSiLU(channels_in, config.max_groups, EPS)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.projection = nn.Linear(4 * config.width, channels, bias=config.embedding_bias)
        if not config.embedding_bias:
            zero(self.projection)
        self.norm_out = NormSiLU(channels, config.max_groups, EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(self.norm_in(x)) + self.projection(embedding)[:, :, None, None]
        return self.shortcut(x) + self.conv_out(self.dropout(self.norm_out(h)))


class _Down(nn.Module):
    """One resolution on the way down; pushes the output of each block and of the strided convolution on ``skips``."""

    def __init__(self, channels_in: int, channels: int, height: int, last: bool, config: ConcatUNetConfig) -> None:
        super().__init__()
        inputs = [channels_in] + [channels] * (config.blocks - 1)
        self.blocks = nn.ModuleList(_ResBlock(width, channels, config) for width in inputs)
        self.attentions = _attentions(channels, config.blocks, height, config)
        self.resample = None if last else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(h, embedding))
            skips.append(h)
        if self.resample is not None:
            h = self.resample(F.pad(h, (0, 1, 0, 1)))  # right and below only, as the original's "same" padding
            skips.append(h)
        return h


class _Up(nn.Module):
    """One resolution on the way up; concatenates to the input of each block what it pops from ``skips``."""

    def __init__(
        self, channels_in: int, skips: list[int], channels: int, height: int, last: bool, config: ConcatUNetConfig
    ) -> None:
        super().__init__()
        inputs = [channels_in] + [channels] * config.blocks
        self.blocks = nn.ModuleList(
            _ResBlock(width + skip, channels, config) for width, skip in zip(inputs, skips, strict=True)
        )
        self.attentions = _attentions(channels, len(skips), height, config)
        self.resample = None if last else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(torch.cat([h, skips.pop()], dim=1), embedding))
        if self.resample is not None:
            h = self.resample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return h


def _attention(channels: int, config: ConcatUNetConfig) -> Attention:
    attention = Attention(channels, config.heads, dropout=0.0, max_groups=config.max_groups)
    attention.norm.eps = EPS
    return attention


def _attentions(channels: int, count: int, height: int, config: ConcatUNetConfig) -> nn.ModuleList:
    """What follows each of ``count`` blocks: attention at the heights that have it, else nothing."""
    attends = height in config.attention
    return nn.ModuleList(_attention(channels, config) if attends else nn.Identity() for _ in range(count))


def build_network(
    channels_in: int,
    channels_out: int,
    size: tuple[int, int],
    conditions: int,
    config: UNetConfig | ConcatUNetConfig,
) -> UNet | ConcatUNet:
    """Build the network that a configuration describes; the arguments are those of `UNet` and `ConcatUNet`.

    Raises:
        ValueError: a size that the resolutions do not divide.
    """
    if isinstance(config, ConcatUNetConfig):
        return ConcatUNet(channels_in, channels_out, size, conditions, config)
    return UNet(channels_in, channels_out, size, conditions, config)
