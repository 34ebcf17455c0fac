"""The UCI hand-written digits, which are part of the package (`fastdiff/assets/ATTRIBUTION.md`)."""

from importlib.resources import files

import numpy as np
import torch

from .dataset import Dataset

DIGITS_LEVELS = 17
DIGITS = tuple("0123456789")


def digits() -> Dataset:
    """Load the embedded digits: 1500 training and 297 test images uint8 [N, 1, 8, 8] with 17 levels and ten classes.

    The split was drawn once at random. It is a split by image, not by writer: a writer may occur in both parts.
    """
    with files("fastdiff.assets").joinpath("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        images = {part: torch.from_numpy(data[f"{part}_images"].astype(np.uint8)) for part in ("train", "test")}
        labels = {part: torch.from_numpy(data[f"{part}_labels"].astype(np.int64)) for part in ("train", "test")}
    parts = images["train"], labels["train"], images["test"], labels["test"]
    return Dataset("digits", DIGITS_LEVELS, 10, *parts, identity="digits", class_names=DIGITS)
