"""Captions: the picture stays as it is between the bands, and no text leaves them."""

import pytest
import torch
from PIL import Image, ImageFont

from fastdiff.io.captions import INK, LINE, MARGIN, SIZE, break_lines, captioned, cut, printable
from fastdiff.io.pictures import image_grid

FONT = ImageFont.load_default(SIZE)
TEXT = "digits · ddim, 10 steps · seed 0 · class 7 · guidance 2"


def grid(channels: int, columns: int = 3) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, channels, 8, 8), dtype=torch.uint8, generator=generator)
    return image_grid(images, columns)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_stays_between_the_bands(channels):
    image = grid(channels)
    result = captioned(image, TEXT, ["A", "B", "C"])
    assert (result.mode, result.width) == (image.mode, image.width)
    inner = result.crop((0, LINE, image.width, LINE + image.height))
    assert inner.tobytes() == image.tobytes()
    lines = break_lines(TEXT, FONT, image.width - 2 * MARGIN)
    assert result.height == LINE + image.height + len(lines) * LINE + MARGIN


def test_names_are_above_their_columns():
    """The centre of the ink of each name is that of its column, within half a pixel and the shape of the letter."""
    result = captioned(grid(1), "", ["H", "O", "X"])
    assert result.height == LINE + grid(1).height  # without a caption there is no band below
    pixels = torch.frombuffer(bytearray(result.tobytes()), dtype=torch.uint8).view(result.height, result.width)
    ink = pixels[:LINE] > (INK + 96) // 2
    for column in range(3):
        left = 2 + 68 * column
        places = ink[:, left : left + 68].any(0).nonzero().flatten() + left
        assert abs(float(places.min() + places.max()) / 2 - (4 + 32 + 68 * column)) <= 1.5


@pytest.mark.parametrize("width", [40, 60, 196, 1000])
def test_lines_fit(width):
    lines = break_lines(TEXT, FONT, width)
    assert all(FONT.getlength(line) <= width for line in lines)
    assert not any(line.endswith("·") for line in lines)
    if width > 50:  # nothing is cut, and nothing lost but the dots at the ends of lines
        assert " ".join(lines).replace("·", "").split() == TEXT.replace("·", "").split()


def test_long_names_are_cut():
    assert cut("cat", FONT, 60) == "cat"
    short = cut("a very long name of a class", FONT, 60)
    assert short.endswith("...")
    assert FONT.getlength(short) <= 60
    assert cut("name", FONT, 1) == "n"


def test_characters_beyond_the_font():
    assert printable("Käse · été\n字") == "Kase · ete??"


def test_without_freetype_there_is_no_caption(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    image = grid(1)
    assert captioned(image, TEXT) is image
