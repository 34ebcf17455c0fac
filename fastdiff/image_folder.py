"""Folders of images, in any format that Pillow reads: ``train/*`` and ``test/*``, or one folder more for each class."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .data import DataError, Dataset

SPLITS = ("train", "test")
MODES = {"L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB", "P": "RGB"}  # how an image is stored, and how it is taken
BAR_FROM = 1000  # fewer files are read before a progress bar says anything
LAYOUT = "train/ and test/ with images, or with a folder of images for each class"
REMEDY = "nothing is resized, cropped or recoloured here: do it first, to files of one size and mode"


def load_image_folder(path: str | Path) -> Dataset:
    """Load ``train/*.png`` and ``test/*.png`` without labels, or ``train/<class>/*.png`` and ``test/<class>/*.png``.

    Images become uint8 [N, C, H, W] of 256 levels, C = 1 for grey and 3 for RGB, sorted by class, then by name; labels
    int64 [N] number the classes of ``train``, sorted by name as text ("10" before "2"). All images must be of one size,
    and all grey or all RGB: grey with alpha counts as grey, RGB with alpha and palettes as RGB, and alpha is dropped,
    not blended. Pixels are taken as they are stored, without EXIF rotation; of an animation, the first frame. Names
    that begin with a dot are passed over. More than a thousand files show a progress bar on stderr.

    Raises:
        DataError: a folder of another layout, or empty; an image that cannot be read, of another mode (1 bit, 16 bit,
            CMYK …), or of another size or mode than the first; a class that only ``test`` has.
    """
    path = Path(path)
    splits = {split: _files(path, split) for split in SPLITS}
    if len({None in found for found in splits.values()}) > 1:
        raise DataError(f"{path}: classes in one of train and test; allowed: in both or in neither")
    classes = sorted(name for name in splits["train"] if name is not None)
    extra = [name for name in splits["test"] if name is not None and name not in classes]
    if extra:
        raise DataError(
            f"{path / 'test'} holds the class {extra[0]}; allowed: the classes of train, {', '.join(classes)}"
        )
    flat = {split: [file for files in found.values() for file in files] for split, found in splits.items()}
    images = torch.from_numpy(_read([file for split in SPLITS for file in flat[split]], path))
    train_images, test_images = images.split([len(flat[split]) for split in SPLITS])
    train_labels, test_labels = (_labels(splits[split], classes) for split in SPLITS)
    name = path.resolve().name
    return Dataset(name, 256, len(classes), train_images, train_labels, test_images, test_labels)


def _files(root: Path, split: str) -> dict[str | None, list[Path]]:
    """Files of one split by class, both sorted by name; without classes, all of them under None."""
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"{root} holds no folder {split}; allowed: {LAYOUT}")
    entries = _visible(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        return {None: entries}
    if len(folders) < len(entries):
        file = next(entry for entry in entries if not entry.is_dir())
        raise DataError(f"{folder} holds the folder {folders[0].name} and the file {file.name}; allowed: {LAYOUT}")
    found: dict[str | None, list[Path]] = {entry.name: _visible(entry) for entry in folders}
    deep = [file for files in found.values() for file in files if file.is_dir()]
    if deep:
        raise DataError(f"{deep[0]} is a folder inside a class; allowed: {LAYOUT}")
    return found


def _visible(folder: Path) -> list[Path]:
    try:
        entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error
    if not entries:
        raise DataError(f"{folder} is empty; allowed: {LAYOUT}")
    return entries


def _labels(found: dict[str | None, list[Path]], classes: list[str]) -> torch.Tensor | None:
    if None in found:
        return None
    numbers = torch.tensor([classes.index(str(name)) for name in found])
    return numbers.repeat_interleave(torch.tensor([len(files) for files in found.values()]))


def _read(files: list[Path], root: Path) -> np.ndarray:
    """Images uint8 [N, C, H, W] of files that are all like the first."""
    first = _pixels(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    bar: Iterable[Path] = tqdm(files, desc=f"reading {root.name}", unit="img", disable=len(files) <= BAR_FROM)
    for place, file in enumerate(bar):
        image = _pixels(file)
        if image.shape != first.shape:
            raise DataError(
                f"{file} is {_described(image)}, and {files[0]} is {_described(first)}; "
                f"allowed: one size and mode ({REMEDY})"
            )
        images[place] = image
    return images


def _pixels(file: Path) -> np.ndarray:
    """One image uint8 [C, H, W], converted as `MODES` says."""
    from PIL import Image  # slow to import, and most data sets do without

    try:
        with Image.open(file) as image:
            mode, kind = image.mode, image.format
            # a drawing would be handed to an interpreter outside of Pillow, which its pixels are not worth
            if mode in MODES and kind not in ("EPS", "WMF"):
                # by way of RGBA, as Pillow warns of palettes whose transparency the step to RGB loses
                taken = image.convert("RGBA").convert("RGB") if mode == "P" else image.convert(MODES[mode])
                pixels = np.asarray(taken)
                return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise anything on a damaged file
        raise DataError(f"{file} cannot be read as an image: {error}") from error
    raise DataError(f"{file} is {kind} of mode {mode}; allowed: images of mode {', '.join(MODES)} ({REMEDY})")


def _described(image: np.ndarray) -> str:
    channels, height, width = image.shape
    return f"{width}×{height} {'L' if channels == 1 else 'RGB'}"
