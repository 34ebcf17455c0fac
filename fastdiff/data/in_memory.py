"""Images in memory that are resized, cropped or converted when they are used."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from .dataset import Dataset, digest, options_identity
from .decoding import COLORS, Form, to_pixels
from .errors import DataError
from .options import ImageOptions
from .source import ImageSource, Place


class TensorSource(ImageSource):
    """Images of a tensor uint8 [N, C, H, W], C = 1 or 3, brought to a form one by one.

    What the resizing filter gives beyond the highest level is set to it.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, levels: int, form: Form, random_crop: bool) -> None:
        super().__init__(form.shape, levels, labels, random_crop)
        self.images, self.form = images, form

    def __len__(self) -> int:
        return len(self.images)

    def read(self, position: int, place: Place | None = None) -> np.ndarray:
        """Return one image as it is used."""
        return array_pixels(self.images[position].numpy(), self.form, place, self.levels)


def array_pixels(image: np.ndarray, form: Form, place: Place | None, levels: int) -> np.ndarray:
    """Bring an image uint8 [1 or 3, H, W] to a form."""
    from PIL import Image

    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.minimum(to_pixels(picture, form, place), levels - 1)


def array_form(name: str, shape: tuple[int, ...], options: ImageOptions) -> Form | None:
    """Return the form that the options give images [C, H, W], or None if they neither resize nor convert.

    Raises:
        DataError: options that change images of neither one nor three channels.
    """
    channels, height, width = shape
    if options.size is None and options.color is None:
        return None
    if channels not in (1, 3):
        raise DataError(f"size and color must be None for {name}, whose images have {channels} channels and not 1 or 3")
    mode = "L" if channels == 1 else "RGB"
    return Form(mode if options.color is None else COLORS[options.color], width, height, name, options)


def with_options(data: Dataset, options: ImageOptions) -> Dataset:
    """Return a data set in memory whose images are brought to the options when they are used.

    Raises:
        DataError: options that are for folders of images only, or that do not fit the images.
    """
    if options.held_out is not None:
        raise DataError(f"held_out must be None for {data.name}, which has held-out images, got {options.held_out}")
    if options.classes and not data.num_classes:
        raise DataError(f"classes must be False for {data.name}, which has no labels and no folders of classes")
    form = array_form(data.name, data.shape, options)
    shorter = options.resize or options.size or min(data.shape[1:])
    if form is None or (form.shape == data.shape and shorter == min(data.shape[1:])):  # images stay as they are
        return data
    parts = [(data.train_images, data.train_labels, True), (data.test_images, data.test_labels, False)]
    train, test = (
        TensorSource(images, labels, data.levels, form, options.crop == "random" and is_train)
        for images, labels, is_train in parts
        if isinstance(images, Tensor)
    )
    identity = digest(data.identity, options_identity(options))
    return replace(data, train_images=train, test_images=test, identity=identity)
