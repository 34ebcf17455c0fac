"""Is a diffusion model a thousand-step VAE? Bits per dimension against the number of latent steps, on the digits.

    python benchmarks/studies/reproduce.py latent-steps

A VAE, hierarchical VAEs of depth 2, 4 and 8, DDPMs with T = 2, 10, 100, 1000, and a VDM in continuous time. All have
about the same number of parameters and of optimiser steps. Each is trained on its own bound, without labels and without
augmentation.
"""

from pathlib import Path
from typing import Any

from attrs import evolve
from tqdm import tqdm

from fastdiff.data import digits
from fastdiff.evaluation import evaluate, evaluate_latents
from fastdiff.models import ConvVAEConfig, DDPMConfig, HVAEConfig, ImageConfig, UNetConfig, VDMConfig
from fastdiff.training import TrainConfig

from .latent_steps_report import write_report
from .runner import Run, load_run
from .study import Budget, Study

DATA: dict[str, Any] = {"shape": (1, 8, 8), "levels": 17}
NETWORK = UNetConfig(widths=(32, 48), blocks=2, dropout=0.1)
WIDTHS = {1: (32, 64), 2: (40, 56), 4: (48, 48), 8: (48, 40)}  # with these all depths have about as many parameters


def runs(budget: Budget) -> list[Run]:
    """Return the models of the study, one per setting and seed."""
    settings: dict[str, ImageConfig] = {
        f"hvae-{depth}": HVAEConfig(**DATA, depth=depth, hidden=64, network=ConvVAEConfig(widths=widths, blocks=2))
        for depth, widths in WIDTHS.items()
    }
    for T in (2, 10, 100, 1000):
        settings[f"ddpm-{T}"] = DDPMConfig(**DATA, T=T, variance="learned", network=NETWORK)
    settings["vdm-inf"] = VDMConfig(
        **DATA, gamma_0=-8.0, gamma_1=5.0, schedule="learned", fourier=(3, 4), network=NETWORK
    )
    train = TrainConfig(data="digits", max_steps=budget.steps, learning_rate=3e-3)
    return [
        Run(f"{name}-seed{seed}", model, evolve(train, seed=seed))
        for name, model in settings.items()
        for seed in range(budget.seeds)
    ]


def gather(everything: list[Run], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Return bounds on held-out and training images, and numbers of active units; ``workers`` is not used."""
    data, rows = digits(), {}
    for run in tqdm(everything, desc="bounds", leave=False):
        model = load_run(run, folder)
        result = evaluate(model, data.test_images, draws=budget.draws)
        train_bpd = evaluate(model, data.train_images[:297], draws=budget.draws).mean
        rows[run.name] = {
            **result.row(), "train_bpd": train_bpd, "parameters": sum(p.numel() for p in model.parameters()),
            "images": [round(value, 6) for value in result.bpd.total.tolist()],
        }  # fmt: skip
        latents = evaluate_latents(model, data.test_images)
        if latents:
            rows[run.name]["active"] = latents["active_units"]
    return {"models": rows}


STUDY = Study("latent-steps", runs, gather, write_report, Budget(steps=2000, seeds=2, draws=128), "latent-steps")
