"""`ImageSource`: images that are read when they are used."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from fastdiff_kernels.errors import InvalidTypeError, InvalidValueError
from torch import Tensor

Place = tuple[float, float]  # uniforms in (0, 1] that place a random crop, y and x


class ImageSource(ABC):
    """Images that are read when they are used, in the order of their index.

    A subclass implements ``__len__`` and `read`. An object is copied into every process that loads data, so it keeps
    what grows with the number of images in arrays: a Python list of 200,000 strings would be copied page by page as its
    reference counts change.

    shape: (C, H, W) of one image. levels: number of values of a pixel. labels: int64 [N] or None. random_crop: whether
    `batch` makes use of ``crop``.
    """

    def __init__(
        self, shape: tuple[int, int, int], levels: int, labels: Tensor | None = None, random_crop: bool = False
    ) -> None:
        self.shape, self.levels, self.labels, self.random_crop = shape, levels, labels, random_crop

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, position: int, place: Place | None = None) -> np.ndarray:
        """Read one image, uint8 [C, H, W]; ``place`` places its random crop, None crops at the centre."""

    def batch(self, index: Tensor, crop: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Read images by their index.

        Args:
            index: int64 [B] in [0, N), on the CPU.
            crop: float32 [B, 2], uniforms (y, x) in (0, 1] that place the crops of a source with ``random_crop``; None
                crops at the centre. Other sources always crop at the centre.

        Returns:
            Images uint8 [B, C, H, W], contiguous, and labels int64 [B] or None.

        Raises:
            InvalidTypeError, InvalidValueError: an index or crops that do not fit.
            DataError: an image that cannot be read or that does not fit the others.
        """
        if index.dtype != torch.int64 or index.dim() != 1:
            raise InvalidTypeError(f"index must be torch.int64 of shape [B], got {index.dtype} {tuple(index.shape)}")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise InvalidValueError(
                f"index must lie in 0 .. {len(self) - 1}, got {int(index.min())}, {int(index.max())}"
            )
        places: list[Place | None] = [None] * len(index)
        if crop is not None and self.random_crop:
            if crop.shape != (len(index), 2):
                raise InvalidValueError(f"crop must have shape {(len(index), 2)}, got {tuple(crop.shape)}")
            places = [(y, x) for y, x in crop.tolist()]
        images = np.empty((len(index), *self.shape), np.uint8)
        for row, (position, place) in enumerate(zip(index.tolist(), places, strict=True)):
            images[row] = self.read(position, place)
        return torch.from_numpy(images), None if self.labels is None else self.labels[index]

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        """Images uint8 [B, C, H, W], cropped at the centre, as a tensor of all images would give them.

        ``index`` is int64 [B], bool [N], a slice, or a number, which gives one image [C, H, W].
        """
        positions = torch.arange(len(self))[index]
        images, _ = self.batch(positions.view(-1))
        return images if positions.dim() else images[0]


def crop_offset(uniform: float, room: int) -> int:
    """Return an offset in 0 .. room, each equally likely, from a uniform in (0, 1]."""
    return min(int(uniform * (room + 1)), room)
