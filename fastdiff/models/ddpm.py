"""Denoising diffusion probabilistic model (Ho et al. 2020, arXiv:2006.11239), with the learned variances of Nichol and
Dhariwal 2021 (Improved denoising diffusion probabilistic models, arXiv:2102.09672) as an option.

The chain is z_T .. z_1, gamma from a table of betas: T - 1 Gaussian steps, and a decoder p(x | z_1) that asks the
network once more. In the house's time t = 1 is z_T and t = 0 is z_1.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import Noise, Stream, centre, diffuse, eps_loss
from ..likelihood import discretized_gaussian_nll
from ..process import PREDICTIONS, posterior, sigma, transition_variance, x_from_eps
from ..samplers import VARIANCES
from ..schedules import BetaSchedule, linear_betas, log_expm1
from ..vlb import Objective, Vlb, independent_times, loss_weight, prior_nats, stratified_times
from .base import ImageConfig
from .concat_unet import ConcatUNetConfig, build_network
from .diffusion import DiffusionModel
from .unet import UNetConfig

LEAST_BETA = 1e-6  # first beta of the shortest chains that a network trained at all levels can be asked for
HYBRID = 0.001  # weight of the bound beside L_simple where variances are learned (Nichol and Dhariwal 2021)


@dataclass(frozen=True)
class DDPMConfig(ImageConfig):
    """What a DDPM is made of.

    Args:
        shape, levels, classes, augmented: the data, see `ImageConfig`.
        steps: T, the calls of the network that its own bound and sampling make, at least 2. Where it is not
            ``beta_count`` the noise levels are T points of the continuous interpolation, evenly spaced in t.
        beta_first, beta_last, beta_count: the linear betas that the noise levels come from.
        variance: of p(z_s | z_t): ``"small"``, the posterior's; ``"large"``, beta_t; ``"learned"``, in between.
        head: what the network predicts: ``"eps"``, ``"x"``, ``"v"`` or ``"score"``.
        continuous: whether training asks at all noise levels, not at the chain's alone, alpha uniform between a level
            and the one below it (Chen et al. 2021, WaveGrad, algorithm 1; DiffuseVAE's "continuous noise
            conditioning"), so that chains of other betas, see `LEAST_BETA`, ask for nothing that it never saw.
        network: size of the network: a `UNetConfig`, or a `ConcatUNetConfig` for the paper's network.
    """

    steps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02
    beta_count: int = 1000
    variance: str = "large"
    head: str = "eps"
    continuous: bool = False
    network: UNetConfig | ConcatUNetConfig = field(default_factory=UNetConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2 or self.beta_count < 2 or not 0 < self.beta_first <= self.beta_last < 1:
            raise ValueError(
                f"DDPMConfig: steps {self.steps}, {self.beta_count} betas from {self.beta_first} to {self.beta_last}; "
                "allowed: at least 2 steps and 2 betas, 0 < beta_first <= beta_last < 1"
            )
        for name, allowed in (("head", PREDICTIONS), ("variance", VARIANCES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"DDPMConfig: {name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")


class DDPM(DiffusionModel):
    """The chain of betas with its own decoder and its own variational bound; the papers train it on L_simple.

    The decoder is a Gaussian around x_hat(z_1), discretised over the levels; its variance is that of the posterior
    q(z_1 | z_2, x), as in both papers' likelihoods, or between that and beta_1 where variances are learned.
    """

    kind = "ddpm"
    network_decoder = True
    pictures: ClassVar[int] = 0  # images that the network sees beside the latent

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.shape
        outputs = channels * (2 if config.variance == "learned" else 1)
        self.gamma = BetaSchedule(linear_betas(config.beta_count, config.beta_first, config.beta_last))
        ends = self.gamma(torch.tensor([0.0, 1.0 / (config.steps - 1)], dtype=torch.float64, device="cpu"))
        # Log variances of q(z_1 | z_2, x) on the model's own chain, and of q(z_1 | x), which is beta_1.
        self.decoder_log_variances = (
            float(posterior(ends[0], ends[1])[2].log()),
            2.0 * math.log(float(sigma(ends[0]))),
        )
        self.network = build_network(
            channels * (1 + self.pictures), outputs, (height, width), config.conditions, config.network
        )

    @property
    def steps(self) -> int:
        """T of the configuration."""
        return self.config.steps

    @property
    def variance(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Variance of the steps, see `DDPMConfig`."""
        return self.config.variance

    def predict(self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return eps_hat for z_t [B, C, H, W] float32 at gamma [B], labels int64 [B] or None; and, with learned
        variances, how far the log variance is from the small (0) to the large one (1), like z_t.
        """
        labels = self.conditions("eps_hat", labels, z_t)
        return self.read(self.network(z_t, self.time(gamma), labels), z_t, gamma)

    def time(self, gamma: Tensor) -> Tensor:
        """What the network is told of gamma [B]: its time on the chain of betas."""
        return cast(BetaSchedule, self.gamma).time(gamma)

    def read(self, out: Tensor, z_t: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read the network's output as eps_hat and, with learned variances, their place between small and large."""
        fraction = None
        if self.variance == "learned":
            out, fraction = out.chunk(2, dim=1)
            fraction = 0.5 * (fraction.float() + 1.0)
        return PREDICTIONS[self.config.head](z_t, out, gamma[:, None, None, None]), fraction

    def kl_nats(
        self,
        eps_hat: Tensor,
        fraction: Tensor | None,
        eps: Noise,
        gamma_s: Tensor,
        gamma_t: Tensor,
        repeats: float = 1.0,
    ) -> Tensor:
        """Return ``repeats`` times KL(q(z_s | z_t, x) || p(z_s | z_t)), [B], for float64 gammas [B].

        With the variance V of p and v of q, per element

            ½ [log(V / v) + v / V - 1 + (v / V) expm1(gamma_t - gamma_s) (eps - eps_hat)²].
        """
        if self.variance == "small":
            return super().kl_nats(eps_hat, fraction, eps, gamma_s, gamma_t, repeats)
        excess = repeats * torch.expm1(gamma_t - gamma_s)
        widest = torch.log(transition_variance(gamma_s, gamma_t) / posterior(gamma_s, gamma_t)[2])  # log V / v at most
        if fraction is None:
            own = 0.5 * repeats * (widest + torch.expm1(-widest)) * self.dims
            return own.float() + eps_loss(eps_hat, eps, (0.5 * excess * torch.exp(-widest)).float())
        widest, excess = widest[:, None, None, None].float(), excess[:, None, None, None].float()
        log_ratio = fraction * widest
        square = (eps.normal(eps_hat.shape, device=eps_hat.device) - eps_hat).square()
        terms = repeats * (log_ratio + torch.expm1(-log_ratio)) + torch.exp(-log_ratio) * excess * square
        return 0.5 * terms.flatten(1).sum(1)

    def recon_nats(self, x: Tensor, z_0: Tensor, labels: Tensor | None = None) -> Tensor:
        """-log p(x | z_1) in nats, [B], for x uint8 [B, C, H, W]: one call of the network."""
        gamma_0 = self.gamma.endpoints()[0].expand(len(x))
        return self._decoder_nats(x, z_0, gamma_0, *self.predict(z_0, gamma_0, labels))

    def _decoder_nats(
        self, x: Tensor, z_0: Tensor, gamma_0: Tensor, eps_hat: Tensor, fraction: Tensor | None
    ) -> Tensor:
        low, high = self.decoder_log_variances
        logvar = torch.full((), low, device=z_0.device) if fraction is None else low + (high - low) * fraction
        return discretized_gaussian_nll(x, x_from_eps(z_0, eps_hat, gamma_0[:, None, None, None]), logvar, self.levels)

    def objective(
        self,
        x: Tensor,
        noise: Noise,
        labels: Tensor | None = None,
        loss: str = "elbo",
        steps: int | None = None,
        stratified: bool = True,
    ) -> Objective:
        """Return the training loss of every image at one of its T levels, and the bound that the same draws estimate.

        The level i = 1 .. T is drawn uniformly; i = 1 is the decoder's. ``"elbo"`` is T times that level's term of the
        bound (plus the prior, a constant); any other loss is a weight on |eps - eps_hat|², with learned variances plus
        `HYBRID` times the bound (in bits), which then trains the variances alone. Arguments and errors as in
        `DiffusionModel.objective`.
        """
        self.check_images("objective", x)
        steps = self.steps if steps is None else steps
        intervals = self.intervals("objective", steps)
        assert intervals is not None
        u = (stratified_times if stratified else independent_times)(noise, len(x)).to(x.device)
        i = torch.floor(u * steps).clamp_(max=steps - 1)
        first = i == 0
        gamma_t, gamma_s = self._levels(i, intervals, noise)
        top, _ = self._levels(torch.full_like(i, intervals), intervals, noise)
        eps, centred = noise.at(stream=Stream.DIFFUSION), centre(x, self.levels)
        z_t = diffuse(centred, gamma_t.float(), eps)
        eps_hat, fraction = self.predict(z_t, gamma_t.float(), labels)
        simple = None
        if loss != "elbo":
            higher, lower = self._levels(i.clamp(min=1), intervals, noise)  # the decoder's: that of the step above
            slope = intervals * torch.expm1(higher - lower).float()
            simple = loss_weight(loss, gamma_t.float(), slope) * eps_loss(eps_hat, eps, torch.ones_like(slope))
            eps_hat = eps_hat.detach()
        above = torch.where(first, gamma_t + 1.0, gamma_t)  # any step but an empty one, for the terms left out below
        kl = self.kl_nats(eps_hat, fraction, eps, gamma_s, above, steps)
        recon = steps * self._decoder_nats(x, z_t, gamma_t.float(), eps_hat, fraction)
        nothing = torch.zeros_like(kl)
        vlb = Vlb(
            torch.where(first, recon, nothing),
            prior_nats(centred, top.float()[:, None, None, None]),
            torch.where(first, nothing, kl),
        )
        if simple is None:
            return Objective(vlb.total, vlb.detach())
        return Objective(simple if fraction is None else simple + HYBRID / math.log(2.0) * vlb.total, vlb.detach())

    def _levels(self, i: Tensor, intervals: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Gamma of the levels i and i - 1 (i in 0 .. intervals, [B]) that training asks at, float64 [B] each.

        With ``continuous`` every level moves by the same fraction of the way to the one below it, in alpha, the lowest
        towards that of `LEAST_BETA`: a chain as good as the first, drawn anew for every sample, with the decoder's
        variance of the first. Level -1 is level 0.
        """
        decay = cast(BetaSchedule, self.gamma).decay
        gamma = self.gamma(torch.arange(intervals + 1, dtype=torch.float64, device=decay.device) / intervals)
        here, below = i.long(), (i.long() - 1).clamp(min=0)
        if not self.config.continuous:
            return gamma[here], gamma[below]
        decay = F.softplus(gamma)  # -log alpha²
        least = decay[:1].clamp(max=-math.log1p(-LEAST_BETA))
        step = 0.5 * (decay - torch.cat([least, decay[:-1]]))
        fraction = noise.at(stream=Stream.TIMES).uniform((len(i), 2))[:, 1].double().remainder(1.0).to(decay.device)
        # alpha (1 - f) + f alpha_below, in the logarithm: alpha is 1 or 0 to all its digits at either end of a chain
        moved = (decay[level] - 2.0 * torch.log1p(fraction * torch.expm1(step[level])) for level in (here, below))
        here, below = (log_expm1(each) for each in moved)
        return here, below

    def decode(self, z_0: Tensor) -> Tensor:
        """Return the level nearest to x_hat, uint8 [B, C, H, W]."""
        return self.nearest_level(z_0.float())
