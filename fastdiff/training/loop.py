"""The training loop as a generator: one optimiser step per item, each a pure function of (seed, step).

The data order, the times, the noise and the dropout masks derive from the seed and the step alone. On a CPU, with the
same data and number of threads, a run that is resumed from a checkpoint reaches the same weights, bit for bit, as one
that was never interrupted. (On a GPU the order of some sums in PyTorch's own backward passes is not fixed.)
"""

import math
from collections.abc import Generator

import torch

from ..data import Dataset
from ..io import processes
from ..io.configuration import ConfigError
from ..kernels import InvalidTypeError
from .batches import step_batches
from .feed import feed
from .state import TrainState
from .step import Report, Stepper

READ_EVERY = 10  # steps between two looks at the device


def train(state: TrainState, data: Dataset, workers: int | None = None) -> Generator[Report, None, None]:
    """Train from ``state.step`` to ``state.config.max_steps``; yield a `Report` after every step.

    Under several processes (`fastdiff.io.processes.joined`) every process calls this with the same state and data; each
    trains on its part of every batch.

    Args:
        state: what is trained.
        data: the data set.
        workers: processes that read images ahead, see `fastdiff.training.feed`.

    Raises:
        InvalidTypeError: a state that is none.
        DataError: data that do not fit the model, or an image that cannot be read.
        ConfigError: a configuration that does not fit the model or the number of processes, or a DiffuseVAE without a
            first stage.
        TrainingError: the run has diverged (`fastdiff.training.divergence`), which is looked at every tenth step.
    """
    if not isinstance(state, TrainState):
        raise InvalidTypeError(f"train: state must be a TrainState, got a {type(state).__name__}")
    model, config = state.model, state.config
    model.check_trainable()
    if config.shift and not model.config.augmented:
        raise ConfigError(f"shift must be 0 for a model without augmented=True, got {config.shift}")
    stepper = Stepper(state)
    batches = step_batches(model, data, config, stepper.part)
    watched = _Watched(model.device)
    for x, labels in feed(batches, range(state.step, config.max_steps), model.device, workers):
        report = stepper(x, labels)
        watched.add(report)
        if report.step % READ_EVERY == 0 or report.step == config.max_steps:
            loss, skipped = watched.read()
            state.monitor.add(report.step, loss, float(report.weight_norm), skipped)
        yield report


class _Watched:
    """What is read every tenth step: the mean loss of the steps that were not skipped, and how many were in a row."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.taken = torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device)

    def add(self, report: Report) -> None:
        skipped = report.skipped.float()
        self.loss += torch.where(report.skipped, 0.0, report.loss.float())
        self.taken += 1.0 - skipped
        self.in_a_row = (self.in_a_row + 1.0) * skipped

    def read(self) -> tuple[float, int]:
        """Return the mean loss over all processes since the last call, nan if all steps were skipped, and the number
        of skipped steps in a row."""
        here = torch.stack([self.loss, self.taken]).double().cpu()
        loss, taken = processes.total(here).tolist()
        self.loss, self.taken = torch.zeros_like(self.loss), torch.zeros_like(self.taken)
        return loss / taken if taken else math.nan, int(self.in_a_row)
