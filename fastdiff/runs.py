"""A training run on disk: its folder, its metrics, its checkpoints, and stopping it without losing anything.

RUN/metrics.jsonl      one JSON object per line: training steps and evaluations
RUN/step-00001000/     the last checkpoint (the one before it is removed once this one is complete)
RUN/model/             at the end: the averaged weights alone, with the settings and the result of the run
RUN/samples.png        at the end: pictures from them
"""

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from . import storage
from .checkpoint import PREFIX, checkpoint_path, last_checkpoint, load_training, save_training
from .config import differences, to_dict
from .datasets import Dataset, check_fit
from .evaluation import Evaluation, evaluate, evaluate_levels
from .kernels import Noise
from .models import Model, Restorer
from .plots import grid
from .sample import sample
from .training import Report, TrainConfig, TrainingError, TrainState, train

LOG_EVERY = 50


class RunError(RuntimeError):
    """A run's folder that cannot be started or resumed."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the steps done, the signal that stopped it (None at its end), and its last evaluation."""

    step: int
    stopped_by: int | None
    evaluation: Evaluation | None


def start(
    out: Path, build: Callable[[], Model], config: TrainConfig, data: Dataset, device: torch.device | str = "cpu"
) -> TrainState:
    """Begin a run in a new or empty folder; nothing is written before everything is known to fit.

    Args:
        out: the run's folder.
        build: makes the model, after torch was seeded with the run's seed.
        config, data: what to train with; the data must be of the model's shape and levels.
        device: where to train.

    Raises:
        RunError: the folder holds a run already, or cannot be written.
        DataError: data that does not fit the model.
    """
    if last_checkpoint(out) is not None:
        raise RunError(f"{out} holds a run already; allowed: another --out, or --resume to go on with it")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "metrics.jsonl").exists())):
        raise RunError(f"{out} holds something that is no run; allowed: a new or empty folder")
    torch.manual_seed(config.seed)
    model = build().to(device)
    check_fit(model, data)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.jsonl").write_text("")  # of a run that ended before its first checkpoint nothing can be kept
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error}") from error
    return TrainState(model, config)


def resume(out: Path, wanted: dict[str, Any], device: torch.device | str = "cpu", model: Any = None) -> TrainState:
    """Go on from the last checkpoint of a run, with its own configuration.

    Args:
        out: the run's folder.
        wanted: settings that the caller asked for (fields of `TrainConfig`); they must be the run's own.
        device: where to train.
        model: the configuration that the run's model must have, or None for any.

    Raises:
        RunError: no checkpoint, another model, or a setting that differs.
        CheckpointError: a checkpoint that cannot be read.
    """
    path = last_checkpoint(out)
    if path is None:
        raise RunError(
            f"{out} holds no checkpoint; allowed: the folder of a run that was started with `fastdiff train`"
        )
    storage.sweep(out)
    state = load_training(path, device)
    if model is not None and type(state.model.config) is not type(model):
        raise RunError(
            f"{out} holds a run of another model ({state.model.kind}); allowed: the preset that it began with"
        )
    if model is not None and state.model.config != model:
        raise RunError(f"{out} holds a run of another model, with {differences(state.model.config, model)}")
    recorded = to_dict(state.config)
    differing = [f"{k}: {recorded[k]} in the run, {v} wanted" for k, v in wanted.items() if recorded[k] != v]
    if differing:
        raise RunError(f"{out} was started with other settings ({'; '.join(differing)}); allowed: the run's own")
    _truncate_metrics(out / "metrics.jsonl", state.step, finished=state.step == state.config.steps)
    return state


def run(
    out: Path,
    state: TrainState,
    data: Dataset,
    save_every: int = 500,
    evaluations: int = 8,
    progress: bool = True,
) -> Outcome:
    """Train to the end, or until SIGINT or SIGTERM, writing metrics and checkpoints into the run's folder.

    The first signal ends the run after the step it is in, with a checkpoint; a second one ends it at once. The
    bound on the held-out images is taken ``evaluations`` times on the way (2 draws) and at the end (64 draws).
    """
    config = state.config
    evaluate_every = max(1, config.steps // max(1, evaluations))
    log = MetricsLog(out / "metrics.jsonl")
    evaluation = None
    with _signals() as caught, tqdm(
        total=config.steps, initial=state.step, unit="step", desc=f"training {data.name}", disable=not progress
    ) as bar:  # fmt: skip
        try:
            for report in train(state, data):
                bar.update()
                log.add(report, config.batch_size)
                last = report.step == config.steps
                if report.step % LOG_EVERY == 0 or last or caught:
                    bar.set_postfix(log.flush(report))
                if report.step % evaluate_every == 0 and not last:
                    evaluation = _evaluate(state, data, log, draws=2)
                if report.step % save_every == 0 or last or caught:
                    _commit(out, state)
                if caught:
                    return Outcome(state.step, caught[0], evaluation)
        except TrainingError:
            _commit(out, state)  # the weights are those before the steps that were skipped
            raise
    return Outcome(state.step, None, _finish(out, state, data, log, progress))


class MetricsLog:
    """Averages over the steps between two lines of ``metrics.jsonl``: the loss, and the bound in bits per dimension."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self.sums: Tensor | None = None
        self.count, self.images, self.since = 0, 0, time.monotonic()

    def add(self, report: Report, batch_size: int) -> None:
        """Take in one step."""
        terms = (report.loss, report.bpd.recon, report.bpd.prior, report.bpd.diffusion, report.gradient_norm)
        values = torch.stack([*(term.float() for term in terms), terms[0].new_tensor(float(report.skipped))])
        self.sums = values if self.sums is None else self.sums + values  # on the device: nothing waits here
        self.count, self.images = self.count + 1, self.images + batch_size

    def flush(self, report: Report) -> dict[str, str]:
        """Write the averages since the last line as one line, and return what a progress bar shows."""
        assert self.sums is not None
        loss, recon, prior, diffusion, norm, skipped = (self.sums / self.count).tolist()
        bpd = recon + prior + diffusion
        row = {
            "event": "train", "step": report.step, "loss": loss, "bpd": bpd, "recon": recon, "prior": prior,
            "diffusion": diffusion, "gradient_norm": norm, "rate": report.rate,
            "skipped_steps": round(skipped * self.count),
            "images_per_second": self.images / (time.monotonic() - self.since),
        }  # fmt: skip
        self.write(row)
        self._reset()
        return {"loss": f"{loss:.1f}", "bits/dim": f"{bpd:.3f}", "lr": f"{report.rate:.2f}×"}

    def write(self, row: dict[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json_line(row) + "\n")


def json_line(row: dict[str, Any]) -> str:
    """One line of JSON; a figure that is not finite becomes null, which JSON has."""
    return json.dumps(_clean(row))


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _evaluate(state: TrainState, data: Dataset, log: MetricsLog, draws: int, progress: bool = False) -> Evaluation:
    evaluation = evaluate(state.ema.module, data.test_images, draws=draws, progress=progress)
    levels = evaluate_levels(state.ema.module, data.test_images)
    log.write({"event": "evaluate", "step": state.step, "draws": draws, **evaluation.row(), **levels})
    return evaluation


def _commit(out: Path, state: TrainState) -> None:
    """Write the checkpoint of this step, then remove the older ones."""
    newest = save_training(checkpoint_path(out, state.step), state)
    for path in out.glob(f"{PREFIX}*"):
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


def _finish(out: Path, state: TrainState, data: Dataset, log: MetricsLog, progress: bool) -> Evaluation:
    evaluation = _evaluate(state, data, log, draws=64, progress=progress)
    model: Any = state.ema.module
    model.save(out / "model", record={"train": to_dict(state.config), "evaluation": evaluation.row()})
    given = None
    if isinstance(model, Restorer):
        given = model.degrade(data.test_images[:64].to(model.device), Noise(state.config.seed))
    grid(sample(model, 64 if given is None else len(given), given=given, progress=progress)).save(out / "samples.png")
    return evaluation


def _truncate_metrics(path: Path, step: int, finished: bool) -> None:
    """Drop the lines after a step, which the resumed run will write again; a torn last line too.

    A run that has all its steps writes its last evaluation again.
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
    whole = path.with_suffix(".tmp")
    whole.write_text("".join(line + "\n" for line in kept))
    os.replace(whole, path)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying; after the first, the default handlers are back."""
    caught: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        for each in handled:
            signal.signal(each, previous[each])

    try:
        previous = {each: signal.signal(each, note) for each in handled}
    except ValueError:  # not the main thread, which alone may set handlers
        yield caught
        return
    try:
        yield caught
    finally:
        for each in handled:
            signal.signal(each, previous[each])
