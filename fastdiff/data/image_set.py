"""Any set of images as it is, to be compared with another one: a folder, a file, or the training part of a data set."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from .decoding import SKIP_HINT, form_of
from .errors import DataError
from .folder_source import FolderSource, hinting
from .in_memory import TensorSource, array_form
from .inspection import readable
from .listing import BAR_DELAY, Listing, list_images
from .loading import check_exists, is_image_folder, load_dataset
from .options import ImageOptions
from .paths import PathList
from .sample_arrays import are_samples, read_sample_arrays
from .source import ImageSource


@dataclass(frozen=True)
class ImageSet:
    """Images, uint8 [N, C, H, W] with values in [0, levels), and where they come from.

    images: a tensor, or a source that reads them when they are used. names: for a folder, the path of each relative to
    it, without its ending; None for arrays.
    """

    name: str
    images: Tensor | ImageSource
    levels: int
    names: list[str] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[-3:]
        return channels, height, width


def open_images(name: str | os.PathLike[str], options: ImageOptions | None = None) -> ImageSet:
    """Return all images of a folder or of a file of samples, or the training images of a data set.

    Args:
        name: a folder of images at any depth (where it holds ``train/`` and ``test/``, those of ``train/``); an
            ``.npz`` file with ``arr_0``, or a folder of such pieces; or what `load_dataset` takes.
        options: resize, crop and convert the images; without, those of a folder must have one size and mode. With
            ``skip_damaged`` every file of a folder is decoded here, and those that cannot be read are left out.

    Raises:
        DataError: there are none, or they cannot be read; the first one that differs is named when it is read.
    """
    options, name = ImageOptions() if options is None else options, os.fspath(name)
    check_exists(name, "a folder of images, an .npz file or a data set")
    if is_image_folder(name):
        return _folder(name, options)
    if are_samples(name):
        images, _ = read_sample_arrays(name)
        form = array_form(name, tuple(images.shape[1:]), options)
        return ImageSet(name, images if form is None else TensorSource(images, None, 256, form, False), 256)
    data = load_dataset(name, options)
    return ImageSet(f"the training images of {data.name}", data.train_images, data.levels)


def _folder(path: str, options: ImageOptions) -> ImageSet:
    split = all(os.path.isdir(os.path.join(path, part)) for part in ("train", "test"))
    root = os.path.join(path, "train") if split else path
    listing = list_images(root)
    hint = "" if options.skip_damaged else SKIP_HINT
    if listing.irregular and not options.skip_damaged:
        raise DataError(f"{' '.join(listing.irregular[0])}. {hint}")
    if not len(listing):
        raise DataError(f"{root} must hold images, got {listing.ignored} files without an image's extension")
    paths = _readable(root, listing) if options.skip_damaged else listing.paths
    with hinting(hint):
        form = form_of(os.path.join(root, paths[0]), options)
    names = [os.path.splitext(Path(os.fsdecode(each)).as_posix())[0] for each in paths]
    return ImageSet(root, FolderSource(root, paths, None, form, False, hint), 256, names)


def _readable(root: str, listing: Listing) -> PathList:
    """Decode every file, and return those that can be read, with a warning that counts the others."""
    with tqdm(total=len(listing), desc=f"checking {Path(root).name}", unit="img", delay=BAR_DELAY) as bar:
        usable, damaged = readable(root, listing.paths, bar)
    problems = [*(" ".join(each) for each in listing.irregular), *damaged]
    if problems:
        files = len(listing) + len(listing.irregular)
        text = f"{root}: {len(problems)} of {files} image files are left out, since {problems[0]}"
        warnings.warn(text, stacklevel=4)
    return listing.paths.select(usable)


def paired(one: ImageSet, other: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return two sets of which image i of one belongs to image i of the other: by the names of files, or by position.

    Raises:
        DataError: names without a partner, or different numbers of images.
    """
    if one.names is None or other.names is None:
        if len(one.images) != len(other.images):
            found = f"{len(one.images)} of {one.name} and {len(other.images)} of {other.name}"
            raise DataError(f"paired images must be as many in both sets, got {found}")
        return one, other
    for first, second in ((one, other), (other, one)):
        alone = sorted(set(first.names or ()) - set(second.names or ()))
        if alone:
            count = f", {len(alone)} in all" if len(alone) > 1 else ""
            raise DataError(f"paired images must have the same names: {second.name} has no {alone[0]}{count}")
    for each in (one, other):
        if len(set(each.names or ())) != len(each.names or ()):
            raise DataError(f"paired images must have a name each, but {each.name} holds one with several endings")
    return _sorted(one), _sorted(other)


def _sorted(images: ImageSet) -> ImageSet:
    """Return a set of files in the order of their names without endings."""
    names, source = images.names, images.images
    assert names is not None and isinstance(source, FolderSource)  # noqa: PT018
    order = sorted(range(len(names)), key=names.__getitem__)
    paths = source.paths.select(np.array(order, np.int64))
    ordered = FolderSource(source.root, paths, None, source.form, False, source.hint)
    return ImageSet(images.name, ordered, images.levels, [names[position] for position in order])
