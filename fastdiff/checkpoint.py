"""Checkpoints: saving a model or a training run, and loading either back, checked against its own configuration."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import storage
from .config import ConfigError, from_dict, to_dict
from .models import Model, build
from .storage import CheckpointError
from .training import TrainConfig, TrainState

PREFIX = "step-"
RUNS = Path("runs")  # where the command line keeps runs, in the working directory


def embedded_names() -> list[str]:
    """Names of the models that the package ships with weights."""
    assets = files("fastdiff.assets")
    return sorted(entry.name for entry in assets.iterdir() if entry.joinpath(storage.MANIFEST).is_file())


def load(path_or_name: str | Path) -> Model:
    """Load a model in eval mode: a checkpoint folder, the folder of a training run, or the name of an embedded model.

    A run's folder stands for its last checkpoint; a training checkpoint gives the averaged weights. The name of an
    embedded model comes before a folder of the same name: write ``./digits`` for the folder. What is neither stands for
    the run of that name in `RUNS`, where `fastdiff train PRESET` writes.

    Raises:
        CheckpointError: no such folder or name; a file that is missing, damaged or unreadable; tensors that do not fit
            the configuration or are not finite; an unknown configuration key. The message names the file.
    """
    path = _resolve(path_or_name)
    content = storage.read_folder(path)
    weights = "ema.safetensors" if "ema.safetensors" in content else "model.safetensors"
    for name in ("config.json", weights):
        if name not in content:
            found = ", ".join(content) or "nothing"
            raise CheckpointError(f"{path} holds no {name} but {found}; allowed: a model's checkpoint")
    model = _build(path, content["config.json"])
    storage.check_state(str(path / weights), content[weights], model.state_dict())
    model.load_state_dict(content[weights])
    return model.eval()


def save_training(path: Path, state: TrainState) -> Path:
    """Write a checkpoint of a run: configuration, weights, averaged weights, optimiser and step, atomically."""
    tensors = state.tensors()
    record = {"step": state.step, "train": to_dict(state.config)}
    contents: dict[str, Any] = {"config.json": state.model.description(), "state.json": record}
    return storage.write_folder(path, contents | {f"{name}.safetensors": tensors[name] for name in tensors})


def load_training(path: Path, device: torch.device | str = "cpu") -> TrainState:
    """Load a run's checkpoint back into a state that goes on to the same weights, bit for bit.

    Raises:
        CheckpointError: as `load` does, and for a checkpoint that holds no training state.
    """
    content = storage.read_folder(path)
    parts = ("model", "ema", "optimizer")
    for name in ("config.json", "state.json", *(f"{part}.safetensors" for part in parts)):
        if name not in content:
            raise CheckpointError(f"{path} holds no {name}; allowed: a checkpoint of `fastdiff train`")
    model = _build(path, content["config.json"]).to(device)
    record = content["state.json"]
    where = f"{path / 'state.json'}"
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        raise CheckpointError(f"{where}: no step; allowed: an object with step >= 0 and train")
    try:
        config = from_dict(TrainConfig, record.get("train"), where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    state = TrainState(model, config)
    tensors = {part: content[f"{part}.safetensors"] for part in parts}
    expected = model.state_dict()
    storage.check_state(str(path / "model.safetensors"), tensors["model"], expected)
    storage.check_state(str(path / "ema.safetensors"), tensors["ema"], expected)
    storage.check_state(str(path / "optimizer.safetensors"), tensors["optimizer"], _expected_moments(model))
    state.restore(record["step"], tensors)
    return state


def last_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder, or None."""
    complete = [path for path in run.glob(f"{PREFIX}*") if (path / storage.MANIFEST).is_file()]
    return max(complete, key=lambda path: path.name, default=None)


def checkpoint_path(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / f"{PREFIX}{step:08d}"


def _resolve(path_or_name: str | Path) -> Path:
    name = str(path_or_name)
    if name in embedded_names():
        return Path(str(files("fastdiff.assets").joinpath(name)))
    path = Path(name)
    storage.recover(path)
    if not path.is_dir() and path.name == name and (RUNS / name).is_dir():
        path = RUNS / name
    if not path.is_dir():
        names = ", ".join(embedded_names())
        raise CheckpointError(
            f"no model {name!r}; allowed: a checkpoint folder, a run's folder or its name in {RUNS}, or one of: {names}"
        )
    return path if (path / storage.MANIFEST).is_file() else last_checkpoint(path) or path


def _build(path: Path, description: Any) -> Model:
    where = str(path / "config.json")
    if not isinstance(description, dict):
        raise CheckpointError(f"{where}: {description!r}; allowed: an object with model and config")
    unknown = sorted(set(description) - {"model", "config", "versions", "record"})
    if unknown:
        raise CheckpointError(f"{where}: unknown keys {', '.join(unknown)}; allowed: model, config, versions, record")
    try:
        return build(description.get("model"), description.get("config"), where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _expected_moments(model: nn.Module) -> dict[str, Any]:
    expected = {}
    for name, parameter in model.named_parameters():
        expected[f"{name}.step"] = parameter.new_zeros(())
        expected[f"{name}.exp_avg"] = expected[f"{name}.exp_avg_sq"] = parameter
    return expected
