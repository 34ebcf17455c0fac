"""Is a diffusion model a thousand-step VAE? Bits per dimension against the number of latent steps, on the digits.

    fastdiff reproduce latent-steps

A VAE, hierarchical VAEs of depth 2, 4 and 8, DDPMs at T = 2, 10, 100, 1000 and a VDM at T = infinity: about the same
number of parameters, the same number of optimiser steps, each trained on its own bound, no labels and no augmentation.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..datasets import digits
from ..evaluation import evaluate
from ..models import ConvVAEConfig, DDPMConfig, HVAEConfig, UNetConfig, VDMConfig
from ..models.hvae import HVAE, active_units
from ..training import TrainConfig
from .budget import Budget
from .latent_steps_report import write_report
from .runner import Arm, load_arm
from .study import Study

DATA = {"shape": (1, 8, 8), "levels": 17}
NETWORK = UNetConfig(widths=(32, 48), blocks=2, dropout=0.1)
WIDTHS = {1: (32, 64), 2: (40, 56), 4: (48, 48), 8: (48, 40)}  # so that every depth has about as many parameters


def arms(budget: Budget) -> list[Arm]:
    """The models of the study, one per setting and seed."""
    settings: dict[str, Any] = {
        f"hvae-{depth}": HVAEConfig(**DATA, depth=depth, hidden=64, network=ConvVAEConfig(widths=widths, blocks=2))
        for depth, widths in WIDTHS.items()
    }
    for steps in (2, 10, 100, 1000):
        settings[f"ddpm-{steps}"] = DDPMConfig(**DATA, steps=steps, variance="learned", network=NETWORK)
    settings["vdm-inf"] = VDMConfig(
        **DATA, gamma_0=-8.0, gamma_1=5.0, schedule="learned", fourier=(3, 4), network=NETWORK
    )
    train = TrainConfig("digits", budget.steps, learning_rate=3e-3)
    return [
        Arm(f"{name}-seed{seed}", model, replace(train, seed=seed))
        for name, model in settings.items()
        for seed in range(budget.seeds)
    ]


def gather(everything: list[Arm], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Bounds on held-out and training images, and active units; ``workers`` is of no use here."""
    data, rows = digits(), {}
    for arm in tqdm(everything, desc="bounds", leave=False):
        model = load_arm(arm, folder)
        result = evaluate(model, data.test_images, draws=budget.draws)
        train_bpd = evaluate(model, data.train_images[:297], draws=budget.draws).mean
        rows[arm.name] = {
            **result.row(), "train_bpd": train_bpd, "parameters": sum(p.numel() for p in model.parameters()),
            "images": [round(value, 6) for value in result.bpd.total.tolist()],
        }  # fmt: skip
        if isinstance(model, HVAE):
            rows[arm.name]["active"] = active_units(model, data.test_images)
    return {"models": rows}


STUDY = Study("latent-steps", arms, gather, write_report, Budget(steps=2000, seeds=2, draws=128), "latent-steps")
