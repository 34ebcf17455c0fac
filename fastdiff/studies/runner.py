"""Training the models of a study: each in a folder of its own, kept once it is trained, resumable before.

A study names its models as `Arm`s. They train in parallel processes of one thread each, because a small network does
not fill more.
"""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import runs
from ..checkpoint import last_checkpoint, load
from ..config import to_dict
from ..datasets import load_dataset
from ..models import DiffuseVAE, Model, model_of
from ..storage import MANIFEST, read_folder
from ..training import TrainConfig


class StudyError(RuntimeError):
    """A study that cannot go on: its folder holds models of other settings, or a training was interrupted."""


@dataclass(frozen=True)
class Arm:
    """One model of a study: its configuration, and how it is trained.

    The first stage of a DiffuseVAE is the arm that ``train.first_stage`` names.
    """

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
    done = 0
    for wave in ([a for a in waiting if a.train.first_stage is None], [a for a in waiting if a.train.first_stage]):
        for arm, bpd, seconds in _in_parallel(wave, workers, _train, folder):
            done += 1
            print(f"[{done}/{len(waiting)}] {arm.name}: {bpd:.3f} bits/dim, {seconds / 60:.1f} minutes", flush=True)


Measure = Callable[[Arm, Path, dict[str, Any]], Any]


def measure_arms(
    arms: list[Arm], folder: Path, workers: int, measure: Measure, name: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Measure every arm, in parallel; what was measured with the same settings before is read from its folder.

    Args:
        arms: trained arms.
        folder: of all arms; the numbers of one are kept in ARM/NAME.json.
        workers: processes, one thread each.
        measure: a function of a module, ``measure(arm, folder, settings)``, that returns plain JSON types.
        name: of the file.
        settings: what the numbers depend on besides the arm, plain JSON types.
    """
    paths = {arm.name: folder / arm.name / f"{name}.json" for arm in arms}
    waiting = [arm for arm in arms if _measured(paths[arm.name], settings) is None]
    if waiting:
        print(f"measuring {len(waiting)} models", flush=True)
    for arm, found, seconds in _in_parallel(waiting, workers, measure, folder, settings):
        partial = paths[arm.name].with_suffix(".tmp")
        partial.write_text(json.dumps({"settings": settings, "found": found}) + "\n")
        os.replace(partial, paths[arm.name])
        print(f"measured {arm.name}, {seconds / 60:.1f} minutes", flush=True)
    return {arm.name: _measured(paths[arm.name], settings) for arm in arms}


def _measured(path: Path, settings: dict[str, Any]) -> Any:
    """What a file holds of these settings; None where it holds others or is not there."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError:
        return None
    return content["found"] if content.get("settings") == json.loads(json.dumps(settings)) else None


def _in_parallel(
    arms: list[Arm], workers: int, task: Callable[..., Any], *arguments: Any
) -> Iterator[tuple[Arm, Any, float]]:
    """Run ``task(arm, *arguments)`` for all arms in processes of one thread each; yield what each gives as it ends."""
    if not arms:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(arms)), context, initializer=_begin) as pool:
        jobs = {pool.submit(_timed, task, arm, *arguments): arm for arm in arms}
        try:
            for job in as_completed(jobs):
                yield jobs[job], *job.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin() -> None:
    """Begin a worker: one thread for torch, and an end with the process that started it, however that ends."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # what is half-written is never a checkpoint, and nobody waits for the rest


def _timed(task: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    since = time.monotonic()
    return task(*arguments), time.monotonic() - since


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


def _fresh(arm: Arm, folder: Path) -> Model:
    """The arm's model before its training, on its first stage if it has one."""
    model = model_of(arm.model)
    if isinstance(model, DiffuseVAE):
        model.take_first_stage(load(folder / str(arm.train.first_stage) / "model"))
    return model


def _train(arm: Arm, folder: Path) -> float:
    """Train one arm to its end in this process; return the held-out bits/dim."""
    path, data = folder / arm.name, load_dataset(arm.train.data)
    if last_checkpoint(path) is not None:
        state = runs.resume(path, to_dict(arm.train), model=arm.model)
    else:
        state = runs.start(path, lambda: _fresh(arm, folder), arm.train, data)
    outcome = runs.run(path, state, data, evaluations=1, progress=False)
    if outcome.evaluation is None:
        raise StudyError(f"{arm.name} was interrupted after step {outcome.step}; the same command goes on with it")
    return outcome.evaluation.mean
