"""The calls that the cases make, in the API of fastdiff 0.1.0 as of commit 77a79e8.

This file can go when no commit of that API is compared any more.
"""

# ruff: noqa: F401, I001  (some imports are part of the interface; the modules are those of another commit)
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastdiff import checkpoint, kernels, models, presets, training
from fastdiff.datasets import digits
from fastdiff.evaluation import evaluate as _evaluate
from fastdiff.evaluation import evaluate_levels as evaluate_latents
from fastdiff.evaluation import evaluate_ode as _evaluate_ode
from fastdiff.frechet import fd_digits
from fastdiff.interpolation import strips
from fastdiff.kernels import Noise
from fastdiff.kernels import centre as to_unit_range
from fastdiff.latent_mixture import LatentMixture
from fastdiff.reconstruction import psnr, reconstruct
from fastdiff.sample import sample as _sample
from torch import Tensor, nn

KEYS = {"num_classes": "classes", "prediction": "head", "continuous_noise_conditioning": "continuous", "T": "steps"}
TRAIN_KEYS = {"max_steps": "steps", "T": "bound_steps"}
OPTIONS = {"spacing": "grid", "clip_denoised": "clip", "cond": "given"}
VALUES = {"epsilon": "eps", "categorical": "levels", "fixed_small": "small", "fixed_large": "large"}

MAX_STEPS = "--steps"  # flag of `fastdiff train`
load = checkpoint.load


def build(preset: str, **changes: Any) -> nn.Module:
    """A preset's model with changed fields of its configuration and fresh weights; a DiffuseVAE keeps its own VAE."""
    config: Any = presets.preset(preset).model
    changes = {KEYS.get(key, key): _value(value) for key, value in changes.items()}
    if hasattr(config, "refiner"):
        outer = {key: changes.pop(key) for key in ("formulation",) if key in changes}
        changes = outer | {"refiner": dataclasses.replace(config.refiner, **changes)}
    config = dataclasses.replace(config, **changes)
    model = models.model_of(config)
    if hasattr(model, "take_first_stage"):
        model.take_first_stage(model.vae)
    return model


def _value(value: Any) -> Any:
    """A value of a configuration under its old name; a network is the name of its class and its fields."""
    if isinstance(value, tuple) and isinstance(value[0], str):
        return getattr(models, value[0])(**value[1])
    return VALUES.get(value, value) if isinstance(value, str) else value


@contextmanager
def recorded(model: Any) -> Iterator[list[Tensor]]:
    """A list of the latents that the model decodes to images meanwhile."""
    decoder, name = getattr(model, "refiner", model), "decode"  # its copies for an image share its attributes
    latents, decode = [], getattr(decoder, name)

    def recording(z: Tensor) -> Tensor:
        latents.append(z)
        return decode(z)

    setattr(decoder, name, recording)
    try:
        yield latents
    finally:
        delattr(decoder, name)


def sample(model: Any, n: int, **options: Any) -> list[Tensor]:
    """Images as levels, and the latents that were decoded to them."""
    options = {OPTIONS.get(key, key): VALUES.get(str(value), value) for key, value in options.items()}
    if model.kind == "hvae" and "latent_temperature" in options:
        options["temperature"] = options.pop("latent_temperature")
    with recorded(model) as latents:
        images = _sample(model, n, output="levels", **options)
    return [images, torch.cat(latents)]


def step(
    z_t: Tensor, eps_hat: Tensor, row: tuple[float, ...], noise: Any, clip: float | None, x_prev: Tensor | None,
    uncond: Tensor | None, guidance: float | None,
) -> Any:  # fmt: skip
    """`sampler_step` for the coefficients (1/alpha, sigma/alpha, A, B, S, C_1)."""
    *first, s, c = row
    return kernels.sampler_step(
        z_t, eps_hat, torch.tensor([*first, c, s, 1.0]), noise, clip, x_prev, None, uncond, guidance
    )


def mixture(weights: Tensor, means: Tensor, factors: Tensor) -> LatentMixture:
    """A Gaussian mixture of latents."""
    return LatentMixture(weights, means, factors)


def vlb(model: Any, x: Tensor, T: int | str | None, labels: Tensor | None) -> list[Tensor]:
    """The terms of the bound in nats; T may be "own"."""
    bound = model.vlb(x, Noise(7), model.steps if T == "own" else T, labels)
    return [bound.recon, bound.prior, bound.diffusion]


def objective(model: Any, x: Tensor, loss: str, T: int | None, labels: Tensor | None) -> list[Tensor]:
    """The training loss, and the bound's terms of the same draws."""
    goal = model.objective(x, Noise(8), labels, loss, T)
    return [goal.loss, goal.vlb.recon, goal.vlb.prior, goal.vlb.diffusion]


def evaluate(model: Any, images: Tensor, labels: Tensor | None = None, T: Any = "own", **options: Any) -> list[Any]:
    """The row of a table, and the bound of every image in bits per dimension."""
    result = _evaluate(model, images, labels, T, **options)
    row = result.row()
    return [row["steps"], row["bpd"], row["se"], row["recon"], row["prior"], row["diffusion"], result.bpd.total]


def evaluate_ode(model: Any, images: Tensor, labels: Tensor | None, steps: int, draws: int) -> Tensor:
    """The bound through the probability-flow ODE, in bits per dimension."""
    return _evaluate_ode(model, images, labels, steps, draws)


def interpolate(model: Any, vary: str, **options: Any) -> list[Tensor]:
    """Rows of images, and the latents that were decoded to them."""
    with recorded(model) as latents:
        images = strips(model, vary, **options)
    return [images, torch.cat(latents)]


def restore(model: Any, images: Tensor, degradation: Any, **options: Any) -> list[Any]:
    """The images that the model made of degraded ones, the latents that were decoded to them, and what it began with
    (or None), with the PSNR of both.
    """
    with recorded(model) as latents:
        result = reconstruct(model, images, degradation, seed=3, **options)
    start = result.picture
    ratios = [psnr(images, image, model.levels) for image in (start, result.images) if image is not None]
    return [result.images, torch.cat(latents), start, ratios]


def degradation(name: str, amount: float) -> Any:
    """A degradation by its name, "downsample" or "noise"."""
    return models.Downsample(factor=int(amount)) if name == "downsample" else models.AddNoise(deviation=amount)


def train_config(preset: str, **changes: Any) -> training.TrainConfig:
    """A preset's training with changed fields."""
    return dataclasses.replace(
        presets.preset(preset).train, **{TRAIN_KEYS.get(key, key): value for key, value in changes.items()}
    )


def settings(config: Any) -> list[Any]:
    """The values of a training's configuration in order."""
    return list(dataclasses.asdict(config).values())


def state_of(model: Any, config: Any) -> training.TrainState:
    """A state to train from."""
    return training.TrainState(model, config)


def train(state: training.TrainState, data: Any) -> Iterator[list[Any]]:
    """Train to the end; yield the number of steps done and the other figures of a report after every step."""
    for report in training.train(state, data):
        terms = [report.bpd.recon, report.bpd.prior, report.bpd.diffusion]
        yield [report.step, report.loss, *terms, report.gradient_norm, report.rate, report.skipped]


def save_training(path: Path, state: training.TrainState) -> None:
    """Write a run's checkpoint."""
    checkpoint.save_training(path, state)


def load_training(path: Path) -> training.TrainState:
    """Read a run's checkpoint."""
    return checkpoint.load_training(path)
