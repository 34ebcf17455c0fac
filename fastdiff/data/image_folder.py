"""Folders of images in any format that Pillow reads: ``train/*`` and ``test/*``, or one folder more for each class."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from .dataset import DataError, Dataset

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "test")
MODES = {"L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB", "P": "RGB"}  # mode of the file -> mode of the data
BAR_FROM = 1000  # a progress bar appears for more files than this
LAYOUT = "train/ and test/ must hold images, or one folder of images for each class"

Files = dict[str | None, list[Path]]  # the files of one split by class, or all under None without classes


def load_image_folder(path: str | Path) -> Dataset:
    """Load ``train/*.png`` and ``test/*.png`` without labels, or ``train/<class>/*.png`` and ``test/<class>/*.png``.

    Images become uint8 [N, C, H, W] with 256 levels, C = 1 for grey and 3 for RGB, sorted by class, then by name.
    Labels int64 [N] number the classes of ``train``, sorted by name as text ("10" before "2"). All images must have one
    size, and be all grey or all RGB: grey with alpha counts as grey; RGB with alpha and palettes count as RGB. Alpha is
    dropped, not blended. Pixels are read as they are stored, without EXIF rotation; an animation gives its first frame.
    Names that begin with a dot are ignored. More than a thousand files show a progress bar on stderr.

    Raises:
        DataError: a folder is missing, empty or has another layout; an image cannot be read, has another mode (1 bit,
            16 bit, CMYK …), or differs from the first in size or mode; or a class occurs in ``test`` only.
    """
    path = Path(path)
    train, test = (_files(path, split) for split in SPLITS)
    if (None in train) != (None in test):
        raise DataError(f"{path}: train and test must both have a folder for each class, or neither")
    classes = [name for name in train if name is not None]
    extra = [name for name in test if name is not None and name not in classes]
    if extra:
        raise DataError(f"{path / 'test'} must have the classes of train, {', '.join(classes)}, got {extra[0]}")
    train_files, test_files = ([file for files in found.values() for file in files] for found in (train, test))
    images = torch.from_numpy(_read(train_files + test_files, path.name))
    train_images, test_images = images.split([len(train_files), len(test_files)])
    return Dataset(
        path.resolve().name,
        256,
        len(classes),
        train_images,
        _labels(train, classes),
        test_images,
        _labels(test, classes),
    )


def _files(root: Path, split: str) -> Files:
    """Files of one split by class, both sorted by name."""
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"{root} has no folder {split}: {LAYOUT}")
    entries = _visible(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        return {None: entries}
    if len(folders) < len(entries):
        file = next(entry for entry in entries if not entry.is_dir())
        raise DataError(f"{folder} holds the folder {folders[0].name} and the file {file.name}: {LAYOUT}")
    found: Files = {entry.name: _visible(entry) for entry in folders}
    deep = [file for files in found.values() for file in files if file.is_dir()]
    if deep:
        raise DataError(f"{deep[0]} is a folder inside a class: {LAYOUT}")
    return found


def _visible(folder: Path) -> list[Path]:
    """Entries of a folder, sorted by name, without hidden ones."""
    try:
        entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error
    if not entries:
        raise DataError(f"{folder} is empty: {LAYOUT}")
    return entries


def _labels(found: Files, classes: list[str]) -> torch.Tensor | None:
    if None in found:
        return None
    numbers = torch.tensor([classes.index(str(name)) for name in found])
    return numbers.repeat_interleave(torch.tensor([len(files) for files in found.values()]))


def _read(files: list[Path], name: str) -> np.ndarray:
    """Images uint8 [N, C, H, W] of files that all have the size and mode of the first."""
    images, first = np.empty(0, np.uint8), ""
    bar: Iterable[Path] = tqdm(files, desc=f"reading {name}", unit="img", disable=len(files) <= BAR_FROM)
    for place, file in enumerate(bar):
        with _opened(file) as image:
            mode = MODES[image.mode]  # one letter for each channel
            kind = f"{image.width}×{image.height} {mode}"
            if place == 0:
                images, first = np.empty((len(files), len(mode), image.height, image.width), np.uint8), kind
            if kind != first:  # known before the pixels are decoded
                raise DataError(
                    f"{file} must have the size and mode of {files[0]}, {first}, got {kind}. Images are not resized, "
                    "cropped or converted here: write them with one size and mode first"
                )
            images[place] = _pixels(image)
    return images


@contextmanager
def _opened(file: Path) -> "Iterator[Image]":
    """An image of a mode in `MODES`; whatever its reading raises becomes a `DataError`."""
    from PIL import Image  # slow to import, and most data sets do without

    try:
        if not file.is_file():
            raise DataError(f"{file} must be a regular file")  # opening a named pipe would wait for a writer
        with Image.open(file) as image:
            # Pillow hands EPS and WMF to an interpreter outside of Python, which an untrusted file should not reach
            if image.mode not in MODES or image.format in ("EPS", "WMF"):
                raise DataError(
                    f"{file} must be a pixel image of mode {', '.join(MODES)}, got {image.format} of mode {image.mode}"
                )
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on a damaged file
        raise DataError(f"{file} cannot be read as an image: {error}") from error


def _pixels(image: "Image") -> np.ndarray:
    """Pixels uint8 [C, H, W], converted according to `MODES`."""
    # a palette goes to RGB by way of RGBA, since Pillow warns where the direct step loses transparency
    converted = image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert(MODES[image.mode])
    pixels = np.asarray(converted)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
