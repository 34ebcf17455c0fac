"""Averages over a data set: draw r of image i is sample r · N + i of one global batch of noise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from ..diffusion import Execution
from ..io.processes import is_first
from ..io.shares import divide_work
from ..kernels import InvalidValueError, Noise
from ..models import Model

EVALUATION_STEP = 2**32 - 1  # a step of the noise that no training reaches, so the two share no draw
BAR_DELAY = 2.0  # seconds
Terms = Callable[[Tensor, Tensor | None, Noise], Sequence[Tensor]]


@runtime_checkable
class Images(Protocol):
    """Images that are decoded when they are indexed: ``images[index]`` is uint8 [B, C, H, W] on the CPU."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Batches:
    """A data set, the seed of its noise, and the size of the batches that it is evaluated in.

    With ``sharded`` the processes of the run divide the batches among themselves (`fastdiff.io.shares`). The terms of
    every batch are sent to all, which add them up in the same order: the result is that of a single process, bit for
    bit. ``execution`` says how the model is called; where it compiles, the last batch is padded with images that do not
    count. ``order`` int64 [N] is a permutation: the order in which the images are evaluated; None for their own.
    """

    model: Model
    images: Tensor | Images
    labels: Tensor | None
    seed: int
    batch_size: int
    sharded: bool = False
    execution: Execution = field(default_factory=Execution)
    order: Tensor | None = None

    def mean(self, draws: int, terms: Terms, bar: tqdm) -> list[Tensor]:
        """Return the means over ``draws`` draws of every image of the terms of a batch, float64 [N] each.

        ``terms(x, labels, noise)`` returns tensors [B].
        """
        sums = None
        for index, values in self.results(draws, lambda x, y, noise: torch.stack(list(terms(x, y, noise))), bar):
            sums = torch.zeros(len(values), len(self.images), dtype=torch.float64) if sums is None else sums
            sums.index_add_(1, index, values)
        assert sums is not None
        return list(sums / draws)

    def results(
        self, draws: int, compute: Callable[[Tensor, Tensor | None, Noise], Tensor], bar: tqdm
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images' indices int64 [B] of every batch, and what ``compute`` returns for it, [..., B].

        The results are float64 on the CPU. Images of a lazy source are checked here, batch by batch.
        """
        count = len(self.images)
        size = min(self.batch_size, count * draws)
        firsts = range(0, count * draws, size)

        def index(batch: int, padded: bool = False) -> Tensor:
            first = firsts[batch]
            found = torch.arange(first, first + size if padded else min(first + size, count * draws)) % count
            return found if self.order is None else self.order[found]

        def work(batch: int) -> Tensor:
            chosen = index(batch, padded=self.execution.compile)
            x = self.images[chosen]
            if not isinstance(self.images, Tensor):
                self.model.check_images("evaluate", x)
            y = None if self.labels is None else self.labels[chosen].to(self.model.device)
            noise = Noise(self.seed, EVALUATION_STEP, first_sample=firsts[batch])
            values = compute(x.to(self.model.device), y, noise).detach().double().cpu()
            return values[..., : len(index(batch))]

        for batch, values in enumerate(divide_work(len(firsts), work, self.sharded)):
            yield index(batch), values
            bar.update(len(index(batch)))


def progress_bar(total: int, title: str, progress: bool, sharded: bool) -> tqdm:
    """Return a bar over images on the first process's stderr, which appears after `BAR_DELAY` seconds."""
    hidden = not progress or (sharded and not is_first())
    return tqdm(total=total, unit="img", desc=title, disable=hidden, leave=False, delay=BAR_DELAY)


def check_data(
    model: Model, images: Tensor | Images, labels: Tensor | None, draws: int, batch_size: int, rounds: int
) -> None:
    """Check what is evaluated. The values of a lazy source are checked when they are read.

    Raises:
        InvalidTypeError, InvalidValueError: images or labels that do not fit the model, no images, numbers below 1.
    """
    check_draws(draws, batch_size)
    if isinstance(images, Tensor) or not isinstance(images, Images):
        model.check_images("evaluate", images)
    elif tuple(images.shape) != model.shape:
        raise InvalidValueError(f"evaluate: images must have shape {model.shape} each, got {tuple(images.shape)}")
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
