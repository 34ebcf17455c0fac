"""The variational autoencoder (Kingma and Welling 2014) and the Markovian hierarchical one, of which it is depth 1.

    q(z_1 .. z_T | x) = q(z_1 | x) Π_{t > 1} q(z_t | z_{t-1})
    p(x, z_1 .. z_T)  = p(x | z_1) Π_{t > 1} p(z_{t-1} | z_t) p(z_T)

Every conditional is a Gaussian with a diagonal covariance, p(z_T) is N(0, I), and p(x | z_1) is discretised over the
levels of the data, so that the bound is one on the probability of the data, as a diffusion model's is.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..kernels import Noise, Stream, centre, decoder_nll, gaussian_log_ratio, reparameterize
from ..vlb import Objective, Vlb
from .base import ImageConfig, Model
from .bottleneck_vae import BottleneckVAEConfig, build_vae_networks, check_vae_network
from .vae_networks import ConvVAEConfig, Gaussian

ACTIVE = 0.01  # variance over the data above which the mean of a latent says something (Burda et al. 2016)


@dataclass(frozen=True)
class HVAEConfig(ImageConfig):
    """What a (hierarchical) VAE is made of.

    Args:
        shape, levels: the data, see `ImageConfig`; labels and told augmentation are not for this model.
        depth: number of latents, T; 1 is the VAE.
        latent: dimensions of each latent.
        hidden: width of the networks between two latents.
        network: encoder and decoder between the images and z_1: a `ConvVAEConfig`, or a `BottleneckVAEConfig` for those
            of DiffuseVAE's paper.
        beta: weight of all terms but the reconstruction in training (Higgins et al. 2017).
        free_bits: nats of each level's term below which training does not push it, on average over the batch (Kingma
            et al. 2016).
    """

    depth: int = 1
    latent: int = 16
    hidden: int = 128
    network: ConvVAEConfig | BottleneckVAEConfig = field(default_factory=ConvVAEConfig)
    beta: float = 1.0
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes or self.augmented:
            raise ValueError(f"HVAEConfig: classes {self.classes}, augmented {self.augmented}; allowed: 0 and False")
        if min(self.depth, self.latent, self.hidden) < 1:
            raise ValueError(
                f"HVAEConfig: depth {self.depth}, latent {self.latent}, hidden {self.hidden}; "
                "allowed: numbers of at least 1"
            )
        if not self.beta >= 0.0 or not self.free_bits >= 0.0:
            raise ValueError(f"HVAEConfig: beta {self.beta}, free_bits {self.free_bits}; allowed: numbers >= 0")
        check_vae_network("HVAEConfig", self.shape, self.latent, self.network)


class _Link(nn.Module):
    """From one latent to the Gaussian of the next: mean = z + change, so that an untrained link is a noisy copy."""

    def __init__(self, config: HVAEConfig) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(config.latent, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.hidden), nn.SiLU()
        )
        self.gaussian = Gaussian(config.hidden, config.latent)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        change, logvar = self.gaussian(self.hidden(z))
        return z + change, logvar


@dataclass(frozen=True)
class Pass:
    """One draw of the chain: z_1 .. z_T, and its terms in nats, each [B].

    recon: -log p(x | z_1); levels: for t = 1 .. T - 1 the log ratio log q(z_t | z_{t-1}) - log p(z_t | z_{t+1}), for
    t = T the KL of q(z_T | z_{T-1}) to N(0, I).
    """

    latents: list[Tensor]
    recon: Tensor
    levels: list[Tensor]


class HVAE(Model):
    """A chain of Gaussian latents with learned means and variances, in both directions.

    The bound, -log p(x) <= recon + prior + diffusion, has the top level's KL as its prior term and the log ratios of
    the levels between as its diffusion term. Only the top has an analytic KL: z_{t+1} depends on z_t, so the level t
    contributes log q(z_t | z_{t-1}) - log p(z_t | z_{t+1}) at the latents drawn, which may be negative.
    """

    kind = "hvae"
    config: HVAEConfig

    def __init__(self, config: HVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = build_vae_networks(config.shape, config.latent, config.network)
        self.up = nn.ModuleList(_Link(config) for _ in range(config.depth - 1))
        self.down = nn.ModuleList(_Link(config) for _ in range(config.depth - 1))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def steps(self) -> int:
        """T, the number of latents, which is the model's own and cannot be changed."""
        return self.config.depth

    def intervals(self, where: str, steps: int | None) -> int | None:
        """Check T, which is the model's depth or None, which stands for it.

        Raises:
            ValueError: another number of steps.
        """
        if steps not in (None, self.config.depth):
            raise ValueError(
                f"{where}: steps is {steps!r} for a VAE of depth {self.config.depth}; allowed: its own, or None"
            )
        return None

    def draw(self, x: Tensor, noise: Noise, draw: int = 0, analytic: bool = True) -> tuple[list[Tensor], list[Tensor]]:
        """Draw z_1 .. z_T from q, and return them with the terms of the levels, see `Pass`.

        Args:
            x: data uint8 [B, C, H, W] in [0, levels).
            noise: of the latents; level t of draw k takes the stream `Stream.VAE` + 256 (k T + t - 1).
            draw: k, for repeated draws of the same images.
            analytic: whether the top level's term is its KL, or the log ratio at the latent drawn.

        Raises:
            TypeError, ValueError: images that do not fit.
        """
        self.check_images("HVAE", x)
        q = [self.encoder(centre(x, self.levels))]
        latents, kl = [], x.new_zeros(0)
        for t in range(self.config.depth):
            mean, logvar = q[t]
            z, kl = reparameterize(mean, logvar, noise.at(stream=Stream.VAE + 256 * (draw * self.config.depth + t)))
            latents.append(z)
            if t < len(self.up):
                q.append(self.up[t](z))
        below = []
        for t, link in enumerate(self.down):
            (mean_q, logvar_q), (mean_p, logvar_p) = q[t], link(latents[t + 1])
            below.append(gaussian_log_ratio(latents[t], mean_q, logvar_q, mean_p, logvar_p))
        if not analytic:
            mean_q, logvar_q = q[-1]
            standard = torch.zeros_like(mean_q)
            kl = gaussian_log_ratio(latents[-1], mean_q, logvar_q, standard, standard)
        return latents, [*below, kl]

    def walk(self, x: Tensor, noise: Noise, draw: int = 0, analytic: bool = True) -> Pass:
        """Draw z_1 .. z_T from q and return them with all terms of the bound; arguments and errors as in `draw`."""
        latents, levels = self.draw(x, noise, draw, analytic)
        mean, logvar = self.decoder(latents[0])
        return Pass(latents, decoder_nll(x, mean, logvar, self.levels), levels)

    def vlb(
        self,
        x: Tensor,
        noise: Noise,
        steps: int | None = None,
        labels: Tensor | None = None,
        total: int | None = None,
    ) -> Vlb:
        """Return one unbiased draw of the bound for every image, in nats; see the class for its terms.

        Args:
            x: data uint8 [B, C, H, W] in [0, levels).
            noise: what all draws derive from; sample b is ``noise.first_sample + b``.
            steps, labels: its depth or None, and None: a VAE has one chain and no labels.
            total: not used; a diffusion model spreads its times over so many samples.

        Raises:
            TypeError, ValueError: images that do not fit, steps or labels.
        """
        self.intervals("vlb", steps)
        self.check_labels("vlb", labels, len(x))
        drawn = self.walk(x, noise)
        return Vlb(drawn.recon, drawn.levels[-1], _sum(drawn.levels[:-1], drawn.recon))

    def objective(
        self,
        x: Tensor,
        noise: Noise,
        labels: Tensor | None = None,
        loss: str = "elbo",
        steps: int | None = None,
        stratified: bool = True,
    ) -> Objective:
        """Return the training loss of every image, and the bound that the same draws estimate, in nats.

        The loss is recon + beta Σ_t max(free_bits, mean over the batch of level t's term); ``stratified`` is of no
        use here.

        Raises:
            TypeError, ValueError: images that do not fit, steps or labels, a loss but ``"elbo"``.
        """
        if loss != "elbo":
            raise ValueError(f"objective: loss is {loss!r} for a VAE; allowed: elbo (and beta in its configuration)")
        self.intervals("objective", steps)
        self.check_labels("objective", labels, len(x))
        drawn, config = self.walk(x, noise), self.config
        pushed = drawn.levels
        if config.free_bits:
            # Below the floor a level's term is a constant; above it the batch mean has every sample's own gradient.
            pushed = [torch.where(level.mean() > config.free_bits, level, config.free_bits) for level in pushed]
        vlb = Vlb(drawn.recon, drawn.levels[-1], _sum(drawn.levels[:-1], drawn.recon))
        return Objective(drawn.recon + config.beta * _sum(pushed, drawn.recon), vlb.detach())

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, noise: Noise, samples: int = 64) -> Tensor:
        """Return an importance-weighted lower bound on log p(x) in nats, float64 [B] (Burda et al. 2016).

        log of the mean over k draws of p(x, z_1 .. z_T) / q(z_1 .. z_T | x); its expectation rises with k towards
        log p(x).

        Raises:
            TypeError, ValueError: images that do not fit, fewer than one sample.
        """
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"log_likelihood: samples is {samples!r}; allowed: an integer >= 1")
        weights = []
        for k in range(samples):
            drawn = self.walk(x, noise, draw=k, analytic=False)
            weights.append(-(drawn.recon.double() + _sum(drawn.levels, drawn.recon).double()))
        return torch.logsumexp(torch.stack(weights), 0) - math.log(samples)

    @torch.no_grad()
    def encode(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the mean and log-variance of every level, [B, latent] each, along the means; from x uint8 [B, ...].

        Raises:
            TypeError, ValueError: images that do not fit.
        """
        self.check_images("encode", x)
        q = [self.encoder(centre(x, self.levels))]
        for link in self.up:
            q.append(link(q[-1][0]))
        return q

    @torch.no_grad()
    def decode(self, z: Tensor, noise: Noise | None = None, from_level: int = 1) -> Tensor:
        """Turn z_t [B, latent] of level t = ``from_level`` into images of levels, uint8 [B, C, H, W].

        The latents below are drawn with ``noise``, or are the means where it is None; the image is the most likely one.

        Raises:
            ValueError: a latent of another size, a level outside 1 .. depth.
        """
        config = self.config
        if z.dim() != 2 or z.shape[1] != config.latent or not 1 <= from_level <= config.depth:
            raise ValueError(
                f"decode: z has shape {tuple(z.shape)}, level {from_level}; "
                f"allowed: [B, {config.latent}], levels 1 .. {config.depth}"
            )
        return self.nearest_level(self.decoder(self.descend(z, noise, from_level))[0])

    def descend(self, z: Tensor, noise: Noise | None = None, from_level: int | None = None) -> Tensor:
        """Take z_t [B, latent] of a level (the top by default) down to z_1: drawn from p, or along its means."""
        for t in range((from_level or self.config.depth) - 2, -1, -1):
            mean, logvar = self.down[t](z)
            z = mean if noise is None else reparameterize(mean, logvar, noise.at(stream=Stream.VAE + 256 * t))[0]
        return z

    def prior_latents(self, count: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Draw z_1 [count, latent] from the model: z_T from N(0, temperature²), the rest of the chain from p."""
        top = noise.at(stream=Stream.VAE + 256 * (self.config.depth - 1))
        return self.descend(temperature * top.normal((count, self.config.latent), device=self.device), noise)


@torch.no_grad()
def active_units(model: HVAE, images: Tensor, batch_size: int = 512) -> list[int]:
    """Number of dimensions of every level whose mean varies over the images by more than `ACTIVE` (Burda et al. 2016).

    A level of which none does has collapsed onto its prior.
    """
    parts = [[mean.double() for mean, _ in model.encode(batch)] for batch in images.split(batch_size)]
    levels = [torch.cat(level) for level in zip(*parts, strict=True)]
    return [int((means.var(0, correction=0) > ACTIVE).sum()) for means in levels]


@torch.no_grad()
def level_nats(model: HVAE, images: Tensor, noise: Noise, batch_size: int = 512) -> list[float]:
    """Term of every level in the bound, the mean over images of one draw each, in nats; the lowest level first."""
    index = range(0, len(images), batch_size)
    drawn = [model.draw(images[i : i + batch_size], noise.at(first_sample=i))[1] for i in index]
    return [float(torch.cat(terms).double().mean()) for terms in zip(*drawn, strict=True)]


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    """Sum of terms [B] each; zeros where there are none."""
    return torch.stack(terms).sum(0) if terms else torch.zeros_like(like)
