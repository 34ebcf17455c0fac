"""How long a study takes: an estimate from a few steps before it starts, and the remaining time while it runs."""

import time

import torch

from fastdiff.data import load_dataset
from fastdiff.models import Model
from fastdiff.training import TrainConfig
from fastdiff.training.state import TrainState
from fastdiff.training.step import Stepper

TIMED = 3  # optimiser steps, after one that is not counted


class Progress:
    """The remaining time of tasks that run in parallel.

    Args:
        estimates: what each task takes, by its name, in seconds of one core or in any other unit.
        workers: number of tasks at a time.
    """

    def __init__(self, estimates: dict[str, float], workers: int) -> None:
        self.left, self.workers = dict(estimates), workers
        self.spent = self.planned = 0.0

    def done(self, name: str, seconds: float) -> float:
        """Count a task that took a number of seconds; return how many minutes the others will take.

        Their estimates are scaled by what the tasks so far took, relative to their own estimates.
        """
        self.planned += self.left.pop(name)
        self.spent += seconds
        return self.minutes(self.spent / self.planned if self.planned else 1.0)

    def minutes(self, seconds_per_unit: float = 1.0) -> float:
        """Return how many minutes the tasks that are left take, in parallel."""
        rest = self.left.values()
        return max(sum(rest) / self.workers, max(rest, default=0.0)) * seconds_per_unit / 60.0


def seconds_per_step(model: Model, train: TrainConfig) -> float:
    """Return the seconds of an optimiser step in one thread, from `TIMED` steps of a copy that is thrown away."""
    if train.first_stage is not None:
        model.take_first_stage(model.autoencoder)  # without its weights
    images = load_dataset(train.data).train_images[: train.batch_size]
    labels = torch.zeros(len(images), dtype=torch.int64) if model.config.num_labels else None
    step, threads = Stepper(TrainState(model, train)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step(images, labels)
        since = time.monotonic()
        for _ in range(TIMED):
            step(images, labels)
        return (time.monotonic() - since) / TIMED
    finally:
        torch.set_num_threads(threads)
