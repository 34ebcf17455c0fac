"""Names in files of earlier versions, and what they are called now: one table for the keys and values of config.json.

Checkpoints of fastdiff 0.1.0 are read through it. A configuration class is named by its present name.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

Json = dict[str, Any]

_DIFFUSION = {"classes": "num_classes", "head": "prediction"}
_DDPM = {**_DIFFUSION, "steps": "T", "continuous": "continuous_noise_conditioning"}
RENAMED_KEYS: dict[str, dict[str, str]] = {
    "VDMConfig": _DIFFUSION,
    "DDPMConfig": _DDPM,
    "DiffuseVAEConfig": _DDPM,
    "RestorationConfig": _DDPM,
    "HVAEConfig": {"classes": "num_classes"},
    "TrainConfig": {"steps": "max_steps", "bound_steps": "T"},
}
RENAMED_VALUES: dict[str, dict[str, str]] = {
    "prediction": {"eps": "epsilon", "levels": "categorical"},
    "variance": {"small": "fixed_small", "large": "fixed_large"},
}
RENAMED_MODELS = {"restorer": "restoration"}
# The second stage of a conditional model was a configuration of its own; its fields now stand beside the others.
FLATTENED = {"DiffuseVAEConfig": "refiner", "RestorationConfig": "refiner"}
# Fields with a default that a configuration has got since: files that lack them are from before. Any other field that
# is missing from a file is an error, whether it has a default or not.
ADDED_KEYS: dict[str, frozenset[str]] = {
    "TrainConfig": frozenset({"images", "accumulate", "precision", "compile"}),
    "VDMConfig": frozenset({"sigma_data", "schedule_width", "class_names"}),
    "DDPMConfig": frozenset({"beta_schedule", "pixels", "class_names"}),
    "HVAEConfig": frozenset({"class_names"}),
    "DiffuseVAEConfig": frozenset({"beta_schedule", "pixels", "class_names"}),
    "RestorationConfig": frozenset({"beta_schedule", "pixels", "class_names"}),
    "ConcatUNetConfig": frozenset(
        {
            "attention_up",
            "middle_attention",
            "head_size",
            "eps",
            "scale_shift",
            "padding",
            "timesteps",
            "timestep_scale",
            "frequency_shift",
        }
    ),
}
# Prefixes of tensor names in model.safetensors, ema.safetensors and optimizer.safetensors.
RENAMED_TENSORS = {
    "refiner.": "",
    "network.number.": "network.noise_embedding.",
    "network.label.": "network.label_embedding.",
}

# The residual blocks of a U-Net had a linear layer each, which are one now: the parts of such a name are the network,
# the block, and weight or bias with its moments in optimizer.safetensors.
_JOINED = re.compile(
    r"(network)\.(down\.\d+\.blocks\.\d+|middle_in|middle_out|up\.\d+\.blocks\.\d+)\.(?:projection|modulation)\.(.+)"
)
_STAGES = ("down", "middle_in", "middle_out", "up")  # in the order in which the blocks are called


def renamed(config: str, data: Json) -> Json:
    """Return the fields of the configuration class ``config`` under their present names and values."""
    flattened = FLATTENED.get(config)
    nested = None if flattened is None else data.get(flattened)
    if isinstance(nested, dict):
        data = {key: value for key, value in data.items() if key != flattened} | nested
    keys = RENAMED_KEYS.get(config, {})
    return {(name := keys.get(key, key)): _value(name, value) for key, value in data.items()}


def _value(name: str, value: Any) -> Any:
    table = RENAMED_VALUES.get(name, {})
    return table.get(value, value) if isinstance(value, str) else value


def renamed_tensors(tensors: Mapping[str, Tensor], known: Collection[str] = ()) -> dict[str, Tensor]:
    """Return tensors by their present names. Names in ``known`` stay: a user's own network may use any name."""
    result = {}
    for name, tensor in tensors.items():
        if name in known:
            result[name] = tensor
            continue
        for old, new in RENAMED_TENSORS.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)  # noqa: PLW2901
        result[name] = tensor
    return _joined(result, known)


def _joined(tensors: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors with the linear layers of a U-Net's blocks joined to one, in the order of the blocks."""
    result, parts = {}, {}
    for name, tensor in tensors.items():
        found = None if name in known else _JOINED.fullmatch(name)
        if found is None:
            result[name] = tensor
        else:
            network, block, rest = found.groups()
            stage, *numbers = block.replace("blocks.", "").split(".")
            place = (_STAGES.index(stage), *map(int, numbers))
            parts.setdefault(f"{network}.projections.{rest}", {})[place] = tensor
    for name, blocks in parts.items():
        in_order = [blocks[place] for place in sorted(blocks)]
        result[name] = in_order[0] if name.endswith(".step") else torch.cat(in_order)  # all have the same step
    return result
