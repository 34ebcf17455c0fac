"""What the commands share: reading and checking arguments before the work begins."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff_kernels.errors import InvalidValueError

if TYPE_CHECKING:
    from ..data import Dataset
    from ..diffusion import Sampler
    from ..models import AddNoise, Downsample


def check_picture(path: Path) -> None:
    """Check that a picture can be written to a path.

    Raises:
        InvalidValueError: a folder that does not exist or cannot be written, or an unknown file extension.
    """
    from PIL import Image

    check_parent(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise InvalidValueError(f"--out must end in .png or another extension of a picture, got {path}")


def check_parent(path: Path) -> None:
    """Check that a file or folder can be made at a path.

    Raises:
        InvalidValueError: it lies in a folder that does not exist or cannot be written.
    """
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InvalidValueError(f"--out must be in a folder that exists and can be written, got {path}")


def sampler_of(name: str, **options: Any) -> "Sampler":
    """Return the sampler of a name with the options that are set, those that are not None or False.

    Raises:
        InvalidValueError, ConfigError: an unknown name, an option that the sampler does not have, or its value.
    """
    import attrs

    from ..diffusion import as_sampler

    kind = type(as_sampler(name))
    known = [field.name for field in attrs.fields(kind)]
    used = {option: value for option, value in options.items() if value is not None and value is not False}
    for option in used:
        if option not in known:
            flags = ", ".join(flag(each) for each in known)
            raise InvalidValueError(f"{flag(option)} is no option of the sampler {name}, whose options are {flags}")
    return kind(**used)


def flag(name: str) -> str:
    """Return the flag of an option."""
    return "--" + name.replace("_", "-")


def parse_degradation(text: str) -> "Downsample | AddNoise":
    """Read ``down-FACTOR`` or ``noise-DEVIATION``.

    Raises:
        InvalidValueError: another form, a factor < 2, or a deviation that is not finite and > 0.
    """
    kind, _, value = text.partition("-")
    try:
        if kind == "down" and value.isdecimal():
            from ..models import Downsample

            return Downsample(factor=int(value))
        if kind == "noise":
            from ..models import AddNoise

            return AddNoise(deviation=float(value))
    except ValueError:  # no number, or a ConfigError for one that is out of range
        pass
    raise InvalidValueError(
        f"--degradation must be down-FACTOR with an integer >= 2, or noise-DEVIATION with a number > 0, such as down-2 "
        f"or noise-0.5, got {text!r}"
    )


def parse_counts(name: str, text: str) -> list[int]:
    """Read integers >= 1, separated by commas.

    Raises:
        InvalidValueError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise InvalidValueError(f"{flag(name)} must be integers >= 1, separated by commas, got {text!r}")
    return [int(part) for part in parts]


def load_data(model: str, data: str | None, shape: tuple[int, ...] | None = None) -> "Dataset":
    """Load a data set as a model was trained on it: with the sizes, crops, colours and classes of its training.

    Args:
        model: folder or name of the model.
        data: name or path of the data set; None is the one of the training, or where that is not known the embedded one
            of the model's images.
        shape: [C, H, W] of the model's images.

    Raises:
        DataError: it cannot be read.
        InvalidValueError: the data set of the training is not known, and none is embedded of such images.
    """
    from ..checkpoints import training_of
    from ..training.runs import data_of

    if data is None and "data" not in training_of(model):
        data = embedded_of(shape)
        if data is None:
            raise InvalidValueError(f"--data must be set, since {model} does not record what data it was trained on")
    return data_of(model, data)


def embedded_of(shape: tuple[int, ...] | None) -> str | None:
    """Return the embedded data set of images [C, H, W], or None."""
    from ..evaluation.classifiers import CLASSIFIERS

    return next((data for data, config in CLASSIFIERS.items() if config.shape == shape), None)
