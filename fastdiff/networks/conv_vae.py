"""Convolutional encoder q(z_1 | x) and decoder p(x | z_1) of a VAE (Kingma and Welling 2013, arXiv:1312.6114).

Both return the mean and the log-variance of a diagonal Gaussian.
"""

import math

from torch import Tensor, nn

from ..io.configuration import ConfigError, at_least, between, configuration, each, field, not_empty, one_of
from .blocks import Gaussian, NormSiLU, bounded, not_narrowed, zero
from .dropout import Dropout, number_dropouts

Shape = tuple[int, int, int]


@configuration
class ConvVAEConfig:
    """Size of a `ConvEncoder` and a `ConvDecoder`.

    Args:
        kind: ``"conv"``, which identifies this class in a config.json.
        widths: channels at each resolution, starting with the full one; each further entry halves the resolution.
        blocks: residual blocks per resolution, in the encoder and again in the decoder.
        dropout: probability, before the last convolution of each block.
        max_groups: each normalisation has gcd(channels, max_groups) groups.
    """

    kind: str = field(one_of("conv"), default="conv")
    widths: tuple[int, ...] = field(not_empty, each(at_least(1)), default=(32, 48))
    blocks: int = field(at_least(1), default=1)
    dropout: float = field(between(0, 1, open_above=True), default=0.1)
    max_groups: int = field(at_least(1), default=8)

    def check(self, where: str, shape: Shape, latent: int) -> None:
        """Check that the networks can be built for images of a shape (C, H, W) and ``latent`` latent variables.

        Raises:
            ConfigError: height or width cannot be halved that often; the message begins with ``where``.
        """
        factor = 2 ** (len(self.widths) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise ConfigError(
                f"{where}: height and width must be multiples of {factor} for a network with widths {self.widths}, "
                f"got shape {shape}"
            )

    def build(self, shape: Shape, latent: int) -> tuple["ConvEncoder", "ConvDecoder"]:
        """Build both networks for a shape and a number of latent variables that pass `check`."""
        encoder, decoder = ConvEncoder(shape, latent, self), ConvDecoder(shape, latent, self)
        number_dropouts(encoder, decoder)  # one after the other, so that no two layers of a VAE draw the same mask
        return encoder, decoder

    def lowest_shape(self, shape: Shape) -> Shape:
        """Return (C, H, W) of the features at the lowest resolution, for images of the shape ``shape``."""
        lowest = len(self.widths) - 1
        return self.widths[-1], shape[1] >> lowest, shape[2] >> lowest


class ConvEncoder(nn.Module):
    """Encoder from images [B, C, H, W] in [-1, 1] to the mean and log-variance of q(z_1 | x), [B, latent] each.

    Args:
        shape: (C, H, W) of the images.
        latent: number of latent variables.
        config: widths and depth.
    """

    def __init__(self, shape: Shape, latent: int, config: ConvVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        layers: list[nn.Module] = [nn.Conv2d(shape[0], widths[0], 3, padding=1)]
        for resolution, width in enumerate(widths):
            if resolution:
                layers.append(nn.Conv2d(widths[resolution - 1], width, 2, stride=2))
            layers += [_Block(width, config) for _ in range(config.blocks)]
        self.layers = nn.Sequential(*layers, NormSiLU(widths[-1], config.max_groups), nn.Flatten())
        self.gaussian = Gaussian(math.prod(config.lowest_shape(shape)), latent)
        nn.init.normal_(self.gaussian.linear.weight, std=0.02)  # zeros would make z_1 independent of x at first
        number_dropouts(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gaussian(self.layers(x))


class ConvDecoder(nn.Module):
    """Decoder from latents [B, latent] to the mean and log-variance of p(x | z_1), [B, C, H, W] each.

    The arguments are those of `ConvEncoder`.
    """

    def __init__(self, shape: Shape, latent: int, config: ConvVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        lowest_shape = config.lowest_shape(shape)
        layers: list[nn.Module] = [nn.Linear(latent, math.prod(lowest_shape)), nn.Unflatten(1, lowest_shape)]
        for resolution, width in reversed(list(enumerate(widths))):
            layers += [_Block(width, config) for _ in range(config.blocks)]
            if resolution:
                layers.append(nn.ConvTranspose2d(width, widths[resolution - 1], 2, stride=2))
        conv_out = nn.Conv2d(widths[0], 2 * shape[0], 3, padding=1)
        self.layers = nn.Sequential(*layers, NormSiLU(widths[0], config.max_groups), conv_out)
        number_dropouts(self)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = not_narrowed(self.layers(z)).chunk(2, dim=1)  # [B, 2 C, H, W] to [B, C, H, W] each
        return mean.contiguous(), bounded(raw).contiguous()


class _Block(nn.Module):
    """y = x + conv_out(dropout(silu(norm_out(conv_in(silu(norm_in(x))))))); ``conv_out`` starts at zero."""

    def __init__(self, channels: int, config: ConvVAEConfig) -> None:
        super().__init__()
        self.norm_in = NormSiLU(channels, config.max_groups)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_out = NormSiLU(channels, config.max_groups)
        self.dropout = Dropout(config.dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(self.dropout(self.norm_out(self.conv_in(self.norm_in(x)))))
