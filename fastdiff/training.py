"""Training as a generator: one optimiser step per item, everything a pure function of (seed, step).

The data order, the times, the noise and the seed of dropout derive from the seed and the step alone, so that on a CPU,
with the same data and number of threads, a run resumed from a checkpoint goes on to the same weights, bit for bit, as
one that was never interrupted. (On a GPU the order of some sums in PyTorch's own backward passes is not fixed.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .config import ConfigError
from .datasets import Dataset, check_fit
from .kernels import Noise, Stream
from .models import DiffuseVAE, Model
from .vlb import LOSSES, Objective, Vlb

MAX_SKIPPED = 10
DECAYS = ("cosine", "constant")
NUMBERS = (
    "learning_rate", "schedule_learning_rate", "weight_decay", "beta_1", "beta_2", "ema", "shift", "flip",
    "label_dropout",
)  # fmt: skip


class TrainingError(RuntimeError):
    """Training that cannot go on."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        data: name of the data set.
        steps: number of optimiser steps.
        batch_size: images per step.
        loss: what is minimised: the bound (``"elbo"``), or a weighted diffusion loss (see `fastdiff.vlb.LOSSES`).
        bound_steps: T of the bound that is minimised, None for the model's own.
        stratified: whether the times of a batch are spread evenly, or drawn independently.
        learning_rate: of AdamW at its peak.
        schedule_learning_rate: the same for the parameters of the noise schedule.
        warm_up: steps of linear warm-up.
        decay: what comes after the warm-up: ``"cosine"`` down to zero at ``steps``, or ``"constant"``.
        weight_decay: of weight matrices and kernels; biases, norms and the schedule have none.
        beta_1, beta_2: of AdamW.
        clip_norm: bound on the norm of the gradient, None for no bound. The interior of a learned schedule, which
            follows another loss, has a norm of its own.
        ema: decay of the averaged weights; it warms up as (1 + k) / (10 + k).
        shift: probability that a training image is shifted by up to one pixel each way (filled with level 0) and
            marked as augmented, for a model whose network is told.
        flip: probability that a training image is mirrored left to right; the network is not told.
        label_dropout: probability that a label is hidden in training.
        seed: of everything that is drawn.
        first_stage: where the VAE under a DiffuseVAE came from, None for other models.
    """

    data: str
    steps: int
    batch_size: int = 64
    loss: str = "elbo"
    bound_steps: int | None = None
    stratified: bool = True
    learning_rate: float = 2e-3
    schedule_learning_rate: float = 1e-2
    warm_up: int = 200
    decay: str = "cosine"
    weight_decay: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.99
    clip_norm: float | None = 1.0
    ema: float = 0.999
    shift: float = 0.0
    flip: float = 0.0
    label_dropout: float = 0.5
    seed: int = 0
    first_stage: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warm_up", "seed"):
            self._check(name, type(getattr(self, name)) is int, "an integer")
        self._check("bound_steps", self.bound_steps is None or type(self.bound_steps) is int, "an integer, or None")
        self._check("stratified", type(self.stratified) is bool, "true or false")
        for name in NUMBERS:
            value = getattr(self, name)
            self._check(name, type(value) in (int, float) and math.isfinite(value), "a finite number")
        self._check("seed", 0 <= self.seed < 2**64, "0 <= seed < 2**64")
        for name in ("steps", "batch_size", "learning_rate", "schedule_learning_rate"):
            self._check(name, getattr(self, name) > 0, "a number > 0")
        for name in ("clip_norm", "bound_steps"):
            self._check(name, getattr(self, name) is None or getattr(self, name) > 0, "a number > 0, or None")
        for name in ("ema", "beta_1", "beta_2"):
            self._check(name, 0 <= getattr(self, name) < 1, f"0 <= {name} < 1")
        for name in ("shift", "flip", "label_dropout"):
            self._check(name, 0 <= getattr(self, name) <= 1, f"0 <= {name} <= 1")
        for name in ("weight_decay", "warm_up"):
            self._check(name, getattr(self, name) >= 0, "a number >= 0")
        for name, allowed in (("loss", LOSSES), ("decay", DECAYS)):
            self._check(name, getattr(self, name) in allowed, ", ".join(allowed))

    def _check(self, name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise ConfigError(f"TrainConfig: {name} is {getattr(self, name)!r}; allowed: {allowed}")

    def rate(self, step: int) -> float:
        """Factor on the learning rates at a step: warm-up, then half a cosine or 1."""
        warm = min(1.0, (step + 1) / (self.warm_up + 1))
        if self.decay == "constant":
            return warm
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.steps)))


@dataclass(frozen=True)
class Report:
    """What one step did. Tensors stay on the device until somebody reads them.

    step: steps done so far; loss: what was minimised, mean over the batch, in nats per image (or the unit of another
    loss than the bound); bpd: mean terms of the bound over the batch, in bits per dimension; gradient_norm: before
    clipping; rate: factor on the learning rates; skipped: whether the step was left out because it was not finite.
    """

    step: int
    loss: Tensor
    bpd: Vlb
    gradient_norm: Tensor
    rate: float
    skipped: bool


class TrainState:
    """A model in training: its weights, their average, the optimiser, and the number of steps done."""

    def __init__(self, model: Model, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.ema = AveragedModel(model, multi_avg_fn=self._average)
        self.optimizer = _optimizer(model, config)
        self.step = 0
        schedule = dict(getattr(model, "gamma", nn.Module()).named_parameters())
        self.interior = [p for name, p in schedule.items() if name not in ("gamma_0", "gamma_1")]
        apart = {id(p) for p in self.interior}
        self.others = [p for p in model.parameters() if id(p) not in apart]

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, _: Tensor | int) -> None:
        """One step of the average; its warm-up counts steps on the host, where AveragedModel's count is a tensor."""
        now = min(self.config.ema, (1.0 + self.step) / (10.0 + self.step))
        torch._foreach_lerp_(averaged, current, 1.0 - now)  # pyright: ignore[reportPrivateImportUsage]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint must hold besides the configuration, by file: flat names to tensors."""
        moments = {
            f"{name}.{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in (self.optimizer.state[parameter] or _no_moments(parameter)).items()
        }
        return {"model": self.model.state_dict(), "ema": self.ema.module.state_dict(), "optimizer": moments}

    def restore(self, step: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Go back to a checkpoint: the inverse of `tensors`, with tensors that were checked against this state."""
        self.model.load_state_dict(tensors["model"])
        self.ema.module.load_state_dict(tensors["ema"])
        self.ema.n_averaged.fill_(step)  # one average per step
        for name, parameter in self.model.named_parameters():
            prefix = f"{name}."
            entries = {k[len(prefix) :]: v for k, v in tensors["optimizer"].items() if k.rpartition(".")[0] == name}
            self.optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True)
                if key == "step"
                else torch.empty_like(parameter).copy_(value)
                for key, value in entries.items()
            }
        self.step = step


def _no_moments(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a parameter that has not had a gradient yet."""
    zeros = torch.zeros_like(parameter)
    return {"step": torch.zeros((), device=parameter.device), "exp_avg": zeros, "exp_avg_sq": zeros}


def train(state: TrainState, data: Dataset) -> Iterator[Report]:
    """Train up to ``state.config.steps``, from wherever the state stands; yield a `Report` after every step.

    Raises:
        DataError: data that do not fit the model.
        TrainingError: `MAX_SKIPPED` steps in a row were not finite.
    """
    model: Any = state.model
    config = state.config
    check_fit(model, data)
    if config.shift and not model.config.augmented:
        raise ConfigError(f"train: shift is {config.shift} for a model that is not told; allowed: 0, or augmented=True")
    if isinstance(model, DiffuseVAE) and not model.has_first_stage:
        raise ConfigError("train: a DiffuseVAE without a first stage; allowed: after take_first_stage(a trained VAE)")
    device = next(model.parameters()).device
    images = data.train_images.to(device)
    labels = data.train_labels.to(device) if data.train_labels is not None and model.classes else None
    skipped = 0
    while state.step < config.steps:
        step = state.step
        noise = Noise(config.seed, step)
        index = batch_indices(config.seed, step, config.batch_size, len(images)).to(device)
        x, conditions = _conditions(model, images[index], None if labels is None else labels[index], config, noise)
        torch.manual_seed(noise.at(stream=Stream.DROPOUT).integer())
        model.train()
        goal: Objective = model.objective(
            x, noise.to(device), conditions, config.loss, config.bound_steps, config.stratified
        )
        loss = goal.loss.mean()
        rate = _set_rates(state, step)
        (loss / (model.dims * math.log(2.0))).backward()
        norm = _clip(state)
        finite = bool(torch.isfinite(norm))
        if finite:
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update_parameters(model)
        state.step += 1
        skipped = 0 if finite else skipped + 1
        if skipped >= MAX_SKIPPED:
            raise TrainingError(f"the gradient was not finite in {skipped} steps up to step {state.step}")
        bpd = goal.vlb.bpd(model.dims)
        terms = Vlb(bpd.recon.mean(), bpd.prior.mean(), bpd.diffusion.mean())
        yield Report(state.step, loss.detach(), terms, norm, rate, not finite)


def _clip(state: TrainState) -> Tensor:
    """Clip the gradients; return their norm before, without the interior of the schedule unless that is not finite."""
    bound = math.inf if state.config.clip_norm is None else state.config.clip_norm
    norm = nn.utils.clip_grad_norm_(state.others, bound)
    if state.interior:
        interior = nn.utils.clip_grad_norm_(state.interior, bound)
        norm = torch.where(torch.isfinite(interior), norm, interior)
    return norm


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """Indices of one batch, int64 [batch_size]: positions step · batch_size + b of an endless sequence of shuffles.

    Every epoch is one permutation, a function of the seed and the epoch, so that each image comes once per epoch.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // count, (last - 1) // count + 1)
    shuffled = torch.cat([_epoch_order(seed, epoch, count) for epoch in epochs])
    return shuffled[first - epochs[0] * count :][:batch_size]


@lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return Noise(seed, step=epoch, stream=Stream.ORDER).uniform((1, count)).squeeze(0).argsort(stable=True)


def drop_labels(labels: Tensor, no_label: int, probability: float, noise: Noise) -> Tensor:
    """Replace labels by ``no_label`` with a probability."""
    u = noise.at(stream=Stream.LABELS).uniform((len(labels), 1)).squeeze(1).to(labels.device)
    return torch.where(u <= probability, torch.full_like(labels, no_label), labels)


def shift_images(images: Tensor, probability: float, noise: Noise) -> tuple[Tensor, Tensor]:
    """Shift images [B, C, H, W] by -1, 0 or 1 pixels each way with a probability, filling with zeros.

    Returns the images and a mask [B] of those that really moved.
    """
    u = noise.at(stream=Stream.AUGMENTATION).uniform((len(images), 3)).to(images.device)
    offsets = torch.floor(3.0 * u[:, 1:]).long().clamp_(max=2)
    offsets = torch.where(u[:, :1] <= probability, offsets, torch.ones_like(offsets))
    _, _, height, width = images.shape
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    shifted = padded[batch, :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return shifted.permute(0, 3, 1, 2).contiguous(), (offsets != 1).any(dim=1)


def flip_images(images: Tensor, probability: float, noise: Noise) -> Tensor:
    """Mirror images [B, C, H, W] left to right with a probability."""
    u = noise.at(stream=Stream.AUGMENTATION).uniform((len(images), 4))[:, 3].to(images.device)  # the first 3 are shifts
    return torch.where((u <= probability)[:, None, None, None], images.flip(3), images)


def _conditions(
    model: Any, images: Tensor, labels: Tensor | None, config: TrainConfig, noise: Noise
) -> tuple[Tensor, Tensor | None]:
    """Augment a batch, and say per image what the network is told: its label, nothing, or that it was augmented."""
    if labels is not None:
        labels = drop_labels(labels, model.no_label, config.label_dropout, noise)
    if config.flip:
        images = flip_images(images, config.flip, noise)
    if not config.shift:
        return images, labels
    images, moved = shift_images(images, config.shift, noise)
    if labels is None:
        labels = torch.full((len(images),), model.no_label, device=images.device)
    return images, torch.where(moved, model.no_label + 1, labels)


def _set_rates(state: TrainState, step: int) -> float:
    rate = state.config.rate(step)
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak"] * rate
    return rate


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    schedule = {id(parameter) for parameter in getattr(model, "gamma", nn.Module()).parameters()}
    decayed, plain, ends = [], [], []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and not name.endswith("position")
        (ends if id(parameter) in schedule else decayed if matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "peak": config.learning_rate},
        {"params": plain, "weight_decay": 0.0, "peak": config.learning_rate},
        {"params": ends, "weight_decay": 0.0, "peak": config.schedule_learning_rate},
    ]
    betas = (config.beta_1, config.beta_2)
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=betas, fused=True)
