"""What every model of the family has in common: its data's shape and levels, its checks, and how it is saved."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import check_fields, to_dict
from ..storage import write_folder


@dataclass(frozen=True)
class ImageConfig:
    """What a model's configuration says about its data; the first fields of every configuration.

    Args:
        shape: (C, H, W) of the data.
        levels: values that a pixel can take, 2 to 256.
        classes: number of class labels, 0 for an unconditional model.
        augmented: whether the network is told which training images were augmented (as in the VDM paper's augmented
            CIFAR-10 runs), so that what it learns from them does not change what it says about the others.
    """

    shape: tuple[int, int, int]
    levels: int
    classes: int = 0
    augmented: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.shape) != 3 or min(self.shape) < 1 or not 2 <= self.levels <= 256 or self.classes < 0:
            raise ValueError(
                f"{type(self).__name__}: shape {self.shape}, levels {self.levels}, classes {self.classes}; "
                "allowed: three positive sizes (C, H, W), 2 to 256 levels, 0 or more classes"
            )

    @property
    def conditions(self) -> int:
        """Conditions that the network tells apart: the classes, "no label", "augmented"; 0 without any."""
        return self.classes + 1 + self.augmented if self.classes or self.augmented else 0


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and every part of it back as it was: parts of it may have been frozen before."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class Model(nn.Module):
    """A generative model of images uint8 [C, H, W] with values in 0 .. levels - 1.

    Subclasses set ``kind`` (their name in config.json) and ``config``, an `ImageConfig` with more fields.
    """

    kind: ClassVar[str]
    config: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.config.shape

    @property
    def levels(self) -> int:
        """Number of values that a pixel can take."""
        return self.config.levels

    @property
    def classes(self) -> int:
        """Number of class labels; 0 for an unconditional model."""
        return self.config.classes

    @property
    def dims(self) -> int:
        """C · H · W, the number that bits per dimension are counted over."""
        channels, height, width = self.shape
        return channels * height * width

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def description(self) -> dict[str, Any]:
        """What config.json holds: the kind of model, its configuration, and the versions that wrote it."""
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        return {"model": self.kind, "config": to_dict(self.config), "versions": versions}

    def save(self, path: str | Path, record: dict[str, Any] | None = None) -> Path:
        """Write a checkpoint folder (config.json, model.safetensors, manifest.json) atomically; see `fastdiff.load`.

        ``record`` goes into config.json as it is: where the weights come from, in plain JSON types.

        Raises:
            CheckpointError: the path exists and is no checkpoint, or the disk refuses the files.
        """
        description = self.description() | ({"record": record} if record is not None else {})
        return write_folder(path, {"config.json": description, "model.safetensors": self.state_dict()})

    def check_images(self, where: str, x: Tensor) -> None:
        """Check a batch of data: uint8 [B, C, H, W] of this model's shape, values below ``levels``.

        Raises:
            TypeError, ValueError: saying what was given and what is allowed.
        """
        if not isinstance(x, Tensor) or x.dtype != torch.uint8:
            given = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(f"{where}: x is {given}; allowed: a torch.uint8 tensor of levels [B, C, H, W]")
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"{where}: x has shape {tuple(x.shape)}; allowed: [B, {', '.join(map(str, self.shape))}]")
        if x.device.type == "cpu" and x.numel() and int(x.max()) >= self.levels:  # a look at a GPU's values would wait
            raise ValueError(f"{where}: x holds the value {int(x.max())}; allowed: 0 .. {self.levels - 1}")

    def level(self, centred: Tensor) -> Tensor:
        """The inverse of `centre`: levels 0 .. levels - 1, not rounded, float like ``centred``, clipped."""
        return (0.5 * ((centred + 1.0) * self.levels - 1.0)).clamp(0, self.levels - 1)

    def nearest_level(self, centred: Tensor) -> Tensor:
        """The level whose bin centre is nearest, uint8, for data in [-1, 1]."""
        return torch.round(self.level(centred)).to(torch.uint8)

    @property
    def no_label(self) -> int:
        """The label that stands for "no label"."""
        return self.classes

    def check_labels(self, where: str, labels: Tensor | None, batch: int) -> None:
        """Check conditions: None, or integers [B] in 0 .. conditions - 1 of a model that has any.

        Raises:
            TypeError, ValueError: saying what was given and what is allowed.
        """
        if labels is None:
            return
        conditions = self.config.conditions
        if not conditions:
            raise ValueError(f"{where}: labels were given to an unconditional model; allowed: None")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            given = f"dtype {labels.dtype}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
            raise TypeError(f"{where}: labels are {given}; allowed: a torch.int64 tensor [B]")
        if labels.shape != (batch,):
            raise ValueError(f"{where}: labels have shape {tuple(labels.shape)}; allowed: ({batch},)")
        if labels.device.type == "cpu" and batch and not (0 <= int(labels.min()) <= int(labels.max()) < conditions):
            known = [f"0 .. {self.classes - 1}"] if self.classes else []
            known += [f"{self.no_label} for no label"]
            known += [f"{self.no_label + 1} for augmented"] if self.config.augmented else []
            given = f"{int(labels.min())} .. {int(labels.max())}"
            raise ValueError(f"{where}: labels lie in {given}; allowed: {', '.join(known)}")
