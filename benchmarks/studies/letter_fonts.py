"""Font families from npm's @fontsource packages: their files, their licences, and their letters as images.

The packages are those of `letters-packages.txt`, each with its version. npm fetches the ones that are not there yet.
"""

import io
import json
import re
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from fastdiff.data import LETTERS

from .runner import StudyError

PACKAGES = Path(__file__).with_name("letters-packages.txt")
LICENCES = {  # what a package calls a licence that allows the images, and how it is written out
    "OFL-1.1": "SIL Open Font License 1.1",
    "Apache-2.0": "Apache License 2.0",
    "Bitstream-Vera": "Bitstream Vera licence",
    "CC0-1.0": "public domain (CC0 1.0)",
    "Unlicense": "public domain (Unlicense)",
}
VERA = "Bitstream Vera Fonts Copyright"  # in the licence of the DejaVu fonts, whose packages say OFL-1.1
NOTICE = re.compile(r"copyright|\(c\)|©", re.IGNORECASE)
SIZE = 28  # pixels of an image each way
SCALE = 8  # the letters are drawn so many times larger, and averaged
HEIGHT = 20  # pixels of the median of the heights of a style's letters
LARGEST = 26  # pixels of a letter each way, at most

Style = tuple[int, str]  # weight, and "normal" or "italic"


@dataclass(frozen=True)
class Family:
    """A font family: its package, names, licence and copyright, and the files of the styles that are drawn."""

    package: str
    name: str
    title: str
    category: str
    licence: str
    attribution: str
    fonts: dict[Style, bytes]


def packages() -> list[str]:
    """Return the packages with their versions, ``@fontsource/NAME@VERSION``, in alphabetical order."""
    return PACKAGES.read_text().split()


def fetch(names: Iterable[str], folder: Path) -> None:
    """Fetch with npm the packages that ``folder`` does not hold yet.

    Raises:
        StudyError: npm is missing or cannot fetch a package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not archive(name, folder).is_file()]
    for first in range(0, len(missing), 16):
        print(f"fetching packages {first + 1} to {min(first + 16, len(missing))} of {len(missing)}", flush=True)
        command = ["npm", "pack", "--silent", *missing[first : first + 16]]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise StudyError("the fonts are fetched with npm, which is not installed") from error
        if done.returncode:
            raise StudyError(f"npm cannot fetch the fonts: {done.stderr.strip()[-500:]}")


def archive(name: str, folder: Path) -> Path:
    """Return the path of a package's archive, as npm calls it."""
    scope, _, version = name.lstrip("@").rpartition("@")
    return folder / f"{scope.replace('/', '-')}-{version}.tgz"


def read_family(package: str, folder: Path) -> Family | str:
    """Read a package; return why it is left out where it has no usable licence or no files of Latin letters."""
    with tarfile.open(archive(package, folder)) as file:
        members = {member.name: member for member in file.getmembers()}

        def content(name: str) -> bytes:
            stream = file.extractfile(members[name])
            assert stream is not None
            return stream.read()

        about = json.loads(content("package/metadata.json"))
        licence = about.get("license")
        if not isinstance(licence, dict):
            return "its licence is not stated in a form that can be read"
        text = content("package/LICENSE").decode(errors="replace")
        kind = "Bitstream-Vera" if VERA in text else licence["type"]
        if kind not in LICENCES:
            return f"its licence is {kind}"
        pattern = re.compile(rf"package/files/{re.escape(about['id'])}-latin-(\d+)-(normal|italic)\.woff")
        found = {(int(match[1]), match[2]): name for name in sorted(members) if (match := pattern.fullmatch(name))}
        if not found:
            return "it has no files of Latin letters"
        fonts = {style: content(found[style]) for style in drawn_styles(found)}
    notice = copyright_of(str(licence.get("attribution") or "") or text)
    if not NOTICE.search(notice):  # such as "Google Inc.", which distributes the font
        notice = next(filter(NOTICE.search, map(font_copyright, fonts.values())), notice)
    return Family(package, about["id"], about["family"], about["category"], kind, notice, fonts)


def copyright_of(notice: str) -> str:
    """Return a copyright notice without the repetitions that it has for every file of a family.

    Of the whole text of a licence the line of the copyright is taken, or the first one.
    """
    lines = re.split(r"[\w\[\],-]+\.ttf:|\n", notice)
    found = [" ".join(line.split()) for line in lines if line.strip()]
    if len(found) > 40:
        return next((line for line in found if line.lower().startswith("copyright")), found[0])
    return "; ".join(dict.fromkeys(found))


def font_copyright(font: bytes) -> str:
    """Return the copyright notice in the table ``name`` of a WOFF file, or "" where it has none or is no such file.

    The layout is that of WOFF 1.0 (W3C 2012) and of OpenType's ``name`` table, whose entry 0 is the copyright.
    """
    try:
        (tables,) = struct.unpack_from(">H", font, 12)
        entries = (struct.unpack_from(">4s4I", font, 44 + 20 * index) for index in range(tables))
        start, packed, size = next(entry[1:4] for entry in entries if entry[0] == b"name")
        table = font[start : start + packed]
        table = zlib.decompress(table) if packed < size else table
        _, count, strings = struct.unpack_from(">3H", table)
        for index in range(count):
            platform, _, _, name, length, offset = struct.unpack_from(">6H", table, 6 + 12 * index)
            if name == 0:
                value = table[strings + offset : strings + offset + length]
                return " ".join(value.decode("mac-roman" if platform == 1 else "utf-16-be").split())
    except (struct.error, zlib.error, StopIteration, UnicodeDecodeError):
        pass
    return ""


def drawn_styles(found: Collection[Style]) -> list[Style]:
    """Return at most three styles of a family: the upright one whose weight is nearest to 400, the one nearest to 700
    if it is bolder by 200 or more, and the italic one nearest to 400."""
    upright = sorted(weight for weight, slant in found if slant == "normal")
    italic = sorted(weight for weight, slant in found if slant == "italic")
    styles: list[Style] = []
    if upright:
        regular, bold = (min(upright, key=lambda weight: abs(weight - wanted)) for wanted in (400, 700))
        styles.append((regular, "normal"))
        if bold - regular >= 200:
            styles.append((bold, "normal"))
    if italic:
        styles.append((min(italic, key=lambda weight: abs(weight - 400)), "italic"))
    return styles


def draw(font: bytes) -> NDArray[np.uint32] | str:
    """Draw A to Z, white on black; return the sums of 64 values 0 .. 255 per pixel, uint32 [26, 28, 28].

    One scale holds for a style: the median of the heights of its letters is 20 pixels. A letter that would be higher
    than 26 pixels, or wider with the space that the font leaves at its sides, is scaled down to 26. The centre of a
    letter's bounding box (the pixels of at least half the full value, at eight times the size) is the centre of the
    image, up to an eighth of a pixel.

    Returns:
        The images, or why the font cannot be drawn.
    """
    try:
        full = ImageFont.truetype(io.BytesIO(font), 1000, layout_engine=ImageFont.Layout.BASIC)
        boxes = np.array([full.getbbox(letter) for letter in LETTERS])
    except OSError as error:
        return f"its file cannot be read: {error}"
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    if min(wide.min(), high.min()) <= 0:
        return "a letter has no outline"
    images = []
    for letter, width, height in zip(LETTERS, wide, high, strict=True):
        scale = min(HEIGHT / np.median(high), LARGEST / width, LARGEST / height)
        mask = full.font_variant(size=float(1000 * scale * SCALE)).getmask(letter, mode="L")
        values = np.array(mask, np.uint8).reshape(mask.size[::-1])
        rows, columns = (np.flatnonzero(values.max(axis) > 127) for axis in (1, 0))
        if not len(rows):
            return "a letter has no outline"
        images.append(_centred(values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))
    return np.stack(images)


def _centred(values: NDArray[np.uint8]) -> NDArray[np.uint32]:
    side = SIZE * SCALE
    full = np.zeros((side, side), np.uint32)
    top, left = (side - values.shape[0]) // 2, (side - values.shape[1]) // 2
    full[top : top + values.shape[0], left : left + values.shape[1]] = values
    return full.reshape(SIZE, SCALE, SIZE, SCALE).sum((1, 3), dtype=np.uint32)
