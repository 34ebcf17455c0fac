"""The rules that make the letters: styles, drawing, readable families, designs and the split, on small examples."""

import importlib.util
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import letter_fonts, letters
from benchmarks.studies.letter_distances import nearest
from benchmarks.studies.letter_fonts import (
    Family,
    copyright_of,
    draw,
    drawn_styles,
    font_copyright,
    packages,
    read_family,
)
from benchmarks.studies.letters import (
    NEAR,
    RELATED,
    SAME,
    designs,
    quantised,
    readability,
    select,
    split,
    style_distances,
)
from benchmarks.studies.letters_report import report, write_attribution

matplotlib = importlib.util.find_spec("matplotlib")
FONTS = Path(matplotlib.origin).parent / "mpl-data/fonts/ttf" if matplotlib and matplotlib.origin else Path("none")
ALPHABET = np.random.default_rng(0).integers(0, 16, (26, 28, 28))  # one picture of each letter
NORMAL = (400, "normal")


@pytest.fixture(scope="module")
def font() -> bytes:
    path = FONTS / "DejaVuSans.ttf"
    if not path.is_file():
        pytest.skip("needs the fonts of matplotlib")
    return path.read_bytes()


def varied(seed: int, deviation: float, base: np.ndarray = ALPHABET) -> np.ndarray:
    """Letters that differ from others by noise of a deviation, in parts of the full value."""
    noise = np.random.default_rng(seed).normal(0.0, 15 * deviation, base.shape)
    return np.clip(np.rint(base + noise), 0, 15).astype(np.uint8)


def family(name: str) -> Family:
    return Family(f"@fontsource/{name}@1.0.0", name, name.title(), "display", "OFL-1.1", "an author", {})


# ------------------------------------------------------------------------------------------------ fonts


@pytest.mark.parametrize(
    ("found", "drawn"),
    [
        ([NORMAL], [NORMAL]),
        ([(100, "normal"), (300, "normal"), (500, "normal"), (900, "normal")], [(300, "normal"), (500, "normal")]),
        ([NORMAL, (500, "normal"), (600, "normal")], [NORMAL, (600, "normal")]),
        ([NORMAL, (500, "normal")], [NORMAL]),  # not bolder by 200
        ([NORMAL, (700, "normal"), (400, "italic"), (700, "italic")], [NORMAL, (700, "normal"), (400, "italic")]),
        ([(300, "italic"), (600, "italic")], [(300, "italic")]),
        ([], []),
    ],
)
def test_at_most_three_styles(found, drawn):
    assert drawn_styles(found) == drawn
    assert drawn_styles(found[::-1]) == drawn


def test_a_notice_without_its_repetitions():
    notice = "a.ttf: Copyright 2020 A\nb.ttf: Copyright 2020 A\n\nc.ttf:  Copyright 2021  B"
    assert copyright_of(notice) == "Copyright 2020 A; Copyright 2021 B"
    licence = "\n".join(["SOME LICENCE", "copyright (c) 2019 C", *(f"Clause {k}." for k in range(50))])
    assert copyright_of(licence) == "copyright (c) 2019 C"


def test_the_packages_are_named_once_with_their_versions():
    names = packages()
    assert names == sorted(set(names))
    assert all(name.startswith("@fontsource/") and name.count("@") == 2 for name in names)


def package(
    folder: Path,
    name: str,
    licence: object,
    fonts: dict[str, bytes],
    category: str = "sans-serif",
    text: str = "Copyright 2022 D",
) -> str:
    """Write the archive of a package as npm does, and return what it is called."""
    about = {"id": name, "family": name.title(), "category": category, "license": licence}
    content = {"metadata.json": json.dumps(about).encode(), "LICENSE": text.encode()}
    content |= {f"files/{file}": data for file, data in fonts.items()}
    with tarfile.open(folder / f"fontsource-{name}-1.0.0.tgz", "w:gz") as archive:
        for file, data in content.items():
            member = tarfile.TarInfo(f"package/{file}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return f"@fontsource/{name}@1.0.0"


def test_what_a_package_must_have(tmp_path):
    """A licence of the list, and files of Latin letters of this very family."""
    others = ("a-latin-ext-400-normal.woff", "a-greek-400-normal.woff", "a-latin-400-normal.woff2")
    latin = dict.fromkeys([*others, "b-latin-400-italic.woff"], b"no")
    latin |= {"a-latin-400-normal.woff": b"one", "a-latin-700-normal.woff": b"two"}
    free = {"type": "OFL-1.1", "attribution": "Copyright 2020 E"}
    found = read_family(package(tmp_path, "a", free, latin), tmp_path)
    assert isinstance(found, Family)
    assert (found.name, found.licence, found.attribution) == ("a", "OFL-1.1", "Copyright 2020 E")
    assert found.fonts == {NORMAL: b"one", (700, "normal"): b"two"}
    found = read_family(package(tmp_path, "a", {"type": "Apache-2.0", "attribution": None}, latin), tmp_path)
    assert isinstance(found, Family)
    assert found.attribution == "Copyright 2022 D"
    for licence, fonts, reason in (
        ({"type": "Ubuntu-1.0"}, latin, "its licence is Ubuntu-1.0"),
        ("OFL", latin, "its licence is not stated"),
        (free, {"a-greek-400-normal.woff": b""}, "no files of Latin letters"),
    ):
        assert reason in read_family(package(tmp_path, "a", licence, fonts), tmp_path)


def woff(strings: list[tuple[int, int, bytes]], packed: bool) -> bytes:
    """Return a WOFF file with a table ``name`` of (platform, entry, text), in the layouts of W3C and OpenType."""
    records, text = b"", b""
    for platform, entry, value in strings:
        records += struct.pack(">6H", platform, 1, 0, entry, len(value), len(text))
        text += value
    table = struct.pack(">3H", 0, len(strings), 6 + len(records)) + records + text
    stored = zlib.compress(table) if packed else table
    entries = struct.pack(">4s4I", b"head", 0, 0, 0, 0) + struct.pack(">4s4I", b"name", 84, len(stored), len(table), 0)
    return struct.pack(">4sIIH", b"wOFF", 0, 0, 2).ljust(44, b"\0") + entries + stored


@pytest.mark.parametrize("packed", [False, True])
def test_the_copyright_in_a_font(packed):
    """Entry 0, of Macintosh's or of Windows' platform; "" of what is no such file."""
    notice = "© 2020  A  " + "B" * 50
    for platform, coding in ((1, "mac-roman"), (3, "utf-16-be")):
        strings = [(platform, 1, b"\0F"), (platform, 0, notice.encode(coding))]
        assert font_copyright(woff(strings, packed)) == "© 2020 A " + "B" * 50
    assert font_copyright(woff([(3, 1, b"\0F")], packed)) == ""
    for damaged in (b"", b"no font", woff([(3, 0, b"\0A")], packed)[:60], woff([(3, 0, b"\0A")], packed)[:90]):
        assert font_copyright(damaged) == ""


def test_who_distributes_a_font_is_not_its_author(tmp_path):
    """Where a package states no copyright the font's own counts, and where neither does what the package says; the
    licence is the one of the licence's text, where the package names another."""
    stated = {"type": "OFL-1.1", "attribution": "Google Inc."}
    for name, own, expected in (("a", "(c) 2017 B", "(c) 2017 B"), ("b", "OFL", "Google Inc.")):
        font = woff([(3, 0, own.encode("utf-16-be"))], packed=False)
        found = read_family(package(tmp_path, name, stated, {f"{name}-latin-400-normal.woff": font}), tmp_path)
        assert isinstance(found, Family)
        assert (found.licence, found.attribution) == ("OFL-1.1", expected)
    text = "Bitstream Vera Fonts Copyright\n\nCopyright (c) 2003 by Bitstream, Inc."
    found = read_family(package(tmp_path, "c", stated, {"c-latin-400-normal.woff": b""}, text=text), tmp_path)
    assert isinstance(found, Family)
    assert found.licence == "Bitstream-Vera"


def test_icons_and_broken_fonts_are_left_out(tmp_path, font, monkeypatch):
    """All packages of a folder: one is drawn, of the others the reason is returned."""
    free = {"type": "OFL-1.1", "attribution": "F"}
    names = [
        package(tmp_path, "broken", free, {"broken-latin-400-normal.woff": b"no font"}),
        package(tmp_path, "icons", free, {"icons-latin-400-normal.woff": font}, "icons"),
        package(tmp_path, "whole", free, {"whole-latin-400-normal.woff": font}),
    ]
    monkeypatch.setattr(letter_fonts, "packages", lambda: names)
    monkeypatch.setattr(letters, "ProcessPoolExecutor", InThisProcess)
    families, images, left_out = letters.drawn(tmp_path)
    assert list(families) == ["whole"]
    assert families["whole"].fonts == {}
    assert list(images) == [("whole", *NORMAL)]
    assert np.array_equal(images["whole", 400, "normal"], draw(font))
    assert quantised(images["whole", 400, "normal"], 16).max() == 15
    assert "cannot be read" in left_out[names[0]]
    assert left_out[names[1]] == "it is a set of icons"


class InThisProcess:
    """A pool that maps in this process, where the packages of the test are."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def map(self, function, *arguments, chunksize):
        return map(function, *arguments)


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_levels_are_equal_parts_of_the_range(levels):
    """As many of the 16,321 sums of 64 values 0 .. 255 for each level, up to one."""
    found = quantised(np.arange(64 * 255 + 1).astype(np.uint16), levels)
    counts = np.bincount(found, minlength=levels)
    assert (found.dtype, len(counts)) == (np.uint8, levels)
    assert np.array_equal(found, np.sort(found))
    assert counts.max() - counts.min() <= 1


def test_letters_are_drawn_in_the_middle_and_of_one_height(font, monkeypatch):
    """At eight times the size, before it is averaged: every bounding box is in the middle up to a pixel, the median of
    the heights is 160 and no side larger than 208. The images are the sums of 8 by 8 of these pixels."""
    images = draw(font)
    for name, value in {"SIZE": 224, "SCALE": 1, "HEIGHT": 160, "LARGEST": 208}.items():
        monkeypatch.setattr(letter_fonts, name, value)
    large = draw(font)
    assert isinstance(images, np.ndarray)
    assert isinstance(large, np.ndarray)
    assert large.shape == (26, 224, 224)
    assert large.max() == 255
    assert np.array_equal(images, large.reshape(26, 28, 8, 28, 8).sum((2, 4)))
    sides = []
    for letter in large:
        ends = [np.flatnonzero((letter > 127).any(axis))[[0, -1]] for axis in (1, 0)]
        assert all(abs(first - (223 - last)) <= 1 for first, last in ends)
        sides.append([last - first + 1 for first, last in ends])
    heights, widths = np.transpose(sides)
    assert np.median(heights) == 160
    assert max(widths.max(), heights.max()) <= 208  # measured: 194, the W, and 204, the J


def test_large_letters_are_scaled_down(font, monkeypatch):
    """At eight times the size with a limit of 144: the I is as high. The W is 923 of 1000 units wide, and 989 with the
    space at its sides: 134 and 144 pixels."""
    for name, value in {"SIZE": 224, "SCALE": 1, "HEIGHT": 160, "LARGEST": 144}.items():
        monkeypatch.setattr(letter_fonts, name, value)
    large = draw(font)
    assert isinstance(large, np.ndarray)
    (width, _), (_, height) = (
        [np.ptp(np.flatnonzero((large[letter] > 127).any(axis))) + 1 for axis in (0, 1)] for letter in (22, 8)
    )
    assert height == 144
    assert 134 <= width <= 135


def test_a_font_that_is_none():
    assert "cannot be read" in draw(b"\0\1\0\0 no font")


# ------------------------------------------------------------------------------------------------ selection


def test_readable_families_by_brute_force():
    """Five nearest neighbours in the other families, one by one; a family of symbols is not read."""
    images = {(f"f{k}", *NORMAL): varied(k, 0.2) for k in range(6)}
    images["f0", 700, "normal"] = varied(50, 0.2)
    images["symbols", 400, "normal"] = np.random.default_rng(9).integers(0, 16, (26, 28, 28)).astype(np.uint8)
    images["half", 400, "normal"] = np.concatenate([varied(60, 0.2)[:16], varied(61, 0.2)[:10]])  # K to Z are A to J
    styles = sorted(images)
    read = readability(styles, images)
    for name in {style[0] for style in styles}:
        right = []
        for style in (each for each in styles if each[0] == name):
            for label in range(26):
                point = images[style][label].astype(int)
                others = [
                    (((images[other][k].astype(int) - point) ** 2).sum(), place, k)
                    for place, other in enumerate(styles) for k in range(26) if other[0] != name
                ]  # fmt: skip
                near = [k for _, _, k in sorted(others)[:5]]
                right.append(max(sorted(set(near)), key=near.count) == label)
        assert read[name] == pytest.approx(np.mean(right))
    assert read["f0"] == 1.0
    assert read["symbols"] < 0.3
    assert read["half"] == pytest.approx(16 / 26)


def test_distances_of_styles():
    images = {("a", *NORMAL): varied(1, 0.1), ("b", *NORMAL): varied(2, 0.3), ("c", *NORMAL): ALPHABET.astype(np.uint8)}
    found = style_distances(sorted(images), images)
    for i, one in enumerate(sorted(images)):
        for j, other in enumerate(sorted(images)):
            difference = (images[one].astype(float) - images[other]) / 15
            assert found[i, j] == pytest.approx(np.sqrt((difference**2).mean()), abs=1e-7)


def test_selection_drops_copies_and_what_cannot_be_read():
    """The first of equal styles stays. A family that has none left is named, and one that cannot be read."""
    images = {(f"f{k}", *NORMAL): varied(k, 0.2) for k in range(6)}
    images["copy", 400, "normal"] = varied(70, 0.2)
    images["later", 400, "normal"] = varied(71, 0.02, images["copy", 400, "normal"].astype(int))
    images["f1", 700, "normal"] = varied(72, 0.02, images["f1", 400, "normal"].astype(int))
    images["symbols", 400, "normal"] = np.random.default_rng(9).integers(0, 16, (26, 28, 28)).astype(np.uint8)
    distances = style_distances([("copy", *NORMAL), ("later", *NORMAL)], images)
    assert 0 < distances[0, 1] < SAME
    left_out: dict[str, str] = {}
    kept = select({name: family(name) for name, *_ in images}, images, left_out)
    assert kept == sorted([("copy", *NORMAL), *((f"f{k}", *NORMAL) for k in range(6))])
    assert left_out["@fontsource/later@1.0.0"] == "its letters are those of another family"
    assert left_out["@fontsource/symbols@1.0.0"].endswith("of its letters can be read")
    assert len(left_out) == 2


# ------------------------------------------------------------------------------------------------ split


def test_designs_join_names_and_likenesses():
    """By the first word, by letters that are alike, and through a third family."""
    alone = {name: np.random.default_rng(k).integers(0, 16, (26, 28, 28)) for k, name in enumerate("abcdefg")}
    images = {
        ("noto-sans", *NORMAL): alone["a"], ("noto-serif", *NORMAL): alone["b"], ("notable", *NORMAL): alone["c"],
        ("x", *NORMAL): alone["d"], ("y", *NORMAL): varied(80, 0.05, alone["d"]), ("lone", *NORMAL): alone["e"],
        ("y", 700, "normal"): alone["f"], ("z", *NORMAL): varied(81, 0.05, alone["f"]),
    }  # fmt: skip
    images = {style: values.astype(np.uint8) for style, values in images.items()}
    styles = sorted(images)
    distances = style_distances(styles, images)
    x, y, bold, z = (
        styles.index(each) for each in (("x", *NORMAL), ("y", *NORMAL), ("y", 700, "normal"), ("z", *NORMAL))
    )
    assert distances[x, y] < RELATED
    assert distances[bold, z] < RELATED
    assert distances[x, z] > RELATED
    assert designs(styles, images) == [["lone"], ["notable"], ["noto-sans", "noto-serif"], ["x", "y", "z"]]


def test_the_split_keeps_designs_apart_and_drops_near_copies():
    """Of 30 designs three are held out, whole. A training letter that is nearly a held-out one is left out."""
    images = {
        (f"f{k:02}-{part}", *NORMAL): varied(100 + 2 * k + i, 0.2) for k in range(30) for i, part in enumerate("ab")
    }
    styles = sorted(images)
    arrays = split(styles, images)
    names = arrays["families"].tolist()
    parts = {part: {names[k] for k in arrays[f"{part}_families"]} for part in ("train", "test")}
    assert sorted(parts["train"] | parts["test"]) == names
    assert len(parts["test"]) == 6
    assert not {name[:3] for name in parts["train"]} & {name[:3] for name in parts["test"]}
    assert arrays["train_images"].shape == (54 * 26, 1, 28, 28)
    assert arrays["test_labels"].tolist() == [*range(26)] * 6
    for part in parts:
        for image, label, owner in list(
            zip(*(arrays[f"{part}_{key}"] for key in ("images", "labels", "families")), strict=True)
        )[::97]:
            assert np.array_equal(image[0], images[(names[owner], *NORMAL)][label])
    again = split(styles, images)
    assert all(np.array_equal(arrays[key], again[key]) for key in arrays)

    held_out, trained = sorted(parts["test"])[0], sorted(parts["train"])[0]
    images[(trained, *NORMAL)][8] = images[(held_out, *NORMAL)][8]  # the same I
    images[(trained, *NORMAL)][9] = images[(held_out, *NORMAL)][8]  # a J that is that I
    fewer = split(styles, images)
    assert len(fewer["train_images"]) == 54 * 26 - 1
    own = fewer["train_families"] == names.index(trained)
    assert 8 not in fewer["train_labels"][own]
    assert 9 in fewer["train_labels"][own]


def test_the_nearest_image_by_brute_force():
    generator = np.random.default_rng(4)
    ours, others = (generator.integers(0, 16, (count, 1, 28, 28)).astype(np.uint8) for count in (30, 60))
    labels, other_labels = np.arange(30) % 26, np.arange(60) % 26
    found = nearest(ours, labels, others, other_labels)
    for image, label, distance in zip(ours, labels, found, strict=True):
        squares = [((image - other.astype(float)) ** 2).mean() for other in others[other_labels == label]]
        assert distance == pytest.approx(np.sqrt(min(squares)) / 15)
    assert found.min() > NEAR


def test_the_table_of_the_fonts(tmp_path):
    """A row for each family with its part, a list of what is left out, and a report of the distances."""
    images = {(f"f{k}", *NORMAL): varied(k, 0.2) for k in range(10)}
    arrays = split(sorted(images), images)
    families = {name: family(name) for name, *_ in images}
    write_attribution(tmp_path / "fonts.md", families, arrays, {"@fontsource/odd@1.0.0": "it is odd"})
    text = (tmp_path / "fonts.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| F")]
    assert len(rows) == 10
    assert sum("| held out |" in row for row in rows) == 1
    assert all("OFL-1.1 | an author |" in row for row in rows)
    assert text.endswith("- @fontsource/odd@1.0.0: it is odd\n")
    assert "10 families, 1 packages left out\ntraining: 234 images of 9 families" in report(arrays, {"odd": ""})
