"""Training batches as pure functions of the step: the order of the data, crops, shifts, flips, label dropout.

The images of all epochs, each in an order of its own, form one endless sequence; step k takes the positions
k · batch_size .. (k + 1) · batch_size - 1. The crop, the shift and the flip of an image are functions of the seed, the
epoch and its position in the epoch, so they depend neither on the batch size nor on how a batch is divided.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import DataError, Dataset
from ..data.source import ImageSource
from ..kernels import Noise, Stream
from ..models import Model
from .config import TrainConfig

COLUMNS = 6  # uniforms per image: whether it is shifted, the shift (2), whether it is mirrored, the crop (2)


def check_fit(model: Model, data: Dataset) -> None:
    """Check that a data set has the shape and levels of a model, and its number of classes or no labels.

    Raises:
        DataError: it does not, or is no `Dataset`.
    """
    if not isinstance(data, Dataset):
        raise DataError(f"data must be a fastdiff.data.Dataset (load_dataset), got a {type(data).__name__}")
    labels_fit = not model.num_classes or data.num_classes in (0, model.num_classes)
    if data.shape != model.shape or data.levels != model.levels or not labels_fit:
        classes = f" and {model.num_classes} classes or no labels" if model.num_classes else ""
        raise DataError(
            f"data set {data.name} must have shape {model.shape}, {model.levels} levels{classes}, as the model has, "
            f"got {data.shape}, {data.levels} levels and {data.num_classes} classes"
        )


class Part(NamedTuple):
    """Samples ``first`` .. ``first + size - 1`` of every batch: those that one process trains on."""

    first: int
    size: int


class Segment(NamedTuple):
    """Positions ``first`` .. ``first + size - 1`` of an epoch."""

    epoch: int
    first: int
    size: int


def segments(first: int, count: int, epoch_size: int) -> list[Segment]:
    """Divide the positions ``first`` .. ``first + count - 1`` of the endless sequence by epochs."""
    found = []
    while count > 0:
        epoch, place = divmod(first, epoch_size)
        length = min(count, epoch_size - place)
        found.append(Segment(epoch, place, length))
        first, count = first + length, count - length
    return found


def batch_indices(seed: int, step: int, batch_size: int, count: int, part: Part | None = None) -> Tensor:
    """Return the indices of a batch of a data set of ``count`` images, or of a part of the batch, int64.

    Every epoch is a permutation, a function of the seed and the epoch, so each image occurs once per epoch.
    """
    offset, size = part or (0, batch_size)
    found = segments(step * batch_size + offset, size, count)
    return torch.cat([_epoch_order(seed, epoch, count)[first : first + n] for epoch, first, n in found])


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return Noise(seed, step=epoch, stream=Stream.ORDER).uniform((1, count)).squeeze(0).argsort(stable=True)


def augmentation_uniforms(seed: int, found: list[Segment]) -> Tensor:
    """Return `COLUMNS` uniforms in (0, 1] for each position of the segments, float32."""
    parts = [
        Noise(seed, step=epoch, first_sample=first, stream=Stream.AUGMENTATION).uniform((count, COLUMNS))
        for epoch, first, count in found
    ]
    return torch.cat(parts)


def drop_labels(labels: Tensor, null_label: int, probability: float, noise: Noise) -> Tensor:
    """Replace labels by the null label with a probability."""
    u = noise.at(stream=Stream.LABELS).uniform((len(labels), 1)).squeeze(1).to(labels.device, non_blocking=True)
    return torch.where(u <= probability, torch.full_like(labels, null_label), labels)


def shift_images(images: Tensor, probability: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """Shift images [B, C, H, W] by -1, 0 or 1 pixels each way with a probability, filling with zeros.

    Args:
        images: [B, C, H, W].
        probability: of a shift, which may be (0, 0).
        u: uniforms in (0, 1], float32 [B, 3]: whether an image is shifted, and how far.

    Returns:
        The images, and a mask [B] of those that were moved by a shift other than (0, 0).
    """
    offsets = torch.floor(3.0 * u[:, 1:3]).long().clamp_(max=2)
    offsets = torch.where(u[:, :1] <= probability, offsets, torch.ones_like(offsets))
    _, _, height, width = images.shape
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    shifted = padded[batch, :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return shifted.permute(0, 3, 1, 2).contiguous(), (offsets != 1).any(dim=1)


def flip_images(images: Tensor, probability: float, u: Tensor) -> Tensor:
    """Mirror images [B, C, H, W] left to right where u, uniform in (0, 1], float32 [B], is at most the probability."""
    return torch.where((u <= probability)[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True)
class StepBatches(torch.utils.data.Dataset):
    """The batches of a training: item k is that of step k, images uint8 [B, C, H, W] and labels int64 [B] or None.

    A label is the class, the null label, or the label "augmented" of a shifted image; None for a model without labels.
    It is a data set of batches, so that the worker processes of a DataLoader make whole batches.

    Args:
        images: the training images; a tensor may lie on a GPU, where the batches are made then.
        labels: int64 [N], or None for images without labels or with labels of their own.
        config: the order and the augmentations.
        part: the samples of every batch that this process trains on.
        null_label: the label for "no label".
        num_classes: number of classes of the model; 0 if it takes no classes.
    """

    images: Tensor | ImageSource
    labels: Tensor | None
    config: TrainConfig
    part: Part
    null_label: int
    num_classes: int

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor | None]:
        config, part = self.config, self.part
        count = len(self.images)
        index = batch_indices(config.seed, step, config.batch_size, count, part)
        u, crops = None, isinstance(self.images, ImageSource) and self.images.random_crop
        if config.flip or config.shift or crops:
            found = segments(step * config.batch_size + part.first, part.size, count)
            u = augmentation_uniforms(config.seed, found)
        images, labels = self._read(index, u)
        if labels is not None:
            noise = Noise(config.seed, step, part.first)
            labels = drop_labels(labels, self.null_label, config.label_dropout, noise)
        return self._augment(images, labels, u)

    def _read(self, index: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.images, ImageSource):
            images, labels = self.images.batch(index, None if u is None else u[:, 4:6])
            labels = labels if self.labels is None else self.labels[index]
        else:
            index = index.to(self.images.device, non_blocking=True)
            images, labels = self.images[index], None if self.labels is None else self.labels[index]
        return images, labels if self.num_classes else None

    def _augment(self, images: Tensor, labels: Tensor | None, u: Tensor | None) -> tuple[Tensor, Tensor | None]:
        config = self.config
        if u is None or not (config.flip or config.shift):
            return images, labels
        u = u.to(images.device, non_blocking=True)
        if config.flip:
            images = flip_images(images, config.flip, u[:, 3])
        if not config.shift:
            return images, labels
        images, moved = shift_images(images, config.shift, u)
        if labels is None:
            labels = torch.full((len(images),), self.null_label, device=images.device)
        return images, torch.where(moved, self.null_label + 1, labels)


def step_batches(model: Model, data: Dataset, config: TrainConfig, part: Part) -> StepBatches:
    """Return the batches of a training; images in memory are moved to the model's device.

    Raises:
        DataError: data that do not fit the model.
    """
    check_fit(model, data)
    images, labels = data.train_images, data.train_labels
    if isinstance(images, Tensor):
        images, labels = images.to(model.device), None if labels is None else labels.to(model.device)
    return StepBatches(images, labels, config, part, model.null_label, model.num_classes)
