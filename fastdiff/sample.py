"""Sampling: one loop for every diffusion model and every sampler.

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
from .kernels import Noise, Stream, reparameterize, sampler_step
from .models import DiffusionModel
from .models.base import evaluating
from .plots import to_pil, to_uint8
from .samplers import SAMPLERS, VARIANCES, Plan, plan
from .schedules import GRIDS, gamma_table

OUTPUTS = ("uint8", "levels", "float", "pil")


class SamplingError(RuntimeError):
    """A sample that is not finite."""


def sample(
    model: nn.Module | str | Path,
    n: int,
    steps: int = 250,
    sampler: str = "ancestral",
    seed: int = 0,
    batch_size: int = 64,
    labels: Any = None,
    guidance: float | None = None,
    eta: float | None = None,
    grid: str = "time",
    temperature: float = 1.0,
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
        steps: sampler steps, >= 1, or >= 2 for a DDPM, whose decoder takes one. Heun asks the network twice a step.
        sampler: ``"ancestral"``, ``"ddim"``, ``"dpm-solver"`` (DPM-Solver++(2M)) or ``"heun"``.
        seed: image i is a function of (seed, i), in [0, 2**64).
        batch_size: images per call of the network, >= 1; it changes no image beyond rounding.
        labels: one class for all, or one per image (integers), for a class-conditional model; None for unconditional.
        guidance: classifier-free guidance weight, with labels: 1 is the conditional model, more is more typical.
        eta: of DDIM, 0 (the default, deterministic) to 1 (ancestral).
        grid: steps even in t (``"time"``), in sqrt(t) (``"quadratic"``) or in gamma (``"gamma"``).
        temperature: factor on the initial latent's deviation, > 0.
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
    _check(n, steps, sampler, batch_size, output)
    _check_options(grid, temperature, variance, clip)
    Noise(seed)  # checks it
    model = model if isinstance(model, nn.Module) else load(model)
    if not isinstance(model, DiffusionModel):
        raise TypeError(f"sample: model is a {type(model).__name__}; allowed: a diffusion model")
    if device is not None:
        model = model.to(device)
    label_tensor = _labels(model, labels, n, guidance)
    walk = sampling_plan(model, steps, sampler, eta, grid, variance)
    settings = (guidance, temperature, 1.0 if clip else None)
    images = _draw(model, n, walk, seed, batch_size, label_tensor, settings, progress)
    return _present(images, model.levels, output)


def _draw(
    model: DiffusionModel, n: int, walk: Plan, seed: int, batch_size: int, labels: Tensor | None,
    settings: tuple[float | None, float, float | None], progress: bool,
) -> Tensor:  # fmt: skip
    """All images of a request as levels, uint8 [n, C, H, W] on the CPU, batch by batch."""
    batches = [(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
    images = [torch.empty(0, *model.shape, dtype=torch.uint8)]
    calls = len(batches) * len(walk.gamma)
    title = f"sampling {n} images"
    with evaluating(model), tqdm(total=calls, unit="step", desc=title, disable=not progress) as bar:
        for first, end in batches:
            chosen = None if labels is None else labels[first:end].to(model.device)
            noise = Noise(seed, first_sample=first)
            images.append(model.decode(sample_latents(model, end - first, walk, noise, chosen, *settings, bar)).cpu())
    return torch.cat(images)


def sampling_plan(
    model: DiffusionModel,
    steps: int,
    sampler: str = "ancestral",
    eta: float | None = None,
    grid: str = "time",
    variance: str | None = None,
) -> Plan:
    """Return what `sample_latents` does for a model: `fastdiff.samplers.plan` on the model's schedule.

    Raises:
        ValueError: steps below 1 (2 for a decoder that asks the network), unknown names, eta or a variance that does
            not go with the sampler or the model.
    """
    if variance is not None and sampler != "ancestral":
        raise ValueError(f"sample: variance is {variance!r} for the sampler {sampler!r}; allowed: with ancestral")
    if variance == "learned" and model.variance != "learned":
        raise ValueError("sample: variance is 'learned' for a model that has not learned it; allowed: small, large")
    least = 1 + model.network_decoder
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
        raise ValueError(f"sample: steps is {steps!r}; allowed: an integer >= {least}")
    gamma = gamma_table(model.gamma, steps - model.network_decoder, grid)
    own = model.variance if sampler == "ancestral" else "small"
    return plan(sampler, gamma, eta, variance or own, to_x=model.network_decoder)


@torch.no_grad()
def sample_latents(
    model: DiffusionModel,
    count: int,
    walk: Plan,
    noise: Noise,
    labels: Tensor | None = None,
    guidance: float | None = None,
    temperature: float = 1.0,
    clip: float | None = None,
    bar: Any = None,
) -> Tensor:
    """Run a sampler from z_1 ~ N(0, temperature²) to its end, float32 [count, C, H, W].

    Args:
        model: has ``predict(z_t, gamma, labels)``, ``shape`` and ``device``.
        walk: the sampler's rows, see `sampling_plan`.
        noise: whose first_sample is the index of the batch's first image in the request.
        labels, guidance: int64 [count] and a weight, or None.
        temperature, clip: factor on z_1; bound on |x_hat|, or None.
        bar: a progress bar to move on, or None.

    Raises:
        SamplingError: a latent that is not finite.
    """
    device, table = model.device, walk.table.float()
    stochastic, multistep = bool((table[:, 5] != 0).any()), bool((table[:, 4] != 0).any())
    noise, rows, gamma = noise.to(device), table.to(device), walk.gamma.float().to(device)
    bounds = None if walk.log_variance is None else walk.log_variance.float().to(device)
    z = noise.at(stream=Stream.INITIAL).normal((count, *model.shape)).mul_(temperature)
    x_hat = torch.zeros_like(z) if multistep else None
    eps = noise.at(step=0, stream=Stream.SAMPLER)  # its counter leads the loop: the host names no step
    guidance = None if guidance == 1.0 else guidance  # the conditional model alone
    for _ in range(len(rows)):
        number = gamma.index_select(0, eps.counter).expand(count)
        eps_hat, fraction = model.predict(z, number, labels)
        uncond = model.eps_hat(z, number, None) if guidance is not None else None
        z, x_hat = sampler_step(
            z, eps_hat, rows, eps if stochastic else None, clip=clip, x_prev=x_hat, eps_hat_uncond=uncond,
            guidance=guidance, step=eps.counter, keep_x_hat=multistep,
        )  # fmt: skip
        if bounds is not None:
            if fraction is None:
                raise ValueError("sample_latents: a plan with learned variances for a model that has learned none")
            low, high = bounds.index_select(0, eps.counter).unbind(1)
            z, _ = reparameterize(z, torch.lerp(low, high, fraction), eps)  # the network's own deviation times eps
        eps.advance()
        if bar is not None:
            bar.update()
    if not torch.isfinite(z).all():
        raise SamplingError(
            f"a sample is not finite after {len(rows)} calls; the weights, the schedule, the temperature or the "
            "guidance are unsound"
        )
    return z


def _check(n: int, steps: int, sampler: str, batch_size: int, output: str) -> None:
    for name, value, least in (("n", n, 0), ("steps", steps, 1), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"sample: {name} is {value!r}; allowed: an integer >= {least}")
        if value < least:
            raise ValueError(f"sample: {name} is {value}; allowed: an integer >= {least}")
    if sampler not in SAMPLERS:
        raise ValueError(f"sample: unknown sampler {sampler!r}; allowed: {', '.join(SAMPLERS)}")
    if output not in OUTPUTS:
        raise ValueError(f"sample: unknown output {output!r}; allowed: {', '.join(OUTPUTS)}")


def _check_options(grid: str, temperature: float, variance: str | None, clip: bool) -> None:
    for name, value, allowed in (("grid", grid, GRIDS), ("variance", variance, (None, *VARIANCES))):
        if value not in allowed:
            raise ValueError(f"sample: unknown {name} {value!r}; allowed: {', '.join(filter(None, allowed))}")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise ValueError(f"sample: temperature is {temperature!r}; allowed: a finite number > 0")
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
