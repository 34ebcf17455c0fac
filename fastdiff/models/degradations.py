"""Degradations: block-average down-sampling and additive Gaussian noise."""

import math

from einops import reduce, repeat
from torch import Tensor

from ..io.configuration import ConfigError, at_least, configuration, field, more_than, one_of
from ..kernels import Noise, Stream, to_unit_range


@configuration
class Degradation:
    """Base class of degradations of images float [B, C, H, W] in [-1, 1]."""

    @property
    def name(self) -> str:
        """What ``--degradation`` calls it, such as ``"down-2"``."""
        raise NotImplementedError

    @property
    def reduction(self) -> int:
        """How many times smaller the height and width of a degraded image are."""
        return 1

    @property
    def limit(self) -> float:
        """Upper bound of the absolute value of a degraded image."""
        return math.inf

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape of the degraded image of an image (C, H, W).

        Raises:
            ConfigError: images of this shape cannot be degraded so.
        """
        return shape

    def apply(self, x: Tensor, noise: Noise) -> Tensor:
        """Degrade images float [B, C, H, W] in [-1, 1]; ``noise`` is the source of what is drawn."""
        raise NotImplementedError

    def upsample(self, degraded: Tensor) -> Tensor:
        """Return degraded images at full size."""
        return degraded

    def of_levels(self, images: Tensor, levels: int, seed: int) -> Tensor:
        """Degrade images uint8 [N, C, H, W] on the CPU, float32; image i is a function of (seed, i)."""
        return self.apply(to_unit_range(images.cpu(), levels), Noise(seed))


@configuration
class Downsample(Degradation):
    """Average over blocks of factor × factor pixels, for super-resolution.

    Args:
        factor: >= 2, a divisor of the height and the width of the images.
        kind: ``"downsample"``, the name of this degradation in config.json.
    """

    factor: int = field(at_least(2), default=2)
    kind: str = field(one_of("downsample"), default="downsample")

    @property
    def name(self) -> str:
        return f"down-{self.factor}"

    @property
    def reduction(self) -> int:
        return self.factor

    @property
    def limit(self) -> float:
        return 1.0

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        channels, height, width = shape
        if height % self.factor or width % self.factor:
            raise ConfigError(f"Downsample: factor must divide the height and width of {shape}, got {self.factor}")
        return channels, height // self.factor, width // self.factor

    def apply(self, x: Tensor, noise: Noise) -> Tensor:
        self.shape((x.shape[1], x.shape[2], x.shape[3]))
        return reduce(x, "b c (h i) (w j) -> b c h w", "mean", i=self.factor, j=self.factor)

    def upsample(self, degraded: Tensor) -> Tensor:
        """Return degraded images at full size, by repeating pixels."""
        return repeat(degraded, "b c h w -> b c (h i) (w j)", i=self.factor, j=self.factor)


@configuration
class AddNoise(Degradation):
    """Additive Gaussian noise, for denoising.

    Args:
        deviation: standard deviation of the noise on the scale of data in [-1, 1], > 0.
        kind: ``"noise"``, the name of this degradation in config.json.
    """

    deviation: float = field(more_than(0.0), default=0.5)
    kind: str = field(one_of("noise"), default="noise")

    @property
    def name(self) -> str:
        return f"noise-{self.deviation}"

    @property
    def limit(self) -> float:
        return 1.0 + 8.0 * self.deviation  # the counter noise has no normal beyond 6.8

    def apply(self, x: Tensor, noise: Noise) -> Tensor:
        eps = noise.at(stream=Stream.DEGRADATION).normal(tuple(x.shape), device=x.device)
        return x + self.deviation * eps
