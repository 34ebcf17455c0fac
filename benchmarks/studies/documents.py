"""What the documents of all studies share: paragraphs and lists, the plotting library and its style, rows of images."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

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


def image_text(images: Tensor) -> list[str]:
    """Return images of one channel, uint8 levels below 36 [N, 1, H, W], as one character in base 36 per pixel."""
    return ["".join(np.base_repr(level, 36) for level in image) for image in images.flatten(1).tolist()]


def draw_images(axis: Any, rows: Sequence[Sequence[int] | str], label: str, levels: int = 17) -> None:
    """Draw square images of one channel side by side into an axis, with a label on the left.

    Each is a list of the values of its pixels, in 0 .. levels - 1, or a text of `image_text`.
    """
    size = math.isqrt(len(rows[0]))
    images = np.array([[int(level, 36) for level in row] if isinstance(row, str) else row for row in rows]).reshape(
        -1, size, size
    )
    images = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=(levels - 1) // 2)
    axis.imshow(np.concatenate(list(images), axis=1), cmap="gray", vmin=0, vmax=levels - 1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([(size + 1) / 2], [label])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)


def save(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure without the version of matplotlib, so that equal numbers give equal files."""
    figure.savefig(path, metadata={"Software": None}, **options)
