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
from .kernels import Noise, Stream, sampler_step
from .models import DiffusionModel
from .plots import to_pil, to_uint8
from .samplers import SAMPLERS, sampler_table
from .schedules import gamma_table

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
    output: str = "uint8",
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Any:
    """Draw ``n`` images from a model.

    Args:
        model: a model, a checkpoint folder, a run's folder, or the name of an embedded model (``"digits"``).
        n: number of images, >= 0.
        steps: sampler steps, >= 1.
        sampler: ``"ancestral"``, ``"ddim"`` or ``"dpm-solver"``.
        seed: image i is a function of (seed, i), in [0, 2**64).
        batch_size: images per call of the network, >= 1; it changes no image beyond rounding.
        labels: one class for all, or one per image (integers), for a class-conditional model; None for unconditional.
        guidance: classifier-free guidance weight, with labels: 1 is the conditional model, more is more typical.
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
    Noise(seed)  # checks it
    model = model if isinstance(model, nn.Module) else load(model)
    if not isinstance(model, DiffusionModel):
        raise TypeError(f"sample: model is a {type(model).__name__}; allowed: a diffusion model")
    if device is not None:
        model = model.to(device)
    label_tensor = _labels(model, labels, n, guidance)
    gamma = gamma_table(model.gamma, steps)
    table = sampler_table(sampler, gamma)
    images, training = [], model.training
    model.eval()
    try:
        calls = -(-n // batch_size) * steps
        with tqdm(total=calls, unit="step", desc=f"sampling {n} images", disable=not progress) as bar:
            for first in range(0, n, batch_size):
                part = slice(first, min(first + batch_size, n))
                chosen = None if label_tensor is None else label_tensor[part].to(model.device)
                noise = Noise(seed, first_sample=first)
                z_0 = sample_latents(model, part.stop - first, gamma, table, noise, chosen, guidance, bar)
                images.append(model.decode(z_0).cpu())
    finally:
        model.train(training)
    levels = torch.cat(images) if images else torch.empty(0, *model.shape, dtype=torch.uint8)
    return _present(levels, model.levels, output)


@torch.no_grad()
def sample_latents(
    model: DiffusionModel,
    count: int,
    gamma: Tensor,
    table: Tensor,
    noise: Noise,
    labels: Tensor | None = None,
    guidance: float | None = None,
    bar: Any = None,
) -> Tensor:
    """Run the sampler from z_1 ~ N(0, 1) to z_0, float32 [count, C, H, W].

    Args:
        model: has ``eps_hat(z_t, gamma, labels)``, ``shape`` and ``device``.
        gamma: float64 [steps + 1], gamma at t = 0 first; ``table``: its coefficients [steps, 7].
        noise: whose first_sample is the index of the batch's first image in the request.

    Raises:
        SamplingError: a latent that is not finite.
    """
    device = model.device
    stochastic, multistep = bool((table[:, 5] != 0).any()), bool((table[:, 4] != 0).any())
    noise, rows = noise.to(device), table.to(device)
    gamma_t = gamma.flip(0)[:-1].float().to(device)
    z = noise.at(stream=Stream.INITIAL).normal((count, *model.shape))
    x_hat = torch.zeros_like(z) if multistep else None
    eps = noise.at(step=0, stream=Stream.SAMPLER)  # its counter leads the loop: the host names no step
    for _ in range(len(rows)):
        number = gamma_t.index_select(0, eps.counter).expand(count)
        eps_hat = model.eps_hat(z, number, labels)
        uncond = model.eps_hat(z, number, None) if guidance is not None else None
        z, x_hat = sampler_step(
            z, eps_hat, rows, eps if stochastic else None, x_prev=x_hat, eps_hat_uncond=uncond, guidance=guidance,
            step=eps.counter, keep_x_hat=multistep,
        )  # fmt: skip
        eps.advance()
        if bar is not None:
            bar.update()
    if not torch.isfinite(z).all():
        raise SamplingError(f"a sample is not finite after {len(rows)} steps; the weights or the schedule are unsound")
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


def _labels(model: DiffusionModel, labels: Any, n: int, guidance: float | None) -> Tensor | None:
    if labels is None:
        if guidance is not None:
            raise ValueError(f"sample: guidance is {guidance} without labels; allowed: guidance with labels")
        return None
    if not model.classes:
        raise ValueError("sample: labels were given, but the model is unconditional; allowed: None")
    if not math.isfinite(1.0 if guidance is None else guidance):
        raise ValueError(f"sample: guidance is {guidance}; allowed: a finite number, or None")
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
