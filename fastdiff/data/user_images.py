"""A user's own images, for a model: a picture, a folder, an ``.npz`` file, or the held-out images of a data set."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .decoding import MODES, Form, data_mode, opened, to_pixels
from .errors import DataError
from .in_memory import TensorSource, array_form
from .listing import list_images
from .loading import check_exists, is_image_folder, load_dataset
from .options import ImageOptions
from .sample_arrays import are_samples, read_sample_arrays

HINT = "--fit resizes, crops and converts (fit=True)"
Size = tuple[int, int]  # width and height


@dataclass(frozen=True)
class UserImages:
    """Images of one shape.

    images: uint8 [N, C, H, W] in [0, levels). names: one for each, without an ending. sizes: those in the files.
    """

    images: Tensor
    levels: int
    names: list[str]
    sizes: list[Size]

    def at_levels(self, levels: int) -> Tensor:
        """Return the images with another number of levels, rounded to the nearest, uint8 [N, C, H, W]."""
        if levels == self.levels:
            return self.images
        return torch.round(self.images.double() * ((levels - 1) / (self.levels - 1))).to(torch.uint8)


def read_user_images(
    path: str | os.PathLike[str], shape: tuple[int, int, int], fit: bool = False, limit: int | None = None
) -> UserImages:
    """Read images for a model.

    Args:
        path: a picture; a folder of pictures at any depth, in the order of their paths; an ``.npz`` file with ``arr_0``
            or a folder of such pieces (`read_sample_arrays`), whose images are all taken; or a data set
            (`load_dataset`), whose held-out images are taken.
        shape: (C, H, W) that the images must have, C = 1 for grey and 3 for RGB.
        fit: resize the shorter side, crop the centre and convert the colours, for square images.
        limit: number of images to read, the first ones; None for all.

    Raises:
        DataError: there are none, one cannot be read, or has another size or colour.
    """
    path, options = os.fspath(path), _options(shape, fit)
    check_exists(path, "a picture, a folder of pictures, an .npz file or a data set")
    if is_image_folder(path):
        listing = list_images(path)
        if not len(listing):
            raise DataError(f"{path} must hold images, got {listing.ignored} files without an image's extension")
        count = len(listing.paths) if limit is None else min(limit, len(listing.paths))
        files = [os.fsdecode(listing.paths[k]) for k in range(count)]
        return _read_files([os.path.join(path, name) for name in files], _names(files), shape, options)
    if os.path.isfile(path) and not path.endswith((".npz", ".tar.gz", ".tgz")):
        return _read_files([path], [Path(path).stem], shape, options)
    if are_samples(path):
        images, levels = read_sample_arrays(path)[0], 256
    else:
        data = load_dataset(path)
        images, levels = data.test_images, data.levels
    height, width = images.shape[-2:]
    if fit and isinstance(images, Tensor):
        form = array_form(path, tuple(images.shape[1:]), options)
        images = images if form is None else TensorSource(images, None, levels, form, False)
    images = images[: len(images) if limit is None else limit]
    if tuple(images.shape[1:]) != shape:
        raise DataError(
            f"{path} must hold images of shape {shape} for this model, got {tuple(images.shape[1:])}. {HINT}"
        )
    return UserImages(images, levels, [f"{k:05}" for k in range(len(images))], [(width, height)] * len(images))


def read_mask(path: str | os.PathLike[str], images: UserImages, fit: bool = False) -> Tensor:
    """Read a mask for images, bool [H, W]: True where the picture is nearer to white than to black. Alpha is dropped.

    Args:
        path: a picture of the size of the images, or with ``fit`` of the size that they have in their files.
        images: the images.
        fit: whether they were resized and cropped; a mask of their stored size is resized and cropped as they are.

    Raises:
        DataError: it cannot be read, or has another size.
    """
    path, (_, _, height, width) = os.fspath(path), images.images.shape
    with opened(path, (*MODES, "1")) as image:
        allowed = {(width, height)} | (set(images.sizes) if fit and len(set(images.sizes)) == 1 else set())
        if image.size not in allowed:
            sizes = " or ".join(f"{w}×{h}" for w, h in sorted(allowed))
            raise DataError(f"{path} must be a mask of {sizes}, as the images, got {image.width}×{image.height}")
        options = ImageOptions() if image.size == (width, height) else ImageOptions(size=width, color="grey")
        pixels = to_pixels(image.convert("L"), Form("L", image.width, image.height, path, options), None)
    return torch.from_numpy(pixels[0] >= 128)


def _options(shape: tuple[int, int, int], fit: bool) -> ImageOptions:
    """Return the options that bring images to a shape."""
    channels, height, width = shape
    if not fit:
        return ImageOptions()
    if height != width or channels not in (1, 3):
        raise DataError(f"fit must be False for images of shape {shape}: only square grey or RGB images are fitted")
    return ImageOptions(size=height, color="grey" if channels == 1 else "rgb")


def _read_files(paths: list[str], names: list[str], shape: tuple[int, int, int], options: ImageOptions) -> UserImages:
    pixels, sizes = [], []
    for path in paths:
        with opened(path) as image:
            mode, size = data_mode(image, options), image.size
            found = (len(mode), *((options.size, options.size) if options.size is not None else size[::-1]))
            if found != shape:
                wanted, got = (f"{w}×{h} {'RGB' if c == 3 else 'grey' if c == 1 else f'of {c} channels'}"
                               for c, h, w in (shape, found))  # fmt: skip
                raise DataError(f"{path} must be {wanted} for this model, got {got}. {HINT}")
            pixels.append(to_pixels(image, Form(mode, *size, path, options), None))
        sizes.append(size)
    return UserImages(torch.from_numpy(np.stack(pixels)), 256, names, sizes)


def _names(files: list[str]) -> list[str]:
    """Return a name for each file of a folder: its own, or numbers where two files have the same."""
    stems = [Path(file).stem for file in files]
    return stems if len(set(stems)) == len(stems) else [f"{k:05}" for k in range(len(files))]
