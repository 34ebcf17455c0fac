"""Variational diffusion model (Kingma et al. 2021, Variational diffusion models, arXiv:2107.00630)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import Noise, Stream, centre, decoder_nll, diffuse, eps_loss, fourier_features
from ..process import alpha, eps_from_x
from ..schedules import LinearSchedule, check_increasing
from ..vlb import Vlb, finite_times, prior_nats, stratified_times
from .base import DiffusionModel
from .unet import UNet, UNetConfig

HEADS = ("eps", "levels")


@dataclass(frozen=True)
class VDMConfig:
    """What a VDM is made of.

    Args:
        shape: (C, H, W) of the data.
        levels: values that a pixel can take, 2 to 256.
        classes: number of class labels, 0 for an unconditional model.
        augmented: whether the network is told which training images were augmented (as in the paper's augmented
            CIFAR-10 runs), so that what it learns from them does not change what it says about the others.
        gamma_0, gamma_1: endpoints of the linear schedule, or their initial values.
        learn_endpoints: whether the endpoints follow the gradient of the bound.
        fourier: (n_min, n_max) of the Fourier features of z_t, None for none. The argument is scaled by
            levels / 2^round(log2 levels), so that a feature's period is a whole number of levels, as it is for bytes.
        head: what the network's output means. ``"eps"``: eps_hat = z_t + output. ``"levels"``: the output is a log
            prior over the levels of each pixel, and eps_hat follows from the posterior mean of x; see `VDM.eps_hat`.
        network: size of the U-Net.
    """

    shape: tuple[int, int, int]
    levels: int
    classes: int = 0
    augmented: bool = False
    gamma_0: float = -13.3
    gamma_1: float = 5.0
    learn_endpoints: bool = True
    fourier: tuple[int, int] | None = (7, 8)
    head: str = "eps"
    network: UNetConfig = field(default_factory=UNetConfig)

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or not 2 <= self.levels <= 256 or self.classes < 0:
            raise ValueError(
                f"VDMConfig: shape {self.shape}, levels {self.levels}, classes {self.classes}; "
                "allowed: positive sizes, 2 to 256 levels, 0 or more classes"
            )
        check_increasing("VDMConfig(gamma_0, gamma_1)", torch.tensor([self.gamma_0, self.gamma_1]))
        if self.fourier is not None and not 0 <= self.fourier[0] <= self.fourier[1] <= 30:
            raise ValueError(f"VDMConfig: fourier is {self.fourier}; allowed: 0 <= n_min <= n_max <= 30, or None")
        if self.head not in HEADS:
            raise ValueError(f"VDMConfig: head is {self.head!r}; allowed: {', '.join(HEADS)}")

    @property
    def conditions(self) -> int:
        """Conditions that the network tells apart: the classes, "no label", "augmented"; 0 without any."""
        return self.classes + 1 + self.augmented if self.classes or self.augmented else 0


class VDM(DiffusionModel):
    """z_t = alpha_t x + sigma_t eps with learnable endpoints of gamma, trained on the continuous-time bound."""

    kind = "vdm"

    def __init__(self, config: VDMConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.shape
        features = 0 if config.fourier is None else 2 * (config.fourier[1] - config.fourier[0] + 1)
        outputs = channels * (config.levels if config.head == "levels" else 1)
        self.gamma = LinearSchedule(config.gamma_0, config.gamma_1, learned=config.learn_endpoints)
        self.network = UNet(channels * (1 + features), outputs, (height, width), config.conditions, config.network)

    def eps_hat(self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise in z_t [B, C, H, W] float32 at gamma [B]; labels int64 [B], or None for unconditional.

        With the head ``"levels"`` the network's output is a log prior over the levels x_k of every pixel given the
        others. Multiplied by the known likelihood N(z_t; alpha_t x_k, sigma_t²) it gives the pixel's posterior,

            p_k ∝ exp(prior_k - ½ e^{-gamma} (z_t / alpha_t - x_k)²),   x_hat = Σ p_k x_k,

        and eps_hat = (z_t - alpha_t x_hat) / sigma_t. Near t = 0, where x_hat is a staircase in z_t, the stairs are
        exact without being learned.
        """
        config = self.config
        self.check_labels("eps_hat", labels, z_t.shape[0])
        if labels is None and config.conditions:
            labels = torch.full((z_t.shape[0],), self.no_label, device=z_t.device)
        features = z_t
        if config.fourier is not None:
            period = config.levels / 2.0 ** round(math.log2(config.levels))
            kind = z_t.device.type  # under autocast the features are written in the dtype that the network takes
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            features = fourier_features(period * z_t, *config.fourier, dtype=dtype)
        number = (gamma - config.gamma_0) / (config.gamma_1 - config.gamma_0)
        out = self.network(features, number, labels)
        if config.head == "eps":
            return z_t + out
        gamma = gamma[:, None, None, None]
        prior = out.unflatten(1, (config.shape[0], config.levels))
        levels = centre(torch.arange(config.levels, device=z_t.device), config.levels)[:, None, None]
        distance = (z_t / alpha(gamma)).unsqueeze(2) - levels
        posterior = torch.softmax(prior - 0.5 * torch.exp(-gamma).unsqueeze(2) * distance.square(), dim=2)
        return eps_from_x(z_t, (posterior * levels).sum(2), gamma)

    def vlb(
        self,
        x: Tensor,
        noise: Noise,
        steps: int | None = None,
        labels: Tensor | None = None,
        total: int | None = None,
    ) -> Vlb:
        """Return one unbiased draw of the bound for every image, in nats.

        Diffusion term, T = infinity: ½ gamma'(t) |eps - eps_hat|² (eq. 17); T = ``steps``: ½ T expm1(gamma_t - gamma_s)
        |eps - eps_hat|² (eq. 14), at one stratified time per image. Reconstruction and prior: `fastdiff.vlb`.

        Args:
            x: data uint8 [B, C, H, W] in [0, levels).
            noise: what all draws derive from; sample b is ``noise.first_sample + b``.
            steps: T, or None for continuous time.
            labels: int64 [B], or None.
            total: number of samples that the times are stratified over, by default this batch.

        Raises:
            TypeError, ValueError: images, labels or steps that do not fit.
        """
        self.check_images("vlb", x)
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ValueError(f"vlb: steps is {steps!r}; allowed: an integer >= 1, or None for continuous time")
        centred = centre(x, self.levels)
        gamma_0, gamma_1 = self.gamma.endpoints()
        u = stratified_times(noise, len(x), total).to(x.device)
        gamma_t, weight = self._gamma_and_weight(u, steps)

        eps = noise.at(stream=Stream.DIFFUSION)
        z_t = diffuse(centred, gamma_t, eps)
        diffusion = eps_loss(self.eps_hat(z_t, gamma_t, labels), eps, weight)

        at_zero = gamma_0.expand(len(x))
        z_0 = diffuse(centred, at_zero, noise.at(stream=Stream.RECON))
        recon = decoder_nll(x, z_0 / alpha(gamma_0), at_zero, self.levels)
        return Vlb(recon, prior_nats(centred, gamma_1), diffusion)

    def _gamma_and_weight(self, u: Tensor, steps: int | None) -> tuple[Tensor, Tensor]:
        """gamma_t and the weight of the squared error, float32 [B], computed in float64: at large T the difference
        of two neighbouring gammas has no digits left in float32."""
        if steps is None:
            return self.gamma(u).float(), 0.5 * self.gamma.slope(u).float()
        s, t = finite_times(u, steps)
        gamma_t = self.gamma(t)
        return gamma_t.float(), (0.5 * steps * torch.expm1(gamma_t - self.gamma(s))).float()

    def decode(self, z_0: Tensor) -> Tensor:
        """Return the most likely x of p(x | z_0): the level nearest to z_0 / alpha_0, uint8 [B, C, H, W]."""
        gamma_0, _ = self.gamma.endpoints()
        level = torch.round(0.5 * ((z_0.float() / alpha(gamma_0) + 1.0) * self.levels - 1.0))
        return level.clamp_(0, self.levels - 1).to(torch.uint8)
