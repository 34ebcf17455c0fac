"""The letters A to Z of some 500 font families, which are part of the package (`fastdiff/assets/letters-fonts.md`)."""

from importlib.resources import files

import numpy as np
import torch

from .dataset import Dataset

LETTERS_LEVELS = 16
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def letters() -> Dataset:
    """Load the embedded letters: 23,205 training and 2,418 test images uint8 [N, 1, 28, 28] with 16 levels, 26 classes.

    The test images are of 47 font families of which no image is in the training part, and whose designs differ from
    those of the other 455: `Dataset.test_groups` says which image is of which. `benchmarks/studies/letters.py` made the
    images and states the rules.
    """
    with files("fastdiff.assets").joinpath("letters.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        images = {part: torch.from_numpy(data[f"{part}_images"]) for part in ("train", "test")}
        labels = {part: torch.from_numpy(data[f"{part}_labels"].astype(np.int64)) for part in ("train", "test")}
        groups = torch.from_numpy(data["test_families"].astype(np.int64))
        families = tuple(data["families"].tolist())
    parts = images["train"], labels["train"], images["test"], labels["test"]
    return Dataset(
        "letters", LETTERS_LEVELS, len(LETTERS), *parts, identity="letters", class_names=LETTERS, test_groups=groups,
        group_kind="font families", group_names=families,
    )  # fmt: skip
