"""Super-resolution and denoising: a conditional DDPM of p(x | y), conditioned on a degraded image y.

The bound is one on -log p(x | y); the degraded image y is given and not modelled.
"""

from collections.abc import Callable

from torch import Tensor

from ..io.configuration import configuration, field
from ..kernels import InvalidValueError, Noise, to_unit_range
from .conditional import ConditionalDDPM, ConditionalDDPMConfig
from .degradations import AddNoise, Degradation, Downsample
from .requests import Request, Start


@configuration
class RestorationConfig(ConditionalDDPMConfig):
    """The configuration of a restoration model.

    Args:
        shape, ..., formulation: the diffusion model, see `ConditionalDDPMConfig`.
        degradation: the degradation that the model restores images from.
    """

    degradation: Downsample | AddNoise = field()

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.degradation.shape(self.shape)  # raises if the factor does not divide the size


class Restoration(ConditionalDDPM):
    """A conditional DDPM that restores images from one degradation."""

    kind = "restoration"
    config_class = RestorationConfig
    config: RestorationConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def degrade(self, x: Tensor, noise: Noise) -> Tensor:
        """Return degraded images float32 [B, *cond_shape], for x uint8 [B, C, H, W].

        Raises:
            InvalidTypeError, InvalidValueError: images that do not fit the model.
        """
        self.check_images("degrade", x)
        return self.config.degradation.apply(to_unit_range(x, self.levels), noise)

    def draw_cond(self, x: Tensor, noise: Noise) -> tuple[Tensor, None]:
        """Return the degraded images at full size, float32 [B, C, H, W]. They are given, so they cost no nats."""
        return self.config.degradation.upsample(self.degrade(x, noise)), None

    def example_cond(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the degraded images."""
        return self.degrade(x, noise)

    @property
    def cond_shape(self) -> tuple[int, int, int]:
        """Shape of a degraded image."""
        return self.config.degradation.shape(self.shape)

    @property
    def cond_limit(self) -> float:
        """Upper bound of the absolute value of a degraded image."""
        return self.config.degradation.limit

    def prepare_cond(self, request: Request) -> Callable[[int, int], Tensor]:
        if request.cond is None:
            shape = (request.n, *self.cond_shape)
            raise InvalidValueError(
                f"sample: cond must be the degraded images, of shape {shape}, got None; fastdiff restore reads them "
                "from files, and fastdiff reconstruct degrades held-out images itself"
            )
        return self.batches_of(self.config.degradation.upsample(self.check_cond(request.cond, request.n)))

    def reconstruction_start(
        self, images: Tensor, degradation: Degradation | None, seed: int, batch_size: int
    ) -> Start:
        """Start from images degraded by the model's own degradation."""
        if degradation is not None:
            raise InvalidValueError("reconstruct: degradation must be None for a restoration model, which has its own")
        degraded = self.config.degradation.of_levels(images, self.levels, seed)
        return Start(self.config.degradation.upsample(degraded), cond=degraded)

    @property
    def degraded_shape(self) -> tuple[int, int, int]:
        return self.cond_shape

    def restoration_start(self, degraded: Tensor, batch_size: int) -> Start:
        """Start from the degraded images, of shape `cond_shape`."""
        if degraded.dim() != 4 or tuple(degraded.shape[1:]) != self.cond_shape:
            wanted = ", ".join(map(str, self.cond_shape))
            raise InvalidValueError(
                f"restore: images must be degraded ones, of shape [N, {wanted}] for this model, got "
                f"{tuple(degraded.shape)}"
            )
        cond = self.check_cond(degraded, len(degraded))
        return Start(self.config.degradation.upsample(cond), cond=cond)
