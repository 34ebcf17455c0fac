"""Captions of pictures: a band of text below, and the names of columns above, in the font that Pillow brings."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SIZE, LINE, MARGIN = 12, 18, 6  # of the font, of a line, beside and below the text, in pixels
INK, BACKGROUND = 240, 96  # grey values; the background is that of the lines of `image_grid`
ELLIPSIS = "..."
BEYOND_ASCII = "·"  # what else the font has


def captioned(image: "Image.Image", caption: str, columns: Sequence[str] = (), gap: int = 4) -> "Image.Image":
    """Return a picture with a caption below it and, if there are any, the names of its columns above them.

    Lines are broken between words. A name or a word that is wider than its place is cut. The font has little beyond
    ASCII: accents are left out, and other characters are question marks. The picture keeps its width and its mode; it
    is returned as it is by a Pillow without FreeType, which has no font for it.

    Args:
        image: of mode L or RGB, such as `image_grid` makes.
        caption: the text; an empty one has no band.
        columns: a name for each column of the picture.
        gap: width of the lines between the columns, in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont, features

    if not features.check("freetype2"):
        return image
    font = ImageFont.load_default(SIZE)
    lines = break_lines(printable(caption), font, image.width - 2 * MARGIN)
    top = LINE if columns else 0
    bottom = len(lines) * LINE + MARGIN if lines else 0
    result = Image.new(image.mode, (image.width, top + image.height + bottom), _grey(image, BACKGROUND))
    result.paste(image, (0, top))
    draw, ink = ImageDraw.Draw(result), _grey(image, INK)
    for k, name in enumerate(columns):
        width = (image.width - gap) / len(columns)
        place = (gap / 2 + (k + 0.5) * width, top - LINE / 2 + 1)
        draw.text(place, cut(printable(name), font, width - gap), fill=ink, font=font, anchor="mm")
    for k, line in enumerate(lines):
        draw.text((MARGIN, top + image.height + (k + 0.5) * LINE), line, fill=ink, font=font, anchor="lm")
    return result


def break_lines(text: str, font: "Font", width: float) -> list[str]:
    """Return a text in lines of at most this width in pixels; none ends with a separating dot."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(cut(word, font, width))
    return [line.removesuffix(" ·") for line in lines]


def cut(word: str, font: "Font", width: float) -> str:
    """Return a word, or as many of its first characters as fit this width in pixels with an ellipsis; at least one."""
    if font.getlength(word) <= width:
        return word
    fitting = [k for k in range(1, len(word)) if font.getlength(word[:k] + ELLIPSIS) <= width]
    return word[: max(fitting)] + ELLIPSIS if fitting else word[:1]


def printable(text: str) -> str:
    """Return a text in characters of the font."""
    plain = (char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return "".join(char if char in BEYOND_ASCII or (char.isascii() and char.isprintable()) else "?" for char in plain)


def _grey(image: "Image.Image", value: int) -> int | tuple[int, ...]:
    return value if image.mode == "L" else (value,) * len(image.getbands())
