"""Denoising diffusion probabilistic model (Ho et al. 2020, arXiv:2006.11239), with the learned variances of Nichol and
Dhariwal 2021 (Improved denoising diffusion probabilistic models, arXiv:2102.09672) as an option.

The chain is z_T .. z_1, with gamma from betas: T - 1 Gaussian steps, and a decoder p(x | z_1) that calls the network
once more. In the continuous time of fastdiff, t = 1 is z_T and t = 0 is z_1.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.beta_schedule import BetaSchedule, betas_of, log_expm1
from ..diffusion.bound import Objective, Vlb, loss_weight, prior_nats, training_times
from ..diffusion.likelihood import discretized_gaussian_nll
from ..diffusion.process import PREDICTIONS, posterior, sigma, transition_variance, x_from_eps
from ..io.trees import write_tree
from ..kernels import Noise, Stream, diffuse, eps_loss
from ..networks.dropout import set_dropout_noise
from .ddpm_config import LEAST_BETA, DDPMConfig
from .diffusion import DiffusionModel, check_network, checked_output, drawn_once, plus_cond
from .formats.diffusers_pipeline import check_replaceable, pipeline_files
from .image_data import PIXELS
from .saving import check_savable

HYBRID = 0.001  # weight of the bound in L_hybrid = L_simple + 0.001 L_vlb (Nichol and Dhariwal 2021, eq. 16)


class DDPM(DiffusionModel):
    """The chain of betas with its own decoder and its own variational bound; the papers train it on L_simple.

    The decoder is a Gaussian around x_hat(z_1), discretised over the levels. Its variance is that of the posterior
    q(z_1 | z_2, x), as in the likelihoods of both papers, or between that and beta_1 where variances are learned.

    Args:
        config: the configuration.
        network: your own network in place of ``config.network``: a module called as
            ``network(z_t, noise_level, labels)`` with z_t float32 [B, config.channels_in, H, W], noise_level float32
            [B], the time in [0, 1] on the chain of betas, and labels int64 [B] or None, that returns
            [B, config.channels_out, H, W].
    """

    kind = "ddpm"
    parts = ("network",)
    network_decoder = True
    gamma: BetaSchedule  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = DDPMConfig
    config: DDPMConfig

    def __init__(self, config: DDPMConfig, network: nn.Module | None = None) -> None:
        check_network(network)
        super().__init__(config, () if network is None else ("network",))
        betas = betas_of(config.beta_schedule, config.beta_count, config.beta_first, config.beta_last)
        self.gamma = BetaSchedule(betas)  # pyright: ignore[reportIncompatibleVariableOverride]
        ends = self.gamma(torch.tensor([0.0, 1.0 / (config.T - 1)], dtype=torch.float64, device="cpu"))
        # log-variances of q(z_1 | z_2, x) on the model's own chain, and of q(z_1 | x), which is beta_1
        self.decoder_log_variances = (
            float(posterior(ends[0], ends[1])[2].log()),
            2.0 * math.log(float(sigma(ends[0]))),
        )
        self.network = network if network is not None else config.network.build(
            config.channels_in, config.channels_out, config.shape[1:], config.num_labels
        )  # fmt: skip

    @property
    def T(self) -> int:
        return self.config.T

    @property
    def variance(self) -> str:
        return self.config.variance

    @property
    def pixel_scale(self) -> float:
        return PIXELS[self.config.pixels](self.levels)

    def predict(
        self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self.predict_from(z_t, z_t, gamma, labels)

    def predict_from(
        self, seen: Tensor, z_t: Tensor, gamma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return eps_hat and v, see `predict`, of a network whose input for z_t is ``seen``."""
        labels = self.labels_or_null("eps_hat", labels, z_t)
        out, v = self.network(seen, self.gamma.time(gamma), labels), None
        out = checked_output(out, seen, self.config.channels_out)
        if self.variance == "learned":
            out, v = out.chunk(2, dim=1)
            v = 0.5 * (v.float() + 1.0)
        return PREDICTIONS[self.config.prediction](z_t, out, gamma[:, None, None, None]), v

    def kl_nats(
        self,
        eps_hat: Tensor,
        v: Tensor | None,
        eps: Noise | Tensor,
        gamma_s: Tensor,
        gamma_t: Tensor,
        factor: float = 1.0,
    ) -> Tensor:
        """Return ``factor`` times KL(q(z_s | z_t, x) || p(z_s | z_t)), [B], for float64 gammas [B].

        With the variance P of p and Q of q, per element

            ½ [log(P / Q) + Q / P - 1 + (Q / P) expm1(gamma_t - gamma_s) (eps - eps_hat)²].
        """
        if self.variance == "fixed_small":
            return super().kl_nats(eps_hat, v, eps, gamma_s, gamma_t, factor)
        excess = factor * torch.expm1(gamma_t - gamma_s)
        widest = torch.log(transition_variance(gamma_s, gamma_t) / posterior(gamma_s, gamma_t)[2])  # max log P / Q
        if v is None:
            of_variance = 0.5 * factor * (widest + torch.expm1(-widest)) * self.dims
            return of_variance.float() + eps_loss(eps_hat, eps, (0.5 * excess * torch.exp(-widest)).float())
        widest, excess = widest[:, None, None, None].float(), excess[:, None, None, None].float()
        log_ratio = v * widest
        drawn = eps.normal(eps_hat.shape, device=eps_hat.device) if isinstance(eps, Noise) else eps
        square = (drawn - eps_hat).square()
        terms = factor * (log_ratio + torch.expm1(-log_ratio)) + torch.exp(-log_ratio) * excess * square
        return 0.5 * terms.flatten(1).sum(1)

    def recon_nats(self, x: Tensor, z_0: Tensor, labels: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Return -log p(x | z_1) in nats, [B], for x uint8 [B, C, H, W] and z_0 = z_1: one call of the network."""
        gamma_0 = self.gamma.endpoints()[0].expand(len(x))
        return self._decoder_nats(x, z_0, gamma_0, *self.predict(z_0, gamma_0, labels, cond))

    def _decoder_nats(self, x: Tensor, z_0: Tensor, gamma_0: Tensor, eps_hat: Tensor, v: Tensor | None) -> Tensor:
        low, high = self.decoder_log_variances
        logvar = torch.full((), low, device=z_0.device) if v is None else low + (high - low) * v
        mean = x_from_eps(z_0, eps_hat, gamma_0[:, None, None, None])
        scale = self.pixel_scale  # the bins of levels are those of x / scale
        return discretized_gaussian_nll(x, mean / scale, logvar - 2.0 * math.log(scale), self.levels)

    def forward(
        self,
        x: Tensor,
        noise: Noise,
        labels: Tensor | None = None,
        loss: str = "elbo",
        T: int | None = None,
        stratified: bool = True,
        total: int | None = None,
    ) -> Objective:
        """Return the training loss of a batch at one of the T steps for each image, and the bound of the same draws.

        The step i = 1 .. T is drawn uniformly; i = 1 is the decoder's. ``"elbo"`` is T times the term of the bound for
        that step, plus the prior term, a constant. Any other loss is a weight on |eps - eps_hat|²; with learned
        variances `HYBRID` times the bound (in bits) is added, which then trains the variances alone. Arguments as in
        `Model.forward`.
        """
        self.check_images("forward", x)
        self.check_noise("forward", noise)
        T = self.T if T is None else T
        num_transitions = self.num_transitions(self.check_T("forward", T))
        assert num_transitions is not None
        set_dropout_noise(self, noise)
        u = training_times(noise, len(x), stratified, total).to(x.device)
        i = torch.floor(u * T).clamp_(max=T - 1)  # counts from 0 here
        # of the drawn step, of z_T, and of the drawn step or, where that is the decoder's, the one above it
        steps = torch.stack([i, torch.full_like(i, num_transitions), i.clamp(min=1)])
        (gamma_t, top, upper), (gamma_s, _, lower) = self._noise_levels(steps, num_transitions, noise)
        data = self.to_unit(x)
        eps = drawn_once(noise.at(stream=Stream.DIFFUSION), data)
        z_t = diffuse(data, gamma_t.float(), eps)
        cond, cond_nats = self.draw_cond(x, noise)
        eps_hat, v = self.predict(z_t, gamma_t.float(), labels, cond)
        weighted = None
        if loss != "elbo":
            slope = num_transitions * torch.expm1(upper - lower).float()
            weighted = loss_weight(loss, gamma_t.float(), slope) * eps_loss(eps_hat, eps, torch.ones_like(slope))
            eps_hat = eps_hat.detach()
        is_decoder = i == 0
        above = torch.where(is_decoder, gamma_t + 1.0, gamma_t)  # a step of length > 0; its term is replaced below
        kl = self.kl_nats(eps_hat, v, eps, gamma_s, above, T)
        recon = T * self._decoder_nats(x, z_t, gamma_t.float(), eps_hat, v)
        zero = torch.zeros_like(kl)
        prior = prior_nats(data, top.float()[:, None, None, None])
        vlb = Vlb(torch.where(is_decoder, recon, zero), prior, torch.where(is_decoder, zero, kl))
        reported = Vlb(vlb.recon, plus_cond(prior, cond_nats), vlb.diffusion).detach()
        if weighted is None:
            return Objective(vlb.total, reported, gamma_t.float())
        loss_of_batch = weighted if v is None else weighted + HYBRID / math.log(2.0) * vlb.total
        return Objective(loss_of_batch, reported, gamma_t.float())

    def _noise_levels(self, i: Tensor, num_transitions: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return gamma of the levels i and i - 1 for training, float64 like i [.., B] in 0 .. num_transitions.

        Level -1 is level 0. With continuous noise conditioning alpha_i <- (1 - f) alpha_i + f alpha_{i-1}, with one
        f ~ U(0, 1) per sample for all levels; the level below the lowest is that of `LEAST_BETA`. The moved levels are
        a chain of their own. The decoder keeps the variance of the model's chain.
        """
        decay = self.gamma.decay
        gamma = self.gamma(
            torch.arange(num_transitions + 1, dtype=torch.float64, device=decay.device) / num_transitions
        )
        here, below = i.long(), (i.long() - 1).clamp(min=0)
        if not self.config.continuous_noise_conditioning:
            return gamma[here], gamma[below]
        decay = F.softplus(gamma)  # -log alpha²
        least = decay[:1].clamp(max=-math.log1p(-LEAST_BETA))
        step = 0.5 * (decay - torch.cat([least, decay[:-1]]))
        f = noise.at(stream=Stream.TIMES).uniform((i.shape[-1], 2))[:, 1].double().remainder(1.0).to(decay.device)
        # the interpolation of alpha in terms of log alpha: at the ends of a chain alpha rounds to 1 or underflows
        moved = (decay[level] - 2.0 * torch.log1p(f * torch.expm1(step[level])) for level in (here, below))
        here, below = (log_expm1(each) for each in moved)
        return here, below

    def save_diffusers(self, path: str | Path) -> Path:
        """Write a DDPMPipeline folder that diffusers loads: model_index.json, unet/ and scheduler/; atomically.

        ``diffusers.DDPMPipeline.from_pretrained(path)`` gives the same eps_hat at the timesteps 0 .. T - 1, and so does
        ``fastdiff.load(path)``, which returns this model with all its settings. Labels are class embeddings there: the
        classes, then the null label, then "augmented"; a DDPMPipeline calls a network without labels, so such a network
        is for ``UNet2DModel``. diffusers puts the levels of pixels at the ends of [-1, 1]: with ``pixels="centers"``
        its images differ from ours by up to half a level.

        The scheduler is a DDPMScheduler of the model's chain with DDPM's own sampling: leading timesteps, x_hat clipped
        to [-1, 1]. The class and the sampling of a scheduler that the model was loaded with are not kept.

        Args:
            path: a new folder, or one that this method wrote.

        Raises:
            ConfigError: a model that is no UNet2DModel, such as one with another network than `ConcatUNet`, or whose
                ``network.timesteps`` is not ``beta_count``; the message lists why.
            CheckpointError: weights that are not finite, a folder of another program, or one that cannot be written.
        """
        if self.kind != DDPM.kind:  # a conditional model, whose network also takes an image
            return super().save_diffusers(path)
        check_replaceable(Path(path))
        contents = pipeline_files(self.config, self.network, self.description(), str(path))
        check_savable(self, str(path))
        return write_tree(path, contents)

    def most_likely(self, z_0: Tensor) -> Tensor:
        """Return the level nearest to x_hat, uint8 [B, C, H, W]."""
        return self.nearest_level(z_0.float())
