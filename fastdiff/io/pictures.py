"""Tensors of images as Pillow images, one by one or arranged in a grid; and pictures on disk."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from fastdiff_kernels.errors import InvalidValueError
from torch import Tensor

from .files import write_atomically

if TYPE_CHECKING:
    from PIL import Image


def to_uint8(images: Tensor, levels: int) -> Tensor:
    """Scale integer levels 0 .. levels - 1 to 0 .. 255, rounded to nearest, uint8."""
    return torch.round(images.float() * (255.0 / (levels - 1))).to(torch.uint8)


def to_pil(image: Tensor) -> "Image.Image":
    """One image uint8 [C, H, W], C = 1 or 3, as a Pillow image of mode L or RGB.

    Raises:
        InvalidValueError: another dtype or shape.
    """
    from PIL import Image  # slow to import, and only needed here

    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] not in (1, 3):
        raise InvalidValueError(
            f"to_pil: image must be torch.uint8 of shape [1 or 3, H, W], got {image.dtype} {tuple(image.shape)}"
        )
    array = rearrange(image.cpu(), "c h w -> h w c").numpy()
    return Image.fromarray(array[:, :, 0] if image.shape[0] == 1 else array)


def image_grid(
    images: Tensor, columns: int | None = None, side: int = 64, gap: int = 4, background: int = 96
) -> "Image.Image":
    """Arrange images uint8 [N, C, H, W], C = 1 or 3, in rows, with lines between and around them.

    Args:
        images: N >= 1 images.
        columns: images in a row; by default about as many as there are rows.
        side: height to which images are enlarged, in pixels. The factor is the largest integer that does not exceed it,
            and at least 1.
        gap: width of the lines, in pixels.
        background: grey value of the lines, and of the places that the last row leaves empty.

    Raises:
        InvalidValueError: no images, fewer than one column, or another dtype or number of channels.
    """
    count = len(images)
    columns = columns if columns is not None else max(1, round(count**0.5))
    if count < 1 or columns < 1:
        raise InvalidValueError(
            f"image_grid: images and columns must each be at least 1 in number, got {count} and {columns}"
        )
    factor = max(1, side // images.shape[2])
    large = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    padded = torch.nn.functional.pad(large, (0, gap, 0, gap), value=background)
    missing = -count % columns
    padded = torch.cat([padded, padded.new_full((missing, *padded.shape[1:]), background)])
    sheet = rearrange(padded, "(r k) c h w -> c (r h) (k w)", k=columns)
    return to_pil(torch.nn.functional.pad(sheet, (gap, 0, gap, 0), value=background))


def write_picture(image: "Image.Image", path: str | Path) -> Path:
    """Write a picture atomically, in the format of the name's extension.

    Raises:
        InvalidValueError: an unknown extension.
        WriteError: the file cannot be written. The message names the path and the bytes.
    """
    from PIL import Image

    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise InvalidValueError(f"path must end in .png or another extension of a picture, got {path}")
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind)
    except OSError as error:  # a mode that the format does not have
        raise InvalidValueError(f"{path} cannot hold a picture of mode {image.mode}: {error}") from error
    return write_atomically(path, buffer.getvalue())
