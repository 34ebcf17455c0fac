"""Make the letters of `fastdiff.data.letters` again: A to Z of some 500 font families, split by design.

    python benchmarks/studies/letters.py --out fastdiff/assets     # letters.npz and letters-fonts.md

The fonts are fetched with npm (1.7 GB); the rest takes some two minutes. The same packages and the pinned versions of
Pillow and NumPy give the same arrays, bit for bit. The rules:

1. The families are npm's @fontsource packages of `letters-packages.txt` under the SIL Open Font License, the Apache
   License, the Bitstream Vera licence or in the public domain. Of each at most three styles are drawn
   (`letter_fonts.drawn_styles`), as `letter_fonts.draw` says, with 16 levels.
2. A family is left out if it is a set of icons, if a font is broken, or if fewer than half of its letters are read as
   what they are by their five nearest neighbours in the other families: bar codes, symbols, some ornamented scripts.
3. Two styles are the same if their 26 images differ by less than `SAME` (the root mean square of the differences of
   pixels, black 0 and white 1): the first one in alphabetical order is kept.
4. Two families are of one design if styles of both differ by less than `RELATED`, if their names begin with the same
   word, or if both are related to a third one. All families of a design are on one side of the split. One design in
   ten, drawn by a seed, is held out.
5. A training image that differs by less than `NEAR` from a held-out one of the same letter is left out: a plain I is
   the same in many families.
"""

import argparse
import io
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.data import LETTERS_LEVELS

NEIGHBOURS, READABLE = 5, 0.5
SAME, RELATED, NEAR = 0.04, 0.09, 0.02
HELD_OUT, SEED = 0.1, 0


def main(arguments: list[str] | None = None) -> None:
    """Fetch the fonts, draw the letters and write the data set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="an existing folder, for letters.npz and letters-fonts.md"
    )
    parser.add_argument("--fonts", type=Path, default=Path("runs/fonts"), help="folder of the packages (runs/fonts)")
    options = parser.parse_args(arguments)
    if not options.out.is_dir():
        parser.error(f"--out must be an existing folder, got {options.out}")
    from benchmarks.studies.letter_fonts import fetch, packages
    from benchmarks.studies.letters_report import report, write_attribution

    fetch(packages(), options.fonts)
    families, sums, left_out = drawn(options.fonts)
    images = {style: quantised(each, LETTERS_LEVELS) for style, each in sums.items()}
    styles = select(families, images, left_out)
    arrays = split(styles, images)
    np.savez_compressed(options.out / "letters.npz", allow_pickle=False, **arrays)
    write_attribution(options.out / "letters-fonts.md", families, arrays, left_out)
    print(report(arrays, left_out))
    print(trial([sums[style] for style in styles]))


# ------------------------------------------------------------------------------------------------ drawing

Styles = list[tuple[str, int, str]]  # family, weight, slant


def drawn(folder: Path) -> tuple[dict[str, Any], dict[tuple[str, int, str], NDArray[np.uint16]], dict[str, str]]:
    """Draw the letters of all packages in ``folder``.

    Returns:
        The families by name, the images of every style as sums of 64 values 0 .. 255 a pixel, uint16 [26, 28, 28], and
        why each of the other packages is left out.
    """
    from benchmarks.studies.letter_fonts import packages

    families, images, left_out = {}, {}, {}
    names = packages()
    with ProcessPoolExecutor() as pool:
        for name, (family, pictures) in zip(
            names, pool.map(_draw_family, names, [folder] * len(names), chunksize=8), strict=True
        ):
            reasons = [each for each in pictures.values() if isinstance(each, str)]
            if isinstance(family, str) or reasons:
                left_out[name] = family if isinstance(family, str) else reasons[0]
                continue
            families[family.name] = family
            for (weight, slant), pixels in pictures.items():
                images[family.name, weight, slant] = pixels.astype(np.uint16)
    return families, images, left_out


def _draw_family(package: str, folder: Path) -> tuple[Any, dict[tuple[int, str], Any]]:
    from dataclasses import replace

    from benchmarks.studies.letter_fonts import draw, read_family

    family = read_family(package, folder)
    if isinstance(family, str):
        return family, {}
    if family.category == "icons":
        return "it is a set of icons", {}
    return replace(family, fonts={}), {style: draw(font) for style, font in family.fonts.items()}


def quantised(sums: NDArray[np.uint16], levels: int) -> NDArray[np.uint8]:
    """Return the levels of pixels that are sums of 64 values 0 .. 255: equal parts of the range."""
    return (sums.astype(np.uint32) * levels // (64 * 255 + 1)).astype(np.uint8)


def trial(sums: list[NDArray[np.uint16]]) -> str:
    """Return what numbers of levels cost: the size of the compressed images, and the error of a pixel."""
    values, lines = np.stack(sums), ["levels, MB compressed, root mean square error of a pixel (black 0, white 1):"]
    for levels in (8, 16, 32, 64, 256):
        images = quantised(values, levels)
        file = io.BytesIO()
        np.savez_compressed(file, images=images)
        error = np.sqrt(np.mean(((images + 0.5) / levels - values / (64 * 255)) ** 2))
        lines.append(f"  {levels}: {file.tell() / 1e6:.2f}, {error:.4f}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ selection


def select(families: dict[str, Any], images: dict[Any, NDArray[np.uint8]], left_out: dict[str, str]) -> Styles:
    """Return the styles that are kept, in alphabetical order; add the families that are not to ``left_out``."""
    styles = sorted(images)
    read = readability(styles, images)
    for name, share in read.items():
        if share < READABLE:
            left_out[families[name].package] = f"{share:.0%} of its letters can be read"
    styles = [style for style in styles if read[style[0]] >= READABLE]
    distances = style_distances(styles, images)
    kept: list[int] = []
    for position in range(len(styles)):
        if not (distances[position, kept] < SAME).any():
            kept.append(position)
    found = [styles[position] for position in kept]
    for name in sorted({style[0] for style in styles} - {style[0] for style in found}):
        left_out[families[name].package] = "its letters are those of another family"
    return found


def readability(styles: Styles, images: dict[Any, NDArray[np.uint8]]) -> dict[str, float]:
    """Return the share of each family's letters that their nearest neighbours in other families read rightly.

    Distances are sums of integers, exact in float64; of equal ones the first in the order of the images counts, and of
    equally frequent letters the first in the alphabet.
    """
    points = np.stack([images[style] for style in styles]).reshape(-1, 28 * 28).astype(np.float64)
    labels = np.tile(np.arange(26), len(styles))
    owners = np.repeat([style[0] for style in styles], 26)
    norms, read = (points**2).sum(1), {}
    for name in sorted(set(owners)):
        own = owners == name
        distances = norms - 2.0 * points[own] @ points.T
        distances[:, own] = np.inf
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
        votes = np.array([np.bincount(labels[row], minlength=26).argmax() for row in nearest])
        read[name] = float((votes == labels[own]).mean())
    return read


def style_distances(styles: Styles, images: dict[Any, NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Return the root mean square difference of the pixels of every two styles, in [0, 1]; [S, S]."""
    from benchmarks.studies.letter_distances import distances

    points = np.stack([images[style] for style in styles])
    return distances(points, points)


# ------------------------------------------------------------------------------------------------ split


def designs(styles: Styles, images: dict[Any, NDArray[np.uint8]]) -> list[list[str]]:
    """Return the names of the families of each design, both in alphabetical order."""
    design = {style[0]: style[0] for style in styles}

    def join(one: str, other: str) -> None:
        old, new = sorted((design[one], design[other]), reverse=True)
        for name, root in design.items():
            if root == old:
                design[name] = new

    words: dict[str, str] = {}
    for name in design:
        join(words.setdefault(name.split("-")[0], name), name)
    for one, other in np.argwhere(np.triu(style_distances(styles, images) < RELATED, 1)):
        join(styles[one][0], styles[other][0])
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(design):
        found[design[name]].append(name)
    return [found[root] for root in sorted(found)]


def split(styles: Styles, images: dict[Any, NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of the data set: images, labels and the number of the family of both parts, and all names."""
    from benchmarks.studies.letter_distances import nearest

    groups = designs(styles, images)
    order = np.random.default_rng(SEED).permutation(len(groups))
    held_out = {name for group in order[: round(HELD_OUT * len(groups))] for name in groups[group]}
    names = sorted({style[0] for style in styles})
    arrays: dict[str, NDArray[Any]] = {"families": np.array(names)}
    for part in ("train", "test"):
        chosen = [style for style in styles if (style[0] in held_out) == (part == "test")]
        arrays[f"{part}_images"] = np.concatenate([images[style] for style in chosen])[:, None]
        arrays[f"{part}_labels"] = np.tile(np.arange(26, dtype=np.uint8), len(chosen))
        arrays[f"{part}_families"] = np.repeat(np.array([names.index(style[0]) for style in chosen], np.uint16), 26)
    near = nearest(*(arrays[f"{part}_{name}"] for part in ("train", "test") for name in ("images", "labels"))) < NEAR
    for name in ("images", "labels", "families"):
        arrays[f"train_{name}"] = arrays[f"train_{name}"][~near]
    return arrays


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main()
