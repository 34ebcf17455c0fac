"""The VAE networks of DiffuseVAE (Pandey et al. 2022, arXiv:2201.00308): many residual bottlenecks, no normalisation.

They take the images down to one pixel, whose channels are z_1, and back. What comes out is the house's p(x | z_1), a
mean and a log-variance for every pixel and channel, where the authors have a mean alone, through a sigmoid: the last
convolution has twice their number of parameters, all else has theirs.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ..config import check_fields
from .blocks import zero
from .vae_networks import ConvDecoder, ConvEncoder, ConvVAEConfig, bounded


@dataclass(frozen=True)
class BottleneckVAEConfig:
    """Size of an encoder and decoder of bottlenecks; the defaults are the paper's at CIFAR-10, 32×32 pixels.

    Args:
        kind: ``"bottleneck"``, the name of this configuration in a config.json.
        widths: channels at each resolution, from the full one down to one pixel; the last is the size of z_1.
        rates: by how much each resolution but the last is reduced to the next; images are as high and as wide as their
            product.
        encoder: blocks at each resolution, from the full one down, without the further one that comes before every
            reduction.
        decoder: blocks at each resolution, from one pixel up.
    """

    kind: str = "bottleneck"
    widths: tuple[int, ...] = (64, 128, 256, 256, 512)
    rates: tuple[int, ...] = (2, 2, 2, 4)
    encoder: tuple[int, ...] = (7, 4, 4, 3, 3)
    decoder: tuple[int, ...] = (1, 2, 3, 7, 15)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind != "bottleneck":
            raise ValueError(f"BottleneckVAEConfig: kind is {self.kind!r}; allowed: 'bottleneck'")
        levels = len(self.widths)
        lengths = (len(self.rates) + 1, len(self.encoder), len(self.decoder))
        if levels < 2 or lengths != (levels, levels, levels):
            raise ValueError(
                f"BottleneckVAEConfig: {levels} widths, {len(self.rates)} rates, blocks at {len(self.encoder)} and "
                f"{len(self.decoder)} resolutions; allowed: at least 2 widths, one rate less, blocks for each width"
            )
        odd = any(width < 2 or width % 2 for width in self.widths)  # a block is half as wide inside
        if odd or min(self.rates) < 2 or min(*self.encoder, *self.decoder) < 0:
            raise ValueError(
                f"BottleneckVAEConfig: widths {self.widths}, rates {self.rates}, encoder {self.encoder}, "
                f"decoder {self.decoder}; allowed: even widths >= 2, rates >= 2, numbers of blocks >= 0"
            )

    @property
    def factor(self) -> int:
        """What the height and the width of the images must be."""
        return math.prod(self.rates)

    @property
    def sides(self) -> tuple[int, ...]:
        """Height and width at each resolution, from the full one down to 1."""
        return tuple(math.prod(self.rates[level:]) for level in range(len(self.widths)))


class BottleneckEncoder(nn.Module):
    """Images [B, C, H, W] in [-1, 1] to q(z_1 | x): mean and log-variance, [B, latent] each."""

    def __init__(self, shape: tuple[int, int, int], config: BottleneckVAEConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.rates)
        blocks = sum(config.encoder) + last
        layers: list[nn.Module] = [_conv(shape[0], widths[0], 3)]
        for level, (width, side) in enumerate(zip(widths, config.sides, strict=True)):
            count = config.encoder[level] + (level < last)
            layers += [_Bottleneck(width, side, blocks) for _ in range(count)]
            if level < last:
                layers += [nn.AvgPool2d(config.rates[level]), _conv(width, widths[level + 1])]
        self.layers = nn.Sequential(*layers)
        self.mean = _conv(widths[-1], widths[-1])
        self.logvar = zero(_conv(widths[-1], widths[-1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layers(x)
        return self.mean(h).flatten(1), bounded(self.logvar(h).flatten(1))


class BottleneckDecoder(nn.Module):
    """z_1 [B, latent] to the mean and log-variance of every pixel of p(x | z_1), [B, C, H, W] each."""

    def __init__(self, shape: tuple[int, int, int], config: BottleneckVAEConfig) -> None:
        super().__init__()
        widths, sides = config.widths, config.sides
        blocks = sum(config.decoder)
        layers: list[nn.Module] = [nn.Unflatten(1, (widths[-1], 1, 1))]
        for level, count in zip(reversed(range(len(widths))), config.decoder, strict=True):
            layers += [_Bottleneck(widths[level], sides[level], blocks) for _ in range(count)]
            if level:
                enlarge = nn.Upsample(scale_factor=float(config.rates[level - 1]), mode="nearest")
                layers += [enlarge, _conv(widths[level], widths[level - 1])]
        self.layers = nn.Sequential(*layers, _conv(widths[0], 2 * shape[0], 3, True, 0.01))  # p starts near N(0, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.layers(z).chunk(2, dim=1)
        return mean.contiguous(), bounded(raw).contiguous()


class _Bottleneck(nn.Module):
    """x plus four convolutions, each of the gelu of what came before: 1×1 to half the width, 3×3, 3×3, 1×1 back.

    Where there is but one pixel, all are 1×1. ``blocks`` is how many of these stand in a row.
    """

    def __init__(self, width: int, side: int, blocks: int) -> None:
        super().__init__()
        half, size = width // 2, 3 if side > 1 else 1
        # Without a norm the variances of the blocks add up: with 1 / blocks each, a whole row grows them by at most e.
        self.convs = nn.ModuleList([
            _conv(width, half, 1, True, 2.0), _conv(half, half, size, True, 2.0), _conv(half, half, size, True, 2.0),
            _conv(half, width, 1, True, 2.0 / blocks),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs:
            h = conv(F.gelu(h))
        return x + h


def _conv(channels_in: int, channels: int, size: int = 1, bias: bool = False, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the size of the image; starts with variance gain / fan-in and a bias of zero."""
    conv = nn.Conv2d(channels_in, channels, size, padding=size // 2, bias=bias)
    nn.init.normal_(conv.weight, std=math.sqrt(gain / (channels_in * size**2)))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def check_vae_network(
    where: str, shape: tuple[int, int, int], latent: int, config: ConvVAEConfig | BottleneckVAEConfig
) -> None:
    """Check that networks fit the images and the latent between which they stand.

    Raises:
        ValueError: saying, after ``where``, which does not.
    """
    single = isinstance(config, BottleneckVAEConfig)
    if any(side != config.factor if single else side % config.factor for side in shape[1:]):
        raise ValueError(
            f"{where}: shape {shape} with a network that halves it; allowed: multiples of {config.factor}"
            if not single
            else f"{where}: shape {shape} with a network of rates {config.rates}, whose last resolution is one pixel; "
            f"allowed: height and width {config.factor}"
        )
    if single and latent != config.widths[-1]:
        raise ValueError(
            f"{where}: latent {latent} with a network of widths {config.widths}; allowed: {config.widths[-1]}, the last"
        )


def build_vae_networks(
    shape: tuple[int, int, int], latent: int, config: ConvVAEConfig | BottleneckVAEConfig
) -> tuple[ConvEncoder | BottleneckEncoder, ConvDecoder | BottleneckDecoder]:
    """Build the encoder and the decoder that a configuration describes, which fits by `check_vae_network`."""
    if isinstance(config, BottleneckVAEConfig):
        return BottleneckEncoder(shape, config), BottleneckDecoder(shape, config)
    return ConvEncoder(shape, latent, config), ConvDecoder(shape, latent, config)
