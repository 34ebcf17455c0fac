"""Folders of images in any format that Pillow reads: ``train/`` and ``test/``, or one folder of all images."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .dataset import Dataset, digest, options_identity
from .decoding import SKIP_HINT, form_of
from .errors import DataError
from .folder_source import FolderSource, hinting
from .inspection import readable
from .listing import BAR_DELAY, Listing, list_images
from .options import ImageOptions
from .paths import PathList

SPLITS = ("train", "test")
LAYOUT = "it must hold images, or the folders train and test that do"
MAX_HELD_OUT = 1000


@dataclass(frozen=True)
class Part:
    """The files of the training part or the test part: a folder, paths relative to it, and labels int64 [N] or None."""

    root: str
    paths: PathList
    labels: Tensor | None

    def select(self, positions: np.ndarray) -> "Part":
        """Return the part of some of the files, in their order."""
        labels = None if self.labels is None else self.labels[torch.from_numpy(positions)]
        return Part(self.root, self.paths.select(positions), labels)


@dataclass(frozen=True)
class Folder:
    """A folder of images: its two parts, its classes, and what the listings of its files say."""

    train: Part
    test: Part
    classes: list[str]
    listings: list[Listing]

    @property
    def irregular(self) -> list[tuple[str, str]]:
        """Paths that have an image's name and are no files, with what is wrong."""
        return [each for listing in self.listings for each in listing.irregular]


def load_image_folder(path: str | Path, options: ImageOptions | None = None) -> Dataset:
    """Open a folder of images; they are decoded when they are used.

    The folder holds ``train/`` and ``test/`` with images, at any depth, or images at any depth and no such folders;
    then some are held out for evaluation, chosen by a hash of their path (``options.held_out``). With
    ``options.classes`` the first folder below ``train/``, ``test/`` or the root is an image's class; labels int64 [N]
    number the classes by name, sorted as text ("10" before "2"), and `Dataset.class_names` holds the names. Images are
    sorted by path, folder by folder. Names that begin with a dot are ignored, and so are files without an image's
    extension.

    Images are uint8 [C, H, W] with 256 levels, C = 1 for grey and 3 for RGB. Without ``options.size`` all must have one
    size, and without ``options.color`` be all grey or all RGB: grey with alpha counts as grey; RGB with alpha and
    palettes count as RGB (`decoding` says how they are read). The header of the first training image decides; all
    others are compared with it when they are used. With ``options.skip_damaged`` every file is decoded once here.

    Raises:
        DataError: a folder that is missing, has no images or another layout; a file that is no regular file; a first
            image that cannot be read; a class that occurs in ``test`` only.
    """
    options = ImageOptions() if options is None else options
    folder = open_folder(path, options)
    train, test = folder.train, folder.test
    hint = "" if options.skip_damaged else SKIP_HINT
    if options.skip_damaged:
        train, test = _without_damaged(path, folder)
    elif folder.irregular:
        file, problem = folder.irregular[0]
        raise DataError(f"{file} {problem}. {hint}")
    with hinting(hint):
        form = form_of(os.path.join(train.root, train.paths[0]), options)
    train_images, test_images = (
        FolderSource(part.root, part.paths, part.labels, form, options.crop == "random" and part is train, hint)
        for part in (train, test)
    )
    return Dataset(
        Path(path).resolve().name,
        256,
        len(folder.classes),
        train_images,
        train.labels,
        test_images,
        test.labels,
        _identity(folder, options),
        class_names=tuple(map(_text, folder.classes)),
    )


def open_folder(path: str | Path, options: ImageOptions) -> Folder:
    """List the files of a folder of images, and split them; no file is opened.

    Raises:
        DataError: as `load_image_folder`, except for single files.
    """
    root = os.fspath(path)
    if not os.path.isdir(root):
        raise DataError(f"{root} must be a folder of images")
    splits = [name for name in SPLITS if os.path.isdir(os.path.join(root, name))]
    if len(splits) == 1:
        missing = "test" if splits == ["train"] else "train"
        raise DataError(f"{root} has the folder {splits[0]} and no folder {missing}: {LAYOUT}")
    if not splits:
        listing = _listed(root, at_least=2)
        train, test, classes = _split(root, listing, options)
        return Folder(train, test, classes, [listing])
    if options.held_out is not None:
        raise DataError(f"held_out must be None for {root}, whose folder test is held out, got {options.held_out}")
    listings = [_listed(os.path.join(root, name), at_least=1) for name in SPLITS]
    classes = _classes(os.path.join(root, "train"), listings[0].paths) if options.classes else []
    train, test = (
        Part(folder, listing.paths, _labels(folder, listing.paths, classes) if options.classes else None)
        for folder, listing in zip((os.path.join(root, name) for name in SPLITS), listings, strict=True)
    )
    return Folder(train, test, classes, listings)


def _listed(root: str, at_least: int) -> Listing:
    listing = list_images(root)
    if len(listing) < at_least:
        if listing.irregular and not len(listing):
            raise DataError(" ".join(listing.irregular[0]))
        others = f", and {listing.ignored} files without an image's extension" if listing.ignored else ""
        raise DataError(f"{root} must have at least {at_least} images, got {len(listing)}{others}: {LAYOUT}")
    return listing


def _split(root: str, listing: Listing, options: ImageOptions) -> tuple[Part, Part, list[str]]:
    """Hold out some files of a folder without train/ and test/: those whose paths have the smallest hashes."""
    count = len(listing)
    held_out = min(max(count // 20, 1), MAX_HELD_OUT) if options.held_out is None else options.held_out
    if held_out >= count:
        raise DataError(f"held_out must be less than the number of images in {root}, {count}, got {held_out}")
    classes = _classes(root, listing.paths) if options.classes else []
    labels = _labels(root, listing.paths, classes) if options.classes else None
    whole = Part(root, listing.paths, labels)
    hashes = [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") for name in listing.paths]
    order = np.argsort(np.array(hashes, np.uint64), kind="stable")
    return whole.select(np.sort(order[held_out:])), whole.select(np.sort(order[:held_out])), classes


def _class_of(root: str, name: bytes) -> str:
    first, separator, _ = name.partition(os.fsencode(os.sep))
    if not separator:
        file = os.path.join(root, os.fsdecode(name))
        raise DataError(f"{file} must be in the folder of a class, since the classes are asked for")
    return os.fsdecode(first)


def _classes(root: str, paths: PathList) -> list[str]:
    """Names of the folders right below the root; every one must hold an image."""
    found = sorted({_class_of(root, name) for name in paths})
    with os.scandir(root) as entries:
        folders = sorted(each.name for each in entries if each.is_dir() and not each.name.startswith("."))
    empty = [name for name in folders if name not in set(found)]
    if empty:
        raise DataError(f"{os.path.join(root, empty[0])} must hold images, since it is a class, got none")
    return found


def _text(name: str) -> str:
    """Return the name of a folder as text: bytes that are no UTF-8 are written as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _labels(root: str, paths: PathList, classes: Sequence[str]) -> Tensor:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.empty(len(paths), np.int64)
    for position, name in enumerate(paths):
        found = _class_of(root, name)
        if found not in numbers:
            raise DataError(f"{root} must have the classes of train, {', '.join(classes)}, got {found}")
        labels[position] = numbers[found]
    return torch.from_numpy(labels)


def _without_damaged(path: str | Path, folder: Folder) -> tuple[Part, Part]:
    """Decode all files, and leave out those that cannot be read, with a warning that counts them."""
    parts, damaged = [], len(folder.irregular)
    first = " ".join(folder.irregular[0]) if folder.irregular else ""
    files = len(folder.train.paths) + len(folder.test.paths)
    with tqdm(total=files, desc=f"checking {Path(path).name}", unit="img", delay=BAR_DELAY) as bar:
        for part in (folder.train, folder.test):
            usable, problems = readable(part.root, part.paths, bar)
            first = first or next(iter(problems), "")
            damaged += len(problems)
            parts.append(part.select(usable))
    if damaged:
        warnings.warn(
            f"{path}: {damaged} of {files + len(folder.irregular)} image files are left out, since {first}",
            stacklevel=3,
        )
    train, test = parts
    return train, test


def _identity(folder: Folder, options: ImageOptions) -> str:
    parts = [options_identity(options)]
    for listing in folder.listings:
        parts += [listing.paths.text, listing.paths.offsets.tobytes(), listing.sizes.tobytes(), listing.times.tobytes()]
    return digest(*parts)
