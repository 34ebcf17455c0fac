"""Saving a model: what its config.json holds, and the check that `fastdiff.load` would accept what is saved."""

import platform

import torch

from ..io.configuration import to_dict
from ..io.folders import CheckpointError, Json, check_state
from .image_data import ImageModel


def describe(model: ImageModel) -> Json:
    """Return the content of config.json: kind, configuration, the user's own parts, and the versions that wrote it."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    content: Json = {"model": model.kind, "config": to_dict(model.config), "versions": versions}
    parts = {name: type(model.get_submodule(attribute_of(name))) for name in model.custom}
    custom = {name: f"{part.__module__}.{part.__qualname__}" for name, part in parts.items()}
    return content | ({"custom": custom} if custom else {})


def attribute_of(part: str) -> str:
    """Return the attribute of a model that holds a part of the user's own, ``"network"`` or ``"schedule"``."""
    return "gamma" if part == "schedule" else part


def check_savable(model: ImageModel, where: str) -> None:
    """Check that `fastdiff.load` would accept a model's weights.

    Raises:
        CheckpointError: weights that are not finite or not of the configuration, or a part that was replaced by hand.
    """
    with torch.device("meta"):
        built = type(model)(model.config)
    supplied = tuple(map(attribute_of, model.custom))
    for name, part in built.named_children():
        own = type(getattr(model, name))
        if name not in supplied and own is not type(part):
            raise CheckpointError(
                f"{where} cannot be saved: {name} must be the {type(part).__name__} of the configuration, got a "
                f"{own.__name__}; pass a part of your own to the constructor of the model"
            )
    state = model.state_dict()
    free = tuple(f"{name}." for name in supplied)  # tensors of the user's parts, which no configuration describes
    expected = {name: value for name, value in built.state_dict().items() if not name.startswith(free)}
    expected |= {name: value for name, value in state.items() if name.startswith(free)}
    check_state(f"{where} cannot be saved", state, expected)
