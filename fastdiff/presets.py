"""Named configurations: a model, its data and its training."""

from dataclasses import dataclass

from .models import (
    ConcatUNetConfig,
    DDPMConfig,
    DiffuseVAEConfig,
    HVAEConfig,
    Model,
    UNetConfig,
    VDMConfig,
    model_of,
)
from .training import TrainConfig

DIGITS = {"shape": (1, 8, 8), "levels": 17, "classes": 10, "augmented": True}


@dataclass(frozen=True)
class Preset:
    """The configuration of a model, and how to train it."""

    model: VDMConfig | DDPMConfig | HVAEConfig | DiffuseVAEConfig
    train: TrainConfig

    def build(self) -> Model:
        """Return the model with fresh weights."""
        return model_of(self.model)


def _vdm(size: int, width: int, blocks: int) -> VDMConfig:
    """The score network of the VDM paper: one resolution, attention in the middle, eps_hat = z_t + output."""
    network = ConcatUNetConfig(
        width=width, multipliers=(1,), blocks=blocks, attention=(), dropout=0.1, embedding_bias=False
    )
    return VDMConfig(shape=(3, size, size), levels=256, schedule="learned", network=network)


def _vdm_training(data: str) -> TrainConfig:
    """Settings of the VDM paper, as in the configurations that its authors published; none decays the rate."""
    return TrainConfig(
        data, steps=10_000_000, batch_size=128, learning_rate=2e-4, schedule_learning_rate=2e-4, warm_up=100,
        decay="constant", weight_decay=0.01, beta_2=0.99, clip_norm=None, ema=0.9999,
    )  # fmt: skip


BARE_DIGITS = {"shape": (1, 8, 8), "levels": 17}
VAE_DIGITS = HVAEConfig(**BARE_DIGITS, depth=1, widths=(32, 64), blocks=2)
LATENT_TRAINING = TrainConfig("digits", steps=5000, learning_rate=3e-3, weight_decay=0.05)


def _diffusevae_digits(formulation: int) -> Preset:
    """A refiner of `vae-digits`; train it with --first-stage."""
    refiner = DDPMConfig(**BARE_DIGITS, network=UNetConfig(widths=(32, 48), blocks=2, dropout=0.1))
    model = DiffuseVAEConfig(**BARE_DIGITS, vae=VAE_DIGITS, refiner=refiner, formulation=formulation)
    return Preset(model, TrainConfig("digits", steps=20_000, loss="simple", learning_rate=3e-3))


VDM_DIGITS = Preset(
    VDMConfig(
        **DIGITS, gamma_0=-8.0, gamma_1=5.0, fourier=(3, 4), head="levels",
        network=UNetConfig(widths=(32, 48), blocks=2, dropout=0.3),
    ),
    TrainConfig("digits", steps=20_000, learning_rate=3e-3, weight_decay=0.05, shift=0.5, label_dropout=0.6),
)  # fmt: skip
PRESETS: dict[str, Preset] = {
    "digits": VDM_DIGITS,  # the embedded model's name
    "vdm-digits": VDM_DIGITS,
    "ddpm-digits": Preset(
        DDPMConfig(**DIGITS, network=UNetConfig(widths=(32, 48), blocks=2, dropout=0.1)),
        TrainConfig("digits", steps=20_000, loss="simple", learning_rate=3e-3, shift=0.5, label_dropout=0.6),
    ),
    "vae-digits": Preset(VAE_DIGITS, LATENT_TRAINING),
    "hvae-digits": Preset(HVAEConfig(**BARE_DIGITS, depth=4, widths=(48, 48), blocks=2, hidden=64), LATENT_TRAINING),
    "diffusevae-digits": _diffusevae_digits(1),
    "diffusevae2-digits": _diffusevae_digits(2),
    # 30.6 M parameters; 2.65 bits/dim in the paper. The authors' code trains a straight line between learned endpoints
    # where the paper, and this, learn the schedule.
    "vdm-cifar10": Preset(_vdm(32, 128, 32), _vdm_training("cifar10")),
    "vdm-imagenet32": Preset(_vdm(32, 256, 32), _vdm_training("imagenet32")),  # 122 M; 3.72
    "vdm-imagenet64": Preset(_vdm(64, 256, 64), _vdm_training("imagenet64")),  # 238 M; 3.40
    "ddpm-cifar10": Preset(  # 35.7 M parameters; at most 3.75 bits/dim with L_simple in the paper
        DDPMConfig(shape=(3, 32, 32), levels=256, network=ConcatUNetConfig()),
        TrainConfig(
            "cifar10", steps=800_000, batch_size=128, loss="simple", learning_rate=2e-4, warm_up=5000, decay="constant",
            weight_decay=0.0, beta_2=0.999, clip_norm=1.0, ema=0.9999, flip=0.5, stratified=False,
        ),
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """Look up a preset.

    Raises:
        ValueError: a name that is no preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; allowed: {', '.join(PRESETS)}")
    return PRESETS[name]
