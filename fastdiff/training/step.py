"""One optimiser step, without waiting for the device: forward, backward, clipping, AdamW, averaged weights.

A batch may be computed in parts, one after the other (``accumulate``) and by several processes. Each part takes the
noise, times and dropout masks of its samples in the whole batch, and the gradient is the mean over all parts, so the
step is that of the whole batch up to rounding. A step whose gradient is not finite changes no weight and no buffer: the
optimiser skips it on the device (``found_inf``, as for a gradient scaler).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..diffusion import Objective, Vlb
from ..io import processes
from ..io.configuration import ConfigError
from ..io.random_state import seeded
from ..kernels import Noise, Stream
from .batches import Part
from .state import TrainState

# Whether buffers are sent before every forward pass; the parameter has a new name since torch 2.13.
_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)


@dataclass(frozen=True)
class Report:
    """The result of one step. Tensors stay on the device until they are read; under several processes they describe
    this process's part of the batch, except for the norms.

    step: number of steps done. loss: the training loss, mean over the batch, in nats per image if it is the bound. bpd:
    the terms of the bound, means over the batch, in bits per dimension. gradient_norm: of the loss in bits/dim, before
    clipping. weight_norm: of all trained parameters, as of the last step that is a multiple of ten.
    learning_rate_factor: factor of the learning rates. skipped: whether the step was skipped because its gradient was
    not finite, a bool. gamma, diffusion: of each sample, where its diffusion term was taken and the term in nats, [B];
    gamma_range: gamma(0) and gamma(1); None without a diffusion.
    """

    step: int
    loss: Tensor
    bpd: Vlb
    gradient_norm: Tensor
    weight_norm: Tensor
    learning_rate_factor: float
    skipped: Tensor
    gamma: Tensor | None
    diffusion: Tensor
    gamma_range: tuple[Tensor, Tensor] | None


class _Sums(NamedTuple):
    """Of the parts of a batch: the mean loss, the terms of the bound and gamma of each sample."""

    loss: Tensor
    vlb: Vlb
    gamma: Tensor | None


def check_division(state: TrainState) -> Part:
    """Return the samples of every batch that this process trains on.

    Raises:
        ConfigError: the batch cannot be divided among the processes and the parts, or the loss does not allow it.
    """
    config, count = state.config, processes.count()
    parts = count * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size must be a multiple of {parts}, the number of processes ({count}) times accumulate "
            f"({config.accumulate}), got {config.batch_size}"
        )
    if parts > 1:
        state.model.check_divisible()
    size = config.batch_size // count
    return Part(processes.rank() * size, size)


class Stepper:
    """Takes the steps of a training.

    Args:
        state: what is trained; it is changed by every step.
    """

    def __init__(self, state: TrainState) -> None:
        self.state, self.part = state, check_division(state)
        self.device = state.model.device
        self.noise = Noise(state.config.seed, state.step, self.part.first).to(self.device)  # advanced on the device
        self.call = _wrapped(state)
        self.weight_norm = state.weight_norm()
        self.own_network = "network" in state.model.custom  # its dropout takes torch's generator
        # what a network of the user's own changes by itself, such as the running means of a BatchNorm
        self.buffers = list(state.model.buffers()) if self.own_network else []

    def __call__(self, x: Tensor, labels: Tensor | None) -> Report:
        """Take the step of a batch, or of this process's part of it."""
        state = self.state
        state.model.train()
        before = [buffer.clone() for buffer in self.buffers]
        with self._generator():
            sums = self._backward(x, labels)
        norm = self._clip()
        skipped = ~torch.isfinite(norm)
        for buffer, old in zip(self.buffers, before, strict=True):
            buffer.copy_(torch.where(skipped, old, buffer))
        factor = state.set_learning_rates()
        state.optimizer.found_inf = skipped.float()  # pyright: ignore[reportAttributeAccessIssue]
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if processes.is_first():
            state.average.update(state.step)
        state.step += 1
        self.noise.advance()
        if state.step % 10 == 0:
            self.weight_norm = state.weight_norm()
        bpd = sums.vlb.bpd(state.model.dims)
        terms = Vlb(bpd.recon.mean(), bpd.prior.mean(), bpd.diffusion.mean())
        return Report(
            state.step, sums.loss, terms, norm, self.weight_norm, factor, skipped, sums.gamma, sums.vlb.diffusion,
            state.model.gamma_range(),
        )  # fmt: skip

    def _backward(self, x: Tensor, labels: Tensor | None) -> _Sums:
        """Add the gradients of the mean loss in bits per dimension, part by part; the last part shares them."""
        config, model = self.state.config, self.state.model
        size = len(x) // config.accumulate
        bits = 1.0 / (config.accumulate * model.dims * math.log(2.0))
        objectives: list[Objective] = []
        for k, noise in enumerate(self._noise_of_parts(size)):
            part = slice(k * size, (k + 1) * size)
            y = None if labels is None else labels[part]
            with self._no_sync(last=k == config.accumulate - 1):
                with self._autocast():
                    objective = self.call(
                        x[part], noise, y, config.loss, config.T, config.stratified, config.batch_size
                    )
                (bits * objective.loss.mean()).backward()
            objectives.append(Objective(objective.loss.detach(), objective.vlb, objective.gamma))
        return _joined(objectives)

    def _noise_of_parts(self, size: int) -> Iterator[Noise]:
        yield self.noise
        for k in range(1, self.state.config.accumulate):
            yield self.noise.at(first_sample=self.part.first + k * size)

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.state.config.precision == "bf16")

    def _no_sync(self, last: bool) -> AbstractContextManager:
        if last or not isinstance(self.call, DistributedDataParallel):
            return nullcontext()
        return self.call.no_sync()

    def _generator(self) -> AbstractContextManager:
        """Seed torch's generator for a network of the user's own, and restore it afterwards."""
        if not self.own_network:
            return nullcontext()
        seed = Noise(self.state.config.seed, self.state.step, self.part.first, Stream.DROPOUT).integer()
        return seeded(seed, self.device)

    def _clip(self) -> Tensor:
        """Clip the gradients; return their norm before, without the schedule's interior unless that is not finite."""
        state = self.state
        bound = math.inf if state.config.clip_norm is None else state.config.clip_norm
        norm = nn.utils.clip_grad_norm_(state.others, bound)
        if state.interior:
            interior = nn.utils.clip_grad_norm_(state.interior, bound)
            norm = torch.where(torch.isfinite(interior), norm, interior)
        return norm


def _joined(objectives: list[Objective]) -> _Sums:
    if len(objectives) == 1:
        [objective] = objectives
        return _Sums(objective.loss.mean(), objective.vlb, objective.gamma)
    terms = zip(*((each.vlb.recon, each.vlb.prior, each.vlb.diffusion) for each in objectives), strict=True)
    gammas = [each.gamma for each in objectives if each.gamma is not None]
    loss = torch.cat([each.loss for each in objectives]).mean()
    return _Sums(loss, Vlb(*map(torch.cat, terms)), torch.cat(gammas) if gammas else None)


def _wrapped(state: TrainState) -> Callable[..., Objective]:
    """Return what computes the loss: the model, compiled if asked for, with its gradients shared by the processes."""
    model = state.model
    call = torch.compile(model) if state.config.compile else model
    if processes.count() == 1:
        return call
    return DistributedDataParallel(
        call, device_ids=None if model.device.type == "cpu" else [model.device], gradient_as_bucket_view=True,
        find_unused_parameters=bool(model.custom), **{_BUFFERS: False},  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
