"""DiffuseVAE (Pandey et al. 2022, arXiv:2201.00308): a conditional DDPM refines the images of a VAE.

The first stage, a (hierarchical) VAE, gives cond = E[x | z]. It is trained before and frozen. The second stage is the
`ConditionalDDPM`, in formulation 1 or 2. The bound

    -log p(x) <= E_{q(z|x)} [KL(q(z | x) || p(z)) + the bound of the second stage given cond(z)]

has no reconstruction term of the first stage, since p(x, z) = p(z) p(x | cond(z)).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..io.configuration import ConfigError, configuration, differences, field
from ..kernels import InvalidTypeError, InvalidValueError, Noise, to_unit_range
from .base import Model
from .conditional import ConditionalDDPM, ConditionalDDPMConfig
from .degradations import Degradation
from .requests import Latents, Request, Start
from .vae import HVAE, HVAEConfig


@configuration
class DiffuseVAEConfig(ConditionalDDPMConfig):
    """The configuration of a DiffuseVAE.

    Args:
        shape, ..., formulation: the second stage, see `ConditionalDDPMConfig`.
        vae: the first stage, of the same shape and levels.
    """

    vae: HVAEConfig = field()

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if (self.vae.shape, self.vae.levels) != (self.shape, self.levels):
            raise ConfigError(
                f"DiffuseVAEConfig: vae must have shape {self.shape} and {self.levels} levels, "
                f"got {self.vae.shape} and {self.vae.levels}"
            )


class DiffuseVAE(ConditionalDDPM):
    """A frozen VAE, and a conditional DDPM on its images; see the module for the bound.

    Args:
        config: the configuration.
        network: your own network of the second stage, see `DDPM`; its input has 2 C channels.
    """

    kind = "diffusevae"
    latent_variables = ("z", "x_T")
    config_class = DiffuseVAEConfig
    config: DiffuseVAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: DiffuseVAEConfig, network: nn.Module | None = None) -> None:
        super().__init__(config, network)
        self.vae = HVAE(config.vae)
        self.vae.requires_grad_(False)
        self.has_first_stage = False  # whether the VAE's weights come from a trained one or from a checkpoint

    def take_first_stage(self, vae: Model) -> None:
        if not isinstance(vae, HVAE):
            raise InvalidTypeError(f"first_stage must be a VAE, got a {vae.kind} model")
        if vae.config != self.config.vae:
            raise ConfigError(f"first_stage must have the configuration of the model's VAE: "
                              f"{differences(vae.config, self.config.vae)}")  # fmt: skip
        self.vae.load_state_dict(vae.state_dict())
        self.has_first_stage = True

    def check_trainable(self) -> None:
        if not self.has_first_stage:
            raise ConfigError(
                "a DiffuseVAE needs a trained first stage: take_first_stage(vae), or --first-stage FOLDER"
            )

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As `torch.nn.Module.load_state_dict`; the loaded weights include the first stage."""
        self.has_first_stage = True
        return super().load_state_dict(*arguments, **options)

    def train(self, mode: bool = True) -> "DiffuseVAE":
        """Set the mode of the second stage; the frozen first stage stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        return self

    @property
    def autoencoder(self) -> HVAE:
        return self.vae

    @torch.no_grad()
    def cond_from_latents(self, z_1: Tensor) -> Tensor:
        """Return cond = E[x | z_1] of the first stage, clipped to [-1, 1], float32 [B, C, H, W]."""
        return self.vae.decoder(z_1)[0].clamp(-1.0, 1.0)

    @torch.no_grad()
    def draw_cond(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draw z from q(z | x); return cond(z_1) [B, C, H, W] and KL(q(z | x) || p(z)), one draw in nats, [B]."""
        latents, layers = self.vae.sample_posterior(x, noise)
        return self.cond_from_latents(latents[0]), torch.stack(layers).sum(0)

    @property
    def sampling_options(self) -> frozenset[str]:
        return super().sampling_options | {"latents"}

    def prepare_cond(self, request: Request) -> Callable[[int, int], Tensor]:
        if request.cond is not None:
            if request.latents is not None:
                raise InvalidValueError("sample: latents must be None where cond is set, since no latent is drawn")
            return self.batches_of(self.check_cond(request.cond, request.n))
        latents = request.latents or Latents()
        self.vae.check_latents("sample", latents.z, request.n)

        def cond_of(first: int, count: int) -> Tensor:
            noise = Noise(request.seed, first_sample=first).to(self.device)
            return self.cond_from_latents(latents.draw(self.vae.prior_latents, first, count, noise))

        return cond_of

    def reconstruction_start(
        self, images: Tensor, degradation: Degradation | None, seed: int, batch_size: int
    ) -> Start:
        """Start from the first stage's reconstructions, or from degraded images in their place."""
        if degradation is not None:
            shown = degradation.upsample(degradation.of_levels(images, self.levels, seed))
        else:
            shown = self.edit_cond(images, batch_size)
        return Start(shown, cond=shown)

    def restoration_start(self, degraded: Tensor, batch_size: int) -> Start:
        """Start from the degraded images, in the place of the first stage's reconstructions."""
        self.check_images("restore", degraded, "images")
        shown = to_unit_range(degraded.cpu(), self.levels)
        return Start(shown, cond=shown)

    def edit_cond(self, images: Tensor, batch_size: int) -> Tensor:
        """Return the first stage's reconstructions, float32 [N, C, H, W] on the CPU."""
        means = self.vae.latent_means(images, batch_size)
        return torch.cat([self.cond_from_latents(z).cpu() for z in means])
