"""Loading a model from a checkpoint folder, a training run or the embedded models."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from torch import Tensor, nn

from ..io import folders
from ..io.configuration import ConfigError, from_dict
from ..io.folders import CheckpointError, Folder
from ..io.random_state import seeded
from ..io.renamed import RENAMED_MODELS, renamed_tensors
from ..models import MODELS, Model, build
from .plausible import check_plausible

PREFIX = "step-"
PATIENCE = 10.0  # seconds in which a checkpoint that a training has removed is read again, from its newer one
RUNS = Path("runs")  # where the command line keeps runs, in the working directory
KNOWN_KEYS = ("model", "config", "custom", "versions", "record", "spacings")  # of a config.json


def embedded_names() -> list[str]:
    """Return the names of the models that are shipped with the package."""
    assets = files("fastdiff.assets")
    return sorted(entry.name for entry in assets.iterdir() if entry.joinpath(folders.MANIFEST).is_file())


def load(
    path_or_name: str | Path,
    network: nn.Module | None = None,
    schedule: Callable[[Tensor], Tensor] | None = None,
) -> Model:
    """Load a model in eval mode. What a training replaces meanwhile is read again.

    Args:
        path_or_name: a checkpoint folder; the folder of a training run, which stands for its last checkpoint, of which
            the averaged weights are taken; the name of an embedded model; or the name of a run in ``runs/``. The name
            of an embedded model takes precedence over a folder of the same name: write ``./digits`` for the folder.
        network, schedule: parts of your own that the saved model was made with, built as they were then. Their weights
            are loaded.

    Raises:
        CheckpointError: there is no such folder or name; a file is missing, damaged or unreadable; tensors do not fit
            the configuration or are not finite; a key is unknown; a part of your own is missing. The message names the
            file.
    """
    path, content = _read(path_or_name)
    weights = "ema.safetensors" if "ema.safetensors" in content else "model.safetensors"
    for name in ("config.json", weights):
        if name not in content:
            found = ", ".join(content) or "nothing"
            raise CheckpointError(f"{path} must be the checkpoint of a model with {name}, but it holds {found}")
    model = model_from(path, content["config.json"], network, schedule, content[weights])
    expected = model.state_dict()
    state = renamed_tensors(content[weights], expected)
    folders.check_state(str(path / weights), state, expected)
    model.load_state_dict(state)
    return model.eval()


def model_from(
    path: Path,
    description: object,
    network: nn.Module | None = None,
    schedule: Callable[[Tensor], Tensor] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Model:
    """Build the model that a config.json describes, with fresh weights; ``path`` is its folder.

    With ``tensors``, the weights that it will take, a model with more than these is rejected before it is built.

    Raises:
        CheckpointError: a description that does not fit, or parts of the user's own that are missing or not wanted.
    """
    where = str(path / "config.json")
    if not isinstance(description, dict):
        raise CheckpointError(f"{where} must hold an object with model and config, got {description!r}")
    unknown = sorted(set(description) - set(KNOWN_KEYS))
    if unknown:
        raise CheckpointError(f"{where} has unknown keys {', '.join(unknown)}; the known keys are {KNOWN_KEYS}")
    parts = {"network": network, "schedule": schedule}
    custom = description.get("custom") or {}
    for name, part in parts.items():
        if name in custom and part is None:
            raise CheckpointError(
                f"{path} was saved with a {name} of the user's own, {custom[name]}; pass it: load(..., {name}=...)"
            )
        if name not in custom and part is not None:
            raise CheckpointError(f"{name} must be None for {path}, which was saved without a {name} of the user's own")
    _check_config(description, where, None if custom else tensors)
    try:
        with seeded(None):  # the fresh weights are drawn from the caller's generator, which is restored
            model = build(description.get("model"), description.get("config"), where, **parts)
        if "spacings" in description:
            model.take_spacings(description["spacings"], f"{where}: spacings")
        return model
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _check_config(description: Mapping[str, object], where: str, tensors: Mapping[str, Tensor] | None) -> None:
    """Check that a configuration has all its keys, and describes a model that these tensors can fill."""
    kind = description.get("model")
    name = RENAMED_MODELS.get(kind, kind) if isinstance(kind, str) else None
    if name not in MODELS:
        return  # `build` says so
    try:
        config = from_dict(MODELS[name].config_class, description.get("config"), f"{where}: config", complete=True)
        if tensors is not None:
            check_plausible(config, tensors, where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:  # a network that does not fit the images
        raise CheckpointError(f"{where}: {error}") from error


def training_of(path_or_name: str | Path) -> dict[str, object]:
    """Return the settings that a model was trained with, as JSON; an empty dictionary if its files do not say.

    Raises:
        CheckpointError: as `load`.
    """
    path = _resolve(path_or_name)
    for name, keys in (("state.json", ("train",)), ("config.json", ("record", "train"))):
        try:
            found = json.loads((path / name).read_bytes())
            for key in keys:
                found = found[key]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints in the folder of a run, the newest last."""
    try:
        names = os.listdir(run)
    except (OSError, ValueError):
        return []
    steps = {int(found[1]): name for name in names if (found := re.fullmatch(rf"{PREFIX}(\d+)", name))}
    return [run / steps[step] for step in sorted(steps) if folders.is_complete(run / steps[step])]


def last_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint in the folder of a run, or None."""
    return next(reversed(checkpoints(run)), None)


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint at a step."""
    return run / f"{PREFIX}{step:08d}"


def _read(path_or_name: str | Path) -> tuple[Path, Folder]:
    """Return a checkpoint's folder and content. A training may remove it meanwhile: then it has a newer one."""
    path, limit = _resolve(path_or_name), time.monotonic() + PATIENCE
    while True:
        try:
            return path, folders.read_folder(path)
        except CheckpointError:
            newer = _resolve(path_or_name)
            if newer == path or time.monotonic() > limit:
                raise
            path = newer


def _resolve(path_or_name: str | Path) -> Path:
    name = str(path_or_name)
    if name in embedded_names():
        return Path(str(files("fastdiff.assets").joinpath(name)))
    path = Path(name)
    if not folders.exists(path) and path.name == name and os.path.isdir(RUNS / name):
        path = RUNS / name
    if not folders.exists(path):
        names = ", ".join(embedded_names())
        raise CheckpointError(
            f"model must be a checkpoint folder, the folder of a run or its name in {RUNS}/, or an embedded model "
            f"({names}), got {name!r}"
        )
    return path if not os.path.isdir(path) or folders.is_complete(path) else last_checkpoint(path) or path
