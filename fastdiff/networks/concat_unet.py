"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B), which concatenates its skip connections.

With one resolution, many blocks and attention only in the middle it is the score network of variational diffusion
models (Kingma et al. 2021, arXiv:2107.00630, appendix B). `ConcatUNetConfig` has the sizes of both at CIFAR-10.
"""

import math
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..io.configuration import (
    ConfigError,
    at_least,
    between,
    configuration,
    each,
    field,
    more_than,
    not_empty,
    one_of,
)
from .blocks import Attention, NormSiLU, check_size, zero
from .dropout import Dropout, number_dropouts
from .sums import Convolved, Projections, Sum, rows

Shifts = tuple[Tensor, Tensor | None]  # [B, channels] or [B, 2 channels], and [B, channels], see `_ResBlock.forward`
EPS = 1e-6  # added to the variances of the normalisations in the code of both papers
NEAR = 0.01  # steps within which a time counts as that of a step: gamma in float32 gives it to about 1e-3


def _even(value: int) -> str | None:
    return "be even" if value % 2 else None


@configuration
class ConcatUNetConfig:
    """Size of a `ConcatUNet`. The defaults are those of DDPM at CIFAR-10, 35.7 M parameters.

    The score network of VDM at CIFAR-10 is ``ConcatUNetConfig(width=128, multipliers=(1,), blocks=32, attention=(),
    embedding_bias=False)``, 30.6 M parameters with 15 input channels.

    Args:
        kind: ``"concat"``, which identifies this class in a config.json.
        width: channels of the first convolution, and number of features of the sinusoidal embedding; even.
        multipliers: channels at each resolution in units of ``width``, starting with the full one; each further entry
            halves the resolution.
        blocks: residual blocks per resolution on the way down; the way up has one more.
        attention: heights of the feature maps at which each block, down and up, is followed by self-attention.
            Heights that do not occur have no effect.
        dropout: probability, before the last convolution of each block.
        heads: heads of each attention.
        max_groups: each normalisation has gcd(channels, max_groups) groups.
        embedding_bias: True: each block's projection of the embedding has a bias (DDPM). False: it has none, and its
            weights start at zero (VDM).
        attention_up: these heights on the way up, where they differ from those on the way down.
        middle_attention: whether the middle has attention between its two blocks.
        head_size: channels of a head, in place of their number.
        eps: added to the variances of the normalisations.
        scale_shift: False: the embedding is added before the second normalisation of a block. True: it scales and
            shifts after it (Nichol and Dhariwal 2021).
        padding: of the strided convolutions: ``"right"``, zeros on the right and below, as DDPM has them, or
            ``"both"``, on all sides.
        timesteps: how the network embeds its noise level. None: as 1000 noise_level. A number of steps T: as the
            timestep (T - 1) noise_level = 0 .. T - 1 of a DDPM's chain, as the code of the papers has it.
        timestep_scale: factor on the timestep before it is embedded; improved-diffusion has 1000 / T.
        frequency_shift: the frequencies are 10000^(-i / (n - frequency_shift)), i = 0 .. n - 1: 1 (DDPM) or 0.
    """

    kind: str = field(one_of("concat"), default="concat")
    width: int = field(at_least(4), _even, default=128)  # at least two frequencies, so that their ratio is defined
    multipliers: tuple[int, ...] = field(not_empty, each(at_least(1)), default=(1, 2, 2, 2))
    blocks: int = field(at_least(1), default=2)
    attention: tuple[int, ...] = field(each(at_least(1)), default=(16,))
    dropout: float = field(between(0, 1, open_above=True), default=0.1)
    heads: int = field(at_least(1), default=1)
    max_groups: int = field(at_least(1), default=32)
    embedding_bias: bool = field(default=True)
    attention_up: tuple[int, ...] | None = field(each(at_least(1)), default=None)
    middle_attention: bool = field(default=True)
    head_size: int | None = field(at_least(1), default=None)
    eps: float = field(more_than(0.0), default=EPS)
    scale_shift: bool = field(default=False)
    padding: str = field(one_of("right", "both"), default="right")
    timesteps: int | None = field(at_least(2), default=None)
    timestep_scale: float = field(more_than(0.0), default=1.0)
    frequency_shift: int = field(one_of(0, 1), default=1)

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"ConcatUNetConfig: heads must divide width, {self.width}, got {self.heads}")
        if self.head_size is not None and self.heads != 1:
            raise ConfigError(f"ConcatUNetConfig: heads must be 1 where head_size is set, got {self.heads}")
        if self.timestep_scale != 1.0 and self.timesteps is None:
            raise ConfigError(
                f"ConcatUNetConfig: timestep_scale must be 1 without timesteps, got {self.timestep_scale:g}"
            )

    def heads_of(self, channels: int) -> int:
        """Return the number of heads of an attention.

        Raises:
            ConfigError: ``head_size`` does not divide the channels.
        """
        if self.head_size is not None and channels % self.head_size:
            raise ConfigError(
                f"ConcatUNetConfig: head_size must divide the {channels} channels of an attention, got {self.head_size}"
            )
        return self.heads if self.head_size is None else channels // self.head_size

    @property
    def heights(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The heights that have attention, on the way down and on the way up."""
        return self.attention, self.attention if self.attention_up is None else self.attention_up

    def build(self, channels_in: int, channels_out: int, size: tuple[int, int], num_labels: int) -> "ConcatUNet":
        """Build the network; the arguments are those of `ConcatUNet`."""
        return ConcatUNet(channels_in, channels_out, size, num_labels, self)


class ConcatUNet(nn.Module):
    """U-Net from images [B, channels_in, H, W] to images [B, channels_out, H, W].

    On the way down, each resolution has residual blocks, and a strided convolution leads to the next. At the lowest
    resolution follow a block, attention and a block. On the way up each resolution has one block more, and a
    nearest-neighbour enlargement with a convolution leads to the next. The outputs of the first convolution, of every
    block and of every strided convolution on the way down are kept; each block on the way up takes the most recent one
    that remains and concatenates it to its input. The last convolution starts at zero, so that an untrained network
    returns zeros.

    It is called as ``network(x, noise_level, labels=None)`` with ``noise_level`` float32 [B] in [0, 1] and ``labels``
    int64 [B]. Labels are required if ``num_labels`` is positive and are ignored otherwise.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        size: (H, W), multiples of 2 ** (number of multipliers - 1).
        num_labels: number of label embeddings; 0 for a network without labels.
        config: width, resolutions and depth.

    Raises:
        InvalidValueError: ``size`` cannot be halved that often.
    """

    def __init__(
        self, channels_in: int, channels_out: int, size: tuple[int, int], num_labels: int, config: ConcatUNetConfig
    ) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        check_size("ConcatUNet", size, len(widths))
        lowest = len(widths) - 1
        self.scale_shift = config.scale_shift
        self.noise_embedding = _NoiseEmbedding(config)
        self.label_embedding = nn.Embedding(num_labels, 4 * config.width) if num_labels else None
        self.conv_in = nn.Conv2d(channels_in, config.width, 3, padding=1)
        self.down = nn.ModuleList()
        skips, channels = [config.width], config.width  # channels of what is kept, and of the current features
        for resolution, width in enumerate(widths):
            self.down.append(_Down(channels, width, size[0] >> resolution, resolution == lowest, config))
            skips += [width] * (config.blocks + (resolution < lowest))
            channels = width
        self.middle_in = _ResBlock(channels, channels, config)
        self.attention = _attention(channels, config) if config.middle_attention else nn.Identity()
        self.middle_out = _ResBlock(channels, channels, config)
        self.up = nn.ModuleList()
        for resolution, width in reversed(list(enumerate(widths))):
            taken = [skips.pop() for _ in range(config.blocks + 1)]
            self.up.append(_Up(channels, taken, width, size[0] >> resolution, resolution == 0, config))
            channels = width
        self.projections = Projections(self.blocks())
        self.norm_out = NormSiLU(channels, config.max_groups, config.eps)
        self.conv_out = zero(nn.Conv2d(channels, channels_out, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        number_dropouts(self)

    def forward(self, x: Tensor, noise_level: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.noise_embedding(noise_level)  # [B, 4 width]
        if self.label_embedding is not None:
            embedding = embedding + self.label_embedding(labels)
        shifts = self._shifts(F.silu(embedding))
        x = x.to(self.conv_in.weight.dtype)  # of a network in 16 bits, whose caller computes in float32
        h = Sum(self.conv_in(x.contiguous(memory_format=torch.channels_last)))  # [B, width, H, W]
        skips = [h]
        for down in self.down:
            h = down(h, shifts, skips)
        h = self.middle_in(h, *next(shifts))  # at the lowest resolution
        h = self.middle_out(self.attention(h), *next(shifts))
        for up in self.up:
            h = up(h, shifts, skips)
        return self.conv_out(self.norm_out(h))  # [B, channels_out, H, W]

    def blocks(self) -> list["_ResBlock"]:
        """Return the residual blocks in the order in which they are called."""
        down, up = (
            [block for stage in stages for block in stage.get_submodule("blocks").children()]
            for stages in (self.down, self.up)
        )
        return cast(list[_ResBlock], [*down, self.middle_in, self.middle_out, *up])

    def _shifts(self, embedding: Tensor) -> Iterator[Shifts]:
        """Yield what each block adds after its convolutions, in the order of `blocks`."""
        blocks = self.blocks()
        projected = self.projections(embedding, [] if self.scale_shift else [block.conv_in for block in blocks])
        return zip(projected, rows([block.conv_out for block in blocks], len(embedding)), strict=True)


class _NoiseEmbedding(nn.Module):
    """Embedding of a noise level in [0, 1]: [B] to [B, 4 width].

    MLP([sin(f_i k), cos(f_i k)]), f_i = 10000^(-i / (n - shift)) for i = 0 .. n - 1 with n = width / 2: the positional
    encoding of Vaswani et al. (2017, section 3.5) with the frequencies of Ho et al., of k = 1000 noise_level, or of the
    timestep, see `ConcatUNetConfig`. The features are computed in float32 also where the network has 16 bits: angles
    reach 1000.
    """

    frequencies: Tensor

    def __init__(self, config: ConcatUNetConfig) -> None:
        super().__init__()
        self.timesteps, self.scale = config.timesteps, config.timestep_scale
        width, half = config.width, config.width // 2
        rate = -math.log(10000.0) / (half - config.frequency_shift)
        frequencies = torch.exp(rate * torch.arange(half, dtype=torch.float32))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

    def _apply(self, fn: Callable, recurse: bool = True) -> "_NoiseEmbedding":
        kept = self.frequencies
        super()._apply(fn, recurse)  # moves them; a network in 16 bits keeps them in float32
        if self.frequencies.dtype.itemsize < kept.dtype.itemsize:
            self.frequencies = kept.to(self.frequencies.device)
        return self

    def forward(self, noise_level: Tensor) -> Tensor:
        angle = self._position(noise_level)[:, None] * self.frequencies  # [B, width / 2]
        features = torch.cat([angle.sin(), angle.cos()], dim=1)
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        return self.mlp(features.to(first.weight.dtype))

    def _position(self, noise_level: Tensor) -> Tensor:
        """Return k, [B]. A time next to that of a step is the step's, which the network was trained at."""
        if self.timesteps is None:
            return 1000.0 * noise_level
        position = (self.timesteps - 1) * noise_level
        step = position.round()
        return self.scale * torch.where((position - step).abs() < NEAR, step, position)


class _ResBlock(nn.Module):
    """Residual block with an embedding.

    h = conv_in(silu(norm_in(x))) + linear(embedding)
    y = shortcut(x) + conv_out(dropout(silu(norm_out(h))))

    or, with ``config.scale_shift``, in place of adding the embedding, silu(norm_out(h) (1 + scale) + shift) with
    (scale, shift) = linear(embedding). ``conv_out`` starts at zero. The network takes the linear layers of its blocks
    and computes them at once (`Projections`).
    """

    projection: nn.Linear

    def __init__(self, channels_in: int, channels: int, config: ConcatUNetConfig) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift
        self.norm_in = NormSiLU(channels_in, config.max_groups, config.eps)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        size = channels * (2 if config.scale_shift else 1)
        self.projection = nn.Linear(4 * config.width, size, bias=config.embedding_bias)
        if not config.embedding_bias:
            zero(self.projection)
        self.norm_out = NormSiLU(channels, config.max_groups, config.eps)
        self.dropout = Dropout(config.dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Sum, projected: Tensor, bias: Tensor | None) -> Sum:
        """Return y, not added up.

        Args:
            x: [B, channels_in, H, W].
            projected: linear(embedding) and the bias of ``conv_in``, [B, channels]; or scale and shift,
                [B, 2 channels].
            bias: that of ``conv_out``, [B, channels], or None, see `Convolved`.
        """
        normal = self.norm_in(x)
        if self.scale_shift:
            scale, shift = projected.chunk(2, dim=1)  # [B, channels] each
            h = self.norm_out(Sum(Convolved(self.conv_in, normal)), scale, shift)
        else:
            h = self.norm_out(Sum(Convolved(self.conv_in, normal).without_bias(), projected))
        return Sum(Convolved(self.conv_out, self.dropout(h), bias), residual=self.shortcut(x.tensor()))


class _Down(nn.Module):
    """One resolution on the way down; appends each block's and the strided convolution's output to ``skips``."""

    def __init__(self, channels_in: int, channels: int, height: int, last: bool, config: ConcatUNetConfig) -> None:
        super().__init__()
        # one by one: a number of blocks from a damaged file makes no list before their weights are counted
        inputs = chain([channels_in], repeat(channels, config.blocks - 1))
        self.blocks = nn.ModuleList(_ResBlock(width, channels, config) for width in inputs)
        self.attentions = _attentions(channels, config.blocks, height in config.heights[0], config)
        # "same" padding of a stride of 2 in the framework of DDPM's authors is on the right and below only
        self.pad = (0, 1, 0, 1) if config.padding == "right" else (1, 1, 1, 1)
        self.resample = None if last else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, h: Sum, shifts: Iterator[Shifts], skips: list[Sum]) -> Sum:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(h, *next(shifts)))
            skips.append(h)
        if self.resample is not None:
            h = Sum(self.resample(F.pad(h.tensor(), self.pad)))  # [B, channels, H / 2, W / 2]
            skips.append(h)
        return h


class _Up(nn.Module):
    """One resolution on the way up; each block takes the last entry off ``skips`` and concatenates it to its input."""

    def __init__(
        self, channels_in: int, skips: list[int], channels: int, height: int, last: bool, config: ConcatUNetConfig
    ) -> None:
        super().__init__()
        inputs = [channels_in] + [channels] * config.blocks
        self.blocks = nn.ModuleList(
            _ResBlock(width + skip, channels, config) for width, skip in zip(inputs, skips, strict=True)
        )
        self.attentions = _attentions(channels, len(skips), height in config.heights[1], config)
        self.resample = None if last else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Sum, shifts: Iterator[Shifts], skips: list[Sum]) -> Sum:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(h.with_skip(skips.pop().tensor()), *next(shifts)))
        if self.resample is not None:
            enlarged = F.interpolate(h.tensor(), scale_factor=2.0, mode="nearest")
            h = Sum(self.resample(enlarged))  # [B, channels, 2 H, 2 W]
        return h


def _attention(channels: int, config: ConcatUNetConfig) -> Attention:
    return Attention(channels, config.heads_of(channels), dropout=0.0, max_groups=config.max_groups, eps=config.eps)


def _attentions(channels: int, count: int, present: bool, config: ConcatUNetConfig) -> nn.ModuleList:
    """Return the layers that follow ``count`` blocks: attention if it is present there, else the identity."""
    return nn.ModuleList(_attention(channels, config) if present else nn.Identity() for _ in range(count))
