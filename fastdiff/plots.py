"""Pictures of samples: grids and lists of Pillow images."""

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


def to_uint8(levels_image: Tensor, levels: int) -> Tensor:
    """Scale integer levels 0 .. levels - 1 to 0 .. 255, rounded to nearest, uint8."""
    return torch.round(levels_image.float() * (255.0 / (levels - 1))).to(torch.uint8)


def to_pil(image: Tensor) -> "Image.Image":
    """One image uint8 [C, H, W], C = 1 or 3, as a Pillow image.

    Raises:
        ValueError: another dtype or number of channels.
    """
    from PIL import Image  # slow to import, and only pictures need it

    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"to_pil: {image.dtype} {tuple(image.shape)}; allowed: torch.uint8 [1 or 3, H, W]")
    array = rearrange(image.cpu(), "c h w -> h w c").numpy()
    return Image.fromarray(array[:, :, 0] if image.shape[0] == 1 else array)


def grid(
    images: Tensor, columns: int | None = None, side: int = 64, gap: int = 4, background: int = 96
) -> "Image.Image":
    """Arrange images uint8 [N, C, H, W] in rows, each enlarged by a whole factor to at least about ``side`` pixels.

    Args:
        images: N >= 1 pictures.
        columns: per row; by default the grid is nearly square.
        side: wanted height of one picture, in pixels.
        gap, background: width and grey of the lines between the pictures.

    Raises:
        ValueError: no images, or fewer than one column.
    """
    count = len(images)
    columns = columns if columns is not None else max(1, round(count**0.5))
    if count < 1 or columns < 1:
        raise ValueError(f"grid: {count} images in {columns} columns; allowed: at least 1 of each")
    factor = max(1, side // images.shape[2])
    large = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    padded = torch.nn.functional.pad(large, (0, gap, 0, gap), value=background)
    missing = -count % columns
    padded = torch.cat([padded, padded.new_full((missing, *padded.shape[1:]), background)])
    sheet = rearrange(padded, "(r k) c h w -> c (r h) (k w)", k=columns)
    return to_pil(torch.nn.functional.pad(sheet, (gap, 0, gap, 0), value=background))
