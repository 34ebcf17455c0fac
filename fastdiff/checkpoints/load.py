"""Loading a model from a checkpoint folder, a training run or the embedded models."""

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from torch import Tensor, nn

from ..io import folders
from ..io.configuration import ConfigError, from_dict
from ..io.folders import CheckpointError, Folder, Json
from ..io.random_state import seeded
from ..io.renamed import RENAMED_MODELS, renamed_tensors
from ..models import MODELS, Model, build
from .diffusers_folder import is_diffusers, load_diffusers
from .pickles import check_no_pickle, check_no_single_file
from .plausible import check_plausible

PREFIX = "step-"
FINAL = "model"  # in the folder of a run, what it wrote at its end
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

    A folder of diffusers, a DDPM or DDIM pipeline or its UNet2DModel, gives a `DDPM` with the same eps_hat, in float32,
    whose network embeds the timesteps of the chain. Its classes keep their numbers, and a null label is added whose
    embedding is 0. Without a scheduler's configuration the chain is that of ``DDPMScheduler()``, 1000 betas from 1e-4
    to 0.02. `fastdiff.interop.diffusers_sampler` gives the sampler of such a folder.

    Args:
        path_or_name: a checkpoint folder; the folder of a training run, which stands for its last checkpoint, of which
            the averaged weights are taken; a folder of diffusers; the name of an embedded model; or the name of a run
            in ``runs/``. As a string the name of an embedded model takes precedence over a folder or a run of the same
            name, with a warning: write ``./digits`` or ``runs/digits`` for those. A `Path` is always a folder.
        network, schedule: parts of your own that the saved model was made with, built as they were then. Their weights
            are loaded.

    Raises:
        CheckpointError: there is no such folder or name; a file is missing, damaged or unreadable; tensors do not fit
            the configuration or are not finite; a key is unknown; a part of your own is missing. The message names the
            file. A folder of diffusers has a setting that fastdiff does not have; all of them are listed. A pickle
            (.pt, .pth, .ckpt, .bin) is never read; the message holds the command that converts it.
    """
    resolved = _resolve(path_or_name)
    if not folders.is_complete(resolved) and is_diffusers(placed := folders.located(resolved)):
        if network is not None or schedule is not None:
            raise CheckpointError(f"network and schedule must be None for {resolved}, a folder of diffusers")
        return load_diffusers(placed)
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


def record_of(path_or_name: str | Path) -> Json:
    """Return what is recorded of a model's weights, as `Model.save` takes it; an empty dictionary if nothing is.

    Of a run these are the settings and the step of its last checkpoint, or the figures too, if its weights are those
    that were evaluated at the end of the run.

    Raises:
        CheckpointError: there is no such folder or name.
    """
    path = _resolve(path_or_name)
    record, state = _json_object(path / "config.json").get("record"), _json_object(path / "state.json")
    if isinstance(record, dict):
        return record
    final = path.parent / FINAL
    evaluated = _checksum(final, "model.safetensors")
    if evaluated is not None and evaluated == _checksum(path, "ema.safetensors"):
        return record_of(final)
    return {name: state[name] for name in ("train", "step") if name in state}


def _json_object(path: Path) -> Json:
    """Return a JSON object, or an empty dictionary if there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _checksum(folder: Path, name: str) -> object:
    """Return the checksum of a file in a manifest, or None."""
    files_of = _json_object(folder / folders.MANIFEST).get("files")
    entry = files_of.get(name) if isinstance(files_of, dict) else None
    return entry.get("crc32") if isinstance(entry, dict) else None


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
                _check_kind(path)
                raise
            path = newer


def _check_kind(path: Path) -> None:
    """Say of a folder that is none of those which `load` takes what these hold."""
    if os.path.isdir(path) and not folders.is_complete(path):
        raise CheckpointError(
            f"{path} must be a checkpoint folder, the folder of a run or a folder of diffusers, but it holds no "
            f"{folders.MANIFEST}, no complete checkpoint {PREFIX}*, and no model_index.json, unet/config.json or "
            "config.json with _class_name"
        )


def _hint(name: str) -> str:
    """Return how to get a model that seems to be named as on the Hugging Face Hub, owner/name; else nothing."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or os.path.isdir(name.split("/", maxsplit=1)[0]):
        return ""
    return (
        f"; to load it from the Hugging Face Hub, download it first: load(huggingface_hub.snapshot_download({name!r}))"
    )


def _warn_of_namesakes(name: str) -> None:
    """Warn where the name of an embedded model is also that of a model in the working directory, or of a run."""
    for path in (Path(name), RUNS / name):
        if folders.is_complete(path) or last_checkpoint(path) is not None:
            written = path if path.parent == RUNS else f"./{name}"
            warnings.warn(
                f"{name} is the embedded model; the one in {path} is {written}", stacklevel=1
            )  # 1: once a command


def _resolve(path_or_name: str | Path) -> Path:
    name = str(path_or_name)
    if isinstance(path_or_name, str) and name in embedded_names():
        _warn_of_namesakes(name)
        return Path(str(files("fastdiff.assets").joinpath(name)))
    path = Path(name)
    if not folders.exists(path) and path.name == name and os.path.isdir(RUNS / name):
        path = RUNS / name
    check_no_single_file(path)
    if not folders.exists(path):
        names = ", ".join(embedded_names())
        raise CheckpointError(
            f"model must be a checkpoint folder, a folder of diffusers, the folder of a run or its name in {RUNS}/, or "
            f"an embedded model ({names}), got {name!r}{_hint(name)}"
        )
    if not os.path.isdir(path) or folders.is_complete(path):
        return path
    found = last_checkpoint(path)
    if found is None and not is_diffusers(path):
        check_no_pickle(path)
    return found or path
