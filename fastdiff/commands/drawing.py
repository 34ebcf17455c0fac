"""Commands that draw pictures from a model: ``sample`` and ``interpolate``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ..checkpoint import load
from ..datasets import check_fit, load_dataset
from ..interpolation import strips
from ..models import HVAE
from ..plots import grid, to_uint8
from ..sample import sample
from .arguments import check_picture, default_device

Name = tyro.conf.Positional


@dataclass
class Sample:
    """Draw images from a model and write them as one PNG grid."""

    model: Name[str] = "digits"
    """Checkpoint folder, run folder, or embedded model."""
    n: int = 64
    """Number of images."""
    out: Path = Path("samples.png")
    """Picture to write."""
    steps: int | None = None
    """Sampler steps, by default 250; a VAE has none."""
    sampler: str | None = None
    """ancestral (the default), ddim, dpm-solver or heun."""
    eta: float | None = None
    """Of ddim: 0 is deterministic, 1 is ancestral."""
    grid: str | None = None
    """Where the steps are: even in time (the default), in gamma, or quadratic."""
    betas: tuple[float, float] | None = None
    """First and last of evenly spaced betas, such as 1e-6 0.8 with 10 steps, instead of a DDPM's own noise levels."""
    temperature: float = 1.0
    """Factor on the initial latent."""
    latent_temperature: float = 1.0
    """Factor on the latent of a DiffuseVAE's first stage."""
    mixture: Path | None = None
    """Mixture of latents (`fastdiff mixture`) that a VAE's or a DiffuseVAE's latent is drawn from."""
    variance: str | None = None
    """Of the ancestral sampler's steps: small, large or learned, instead of the model's own."""
    clip: bool = False
    """Clip the estimate of x to [-1, 1] at every step."""
    seed: int = 0
    """Image i is a function of the seed and i."""
    batch_size: int = 64
    """Images per call of the network."""
    label: int | None = None
    """Class of all images, for a class-conditional model."""
    guidance: float | None = None
    """Classifier-free guidance weight, with --label."""

    def run(self) -> int:
        """Sample, and write the picture."""
        if self.n < 1:
            raise ValueError(f"sample: n is {self.n}; allowed: an integer >= 1 for a picture")
        check_picture(self.out)
        images = sample(
            self.model, self.n, steps=self.steps, sampler=self.sampler, seed=self.seed, batch_size=self.batch_size,
            labels=self.label, guidance=self.guidance, eta=self.eta, grid=self.grid, temperature=self.temperature,
            latent_temperature=self.latent_temperature, betas=self.betas, mixture=self.mixture, variance=self.variance,
            clip=self.clip, progress=True, device=default_device(),
        )  # fmt: skip
        grid(images).save(self.out)
        print(f"wrote {self.out} ({self.n} images)")
        return 0


@dataclass
class Interpolate:
    """Write strips of images: a walk through one latent of a model while everything else is held."""

    model: Name[str]
    """Checkpoint folder, run folder, or embedded model: a VAE, a DiffuseVAE or a diffusion model."""
    vary: str = "latent"
    """latent (z of a VAE), noise (x_T), or class (z from one class's mean to the next's)."""
    rows: int = 6
    """Number of strips."""
    count: int = 10
    """Images per strip."""
    out: Path = Path("strips.png")
    """Picture to write."""
    steps: int | None = None
    """Sampler steps, by default 50; a VAE has none."""
    sampler: str | None = None
    """ancestral, ddim (the default), dpm-solver or heun."""
    seed: int = 0
    """Of the ends of the walks, and of what they share."""
    data: str = "digits"
    """Labelled data set, for --vary class."""

    def run(self) -> int:
        """Render the strips, and write the picture."""
        check_picture(self.out)
        model: Any = load(self.model).to(default_device())
        data = load_dataset(self.data) if self.vary == "class" else None
        if data is not None:
            check_fit(model, data)
        for name in ("steps", "sampler"):
            if isinstance(model, HVAE) and getattr(self, name) is not None:
                raise ValueError(f"interpolate: {name} is {getattr(self, name)!r} for a VAE, which has none")
        steps, sampler = 50 if self.steps is None else self.steps, self.sampler or "ddim"
        images = strips(model, self.vary, self.rows, self.count, self.seed, steps, sampler, data)
        grid(to_uint8(images, model.levels), columns=self.count).save(self.out)
        print(f"wrote {self.out} ({self.rows} strips of {self.count} images)")
        return 0
