"""Loading a model from a checkpoint folder, a training run or the embedded models."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from torch import Tensor, nn

from ..io import folders
from ..io.configuration import ConfigError
from ..io.folders import CheckpointError
from ..io.renamed import renamed_tensors
from ..models import Model, build

PREFIX = "step-"
RUNS = Path("runs")  # where the command line keeps runs, in the working directory
KNOWN_KEYS = ("model", "config", "custom", "versions", "record")  # of a config.json


def embedded_names() -> list[str]:
    """Return the names of the models that are shipped with the package."""
    assets = files("fastdiff.assets")
    return sorted(entry.name for entry in assets.iterdir() if entry.joinpath(folders.MANIFEST).is_file())


def load(
    path_or_name: str | Path,
    network: nn.Module | None = None,
    schedule: Callable[[Tensor], Tensor] | None = None,
) -> Model:
    """Load a model in eval mode.

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
    path = _resolve(path_or_name)
    content = folders.read_folder(path)
    weights = "ema.safetensors" if "ema.safetensors" in content else "model.safetensors"
    for name in ("config.json", weights):
        if name not in content:
            found = ", ".join(content) or "nothing"
            raise CheckpointError(f"{path} must be the checkpoint of a model with {name}, but it holds {found}")
    model = model_from(path, content["config.json"], network, schedule)
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
) -> Model:
    """Build the model that a config.json describes, with fresh weights; ``path`` is its folder.

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
    try:
        return build(description.get("model"), description.get("config"), where, **parts)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def last_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint in the folder of a run, or None."""
    complete = [path for path in run.glob(f"{PREFIX}*") if (path / folders.MANIFEST).is_file()]
    return max(complete, key=lambda path: path.name, default=None)


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint at a step."""
    return run / f"{PREFIX}{step:08d}"


def _resolve(path_or_name: str | Path) -> Path:
    name = str(path_or_name)
    if name in embedded_names():
        return Path(str(files("fastdiff.assets").joinpath(name)))
    path = Path(name)
    folders.recover(path)
    if not path.is_dir() and path.name == name and (RUNS / name).is_dir():
        path = RUNS / name
    if not path.is_dir():
        names = ", ".join(embedded_names())
        raise CheckpointError(
            f"model must be a checkpoint folder, the folder of a run or its name in {RUNS}/, or an embedded model "
            f"({names}), got {name!r}"
        )
    return path if (path / folders.MANIFEST).is_file() else last_checkpoint(path) or path
