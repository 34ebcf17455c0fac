"""What the documents of all studies share: paragraphs and lists, the plotting library and its style, rows of digits."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from .runner import StudyError

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#edae49", "#6a4c93", "#444444")


def paragraph(text: str) -> str:
    """Break a text into lines of at most 118 characters, whatever line breaks it has."""
    return textwrap.fill(" ".join(text.split()), 118, break_on_hyphens=False, break_long_words=False)


def bullets(*texts: str) -> str:
    """Return a list of texts, in lines of at most 118 characters."""
    return "\n".join(
        textwrap.fill(each, 118, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
        for each in (f"- {' '.join(text.split())}" for text in texts)
    )


def plotting() -> Any:
    """Return matplotlib.pyplot, set up to write files in the style of the documents.

    Raises:
        StudyError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from cycler import cycler
    except ImportError as error:
        raise StudyError("a study needs matplotlib for its figures: pip install 'fastdiff-triton[plot]'") from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.prop_cycle": cycler(color=COLOURS),
            "figure.constrained_layout.use": True,
            "savefig.dpi": 110,
        }
    )
    return plt


def draw_digits(axis: Any, levels: list[list[int]], label: str) -> None:
    """Draw digits, each a list of its 64 levels, side by side into an axis, with a label on the left."""
    images = np.pad(np.array(levels).reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)), constant_values=8)
    axis.imshow(np.concatenate(list(images), axis=1), cmap="gray", vmin=0, vmax=16, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([4.5], [label])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)


def save(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure without the version of matplotlib, so that equal numbers give equal files."""
    figure.savefig(path, metadata={"Software": None}, **options)
