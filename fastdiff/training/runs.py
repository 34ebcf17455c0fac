"""Runs on disk: start, resume, train to the end or to a signal, and leave a model and samples.

A run's folder holds ``metrics.jsonl``, the checkpoints ``step-00001000/`` …, ``best/`` (the model with the lowest bound
so far), ``samples/`` (pictures during training) and at the end ``model/`` and ``samples.png``. Under several processes
all of them train and evaluate, and the first one alone writes.
"""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from ..checkpoints import last_checkpoint, training_of
from ..data import Dataset, ImageOptions, load_dataset
from ..io import processes
from ..io.configuration import differences, from_dict, to_dict
from ..io.random_state import seeded
from ..kernels import InvalidTypeError
from ..models import ImageConfig, Model, check_model
from . import run_folder
from .batches import check_fit
from .config import TrainConfig
from .errors import RunError
from .keeping import RunKeeper, RunOptions, RunResult
from .lock import LOCK, locked
from .metrics import METRICS
from .signals import Abandoned, signals
from .state import TrainState, load_training
from .step import check_division

KEPT = ("batch_size", "seed", "first_stage", "data")  # what a resumed run cannot change


def start(
    out: Path, build: Callable[[], Model], config: TrainConfig, data: Dataset, device: torch.device | str = "cpu"
) -> TrainState:
    """Start a run in a new or empty folder. Nothing is written before all arguments are checked.

    Args:
        out: the folder of the run.
        build: builds the model. It is called with torch's generators seeded by the run's seed, which are restored
            afterwards.
        config, data: how and on what to train; the data must fit the model.
        device: where to train.

    Raises:
        InvalidTypeError, InvalidValueError: an argument of the wrong type, or a device that does not exist.
        RunError: the folder holds a run already, is used by another training, or cannot be written.
        DataError: data that do not fit the model.
    """
    out, device = _folder(out), processes.check_device(device)
    if not isinstance(config, TrainConfig) or not callable(build):
        raise InvalidTypeError(f"start: build must be a function and config a TrainConfig, got {build!r}, {config!r}")
    processes.on_first(lambda: _check_new(out))
    with seeded(config.seed, device):
        model = check_model("start", build()).to(device)
    check_fit(model, data)
    state = TrainState(model, config)
    check_division(state)
    state.data = _description(data)
    processes.on_first(lambda: _make(out))
    return state


def _folder(out: object) -> Path:
    if not isinstance(out, (str, os.PathLike)):
        raise InvalidTypeError(f"out must be the path of a folder, got {out!r}")
    return Path(out)


def _check_new(out: Path) -> None:
    if last_checkpoint(out) is not None:
        raise RunError(f"out must be a new or empty folder, but {out} holds a run already (--resume continues it)")
    try:
        others = out.is_dir() and any(path.name != LOCK for path in out.iterdir())
        used = out.exists() and (not out.is_dir() or (others and not (out / METRICS).exists()))
    except OSError as error:  # such as a name that is too long
        raise RunError(f"{out} cannot be written: {error}") from error
    if used:
        raise RunError(f"out must be a new or empty folder, but {out} holds something else")


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            run_folder.sweep(out)
            (out / METRICS).write_text("")  # a run that ended before its first checkpoint has nothing to keep
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise RunError(f"{out} cannot be written: {error}") from error


def _description(data: Dataset) -> dict[str, str | int]:
    return {"name": data.name, "identity": data.identity, "images": len(data.train_images)}


def resume(
    out: Path,
    settings: Mapping[str, object],
    device: torch.device | str = "cpu",
    model_config: ImageConfig | None = None,
    network: nn.Module | None = None,
    schedule: Callable[[Tensor], Tensor] | None = None,
) -> TrainState:
    """Resume a run from its last checkpoint, with its own configuration.

    Args:
        out: the folder of the run.
        settings: fields of `TrainConfig` that the caller asks for. Those that differ from the run's change it from here
            on, and the change is recorded in state.json; but the order of the data and the noise stay (`KEPT`).
            ``images`` may be a dictionary of some of its fields, of which ``skip_damaged`` may change.
        device: where to train.
        model_config: the configuration that the run's model must have, or None for any.
        network, schedule: parts of the user's own that the run was started with, see `fastdiff.load`.

    Raises:
        RunError: no checkpoint, another model, a setting that cannot change, or fewer steps than are done.
        CheckpointError: a checkpoint that cannot be read.
        ConfigError: a setting that is not allowed.
    """
    out, device = _folder(out), processes.check_device(device)
    path = _checkpoint_to_resume(out)
    state = load_training(path, device, network, schedule)
    if model_config is not None and type(state.model.config) is not type(model_config):
        raise RunError(f"{out} holds a run of another model, a {state.model.kind} model")
    if model_config is not None and state.model.config != model_config:
        raise RunError(f"{out} holds a run of another model: {differences(state.model.config, model_config)}")
    settings = dict(settings)
    if isinstance(settings.get("images"), Mapping):
        settings["images"] = attrs.evolve(state.config.images, **settings["images"])  # pyright: ignore
    recorded, asked = to_dict(state.config), to_dict(attrs.evolve(state.config, **settings))
    changes = {name: [old, asked[name]] for name, old in recorded.items() if asked[name] != old}
    fixed = [f"{name} {recorded[name]}, not {asked[name]}" for name in KEPT if name in changes]
    if changes.get("images"):
        old, new = (before | {"skip_damaged": None} for before in changes["images"])
        fixed += [f"images {recorded['images']}, not {asked['images']}"] if old != new else []
    if fixed:
        raise RunError(f"{out} was started with {'; '.join(fixed)}, which a resumed run keeps")
    if int(asked["max_steps"]) < state.step:
        raise RunError(f"max_steps must be >= {state.step}, the steps that {out} has done, got {asked['max_steps']}")
    if changes:
        state = load_training(path, device, network, schedule, settings)
        state.changes.append({"step": state.step, **changes})
    return state


def _checkpoint_to_resume(out: Path) -> Path:
    def choose() -> str:
        if last_checkpoint(out) is None:
            raise RunError(f"out must be the folder of a run with a checkpoint, but {out} holds none")
        with locked(out):
            run_folder.sweep(out)
            return str(run_folder.newest_loadable(out))

    return Path(processes.share(processes.on_first(choose)) or "")


def run(out: Path, state: TrainState, data: Dataset, options: RunOptions | None = None) -> RunResult:
    """Train to the end, or until SIGINT, SIGTERM or SIGHUP, writing metrics and checkpoints into the folder of the run.

    The first signal ends the run after the step in hand, with a checkpoint; an evaluation is abandoned. A second one
    ends it at once. The bound on the held-out images is evaluated during training (2 draws) and at the end (64 draws),
    each time after a checkpoint was written.

    Raises:
        RunError: the folder is used by another training, or the data set is not the one that the run was started with.
        DataError: data that do not fit the model, or an image that cannot be read.
        TrainingError: the run has diverged. Its last good checkpoint is left as it is, and the message names it.
        CheckpointError: the last checkpoint cannot be written.
        ProcessError: another process of the run has ended.
    """
    check_fit(state.model, data)
    options = options or RunOptions()
    _check_same_data(out, state, data, options.allow_changed_data)
    with RunKeeper(Path(out), state, data, options) as keeper, signals() as stop:
        try:
            keeper.train(stop)
            if not keeper.stopping:
                keeper.finish(stop)
        except Abandoned:
            pass
        except processes.PeerError as error:
            if error.kind != Abandoned.__name__:
                raise
            stop.set(signal.SIGTERM)  # another process has met a signal
        return keeper.result(stop.number)


def data_of(path_or_name: str | os.PathLike[str], data: str | os.PathLike[str] | None = None) -> Dataset:
    """Load the data set that a model was trained on, read as in its training: with the same sizes, colors and classes,
    and the same images held out.

    Args:
        path_or_name: the folder of a run, or whatever else `fastdiff.load` takes.
        data: where the data set is now, if it has been moved. A relative path that the training recorded starts from
            the current folder.

    Raises:
        CheckpointError: there is no such run or model.
        RunError: its files do not say what it was trained on.
        DataError: the data set is not there, or cannot be read.
    """
    training = training_of(os.fspath(path_or_name))
    name = training.get("data") if data is None else os.fspath(data)
    if not isinstance(name, str):
        raise RunError(f"data must be a name or path, since {path_or_name} does not say what it was trained on")
    return load_dataset(name, from_dict(ImageOptions, training.get("images", {}), f"{path_or_name}: images"))


def _check_same_data(out: Path, state: TrainState, data: Dataset, allow_changes: bool) -> None:
    """Check that the data are those that the run was started on; with ``allow_changes`` record that they are not."""
    known, found = state.data, _description(data)
    if not known.get("identity"):
        state.data = found
    elif not data.identity and known["images"] == found["images"]:
        pass  # nobody knows; the record stays
    elif (known["identity"], known["images"]) != (found["identity"], found["images"]):
        if not allow_changes:
            raise RunError(
                f"{out} was started on {known['images']} images of {known['name']} which have changed since: the "
                f"files' paths, sizes or times differ, or how they are read; {data.name} has {found['images']} images "
                "now. --allow-changed-data (RunOptions) goes on with these"
            )
        state.changes.append({"step": state.step, "data_set": [known, found]})
        state.data = found


__all__ = ["RunError", "RunOptions", "RunResult", "data_of", "resume", "run", "start"]
