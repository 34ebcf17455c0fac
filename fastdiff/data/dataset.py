"""The data set that every loader of this package returns."""

import hashlib
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..io.configuration import to_dict
from .errors import DataError
from .options import ImageOptions
from .source import ImageSource


@dataclass(frozen=True)
class Dataset:
    """Images and labels, split into a training part and a test part.

    Args:
        name: the data set's name; for files and folders their own name.
        levels: number of values of a pixel, 2 to 256.
        num_classes: number of classes; 0 without labels.
        train_images, test_images: uint8 [N, C, H, W], values in [0, levels): a tensor, or an `ImageSource`, which reads
            images when they are used. Both have a length, and both give tensors for an index or a slice.
        train_labels, test_labels: int64 [N], values in [0, num_classes); both None without labels.
        identity: tells this data set from others, and from itself after a change; "" where nobody knows. For files it
            derives from their names, sizes and times and from the options, for arrays from their content.
        class_names: the name of each class, in the order of the labels; () where the classes have numbers alone.
        test_groups: int64 [M], the number of the group that a test image belongs to, such as its font family or its
            writer: errors of bits per dimension are then stated over the groups too. None without groups.
        group_kind: what the groups are, in the plural, such as "font families".
        group_names: the name of each group by its number; () where they have numbers alone.

    Raises:
        DataError: names that are not as many as the classes, or groups that are not one for each test image.
    """

    name: str
    levels: int
    num_classes: int
    train_images: Tensor | ImageSource
    train_labels: Tensor | None
    test_images: Tensor | ImageSource
    test_labels: Tensor | None
    identity: str = ""
    class_names: tuple[str, ...] = ()
    test_groups: Tensor | None = None
    group_kind: str = ""
    group_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.num_classes:
            raise DataError(
                f"{self.name}: class_names must be {self.num_classes} names or none, got {len(self.class_names)}"
            )
        groups = self.test_groups
        if groups is not None and (groups.dtype != torch.int64 or groups.shape != (len(self.test_images),)):
            raise DataError(
                f"{self.name}: test_groups must be torch.int64 of shape [{len(self.test_images)}], one number for each "
                f"test image, got {groups.dtype} {tuple(groups.shape)}"
            )

    def group_name(self, number: int) -> str:
        """Return the name of a group; its number as text where it has none."""
        return self.group_names[number] if 0 <= number < len(self.group_names) else str(number)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train_images.shape[-3:]
        return channels, height, width


def digest(*parts: str | bytes) -> str:
    """Return 16 hexadecimal digits that tell these parts from others."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        hashed.update(len(content).to_bytes(8, "little") + content)
    return hashed.hexdigest()


def options_identity(options: ImageOptions) -> str:
    """Return the options that are not the default ones, as text; "" if all are."""
    default = to_dict(ImageOptions())
    return ",".join(f"{name}={value}" for name, value in sorted(to_dict(options).items()) if value != default[name])


def array_identity(levels: int, *arrays: Tensor | None) -> str:
    """Return the identity of arrays in memory: of their shapes and the checksums of their content."""
    parts = [
        "none" if each is None else f"{tuple(each.shape)} {zlib.crc32(each.contiguous().numpy().data)}"
        for each in arrays
    ]
    return digest(str(levels), *parts)
