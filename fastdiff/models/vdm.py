"""Variational diffusion model (Kingma et al. 2021, Variational diffusion models, arXiv:2107.00630)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import centre, decoder_nll, fourier_features
from ..process import PREDICTIONS, alpha, eps_from_x
from ..schedules import SCHEDULES, check_increasing
from .base import ImageConfig
from .concat_unet import ConcatUNetConfig, build_network
from .diffusion import DiffusionModel
from .unet import UNetConfig

LARGEST = 30.0  # |gamma| of a schedule's ends
HEADS = (*PREDICTIONS, "levels")


@dataclass(frozen=True)
class VDMConfig(ImageConfig):
    """What a VDM is made of.

    Args:
        shape, levels, classes, augmented: the data, see `ImageConfig`.
        gamma_0, gamma_1: endpoints of the schedule, or their initial values.
        learn_endpoints: whether the endpoints follow the gradient of the bound.
        schedule: what is between them: ``"linear"``, ``"cosine"``, ``"beta-linear"``, or ``"learned"``, a monotone
            network that is trained to lower the variance of the loss.
        fourier: (n_min, n_max) of the Fourier features of z_t, None for none. The argument is scaled by
            levels / 2^round(log2 levels), so that a feature's period is a whole number of levels, as it is for bytes.
        head: what the network's output means. ``"eps"``: eps_hat = z_t + output. ``"x"``, ``"v"``, ``"score"``: the
            output is that prediction. ``"levels"``: the output is a log prior over the levels of each pixel, and
            eps_hat follows from the posterior mean of x; see `VDM.predict`.
        network: size of the network: a `UNetConfig`, or a `ConcatUNetConfig` for the papers' networks.
    """

    gamma_0: float = -13.3
    gamma_1: float = 5.0
    learn_endpoints: bool = True
    schedule: str = "linear"
    fourier: tuple[int, int] | None = (7, 8)
    head: str = "eps"
    network: UNetConfig | ConcatUNetConfig = field(default_factory=UNetConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = torch.tensor([self.gamma_0, self.gamma_1], device="cpu")
        check_increasing("VDMConfig(gamma_0, gamma_1)", ends)
        if not -LARGEST <= self.gamma_0 < self.gamma_1 <= LARGEST:
            raise ValueError(
                f"VDMConfig: gamma_0 is {self.gamma_0}, gamma_1 is {self.gamma_1}; "
                f"allowed: -{LARGEST:g} to {LARGEST:g}, where float32 can tell signal from noise"
            )
        if self.fourier is not None and not 0 <= self.fourier[0] <= self.fourier[1] <= 30:
            raise ValueError(f"VDMConfig: fourier is {self.fourier}; allowed: 0 <= n_min <= n_max <= 30, or None")
        for name, allowed in (("head", HEADS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"VDMConfig: {name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")


class VDM(DiffusionModel):
    """z_t = alpha_t x + sigma_t eps with learnable endpoints of gamma, trained on the continuous-time bound.

    The decoder p(x | z_0) is a categorical distribution over each pixel's levels, with logits
    -½ e^{-gamma_0} (z_0 / alpha_0 - x_k)².
    """

    kind = "vdm"

    def __init__(self, config: VDMConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.shape
        features = 0 if config.fourier is None else 2 * (config.fourier[1] - config.fourier[0] + 1)
        outputs = channels * (config.levels if config.head == "levels" else 1)
        self.gamma = SCHEDULES[config.schedule](config.gamma_0, config.gamma_1, learned=config.learn_endpoints)
        self.network = build_network(
            channels * (1 + features), outputs, (height, width), config.conditions, config.network
        )

    def predict(self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, None]:
        """Return eps_hat for z_t [B, C, H, W] float32 at gamma [B], and None; labels int64 [B], or None.

        With the head ``"levels"`` the network's output is a log prior over the levels x_k of every pixel given the
        others. Multiplied by the known likelihood N(z_t; alpha_t x_k, sigma_t²) it gives the pixel's posterior,

            p_k ∝ exp(prior_k - ½ e^{-gamma} (z_t / alpha_t - x_k)²),   x_hat = Σ p_k x_k,

        and eps_hat = (z_t - alpha_t x_hat) / sigma_t. Near t = 0, where x_hat is a staircase in z_t, the stairs are
        exact without being learned.
        """
        config = self.config
        labels = self.conditions("eps_hat", labels, z_t)
        features = z_t
        if config.fourier is not None:
            period = config.levels / 2.0 ** round(math.log2(config.levels))
            kind = z_t.device.type  # under autocast the features are written in the dtype that the network takes
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            features = fourier_features(period * z_t, *config.fourier, dtype=dtype)
        number = (gamma - config.gamma_0) / (config.gamma_1 - config.gamma_0)
        out = self.network(features, number, labels)
        if config.head == "eps":
            return z_t + out, None
        gamma = gamma[:, None, None, None]
        if config.head != "levels":
            return PREDICTIONS[config.head](z_t, out, gamma), None
        prior = out.unflatten(1, (config.shape[0], config.levels))
        levels = centre(torch.arange(config.levels, device=z_t.device), config.levels)[:, None, None]
        distance = (z_t / alpha(gamma)).unsqueeze(2) - levels
        posterior = torch.softmax(prior - 0.5 * torch.exp(-gamma).unsqueeze(2) * distance.square(), dim=2)
        return eps_from_x(z_t, (posterior * levels).sum(2), gamma), None

    def recon_nats(self, x: Tensor, z_0: Tensor, labels: Tensor | None = None) -> Tensor:
        """-log p(x | z_0) in nats, [B], for x uint8 [B, C, H, W]; the labels do not matter."""
        gamma_0, _ = self.gamma.endpoints()
        return decoder_nll(x, z_0 / alpha(gamma_0), gamma_0.expand(len(x)), self.levels)

    def decode(self, z_0: Tensor) -> Tensor:
        """Return the most likely x of p(x | z_0): the level nearest to z_0 / alpha_0, uint8 [B, C, H, W]."""
        gamma_0, _ = self.gamma.endpoints()
        return self.nearest_level(z_0.float() / alpha(gamma_0))
