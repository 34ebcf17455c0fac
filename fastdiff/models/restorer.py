"""Super-resolution and denoising by the second stage of DiffuseVAE, with a degraded image in the place of the VAE's.

The bound is one on -log p(x | what is left of x): nothing has to say what the degraded image is.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import Noise, centre
from .degradations import Degradation
from .refiner import Refined, RefinedConfig


@dataclass(frozen=True)
class RestorerConfig(RefinedConfig):
    """What a restorer is made of.

    Args:
        shape, levels, refiner, formulation: see `RefinedConfig`.
        degradation: what the images are restored from.
    """

    degradation: Degradation = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.degradation.shape(self.shape)  # checks that it divides the size


class Restorer(Refined):
    """A `Refiner` that is trained to restore images from one `degradation`."""

    kind = "restorer"
    config: RestorerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def degrade(self, x: Tensor, noise: Noise) -> Tensor:
        """Return what is left of images x uint8 [B, C, H, W], float32 in about [-1, 1].

        Raises:
            TypeError, ValueError: images that do not fit.
        """
        self.check_images("degrade", x)
        return self.config.degradation.apply(centre(x, self.levels), noise)

    @property
    def given_shape(self) -> tuple[int, int, int]:
        """Shape of a degraded image."""
        return self.config.degradation.shape(self.shape)

    @property
    def given_limit(self) -> float:
        """Bound on the absolute value of a degraded image."""
        return self.config.degradation.limit

    def picture_from(self, given: Tensor) -> Tensor:
        """Bring degraded images, float [B, ...], to full size."""
        return self.config.degradation.picture(given)

    def picture_of(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the degraded image at full size, float [B, C, H, W], and zeros [B]: it is given, not coded."""
        degraded = self.degrade(x, noise)
        return self.config.degradation.picture(degraded), torch.zeros(len(x), device=x.device)
