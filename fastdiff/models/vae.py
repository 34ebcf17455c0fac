"""The variational autoencoder (Kingma and Welling 2014) and the Markovian hierarchical one; the first has depth 1.

    q(z_1 .. z_T | x) = q(z_1 | x) Π_{t > 1} q(z_t | z_{t-1})
    p(x, z_1 .. z_T)  = p(x | z_1) Π_{t > 1} p(z_{t-1} | z_t) p(z_T)

Every conditional is a Gaussian with diagonal covariance, p(z_T) is N(0, I), and p(x | z_1) is discretised over the
levels of the data. So the bound is one on the probability of discrete data, as that of the diffusion models.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diffusion.bound import Objective, Vlb
from ..diffusion.loop import Callback, SamplingError
from ..diffusion.schedules import Schedule
from ..io.configuration import ConfigError, at_least, configuration, field
from ..kernels import (
    InvalidTypeError,
    InvalidValueError,
    Noise,
    Stream,
    decoder_nll,
    gaussian_log_ratio,
    reparameterize,
    to_unit_range,
)
from ..networks import BottleneckVAEConfig, ConvVAEConfig, LatentLink
from ..networks.dropout import set_dropout_noise
from .base import Model, evaluating
from .degradations import Degradation
from .image_data import ImageConfig
from .requests import Draw, Latents, Request, Start


@configuration
class HVAEConfig(ImageConfig):
    """The configuration of a (hierarchical) VAE.

    Args:
        shape, levels: the data, see `ImageConfig`. The model is unconditional: num_classes is 0, augmented is False.
        depth: number of layers of latents, T; 1 is the VAE.
        latent: dimensions of the latent of each layer.
        hidden: width of the networks between two layers.
        network: encoder and decoder between the images and z_1: a `ConvVAEConfig`, or a `BottleneckVAEConfig` for those
            of the DiffuseVAE paper.
        beta: weight of all terms but the reconstruction in the training loss (Higgins et al. 2017), >= 0.
        free_bits: nats per layer below which the term of a layer is not trained, on average over the batch (Kingma et
            al. 2016), >= 0.
    """

    depth: int = field(at_least(1), default=1)
    latent: int = field(at_least(1), default=16)
    hidden: int = field(at_least(1), default=128)
    network: ConvVAEConfig | BottleneckVAEConfig = field(factory=ConvVAEConfig)
    beta: float = field(at_least(0.0), default=1.0)
    free_bits: float = field(at_least(0.0), default=0.0)

    def __attrs_post_init__(self) -> None:
        if self.num_labels:
            raise ConfigError("HVAEConfig: num_classes must be 0 and augmented False, since a VAE is unconditional")
        self.network.check("HVAEConfig", self.shape, self.latent)


@dataclass(frozen=True)
class Terms:
    """One draw of the chain: z_1 .. z_T, and the terms of the bound in nats, each [B].

    recon: -log p(x | z_1). layers: for t = 1 .. T - 1 the log ratio log q(z_t | z_{t-1}) - log p(z_t | z_{t+1}), for
    t = T the KL of q(z_T | z_{T-1}) to N(0, I).
    """

    latents: list[Tensor]
    recon: Tensor
    layers: list[Tensor]

    @property
    def vlb(self) -> Vlb:
        """The bound: the top layer is the prior term, the layers between are the diffusion term."""
        return Vlb(self.recon, self.layers[-1], _sum(self.layers[:-1], self.recon))


class HVAE(Model):
    """A chain of Gaussian latents with learned means and variances in both directions.

    Only the top layer has an analytic KL: z_{t+1} depends on z_t, so layer t < T contributes
    log q(z_t | z_{t-1}) - log p(z_t | z_{t+1}) at the sampled latents, which may be negative.
    """

    kind = "hvae"
    latent_variables = ("z",)
    config_class = HVAEConfig
    config: HVAEConfig

    def __init__(self, config: HVAEConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = config.network.build(config.shape, config.latent)
        self.up = nn.ModuleList(LatentLink(config.latent, config.hidden) for _ in range(config.depth - 1))
        self.down = nn.ModuleList(LatentLink(config.latent, config.hidden) for _ in range(config.depth - 1))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def title(self) -> str:
        return "vae" if self.config.depth == 1 else self.kind

    @property
    def T(self) -> int:
        """The depth, the only number of steps that a VAE has."""
        return self.config.depth

    def check_T(self, where: str, T: int | None) -> int:
        """Return the depth; T must be the depth, or None."""
        if T not in (None, self.config.depth):
            raise InvalidValueError(f"{where}: T must be {self.config.depth}, the depth of the VAE, or None, got {T!r}")
        return self.config.depth

    # -------------------------------------------------------------------------------------------- bound and training

    def sample_posterior(
        self, x: Tensor, noise: Noise, repeat: int = 0, analytic: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Draw z_1 .. z_T from q; return them and the terms of the layers, see `Terms`.

        Args:
            x: data uint8 [B, C, H, W] in [0, levels).
            noise: source of the latents; layer t of repetition k takes the stream `Stream.VAE` + 256 (k T + t - 1).
            repeat: k, for repeated draws of the same images.
            analytic: whether the term of the top layer is its KL; otherwise it is the log ratio at the sampled latent.

        Raises:
            InvalidTypeError, InvalidValueError: images that do not fit the model.
        """
        self.check_images("HVAE", x)
        self.check_noise("HVAE", noise)
        q = [self.encoder(to_unit_range(x, self.levels))]
        latents, kl = [], x.new_zeros(0)
        for t in range(self.config.depth):
            mean, logvar = q[t]
            z, kl = reparameterize(mean, logvar, noise.at(stream=Stream.VAE + 256 * (repeat * self.config.depth + t)))
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

    def terms(self, x: Tensor, noise: Noise, repeat: int = 0, analytic: bool = True) -> Terms:
        """Draw z_1 .. z_T from q and return all terms of the bound; arguments and errors as in `sample_posterior`."""
        latents, layers = self.sample_posterior(x, noise, repeat, analytic)
        mean, logvar = self.decoder(latents[0])
        return Terms(latents, decoder_nll(x, mean, logvar, self.levels), layers)

    def vlb(
        self,
        x: Tensor,
        noise: Noise,
        T: int | None = None,
        labels: Tensor | None = None,
        total: int | None = None,
        proposal: Schedule | None = None,
    ) -> Vlb:
        """Return one unbiased draw of the bound for every image, in nats; see `Terms`.

        T is the depth or None, labels and proposal are None, and ``total`` is not used, since a VAE has no times.
        """
        self.check_T("vlb", T)
        if proposal is not None:
            raise InvalidValueError(f"vlb: proposal must be None for a {self.kind} model, which has no noise schedule")
        self.check_images("vlb", x)
        self.check_labels("vlb", labels, len(x))
        return self.terms(x, noise).vlb

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
        """Return the training loss of a batch, and the bound of the same draws, in nats.

        The loss is recon + beta Σ_t max(free_bits, mean over the batch of the term of layer t); ``loss`` must be
        ``"elbo"``. ``stratified`` and ``total`` are not used, since a VAE has no times.
        """
        if loss != "elbo":
            raise InvalidValueError(f"loss must be elbo for a VAE (its configuration has beta), got {loss!r}")
        self.check_T("forward", T)
        self.check_labels("forward", labels, len(x))
        self.check_noise("forward", noise)
        set_dropout_noise(self, noise)
        terms, config = self.terms(x, noise), self.config
        layers = terms.layers
        if config.free_bits:
            # Below free_bits the term of a layer is a constant; above it every sample keeps its own gradient.
            layers = [torch.where(layer.mean() > config.free_bits, layer, config.free_bits) for layer in layers]
        return Objective(terms.recon + config.beta * _sum(layers, terms.recon), terms.vlb.detach())

    def check_divisible(self) -> None:
        if self.config.free_bits:
            raise ConfigError(
                f"free_bits must be 0 where a batch is computed in parts (accumulate, several processes), since it "
                f"compares means over the whole batch, got {self.config.free_bits}"
            )

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, noise: Noise, samples: int = 64) -> Tensor:
        """Return an importance-weighted lower bound on log p(x) in nats, float64 [B] (Burda et al. 2016).

        log of the mean over ``samples`` draws of p(x, z_1 .. z_T) / q(z_1 .. z_T | x). Its expectation increases with
        the number of samples and tends to log p(x).

        Raises:
            InvalidTypeError, InvalidValueError: images that do not fit, samples < 1.
        """
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise InvalidValueError(f"log_likelihood: samples must be an integer >= 1, got {samples!r}")
        weights = []
        for repeat in range(samples):
            terms = self.terms(x, noise, repeat, analytic=False)
            weights.append(-(terms.recon.double() + _sum(terms.layers, terms.recon).double()))
        return torch.logsumexp(torch.stack(weights), 0) - math.log(samples)

    # -------------------------------------------------------------------------------------------- latents and images

    @property
    def autoencoder(self) -> "HVAE":
        return self

    @property
    def latent_size(self) -> int:
        return self.config.latent

    @torch.no_grad()
    def encode(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the mean and log-variance of every layer, [B, latent] each, given the means of the layers below.

        Args:
            x: data uint8 [B, C, H, W] in [0, levels).

        Raises:
            InvalidTypeError, InvalidValueError: images that do not fit the model.
        """
        self.check_images("encode", x)
        q = [self.encoder(to_unit_range(x, self.levels))]
        for link in self.up:
            q.append(link(q[-1][0]))
        return q

    @torch.no_grad()
    def decode(self, z: Tensor, noise: Noise | None = None, layer: int = 1) -> Tensor:
        """Return the most likely images of latents z [B, latent] of a layer, uint8 [B, C, H, W].

        Args:
            z: float [B, latent].
            noise: source of the latents of the layers below; None takes their means.
            layer: 1 .. depth.

        Raises:
            InvalidValueError: latents of another shape, or no such layer.
            SamplingError: the result is not finite.
        """
        config = self.config
        if not 1 <= layer <= config.depth:
            raise InvalidValueError(f"decode: layer must be in 1 .. {config.depth}, got {layer}")
        if z.dim() != 2 or z.shape[1] != config.latent:
            raise InvalidValueError(f"decode: z must have shape [B, {config.latent}], got {tuple(z.shape)}")
        return self._most_likely(self.decoder(self.descend(z, noise, layer))[0])

    def _most_likely(self, mean: Tensor) -> Tensor:
        if not torch.isfinite(mean).all():
            raise SamplingError("the sample is not finite; check the weights, the latents and their temperature")
        return self.nearest_level(mean)

    def descend(self, z: Tensor, noise: Noise | None = None, layer: int | None = None) -> Tensor:
        """Return z_1 for latents z [B, latent] of a layer (the top by default): drawn from p, or its means."""
        for t in range((layer or self.config.depth) - 2, -1, -1):
            mean, logvar = self.down[t](z)
            z = mean if noise is None else reparameterize(mean, logvar, noise.at(stream=Stream.VAE + 256 * t))[0]
        return z

    @torch.no_grad()
    def prior_latents(self, count: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Draw z_1 [count, latent] from the model: z_T from N(0, temperature² I), the other layers from p."""
        top = noise.at(stream=Stream.VAE + 256 * (self.config.depth - 1))
        return self.descend(temperature * top.normal((count, self.config.latent), device=self.device), noise)

    @torch.no_grad()
    def layer_nats(self, x: Tensor, noise: Noise) -> list[Tensor]:
        return self.sample_posterior(x, noise)[1]

    @torch.no_grad()
    def latent_means(self, images: Tensor, batch_size: int) -> list[Tensor]:
        """Return the means of q(z_1 | x) of images uint8 [N, C, H, W], batch by batch, on the model's device."""
        with evaluating(self):
            return [self.encode(batch.to(self.device))[0][0] for batch in images.split(batch_size)]

    # -------------------------------------------------------------------------------------------- sampling

    @property
    def sampling_options(self) -> frozenset[str]:
        return frozenset({"latents"})

    def check_latents(self, where: str, z: object, n: int) -> None:
        """Check latents: None, or finite floats [n, latent].

        Raises:
            InvalidTypeError, InvalidValueError: the latents do not fit.
        """
        if z is None:
            return
        if not isinstance(z, Tensor) or not z.is_floating_point():
            got = f"dtype {z.dtype}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
            raise InvalidTypeError(f"{where}: z must be a floating-point tensor, got {got}")
        if tuple(z.shape) != (n, self.config.latent):
            raise InvalidValueError(f"{where}: z must have shape ({n}, {self.config.latent}), got {tuple(z.shape)}")
        if not torch.isfinite(z).all():
            raise InvalidValueError(f"{where}: z must be finite")

    def prepare(self, request: Request) -> Draw:
        self.check_options(request)
        latents = request.latents or Latents()
        self.check_latents("sample", latents.z, request.n)

        def batch(first: int, count: int, callback: Callback | None) -> Tensor:
            noise = Noise(request.seed, first_sample=first).to(self.device)
            z_1 = latents.draw(self.prior_latents, first, count, noise)
            with torch.no_grad():
                return self._most_likely(request.execution.call(self.decoder)(z_1)[0])

        return Draw(1, batch)

    def reconstruction_start(
        self, images: Tensor, degradation: Degradation | None, seed: int, batch_size: int
    ) -> Start:
        """Start from the means of q(z_1 | x), of the images or of the nearest levels of the degraded images."""
        shown = None
        if degradation is not None:
            shown = degradation.upsample(degradation.of_levels(images, self.levels, seed))
            images = self.nearest_level(shown)
        return Start(shown, latents=Latents(z=torch.cat(self.latent_means(images, batch_size)).cpu()))

    def restoration_start(self, degraded: Tensor, batch_size: int) -> Start:
        """Start from the means of q(z_1 | degraded image)."""
        self.check_images("restore", degraded, "images")
        return self.reconstruction_start(degraded, None, 0, batch_size)


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    """Return the sum of terms [B] each; zeros if there are none."""
    return torch.stack(terms).sum(0) if terms else torch.zeros_like(like)
