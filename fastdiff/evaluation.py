"""Bits per dimension of a data set, the same for any batch size, with the standard error over its images."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .kernels import Noise
from .vlb import Vlb

EVALUATION_STEP = 2**32 - 1  # a step that no training reaches: the two share no draw


@dataclass(frozen=True)
class Evaluation:
    """The bound over a data set: per-image terms in bits per dimension, each float64 [N], averaged over the draws."""

    bpd: Vlb
    steps: int | None

    @property
    def mean(self) -> float:
        """Bits per dimension, the mean over the images."""
        return float(self.bpd.total.double().mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the images (which contains the error of the draws)."""
        count = len(self.bpd.total)
        return float(self.bpd.total.double().std()) / math.sqrt(count) if count > 1 else math.nan

    def row(self) -> dict[str, float | int | None]:
        """The figures that a table shows."""
        terms = {name: float(getattr(self.bpd, name).double().mean()) for name in ("recon", "prior", "diffusion")}
        return {"steps": self.steps, "bpd": self.mean, "se": self.standard_error, **terms}


@torch.no_grad()
def evaluate(
    model: Any,
    images: Tensor,
    labels: Tensor | None = None,
    steps: int | None = None,
    draws: int = 16,
    seed: int = 0,
    batch_size: int = 512,
    progress: bool = False,
) -> Evaluation:
    """Evaluate the bound on every image, ``draws`` times each, at times stratified over all images and draws.

    Draw r of image i is sample r · N + i of one global batch of N · draws, so the result depends on the seed and not
    on the batch size; the draws of one image are evenly spaced in time.

    Args:
        model: any model of the family; it is evaluated in eval mode and left as it was.
        images: uint8 [N, C, H, W], N >= 1.
        labels: int64 [N] for a class-conditional bound, or None.
        steps: T of the bound, None for continuous time.
        draws, batch_size: at least 1.
        seed: of all draws.
        progress: whether to show a progress bar.

    Raises:
        ValueError: no images, or draws, batch_size or steps below 1.
    """
    for name, value in (("draws", draws), ("batch_size", batch_size), ("images", len(images))):
        if value < 1:
            raise ValueError(f"evaluate: {name} is {value}; allowed: at least 1")
    count, device, training = len(images), model.device, model.training
    sums: Any = None
    model.eval()
    try:
        with tqdm(total=count * draws, unit="img", desc=_title(steps), disable=not progress, leave=False) as bar:
            for first in range(0, count * draws, batch_size):
                index = torch.arange(first, min(first + batch_size, count * draws)) % count
                batch_labels = None if labels is None else labels[index].to(device)
                noise = Noise(seed, EVALUATION_STEP, first_sample=first)
                vlb = model.vlb(images[index].to(device), noise, steps, labels=batch_labels, total=count * draws)
                terms = torch.stack([vlb.recon, vlb.prior, vlb.diffusion]).double().cpu()
                sums = torch.zeros(3, count, dtype=torch.float64) if sums is None else sums
                sums.index_add_(1, index, terms)
                bar.update(len(index))
    finally:
        model.train(training)
    return Evaluation(Vlb(*(sums / draws)).bpd(model.dims), steps)


def format_table(evaluations: list[Evaluation]) -> str:
    """A table for people: one line per T, bits per dimension with its standard error and its three terms."""
    lines = [f"{'T':>8}  {'bits/dim':>9}  {'± s.e.':>7}  {'recon':>8}  {'prior':>8}  {'diffusion':>9}"]
    for row in (evaluation.row() for evaluation in evaluations):
        steps = "inf" if row["steps"] is None else str(row["steps"])
        lines.append(
            f"{steps:>8}  {row['bpd']:9.4f}  {row['se']:7.4f}  {row['recon']:8.4f}  {row['prior']:8.4f}  "
            f"{row['diffusion']:9.4f}"
        )
    return "\n".join(lines)


def _title(steps: int | None) -> str:
    return f"bound at T = {'inf' if steps is None else steps}"
