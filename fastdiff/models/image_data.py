"""The data that a model is of: images uint8 [C, H, W] with a number of levels, and labels; their checks."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import ClassVar

import attrs
import torch
from fastdiff_kernels.registration import values_visible
from torch import Tensor, nn

from ..io.configuration import ConfigError, at_least, between, configuration, each, field
from ..kernels import InvalidTypeError, InvalidValueError, Noise, to_unit_range

# Where level k of L lies in [-1, 1], as the factor on the centre of its bin, (2 k + 1) / L - 1: there, or at
# 2 k / (L - 1) - 1, so that the first and the last level are -1 and 1.
PIXELS: dict[str, Callable[[int], float]] = {
    "centers": lambda levels: 1.0,
    "ends": lambda levels: levels / (levels - 1),
}


SHOWN_CLASSES = 40  # names that an error lists


def _check_names(config: "ImageConfig", _: object, names: tuple[str, ...]) -> None:
    """Check the names of classes: none, or a different one for each class."""
    if names and (len(names) != config.num_classes or len(set(names)) != len(names) or not all(names)):
        raise ConfigError(
            f"{type(config).__name__}: class_names must be {config.num_classes} different names, one for each class, "
            f"or none, got {len(names)} with {len(set(names))} different ones"
        )


@configuration
class ImageConfig:
    """What a model's configuration says about its data. All configurations of models start with these fields.

    Args:
        shape: (C, H, W) of the data.
        levels: number of values that a pixel can take, 2 to 256.
        num_classes: number of classes, 0 for an unconditional model.
        augmented: whether the network has a label for augmented training images, so that augmentation does not change
            what it learns about the others (Kingma et al. 2021, augmented CIFAR-10).
        class_names: the name of each class, or () where they have numbers alone. Nothing is computed from the names:
            configurations that differ in them alone are equal.
    """

    shape: tuple[int, int, int] = field(each(at_least(1)))
    levels: int = field(between(2, 256))
    num_classes: int = field(at_least(0), default=0)
    augmented: bool = False
    class_names: tuple[str, ...] = attrs.field(default=(), eq=False, validator=_check_names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes; their numbers as text where they have none."""
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def class_number(self, name: str) -> int:
        """Return the number of the class with a name.

        Raises:
            InvalidValueError: no class has this name, or there are no classes.
        """
        names = self.names
        if name not in names:
            wanted = f"the name of a class, {listed(names)}" if names else "None for a model without classes"
            raise InvalidValueError(f"labels must be {wanted}, got {name!r}")
        return names.index(name)

    @property
    def num_labels(self) -> int:
        """Number of labels that the network distinguishes: the classes, the null label, "augmented"; 0 without any."""
        return self.num_classes + 1 + self.augmented if self.num_classes or self.augmented else 0


def listed(names: Sequence[str], most: int = SHOWN_CLASSES) -> str:
    """Return names separated by commas; of many the first ones and the last."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])}, ..., {names[-1]} ({len(names)} in all)"


def values_are_at_hand(x: Tensor) -> bool:
    """Whether reading values of a tensor waits for no device and breaks no compiled graph, and there are any."""
    return values_visible(x) and x.numel() > 0


class ImageModel(nn.Module):
    """A module with a configuration of its data, and the checks of images and labels against it.

    Args:
        config: the configuration.
        custom: the names of the parts that the user supplied, ``"network"`` or ``"schedule"``.
    """

    kind: ClassVar[str]  # the name of the model in config.json

    def __init__(self, config: ImageConfig, custom: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.config = config
        self.custom = custom

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.config.shape

    @property
    def levels(self) -> int:
        """Number of values that a pixel can take."""
        return self.config.levels

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional model."""
        return self.config.num_classes

    @property
    def null_label(self) -> int:
        """The label that stands for "no label"."""
        return self.num_classes

    @property
    def dims(self) -> int:
        """C · H · W, the number of dimensions of one image."""
        channels, height, width = self.shape
        return channels * height * width

    @property
    def device(self) -> torch.device:
        """The device of the parameters and buffers."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def pixel_scale(self) -> float:
        """Factor on the centres of the levels' bins that gives the data x: 1 or levels / (levels - 1), see `PIXELS`."""
        return 1.0

    def to_unit(self, x: Tensor) -> Tensor:
        """Map levels to the data in [-1, 1] that the model is of, float32."""
        unit, scale = to_unit_range(x, self.levels), self.pixel_scale
        return unit if scale == 1.0 else unit * scale

    def to_levels(self, x: Tensor) -> Tensor:
        """Map float data in [-1, 1] to the scale of levels 0 .. levels - 1, clipped and not rounded."""
        scale = self.pixel_scale
        x = x if scale == 1.0 else x / scale
        return (0.5 * ((x + 1.0) * self.levels - 1.0)).clamp(0, self.levels - 1)

    def nearest_level(self, x: Tensor) -> Tensor:
        """Return the nearest level, uint8, for float data in [-1, 1]."""
        return torch.round(self.to_levels(x)).to(torch.uint8)

    def check_images(self, where: str, x: object, name: str = "x") -> None:
        """Check a batch of data: uint8 [B, C, H, W] of this model's shape, values below ``levels``.

        ``name`` is that of the argument in messages.

        Raises:
            InvalidTypeError, InvalidValueError: the batch does not fit.
        """
        if not isinstance(x, Tensor) or x.dtype != torch.uint8:
            got = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise InvalidTypeError(f"{where}: {name} must be a torch.uint8 tensor of levels [B, C, H, W], got {got}")
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise InvalidValueError(f"{where}: {name} must have shape [B, {wanted}], got {tuple(x.shape)}")
        if values_are_at_hand(x) and int(x.max()) >= self.levels:
            raise InvalidValueError(f"{where}: {name} must lie in 0 .. {self.levels - 1}, got {int(x.max())}")

    def check_noise(self, where: str, noise: object) -> None:
        """Raise an InvalidTypeError for anything but a `Noise`."""
        if not isinstance(noise, Noise):
            raise InvalidTypeError(f"{where}: noise must be a fastdiff.Noise, got a {type(noise).__name__}")

    def check_labels(self, where: str, labels: object, batch: int) -> None:
        """Check labels: None, or int64 [B] in 0 .. num_labels - 1 for a model with labels.

        Raises:
            InvalidTypeError, InvalidValueError: the labels do not fit.
        """
        if labels is None:
            return
        if not self.config.num_labels:
            raise InvalidValueError(f"{where}: labels must be None for an unconditional model")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            got = f"dtype {labels.dtype}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
            raise InvalidTypeError(f"{where}: labels must be a torch.int64 tensor [B], got {got}")
        if labels.shape != (batch,):
            raise InvalidValueError(f"{where}: labels must have shape ({batch},), got {tuple(labels.shape)}")
        if values_are_at_hand(labels):
            low, high = int(labels.min()), int(labels.max())
            if not 0 <= low <= high < self.config.num_labels:
                known = f"0 .. {self.num_classes - 1} (classes), " if self.num_classes else ""
                known += f"{self.null_label} (no label)"
                known += f", {self.null_label + 1} (augmented)" if self.config.augmented else ""
                raise InvalidValueError(f"{where}: labels must be among {known}, got {low} .. {high}")
