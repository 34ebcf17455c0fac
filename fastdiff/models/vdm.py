"""Variational diffusion model (Kingma et al. 2021, Variational diffusion models, arXiv:2107.00630).

Its bound and training loss are `DiffusionModel.vlb` and `DiffusionModel.forward`; here are its schedule, network,
predictions and decoder.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..diffusion.pinned_schedules import SCHEDULES
from ..diffusion.preconditioning import eps_from_edm, unit_variance
from ..diffusion.process import PREDICTIONS, alpha, eps_from_x
from ..diffusion.schedules import as_schedule
from ..io.configuration import ConfigError, at_least, between, configuration, field, more_than, one_of
from ..kernels import decoder_nll, fourier_features, to_unit_range
from ..networks import ConcatUNetConfig, UNetConfig
from .diffusion import DiffusionModel, check_network, checked_output
from .image_data import ImageConfig

LARGEST = 30.0  # |gamma| of a schedule's endpoints: beyond, float32 cannot represent signal and noise together


@configuration
class VDMConfig(ImageConfig):
    """The configuration of a VDM.

    Args:
        shape, levels, num_classes, augmented: the data, see `ImageConfig`.
        gamma_0, gamma_1: endpoints of the schedule, or their initial values; the network's noise_level is
            (gamma - gamma_0) / (gamma_1 - gamma_0).
        learn_endpoints: whether the endpoints are trained on the bound.
        schedule: the schedule between the endpoints: ``"linear"``, ``"cosine"``, ``"beta-linear"``, ``"flow"``, the
            straight path of flow matching, ``"importance-v"`` and ``"importance-velocity"``, whose loss has little
            variance for these predictions, or ``"learned"``, a monotone network that is trained to reduce the variance
            of the loss.
        schedule_width: number of sigmoids of the schedule ``"learned"``.
        fourier: (n_min, n_max) of the Fourier features of z_t, or None for none. Their argument is scaled by
            levels / 2^round(log2 levels), so that the period of a feature is a whole number of levels, as for bytes.
        prediction: what the network predicts. ``"epsilon"``: eps_hat = z_t + output. ``"x"``, ``"v"``, ``"velocity"``
            (eps - x, of flow matching), ``"score"``: the output is that prediction. ``"edm"``: EDM's preconditioning of
            input and output, see `fastdiff.diffusion.preconditioning`. ``"categorical"``: the output holds
            log-probabilities of the levels of each pixel, and eps_hat follows from the posterior mean of x; see
            `VDM.predict`.
        sigma_data: deviation of the data that the prediction ``"edm"`` assumes; the others ignore it.
        network: a `UNetConfig`, or a `ConcatUNetConfig` for the networks of the papers.
    """

    gamma_0: float = field(between(-LARGEST, LARGEST), default=-13.3)
    gamma_1: float = field(between(-LARGEST, LARGEST), default=5.0)
    learn_endpoints: bool = True
    schedule: str = field(one_of(*SCHEDULES), default="linear")
    schedule_width: int = field(at_least(1), default=256)
    fourier: tuple[int, int] | None = (7, 8)
    prediction: str = field(one_of(*PREDICTIONS, "edm", "categorical"), default="epsilon")
    sigma_data: float = field(more_than(0.0), default=0.5)
    network: UNetConfig | ConcatUNetConfig = field(factory=UNetConfig)

    def __attrs_post_init__(self) -> None:
        if not self.gamma_0 < self.gamma_1:
            raise ConfigError(f"VDMConfig: gamma_0 must be < gamma_1, got {self.gamma_0} and {self.gamma_1}")
        if self.fourier is not None and not 0 <= self.fourier[0] <= self.fourier[1] <= 30:
            raise ConfigError(f"VDMConfig: fourier must satisfy 0 <= n_min <= n_max <= 30, got {self.fourier}")

    @property
    def channels_in(self) -> int:
        """Channels of the network's input: those of z_t, and of its Fourier features."""
        features = 0 if self.fourier is None else 2 * (self.fourier[1] - self.fourier[0] + 1)
        return self.shape[0] * (1 + features)

    @property
    def channels_out(self) -> int:
        """Channels of the network's output."""
        return self.shape[0] * (self.levels if self.prediction == "categorical" else 1)


class VDM(DiffusionModel):
    """z_t = alpha_t x + sigma_t eps with learnable endpoints of gamma, trained on the continuous-time bound.

    The decoder p(x | z_0) is categorical over the levels x_k of each pixel, with logits
    -½ e^{-gamma_0} (z_0 / alpha_0 - x_k)².

    Args:
        config: the configuration.
        network: your own network in place of ``config.network``: a module called as
            ``network(features, noise_level, labels)`` with features float32 [B, config.channels_in, H, W], noise_level
            float32 [B] and labels int64 [B] or None, that returns [B, config.channels_out, H, W].
        schedule: your own schedule in place of ``config.schedule``: a callable gamma(t), see `FunctionSchedule`.
    """

    kind = "vdm"
    parts = ("network", "schedule")
    config_class = VDMConfig
    config: VDMConfig

    def __init__(
        self,
        config: VDMConfig,
        network: nn.Module | None = None,
        schedule: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_network(network)
        supplied = {"network": network, "schedule": schedule}
        super().__init__(config, tuple(name for name, part in supplied.items() if part is not None))
        if schedule is not None:
            self.gamma = as_schedule(schedule)
        else:
            width = {"width": config.schedule_width} if config.schedule == "learned" else {}
            self.gamma = SCHEDULES[config.schedule](config.gamma_0, config.gamma_1, config.learn_endpoints, **width)
        self.network = network if network is not None else config.network.build(
            config.channels_in, config.channels_out, config.shape[1:], config.num_labels
        )  # fmt: skip

    def predict(
        self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None, cond: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Return eps_hat for z_t [B, C, H, W] float32 at gamma [B], and None; labels int64 [B], or None.

        With the prediction ``"categorical"`` the network's output is a log-prior over the levels x_k of every pixel
        given the others. Its product with the likelihood N(z_t; alpha_t x_k, sigma_t²) is the pixel's posterior,

            p_k ∝ exp(prior_k - ½ e^{-gamma} (z_t / alpha_t - x_k)²),   x_hat = Σ p_k x_k,

        and eps_hat = (z_t - alpha_t x_hat) / sigma_t. Near t = 0 the exact x_hat is a step function of z_t; here its
        steps come from the likelihood and need not be learned.
        """
        config = self.config
        labels = self.labels_or_null("eps_hat", labels, z_t)
        noise_level = (gamma - config.gamma_0) / (config.gamma_1 - config.gamma_0)
        gamma = gamma[:, None, None, None]
        out = checked_output(self.network(self.features(z_t, gamma), noise_level, labels), z_t, config.channels_out)
        if config.prediction == "epsilon":
            return z_t + out, None
        if config.prediction == "edm":
            return eps_from_edm(z_t, out, gamma, config.sigma_data), None
        if config.prediction != "categorical":
            return PREDICTIONS[config.prediction](z_t, out, gamma), None
        prior = out.unflatten(1, (config.shape[0], config.levels))  # [B, C, levels, H, W]
        levels = to_unit_range(torch.arange(config.levels, device=z_t.device), config.levels)[:, None, None]
        distance = (z_t / alpha(gamma)).unsqueeze(2) - levels
        posterior = torch.softmax(prior - 0.5 * torch.exp(-gamma).unsqueeze(2) * distance.square(), dim=2)
        return eps_from_x(z_t, (posterior * levels).sum(2), gamma), None

    def features(self, z_t: Tensor, gamma: Tensor) -> Tensor:
        """Return the network's input [B, channels_in, H, W] for z_t [B, C, H, W] at gamma [B, 1, 1, 1].

        It is z_t and its Fourier features. With the prediction ``"edm"`` z_t is scaled to unit variance. The Fourier
        features remain those of z_t, whose period fits the levels where they matter: near the data.
        """
        config = self.config
        seen = unit_variance(z_t, gamma, config.sigma_data) if config.prediction == "edm" else None
        if config.fourier is None:
            return z_t if seen is None else seen
        period = config.levels / 2.0 ** round(math.log2(config.levels))
        device = z_t.device.type  # under autocast the features have the dtype of the network's first convolution
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        features = fourier_features(period * z_t, *config.fourier, dtype=dtype)
        if seen is None:
            return features
        return torch.cat([seen.to(features.dtype), features[:, z_t.shape[1] :]], dim=1)

    def recon_nats(self, x: Tensor, z_0: Tensor, labels: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        gamma_0, _ = self.gamma.endpoints()
        return decoder_nll(x, z_0 / alpha(gamma_0), gamma_0.expand(len(x)), self.levels)

    def most_likely(self, z_0: Tensor) -> Tensor:
        """Return the mode of p(x | z_0), the level nearest to z_0 / alpha_0, uint8 [B, C, H, W]."""
        gamma_0, _ = self.gamma.endpoints()
        return self.nearest_level(z_0.float() / alpha(gamma_0))
