"""What images are restored from: fewer pixels, or added noise."""

from dataclasses import dataclass

from einops import reduce, repeat
from torch import Tensor

from ..config import check_fields
from ..kernels import Noise, Stream


@dataclass(frozen=True)
class Downsample:
    """Means of blocks of factor × factor pixels; to restore them is super-resolution.

    Args:
        factor: at least 2; a divisor of the images' height and width.
        kind: ``"downsample"``, the name of this degradation in a config.json.
    """

    factor: int = 2
    kind: str = "downsample"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind != "downsample" or self.factor < 2:
            raise ValueError(
                f"Downsample: kind {self.kind!r}, factor {self.factor}; allowed: 'downsample', an integer >= 2"
            )

    @property
    def limit(self) -> float:
        """Bound on the absolute value of what is left of images in [-1, 1]."""
        return 1.0

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape of what is left of images (C, H, W).

        Raises:
            ValueError: the factor does not divide the size.
        """
        channels, height, width = shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"Downsample: factor {self.factor} for images {shape}; allowed: a divisor of the height and the width"
            )
        return channels, height // self.factor, width // self.factor

    def apply(self, centred: Tensor, noise: Noise) -> Tensor:
        """Degrade images float [B, C, H, W]: [B, C, H / factor, W / factor]; ``noise`` is not used."""
        self.shape((centred.shape[1], centred.shape[2], centred.shape[3]))
        return reduce(centred, "b c (h i) (w j) -> b c h w", "mean", i=self.factor, j=self.factor)

    def picture(self, degraded: Tensor) -> Tensor:
        """Bring what is left back to the images' size, by repeating pixels."""
        return repeat(degraded, "b c h w -> b c (h i) (w j)", i=self.factor, j=self.factor)


@dataclass(frozen=True)
class AddNoise:
    """Gaussian noise added to data in [-1, 1]; to remove it is denoising.

    Args:
        deviation: standard deviation of the noise, > 0.
        kind: ``"noise"``, the name of this degradation in a config.json.
    """

    deviation: float = 0.5
    kind: str = "noise"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind != "noise" or not 0.0 < self.deviation < float("inf"):
            raise ValueError(
                f"AddNoise: kind {self.kind!r}, deviation {self.deviation}; allowed: 'noise', a number > 0"
            )

    @property
    def limit(self) -> float:
        """Bound on the absolute value of what is left of images in [-1, 1]: eight deviations of noise beyond 1."""
        return 1.0 + 8.0 * self.deviation

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape of what is left of images (C, H, W): the same."""
        return shape

    def apply(self, centred: Tensor, noise: Noise) -> Tensor:
        """Degrade images float [B, C, H, W]: the same with noise, which may leave [-1, 1]."""
        return centred + self.deviation * noise.at(stream=Stream.DEGRADATION).normal(
            tuple(centred.shape), device=centred.device
        )

    def picture(self, degraded: Tensor) -> Tensor:
        """Return it as it is: it has the images' size."""
        return degraded


Degradation = Downsample | AddNoise
