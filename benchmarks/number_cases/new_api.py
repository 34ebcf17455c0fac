"""The calls that the cases make, in the present API."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastdiff import kernels, load, networks, presets, training
from fastdiff import sample as _sample
from fastdiff.data import digits
from fastdiff.diffusion import DDIM, Ancestral, DPMSolver, Heun
from fastdiff.evaluation import evaluate as _evaluate
from fastdiff.evaluation import evaluate_latents, evaluate_ode, fd_digits, psnr
from fastdiff.kernels import Noise, to_unit_range
from fastdiff.models import AddNoise, Downsample, Latents, model_of
from fastdiff.sampling import LatentMixture, reconstruct
from fastdiff.sampling import interpolate as _interpolate
from fastdiff.training.state import load_training, save_training

__all__ = [
    "MAX_STEPS", "Noise", "build", "degradation", "digits", "evaluate", "evaluate_latents", "evaluate_ode", "fd_digits",
    "interpolate", "kernels", "load", "load_training", "mixture", "objective", "restore", "sample",
    "save_training", "settings", "state_of", "step", "to_unit_range", "train", "train_config", "vlb",
]  # fmt: skip
MAX_STEPS = "--max-steps"  # flag of `fastdiff train`
SAMPLERS = {"ancestral": Ancestral, "ddim": DDIM, "dpm-solver": DPMSolver, "heun": Heun}
SAMPLER_OPTIONS = ("spacing", "betas", "temperature", "clip_denoised", "variance", "eta")


def build(preset: str, **changes: Any) -> nn.Module:
    """A preset's model with changed fields of its configuration and fresh weights; a DiffuseVAE keeps its own VAE."""
    if "network" in changes:
        name, fields = changes["network"]
        changes["network"] = getattr(networks, name)(**fields)
    model = model_of(attrs.evolve(presets.preset(preset).model, **changes))
    if hasattr(model, "has_first_stage"):
        model.take_first_stage(model.autoencoder)
    return model


@contextmanager
def recorded(model: Any) -> Iterator[list[Tensor]]:
    """A list of the latents that the model decodes to images meanwhile."""
    decoder, name = model, "most_likely" if hasattr(model, "most_likely") else "decode"
    latents, decode = [], getattr(decoder, name)

    def recording(z: Tensor) -> Tensor:
        latents.append(z)
        return decode(z)

    setattr(decoder, name, recording)
    try:
        yield latents
    finally:
        delattr(decoder, name)


def sample(model: Any, n: int, sampler: str = "ancestral", **options: Any) -> list[Tensor]:
    """Images as levels, and the latents that were decoded to them."""
    own = {key: options.pop(key) for key in SAMPLER_OPTIONS if key in options}
    z = {key.removeprefix("latent_"): options.pop(key) for key in ("latent_temperature", "mixture") if key in options}
    if model.latent_variables == ("z",):
        z |= own  # a VAE has no sampler; its temperature is that of its latents
    else:
        options["sampler"] = SAMPLERS[sampler](**own)
    if z:
        options["latents"] = Latents(**z)
    with recorded(model) as latents:
        images = _sample(model, n, output="levels", **options)
    return [images, torch.cat(latents)]


def step(
    z_t: Tensor, eps_hat: Tensor, row: tuple[float, ...], noise: Any, clip: float | None, x_prev: Tensor | None,
    uncond: Tensor | None, guidance: float | None,
) -> Any:  # fmt: skip
    """`sampler_step` for the coefficients (1/alpha, sigma/alpha, A, B, S, C_1)."""
    *first, c = row
    table_row = torch.tensor([*first, 1.0 if guidance is None else guidance, c, 0.0, 0.0, 0.0])
    history = () if x_prev is None else (x_prev,)
    return kernels.sampler_step(z_t, eps_hat, table_row, noise, clip, history, eps_hat_uncond=uncond)


def mixture(weights: Tensor, means: Tensor, factors: Tensor) -> LatentMixture:
    """A Gaussian mixture of latents."""
    return LatentMixture(weights, means, factors)


def vlb(model: Any, x: Tensor, T: int | str | None, labels: Tensor | None) -> list[Tensor]:
    """The terms of the bound in nats; T may be "own"."""
    bound = model.vlb(x, Noise(7), model.T if T == "own" else T, labels)
    return [bound.recon, bound.prior, bound.diffusion]


def objective(model: Any, x: Tensor, loss: str, T: int | None, labels: Tensor | None) -> list[Tensor]:
    """The training loss, and the bound's terms of the same draws."""
    result = model(x, Noise(8), labels, loss, T)
    return [result.loss, result.vlb.recon, result.vlb.prior, result.vlb.diffusion]


def evaluate(model: Any, images: Tensor, labels: Tensor | None = None, T: Any = "own", **options: Any) -> list[Any]:
    """The row of a table, and the bound of every image in bits per dimension."""
    result = _evaluate(model, images, labels, T, **options)
    row = result.row()
    return [row["T"], row["bpd"], row["se"], row["recon"], row["prior"], row["diffusion"], result.bpd.total]


def interpolate(model: Any, vary: str, **options: Any) -> list[Tensor]:
    """Rows of images, and the latents that were decoded to them."""
    with recorded(model) as latents:
        images = _interpolate(model, vary, **options)
    return [images, torch.cat(latents)]


def restore(model: Any, images: Tensor, degradation: Any, **options: Any) -> list[Any]:
    """The images that the model made of degraded ones, the latents that were decoded to them, and what it began with
    (or None), with the PSNR of both.
    """
    with recorded(model) as latents:
        result = reconstruct(model, images, degradation, seed=3, **options)
    start = result.start
    ratios = [psnr(images, image, model.levels) for image in (start, result.images) if image is not None]
    return [result.images, torch.cat(latents), start, ratios]


def degradation(name: str, amount: float) -> Any:
    """A degradation by its name, "downsample" or "noise"."""
    return Downsample(factor=int(amount)) if name == "downsample" else AddNoise(deviation=amount)


def train_config(preset: str, **changes: Any) -> training.TrainConfig:
    """A preset's training with changed fields."""
    return attrs.evolve(presets.preset(preset).train, **changes)


def settings(config: Any) -> list[Any]:
    """The values of a training's configuration in order."""
    return list(attrs.asdict(config).values())


def state_of(model: Any, config: Any) -> training.TrainState:
    """A state to train from."""
    return training.TrainState(model, config)


def train(state: training.TrainState, data: Any) -> Iterator[list[Any]]:
    """Train to the end; yield the number of steps done and the other figures of a report after every step."""
    for report in training.train(state, data):
        terms = [report.bpd.recon, report.bpd.prior, report.bpd.diffusion]
        yield [report.step, report.loss, *terms, report.gradient_norm, report.learning_rate_factor, report.skipped]
