"""The list of the fonts behind the letters, and what is measured on the split."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .letter_distances import distances, nearest
from .letter_fonts import LICENCES

INTRODUCTION = """# The fonts of letters.npz

`benchmarks/studies/letters.py` drew the letters A to Z of these font families, 28 × 28 pixels with 16 levels, from the
named npm packages. The rules of the selection and of the split are in that file. The letters are images made with the
fonts; no font software is part of this package. Licences: {licences}.

| family | package | part | licence | copyright |
|---|---|---|---|---|
"""


def write_attribution(
    path: Path, families: dict[str, Any], arrays: dict[str, NDArray[Any]], left_out: dict[str, str]
) -> None:
    """Write the table of the families with their licences and copyright notices, and of the packages left out."""
    names = arrays["families"].tolist()
    held_out = {names[number] for number in arrays["test_families"]}
    rows = []
    for name in names:
        family = families[name]
        package = family.package.removeprefix("@fontsource/")
        part = "held out" if name in held_out else "training"
        cells = (family.title, package, part, family.licence, family.attribution or "not stated in the package")
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |\n")
    used = {families[name].licence for name in names}
    licences = ", ".join(f"{name}: {title}" for name, title in LICENCES.items() if name in used)
    others = [f"- {package}: {reason}\n" for package, reason in sorted(left_out.items())]
    text = INTRODUCTION.format(licences=licences) + "".join(rows)
    path.write_text(text + "\n# Packages left out\n\n" + "".join(others), encoding="utf-8")


def report(arrays: dict[str, NDArray[Any]], left_out: dict[str, str]) -> str:
    """Return the sizes of both parts and how near the held-out images are to the training images."""
    lines = [f"{len(arrays['families'])} families, {len(left_out)} packages left out"]
    for part, title in (("train", "training"), ("test", "held out")):
        images, families = arrays[f"{part}_images"], arrays[f"{part}_families"]
        lines.append(f"{title}: {len(images)} images of {len(set(families.tolist()))} families")
    across = nearest(arrays["test_images"], arrays["test_labels"], arrays["train_images"], arrays["train_labels"])
    within = nearest_of_other_families(arrays)
    for title, values in (("held-out to training images", across), ("training images to other families", within)):
        quantiles = ", ".join(f"{np.quantile(values, q):.3f}" for q in (0.0, 0.01, 0.05, 0.25, 0.5))
        lines.append(f"nearest of the same letter, {title}: quantiles 0, 1, 5, 25, 50 %: {quantiles}")
        lines.append(f"  equal in every pixel: {int((values == 0).sum())}")
    return "\n".join(lines)


def nearest_of_other_families(arrays: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return the distance of each training image to the nearest one with its label of another training family."""
    images, labels, families = (arrays[f"train_{name}"] for name in ("images", "labels", "families"))
    found = np.zeros(len(images))
    for letter in range(26):
        chosen = labels == letter
        apart = distances(images[chosen], images[chosen])
        owners = families[chosen]
        found[chosen] = np.where(owners[:, None] == owners, np.inf, apart).min(1)
    return found
