"""Decoding every file of a folder, in several processes, to find those that cannot be read."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch.utils.data
from tqdm import tqdm

from .decoding import MODES, opened
from .errors import DataError
from .paths import PathList

if TYPE_CHECKING:
    from PIL.Image import Image

BLOCK = 64  # files that a process reads at a time
FEW = 500  # files that are read faster than processes start
MAX_WORKERS = 8


class Report(NamedTuple):
    """What a file holds: its position, width, height and the mode of its pixels; or what is wrong with it.

    alpha: whether it has an alpha channel or transparent colors, which are not part of the pixels. transparent: whether
    some of its pixels are not opaque.
    """

    position: int
    width: int
    height: int
    mode: str
    problem: str | None
    alpha: bool = False
    transparent: bool = False


def readable(root: str, paths: PathList, bar: tqdm | None = None) -> tuple[np.ndarray, list[str]]:
    """Decode every file, and return the positions of those that can be read, int64, and what is wrong with the others.

    Raises:
        DataError: none can be read, or a process ended while it read a file.
    """
    reports = list(inspect_files(root, paths, bar=bar))
    problems = [report.problem for report in reports if report.problem is not None]
    if len(problems) == len(reports):
        raise DataError(f"{root} must have an image that can be read, got none; the first error: {problems[0]}")
    return np.array([report.position for report in reports if report.problem is None], np.int64), problems


class _Blocks(torch.utils.data.Dataset[list[Report]]):
    """Item k: the reports on files 64 k to 64 k + 63."""

    def __init__(self, root: str, paths: PathList) -> None:
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return (len(self.paths) + BLOCK - 1) // BLOCK

    def __getitem__(self, block: int) -> list[Report]:
        last = min((block + 1) * BLOCK, len(self.paths))
        return [self.report(position) for position in range(block * BLOCK, last)]

    def report(self, position: int) -> Report:
        try:
            with opened(os.path.join(self.root, self.paths[position])) as image:
                image.load()
                return Report(position, image.width, image.height, MODES[image.mode], None, *_alpha(image))
        except DataError as error:
            return Report(position, 0, 0, "", str(error))


def _alpha(image: "Image") -> tuple[bool, bool]:
    """Return whether an image has alpha, and whether some of its pixels are not opaque."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as its pixels are read
    if image.mode not in ("LA", "RGBA"):
        keyed = "transparency" in image.info  # one color that stands for transparent pixels
        return keyed, keyed
    darkest, _ = image.getchannel("A").getextrema()
    return True, darkest != 255


def inspect_files(root: str, paths: PathList, workers: int | None = None, bar: tqdm | None = None) -> Iterator[Report]:
    """Decode every file, and report on each in the order of the paths.

    Args:
        root: folder that the paths are relative to.
        paths: the files.
        workers: processes; None: as many as there are processors, up to 8, and none for a few hundred files.
        bar: progress bar to update.

    Raises:
        DataError: a process ended while it read a file.
    """
    if workers is None:
        workers = 0 if len(paths) < FEW else min(MAX_WORKERS, _processors())
    loader = torch.utils.data.DataLoader(
        _Blocks(root, paths), batch_size=None, num_workers=min(workers, _processors()),
        generator=torch.Generator(),  # otherwise the loader draws a seed from the caller's
    )  # fmt: skip
    blocks = iter(loader)
    while True:
        try:
            block = next(blocks)
        except StopIteration:
            return
        except RuntimeError as error:  # a decoder brought the process down
            raise DataError(f"{root}: a process that read its files ended: {error}") from error
        yield from block
        if bar is not None:
            bar.update(len(block))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
