"""Training batches as pure functions of (seed, step): the order of the data, label dropout, shifts and flips."""

from functools import lru_cache

import torch
from torch import Tensor

from ..data import DataError, Dataset
from ..kernels import Noise, Stream
from ..models import Model
from .config import TrainConfig


def check_fit(model: Model, data: Dataset) -> None:
    """Check that a data set has the shape and levels of a model, and its number of classes or no labels.

    Raises:
        DataError: it does not.
    """
    labels_fit = not model.num_classes or data.num_classes in (0, model.num_classes)
    if data.shape != model.shape or data.levels != model.levels or not labels_fit:
        classes = f" and {model.num_classes} classes or no labels" if model.num_classes else ""
        raise DataError(
            f"data set {data.name} must have shape {model.shape}, {model.levels} levels{classes}, as the model has, "
            f"got {data.shape}, {data.levels} levels and {data.num_classes} classes"
        )


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """Return the indices of a batch, int64 [batch_size]: positions step · batch_size + b of an endless shuffled order.

    Every epoch is a permutation, a function of the seed and the epoch, so each image occurs once per epoch.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // count, (last - 1) // count + 1)
    shuffled = torch.cat([_epoch_order(seed, epoch, count) for epoch in epochs])
    return shuffled[first - epochs[0] * count :][:batch_size]


@lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return Noise(seed, step=epoch, stream=Stream.ORDER).uniform((1, count)).squeeze(0).argsort(stable=True)


def drop_labels(labels: Tensor, null_label: int, probability: float, noise: Noise) -> Tensor:
    """Replace labels by the null label with a probability."""
    u = noise.at(stream=Stream.LABELS).uniform((len(labels), 1)).squeeze(1).to(labels.device)
    return torch.where(u <= probability, torch.full_like(labels, null_label), labels)


def shift_images(images: Tensor, probability: float, noise: Noise) -> tuple[Tensor, Tensor]:
    """Shift images [B, C, H, W] by -1, 0 or 1 pixels each way with a probability, filling with zeros.

    Returns the images, and a mask [B] of those that were moved by a shift other than (0, 0).
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
    u = noise.at(stream=Stream.AUGMENTATION).uniform((len(images), 4))[:, 3].to(images.device)  # 0 .. 2 are the shifts
    return torch.where((u <= probability)[:, None, None, None], images.flip(3), images)


def augmented_batch(
    model: Model, images: Tensor, labels: Tensor | None, config: TrainConfig, noise: Noise
) -> tuple[Tensor, Tensor | None]:
    """Augment a batch; return the images and the labels that the network is conditioned on.

    A label is the class, the null label, or the label "augmented" of a shifted image; None for a model without labels.
    """
    if labels is not None:
        labels = drop_labels(labels, model.null_label, config.label_dropout, noise)
    if config.flip:
        images = flip_images(images, config.flip, noise)
    if not config.shift:
        return images, labels
    images, moved = shift_images(images, config.shift, noise)
    if labels is None:
        labels = torch.full((len(images),), model.null_label, device=images.device)
    return images, torch.where(moved, model.null_label + 1, labels)
