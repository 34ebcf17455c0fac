"""The state of a training: model, averaged weights, optimiser, number of steps done; and its checkpoints."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..checkpoints import model_from
from ..io import folders
from ..io.configuration import ConfigError, from_dict, to_dict
from ..io.folders import CheckpointError, Json
from ..io.renamed import renamed_tensors
from ..models import Model
from .config import TrainConfig

Tensors = dict[str, Tensor]
Params = tuple[Tensor, ...] | list[Tensor]
PARTS = ("model", "ema", "optimizer")  # files of tensors in a checkpoint of a run


class TrainState:
    """A model in training.

    Args:
        model: the model; its parameters are trained in place.
        config: how it is trained.
    """

    def __init__(self, model: Model, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.ema = AveragedModel(model, multi_avg_fn=self._average)
        self.optimizer = _optimizer(model, config)
        self.step = 0
        self.interior = model.parameter_groups().interior
        apart = {id(parameter) for parameter in self.interior}
        self.others = [parameter for parameter in model.parameters() if id(parameter) not in apart]

    @property
    def averaged(self) -> Model:
        """The model with the averaged weights."""
        model = self.ema.module
        assert isinstance(model, type(self.model))
        return model

    @torch.no_grad()
    def _average(self, averaged: Params, current: Params, _: Tensor | int) -> None:
        """Update the average. Its warm-up counts steps on the host; AveragedModel counts them in a tensor."""
        decay = min(self.config.ema, (1.0 + self.step) / (10.0 + self.step))
        torch._foreach_lerp_(averaged, current, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def tensors(self) -> dict[str, Tensors]:
        """Return the tensors of a checkpoint by file."""
        moments = {
            f"{name}.{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in (self.optimizer.state[parameter] or _no_moments(parameter)).items()
        }
        return {"model": self.model.state_dict(), "ema": self.ema.module.state_dict(), "optimizer": moments}

    def restore(self, step: int, tensors: dict[str, Tensors]) -> None:
        """Restore a checkpoint at a step from its tensors, which fit this state: the inverse of `tensors`."""
        self.model.load_state_dict(tensors["model"])
        self.ema.module.load_state_dict(tensors["ema"])
        self.ema.n_averaged.fill_(step)  # one update per step
        for name, parameter in self.model.named_parameters():
            prefix = f"{name}."
            entries = {k[len(prefix) :]: v for k, v in tensors["optimizer"].items() if k.rpartition(".")[0] == name}
            self.optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True)
                if key == "step"
                else torch.empty_like(parameter).copy_(value)
                for key, value in entries.items()
            }
        self.step = step


def save_training(path: Path, state: TrainState) -> Path:
    """Write a checkpoint of a run atomically: configuration, weights, averaged weights, optimiser and step."""
    tensors = state.tensors()
    record: Json = {"step": state.step, "train": to_dict(state.config)}
    contents: dict[str, Json] = {"config.json": state.model.description(), "state.json": record}
    return folders.write_folder(path, contents | {f"{name}.safetensors": tensors[name] for name in tensors})


def load_training(
    path: Path,
    device: torch.device | str = "cpu",
    network: nn.Module | None = None,
    schedule: Callable[[Tensor], Tensor] | None = None,
) -> TrainState:
    """Load a checkpoint of a run. Training continues to the same weights, bit for bit, as without the interruption.

    Args:
        path: the folder of the checkpoint.
        device: where to train.
        network, schedule: parts of the user's own, see `fastdiff.load`.

    Raises:
        CheckpointError: as `fastdiff.load`, and for a checkpoint without a training state.
    """
    content = folders.read_folder(path)
    for name in ("config.json", "state.json", *(f"{part}.safetensors" for part in PARTS)):
        if name not in content:
            raise CheckpointError(f"{path} must be a checkpoint of a training run, but it holds no {name}")
    model = model_from(path, content["config.json"], network, schedule).to(device)
    step, config = _record(path / "state.json", content["state.json"])
    state = TrainState(model, config)
    weights = model.state_dict()
    tensors = {}
    for part, expected in (("model", weights), ("ema", weights), ("optimizer", _expected_moments(model))):
        tensors[part] = renamed_tensors(content[f"{part}.safetensors"], expected)
        folders.check_state(str(path / f"{part}.safetensors"), tensors[part], expected)
    state.restore(step, tensors)
    return state


def _record(path: Path, record: object) -> tuple[int, TrainConfig]:
    """Return the step and the configuration of a state.json."""
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(record, dict) or type(step) is not int or step < 0:
        raise CheckpointError(f"{path} must hold an object with step >= 0 and train, got {record!r}")
    try:
        return step, from_dict(TrainConfig, record.get("train"), f"{path}: train")
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
    for name, parameter in model.named_parameters():
        expected[f"{name}.step"] = parameter.new_zeros(())
        expected[f"{name}.exp_avg"] = expected[f"{name}.exp_avg_sq"] = parameter
    return expected
