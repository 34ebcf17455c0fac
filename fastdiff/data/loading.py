"""`load_dataset`: a data set by its name or path."""

import os
from pathlib import Path

from .cifar10 import is_cifar10_folder, load_cifar10
from .dataset import Dataset
from .digits import digits
from .errors import DataError
from .image_folder import load_image_folder
from .in_memory import with_options
from .letters import letters
from .npz import load_npz
from .options import ImageOptions
from .sample_arrays import are_samples, is_sample_folder, load_sample_arrays

# Data sets that are part of the package
EMBEDDED = {"digits": digits, "letters": letters}
_IMAGES = "a folder of {0}×{0} images, or an .npz file"
# Data sets that presets name and that are not part of the package, and what to pass in their place.
NOT_SHIPPED = {
    "cifar10": "the path of cifar-10-binary.tar.gz or cifar-10-python.tar.gz "
    "(https://www.cs.toronto.edu/~kriz/cifar.html), or of the folder that it unpacks to",
    "imagenet32": _IMAGES.format(32),
    "imagenet64": _IMAGES.format(64),
    "celeba64": _IMAGES.format(64),
}


def load_dataset(name: str | os.PathLike[str], options: ImageOptions | None = None) -> Dataset:
    """Load a data set by its name or path.

    ``"digits"`` and ``"letters"`` are embedded (`digits`, `letters`). A path is read as what it looks like: ``*.npz``
    by `load_npz`, or by `load_sample_arrays` where it holds ``arr_0``; ``*.tar.gz``, ``*.tgz`` and a folder with
    ``data_batch_1`` or ``data_batch_1.bin`` by `load_cifar10`; a folder of ``samples-*.npz`` by `load_sample_arrays`;
    any other folder by `load_image_folder`, which reads the images when they are used. ``options`` resize, crop and
    convert the images of each; without options the images of all but the folders are tensors.

    Raises:
        DataError: the name is none of these, the file or folder cannot be read as the data set that it looks like, or
            the options do not fit it.
    """
    options = ImageOptions() if options is None else options
    if not isinstance(name, (str, os.PathLike)) or not isinstance(options, ImageOptions):
        raise DataError(
            f"a data set must be a name or a path, with ImageOptions or None, got {name!r:.80} and {options!r:.80}"
        )
    name = os.fspath(name)
    if is_image_folder(name):
        return load_image_folder(name, options)
    return with_options(_load_in_memory(name), options)


def check_exists(name: str, allowed: str) -> None:
    """Check that there are images of a name: a file, a folder, or a data set that `load_dataset` knows by its name.

    Raises:
        DataError: there are none, and ``allowed`` says what they may be.
    """
    if name not in EMBEDDED and name not in NOT_SHIPPED and not os.path.exists(name):
        raise DataError(f"images must be {allowed}; there is no file {name}")


def is_image_folder(name: str) -> bool:
    """Whether a data set's name is the path of a folder that is read as a folder of images."""
    # unlike Path.is_dir, os.path.isdir is false for a name too long for the file system
    return (
        name not in EMBEDDED and os.path.isdir(name) and not (is_cifar10_folder(Path(name)) or is_sample_folder(name))
    )


def _load_in_memory(name: str) -> Dataset:
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if are_samples(name):
        return load_sample_arrays(name)
    if name.endswith(".npz") and not os.path.isdir(name):
        return load_npz(name)
    if os.path.isdir(name) or name.endswith((".tar.gz", ".tgz")):
        return load_cifar10(name)
    if name in NOT_SHIPPED:
        raise DataError(f"data set {name!r} is not part of fastdiff: pass {NOT_SHIPPED[name]}")
    missing = "" if os.path.exists(name) else f"there is no file or folder {name!r}; "
    raise DataError(
        f"{missing}data set must be {', '.join(map(repr, EMBEDDED))}, or the path of an .npz file, of CIFAR-10's "
        f"archive or folder, or of a folder of images, got {name!r}"
    )
