"""What a data set is, whatever file it came from."""

from dataclasses import dataclass

from torch import Tensor


class DataError(ValueError):
    """A data set that is missing, of another format, or holds values out of range."""


@dataclass(frozen=True)
class Dataset:
    """A split data set: images uint8 [N, C, H, W] in [0, levels), labels int64 [N] or None."""

    name: str
    levels: int
    classes: int
    train_images: Tensor
    train_labels: Tensor | None
    test_images: Tensor
    test_labels: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width
