"""The data set that every loader of this package returns."""

import hashlib
import zlib
from dataclasses import dataclass

from torch import Tensor

from ..io.configuration import to_dict
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
    """

    name: str
    levels: int
    num_classes: int
    train_images: Tensor | ImageSource
    train_labels: Tensor | None
    test_images: Tensor | ImageSource
    test_labels: Tensor | None
    identity: str = ""

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
