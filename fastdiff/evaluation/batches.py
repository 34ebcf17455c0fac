"""Averages over a data set: draw r of image i is sample r · N + i of one global batch of noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..kernels import InvalidValueError, Noise
from ..models import Model

EVALUATION_STEP = 2**32 - 1  # a step of the noise that no training reaches, so the two share no draw
Terms = Callable[[Tensor, Tensor | None, Noise], Sequence[Tensor]]


@dataclass(frozen=True)
class Batches:
    """A data set, the seed of its noise, and the size of the batches that it is evaluated in."""

    images: Tensor
    labels: Tensor | None
    seed: int
    batch_size: int
    device: torch.device

    def mean(self, draws: int, terms: Terms, bar: tqdm) -> list[Tensor]:
        """Return the means over ``draws`` draws of every image of the terms of a batch, float64 [N] each.

        ``terms(x, labels, noise)`` returns tensors [B].
        """
        count, sums = len(self.images), None
        for first in range(0, count * draws, self.batch_size):
            index = torch.arange(first, min(first + self.batch_size, count * draws)) % count
            x = self.images[index].to(self.device)
            y = None if self.labels is None else self.labels[index].to(self.device)
            noise = Noise(self.seed, EVALUATION_STEP, first_sample=first)
            values = torch.stack(list(terms(x, y, noise))).detach().double().cpu()
            sums = torch.zeros(len(values), count, dtype=torch.float64) if sums is None else sums
            sums.index_add_(1, index, values)
            bar.update(len(index))
        assert sums is not None
        return list(sums / draws)


def check_data(model: Model, images: Tensor, labels: Tensor | None, draws: int, batch_size: int, rounds: int) -> None:
    """Check what is evaluated.

    Raises:
        InvalidTypeError, InvalidValueError: images or labels that do not fit the model, no images, numbers below 1.
    """
    check_draws(draws, batch_size)
    model.check_images("evaluate", images)
    if not len(images):
        raise InvalidValueError("evaluate: images must hold at least one image, got 0")
    model.check_labels("evaluate", labels, len(images))
    if len(images) * rounds > 2**32:  # the noise counts samples modulo 2**32
        raise InvalidValueError(f"evaluate: images times draws must be <= 2**32, got {len(images)} times {rounds}")


def check_draws(draws: int, batch_size: int) -> None:
    """Check two arguments of `evaluate`.

    Raises:
        InvalidValueError: not an integer >= 1.
    """
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidValueError(f"evaluate: {name} must be an integer >= 1, got {value!r}")
