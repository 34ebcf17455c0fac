"""The models of the family. A new model is a file here and a line in `MODELS`."""

from typing import Any

from ..io.configuration import ConfigError, from_dict
from ..io.renamed import RENAMED_MODELS
from ..kernels import InvalidTypeError
from ..networks import BottleneckVAEConfig, ConcatUNetConfig, ConvVAEConfig, UNetConfig
from .base import Diffusion, Model, ParameterGroups, check_model, evaluating, uncompiled
from .conditional import ConditionalDDPM, ConditionalDDPMConfig
from .ddpm import DDPM, DDPMConfig
from .degradations import AddNoise, Degradation, Downsample
from .diffusevae import DiffuseVAE, DiffuseVAEConfig
from .diffusion import DiffusionModel
from .image_data import ImageConfig
from .requests import Draw, Edit, Guidance, Latents, Request, Start
from .restoration import Restoration, RestorationConfig
from .vae import HVAE, HVAEConfig
from .vdm import VDM, VDMConfig

MODELS: dict[str, type[Model]] = {model.kind: model for model in (VDM, DDPM, HVAE, DiffuseVAE, Restoration)}


def model_of(config: ImageConfig, **parts: Any) -> Model:
    """Build the model of a configuration with fresh weights.

    Args:
        config: the configuration of one of `MODELS`.
        parts: parts of your own for the model's constructor, ``network`` and ``schedule``; None for none.

    Raises:
        InvalidTypeError: something that is not the configuration of a model.
        ConfigError: a part that the model does not take.
    """
    for model in MODELS.values():
        if type(config) is model.config_class:
            return model(config, **_parts(model, parts))
    names = ", ".join(model.config_class.__name__ for model in MODELS.values())
    raise InvalidTypeError(f"config must be one of {names}, got {config!r}")


def _parts(model: type[Model], parts: dict[str, Any]) -> dict[str, Any]:
    own = {name: part for name, part in parts.items() if part is not None}
    for name in own:
        if name not in model.parts:
            raise ConfigError(f"{name} must be None for a {model.kind} model")
    return own


def build(kind: object, config: object, where: str, **parts: Any) -> Model:
    """Build a model with fresh weights from the entries ``model`` and ``config`` of a config.json.

    Args:
        kind, config: the entries.
        where: the source, for messages.
        parts: as in `model_of`.

    Raises:
        ConfigError: an unknown kind, a configuration that does not fit it, or a part that the model does not take.
    """
    name = RENAMED_MODELS.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(name, str) or name not in MODELS:
        raise ConfigError(f"{where}: model must be one of {', '.join(MODELS)}, got {kind!r}")
    try:
        return model_of(from_dict(MODELS[name].config_class, config, f"{where}: config"), **parts)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


__all__ = [
    "DDPM", "HVAE", "MODELS", "VDM", "AddNoise", "BottleneckVAEConfig", "ConcatUNetConfig", "ConditionalDDPM",
    "ConditionalDDPMConfig", "ConvVAEConfig", "DDPMConfig", "Degradation", "DiffuseVAE", "DiffuseVAEConfig",
    "Diffusion", "DiffusionModel", "Downsample", "Draw", "Edit", "Guidance", "HVAEConfig", "ImageConfig", "Latents",
    "Model", "ParameterGroups", "Request", "Restoration", "RestorationConfig", "Start", "UNetConfig", "VDMConfig",
    "build", "check_model", "evaluating", "model_of", "uncompiled",
]  # fmt: skip
