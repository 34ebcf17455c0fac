"""What the commands share: reading and checking of arguments before the work begins."""

import os
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image

from ..checkpoint import load
from ..evaluation import OWN
from ..models import AddNoise, Degradation, DiffuseVAE, Downsample, Model


def check_picture(path: Path) -> None:
    """Check that a picture can be written to a path, before the work that makes it.

    Raises:
        ValueError: no such folder, or an ending that is no picture format.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path}: no folder {path.parent}; allowed: a path in an existing folder")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: the folder {path.parent} cannot be written; allowed: one that can")
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; allowed: .png and other picture formats")


def with_first_stage(model: Model, path: str | None) -> Model:
    """Put a trained VAE into a DiffuseVAE; any other model has no first stage.

    Raises:
        ValueError: a first stage that is missing, not wanted, or another VAE than the model's.
        CheckpointError: one that cannot be loaded.
    """
    if not isinstance(model, DiffuseVAE):
        if path is not None:
            raise ValueError(f"train: first-stage is {path!r} for a {model.kind}; allowed: for a DiffuseVAE")
        return model
    if path is None:
        raise ValueError("train: a DiffuseVAE without a first stage; allowed: --first-stage FOLDER of a trained VAE")
    model.take_first_stage(load(path))
    return model


def parse_degradation(text: str) -> Degradation:
    """Read ``down-FACTOR`` or ``noise-DEVIATION``.

    Raises:
        ValueError: anything else.
    """
    kind, _, value = text.partition("-")
    if kind == "down" and value.isdecimal():
        return Downsample(factor=int(value))
    if kind == "noise":
        with suppress(ValueError):
            return AddNoise(deviation=float(value))
    raise ValueError(
        f"degradation is {text!r}; allowed: down-FACTOR or noise-DEVIATION, numbers > 0, such as down-2 and noise-0.5"
    )


def parse_steps(where: str, text: str) -> int | str | None:
    """Read one T: an integer >= 1, ``inf`` for None, or ``own``."""
    if text.strip() == "inf":
        return None
    if text.strip() == OWN:
        return OWN
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{where}: steps holds {text!r}; allowed: integers >= 1, inf and own, separated by commas")
    return int(text)


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
