"""DiffuseVAE (Pandey et al. 2022, arXiv:2201.00308): a VAE draws a picture, a diffusion model on top of it refines it.

The first stage, a (hierarchical) VAE, gives x_hat = E[x | z]; it is trained before and frozen. The second stage is a
DDPM that sees x_hat beside its latent, in one of two formulations, see `refiner`.

The bound, -log p(x) <= E_{q(z|x)} [KL(q(z | x) || p(z)) + the bound of the second stage given x_hat(z)], has no
reconstruction term of the first stage: p(x, z) = p(z) p(x | x_hat(z)).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import differences
from ..kernels import Noise
from .base import Model
from .hvae import HVAE, HVAEConfig
from .refiner import Refined, RefinedConfig


@dataclass(frozen=True)
class DiffuseVAEConfig(RefinedConfig):
    """What a DiffuseVAE is made of.

    Args:
        shape, levels, refiner, formulation: see `RefinedConfig`.
        vae: the first stage, of the same data.
    """

    vae: HVAEConfig = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_part("vae", self.vae)


class DiffuseVAE(Refined):
    """A frozen VAE and a `Refiner` on its pictures; see the module for the bound."""

    kind = "diffusevae"
    has_first_stage = False  # whether the VAE's weights were taken from one that was trained, or loaded
    config: DiffuseVAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: DiffuseVAEConfig) -> None:
        super().__init__(config)
        self.vae = HVAE(config.vae)
        self.vae.requires_grad_(False)

    def take_first_stage(self, vae: Model) -> None:
        """Copy a trained VAE's weights in.

        Raises:
            ValueError: a VAE of another configuration.
        """
        if not isinstance(vae, HVAE):
            raise ValueError(f"DiffuseVAE: the first stage is a {type(vae).__name__}; allowed: a VAE")
        if vae.config != self.config.vae:
            raise ValueError(f"DiffuseVAE: the first stage has {differences(vae.config, self.config.vae)}")
        self.vae.load_state_dict(vae.state_dict())
        self.has_first_stage = True

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As `torch.nn.Module.load_state_dict`; what is loaded has its first stage."""
        self.has_first_stage = True
        return super().load_state_dict(*arguments, **options)

    def train(self, mode: bool = True) -> "DiffuseVAE":
        """Set the mode of the second stage; the frozen first stage stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        return self

    def picture(self, z_1: Tensor) -> Tensor:
        """x_hat = E[x | z_1] of the first stage, clipped to [-1, 1], float [B, C, H, W]."""
        with torch.no_grad():
            return self.vae.decoder(z_1)[0].clamp(-1.0, 1.0)

    def picture_of(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draw z from q(z | x); return x_hat(z_1), [B, C, H, W], and the nats of all levels of z, [B]."""
        with torch.no_grad():
            latents, levels = self.vae.draw(x, noise)
            return self.picture(latents[0]), torch.stack(levels).sum(0)
