"""Between images and the first latent of a VAE: the convolutional encoder to q(z_1 | x), the decoder to p(x | z_1)."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..config import check_fields
from .blocks import NormSiLU, zero

LOGVAR_LIMIT = 10.0  # log-variances lie within +- this: e^10 on either side, and nothing overflows


@dataclass(frozen=True)
class ConvVAEConfig:
    """Size of a convolutional encoder and decoder of residual blocks.

    Args:
        kind: ``"conv"``, the name of this configuration in a config.json.
        widths: channels at each resolution, from the full one down; each further entry halves the resolution.
        blocks: residual blocks per resolution, each way.
        dropout: probability, in every residual block.
        max_groups: groups of the normalisations (their greatest common divisor with the channels is used).
    """

    kind: str = "conv"
    widths: tuple[int, ...] = (32, 48)
    blocks: int = 1
    dropout: float = 0.1
    max_groups: int = 8

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind != "conv":
            raise ValueError(f"ConvVAEConfig: kind is {self.kind!r}; allowed: 'conv'")
        if not self.widths or min(self.blocks, self.max_groups, *self.widths) < 1 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"ConvVAEConfig: widths {self.widths}, blocks {self.blocks}, max_groups {self.max_groups}, "
                f"dropout {self.dropout}; allowed: numbers of at least 1, 0 <= dropout < 1"
            )

    @property
    def factor(self) -> int:
        """What the height and the width of the images must be multiples of."""
        return 2 ** (len(self.widths) - 1)


class Gaussian(nn.Module):
    """A linear layer to the mean and the log-variance of a diagonal Gaussian; starts at N(0, 1)."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.linear = zero(nn.Linear(features, 2 * size))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.linear(h).chunk(2, dim=1)
        return mean, bounded(raw)


def bounded(raw: Tensor) -> Tensor:
    """A log-variance in (-`LOGVAR_LIMIT`, `LOGVAR_LIMIT`), with slope 1 at 0."""
    return LOGVAR_LIMIT * torch.tanh(raw / LOGVAR_LIMIT)


class _Block(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))))))), the last convolution starting at zero."""

    def __init__(self, channels: int, config: ConvVAEConfig) -> None:
        super().__init__()
        self.norm_in = NormSiLU(channels, config.max_groups)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_out = NormSiLU(channels, config.max_groups)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(self.dropout(self.norm_out(self.conv_in(self.norm_in(x)))))


class ConvEncoder(nn.Module):
    """Images in [-1, 1] to q(z_1 | x)."""

    def __init__(self, shape: tuple[int, int, int], latent: int, config: ConvVAEConfig) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = [nn.Conv2d(channels, config.widths[0], 3, padding=1)]
        above = config.widths[0]
        for level, each in enumerate(config.widths):
            if level:
                layers.append(nn.Conv2d(above, each, 2, stride=2))
            layers += [_Block(each, config) for _ in range(config.blocks)]
            above = each
        self.layers = nn.Sequential(*layers, NormSiLU(above, config.max_groups), nn.Flatten())
        lowest = len(config.widths) - 1
        self.gaussian = Gaussian(above * (height >> lowest) * (width >> lowest), latent)
        nn.init.normal_(cast(Tensor, self.gaussian.linear.weight), std=0.02)  # z_1 says something from the start

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gaussian(self.layers(x))


class ConvDecoder(nn.Module):
    """z_1 to the mean and log-variance of every pixel of p(x | z_1)."""

    def __init__(self, shape: tuple[int, int, int], latent: int, config: ConvVAEConfig) -> None:
        super().__init__()
        channels, height, width = shape
        lowest = len(config.widths) - 1
        small = (config.widths[-1], height >> lowest, width >> lowest)
        layers: list[nn.Module] = [nn.Linear(latent, math.prod(small)), nn.Unflatten(1, small)]
        for level in range(lowest, -1, -1):
            each = config.widths[level]
            layers += [_Block(each, config) for _ in range(config.blocks)]
            if level:
                layers.append(nn.ConvTranspose2d(each, config.widths[level - 1], 2, stride=2))
        out = nn.Conv2d(config.widths[0], 2 * channels, 3, padding=1)
        self.layers = nn.Sequential(*layers, NormSiLU(config.widths[0], config.max_groups), out)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.layers(z).chunk(2, dim=1)
        return mean.contiguous(), bounded(raw).contiguous()
