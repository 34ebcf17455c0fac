"""Data sets: the embedded digits and letters, ``.npz`` files, CIFAR-10, folders of images and torch `Dataset`s.

    data = load_dataset("digits")      # or the path of a file or folder
    data.train_images                  # uint8 [N, C, H, W] in [0, data.levels), or a source that reads them when used

This package knows no model.
"""

from .cifar10 import load_cifar10
from .dataset import Dataset
from .digits import DIGITS_LEVELS, digits
from .errors import DataError
from .image_folder import load_image_folder
from .image_set import ImageSet, open_images
from .letters import LETTERS, LETTERS_LEVELS, letters
from .loading import load_dataset
from .npz import load_npz
from .options import ImageOptions
from .sample_arrays import load_sample_arrays
from .source import ImageSource
from .torch_data import from_torch

__all__ = [
    "DIGITS_LEVELS", "LETTERS", "LETTERS_LEVELS", "DataError", "Dataset", "ImageOptions", "ImageSet", "ImageSource",
    "digits", "from_torch", "letters", "load_cifar10", "load_dataset", "load_image_folder", "load_npz",
    "load_sample_arrays", "open_images",
]  # fmt: skip
