"""The metrics of a run: averages by hand, processes together, and files that cannot be written."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fastdiff.diffusion import Vlb
from fastdiff.training import metrics
from fastdiff.training.metrics import BINS, MetricsLog, truncate_metrics
from fastdiff.training.tensorboard import MissingPackageError, TensorBoard

DIMS = 64


@dataclass
class Step:
    """A report with random figures."""

    step: int
    skipped: Tensor = field(default_factory=lambda: torch.tensor(False))
    learning_rate_factor: float = 0.7

    def __post_init__(self):
        figures = iter(torch.rand(6))
        self.loss, self.gradient_norm, self.weight_norm = (next(figures) * 100 for _ in range(3))
        self.bpd = Vlb(*figures)
        self.gamma: Tensor | None = torch.rand(16) * 13 - 8
        self.diffusion: Tensor | None = torch.rand(16) * 50
        self.gamma_range: tuple[Tensor, Tensor] | None = (torch.tensor(-8.0), torch.tensor(5.0))


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(path, steps, **options) -> tuple[dict, dict]:
    """Return the line that these steps make, and what the bar shows."""
    log = MetricsLog(path, DIMS, 3e-3, **options)
    for step in steps:
        log.add(step, 16)
    shown = log.flush(steps[-1])
    return rows(path)[-1], shown


def test_a_line_holds_the_means(tmp_path):
    steps = [Step(k) for k in range(1, 6)]
    row, shown = logged(tmp_path / "m", steps)
    for name, values in {
        "loss": [step.loss for step in steps],
        "recon": [step.bpd.recon for step in steps],
        "prior": [step.bpd.prior for step in steps],
        "diffusion": [step.bpd.diffusion for step in steps],
        "bpd": [step.bpd.recon + step.bpd.prior + step.bpd.diffusion for step in steps],
        "gradient_norm": [step.gradient_norm for step in steps],
        "weight_norm": [step.weight_norm for step in steps],
    }.items():
        assert row[name] == pytest.approx(sum(map(float, values)) / 5, rel=1e-6), name
    assert (row["event"], row["step"], row["skipped_steps"]) == ("train", 5, 0)
    assert row["learning_rate"] == pytest.approx(2.1e-3)
    assert row["images_per_second"] > 0
    assert shown == {"loss": f"{row['loss']:.1f}", "bits/dim": f"{row['bpd']:.3f}", "lr": "2.1e-03"}


def test_the_loss_by_gamma(tmp_path):
    """Sample by sample in Python; a bin without samples is null, and the ends belong to the outer bins."""
    steps = [Step(1), Step(2)]
    steps[0].gamma = torch.tensor([-8.0, 5.0, 1.0, *[-7.9] * 13])
    steps[1].gamma = torch.tensor([*[4.9] * 15, math.nextafter(-8.0, -9.0)])
    row, _ = logged(tmp_path / "m", steps)
    width = 13 / BINS
    assert row["gamma_edges"] == pytest.approx([-8 + width * k for k in range(BINS + 1)])
    expected: list[list[float]] = [[] for _ in range(BINS)]
    for step in steps:
        assert step.gamma is not None
        assert step.diffusion is not None
        for gamma, nats in zip(step.gamma.tolist(), step.diffusion.tolist(), strict=True):
            place = min(BINS - 1, max(0, math.floor((gamma + 8) / width)))
            expected[place].append(nats / (DIMS * math.log(2)))
    assert sum(not values for values in expected) == BINS - 3
    for found, values in zip(row["diffusion_by_gamma"], expected, strict=True):
        assert found == (pytest.approx(sum(values) / len(values), rel=1e-5) if values else None)


def test_a_model_without_a_noise_level(tmp_path):
    step = Step(1)
    step.gamma = step.diffusion = step.gamma_range = None
    row, _ = logged(tmp_path / "m", [step])
    assert not {"gamma_edges", "diffusion_by_gamma"} & set(row)


def test_skipped_steps_are_counted_and_not_averaged(tmp_path):
    good, bad = Step(1), Step(2, torch.tensor(True))
    bad.loss = bad.gradient_norm = torch.tensor(math.nan)
    assert bad.diffusion is not None
    bad.diffusion[:] = math.inf
    row, _ = logged(tmp_path / "m", [good, bad])
    assert row["skipped_steps"] == 1
    assert row["loss"] == pytest.approx(float(good.loss))
    assert all(value is None or math.isfinite(value) for value in row["diffusion_by_gamma"])
    row, _ = logged(tmp_path / "m", [bad])
    assert row["loss"] is None


def test_processes_are_averaged_together(tmp_path):
    """Two processes with the half of the images each, against one with all steps."""
    halves = [[Step(1), Step(2)], [Step(1), Step(2)]]
    sums = []
    for half in halves:
        log = MetricsLog(None, DIMS, 3e-3, total=lambda tensor: sums.append(tensor) or tensor)
        for step in half:
            log.add(step, 16)
        log.flush(half[-1])
    assert all(each.dtype == torch.float64 and each.device.type == "cpu" for each in sums)
    row, _ = logged(tmp_path / "both", halves[0], total=lambda tensor: sums[0] + sums[1])
    alone, _ = logged(tmp_path / "one", [*halves[0], *halves[1]])
    assert row["images_per_second"] == pytest.approx(float(sums[0][1] + sums[1][1]))
    for name in alone.keys() - {"images_per_second", "step", "event"}:
        assert row[name] == pytest.approx(alone[name], rel=1e-6), name


def test_lines_wait_until_they_can_be_written(tmp_path, capsys):
    path = tmp_path / "run" / "m"
    log = MetricsLog(path, DIMS, 1.0)
    for k in range(3):
        log.write({"step": k})
    err = capsys.readouterr().err
    assert err.count("warning") == err.count(f"{path} cannot be written") == 1
    path.parent.mkdir()
    log.write({"step": 3})
    assert [row["step"] for row in rows(path)] == [0, 1, 2, 3]
    log.write({"step": 4})
    path.unlink()
    path.mkdir()  # it fails again, and says so again
    log.write({"step": 5})
    assert "cannot be written" in capsys.readouterr().err
    path.rmdir()
    log.write({"step": 6})
    assert [row["step"] for row in rows(path)] == [5, 6]


def test_no_more_lines_wait_than_memory_allows(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_PENDING", 3)
    log = MetricsLog(tmp_path / "run" / "m", DIMS, 1.0)
    for k in range(5):
        log.write({"step": k})
    (tmp_path / "run").mkdir()
    log.write({"step": 5})
    assert [row["step"] for row in rows(tmp_path / "run" / "m")] == [3, 4, 5]


FULL = """
import resource, signal, sys
from pathlib import Path
from fastdiff.training.metrics import MetricsLog

log = MetricsLog(Path(sys.argv[1]), 1, 1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
for k in range(20):
    log.write({"step": k, "text": "x" * 20})
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(Path(sys.argv[1]).read_bytes()))
log.write({"step": 20})
"""


def test_a_full_disk(tmp_path):
    """No line is written in part, and after it has room again none is missing."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("cannot be written") == 1
    assert 0 < int(done.stdout) <= 100
    assert [row["step"] for row in rows(tmp_path / "m")] == list(range(21))


def test_truncation_takes_only_lines_of_metrics(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b'{"step": 2}\n7\n[]\n\xff\xfe\n\0\0\n{"step": 3}\n{"step": 4}\n{"st')
    truncate_metrics(path, 3, finished=False)
    assert rows(path) == [{"step": 2}, {"step": 3}]
    assert os.listdir(tmp_path) == ["m"]


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match=r"fastdiff-triton\[log\]"):
        TensorBoard(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_rows(tmp_path):
    """Read back by TensorBoard itself."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    row, _ = logged(tmp_path / "m", [Step(1), Step(7)], also=board.write)
    board.picture(torch.zeros(1, 4, 6, dtype=torch.uint8), 7)
    board.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    for name in ("loss", "weight_norm", "images_per_second"):
        assert scalars[f"train/{name}"] == [(7, pytest.approx(row[name], rel=1e-6))]
    for place, value in enumerate(row["diffusion_by_gamma"]):
        assert scalars.get(f"train/diffusion_by_gamma/{place}") == (
            None if value is None else [(7, pytest.approx(value, rel=1e-6))]
        )
    assert [(image.step, image.width, image.height) for image in found.Images("samples")] == [(7, 6, 4)]
