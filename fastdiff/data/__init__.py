"""Data sets in memory: the embedded digits, ``.npz`` files, CIFAR-10 and folders of images.

    data = load_dataset("digits")      # or the path of a file or folder
    data.train_images                  # uint8 [N, C, H, W] in [0, data.levels)

This package knows no model.
"""

from .cifar10 import load_cifar10
from .dataset import DataError, Dataset
from .digits import DIGITS_LEVELS, digits
from .image_folder import load_image_folder
from .loading import load_dataset
from .npz import load_npz

__all__ = [
    "DIGITS_LEVELS", "DataError", "Dataset",
    "digits", "load_cifar10", "load_dataset", "load_image_folder", "load_npz",
]  # fmt: skip
