"""Training the models of a study: each in a folder of its own, kept once it is trained, resumable before.

A study names its models as `Arm`s. They train in parallel processes of one thread each, because a small network does
not fill more.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import runs
from ..checkpoint import last_checkpoint, load
from ..config import to_dict
from ..datasets import load_dataset
from ..models import model_of
from ..storage import MANIFEST, read_folder
from ..training import TrainConfig


class StudyError(RuntimeError):
    """A study that cannot go on: its folder holds models of other settings, or a training was interrupted."""


@dataclass(frozen=True)
class Arm:
    """One model of a study: its configuration, and how it is trained."""

    name: str
    model: Any
    train: TrainConfig


def train_arms(arms: list[Arm], folder: Path, workers: int) -> None:
    """Train every arm that is not trained yet; print a line as each one ends.

    Raises:
        StudyError: a folder with another configuration, or an interrupted training (which a later call goes on with).
    """
    waiting = [arm for arm in arms if not _trained(folder / arm.name, arm)]
    print(f"{len(arms)} models, {len(arms) - len(waiting)} of them trained already, in {folder}", flush=True)
    if not waiting:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(waiting)), context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = {pool.submit(_train, arm, folder / arm.name): arm for arm in waiting}
        try:
            for number, job in enumerate(as_completed(jobs), 1):
                seconds, bpd = job.result()
                name = jobs[job].name
                print(f"[{number}/{len(waiting)}] {name}: {bpd:.3f} bits/dim, {seconds / 60:.1f} minutes", flush=True)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def load_arm(arm: Arm, folder: Path) -> Any:
    """The averaged weights of a trained arm, in eval mode."""
    model = load(folder / arm.name / "model")
    if model.config != arm.model:
        raise StudyError(f"{folder / arm.name} holds another model; allowed: another folder, or this one removed")
    return model


def _trained(path: Path, arm: Arm) -> bool:
    """Whether an arm is trained; raises if the folder holds another model."""
    if not (path / "model" / MANIFEST).is_file():
        return False
    model = load(path / "model")
    if model.config != arm.model or _record(path) != to_dict(arm.train):
        raise StudyError(f"{path} holds a model of other settings; allowed: another folder, or this one removed")
    return True


def _record(path: Path) -> Any:
    return read_folder(path / "model")["config.json"].get("record", {}).get("train")


def _train(arm: Arm, path: Path) -> tuple[float, float]:
    """Train one arm to its end in this process; return the seconds and the held-out bits/dim."""
    since = time.monotonic()
    data = load_dataset(arm.train.data)
    if last_checkpoint(path) is not None:
        state = runs.resume(path, to_dict(arm.train), model=arm.model)
    else:
        state = runs.start(path, lambda: model_of(arm.model), arm.train, data)
    outcome = runs.run(path, state, data, evaluations=1, progress=False)
    if outcome.evaluation is None:
        raise StudyError(f"{arm.name} was interrupted after step {outcome.step}; the same command goes on with it")
    return time.monotonic() - since, outcome.evaluation.mean
