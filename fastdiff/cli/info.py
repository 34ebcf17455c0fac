"""The command ``info``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from .parsing import wrapped

if TYPE_CHECKING:
    from ..io.folders import Json
    from ..models import Model

SHOWN_CLASSES = 30  # names of classes
FIELDS = ("T", "prediction", "variance", "depth", "latent", "degradation")  # of a configuration, where it has them
WIDTH = 12  # of the names of the rows


@dataclass
class Info:
    """Print versions, backend, presets and embedded models; or what a model is, and how it was trained."""

    model: tyro.conf.Positional[str | None] = None
    """Checkpoint folder, run folder, or embedded model."""

    def run(self) -> int:
        """Print what is installed, or what the model is."""
        if self.model is not None:
            for name, text in rows_of(self.model).items():
                print(wrapped(text, WIDTH * " ", f"{name:<{WIDTH}}"))
            return 0

        import torch

        from .. import __version__
        from ..checkpoints import embedded_names
        from ..kernels import backend
        from ..presets import PRESETS

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        print(f"fastdiff {__version__}, torch {torch.__version__}, backend {backend()}, device {device}")
        print(f"presets: {', '.join(PRESETS)}")
        print(f"embedded models: {', '.join(embedded_names())}")
        for name in embedded_names():
            print(f"  {name}: {described(name)}")
        return 0


def described(name: str) -> str:
    """Return what an embedded model is of: its images, and the classes that --label takes."""
    from ..checkpoints import load

    model = load(name)
    classes = f", classes {_classes(model)}" if model.num_classes else ""
    return f"{model.title}, images {_images(model)}{classes}"


def rows_of(name: str) -> dict[str, str]:
    """Return what is known of a model, by the names of the rows.

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
    """
    from ..checkpoints import load, record_of

    model, record = load(name), record_of(name)
    rows = {
        "model": model.title, "images": _images(model), "classes": _classes(model) if model.num_classes else "none",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
    }  # fmt: skip
    fields = {field: getattr(model.config, field, None) for field in FIELDS}
    rows |= {field: str(getattr(value, "name", value)) for field, value in fields.items() if value}
    training, evaluation = record.get("train"), record.get("evaluation")
    if isinstance(training, dict):
        rows["training"] = _listed(training)
    if isinstance(evaluation, dict):
        rows["evaluation"] = _listed(evaluation)
    others = {key: value for key, value in record.items() if key not in rows | {"train": training}}
    return rows | ({"record": _listed(others)} if others else {})


def _images(model: "Model") -> str:
    return f"{'×'.join(map(str, model.shape))} with {model.levels} levels"


def _classes(model: "Model") -> str:
    from ..models.image_data import listed

    return listed(model.config.names, SHOWN_CLASSES)


def _listed(values: "Json") -> str:
    """Return settings or figures in one line, without those that are None."""
    parts = []
    for name, value in values.items():
        if isinstance(value, dict):
            inner = _listed(value)
            parts += [f"{name} ({inner})"] if inner else []
        elif value is not None:
            parts.append(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)
