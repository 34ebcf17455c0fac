"""A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) whose residual blocks are modulated by the noise level."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..io.configuration import ConfigError, at_least, between, configuration, each, field, not_empty
from .blocks import Attention, NoiseEmbedding, NormSiLU, ResBlock, check_size, zero
from .dropout import number_dropouts
from .sums import Projections, Sum, rows

BlockInputs = tuple[Tensor, tuple[Tensor | None, Tensor | None]]  # modulation and biases, see `ResBlock.forward`


@configuration
class UNetConfig:
    """Size of a `UNet`.

    Args:
        widths: channels at each resolution, starting with the full one; each further entry halves the resolution.
        blocks: residual blocks per resolution, on the way down and again on the way up.
        embedding: size of the embedding that modulates every block.
        dropout: probability, before the last convolution of each block and after attention.
        heads: attention heads at the lowest resolution.
        max_groups: each normalisation has gcd(channels, max_groups) groups.
        positions: adds a learned image to the features at each resolution on the way down, for data that is not
            translation invariant.
    """

    widths: tuple[int, ...] = field(not_empty, each(at_least(1)), default=(32, 48))
    blocks: int = field(at_least(1), default=2)
    embedding: int = field(at_least(1), default=64)
    dropout: float = field(between(0, 1, open_above=True), default=0.1)
    heads: int = field(at_least(1), default=4)
    max_groups: int = field(at_least(1), default=8)
    positions: bool = field(default=True)

    def __attrs_post_init__(self) -> None:
        if self.widths[-1] % self.heads:
            raise ConfigError(f"UNetConfig: heads must divide the last width, {self.widths[-1]}, got {self.heads}")

    def build(self, channels_in: int, channels_out: int, size: tuple[int, int], num_labels: int) -> "UNet":
        """Build the network; the arguments are those of `UNet`."""
        return UNet(channels_in, channels_out, size, num_labels, self)


class UNet(nn.Module):
    """U-Net from images [B, channels_in, H, W] to images [B, channels_out, H, W].

    On the way down, each resolution has residual blocks, and a strided convolution leads to the next. At the lowest
    resolution follow a block, attention and a block. The way up mirrors the way down: the input of each block is
    concatenated with the output of the corresponding block on the way down and reduced to the width of the resolution
    by a 1×1 convolution. The last convolution starts at zero, so that an untrained network returns zeros.

    It is called as ``network(x, noise_level, labels=None)`` with ``noise_level`` float32 [B] and ``labels`` int64 [B].
    Labels are required if ``num_labels`` is positive and are ignored otherwise.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        size: (H, W), multiples of 2 ** (number of widths - 1).
        num_labels: number of label embeddings; 0 for a network without labels.
        config: widths and depth.

    Raises:
        InvalidValueError: ``size`` cannot be halved that often.
    """

    def __init__(
        self, channels_in: int, channels_out: int, size: tuple[int, int], num_labels: int, config: UNetConfig
    ) -> None:
        super().__init__()
        widths = config.widths
        check_size("UNet", size, len(widths))
        self.noise_embedding = NoiseEmbedding(config.embedding)
        self.label_embedding = nn.Embedding(num_labels, config.embedding) if num_labels else None
        self.conv_in = nn.Conv2d(channels_in, widths[0], 3, padding=1)
        down, up = [], []
        width_above = widths[0]
        for resolution, width in enumerate(widths):
            size_here = (size[0] >> resolution, size[1] >> resolution)
            down.append(_Down(width_above, width, size_here, first=resolution == 0, config=config))
            up.insert(0, _Up(width, width_above, last=resolution == 0, config=config))
            width_above = width
        self.down = nn.ModuleList(down)
        self.middle_in = _block(widths[-1], config)
        self.attention = Attention(widths[-1], config.heads, config.dropout, config.max_groups)
        self.middle_out = _block(widths[-1], config)
        self.up = nn.ModuleList(up)
        self.projections = Projections(self.blocks())
        self.norm_out = NormSiLU(widths[0], config.max_groups)
        self.conv_out = zero(nn.Conv2d(widths[0], channels_out, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        number_dropouts(self)

    def forward(self, x: Tensor, noise_level: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.noise_embedding(noise_level)  # [B, E]
        if self.label_embedding is not None:
            embedding = embedding + self.label_embedding(labels)
        inputs = self._inputs(F.silu(embedding))
        h = Sum(self.conv_in(x.contiguous(memory_format=torch.channels_last)))  # [B, widths[0], H, W]
        skips: list[Sum] = []
        for down in self.down:
            h = down(h, inputs, skips)
        h = self.middle_in(h, *next(inputs))  # [B, widths[-1], H / f, W / f]
        h = self.middle_out(self.attention(h), *next(inputs))
        for up in self.up:
            h = up(h, inputs, skips)
        return self.conv_out(self.norm_out(h))  # [B, channels_out, H, W]

    def blocks(self) -> list[ResBlock]:
        """Return the residual blocks in the order in which they are called."""
        down, up = (
            [block for stage in stages for block in stage.get_submodule("blocks").children()]
            for stages in (self.down, self.up)
        )
        return cast(list[ResBlock], [*down, self.middle_in, self.middle_out, *up])

    def _inputs(self, embedding: Tensor) -> Iterator[BlockInputs]:
        """Yield what each block is called with besides the features, in the order of `blocks`."""
        convolutions = [conv for block in self.blocks() for conv in (block.conv_in, block.conv_out)]
        biases = rows(convolutions, len(embedding))
        return zip(self.projections(embedding), zip(biases[::2], biases[1::2], strict=True), strict=True)


class _Down(nn.Module):
    """One resolution on the way down; appends the output of each block to ``skips``."""

    def __init__(self, width_in: int, width: int, size: tuple[int, int], first: bool, config: UNetConfig) -> None:
        super().__init__()
        self.resample = nn.Identity() if first else nn.Conv2d(width_in, width, 2, stride=2)
        self.position = nn.Parameter(0.05 * torch.randn(1, width, *size)) if config.positions else None
        self.blocks = nn.ModuleList(_block(width, config) for _ in range(config.blocks))

    def forward(self, x: Sum, inputs: Iterator[BlockInputs], skips: list[Sum]) -> Sum:
        h = self.resample(x.tensor())  # [B, width, *size]
        h = Sum(h if self.position is None else h + self.position.to(h.dtype))  # 16 bits under autocast
        for block in self.blocks:
            h = block(h, *next(inputs))
            skips.append(h)
        return h


class _Up(nn.Module):
    """One resolution on the way up; each block takes the last entry off ``skips``."""

    def __init__(self, width: int, width_out: int, last: bool, config: UNetConfig) -> None:
        super().__init__()
        self.merges = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in range(config.blocks))
        self.blocks = nn.ModuleList(_block(width, config) for _ in range(config.blocks))
        self.resample = None if last else nn.ConvTranspose2d(width, width_out, 2, stride=2)

    def forward(self, h: Sum, inputs: Iterator[BlockInputs], skips: list[Sum]) -> Sum:
        for merge, block in zip(self.merges, self.blocks, strict=True):
            h = block(merge(h.with_skip(skips.pop().tensor()).tensor()), *next(inputs))
        return h if self.resample is None else Sum(self.resample(h.tensor()))  # [B, width_out, 2 H, 2 W]


def _block(width: int, config: UNetConfig) -> ResBlock:
    return ResBlock(width, config.embedding, config.dropout, config.max_groups)
