"""What the pictures of all studies share: the drawing library, asked for before the work, and one look."""

from pathlib import Path
from typing import Any

import numpy as np

from .runner import StudyError

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#edae49", "#6a4c93", "#444444")


def drawing() -> Any:
    """Return matplotlib.pyplot, set to draw into files.

    Raises:
        StudyError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from cycler import cycler
    except ImportError as error:
        raise StudyError("pictures need matplotlib: pip install matplotlib (the extra `plot`)") from error
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
    """Draw digits, each given as its 64 levels, side by side into an axis, with a label on their left."""
    images = np.pad(np.array(levels).reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)), constant_values=8)
    axis.imshow(np.concatenate(list(images), axis=1), cmap="gray", vmin=0, vmax=16, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([4.5], [label])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)


def save(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure without the date and the version, so that the same numbers give the same file."""
    figure.savefig(path, metadata={"Software": None}, **options)
