"""Commands on images and latents: ``reconstruct`` and ``mixture``."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from ..checkpoint import load
from ..datasets import check_fit, load_dataset
from ..latent_mixture import (
    LatentMixture,
    MixtureError,
    draw_latents,
    fit_latents,
    fitted_to,
    is_mixture,
    scikit_learn,
)
from ..models import HVAE, DiffuseVAE, Refined, Restorer
from ..plots import grid, to_uint8
from ..reconstruction import psnr, reconstruct
from .arguments import check_picture, default_device, parse_degradation

Name = tyro.conf.Positional


@dataclass
class Reconstruct:
    """Write held-out images, what is left of them, and what a model makes of that; print PSNR."""

    model: Name[str]
    """Run folder or checkpoint folder of a VAE, a DiffuseVAE or a restorer."""
    n: int = 12
    """Number of images."""
    degradation: str | None = None
    """What to restore from: down-2, down-4 or noise-0.5, for instance; a restorer has its own."""
    data: str = "digits"
    """Data set whose held-out images are taken."""
    steps: int | None = None
    """Sampler steps of the second stage, by default 250; a VAE has none."""
    sampler: str | None = None
    """ancestral (the default), ddim, dpm-solver or heun."""
    seed: int = 0
    """Of the degradation's noise and of the samples."""
    out: Path = Path("reconstructions.png")
    """Picture to write."""

    def run(self) -> int:
        """Reconstruct, print and draw."""
        if self.n < 1:
            raise ValueError(f"reconstruct: n is {self.n}; allowed: an integer >= 1")
        check_picture(self.out)
        degradation = None if self.degradation is None else parse_degradation(self.degradation)
        model: Any = load(self.model).to(default_device())
        data = load_dataset(self.data)
        check_fit(model, data)
        if self.n > len(data.test_images):
            raise ValueError(
                f"reconstruct: n is {self.n}; allowed: at most {len(data.test_images)}, the held-out images"
            )
        images = data.test_images[: self.n]
        asked = {"steps": self.steps, "sampler": self.sampler}
        options: Any = {name: value for name, value in asked.items() if value is not None}
        if isinstance(model, Refined):
            options["progress"] = True
        result = reconstruct(model, images, degradation, seed=self.seed, **options)
        rows, names = [to_uint8(images, data.levels)], ["the images", "what the model made of them"]
        if result.picture is not None:
            degraded = degradation is not None or isinstance(model, Restorer)
            names.insert(1, "the degraded images" if degraded else "the VAE's pictures")
            print(_psnr(names[1], psnr(images, result.picture, data.levels)))
            rows.append(to_uint8(model.level(result.picture), data.levels))
        print(_psnr(names[-1], psnr(images, result.images, data.levels)))
        rows.append(to_uint8(result.images, data.levels))
        grid(torch.cat(rows), columns=len(images)).save(self.out)
        print(f"wrote {self.out} ({len(images)} columns; rows: {', '.join(names)})")
        return 0


def _psnr(name: str, values: Tensor) -> str:
    error = f" ± {float(values.std()) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"PSNR of {name}: {float(values.mean()):.2f}{error} dB"


@dataclass
class Mixture:
    """Fit Gaussian mixtures to a VAE's latents of the training images, and keep the best on the held-out ones."""

    model: Name[str]
    """Run folder or checkpoint folder of a VAE or a DiffuseVAE."""
    components: str = "1,2,5,10,20"
    """Numbers of components to try, separated by commas."""
    data: str = "digits"
    """Data set that the model was trained on."""
    seed: int = 0
    """Of the latents that are drawn and of the fits."""
    out: Path = Path("mixture")
    """Folder to write; `fastdiff sample MODEL --mixture FOLDER` draws from it."""

    def run(self) -> int:
        """Fit, print log densities and write the mixture."""
        parts = self.components.split(",")
        if not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
            raise ValueError(
                f"mixture: components are {self.components!r}; allowed: integers >= 1, separated by commas"
            )
        scikit_learn()  # asks for it before the work
        if self.out.exists() and not is_mixture(self.out):
            raise ValueError(f"mixture: {self.out} exists and is no mixture; allowed: a new folder, or a mixture's")
        if not os.access(self.out.parent, os.W_OK):
            raise ValueError(f"mixture: the folder {self.out.parent} cannot be written; allowed: one that can")
        model: Any = load(self.model).to(default_device())
        vae = model.vae if isinstance(model, DiffuseVAE) else model
        if not isinstance(vae, HVAE):
            raise ValueError(f"mixture: model is a {model.kind}; allowed: a VAE or a DiffuseVAE")
        data = load_dataset(self.data)
        check_fit(vae, data)
        if max(map(int, parts)) > len(data.train_images):
            raise ValueError(
                f"mixture: components are {self.components!r}; allowed: at most {len(data.train_images)}, the images"
            )
        held_out = draw_latents(vae, data.test_images, self.seed)
        latents = draw_latents(vae, data.train_images, self.seed)
        print(f"mean log density of the latents z_1 of {data.name}, in nats")
        print(f"{'components':>10}  {'training':>9}  {'held-out':>9}")
        prior = -math.inf  # of a chain deeper than one z_1 has another prior
        if vae.config.depth == 1:
            prior = float(torch.distributions.Normal(0.0, 1.0).log_prob(held_out.double()).sum(1).mean())
            print(f"{'N(0, 1)':>10}  {'':>9}  {prior:9.3f}", flush=True)
        best: tuple[float, LatentMixture] | None = None
        for number in sorted({int(part) for part in parts}):
            try:
                mixture = fit_latents(latents, number, self.seed, fitted_to(vae))
            except MixtureError as error:
                print(f"{number:>10}  {error}", flush=True)
                continue
            nats = float(mixture.log_density(held_out).mean())
            print(f"{number:>10}  {(mixture.fitted_to or {})['nats']:9.3f}  {nats:9.3f}", flush=True)
            if best is None or nats > best[0]:
                best = nats, mixture
        if best is None:
            raise MixtureError(f"mixture: none of {self.components} could be fitted; allowed: other numbers")
        if best[0] < prior:
            raise MixtureError(
                f"mixture: the best is worse on the held-out latents than the prior; allowed: other components than "
                f"{self.components}"
            )
        best[1].save(self.out)
        print(f"wrote {self.out} ({best[1].components} components)")
        return 0
