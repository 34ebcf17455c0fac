"""Sampling: one call for every model of the family.

Image i of a request is a function of (seed, i): its initial latent and its step noise are bit-identical whatever the
batch size, and images are equal up to the rounding of the network, which may differ between batch sizes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import load
from .kernels import Noise
from .models import HVAE, DiffuseVAE, DiffusionModel
from .models.base import evaluating
from .plots import to_pil, to_uint8
from .samplers import Plan
from .sampling_loop import SamplingError, sample_latents, sampling_plan

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
) -> Any:
    """Draw ``n`` images from a model.

    Args:
        model: a model, a checkpoint folder, a run's folder, or the name of an embedded model (``"digits"``).
        n: number of images, >= 0.
        steps: sampler steps, by default 250; >= 1, or >= 2 for a DDPM, whose decoder takes one. Heun asks the network
            twice a step. This and the other options of samplers are not for a VAE, whose chain is its own.
        sampler: ``"ancestral"`` (the default), ``"ddim"``, ``"dpm-solver"`` (DPM-Solver++(2M)) or ``"heun"``.
        seed: image i is a function of (seed, i), in [0, 2**64).
        batch_size: images per call of the network, >= 1; it changes no image beyond rounding.
        labels: one class for all, or one per image (integers), for a class-conditional model; None for unconditional.
        guidance: classifier-free guidance weight, with labels: 1 is the conditional model, more is more typical.
        eta: of DDIM, 0 (the default, deterministic) to 1 (ancestral).
        grid: steps even in t (``"time"``, the default), in sqrt(t) (``"quadratic"``) or in gamma (``"gamma"``).
        temperature: factor on the initial latent's deviation, > 0; latent_temperature: that of a DiffuseVAE's z.
        variance: of the ancestral steps, ``"small"``, ``"large"`` or ``"learned"``; by default the model's own.
        clip: whether x_hat is clipped to [-1, 1] at every step, as DDPM's samplers do.
        output: ``"uint8"`` scaled to 0..255, ``"levels"`` raw integer levels, ``"float"`` float32 in [-1, 1], each a
            tensor [n, C, H, W] on the CPU; ``"pil"`` a list of Pillow images.
        device: where to run; a model that was given is moved there and stays. By default where the model is.
        progress: whether to show a progress bar on stderr.

    Raises:
        TypeError, ValueError: an argument out of range, saying what is allowed.
        CheckpointError: a model that cannot be loaded.
        SamplingError: a result that is not finite.
    """
    _check(n, batch_size, output, clip, temperature=temperature, latent_temperature=latent_temperature)
    Noise(seed)  # checks it
    model = model if isinstance(model, nn.Module) else load(model)
    if device is not None:
        model = model.to(device)
    options = _Options(steps, sampler, labels, guidance, eta, grid, variance, clip, temperature, latent_temperature)
    source = _source(model, n, options)
    return _present(_draw(source, n, seed, batch_size, progress), source.model.levels, output)


@dataclass(frozen=True)
class _Options:
    """What was asked for; None where the model's default is wanted."""

    steps: int | None
    sampler: str | None
    labels: Any
    guidance: float | None
    eta: float | None
    grid: str | None
    variance: str | None
    clip: bool
    temperature: float
    latent_temperature: float

    def plan(self, model: DiffusionModel) -> Plan:
        """The plan of a diffusion model or stage, with the defaults filled in."""
        steps = 250 if self.steps is None else self.steps
        sampler, grid = (
            "ancestral" if self.sampler is None else self.sampler,
            "time" if self.grid is None else self.grid,
        )
        return sampling_plan(model, steps, sampler, self.eta, grid, self.variance)

    def refuse(self, why: str, *names: str) -> None:
        """Raise for the first of the options that is set."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value is not False:
                raise ValueError(f"sample: {name} is {value!r} for {why}; allowed: None")


def _source(model: nn.Module, n: int, options: _Options) -> "_Chain | _Diffusion | _Refined":
    if options.latent_temperature != 1.0 and not isinstance(model, DiffuseVAE):
        raise ValueError(
            f"sample: latent_temperature is {options.latent_temperature}; allowed: 1.0 but for a DiffuseVAE"
        )
    if isinstance(model, HVAE):
        names = ("steps", "sampler", "labels", "guidance", "eta", "grid", "variance", "clip")
        options.refuse("a VAE, which has one chain and no labels", *names)
        return _Chain(model, options.temperature)
    if isinstance(model, DiffuseVAE):
        options.refuse("a DiffuseVAE, which has no labels", "labels", "guidance")
        walk = options.plan(model.refiner)
        return _Refined(model, walk, options.temperature, options.latent_temperature, options.clip)
    if isinstance(model, DiffusionModel):
        labels = _labels(model, options.labels, n, options.guidance)
        return _Diffusion(model, options.plan(model), labels, options.guidance, options.temperature, options.clip)
    raise TypeError(f"sample: model is a {type(model).__name__}; allowed: a model of fastdiff.models")


@dataclass(frozen=True)
class _Diffusion:
    model: DiffusionModel
    walk: Plan
    labels: Tensor | None
    guidance: float | None
    temperature: float
    clip: bool

    @property
    def calls(self) -> int:
        return len(self.walk.gamma)

    def batch(self, first: int, count: int, noise: Noise, bar: Any) -> Tensor:
        chosen = None if self.labels is None else self.labels[first : first + count].to(self.model.device)
        clip = 1.0 if self.clip else None
        return self.model.decode(
            sample_latents(self.model, count, self.walk, noise, chosen, self.guidance, self.temperature, clip, bar)
        )


@dataclass(frozen=True)
class _Refined:
    model: DiffuseVAE
    walk: Plan
    temperature: float
    latent_temperature: float
    clip: bool

    @property
    def calls(self) -> int:
        return len(self.walk.gamma)

    def batch(self, first: int, count: int, noise: Noise, bar: Any) -> Tensor:
        with torch.no_grad():
            z_1 = self.model.vae.prior_latents(count, noise.to(self.model.device), self.latent_temperature)
        refiner = self.model.refiner.on(self.model.picture(z_1))
        clip = 1.0 if self.clip else None
        return refiner.decode(sample_latents(refiner, count, self.walk, noise, None, None, self.temperature, clip, bar))


@dataclass(frozen=True)
class _Chain:
    model: HVAE
    temperature: float
    calls: int = 1

    def batch(self, first: int, count: int, noise: Noise, bar: Any) -> Tensor:
        bar.update()
        return self.model.generate(count, noise, self.temperature)


def _draw(source: "_Chain | _Diffusion | _Refined", n: int, seed: int, batch_size: int, progress: bool) -> Tensor:
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


def _labels(model: DiffusionModel, labels: Any, n: int, guidance: float | None) -> Tensor | None:
    if not model.classes:
        for name, value in (("guidance", guidance), ("labels", labels)):
            if value is not None:
                raise ValueError(f"sample: {name} for a model that is unconditional; allowed: None")
    if labels is None:
        if guidance is not None:
            raise ValueError(f"sample: guidance is {guidance} without labels; allowed: guidance with labels")
        return None
    number = isinstance(guidance, (int, float)) and not isinstance(guidance, bool)
    if guidance is not None and not (number and math.isfinite(guidance)):
        raise ValueError(f"sample: guidance is {guidance!r}; allowed: a finite number, or None")
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"sample: labels are {labels!r}; allowed: one integer, or n = {n} of them") from error
    tensor = tensor.long() if not tensor.numel() else tensor
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"sample: labels have dtype {tensor.dtype}; allowed: integers")
    if tensor.dim() not in (0, 1) or (tensor.dim() == 1 and len(tensor) != n):
        raise ValueError(f"sample: labels have shape {tuple(tensor.shape)}; allowed: one integer, or n = {n} of them")
    tensor = tensor.long().expand(n)
    if n and not 0 <= int(tensor.min()) <= int(tensor.max()) < model.classes:
        given = f"{int(tensor.min())} .. {int(tensor.max())}"
        raise ValueError(f"sample: labels lie in {given}; allowed: 0 .. {model.classes - 1}")
    return tensor


def _present(levels_image: Tensor, levels: int, output: str) -> Any:
    if output == "levels":
        return levels_image
    if output == "float":
        return levels_image.float() * (2.0 / (levels - 1)) - 1.0
    images = to_uint8(levels_image, levels)
    return images if output == "uint8" else [to_pil(image) for image in images]
