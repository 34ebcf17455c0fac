"""The training loop as a generator: one optimiser step per item, each a pure function of (seed, step).

The data order, the times, the noise and the seed of dropout derive from the seed and the step alone. On a CPU, with the
same data and number of threads, a run that is resumed from a checkpoint reaches the same weights, bit for bit, as one
that was never interrupted. (On a GPU the order of some sums in PyTorch's own backward passes is not fixed.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import Dataset
from ..diffusion import Objective, Vlb
from ..io.configuration import ConfigError
from ..kernels import FastdiffError, Noise, Stream
from .batches import augmented_batch, batch_indices, check_fit
from .state import TrainState

MAX_SKIPPED = 10


class TrainingError(FastdiffError, RuntimeError):
    """Training that has diverged."""


@dataclass(frozen=True)
class Report:
    """The result of one step. Tensors stay on the device until they are read.

    step: number of steps done. loss: the training loss, mean over the batch, in nats per image if it is the bound. bpd:
    the terms of the bound, means over the batch, in bits per dimension. gradient_norm: of the loss in bits/dim, before
    clipping. learning_rate_factor: factor of the learning rates. skipped: whether the step was skipped because its
    gradient was not finite.
    """

    step: int
    loss: Tensor
    bpd: Vlb
    gradient_norm: Tensor
    learning_rate_factor: float
    skipped: bool


def train(state: TrainState, data: Dataset) -> Iterator[Report]:
    """Train from ``state.step`` to ``state.config.max_steps``; yield a `Report` after every step.

    Raises:
        DataError: data that do not fit the model.
        ConfigError: a configuration that does not fit the model, or a DiffuseVAE without a first stage.
        TrainingError: `MAX_SKIPPED` steps in a row had a gradient that is not finite.
    """
    model, config = state.model, state.config
    check_fit(model, data)
    model.check_trainable()
    if config.shift and not model.config.augmented:
        raise ConfigError(f"shift must be 0 for a model without augmented=True, got {config.shift}")
    images = data.train_images.to(model.device)
    labels = data.train_labels.to(model.device) if data.train_labels is not None and model.num_classes else None
    skipped = 0
    while state.step < config.max_steps:
        noise = Noise(config.seed, state.step)
        index = batch_indices(config.seed, state.step, config.batch_size, len(images)).to(model.device)
        batch_labels = None if labels is None else labels[index]
        x, y = augmented_batch(model, images[index], batch_labels, config, noise)
        torch.manual_seed(noise.at(stream=Stream.DROPOUT).integer())
        model.train()
        objective: Objective = model(x, noise.to(model.device), y, config.loss, config.T, config.stratified)
        loss = objective.loss.mean()
        factor = _set_learning_rates(state)
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
            raise TrainingError(f"the gradient was not finite in {skipped} steps in a row, up to step {state.step}")
        bpd = objective.vlb.bpd(model.dims)
        terms = Vlb(bpd.recon.mean(), bpd.prior.mean(), bpd.diffusion.mean())
        yield Report(state.step, loss.detach(), terms, norm, factor, not finite)


def _clip(state: TrainState) -> Tensor:
    """Clip the gradients; return their norm before, without the schedule's interior unless that is not finite."""
    bound = math.inf if state.config.clip_norm is None else state.config.clip_norm
    norm = nn.utils.clip_grad_norm_(state.others, bound)
    if state.interior:
        interior = nn.utils.clip_grad_norm_(state.interior, bound)
        norm = torch.where(torch.isfinite(interior), norm, interior)
    return norm


def _set_learning_rates(state: TrainState) -> float:
    factor = state.config.learning_rate_factor(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor
