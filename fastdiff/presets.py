"""Named configurations: a model, its data and its training."""

from collections.abc import Callable
from dataclasses import dataclass

from .models import VDM, Model, UNetConfig, VDMConfig
from .training import TrainConfig


@dataclass(frozen=True)
class Preset:
    """A model with fresh weights, and how to train it."""

    build: Callable[[], Model]
    train: TrainConfig


def _vdm_digits() -> Model:
    network = UNetConfig(widths=(32, 48), blocks=2, dropout=0.3)
    return VDM(
        VDMConfig(
            shape=(1, 8, 8),
            levels=17,
            classes=10,
            augmented=True,
            gamma_0=-8.0,
            gamma_1=5.0,
            fourier=(3, 4),
            head="levels",
            network=network,
        )
    )


PRESETS: dict[str, Preset] = {
    "digits": Preset(
        _vdm_digits,
        TrainConfig("digits", steps=20_000, learning_rate=3e-3, weight_decay=0.05, shift=0.5, label_dropout=0.6),
    ),
}


def preset(name: str) -> Preset:
    """Look up a preset.

    Raises:
        ValueError: a name that is no preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; allowed: {', '.join(PRESETS)}")
    return PRESETS[name]
