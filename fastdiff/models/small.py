"""Configurations of small models that fit any data: images of any height and width, and any number of levels."""

import math

from ..kernels import InvalidTypeError, InvalidValueError
from ..networks import ConvVAEConfig, UNetConfig
from .ddpm import DDPMConfig
from .degradations import AddNoise, Downsample
from .diffusevae import DiffuseVAEConfig
from .image_data import ImageConfig
from .restoration import RestorationConfig
from .vae import HVAEConfig
from .vdm import VDMConfig

SMALL_MODELS = ("vdm", "ddpm", "vae", "hvae", "diffusevae", "restoration")
LEAST_SIDE = 4  # pixels at the lowest resolution, unless the images have fewer
MAX_WIDTH = 1024  # channels at full resolution, far beyond a small network
CATEGORICAL_LEVELS = 32  # up to so many levels the network's output has a channel for each
HVAE_DEPTH = 4

Shape = tuple[int, int, int]


def small_config(
    kind: str,
    shape: Shape,
    levels: int,
    num_classes: int = 0,
    width: int | None = None,
    blocks: int = 2,
    vae: ImageConfig | None = None,
    augmented: bool = False,
    class_names: tuple[str, ...] = (),
    degradation: Downsample | AddNoise | None = None,
) -> ImageConfig:
    """Return the configuration of a small model.

    The network halves the images while height and width are even and at least 8 pixels. Its width grows from ``width``
    by a half at each resolution, to at most twice of it.

    Args:
        kind: one of `SMALL_MODELS`; a ``"vae"`` is an HVAE of one layer.
        shape: (C, H, W) of the images.
        levels: number of values of a pixel.
        num_classes: number of classes that the model is conditioned on; 0 for none.
        width: channels at full resolution; None chooses by the size of the images.
        blocks: residual blocks per resolution.
        vae: the configuration of a DiffuseVAE's first stage; None for other models.
        augmented: whether the network has a label for shifted training images, see `ImageConfig`.
        class_names: names of the classes, or ().
        degradation: what a restoration model restores images from; None is down-sampling by 2. None for other models.

    Raises:
        InvalidValueError, InvalidTypeError, ConfigError: an unknown kind, or options that it cannot have.
    """
    _check_options(kind, width, vae, degradation)
    widths = small_widths(shape, default_width(shape) if width is None else width)
    data = {
        "shape": shape, "levels": levels, "num_classes": num_classes, "augmented": augmented,
        "class_names": class_names,
    }  # fmt: skip
    if kind in ("vae", "hvae"):
        network = ConvVAEConfig(widths=widths, blocks=blocks)
        depth = HVAE_DEPTH if kind == "hvae" else 1
        return HVAEConfig(**data, depth=depth, latent=latent_size(shape), network=network)
    network = UNetConfig(
        widths=widths, blocks=blocks, embedding=max(64, 2 * widths[0]), heads=_heads(widths[-1]), positions=False
    )
    if kind == "vdm":
        n_min = round(math.log2(levels / 2))
        return VDMConfig(
            **data, gamma_0=lowest_gamma(levels), fourier=(n_min, n_min + 1),
            prediction="categorical" if levels <= CATEGORICAL_LEVELS else "epsilon", network=network,
        )  # fmt: skip
    if kind == "ddpm":
        return DDPMConfig(**data, network=network)
    if kind == "restoration":
        return RestorationConfig(
            **data, continuous_noise_conditioning=True, network=network, degradation=degradation or Downsample()
        )
    if not isinstance(vae, HVAEConfig):
        raise InvalidTypeError(f"first_stage must be a VAE, got a model with a {type(vae).__name__}")
    return DiffuseVAEConfig(**data, continuous_noise_conditioning=True, network=network, vae=vae)


def _check_options(
    kind: str, width: int | None, vae: ImageConfig | None, degradation: Downsample | AddNoise | None
) -> None:
    """Check the options of `small_config` that no configuration checks."""
    if kind not in SMALL_MODELS:
        raise InvalidValueError(f"model must be one of {', '.join(SMALL_MODELS)}, got {kind!r}")
    if (kind == "diffusevae") != (vae is not None):
        raise InvalidValueError(f"first_stage must {'be' if vae is None else 'not be'} set for a {kind} model")
    if degradation is not None and kind != "restoration":
        raise InvalidValueError(f"degradation must not be set for a {kind} model, got {degradation.name}")
    if width is not None and not 1 <= width <= MAX_WIDTH:
        raise InvalidValueError(f"width must be an integer in 1 .. {MAX_WIDTH}, got {width}")


def small_options(config: ImageConfig) -> dict[str, object]:
    """Return the options of a model of own data that a configuration has, None where it has none.

    They are the model, width and blocks, as `small_config` takes them, and the name of the degradation.
    """
    kinds = {
        VDMConfig: "vdm", DDPMConfig: "ddpm", DiffuseVAEConfig: "diffusevae", RestorationConfig: "restoration",
    }  # fmt: skip
    kind = ("vae" if config.depth == 1 else "hvae") if isinstance(config, HVAEConfig) else kinds.get(type(config))
    network = getattr(config, "network", None)
    widths = getattr(network, "widths", (None,))
    degradation = config.degradation.name if isinstance(config, RestorationConfig) else None
    blocks = getattr(network, "blocks", None)
    return {"model": kind, "width": widths[0], "blocks": blocks, "degradation": degradation}


def small_widths(shape: Shape, width: int) -> tuple[int, ...]:
    """Return the channels at each resolution: width, 1.5 width, and twice the width from the third one on."""
    _, height, side = shape
    widths = [width]
    while height % 2 == side % 2 == 0 and min(height, side) >= 2 * LEAST_SIDE:
        height, side = height // 2, side // 2
        widths.append(min(width + (width * len(widths) + 1) // 2, 2 * width))
    return tuple(widths)


def default_width(shape: Shape) -> int:
    """Return the channels at full resolution: 32 for images of up to 16 × 16 pixels, and 64 for larger ones."""
    return 32 if shape[1] * shape[2] <= 16 * 16 else 64


def latent_size(shape: Shape) -> int:
    """Return the number of latent variables of a VAE: about a twentieth of the dimensions of the images, 16 to 512."""
    return min(max(2 ** round(math.log2(math.prod(shape) / 20)), 16), 512)


def lowest_gamma(levels: int) -> float:
    """Return gamma_0 at which the noise is as small against the distance of two levels as that of -13.3 for bytes."""
    return round(-13.3 + 2.0 * math.log(256 / levels), 1)


def _heads(width: int) -> int:
    """Return the number of attention heads, up to 4, that divide a width and have 8 channels or more."""
    return next((heads for heads in (4, 2) if width % heads == 0 and width // heads >= 8), 1)
