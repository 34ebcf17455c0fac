"""The state of a training: model, averaged weights, optimiser, number of steps done; and its checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from ..checkpoints import model_from
from ..io import folders
from ..io.configuration import ConfigError, from_dict, to_dict
from ..io.folders import CheckpointError, Json
from ..io.renamed import renamed_tensors
from ..kernels import InvalidTypeError
from ..models import Model, check_model
from .average import Average
from .config import TrainConfig
from .divergence import Monitor
from .errors import TrainingError

Tensors = dict[str, Tensor]
PARTS = ("model", "ema", "optimizer")  # files of tensors in a checkpoint of a run


class TrainState:
    """A model in training.

    Args:
        model: the model; its parameters are trained in place.
        config: how it is trained.
    """

    def __init__(self, model: Model, config: TrainConfig) -> None:
        if not isinstance(config, TrainConfig):
            raise InvalidTypeError(f"TrainState: config must be a TrainConfig, got a {type(config).__name__}")
        self.model = check_model("TrainState", model)
        self.config = config
        self.average = Average(model, config.ema)
        self.optimizer = _optimizer(model, config)
        self.step = 0
        self.monitor = Monitor()
        self.data: Json = {}  # name and identity of the data set of a run
        self.changes: list[Json] = []  # of the configuration, by resumed runs
        self.interior = model.parameter_groups().interior
        apart = {id(parameter) for parameter in self.interior}
        self.trained: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.others = [parameter for parameter in self.trained if id(parameter) not in apart]

    @property
    def averaged(self) -> Model:
        """The model with the averaged weights."""
        return self.average.model

    @torch.no_grad()
    def weight_norm(self) -> Tensor:
        """Return the norm of all trained parameters, a scalar on their device."""
        norms = torch._foreach_norm(self.trained)  # pyright: ignore[reportPrivateImportUsage]
        return torch.linalg.vector_norm(torch.stack(norms))

    def set_learning_rates(self) -> float:
        """Set the learning rates of the next step; return their factor."""
        factor = self.config.learning_rate_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return factor

    def tensors(self) -> dict[str, Tensors]:
        """Return the tensors of a checkpoint by file."""
        moments = {
            f"{name}.{key}": value
            for name, parameter in _trained(self.model).items()
            for key, value in (self.optimizer.state[parameter] or _no_moments(parameter)).items()
        }
        return {"model": self.model.state_dict(), "ema": self.averaged.state_dict(), "optimizer": moments}

    def restore(self, step: int, tensors: dict[str, Tensors]) -> None:
        """Restore a checkpoint at a step from its tensors, which fit this state: the inverse of `tensors`."""
        self.model.load_state_dict(tensors["model"])
        self.averaged.load_state_dict(tensors["ema"])
        for name, parameter in _trained(self.model).items():
            prefix = f"{name}."
            entries = {k[len(prefix) :]: v for k, v in tensors["optimizer"].items() if k.rpartition(".")[0] == name}
            self.optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True)
                if key == "step"
                else torch.empty_like(parameter).copy_(value)
                for key, value in entries.items()
            }
        self.step = step

    def record(self) -> Json:
        """Return the content of a state.json."""
        return {
            "step": self.step, "train": to_dict(self.config), "data": self.data, "changes": self.changes,
            "history": self.monitor.state(),
        }  # fmt: skip


def save_training(path: Path, state: TrainState) -> Path:
    """Write a checkpoint of a run atomically: configuration, weights, averaged weights, optimiser and step.

    Raises:
        TrainingError: numbers that are not finite, which could not be loaded; an older checkpoint stays.
        CheckpointError: files that cannot be written.
    """
    tensors = state.tensors()
    for part, named in tensors.items():
        for name, value in named.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise TrainingError(f"{name} of the {part} is not finite after step {state.step}")
    contents: dict[str, Json] = {"config.json": state.model.description(), "state.json": state.record()}
    return folders.write_folder(path, contents | {f"{name}.safetensors": tensors[name] for name in tensors})


def load_training(
    path: Path,
    device: torch.device | str = "cpu",
    network: nn.Module | None = None,
    schedule: Callable[[Tensor], Tensor] | None = None,
    settings: Mapping[str, object] | None = None,
) -> TrainState:
    """Load a checkpoint of a run. Training continues to the same weights, bit for bit, as without the interruption.

    Args:
        path: the folder of the checkpoint.
        device: where to train.
        network, schedule: parts of the user's own, see `fastdiff.load`.
        settings: fields of the training's configuration that change from here on.

    Raises:
        CheckpointError: as `fastdiff.load`, and for a checkpoint without a training state.
        ConfigError: settings that are not allowed.
    """
    content = folders.read_folder(path)
    for name in ("config.json", "state.json", *(f"{part}.safetensors" for part in PARTS)):
        if name not in content:
            raise CheckpointError(f"{path} must be a checkpoint of a training run, but it holds no {name}")
    model = model_from(path, content["config.json"], network, schedule, content["model.safetensors"]).to(device)
    record = _Record.read(path / "state.json", content["state.json"])
    state = TrainState(model, attrs.evolve(record.train, **(settings or {})))
    state.monitor, state.data, state.changes = Monitor(record.history), record.data, record.changes
    weights = model.state_dict()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    tensors = {}
    for part, expected in (("model", weights), ("ema", weights), ("optimizer", _expected_moments(model))):
        found = renamed_tensors(content[f"{part}.safetensors"], expected)
        if part == "optimizer":  # earlier versions wrote moments of frozen parameters too
            found = {name: value for name, value in found.items() if name.rpartition(".")[0] not in frozen}
        folders.check_state(str(path / f"{part}.safetensors"), found, expected)
        tensors[part] = found
    state.restore(record.step, tensors)
    return state


@dataclass(frozen=True)
class _Record:
    """The content of a state.json."""

    step: int
    train: TrainConfig
    data: Json
    changes: list[Json]
    history: Json | None

    @classmethod
    def read(cls, path: Path, record: object) -> "_Record":
        step = record.get("step") if isinstance(record, dict) else None
        if not isinstance(record, dict) or type(step) is not int or step < 0:
            raise CheckpointError(f"{path} must hold an object with step >= 0 and train, got {record!r}")
        data, changes, history = record.get("data", {}), record.get("changes", []), record.get("history")
        if not isinstance(data, dict) or not isinstance(changes, list) or not isinstance(history, dict | None):
            raise CheckpointError(f"{path}: data and history must be objects and changes a list, got {record!r}")
        try:
            return cls(step, from_dict(TrainConfig, record.get("train"), f"{path}: train"), data, changes, history)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error


def _optimizer(model: Model, config: TrainConfig) -> torch.optim.AdamW:
    groups = model.parameter_groups()
    options = [
        {"params": groups.decayed, "weight_decay": config.weight_decay, "peak": config.learning_rate},
        {"params": groups.plain, "weight_decay": 0.0, "peak": config.learning_rate},
        {"params": groups.schedule, "weight_decay": 0.0, "peak": config.schedule_learning_rate},
    ]
    betas = (config.beta_1, config.beta_2)
    return torch.optim.AdamW([group for group in options if group["params"]], betas=betas, fused=True)


def _no_moments(parameter: Tensor) -> Tensors:
    """Return the state of AdamW for a parameter that has had no gradient yet."""
    zeros = torch.zeros_like(parameter)
    return {"step": torch.zeros((), device=parameter.device), "exp_avg": zeros, "exp_avg_sq": zeros}


def _expected_moments(model: Model) -> Tensors:
    expected = {}
    for name, parameter in _trained(model).items():
        expected[f"{name}.step"] = parameter.new_zeros(())
        expected[f"{name}.exp_avg"] = expected[f"{name}.exp_avg_sq"] = parameter
    return expected


def _trained(model: Model) -> dict[str, nn.Parameter]:
    """Return the parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
