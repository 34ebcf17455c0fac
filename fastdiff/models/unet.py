"""The U-Net that every diffusion model of the family uses."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import check_fields
from .blocks import Attention, NormSiLU, NumberEmbedding, ResBlock


@dataclass(frozen=True)
class UNetConfig:
    """Size of a U-Net.

    Args:
        widths: channels at each resolution, from the full one down; each further entry halves the resolution.
        blocks: residual blocks per resolution, on the way down and on the way up.
        embedding: size of the embedding that conditions every block.
        dropout: probability, before the last convolution of each block and after attention.
        heads: attention heads in the middle.
        max_groups: groups of the normalisations (their greatest common divisor with the channels is used).
        positions: whether a learned image is added after the first convolution, at each resolution on the way down:
            for data that is not translation invariant.
    """

    widths: tuple[int, ...] = (32, 48)
    blocks: int = 2
    embedding: int = 64
    dropout: float = 0.1
    heads: int = 4
    max_groups: int = 8
    positions: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.widths or min(self.widths) < 1 or self.blocks < 1:
            raise ValueError(f"UNetConfig: widths {self.widths}, blocks {self.blocks}; allowed: positive numbers")
        if self.embedding < 1 or self.max_groups < 1 or self.heads < 1 or self.widths[-1] % self.heads:
            raise ValueError(
                f"UNetConfig: embedding {self.embedding}, max_groups {self.max_groups}, heads {self.heads} over "
                f"{self.widths[-1]} channels; allowed: positive numbers, heads that divide the last width"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"UNetConfig: dropout is {self.dropout}; allowed: 0 <= dropout < 1")


class UNet(nn.Module):
    """Images [B, channels_in, H, W] and an embedding input [B] to images [B, channels_out, H, W].

    Down: residual blocks, then a strided convolution to the next resolution. Middle: block, attention, block. Up: the
    mirror image, where the output of each block's twin on the way down is merged into its input by a 1×1 convolution.
    The last convolution starts at zero.

    Args:
        channels_in, channels_out: of the image.
        size: (H, W), divisible by 2 for each resolution after the first.
        conditions: number of conditions (labels and the like), one embedding each; 0 for none.
        config: widths and depth.

    Raises:
        ValueError: a size that the resolutions do not divide.
    """

    def __init__(
        self, channels_in: int, channels_out: int, size: tuple[int, int], conditions: int, config: UNetConfig
    ) -> None:
        super().__init__()
        factor = 2 ** (len(config.widths) - 1)
        if size[0] % factor or size[1] % factor:
            raise ValueError(f"UNet: size {size} with {len(config.widths)} widths; allowed: multiples of {factor}")
        self.number = NumberEmbedding(config.embedding)
        self.label = nn.Embedding(conditions, config.embedding) if conditions else None
        self.conv_in = nn.Conv2d(channels_in, config.widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        width_above = config.widths[0]
        for level, width in enumerate(config.widths):
            at = (size[0] >> level, size[1] >> level)
            self.down.append(_Down(width_above, width, at, first=level == 0, config=config))
            self.up.insert(0, _Up(width, width_above, last=level == 0, config=config))
            width_above = width
        self.middle_in = _block(width_above, width_above, config)
        self.attention = Attention(width_above, config.heads, config.dropout, config.max_groups)
        self.middle_out = _block(width_above, width_above, config)
        self.norm_out = NormSiLU(config.widths[0], config.max_groups)
        self.conv_out = nn.Conv2d(config.widths[0], channels_out, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # pyright: ignore[reportArgumentType]
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, number: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.number(number)
        if self.label is not None:
            embedding = embedding + self.label(labels)
        embedding = nn.functional.silu(embedding)
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for down in self.down:
            h = down(h, embedding, skips)
        h = self.middle_out(self.attention(self.middle_in(h, embedding)), embedding)
        for up in self.up:
            h = up(h, embedding, skips)
        return self.conv_out(self.norm_out(h))


class _Down(nn.Module):
    """One resolution on the way down; pushes the output of each block on ``skips``."""

    def __init__(self, width_in: int, width: int, size: tuple[int, int], first: bool, config: UNetConfig) -> None:
        super().__init__()
        self.resample = nn.Identity() if first else nn.Conv2d(width_in, width, 2, stride=2)
        self.position = nn.Parameter(0.05 * torch.randn(1, width, *size)) if config.positions else None
        self.blocks = nn.ModuleList(_block(width, width, config) for _ in range(config.blocks))

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        h = self.resample(h)
        if self.position is not None:
            h = h + self.position
        for block in self.blocks:
            h = block(h, embedding)
            skips.append(h)
        return h


class _Up(nn.Module):
    """One resolution on the way up; pops the input of each block from ``skips``."""

    def __init__(self, width: int, width_out: int, last: bool, config: UNetConfig) -> None:
        super().__init__()
        self.merges = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in range(config.blocks))
        self.blocks = nn.ModuleList(_block(width, width, config) for _ in range(config.blocks))
        self.resample = nn.Identity() if last else nn.ConvTranspose2d(width, width_out, 2, stride=2)

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for merge, block in zip(self.merges, self.blocks, strict=True):
            h = block(merge(torch.cat([h, skips.pop()], dim=1)), embedding)
        return self.resample(h)


def _block(width_in: int, width: int, config: UNetConfig) -> ResBlock:
    return ResBlock(width_in, width, config.embedding, config.dropout, config.max_groups)
