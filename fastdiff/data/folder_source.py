"""The images of a folder, decoded when they are used."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from .decoding import Form, read_pixels
from .errors import DataError, UnfitImageError
from .paths import PathList
from .source import ImageSource, Place


class FolderSource(ImageSource):
    """Image files, read when they are used.

    Args:
        root: folder that the paths are relative to.
        paths: the files.
        labels: int64 [N] or None.
        form: what the images have in common.
        random_crop: whether crops are placed at random.
        hint: what the error for a file that cannot be read says at its end.
    """

    def __init__(
        self, root: str, paths: PathList, labels: Tensor | None, form: Form, random_crop: bool, hint: str = ""
    ) -> None:
        super().__init__(form.shape, 256, labels, random_crop)
        self.root, self.paths, self.form, self.hint = root, paths, form, hint

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int, place: Place | None = None) -> np.ndarray:
        """Decode one file.

        Raises:
            DataError: it cannot be read, or differs from the others in size or mode.
        """
        with hinting(self.hint):
            return read_pixels(os.path.join(self.root, self.paths[position]), self.form, place)


@contextmanager
def hinting(hint: str) -> Iterator[None]:
    """Add a hint, unless it is empty, to the error for a file that cannot be read."""
    try:
        yield
    except DataError as error:
        if not hint or isinstance(error, UnfitImageError):
            raise
        raise DataError(f"{error}. {hint}") from error
