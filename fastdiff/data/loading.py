"""`load_dataset`: a data set by its name or path."""

import os
from pathlib import Path

from .cifar10 import is_cifar10_folder, load_cifar10
from .dataset import DataError, Dataset
from .digits import digits
from .image_folder import load_image_folder
from .npz import load_npz

_IMAGES = "a folder of {0}×{0} images with train/ and test/, or an .npz file"
# Data sets that presets name and that are not part of the package, and what to pass in their place.
NOT_SHIPPED = {
    "cifar10": "the path of cifar-10-binary.tar.gz or cifar-10-python.tar.gz "
    "(https://www.cs.toronto.edu/~kriz/cifar.html), or of the folder that it unpacks to",
    "imagenet32": _IMAGES.format(32),
    "imagenet64": _IMAGES.format(64),
    "celeba64": _IMAGES.format(64),
}


def load_dataset(name: str) -> Dataset:
    """Load a data set by its name or path.

    ``"digits"`` is embedded (`digits`). A path is read as what it looks like: ``*.npz`` by `load_npz`; ``*.tar.gz``,
    ``*.tgz`` and a folder with ``data_batch_1`` or ``data_batch_1.bin`` by `load_cifar10`; any other folder by
    `load_image_folder`.

    Raises:
        DataError: the name is none of these, or the file or folder cannot be read as the data set that it looks like.
    """
    if name == "digits":
        return digits()
    if os.path.isdir(name):  # unlike Path.is_dir, false for a name too long for the file system
        return load_cifar10(name) if is_cifar10_folder(Path(name)) else load_image_folder(name)
    if name.endswith(".npz"):
        return load_npz(name)
    if name.endswith((".tar.gz", ".tgz")):
        return load_cifar10(name)
    if name in NOT_SHIPPED:
        raise DataError(f"data set {name!r} is not part of fastdiff: pass {NOT_SHIPPED[name]}")
    raise DataError(
        "data set must be 'digits', or the path of an .npz file, of CIFAR-10's archive or folder, or of a folder of "
        f"images with train/ and test/, got {name!r}"
    )
