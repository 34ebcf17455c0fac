"""Sampling: one call for every model of the family.

Image i of a request is a function of (seed, i): its initial latent and its step noise are bit-identical whatever the
batch size, and images are equal up to the rounding of the network, which may differ between batch sizes.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import load
from .kernels import Noise
from .latent_mixture import LatentMixture
from .models.base import evaluating
from .plots import to_pil, to_uint8
from .sampling_loop import SamplingError, sample_latents, sampling_plan
from .sampling_sources import Options, Source, source_of

__all__ = ["SamplingError", "sample", "sample_latents", "sampling_plan"]
OUTPUTS = ("uint8", "levels", "float", "pil")


def sample(
    model: nn.Module | str | Path,
    n: int,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    labels: Any = None,
    guidance: float | None = None,
    eta: float | None = None,
    grid: str | None = None,
    temperature: float = 1.0,
    latent_temperature: float = 1.0,
    variance: str | None = None,
    clip: bool = False,
    output: str = "uint8",
    device: torch.device | str | None = None,
    progress: bool = False,
    betas: tuple[float, float] | None = None,
    given: Tensor | None = None,
    mixture: LatentMixture | str | Path | None = None,
) -> Any:
    """Draw ``n`` images from a model.

    Args:
        model: a model, a checkpoint folder, a run's folder, or the name of an embedded model (``"digits"``).
        n: number of images, >= 0.
        steps: sampler steps, by default 250; >= 1, or >= 2 for a DDPM, whose decoder takes one. Heun asks the network
            twice a step. A VAE's chain is its own: it takes none of the samplers' options.
        sampler: ``"ancestral"`` (the default), ``"ddim"``, ``"dpm-solver"`` (DPM-Solver++(2M)) or ``"heun"``.
        seed: image i is a function of (seed, i), in [0, 2**64).
        batch_size: images per call of the network, >= 1; it changes no image beyond rounding.
        labels: one class for all, or one per image (integers), for a class-conditional model; None for unconditional.
        guidance: classifier-free guidance weight, with labels: 1 is the conditional model, more is more typical.
        eta: of DDIM, 0 (the default, deterministic) to 1 (ancestral).
        grid: steps even in t (``"time"``, the default), in sqrt(t) (``"quadratic"``) or in gamma (``"gamma"``).
        betas: (first, last) of the chain of betas to sample instead, with a DDPM, see `sampling_plan`.
        given: degraded images for a restorer, pictures for a DiffuseVAE, [n, ...]; levels, or floats as of `centre`.
        temperature: factor on the initial latent's deviation, > 0; latent_temperature: that of a DiffuseVAE's z.
        mixture: of latents, or its folder; z_1 of a VAE or DiffuseVAE is drawn from it, and no chain above z_1.
        variance: of the ancestral steps, ``"small"``, ``"large"`` or ``"learned"``; by default the model's own.
        clip: whether x_hat is clipped to [-1, 1] at every step, as DDPM's samplers do.
        output: ``"uint8"`` scaled to 0..255, ``"levels"`` raw integer levels, ``"float"`` float32 in [-1, 1], each a
            tensor [n, C, H, W] on the CPU; ``"pil"`` a list of Pillow images.
        device: where to run, by default where the model is; it stays there. progress: show a bar on stderr.

    Raises:
        TypeError, ValueError: an argument out of range, saying what is allowed.
        CheckpointError, SamplingError: a model or mixture that cannot be loaded; a result that is not finite.
    """
    _check(n, batch_size, output, clip, temperature=temperature, latent_temperature=latent_temperature)
    Noise(seed)  # checks it
    model = model if isinstance(model, nn.Module) else load(model)
    model = model if device is None else model.to(device)
    options = Options(
        steps, sampler, labels, guidance, eta, grid, betas, given, variance, clip, temperature, latent_temperature,
        mixture,
    )  # fmt: skip
    source = source_of(model, n, options)
    return _present(_draw(source, n, seed, batch_size, progress), source.model.levels, output)


def _draw(source: Source, n: int, seed: int, batch_size: int, progress: bool) -> Tensor:
    """All images of a request as levels, uint8 [n, C, H, W] on the CPU, batch by batch."""
    batches = [(first, min(batch_size, n - first)) for first in range(0, n, batch_size)]
    images = [torch.empty(0, *source.model.shape, dtype=torch.uint8)]
    total, title = len(batches) * source.calls, f"sampling {n} images"
    with evaluating(source.model), tqdm(total=total, unit="step", desc=title, disable=not progress) as bar:
        for first, count in batches:
            images.append(source.batch(first, count, Noise(seed, first_sample=first), bar).cpu())
    return torch.cat(images)


def _check(n: int, batch_size: int, output: str, clip: bool, **temperatures: float) -> None:
    for name, value, least in (("n", n, 0), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"sample: {name} is {value!r}; allowed: an integer >= {least}")
        if value < least:
            raise ValueError(f"sample: {name} is {value}; allowed: an integer >= {least}")
    if output not in OUTPUTS:
        raise ValueError(f"sample: unknown output {output!r}; allowed: {', '.join(OUTPUTS)}")
    for name, value in temperatures.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"sample: {name} is {value!r}; allowed: a finite number > 0")
    if not isinstance(clip, bool):
        raise TypeError(f"sample: clip is {clip!r}; allowed: True or False")


def _present(levels_image: Tensor, levels: int, output: str) -> Any:
    if output == "levels":
        return levels_image
    if output == "float":
        return levels_image.float() * (2.0 / (levels - 1)) - 1.0
    images = to_uint8(levels_image, levels)
    return images if output == "uint8" else [to_pil(image) for image in images]
