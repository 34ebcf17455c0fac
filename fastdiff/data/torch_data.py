"""Torch `Dataset`s as training and test images: their items are read when they are used."""

import operator
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .dataset import Dataset, digest, options_identity
from .decoding import MODES, Form, as_array, converted
from .errors import DataError
from .in_memory import array_form, array_pixels
from .listing import BAR_DELAY
from .options import ImageOptions
from .source import ImageSource, Place

ALLOWED = f"a uint8 tensor or array [C, H, W] or [H, W], or a Pillow image of mode {', '.join(MODES)}"


class Items(Protocol):
    """A map-style torch `Dataset`, or anything else that has a length and items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


def from_torch(
    train: Items,
    test: Items,
    levels: int = 256,
    num_classes: int = 0,
    name: str | None = None,
    options: ImageOptions | None = None,
) -> Dataset:
    """Use two map-style torch `Dataset`s as training and test images.

    Args:
        train, test: each item is an image or a tuple (image, label, …). An image is uint8 [C, H, W] or [H, W], as a
            tensor or an array, or a Pillow image; all have the shape of the first, unless ``options`` resize. Items are
            read when they are used, so for reproducible training they must not be random.
        levels: number of values of a pixel, 2 to 256.
        num_classes: number of classes; labels are integers in [0, num_classes). 0 ignores the labels. The labels are
            taken from the attribute ``targets``, and the items compared with it; without one every item is read once.
            The names of the classes are those of the attribute ``classes`` of ``train``, where these are different
            texts, one for each class.
        name: the data set's name; None: the name of the class of ``train``.
        options: how images are resized, cropped and converted.

    The identity of the data set is that of its two parts: their attribute ``identity`` if it is a string, else the name
    of their class and their length.

    Raises:
        DataError: no items, levels or a number of classes out of range, options for folders, or items that do not fit.
    """
    options = ImageOptions() if options is None else options
    _check_arguments(levels, num_classes, name, options)
    name = type(train).__name__ if name is None else name
    parts = {"train": train, "test": test}
    for part, items in parts.items():
        _check_items(part, items)
    stored = _stored(f"{name}: item 0 of train", _image_of(train[0]))
    form = array_form(name, stored.shape, options)
    sources = {
        part: TorchSource(
            f"{name}: item {{}} of {part}",
            items,
            stored.shape,
            levels,
            form,
            options.crop == "random" and part == "train",
        )
        for part, items in parts.items()
    }
    if num_classes:
        for source in sources.values():
            source.labels = _labels(source, num_classes)
    identity = digest(*map(_identity, parts.values()), str(levels), options_identity(options))
    images, held_out = sources["train"], sources["test"]
    return Dataset(
        name, levels, num_classes, images, images.labels, held_out, held_out.labels, identity,
        class_names=_class_names(train, num_classes),
    )  # fmt: skip


def _class_names(train: Items, num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes, as torchvision's data sets have them; () without."""
    names = getattr(train, "classes", None)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return ()
    distinct = len(set(names)) == len(names) == num_classes and all(names)
    return tuple(names) if distinct else ()


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check_arguments(levels: object, num_classes: object, name: object, options: object) -> None:
    if not isinstance(options, ImageOptions) or not isinstance(name, str | None):
        raise DataError(
            f"options must be ImageOptions or None, and name a string, got {options!r:.80} and {name!r:.80}"
        )
    if not _is_whole(levels, 2, 256) or not _is_whole(num_classes, 0, 2**63):
        raise DataError(
            f"levels must lie in [2, 256] and num_classes be >= 0, integers, got {levels!r:.50}, {num_classes!r:.50}"
        )
    if options.held_out is not None or options.classes or options.skip_damaged:
        raise DataError("held_out, classes and skip_damaged of the options are for folders of images")


class TorchSource(ImageSource):
    """Images of a torch `Dataset`; ``where`` names an item in errors, with {} for its number."""

    def __init__(
        self, where: str, items: Items, stored: tuple[int, ...], levels: int, form: Form | None, random_crop: bool
    ) -> None:
        channels, height, width = stored
        super().__init__((channels, height, width) if form is None else form.shape, levels, None, random_crop)
        self.where, self.items, self.stored, self.form = where, items, stored, form

    def __len__(self) -> int:
        return len(self.items)

    def read(self, position: int, place: Place | None = None) -> np.ndarray:
        """Read one item's image.

        Raises:
            DataError: the item is no image of the first one's shape, its values are out of range, or its label is not
                the one that the attribute ``targets`` says.
        """
        where, item = self.where.format(position), self.items[position]
        image = _stored(where, _image_of(item))
        resized, recolored = (False, False) if self.form is None else _freedoms(self.form)
        fits = image.shape == self.stored or (resized and image.shape[:1] == self.stored[:1])
        if not fits and not (recolored and len(image) in (1, 3) and (resized or image.shape[1:] == self.stored[1:])):
            raise DataError(
                f"{where} must have the shape of item 0 of train, {self.stored}, got {image.shape}; images are resized "
                "by options=ImageOptions(size=…), and converted by color"
            )
        if image.size and image.max() >= self.levels:
            raise DataError(f"{where} must have values from 0 to {self.levels - 1}, got {image.max()}")
        if self.labels is not None and (label := _label_of(where, item)) != (known := int(self.labels[position])):
            raise DataError(f"{where} must have the label {known}, as the attribute targets says, got {label}")
        return image if self.form is None else array_pixels(image, self.form, place, self.levels)


def _freedoms(form: Form) -> tuple[bool, bool]:
    """Whether images may differ in size, and in colour."""
    return form.options.size is not None, form.options.color is not None


def _check_items(part: str, items: object) -> None:
    try:
        count = operator.length_hint(items, -1) if hasattr(items, "__len__") else -1
    except TypeError:
        count = -1
    if count < 1 or not hasattr(items, "__getitem__"):
        got = f"{type(items).__name__} " + ("without a length" if count < 0 else "of length 0")
        raise DataError(f"{part} must be a map-style torch Dataset with at least one item, got {got}")


def _image_of(item: object) -> object:
    return item[0] if isinstance(item, (tuple, list)) and item else item


def _stored(where: str, image: object) -> np.ndarray:
    """Return the image of an item as uint8 [C, H, W]."""
    from PIL.Image import Image

    if isinstance(image, Image) and image.mode in MODES:
        return as_array(converted(image, MODES[image.mode]))
    array = image.numpy(force=True) if isinstance(image, Tensor) else image
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise DataError(f"{where} must be {ALLOWED}, got {_described(image)}")
    array = array if array.ndim == 3 else array[None]
    if array.shape[2] <= 4 < array.shape[0]:
        raise DataError(f"{where} must have the channels before the height, got {_described(image)}, channels last")
    return array


def _described(value: object) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    return f"{type(value).__name__} of mode {mode}" if (mode := getattr(value, "mode", None)) else type(value).__name__


def _label_of(where: str, item: object) -> int:
    """Return the label of an item."""
    label = item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None
    if isinstance(label, Tensor) and (label.dim() or label.is_floating_point()):
        label = None
    try:
        return operator.index(label)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise DataError(f"{where} must be a tuple of an image and an integer label, got {_kinds(item)}") from None


def _kinds(item: object) -> str:
    if isinstance(item, (tuple, list)):
        return f"({', '.join(_described(each) for each in item)})"
    return _described(item)


def _labels(source: TorchSource, num_classes: int) -> Tensor:
    """Labels int64 [N], of the attribute ``targets`` or of all items."""
    targets = getattr(source.items, "targets", None)
    found: Iterable[object]
    if targets is not None and len(targets) == len(source):
        found = targets.tolist() if isinstance(targets, (Tensor, np.ndarray)) else targets
        pairs = (((None, label), position) for position, label in enumerate(found))
    else:
        bar = tqdm(range(len(source)), desc="reading labels", unit="img", delay=BAR_DELAY)
        pairs = ((source.items[position], position) for position in bar)
    labels = torch.empty(len(source), dtype=torch.int64)
    for item, position in pairs:
        where = source.where.format(position)
        label = _label_of(where, item)
        if not 0 <= label < num_classes:
            raise DataError(f"{where} must have a label in [0, {num_classes - 1}], got {label}")
        labels[position] = label
    return labels


def _identity(items: Items) -> str:
    own = getattr(items, "identity", None)
    return own if isinstance(own, str) else f"{type(items).__module__}.{type(items).__qualname__} {len(items)}"
