"""Data sets in memory, as uint8 levels: the embedded digits, ``.npz`` files, CIFAR-10, and folders of images."""

import zipfile
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .cifar import load_cifar10
from .data import DataError, Dataset
from .image_folder import load_image_folder
from .models import Model

DIGITS_LEVELS = 17
NOT_SHIPPED = {
    "cifar10": "the path of cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html), or of the folder "
    "cifar-10-batches-py that it unpacks to",
    "imagenet32": "a folder of 32×32 images with train/ and test/, or an .npz file",
    "imagenet64": "a folder of 64×64 images with train/ and test/, or an .npz file",
    "celeba64": "a folder of 64×64 images with train/ and test/, or an .npz file",
}


def load_dataset(name: str) -> Dataset:
    """Load a data set by its name or path.

    ``"digits"`` is embedded. A path is read as what it looks like: ``*.npz`` (`load_npz`); ``*.tar.gz``, ``*.tgz`` or a
    folder with ``data_batch_1`` as CIFAR-10 (`load_cifar10`); any other folder as images (`load_image_folder`).

    Raises:
        DataError: a name that is none of these, a data set that is known but not shipped, or a file that does not fit.
    """
    path = Path(name)
    if name == "digits":
        return digits()
    if path.is_dir():
        return load_cifar10(path) if (path / "data_batch_1").is_file() else load_image_folder(path)
    if name.endswith(".npz"):
        return load_npz(name)
    if name.endswith((".tar.gz", ".tgz")):
        return load_cifar10(path)
    if name in NOT_SHIPPED:
        raise DataError(f"data set {name!r} is not shipped; allowed: --data with {NOT_SHIPPED[name]}")
    raise DataError(
        f"unknown data set {name!r}; allowed: digits, or the path of an .npz file, of CIFAR-10's archive or folder, "
        "or of a folder of images with train/ and test/"
    )


def digits() -> Dataset:
    """The embedded UCI hand-written digits: 1797 images 8×8 of 17 levels, ten classes, split 1500 / 297 once at random.

    The split is by image, not by writer: every writer may be on both sides.
    """
    with files("fastdiff.assets").joinpath("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        arrays = {name: torch.from_numpy(data[name].astype(_kept(name))) for name in data.files}
    return Dataset("digits", DIGITS_LEVELS, 10, **arrays)


def load_npz(path: str | Path) -> Dataset:
    """Load images from an ``.npz`` file.

    Keys: ``train_images`` and ``test_images``, uint8 [N, C, H, W] or [N, H, W]; optionally ``train_labels`` and
    ``test_labels``, integers [N] from 0; optionally ``levels`` (default 256).

    Raises:
        DataError: a file that is missing or no ``.npz``, a missing key, another dtype or rank, values out of range.
    """
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array; allowed: an .npz archive of named arrays")
            arrays = {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it is no .npz archive" if "pickle" in str(error) else error  # NumPy would advise to load it unsafely
        raise DataError(f"{path} cannot be read as .npz: {reason}") from error
    levels = _levels(path, arrays.pop("levels", np.array(256)))
    parts = {}
    for split in ("train", "test"):
        parts[f"{split}_images"] = _images(path, f"{split}_images", arrays, levels)
        parts[f"{split}_labels"] = _labels(path, f"{split}_labels", arrays, len(parts[f"{split}_images"]))
    if parts["train_images"].shape[1:] != parts["test_images"].shape[1:]:
        raise DataError(f"{path}: train_images and test_images differ in shape; allowed: one [C, H, W]")
    labels = [part for name, part in parts.items() if name.endswith("labels") and part is not None]
    if len(labels) == 1:
        raise DataError(f"{path}: labels for one of the two parts; allowed: both or neither")
    classes = 1 + max(int(part.max()) for part in labels) if labels else 0
    return Dataset(Path(path).stem, levels, classes, **parts)


def check_fit(model: Model, data: Dataset) -> None:
    """Check that a data set is of the shape and levels of a model, and labelled with its classes or not at all.

    Raises:
        DataError: saying what was given and what is allowed.
    """
    labels_fit = not model.classes or data.classes in (0, model.classes)
    if data.shape != model.shape or data.levels != model.levels or not labels_fit:
        raise DataError(
            f"data set {data.name}: shape {data.shape}, {data.levels} levels, {data.classes} classes; "
            f"allowed: {model.shape}, {model.levels} levels, {model.classes} classes or no labels"
        )


def _levels(path: str | Path, levels: np.ndarray) -> int:
    if levels.dtype.kind not in "iu" or levels.ndim != 0 or not 2 <= int(levels) <= 256:
        raise DataError(f"{path}: levels is {levels.tolist()}; allowed: one integer, 2 to 256")
    return int(levels)


def _images(path: str | Path, key: str, arrays: dict[str, np.ndarray], levels: int) -> Tensor:
    if key not in arrays:
        raise DataError(f"{path}: no {key} among {', '.join(arrays)}; allowed: train_images and test_images")
    images = arrays[key]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise DataError(
            f"{path}: {key} is {images.dtype} {images.shape}; allowed: uint8 [N, C, H, W] or [N, H, W], N > 0"
        )
    if images.max() >= levels:
        raise DataError(f"{path}: {key} holds the value {images.max()}; allowed: 0 .. {levels - 1}")
    tensor = torch.from_numpy(images)
    return tensor if tensor.dim() == 4 else tensor[:, None]


def _labels(path: str | Path, key: str, arrays: dict[str, np.ndarray], count: int) -> Tensor | None:
    if key not in arrays:
        return None
    labels = arrays[key]
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or labels.min() < 0:
        raise DataError(f"{path}: {key} is {labels.dtype} {labels.shape}; allowed: integers >= 0 of shape ({count},)")
    return torch.from_numpy(labels.astype(np.int64))


def _kept(name: str) -> type:
    return np.int64 if name.endswith("labels") else np.uint8
