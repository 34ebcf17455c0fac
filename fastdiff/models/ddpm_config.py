"""The configuration of a DDPM: data, chain of betas, variance, what the network predicts."""

from ..diffusion.beta_schedule import BETA_SCHEDULES
from ..diffusion.process import PREDICTIONS
from ..diffusion.samplers import VARIANCES
from ..io.configuration import ConfigError, at_least, between, configuration, field, one_of
from ..networks import ConcatUNetConfig, UNetConfig
from .image_data import PIXELS, ImageConfig

MAX_BETAS = 1_000_000  # far beyond any use, and little memory also where a damaged file says so
LEAST_BETA = 1e-6  # smallest first beta of a short chain that a model with continuous noise conditioning is trained for


@configuration
class DDPMConfig(ImageConfig):
    """The configuration of a DDPM.

    Args:
        shape, levels, num_classes, augmented: the data, see `ImageConfig`.
        T: number of steps of the model's own bound and chain, >= 2. If T differs from ``beta_count``, its noise levels
            are T evenly spaced points of the schedule interpolated in continuous time.
        beta_first, beta_last, beta_count: the first and the last of the betas that define the schedule, and their
            number, 2 to `MAX_BETAS`.
        beta_schedule: how the betas lie: ``"linear"``, ``"scaled_linear"`` (their square roots are evenly spaced), or
            ``"cosine"``, which has no first and last.
        variance: of p(z_s | z_t): ``"fixed_small"``, that of the posterior; ``"fixed_large"``, beta_t; ``"learned"``,
            between the two.
        prediction: what the network predicts: ``"epsilon"``, ``"x"``, ``"v"``, ``"velocity"`` or ``"score"``.
        continuous_noise_conditioning: train at all noise levels and not at those of the chain alone: alpha is uniform
            between a level and the one below it (Chen et al. 2021, WaveGrad, algorithm 1; DiffuseVAE). Such a model
            can be sampled with chains of other betas, the first of them >= `LEAST_BETA`.
        pixels: where level k lies in [-1, 1], see `ImageModel.pixel_scale`: ``"centers"``, or ``"ends"`` as in the code
            of DDPM, improved-diffusion and diffusers.
        network: a `UNetConfig`, or a `ConcatUNetConfig` for the network of the paper.
    """

    T: int = field(at_least(2), default=1000)
    beta_first: float = field(between(0, 1, open_below=True, open_above=True), default=1e-4)
    beta_last: float = field(between(0, 1, open_below=True, open_above=True), default=0.02)
    beta_count: int = field(between(2, MAX_BETAS), default=1000)
    variance: str = field(one_of(*VARIANCES), default="fixed_large")
    prediction: str = field(one_of(*PREDICTIONS), default="epsilon")
    continuous_noise_conditioning: bool = False
    beta_schedule: str = field(one_of(*BETA_SCHEDULES), default="linear")
    pixels: str = field(one_of(*PIXELS), default="centers")
    network: UNetConfig | ConcatUNetConfig = field(factory=UNetConfig)

    def __attrs_post_init__(self) -> None:
        if self.beta_first > self.beta_last:
            raise ConfigError(
                f"{type(self).__name__}: beta_first must be <= beta_last, got {self.beta_first} and {self.beta_last}"
            )

    @property
    def channels_in(self) -> int:
        """Channels of the network's input."""
        return self.shape[0]

    @property
    def channels_out(self) -> int:
        """Channels of the network's output: the prediction, and v where variances are learned."""
        return self.shape[0] * (2 if self.variance == "learned" else 1)
