"""The data set that every loader of this package returns, and the error that it raises."""

from dataclasses import dataclass

from fastdiff_kernels.errors import FastdiffError
from torch import Tensor


class DataError(FastdiffError, ValueError):
    """A data set that is missing or damaged, or that has the wrong format, shape, dtype or range of values."""


@dataclass(frozen=True)
class Dataset:
    """Images and labels in memory, split into a training part and a test part.

    Args:
        name: the data set's name; for files and folders their own name.
        levels: number of values of a pixel, 2 to 256.
        num_classes: number of classes; 0 without labels.
        train_images, test_images: uint8 [N, C, H, W], values in [0, levels).
        train_labels, test_labels: int64 [N], values in [0, num_classes); both None without labels.
    """

    name: str
    levels: int
    num_classes: int
    train_images: Tensor
    train_labels: Tensor | None
    test_images: Tensor
    test_labels: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width
