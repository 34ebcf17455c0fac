"""Is a diffusion model a thousand-step VAE? Bits per dimension against the number of latent steps, on the digits.

    fastdiff reproduce latent-steps

A VAE, hierarchical VAEs of depth 2, 4 and 8, DDPMs at T = 2, 10, 100, 1000 and a VDM at T = infinity: about the same
number of parameters, the same number of optimiser steps, each trained on its own bound, no labels and no augmentation.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..datasets import digits
from ..evaluation import evaluate
from ..models import ConvVAEConfig, DDPMConfig, HVAEConfig, UNetConfig, VDMConfig
from ..models.hvae import HVAE, active_units
from ..training import TrainConfig
from .budget import Budget
from .figures import drawing
from .latent_steps_report import write_report
from .runner import Arm, load_arm, train_arms

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


def reproduce(out: Path, folder: Path, budget: Budget, workers: int) -> None:
    """Train what is not trained, measure, and write ``latent-steps.json``, ``.md`` and the picture into ``out``.

    Raises:
        StudyError: models of other settings in ``folder``, or an interrupted training.
        OSError: a folder that cannot be written.
    """
    drawing()  # asks for what the picture needs before the work
    out.mkdir(parents=True, exist_ok=True)
    everything = arms(budget)
    train_arms(everything, folder, workers)
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
    results = {"budget": asdict(budget), "models": rows}
    (out / "latent-steps.json").write_text(json.dumps(results, indent=1) + "\n")
    write_report(results, out)
    print(f"wrote {out / 'latent-steps.md'}, its picture, and latent-steps.json")
