"""The metrics of a run: ``metrics.jsonl``, one JSON object per line."""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..diffusion import Vlb
from ..io.files import write_atomically
from ..io.folders import Json

METRICS = "metrics.jsonl"  # in the folder of a run
BINS = 8  # of gamma, evenly between its ends
MAX_PENDING = 10_000  # lines that are kept while the file cannot be written
SCALARS = 6


class StepReport(Protocol):
    """What a step of training reports. Tensors are on the device of the model, and nothing here waits for them.

    gamma: that of each sample of the batch [B], diffusion: the diffusion term of each in nats [B], gamma_range:
    (gamma_0, gamma_1); None for a model without a noise level. skipped: bool.
    """

    @property
    def step(self) -> int: ...

    @property
    def loss(self) -> Tensor: ...

    @property
    def bpd(self) -> Vlb: ...

    @property
    def gradient_norm(self) -> Tensor: ...

    @property
    def weight_norm(self) -> Tensor: ...

    @property
    def learning_rate_factor(self) -> float: ...

    @property
    def skipped(self) -> Tensor: ...

    @property
    def gamma(self) -> Tensor | None: ...

    @property
    def diffusion(self) -> Tensor | None: ...

    @property
    def gamma_range(self) -> tuple[Tensor, Tensor] | None: ...


class MetricsLog:
    """Averages between two lines of ``metrics.jsonl``: the loss, the bound in bits per dimension, norms, images/s.

    Averages are over the steps that were not skipped; they are null if all were.

    A file that cannot be written never ends a run: the lines wait, and are written when it can be.

    Args:
        path: the file; None writes nothing, as in a process that only takes part in the averages.
        dims: dimensions of an image.
        learning_rate: the peak, which a report's factor belongs to.
        total: returns the sum of a tensor (float64, on the CPU) over the processes of the run.
        also: called with every row, such as `TensorBoard.write`.
    """

    def __init__(
        self,
        path: Path | None,
        dims: int,
        learning_rate: float,
        total: Callable[[Tensor], Tensor] = lambda sums: sums,
        also: Callable[[Json], None] | None = None,
    ) -> None:
        self.path, self.dims, self.learning_rate, self.total, self.also = path, dims, learning_rate, total, also
        self._pending: deque[str] = deque(maxlen=MAX_PENDING)
        self._failing = False
        self._reset()

    def _reset(self) -> None:
        self._sums: Tensor | None = None  # steps done and skipped; the scalars; by bin: terms, numbers of samples
        self._ends: tuple[Tensor, Tensor] | None = None
        self._images, self._since = 0, time.monotonic()

    def add(self, report: StepReport, batch_size: int) -> None:
        """Add one step, with the number of images of this process."""
        terms = (
            report.loss, report.bpd.recon, report.bpd.prior, report.bpd.diffusion, report.gradient_norm,
            report.weight_norm,
        )  # fmt: skip
        scalars = torch.stack([term.detach().float() for term in terms])
        good = ~report.skipped.detach()
        counts = torch.stack([good, report.skipped.detach()]).float()
        values = torch.cat([counts, torch.where(good, scalars, 0.0), self._bins(report, good)])
        self._sums = values if self._sums is None else self._sums + values  # on the device, without waiting for it
        self._images += batch_size

    def _bins(self, report: StepReport, good: Tensor) -> Tensor:
        """Return the sums of the diffusion term over the samples in each bin of gamma, and their numbers [2 · BINS]."""
        if report.gamma is None or report.diffusion is None or report.gamma_range is None:
            return torch.zeros(2 * BINS, device=report.loss.device)
        low, high = (end.detach().float() for end in report.gamma_range)
        self._ends = (low, high)  # of the last step: learned ends move little between two lines
        place = ((report.gamma.detach().float() - low) / (high - low) * BINS).nan_to_num().long().clamp(0, BINS - 1)
        hits = (place[:, None] == torch.arange(BINS, device=place.device)) & good
        terms = torch.where(hits, report.diffusion.detach().float()[:, None], 0.0)
        return torch.cat([terms.sum(0), hits.float().sum(0)])

    def exclude(self, seconds: float) -> None:
        """Leave out seconds that were spent on something else, such as an evaluation, from the images per second."""
        self._since += seconds

    def flush(self, report: StepReport) -> dict[str, str]:
        """Write the averages since the last line as one line; return what a progress bar shows.

        Every process of the run calls it at the same steps.
        """
        assert self._sums is not None
        elapsed = time.monotonic() - self._since
        speed = torch.tensor([1.0, self._images / elapsed], dtype=torch.float64)
        sums = self.total(torch.cat([speed, self._sums.cpu().double()]))
        processes, images_per_second, good, skipped = sums[:4].tolist()
        loss, recon, prior, diffusion, norm, weight = (sums[4 : 4 + SCALARS] / good).tolist()
        bpd, rate = recon + prior + diffusion, self.learning_rate * report.learning_rate_factor
        row: Json = {
            "event": "train", "step": report.step, "loss": loss, "bpd": bpd, "recon": recon, "prior": prior,
            "diffusion": diffusion, "gradient_norm": norm, "weight_norm": weight, "learning_rate": rate,
            "learning_rate_factor": report.learning_rate_factor, "skipped_steps": round(skipped / processes),
            "images_per_second": images_per_second,
        }  # fmt: skip
        if self._ends is not None:
            row |= self._by_gamma(sums[4 + SCALARS :].view(2, BINS), *map(float, self._ends))
        self.write(row)
        self._reset()
        return {"loss": f"{loss:.1f}", "bits/dim": f"{bpd:.3f}", "lr": f"{rate:.1e}"}

    def _by_gamma(self, sums: Tensor, low: float, high: float) -> Json:
        """Return the edges of the bins, and the mean diffusion term in each in bits per dimension; None: no sample."""
        means = (sums[0] / sums[1] / (self.dims * math.log(2.0))).tolist()  # 0 / 0 is nan, which JSON turns to null
        return {
            "gamma_edges": [low + (high - low) * k / BINS for k in range(BINS + 1)],
            "diffusion_by_gamma": [
                mean if number else None for mean, number in zip(means, sums[1].tolist(), strict=True)
            ],
        }

    def write(self, row: Json) -> None:
        """Append one line. Where that fails it is kept, and written before the next one that can be."""
        if self.also is not None:
            self.also(row)
        if self.path is None:
            return
        self._pending.append(json_line(row) + "\n")
        try:
            self._append("".join(self._pending).encode())
        except OSError as error:
            if not self._failing:
                message = f"{self.path} cannot be written: {error}; its lines are kept, and are written when it can be"
                print(f"fastdiff: warning: {message}", file=sys.stderr)
            self._failing = True
            return
        self._pending.clear()
        self._failing = False

    def _append(self, data: bytes) -> None:
        """Append all of the lines or none: a part of them that did fit is taken back."""
        assert self.path is not None
        with self.path.open("ab", buffering=0) as file:
            size = file.seek(0, 2)
            try:
                written = 0
                while written < len(data):
                    written += file.write(data[written:]) or 0
            except OSError:
                file.truncate(size)
                raise


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

    Raises:
        WriteError: the file cannot be written.
    """
    kept = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict):
            continue
        again = finished and row.get("event") in ("evaluate", "warning") and row.get("step") == step
        if row.get("step", 0) <= step and not again:
            kept.append(line)
    write_atomically(path, "".join(line + "\n" for line in kept).encode())


def early_bpd(path: Path) -> float | None:
    """Return the first bound that a metrics file holds, in bits per dimension; None if it holds none."""
    try:
        with path.open(errors="replace") as file:
            for line in file:
                bpd = json.loads(line).get("bpd")
                if isinstance(bpd, (int, float)):
                    return float(bpd)
    except (OSError, ValueError, AttributeError):
        pass
    return None
