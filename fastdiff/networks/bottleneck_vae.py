"""The VAE networks of DiffuseVAE (Pandey et al. 2022, arXiv:2201.00308): residual bottlenecks without normalisation.

The encoder reduces the images to one pixel, whose channels are z_1, and the decoder enlarges it again. The blocks are
those of Child (2021, arXiv:2011.10650). Where the authors' decoder returns a mean alone, through a sigmoid, this one
returns the mean and the log-variance of p(x | z_1) for each pixel and channel. Its last convolution therefore has twice
as many parameters; all other sizes are the authors'.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..io.configuration import ConfigError, at_least, configuration, each, field, one_of
from .blocks import bounded, not_narrowed, zero

Shape = tuple[int, int, int]


def _at_least_two(values: Sequence[int]) -> str | None:
    return "have at least two entries" if len(values) < 2 else None


def _all_even(values: Sequence[int]) -> str | None:
    return "have only even entries" if any(value % 2 for value in values) else None


@configuration
class BottleneckVAEConfig:
    """Size of a `BottleneckEncoder` and a `BottleneckDecoder`. The defaults are the paper's at CIFAR-10, 32×32 pixels.

    Args:
        kind: ``"bottleneck"``, which identifies this class in a config.json.
        widths: channels at each resolution, from the full one to one pixel; even. The last is the number of latent
            variables.
        rates: factor by which each resolution but the last is reduced to the next. Height and width of the images
            equal their product.
        encoder: blocks at each resolution, from the full one to one pixel. Before each reduction there is one more.
        decoder: blocks at each resolution, from one pixel to the full one.
    """

    kind: str = field(one_of("bottleneck"), default="bottleneck")
    # Even, because a block has half as many channels inside.
    widths: tuple[int, ...] = field(_at_least_two, each(at_least(2)), _all_even, default=(64, 128, 256, 256, 512))
    rates: tuple[int, ...] = field(each(at_least(2)), default=(2, 2, 2, 4))
    encoder: tuple[int, ...] = field(each(at_least(0)), default=(7, 4, 4, 3, 3))
    decoder: tuple[int, ...] = field(each(at_least(0)), default=(1, 2, 3, 7, 15))

    def __attrs_post_init__(self) -> None:
        resolutions = len(self.widths)
        for name, length in (("rates", resolutions - 1), ("encoder", resolutions), ("decoder", resolutions)):
            values = getattr(self, name)
            if len(values) != length:
                raise ConfigError(
                    f"BottleneckVAEConfig: {name} must have {length} entries for {resolutions} widths, got {values}"
                )

    @property
    def sides(self) -> tuple[int, ...]:
        """Height, which is also the width, of the features at each resolution, from the full one to 1."""
        return tuple(math.prod(self.rates[resolution:]) for resolution in range(len(self.widths)))

    def check(self, where: str, shape: Shape, latent: int) -> None:
        """Check that the networks can be built for images of a shape (C, H, W) and ``latent`` latent variables.

        Raises:
            ConfigError: height or width is not the product of the rates, or ``latent`` is not the last width; the
                message begins with ``where``.
        """
        side = self.sides[0]
        if shape[1:] != (side, side):
            raise ConfigError(
                f"{where}: height and width must be {side} for a network with rates {self.rates}, got shape {shape}"
            )
        if latent != self.widths[-1]:
            raise ConfigError(f"{where}: latent must be {self.widths[-1]}, the last width of the network, got {latent}")

    def build(self, shape: Shape, latent: int) -> tuple["BottleneckEncoder", "BottleneckDecoder"]:
        """Build both networks for a shape and a number of latent variables that pass `check`."""
        return BottleneckEncoder(shape, self), BottleneckDecoder(shape, self)


class BottleneckEncoder(nn.Module):
    """Encoder from images [B, C, H, W] in [-1, 1] to the mean and log-variance of q(z_1 | x), [B, latent] each.

    Args:
        shape: (C, H, W) of the images.
        config: widths, rates and depth.
    """

    def __init__(self, shape: Shape, config: BottleneckVAEConfig) -> None:
        super().__init__()
        widths, lowest = config.widths, len(config.rates)
        depth = sum(config.encoder) + lowest
        layers: list[nn.Module] = [_conv(shape[0], widths[0], 3)]
        for resolution, (width, side) in enumerate(zip(widths, config.sides, strict=True)):
            count = config.encoder[resolution] + (resolution < lowest)
            layers += [_Bottleneck(width, side, depth) for _ in range(count)]
            if resolution < lowest:
                layers += [nn.AvgPool2d(config.rates[resolution]), _conv(width, widths[resolution + 1])]
        self.layers = nn.Sequential(*layers)
        self.mean = _conv(widths[-1], widths[-1])
        self.logvar = zero(_conv(widths[-1], widths[-1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layers(x)  # [B, latent, 1, 1]
        mean, raw = not_narrowed(self.mean(h)), not_narrowed(self.logvar(h))
        return mean.flatten(1), bounded(raw.flatten(1))


class BottleneckDecoder(nn.Module):
    """Decoder from latents [B, latent] to the mean and log-variance of p(x | z_1), [B, C, H, W] each.

    The arguments are those of `BottleneckEncoder`.
    """

    def __init__(self, shape: Shape, config: BottleneckVAEConfig) -> None:
        super().__init__()
        widths, sides = config.widths, config.sides
        depth = sum(config.decoder)
        layers: list[nn.Module] = [nn.Unflatten(1, (widths[-1], 1, 1))]
        for resolution, count in zip(reversed(range(len(widths))), config.decoder, strict=True):
            layers += [_Bottleneck(widths[resolution], sides[resolution], depth) for _ in range(count)]
            if resolution:
                enlarge = nn.Upsample(scale_factor=float(config.rates[resolution - 1]), mode="nearest")
                layers += [enlarge, _conv(widths[resolution], widths[resolution - 1])]
        conv_out = _conv(widths[0], 2 * shape[0], 3, bias=True, gain=0.01)  # small, so that p(x | z_1) is near N(0, I)
        self.layers = nn.Sequential(*layers, conv_out)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = not_narrowed(self.layers(z)).chunk(2, dim=1)  # [B, 2 C, H, W] to [B, C, H, W] each
        return mean.contiguous(), bounded(raw).contiguous()


class _Bottleneck(nn.Module):
    """Residual block y = x + c_4(gelu(c_3(gelu(c_2(gelu(c_1(gelu(x)))))))) with half as many channels inside.

    c_1 and c_4 are 1×1 convolutions, c_2 and c_3 are 3×3, or 1×1 if the image has one pixel. Without normalisation the
    variances of the blocks add up. The initial variance of c_4 is therefore divided by ``depth``, the number of blocks
    of the network (Child 2021), so that all of them together multiply the variance by at most about e.
    """

    def __init__(self, width: int, side: int, depth: int) -> None:
        super().__init__()
        half, size = width // 2, 3 if side > 1 else 1
        self.convs = nn.ModuleList([
            _conv(width, half, 1, bias=True, gain=2.0),
            _conv(half, half, size, bias=True, gain=2.0),
            _conv(half, half, size, bias=True, gain=2.0),
            _conv(half, width, 1, bias=True, gain=2.0 / depth),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs:
            h = conv(F.gelu(h))
        return x + h


def _conv(channels_in: int, channels: int, size: int = 1, bias: bool = False, gain: float = 1.0) -> nn.Conv2d:
    """Build a convolution that keeps the image's size; weights start with variance gain / fan-in, biases at zero."""
    conv = nn.Conv2d(channels_in, channels, size, padding=size // 2, bias=bias)
    nn.init.normal_(conv.weight, std=math.sqrt(gain / (channels_in * size**2)))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
