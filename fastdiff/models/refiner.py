"""A diffusion model that refines a picture: the second stage of DiffuseVAE (Pandey et al. 2022, arXiv:2201.00308).

The picture x_hat is a VAE's (`diffusevae`), or what is left of an image that is to be restored (`restorer`). In
formulation 1 it is a condition and nothing else. In formulation 2 the forward process is shifted by it,

    q(x_1 | x_0, x_hat) = N(sqrt(1 - beta_1) x_0 + x_hat, beta_1),
    q(x_t | x_{t-1}, x_hat) = N(sqrt(1 - beta_t) x_{t-1} + (1 - sqrt(1 - beta_t)) x_hat, beta_t),  t > 1,

which is an ordinary DDPM in y_t = x_t - x_hat for t >= 1, with y_0 = x_0; its prior is x_T ~ N(x_hat, 1).
"""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import Noise
from ..vlb import Objective, Vlb
from .base import ImageConfig, Model
from .ddpm import DDPM, DDPMConfig

FORMULATIONS = (1, 2)


@dataclass(frozen=True)
class RefinedConfig(ImageConfig):
    """What every model with a `Refiner` is made of, besides where the picture comes from.

    Args:
        shape, levels: the data, see `ImageConfig`; labels and told augmentation are not for these models.
        refiner: the diffusion model, of the same data.
        formulation: 1 or 2, see the module.
    """

    refiner: DDPMConfig = field(kw_only=True)
    formulation: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.formulation not in FORMULATIONS:
            raise ValueError(f"{name}: formulation is {self.formulation!r}; allowed: 1 or 2")
        if self.classes or self.augmented:
            raise ValueError(f"{name}: classes {self.classes}, augmented {self.augmented}; allowed: 0, False")
        self.check_part("refiner", self.refiner)

    def check_part(self, name: str, part: ImageConfig) -> None:
        """Check that a part is of this data.

        Raises:
            ValueError: another shape or other levels, or a part that is told labels.
        """
        if (part.shape, part.levels) != (self.shape, self.levels) or part.conditions:
            raise ValueError(
                f"{type(self).__name__}: {name} has shape {part.shape}, {part.levels} levels, {part.classes} classes, "
                f"augmented {part.augmented}; allowed: {self.shape}, {self.levels} levels, no classes, False"
            )


class Refiner(DDPM):
    """A DDPM whose network sees a picture x_hat beside the latent; `on` binds the picture.

    In formulation 2 the latents of all methods are y = x - x_hat, and ``offset`` says so to the sampling loop, which
    works in x.
    """

    pictures = 1
    x_hat: Tensor | None = None

    def __init__(self, config: DDPMConfig, formulation: int) -> None:
        super().__init__(config)
        self.formulation = formulation

    def on(self, x_hat: Tensor) -> "Refiner":
        """Return this model with the picture that it refines, float [B, C, H, W]; weights are shared."""
        bound = copy.copy(self)
        bound.x_hat = x_hat
        return bound

    @property
    def offset(self) -> Tensor | None:
        """x_hat where the chain is shifted by it, else None."""
        return self.x_hat if self.formulation == 2 else None

    def predict(self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As `DDPM.predict`, for the picture that `on` has bound.

        Raises:
            ValueError: no picture, or one of another shape than the latent.
        """
        if self.x_hat is None or self.x_hat.shape != z_t.shape:
            given = None if self.x_hat is None else tuple(self.x_hat.shape)
            raise ValueError(f"Refiner: a picture of shape {given}; allowed: {tuple(z_t.shape)}, bound by `on`")
        seen = z_t if self.offset is None else z_t + self.offset
        out = self.network(torch.cat([seen, self.x_hat], dim=1), self.time(gamma), None)
        return self.read(out, z_t, gamma)


class Refined(Model):
    """A picture x_hat of the data, and a `Refiner` on it. Subclasses give `picture_of`."""

    config: RefinedConfig

    def __init__(self, config: RefinedConfig) -> None:
        super().__init__()
        self.config = config
        self.refiner = Refiner(config.refiner, config.formulation)

    @property
    def steps(self) -> int:
        """T of the refiner."""
        return self.refiner.steps

    def intervals(self, where: str, steps: int | None) -> int | None:
        """Number of Gaussian steps of the refiner at T = ``steps``, checked."""
        return self.refiner.intervals(where, steps)

    @property
    def given_shape(self) -> tuple[int, int, int]:
        """Shape of what `fastdiff.sample` can be given for one image: here the picture itself."""
        return self.shape

    @property
    def given_limit(self) -> float:
        """Bound on the absolute value of what can be given; here there may be noise of any size on a picture."""
        return math.inf

    def picture_from(self, given: Tensor) -> Tensor:
        """Turn what was given, float [B, ...] of `given_shape`, into x_hat [B, C, H, W]."""
        return given

    def picture_of(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draw x_hat for x uint8 [B, C, H, W]: float [B, C, H, W]; and what its latents cost in the bound, nats [B]."""
        raise NotImplementedError

    def vlb(
        self,
        x: Tensor,
        noise: Noise,
        steps: int | None = None,
        labels: Tensor | None = None,
        total: int | None = None,
    ) -> Vlb:
        """Return one unbiased draw of the bound for every image, in nats.

        The prior term holds what the latents of the picture cost and the refiner's prior: KL(q(x_T | x, x_hat) ||
        N(x_hat, 1)) in formulation 2, the same number as KL(q(x_T | x) || N(0, 1)) in 1. Arguments as in
        `DiffusionModel.vlb`.
        """
        self.check_images("vlb", x)
        self.check_labels("vlb", labels, len(x))
        x_hat, latents = self.picture_of(x, noise)
        bound = self.refiner.on(x_hat).vlb(x, noise, steps, None, total)
        return Vlb(bound.recon, bound.prior + latents, bound.diffusion)

    def objective(
        self,
        x: Tensor,
        noise: Noise,
        labels: Tensor | None = None,
        loss: str = "elbo",
        steps: int | None = None,
        stratified: bool = True,
    ) -> Objective:
        """Return the refiner's training loss on pictures drawn for the images, as `DDPM.objective`."""
        self.check_images("objective", x)
        self.check_labels("objective", labels, len(x))
        x_hat, latents = self.picture_of(x, noise)
        goal = self.refiner.on(x_hat).objective(x, noise, None, loss, steps, stratified)
        return Objective(goal.loss, Vlb(goal.vlb.recon, goal.vlb.prior + latents, goal.vlb.diffusion))
