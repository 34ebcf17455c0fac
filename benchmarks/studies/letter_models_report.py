"""The document on the letters: the data, and what `letter_models` measured on the models of them."""

from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.data import LETTERS, LETTERS_LEVELS, letters
from fastdiff.evaluation import load_classifier

from .classifier import classify, share
from .documents import bullets, paragraph, plotting, save
from .letter_models import COMPONENTS, DRAWS, SAMPLES, STEPS

INTRODUCTION = """# Letters

Written by `python benchmarks/studies/letter_models.py` from `letters.json`.

The second data set of the package: A to Z of 502 font families, 28 × 28 pixels with 16 levels, with a split that does
not leak: the held-out families are of other designs than the training families. `fastdiff.data.letters()` loads it.

![Held-out letters](letters-held-out.png)

"""

DATA = (
    """The fonts are npm's @fontsource packages, in the versions of `benchmarks/studies/letters-packages.txt`, under the
    SIL Open Font License, the Apache License, the Bitstream Vera licence or in the public domain.
    `fastdiff/assets/letters-fonts.md` names each family with its copyright, and each package that is left out with the
    reason. The command `python benchmarks/studies/letters.py --out DIR` makes the arrays again, bit for bit; the file
    states the rules of drawing, selection and split.""",
    """npm keeps every version of these packages, and they state family, licence and copyright in a form that can be
    read. They give 1,001 styles of 502 families.""",
    """23,205 training letters of 455 families, and 2,418 held-out letters of 47 families. Families whose letters are
    nearly the same, or whose names begin with the same word, are one design, and a design is on one side.""",
    """The nearest training letter of a held-out letter, by the root mean square of the differences of the pixels (black
    0, white 1): median 0.077, 5 % below 0.026, none below 0.020. The 403 training letters that were nearer are left
    out: mostly plain shapes that are the same in many families. Between training letters of different families the
    median is 0.074.""",
    """16 levels, by trial: with 8, 16, 32, 64 and 256 levels the compressed images take 1.91, 2.36, 2.79, 3.20 and
    3.95 MB, and the root mean square error of a pixel is 0.060, 0.030, 0.015, 0.008 and 0.002 of the range.""",
)


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write letters.md and its pictures."""
    plt, images = plotting(), letters().test_images[:]
    rows = images[:, 0].numpy().reshape(-1, len(LETTERS), 28, 28)
    _picture(rows[:: len(rows) // 12][:12], out / "letters-held-out.png")
    text = INTRODUCTION + "## The data\n\n" + bullets(*DATA) + "\n\n"
    models = results["models"]
    if models:
        text += "## Models\n\n" + _models(models) + "\n"
        text += "## Bits per dimension by font family\n\n" + _families(models, plt, out) + "\n"
        text += "## Samples\n\n" + _samples(models, out)
    (out / "letters.md").write_text(text.rstrip() + "\n")


def _models(models: dict[str, Any]) -> str:
    lines = [
        "| model | parameters | steps of training | bits/dim | ± over families | ± over images | recon | prior "
        "| diffusion | FD-letters | z from a mixture | read rightly |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in models.items():
        mixture = "{:.2f} ± {:.2f}".format(*row["fd_mixture"]) if "fd_mixture" in row else ""
        distance = "{:.2f} ± {:.2f}".format(*row["fd"])
        read = f"{np.mean(row['read']):.1%}" if "read" in row else ""
        steps = "not recorded" if row["steps"] is None else f"{row['steps']:,}"
        lines.append(
            f"| {name} | {row['parameters']:,} | {steps} | {row['bpd']:.4f} | {row['se_groups']:.4f} "
            f"| {row['se']:.4f} | {row['recon']:.4f} | {row['prior']:.4f} | {row['diffusion']:.4f} "
            f"| {distance} | {mixture} | {read} |"
        )
    data, mixtures = letters(), ""
    assert data.test_labels is not None
    accuracy = share(classify(load_classifier("letters"), data.test_images[:]) == data.test_labels)
    if any("fd_mixture" in row for row in models.values()):
        mixtures = f" The mixture, of the z of the training letters, has {COMPONENTS} components."
    note = paragraph(
        f"""Bits per dimension on the {len(data.test_images):,} held-out letters, {DRAWS} draws each. The letters
        of a family resemble each other, so the error over families is the one that counts. FD-letters of {SAMPLES:,}
        samples ± the standard error of drawing them, which includes no bias, with {STEPS} steps of ancestral sampling
        of the diffusion models, as many of each letter where the model has labels.{mixtures} Read rightly: the share of
        these samples that the classifier of FD-letters takes for the letter that was asked for; of the held-out
        letters it reads {accuracy:.1%} rightly. 1,500 held-out letters have an FD-letters of 4.28, mostly the bias of
        so few (`python benchmarks/studies/letters_yardstick.py`)."""
    )
    return "\n".join(lines) + "\n\n" + note + "\n"


def _families(models: dict[str, Any], plt: Any, out: Path) -> str:
    """Return the families with the lowest and highest bits/dim of the first model, and draw all."""
    name, row = next(iter(models.items()))
    order = sorted(row["families"].items(), key=lambda each: each[1][1])
    data, ends = letters(), [*order[:4], *order[-4:]]
    images, groups = data.test_images[:], data.test_groups
    assert groups is not None
    pictures = []
    for family, _ in ends:
        chosen = images[groups == data.group_names.index(family)]
        pictures.append(chosen[: len(LETTERS), 0].numpy())
    _picture(np.stack(pictures), out / "letters-families.png")
    figure, axis = plt.subplots(figsize=(8, 3.6))
    for each, values in models.items():
        axis.plot([values["families"][family][1] for family, _ in order], ".-", label=each)
    axis.set(xlabel=f"held-out families, in the order of {name}", ylabel="bits/dim")
    axis.legend(ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)
    save(figure, out / "letters-bpd.png")
    plt.close(figure)
    lines = ["| family | letters | bits/dim |", "|---|---:|---:|"]
    lines += [f"| {family} | {n} | {value:.3f} |" for family, (n, value) in ends]
    return (
        f"![Bits/dim of every held-out family](letters-bpd.png)\n\nThe four lowest and the four highest of {name}:\n\n"
        + "\n".join(lines)
        + "\n\n![Letters of these families](letters-families.png)\n"
    )


def _samples(models: dict[str, Any], out: Path) -> str:
    text = ""
    for name, row in models.items():
        for key, title in (("shown", ""), ("shown_mixture", ", z from a mixture")):
            if key not in row:
                continue
            file = f"letters-{name}{'-mixture' if title else ''}.png"
            pixels = [[int(level, 36) for level in image] for image in row[key]]
            _picture(np.array(pixels, np.uint8).reshape(-1, len(LETTERS), 28, 28), out / file)
            text += f"{name}{title}:\n\n![Samples of {name}{title}]({file})\n\n"
        if "read" in row:
            shares = sorted(zip(row["read"], LETTERS, strict=True))
            poor = ", ".join(f"{letter} {share:.0%}" for share, letter in shares[:6])
            text += paragraph(
                f"""Each column is the letter that was asked for. Of {SAMPLES // len(LETTERS)} samples of each letter
                the classifier reads least often rightly: {poor}."""
            )
            text += "\n\n"
    return text


def _picture(rows: Any, path: Path) -> None:
    """Write rows of letters, uint8 [R, C, 28, 28] with levels, as a picture."""
    from PIL import Image

    pixels = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    Image.fromarray((pixels * (255 // (LETTERS_LEVELS - 1))).astype(np.uint8)).save(path, optimize=True)
