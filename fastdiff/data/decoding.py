"""One image file as pixels: opened with Pillow, checked before it is decoded, resized and cropped.

Pixels are read as they are stored, without EXIF rotation; an animation gives its first frame; alpha is dropped, not
blended. Images are resized by Pillow's Lanczos filter, whose support grows with the reduction (antialiasing), after a
box filter has brought them to about three times the wanted size (``reducing_gap``); a JPEG is decoded at a reduced size
that is at least as large. Only what the crop needs is resized.
"""

import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import IO, TYPE_CHECKING

import numpy as np

from .errors import DataError, UnfitImageError
from .listing import UNDECODABLE
from .options import ImageOptions
from .source import Place, crop_offset

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {"L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB", "P": "RGB"}  # mode of the file -> mode of the data
COLORS = {"grey": "L", "rgb": "RGB"}
MAX_PIXELS = 64_000_000
MAX_BYTES = 1 << 30
# Pillow hands EPS and WMF to an interpreter outside of Python; what FITS and IPTC unpack to is not bounded
REFUSED = ("EPS", "WMF", "FITS", "IPTC", *UNDECODABLE)
REDUCING_GAP = 3.0
SKIP_HINT = "fastdiff check lists such files, and --skip-damaged (`ImageOptions(skip_damaged=True)`) leaves them out"
HINT = "--size resizes and crops all images, --color grey or --color rgb converts them (`ImageOptions`)"


@dataclass(frozen=True)
class Form:
    """What all images of a data set have in common: the mode, one letter per channel, and the stored width and height.

    With ``options.size`` the stored width and height do not matter. ``like`` names the image that the others must be
    like.
    """

    mode: str
    width: int
    height: int
    like: str
    options: ImageOptions

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images as they are used."""
        size = self.options.size
        return (len(self.mode), self.height, self.width) if size is None else (len(self.mode), size, size)

    def check(self, path: str, width: int, height: int, mode: str) -> None:
        """Check an image's stored size, and its mode, against the form.

        Raises:
            UnfitImageError: another mode, or another size where images are not resized.
        """
        found, wanted = (width, height, mode), (self.width, self.height, self.mode)
        if self.options.size is not None:
            found, wanted = found[2:], wanted[2:]
        if found != wanted:
            sizes = "mode" if self.options.size is not None else "size and mode"
            raise UnfitImageError(
                f"{path} must have the {sizes} of {self.like}, {kind(*wanted)}, got {kind(*found)}. {HINT}"
            )


def kind(*parts: int | str) -> str:
    """Describe a size and a mode, ``6×4 RGB``, or a mode alone."""
    return f"{parts[0]}×{parts[1]} {parts[2]}" if len(parts) == 3 else str(parts[0])


def data_mode(image: "Image", options: ImageOptions) -> str:
    """Return the mode of the pixels that an image gives, "L" or "RGB"."""
    return MODES[image.mode] if options.color is None else COLORS[options.color]


def form_of(path: str, options: ImageOptions) -> Form:
    """Return the form of a data set whose first image is this file; only its header is read.

    Raises:
        DataError: the file cannot be read.
    """
    with opened(path) as image:
        return Form(data_mode(image, options), image.width, image.height, path, options)


def read_pixels(path: str, form: Form, place: Place | None) -> np.ndarray:
    """Read one image file, uint8 [C, H, W], contiguous or not; ``place`` places a random crop.

    Raises:
        DataError: the file cannot be read, or differs from the form.
    """
    with opened(path) as image:
        form.check(path, image.width, image.height, data_mode(image, form.options))  # before the pixels are decoded
        return to_pixels(image, form, place)


def to_pixels(image: "Image", form: Form, place: Place | None) -> np.ndarray:
    """Convert, resize and crop an image of the right form; pixels uint8 [C, H, W]."""
    from PIL import Image

    size, resize = form.options.size, form.options.resize or form.options.size
    if size is None or resize is None:
        return as_array(converted(image, form.mode))
    if image.format in ("JPEG", "MPO"):
        scale = resize * REDUCING_GAP / min(image.size)
        image.draft(None, (int(image.width * scale) + 1, int(image.height * scale) + 1))
    image = converted(image, form.mode)
    short = min(image.size)
    corner = []
    for length, uniform in zip(image.size, (None, None) if place is None else place[::-1], strict=True):
        room = round(length * resize / short) - size
        corner.append(room // 2 if uniform is None else crop_offset(uniform, room))
    left, top = corner
    if resize == short:
        return as_array(image.crop((left, top, left + size, top + size)))
    box = [edge * short / resize for edge in (left, top, left + size, top + size)]
    box[2], box[3] = min(box[2], image.width), min(box[3], image.height)
    x0, y0, x1, y1 = box
    filtered = image.resize((size, size), Image.Resampling.LANCZOS, (x0, y0, x1, y1), REDUCING_GAP)
    return as_array(filtered)


def as_array(image: "Image") -> np.ndarray:
    """Pixels of an image of mode L or RGB, uint8 [C, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def converted(image: "Image", mode: str) -> "Image":
    """Convert an image of a mode in `MODES` to the mode L or RGB; alpha is dropped."""
    # a palette goes by way of RGBA, since Pillow warns where the direct step loses transparency
    if image.mode == "P":
        image = image.convert("RGBA").convert("RGB")
    stored = MODES[image.mode]
    image = image if image.mode == stored else image.convert(stored)
    image.load()
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def opened(path: str, modes: Iterable[str] = MODES) -> "Iterator[Image]":
    """An image of one of these modes; whatever its reading raises becomes a `DataError`."""
    from PIL import Image  # slow to import, and some data sets do without

    try:
        with open(path, "rb", opener=_open_file) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                raise DataError(f"{path} must be a regular file of at most {MAX_BYTES >> 20} MiB")
            with Image.open(file, formats=_formats()) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width}×{image.height}"
                    raise DataError(f"{path} must have at most {MAX_PIXELS // 10**6} megapixels, got {size}")
                if image.mode not in (modes := tuple(modes)):
                    names = f"{', '.join(modes)}, got {image.format} of mode {image.mode}"
                    raise DataError(f"{path} must be a pixel image of mode {names}")
                if image.format == "PNG":
                    _check_png(file)
                yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} must have at most {MAX_PIXELS // 10**6} megapixels: {error}") from error
    except Image.UnidentifiedImageError as error:
        refused = " (EPS, WMF, FITS and IPTC are not read)"
        raise DataError(f"{path} cannot be read as an image: it has no known format{refused}") from error
    except Exception as error:  # Pillow's decoders raise anything on a damaged file
        raise DataError(f"{path} cannot be read as an image: {str(error) or type(error).__name__}") from error


def _open_file(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # of a named pipe too this returns at once


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are read, the common ones first, since they are tried in this order."""
    from PIL import Image

    Image.init()
    common = [name for name in ("PNG", "JPEG", "WEBP") if name in Image.OPEN]
    return (*common, *(name for name in Image.ID if name not in common and name not in REFUSED))


def _check_png(file: IO[bytes]) -> None:
    """Compare the checksums of all chunks, which Pillow does not do for pixels; the file's position is kept."""
    start = file.tell()
    file.seek(8)
    name = b""
    while name != b"IEND":
        head = file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        check = zlib.crc32(name)
        while length:
            part = file.read(min(length, 1 << 20))
            if not part:
                raise ValueError("the file is truncated")
            check, length = zlib.crc32(part, check), length - len(part)
        if len(head) < 8 or file.read(4) != check.to_bytes(4, "big"):
            raise ValueError(f"the checksum of its chunk {name!r} is wrong, or the file is truncated")
    file.seek(start)
