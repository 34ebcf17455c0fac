"""Is a diffusion model a thousand-step VAE? Bits per dimension against the number of latent steps.

    python benchmarks/studies/reproduce.py latent-steps        # --data letters

A VAE, hierarchical VAEs, DDPMs with more and more steps, and a VDM in continuous time. All models of a data set have
about the same number of parameters and of optimiser steps. Each is trained on its own bound, without labels and without
augmentation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attrs import evolve

from fastdiff.evaluation import evaluate, evaluate_latents
from fastdiff.models import ConvVAEConfig, DDPMConfig, HVAEConfig, ImageConfig, VDMConfig

from . import noise_schedules
from .bounds import bound_row, held_out
from .data_sets import DataSet
from .latent_steps_report import write_report
from .runner import Run, load_run, measure_runs
from .study import Budget, Study


@dataclass(frozen=True)
class Scope:
    """What the study trains and measures on a data set.

    Args:
        vae: the field ``latent`` of the VAEs, and the fields of their networks beside the widths.
        widths: widths of the VAEs' networks by depth, with which all depths have about as many parameters.
        T: numbers of steps of the DDPMs.
        single: settings of one seed; their errors take the variance between seeds from the others.
        shared: the VDM is that of the setting ``linear`` in `noise_schedules`, where the models have no labels either:
            it predicts `categorical`, and its schedule is linear between fixed endpoints. Otherwise it predicts
            `epsilon` and learns the schedule and its endpoints.
        spacing: bounds on training images are on every ``spacing``-th one, as many as held-out images at the most.
    """

    vae: dict[str, Any]
    widths: dict[int, tuple[int, ...]]
    T: tuple[int, ...]
    single: tuple[str, ...] = ()
    shared: bool = False
    spacing: int = 1


SCOPES = {
    "digits": Scope(
        vae={"latent": 16, "blocks": 2, "dropout": 0.1}, widths={1: (32, 64), 2: (40, 56), 4: (48, 48), 8: (48, 40)},
        T=(2, 10, 100, 1000),
    ),
    "letters": Scope(  # without dropout the bound of vae-letters on held-out images rose from half of its training on
        vae={"latent": 32, "blocks": 1, "dropout": 0.1}, widths={1: (16, 32, 58), 2: (16, 32, 56), 4: (16, 32, 52)},
        T=(10, 100, 1000), single=("ddpm-10", "ddpm-100"), shared=True, spacing=37,
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ models


def runs(data: DataSet, budget: Budget) -> list[Run]:
    """Return the models of the study, one per setting and seed."""
    scope = SCOPES[data.name]
    train = data.training(budget.steps)
    return [
        Run(f"{name}-seed{seed}", model, evolve(train, seed=seed))
        for name, model in _models(data, budget.steps).items()
        for seed in range(1 if name in scope.single else budget.seeds)
    ]


def _models(data: DataSet, steps: int) -> dict[str, ImageConfig]:
    """Return the models by setting."""
    scope = SCOPES[data.name]
    rest = dict(scope.vae)
    latent = rest.pop("latent")
    models: dict[str, ImageConfig] = {
        f"hvae-{depth}": HVAEConfig(
            **data.bare, depth=depth, latent=latent, hidden=64, network=ConvVAEConfig(widths=widths, **rest)
        )
        for depth, widths in scope.widths.items()
    }
    for T in scope.T:
        models[f"ddpm-{T}"] = DDPMConfig(**data.bare, T=T, variance="learned", network=data.network)
    if scope.shared:
        models["linear"] = noise_schedules.all_settings(data, steps)["linear"][0]
    else:
        models["vdm-inf"] = VDMConfig(
            **data.bare, gamma_0=-8.0, gamma_1=5.0, schedule="learned", fourier=data.fourier, network=data.network
        )
    return models


# ------------------------------------------------------------------------------------------------ numbers


def gather(data: DataSet, everything: list[Run], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Return bounds on held-out and training images, and numbers of active units."""
    rows = measure_runs(everything, folder, workers, measure, "latent-steps", {"draws": budget.draws})
    return {"models": {name.replace("linear", "vdm-inf"): row for name, row in rows.items()}}


def measure(run: Run, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of one model."""
    data, draws = run.data_set, options["draws"]
    model, (x, groups) = load_run(run, folder), held_out(data)
    seen = data.load().train_images[:: SCOPES[data.name].spacing][: len(x)]
    row = {
        **bound_row(evaluate(model, x, draws=draws, groups=groups)),
        "train_bpd": evaluate(model, seen, draws=draws).mean,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    latents = evaluate_latents(model, x)
    return {**row, "active": latents["active_units"]} if latents else row


BUDGETS = {"digits": Budget(steps=2000, seeds=2, draws=128), "letters": Budget(steps=4000, seeds=2, draws=16)}
STUDY = Study("latent-steps", runs, gather, write_report, BUDGETS, "bounds")  # both studies of bounds share models
