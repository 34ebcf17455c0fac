"""The configuration of `FastdiffScheduler`: which values are allowed, and which method a configuration stands for."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from ..diffusion.spacings import CHAIN_SPACINGS
from ..kernels import InvalidTypeError, InvalidValueError, Noise
from .scheduler_rows import BETAS, PREDICTIONS, VARIANCES, betas_in_float32

METHODS = ("ddpm", "ddim")
CLASSES = {
    "DDPMScheduler": "ddpm", "DDPMParallelScheduler": "ddpm",
    "DDIMScheduler": "ddim", "DDIMParallelScheduler": "ddim",
}  # fmt: skip
CHOICES = {
    "method": METHODS,
    "beta_schedule": BETAS,
    "variance_type": VARIANCES,
    "prediction_type": tuple(PREDICTIONS),
    "timestep_spacing": CHAIN_SPACINGS,
}
REASONS = {  # why an option must be False
    "thresholding": "it clips x_hat of every sample at a quantile of its own, and the step clips at one bound",
    "rescale_betas_zero_snr": "at zero terminal SNR alpha_T is 0, and gamma = -log SNR and 1 / alpha_T are infinite",
}


def method_of(config: Mapping[str, object], arguments: Mapping[str, Sequence[str]]) -> str:
    """Return the method of a scheduler's configuration: ``"ddpm"`` or ``"ddim"``.

    It is that of the class which ``_class_name`` names. A configuration that was never saved has no class name. It is
    of a class if it begins with all arguments of the class in their order: diffusers puts them there, and after them
    what it keeps of other classes. Otherwise ``method`` in it decides.

    Args:
        config: the configuration.
        arguments: the arguments of ``"DDPMScheduler"`` and of ``"DDIMScheduler"`` in their order.

    Raises:
        InvalidValueError: the configuration is of another class, or does not say of which.
    """
    name = config.get("_class_name")
    if isinstance(name, str) and name in CLASSES:
        return CLASSES[name]
    wanted = f"one of {', '.join(map(repr, METHODS))}"
    if name not in (None, "FastdiffScheduler"):
        raise InvalidValueError(f"method must be given for a configuration of {name}: {wanted}")
    keys = [key for key in config if not key.startswith("_")]
    if name is None:
        for kind, names in arguments.items():
            if keys[: len(names)] == list(names):
                return CLASSES[kind]
    if "method" in config:
        return str(config["method"])
    raise InvalidValueError(
        "method must be given for a configuration without _class_name that does not begin with the arguments of "
        f"{' or of '.join(arguments)}: {wanted}. Got a configuration of {', '.join(keys) or 'nothing'}"
    )


def check_options(config: Mapping[str, object]) -> None:
    """Check the arguments of a scheduler by value.

    Raises:
        InvalidTypeError, InvalidValueError: an argument has a value that is not allowed, or that is not supported.
    """
    for name, allowed in CHOICES.items():
        if config[name] not in allowed:
            raise InvalidValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {config[name]!r}")
    for name, reason in REASONS.items():
        if config[name]:
            raise InvalidValueError(f"{name} must be False ({reason}), got {config[name]!r}")
    check_integer("steps_offset", config["steps_offset"], 0)
    bound = config["clip_sample_range"]
    if config["clip_sample"] and not (isinstance(bound, (int, float)) and 0 < bound < math.inf):
        raise InvalidValueError(f"clip_sample_range must be a finite number > 0, got {bound!r}")
    if config["seed"] is not None:
        Noise(config["seed"])  # pyright: ignore[reportArgumentType]  # raises what the seed must be


def check_integer(name: str, value: object, least: int) -> int:
    """Return ``value``, a Python or NumPy integer, as an int.

    Raises:
        InvalidTypeError, InvalidValueError: it is not an integer, or less than ``least``.
    """
    if not isinstance(value, SupportsIndex) or isinstance(value, (bool, Tensor)):
        raise InvalidTypeError(f"{name} must be an integer >= {least}, got {value!r}")
    number = operator.index(value)
    if number < least:
        raise InvalidValueError(f"{name} must be an integer >= {least}, got {number}")
    return number


def checked_betas(config: Mapping[str, object], trained: Sequence[float] | None) -> Tensor:
    """Return the betas of a configuration, float32 [T].

    Raises:
        InvalidTypeError: ``trained_betas`` are not numbers.
        InvalidValueError: as many as are not ``num_train_timesteps``, or a product of 1 - beta outside (0, 1).
    """
    count = check_integer("num_train_timesteps", config["num_train_timesteps"], 1)
    first, last = config["beta_start"], config["beta_end"]
    if trained is not None:
        try:
            betas = torch.as_tensor(trained, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidTypeError(f"trained_betas must be {count} numbers, got {trained!r}: {error}") from error
        if betas.shape != (count,):
            raise InvalidValueError(
                f"trained_betas must be num_train_timesteps = {count} numbers, got shape {tuple(betas.shape)}"
            )
    else:
        for name, value in (("beta_start", first), ("beta_end", last)):
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise InvalidValueError(f"{name} must be a number in (0, 1), got {value!r}")
        assert isinstance(first, (int, float))
        assert isinstance(last, (int, float))
        betas = betas_in_float32(str(config["beta_schedule"]), count, first, last)
    kept = torch.cumprod(1.0 - betas, dim=0)
    outside = ~((betas > 0) & (betas < 1) & (kept > 0) & (kept < 1))  # NaN too
    if outside.any():
        t = int(outside.nonzero()[0])
        raise InvalidValueError(
            "betas must be in (0, 1), with products of 1 - beta between 0 and 1 in float32: "
            "zero terminal SNR is not supported. "
            f"Got beta = {float(betas[t]):.6g} and the product {float(kept[t]):.6g} at timestep {t}"
        )
    return betas
