"""The metrics of a run: ``metrics.jsonl``, one JSON object per line."""

import json
import math
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from ..io.folders import Json
from .loop import Report


class MetricsLog:
    """Averages between two lines of ``metrics.jsonl``: the loss, and the bound in bits per dimension."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self.sums: Tensor | None = None
        self.count, self.images, self.since = 0, 0, time.monotonic()

    def add(self, report: Report, batch_size: int) -> None:
        """Add one step."""
        terms = (report.loss, report.bpd.recon, report.bpd.prior, report.bpd.diffusion, report.gradient_norm)
        values = torch.stack([*(term.float() for term in terms), terms[0].new_tensor(float(report.skipped))])
        self.sums = values if self.sums is None else self.sums + values  # on the device, without waiting for it
        self.count, self.images = self.count + 1, self.images + batch_size

    def flush(self, report: Report) -> dict[str, str]:
        """Write the averages since the last line as one line; return what a progress bar shows."""
        assert self.sums is not None
        loss, recon, prior, diffusion, norm, skipped = (self.sums / self.count).tolist()
        bpd = recon + prior + diffusion
        row = {
            "event": "train", "step": report.step, "loss": loss, "bpd": bpd, "recon": recon, "prior": prior,
            "diffusion": diffusion, "gradient_norm": norm, "learning_rate_factor": report.learning_rate_factor,
            "skipped_steps": round(skipped * self.count),
            "images_per_second": self.images / (time.monotonic() - self.since),
        }  # fmt: skip
        self.write(row)
        self._reset()
        return {"loss": f"{loss:.1f}", "bits/dim": f"{bpd:.3f}", "lr": f"{report.learning_rate_factor:.2f}×"}

    def write(self, row: Json) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json_line(row) + "\n")


def json_line(row: Json) -> str:
    """Return one line of JSON; a number that is not finite becomes null, since JSON has no NaN."""
    return json.dumps(_finite(row))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def truncate_metrics(path: Path, step: int, finished: bool) -> None:
    """Remove the lines after a step, which the resumed run writes again, and an incomplete last line.

    A finished run writes its last evaluation again.
    """
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        again = finished and row.get("event") == "evaluate" and row.get("step") == step
        if row.get("step", 0) <= step and not again:
            kept.append(line)
    complete = path.with_suffix(".tmp")
    complete.write_text("".join(line + "\n" for line in kept))
    os.replace(complete, path)
