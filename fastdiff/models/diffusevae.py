"""DiffuseVAE (Pandey et al. 2022, arXiv:2201.00308): a VAE draws a picture, a diffusion model on top of it refines it.

The first stage, a (hierarchical) VAE, gives x_hat = E[x | z]; it is trained before and frozen. The second stage is a
DDPM that sees x_hat beside its latent. In formulation 1 x_hat is a condition and nothing else. In formulation 2 the
forward process is shifted by it,

    q(x_1 | x_0, x_hat) = N(sqrt(1 - beta_1) x_0 + x_hat, beta_1),
    q(x_t | x_{t-1}, x_hat) = N(sqrt(1 - beta_t) x_{t-1} + (1 - sqrt(1 - beta_t)) x_hat, beta_t),  t > 1,

which is an ordinary DDPM in y_t = x_t - x_hat for t >= 1, with y_0 = x_0; its prior is x_T ~ N(x_hat, 1).

The bound, -log p(x) <= E_{q(z|x)} [KL(q(z | x) || p(z)) + the bound of the second stage given x_hat(z)], has no
reconstruction term of the first stage: p(x, z) = p(z) p(x | x_hat(z)).
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import Noise
from ..vlb import Objective, Vlb
from .base import ImageConfig, Model
from .ddpm import DDPM, DDPMConfig
from .hvae import HVAE, HVAEConfig

FORMULATIONS = (1, 2)


@dataclass(frozen=True)
class DiffuseVAEConfig(ImageConfig):
    """What a DiffuseVAE is made of.

    Args:
        shape, levels: the data, see `ImageConfig`; labels and told augmentation are not for this model.
        vae: the first stage.
        refiner: the second stage; both are of this data.
        formulation: 1 or 2, see the module.
    """

    vae: HVAEConfig = field(kw_only=True)
    refiner: DDPMConfig = field(kw_only=True)
    formulation: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.formulation not in FORMULATIONS:
            raise ValueError(f"DiffuseVAEConfig: formulation is {self.formulation!r}; allowed: 1 or 2")
        for name, part in (("vae", self.vae), ("refiner", self.refiner)):
            if (part.shape, part.levels) != (self.shape, self.levels) or part.classes or part.augmented:
                raise ValueError(
                    f"DiffuseVAEConfig: {name} has shape {part.shape}, {part.levels} levels, {part.classes} classes; "
                    f"allowed: {self.shape}, {self.levels} levels, no classes"
                )
        if self.classes or self.augmented:
            raise ValueError(f"DiffuseVAEConfig: classes {self.classes}, augmented {self.augmented}; allowed: 0, False")


class Refiner(DDPM):
    """A DDPM whose network sees a picture x_hat beside the latent; `on` binds the picture.

    In formulation 2 the latents of all methods are y = x - x_hat, and ``offset`` says so to the sampling loop, which
    works in x.
    """

    pictures = 1
    given: Tensor | None = None

    def __init__(self, config: DDPMConfig, formulation: int) -> None:
        super().__init__(config)
        self.formulation = formulation

    def on(self, x_hat: Tensor) -> "Refiner":
        """Return this model with the picture that it refines, float [B, C, H, W]; weights are shared."""
        bound = copy.copy(self)
        bound.given = x_hat
        return bound

    @property
    def offset(self) -> Tensor | None:
        """x_hat where the chain is shifted by it, else None."""
        return self.given if self.formulation == 2 else None

    def predict(self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As `DDPM.predict`, for the picture that `on` has bound.

        Raises:
            ValueError: no picture, or one of another shape than the latent.
        """
        if self.given is None or self.given.shape != z_t.shape:
            given = None if self.given is None else tuple(self.given.shape)
            raise ValueError(f"Refiner: a picture of shape {given}; allowed: {tuple(z_t.shape)}, bound by `on`")
        seen = z_t if self.offset is None else z_t + self.offset
        out = self.network(torch.cat([seen, self.given], dim=1), self.time(gamma), None)
        return self.read(out, z_t, gamma)


class DiffuseVAE(Model):
    """A frozen VAE and a `Refiner` on its pictures; see the module for the two formulations and the bound."""

    kind = "diffusevae"
    config: DiffuseVAEConfig

    def __init__(self, config: DiffuseVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = HVAE(config.vae)
        self.refiner = Refiner(config.refiner, config.formulation)
        self.vae.requires_grad_(False)

    def take_first_stage(self, vae: Model) -> None:
        """Copy a trained VAE's weights in.

        Raises:
            ValueError: a VAE of another configuration.
        """
        if not isinstance(vae, HVAE) or vae.config != self.config.vae:
            given = getattr(vae, "config", vae)
            raise ValueError(f"DiffuseVAE: the first stage is {given}; allowed: {self.config.vae}")
        self.vae.load_state_dict(vae.state_dict())

    def train(self, mode: bool = True) -> "DiffuseVAE":
        """Set the mode of the second stage; the frozen first stage stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        return self

    @property
    def steps(self) -> int:
        """T of the second stage."""
        return self.refiner.steps

    def intervals(self, where: str, steps: int | None) -> int | None:
        """Number of Gaussian steps of the second stage at T = ``steps``, checked."""
        return self.refiner.intervals(where, steps)

    def picture(self, z_1: Tensor) -> Tensor:
        """x_hat = E[x | z_1] of the first stage, clipped to [-1, 1], float [B, C, H, W]."""
        with torch.no_grad():
            return self.vae.decoder(z_1)[0].clamp(-1.0, 1.0)

    def encode_picture(self, x: Tensor, noise: Noise) -> tuple[Tensor, list[Tensor]]:
        """Draw z from q(z | x); return x_hat(z_1) and the terms of the levels of z, in nats, [B] each."""
        with torch.no_grad():
            drawn = self.vae.walk(x, noise)
            return self.picture(drawn.latents[0]), drawn.levels

    def vlb(
        self,
        x: Tensor,
        noise: Noise,
        steps: int | None = None,
        labels: Tensor | None = None,
        total: int | None = None,
    ) -> Vlb:
        """Return one unbiased draw of the bound for every image, in nats.

        The prior term holds the levels of z and the second stage's prior: KL(q(x_T | x, x_hat) || N(x_hat, 1)) in
        formulation 2, the same number as KL(q(x_T | x) || N(0, 1)) in 1. Arguments as in `DiffusionModel.vlb`.
        """
        self.check_images("vlb", x)
        self.check_labels("vlb", labels, len(x))
        x_hat, levels = self.encode_picture(x, noise)
        bound = self.refiner.on(x_hat).vlb(x, noise, steps, None, total)
        return Vlb(bound.recon, bound.prior + torch.stack(levels).sum(0), bound.diffusion)

    def objective(
        self,
        x: Tensor,
        noise: Noise,
        labels: Tensor | None = None,
        loss: str = "elbo",
        steps: int | None = None,
        stratified: bool = True,
    ) -> Objective:
        """Return the second stage's training loss on pictures of latents drawn from q(z | x), as `DDPM.objective`."""
        self.check_images("objective", x)
        self.check_labels("objective", labels, len(x))
        x_hat, levels = self.encode_picture(x, noise)
        goal = self.refiner.on(x_hat).objective(x, noise, None, loss, steps, stratified)
        bound = goal.vlb
        return Objective(goal.loss, Vlb(bound.recon, bound.prior + torch.stack(levels).sum(0), bound.diffusion))
