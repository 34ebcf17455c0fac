"""The data sets of the studies, and what differs between them: the data, the sizes of networks, the distance.

A study takes one of them (``reproduce.py STUDY --data letters``). Budgets are those of the studies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdiff.data import Dataset, digits, letters
from fastdiff.evaluation import Frechet, fd_digits, fd_letters
from fastdiff.models import ConvVAEConfig, HVAEConfig, UNetConfig
from fastdiff.training import TrainConfig


@dataclass(frozen=True)
class DataSet:
    """A data set, and the settings of the models that the studies train on it.

    Args:
        name: name of the data set, as in `TrainConfig.data`, and what its images are called.
        load: loads it.
        shape, levels, num_classes: of its images and labels.
        augmented: whether images are shifted in training where a study has a label for it.
        fourier: ``(n_min, n_max)`` of the Fourier features.
        batch_size, learning_rate: images per optimiser step and peak learning rate of all models.
        network: the network of models that all have the same one.
        vae, second_stage, ddpm: a first stage and the network of a DiffuseVAE's second stage, which together have as
            many parameters as a DDPM with the network ``ddpm``.
        fd: the Fréchet distance of images, uint8 levels, from the training images.
        fd_name: its name.
    """

    name: str
    load: Callable[[], Dataset]
    shape: tuple[int, int, int]
    levels: int
    num_classes: int
    augmented: bool
    fourier: tuple[int, int]
    batch_size: int
    learning_rate: float
    network: UNetConfig
    vae: HVAEConfig
    second_stage: UNetConfig
    ddpm: UNetConfig
    fd: Callable[[Tensor], Frechet]
    fd_name: str

    def training(self, steps: int, **fields: Any) -> TrainConfig:
        """Return how a model is trained for a number of steps, with the seed 0 unless ``fields`` say otherwise."""
        return TrainConfig(
            data=self.name, max_steps=steps, batch_size=self.batch_size, learning_rate=self.learning_rate, **fields
        )

    @property
    def bare(self) -> dict[str, Any]:
        """The fields ``shape`` and ``levels`` of a model."""
        return {"shape": self.shape, "levels": self.levels}

    def file(self, study: str) -> str:
        """Return the name of a study's document or folder for this data set, such as ``speed-up-letters``."""
        return study if self.name == "digits" else f"{study}-{self.name}"


_DIGITS: dict[str, Any] = {"shape": (1, 8, 8), "levels": 17}
_LETTERS: dict[str, Any] = {"shape": (1, 28, 28), "levels": 16}

DATA_SETS = {
    "digits": DataSet(
        "digits", digits, **_DIGITS, num_classes=10, augmented=True, fourier=(3, 4),
        batch_size=64, learning_rate=3e-3,
        network=UNetConfig(widths=(32, 48), blocks=2, dropout=0.1),
        vae=HVAEConfig(**_DIGITS, network=ConvVAEConfig(widths=(28, 32))),
        second_stage=UNetConfig(widths=(32, 48), blocks=2, dropout=0.1),
        ddpm=UNetConfig(widths=(40, 52), blocks=2, dropout=0.1),
        fd=fd_digits, fd_name="FD-digits",
    ),
    "letters": DataSet(
        "letters", letters, **_LETTERS, num_classes=26, augmented=False, fourier=(3, 4),
        batch_size=32, learning_rate=2e-3,  # with 32 images twice as many steps fit into the time
        network=UNetConfig(widths=(16, 32, 64), blocks=1, dropout=0.0),
        vae=HVAEConfig(**_LETTERS, latent=32, network=ConvVAEConfig(widths=(16, 32, 24), blocks=1, dropout=0.1)),
        second_stage=UNetConfig(widths=(16, 32, 48), blocks=1, dropout=0.0),
        ddpm=UNetConfig(widths=(16, 32, 68), blocks=1, dropout=0.0),
        fd=fd_letters, fd_name="FD-letters",
    ),
}  # fmt: skip
