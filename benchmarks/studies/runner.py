"""Training and measuring the models of a study, each in a folder of its own.

A trained model is kept, and an interrupted training is resumed. The models are trained in parallel processes of one
thread each, since a small network gains little from more threads.
"""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastdiff.checkpoints import last_checkpoint, load
from fastdiff.data import Dataset, load_dataset
from fastdiff.io.configuration import from_dict, to_dict
from fastdiff.io.folders import MANIFEST, read_folder
from fastdiff.kernels import FastdiffError
from fastdiff.models import ImageConfig, Model, model_of
from fastdiff.training import TrainConfig
from fastdiff.training.runs import RunOptions, resume, run, start

from .data_sets import DATA_SETS, DataSet
from .progress import Progress, seconds_per_step

HELD_OUT = 300  # images of the evaluation at the end of a training, which is printed and not part of the results


class StudyError(FastdiffError, RuntimeError):
    """A study that cannot continue: models of other settings, an interrupted training, or a missing library."""


@dataclass(frozen=True)
class Run:
    """One model of a study: its configuration, and how it is trained.

    ``name`` is SETTING-seedK. ``train.first_stage`` is the name of the run of a DiffuseVAE's first stage.
    """

    name: str
    model: ImageConfig
    train: TrainConfig

    @property
    def setting(self) -> str:
        """The name without the seed."""
        return self.name.rpartition("-seed")[0]

    @property
    def data_set(self) -> DataSet:
        """The data set that it is trained on."""
        return DATA_SETS[self.train.data]


# ------------------------------------------------------------------------------------------------ training


def train_runs(runs: list[Run], folder: Path, workers: int) -> None:
    """Train the runs that are not trained yet, first stages before the others.

    It prints how long they will take, from a few steps of each kind, and at the end of each how long the others take.

    Raises:
        StudyError: a folder with a model of other settings, or an interrupted training, which a later call resumes.
    """
    waiting = [each for each in runs if not _is_trained(folder / each.name, each)]
    print(f"{len(runs)} models, {len(runs) - len(waiting)} of them trained already, in {folder}", flush=True)
    first_stages = [each for each in waiting if each.train.first_stage is None]
    progress = Progress(estimate(waiting, folder), min(workers, max(len(waiting), 1)))
    if waiting:
        seconds, minutes = sum(progress.left.values()), progress.minutes()
        print(f"training takes about {minutes:.0f} minutes, {seconds / 60:.0f} minutes of one core", flush=True)
    done = 0
    for group in (first_stages, [each for each in waiting if each.train.first_stage is not None]):
        for each, bpd, seconds in _in_parallel(group, workers, _train, folder):
            done += 1
            left = progress.done(each.name, seconds)
            print(
                f"[{done}/{len(waiting)}] {each.name}: {bpd:.3f} bits/dim, {seconds / 60:.1f} minutes, "
                f"about {left:.0f} minutes left",
                flush=True,
            )


def estimate(runs: list[Run], folder: Path) -> dict[str, float]:
    """Return the seconds that the training of each run takes in one thread, without its evaluation.

    One run of each setting is timed for a few steps. Steps that an interrupted training has done do not count.
    """
    found, seconds = {}, {}
    for each in runs:
        kind = each.setting or each.name
        if kind not in seconds:
            seconds[kind] = seconds_per_step(model_of(each.model), each.train)
        checkpoint = last_checkpoint(folder / each.name)
        done = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        found[each.name] = (each.train.max_steps - done) * seconds[kind]
    return found


def load_run(wanted: Run, folder: Path) -> Model:
    """Return the model of a trained run with its averaged weights, in eval mode.

    Raises:
        StudyError: the folder holds a model of another configuration.
    """
    model = load(folder / wanted.name / "model")
    if model.config != wanted.model:
        raise _other_settings(folder / wanted.name)
    return model


def _other_settings(path: Path) -> StudyError:
    return StudyError(f"{path} holds a model of other settings: remove it, or choose another folder with --runs")


def _is_trained(path: Path, wanted: Run) -> bool:
    """Return whether a run is trained.

    Raises:
        StudyError: the folder holds a model of other settings.
    """
    if not (path / "model" / MANIFEST).is_file():
        return False
    record = read_folder(path / "model")["config.json"].get("record", {}).get("train")
    if load(path / "model").config != wanted.model or from_dict(TrainConfig, record, str(path)) != wanted.train:
        raise _other_settings(path)
    return True


def _train(wanted: Run, folder: Path) -> float:
    """Train one run to its end in this process; return the bits/dim of the held-out images."""
    path, data = folder / wanted.name, with_few_held_out(load_dataset(wanted.train.data))
    if last_checkpoint(path) is not None:
        state = resume(path, to_dict(wanted.train), model_config=wanted.model)
    else:
        state = start(path, lambda: _fresh(wanted, folder), wanted.train, data)
    options = RunOptions(evaluations=1, pictures=False, progress=False, log_every=0)
    result = run(path, state, data, options)
    if result.stopped_by is not None or result.evaluation is None:
        raise StudyError(f"{wanted.name} was interrupted after step {result.step}; the same command resumes it")
    return result.evaluation.mean


def with_few_held_out(data: Dataset) -> Dataset:
    """Return a data set with at most `HELD_OUT` of its held-out images, evenly spaced among all."""
    if len(data.test_images) <= HELD_OUT:
        return data
    index = [i * len(data.test_images) // HELD_OUT for i in range(HELD_OUT)]
    labels, groups = (None if each is None else each[index] for each in (data.test_labels, data.test_groups))
    return replace(data, test_images=data.test_images[index], test_labels=labels, test_groups=groups)


def _fresh(wanted: Run, folder: Path) -> Model:
    """Return the model of a run before its training, with its first stage if it has one."""
    model = model_of(wanted.model)
    if wanted.train.first_stage is not None:
        model.take_first_stage(load(folder / wanted.train.first_stage / "model"))
    return model


# ------------------------------------------------------------------------------------------------ measuring

Measure = Callable[[Run, Path, dict[str, Any]], Any]


def measure_runs(
    runs: list[Run], folder: Path, workers: int, measure: Measure, name: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Measure every run in parallel, and return the results by the runs' names.

    Results of earlier calls with the same options are read from the folder of the run.

    Args:
        runs: trained runs.
        folder: the folder of all runs; the result of one is kept in RUN/NAME.json.
        workers: number of processes, of one thread each.
        measure: a function of a module, ``measure(run, folder, options)``, that returns plain JSON types.
        name: name of the file.
        options: what the results depend on besides the run, in plain JSON types.
    """
    paths = {each.name: folder / each.name / f"{name}.json" for each in runs}
    waiting = [each for each in runs if _stored(paths[each.name], options) is None]
    if waiting:
        print(f"measuring {len(waiting)} models", flush=True)
    progress = Progress(dict.fromkeys((each.name for each in waiting), 1.0), min(workers, max(len(waiting), 1)))
    for each, result, seconds in _in_parallel(waiting, workers, measure, folder, options):
        partial = paths[each.name].with_suffix(".tmp")
        partial.write_text(json.dumps({"options": options, "result": result}) + "\n")
        os.replace(partial, paths[each.name])
        left = progress.done(each.name, seconds)
        print(f"measured {each.name}, {seconds / 60:.1f} minutes, about {left:.0f} minutes left", flush=True)
    return {each.name: _stored(paths[each.name], options) for each in runs}


def _stored(path: Path, options: dict[str, Any]) -> Any:
    """Return the result in a file; None if there is no such file, or one with other options."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError:
        return None
    return content["result"] if content.get("options") == json.loads(json.dumps(options)) else None


# ------------------------------------------------------------------------------------------------ processes


def _in_parallel(
    runs: list[Run], workers: int, task: Callable[..., Any], *arguments: Any
) -> Iterator[tuple[Run, Any, float]]:
    """Call ``task(run, *arguments)`` for all runs in processes of one thread each.

    Yields the run, the result and the seconds of each call, in the order in which the calls end.
    """
    if not runs:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(runs)), context, initializer=_begin) as pool:
        jobs = {pool.submit(_timed, task, each, *arguments): each for each in runs}
        try:
            for job in as_completed(jobs):
                yield jobs[job], *job.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin() -> None:
    """Initialise a worker process: one thread for torch, and an end together with the process that started it."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # checkpoints are written atomically, so nothing is left half-written


def _timed(task: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    since = time.monotonic()
    return task(*arguments), time.monotonic() - since
