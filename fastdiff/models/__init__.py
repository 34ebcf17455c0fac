"""The models of the family, by the name that config.json gives them."""

from typing import Any

from ..config import ConfigError, from_dict
from .base import ImageConfig, Model
from .bottleneck_vae import BottleneckVAEConfig
from .concat_unet import ConcatUNetConfig
from .ddpm import DDPM, DDPMConfig
from .degradations import AddNoise, Degradation, Downsample
from .diffusevae import DiffuseVAE, DiffuseVAEConfig
from .diffusion import DiffusionModel
from .hvae import HVAE, HVAEConfig
from .refiner import Refined
from .restorer import Restorer, RestorerConfig
from .unet import UNetConfig
from .vae_networks import ConvVAEConfig
from .vdm import VDM, VDMConfig

MODELS: dict[str, tuple[type[Model], type]] = {
    VDM.kind: (VDM, VDMConfig),
    DDPM.kind: (DDPM, DDPMConfig),
    HVAE.kind: (HVAE, HVAEConfig),
    DiffuseVAE.kind: (DiffuseVAE, DiffuseVAEConfig),
    Restorer.kind: (Restorer, RestorerConfig),
}


def model_of(config: Any) -> Model:
    """Build the model that a configuration is of, with fresh weights.

    Raises:
        TypeError: what is no configuration of a model.
    """
    for model, config_type in MODELS.values():
        if type(config) is config_type:
            return model(config)
    names = ", ".join(config_type.__name__ for _, config_type in MODELS.values())
    raise TypeError(f"model_of: config is {config!r}; allowed: {names}")


def build(kind: Any, config: Any, where: str) -> Model:
    """Build a model, with fresh weights, from the two entries of a config.json.

    Raises:
        ConfigError: an unknown kind, or a configuration that does not fit it; ``where`` names the source.
    """
    if not isinstance(kind, str) or kind not in MODELS:
        raise ConfigError(f"{where}: unknown model {kind!r}; allowed: {', '.join(MODELS)}")
    model, config_type = MODELS[kind]
    try:
        return model(from_dict(config_type, config, f"{where}.config"))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


__all__ = [
    "DDPM", "HVAE", "MODELS", "VDM", "AddNoise", "BottleneckVAEConfig", "ConcatUNetConfig", "ConvVAEConfig",
    "DDPMConfig", "Degradation", "DiffuseVAE", "DiffuseVAEConfig", "DiffusionModel", "Downsample", "HVAEConfig",
    "ImageConfig", "Model", "Refined", "Restorer", "RestorerConfig", "UNetConfig", "VDMConfig", "build", "model_of",
]  # fmt: skip
