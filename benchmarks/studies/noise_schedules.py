"""Claims about variational diffusion: schedules, Fourier features, stratified times, number of steps.

    python benchmarks/studies/reproduce.py schedules        # --data letters

All models of a data set share a network and a budget. The seeds differ in weights, data order and noise. Bits per
dimension are on the held-out images, with common draws for all models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attrs import evolve

from fastdiff.checkpoints import load
from fastdiff.models import DDPMConfig, ImageConfig, VDMConfig
from fastdiff.training import TrainConfig

from . import schedule_measures as measures
from .bounds import held_out
from .data_sets import DataSet
from .noise_schedules_report import SCHEDULES, write_report
from .runner import Run, load_run, measure_runs
from .study import Budget, Study

STEPS = [2**k for k in range(11)]  # numbers of steps T of the bound


@dataclass(frozen=True)
class Scope:
    """What the study trains and measures on a data set.

    Args:
        settings: the settings that are trained, those of `all_settings`.
        single: settings of one seed; their errors take the variance between seeds from the others.
        by_steps: settings whose first seed is evaluated at all numbers of steps.
        batches: number of training batches whose mean diffusion terms are compared.
    """

    settings: tuple[str, ...]
    single: tuple[str, ...]
    by_steps: tuple[str, ...]
    batches: int


SCOPES = {
    "digits": Scope(
        (*SCHEDULES, "independent-times", "no-fourier", "eps", "eps-no-fourier", "ddpm"),
        single=("ddpm",), by_steps=("linear", "learned"), batches=400,
    ),
    "letters": Scope(
        ("linear", "learned", "no-fourier", "eps", "eps-no-fourier"),
        single=("eps", "eps-no-fourier"), by_steps=("linear",), batches=200,
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ models


def runs(data: DataSet, budget: Budget) -> list[Run]:
    """Return the models of the study, one per setting and seed."""
    scope, settings = SCOPES[data.name], all_settings(data, budget.steps)
    return [
        Run(f"{name}-seed{seed}", settings[name][0], evolve(settings[name][1], seed=seed))
        for name in scope.settings
        for seed in range(1 if name in scope.single else budget.seeds)
    ]


def all_settings(data: DataSet, steps: int) -> dict[str, tuple[ImageConfig, TrainConfig]]:
    """Return all settings with their trainings of a number of steps; each differs from ``linear`` in one thing.

    Where images are shifted in training, the models have the labels of the classes and of a shifted image. Otherwise
    they have no labels, and are those of the study of latent steps.
    """
    images: dict[str, Any] = data.bare
    train = data.training(steps)
    if data.augmented:
        images |= {"num_classes": data.num_classes, "augmented": True}
        train = evolve(train, shift=0.5, label_dropout=0.6)
    base = VDMConfig(
        **images, gamma_0=measures.GAMMA[0], gamma_1=measures.GAMMA[1], learn_endpoints=False, fourier=data.fourier,
        prediction="categorical", network=data.network,
    )  # fmt: skip
    return {
        **{name: (evolve(base, schedule=name), train) for name in SCHEDULES},
        "independent-times": (base, evolve(train, stratified=False)),
        "no-fourier": (evolve(base, fourier=None), train),
        "eps": (evolve(base, prediction="epsilon"), train),
        "eps-no-fourier": (evolve(base, prediction="epsilon", fourier=None), train),
        "ddpm": (DDPMConfig(**images, network=data.network), evolve(train, loss="simple")),
    }


# ------------------------------------------------------------------------------------------------ numbers


def gather(data: DataSet, everything: list[Run], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Return the numbers of all claims."""
    options = {"draws": budget.draws, "steps": STEPS}
    return collect(measure_runs(everything, folder, workers, measure, "schedules", options))


def measure(run: Run, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of one model by claim, see `collect`."""
    data, draws = run.data_set, options["draws"]
    scope, (x, groups) = SCOPES[data.name], held_out(data)
    model: Any = load_run(run, folder)
    numbers: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": measures.training_terms(folder / run.name / "metrics.jsonl"),
    }
    if run.setting == "ddpm":
        return numbers | {"ddpm": measures.ddpm_bounds(model, x, draws)}
    numbers["bound"] = measures.continuous_bound(model, x, groups, draws)
    if run.setting in SCHEDULES:
        numbers["variance"] = measures.variance(model, x, draws)
    if run.name in [f"{name}-seed0" for name in scope.by_steps]:
        numbers["steps"] = measures.bounds_by_steps(model, x, groups, options["steps"], draws)
    if run.name == "learned-seed0":
        numbers["gamma"] = measures.curves(model.gamma)
    if run.name == "linear-seed0":
        learned: Any = load(folder / "learned-seed0" / "model")
        numbers["invariance"] = measures.invariance(model, learned.gamma, x, draws)
        numbers["times"] = measures.batch_variances(model, data.load().train_images[:], scope.batches)
    return numbers


def collect(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers by claim, and there by model where the claim has more than one."""
    claims = ("parameters", "bound", "variance", "steps", "training")
    results = {claim: {name: row[claim] for name, row in rows.items() if claim in row} for claim in claims}
    for row in rows.values():
        results |= {claim: row[claim] for claim in ("invariance", "times", "ddpm", "gamma") if claim in row}
    return results


BUDGETS = {"digits": Budget(steps=2000, seeds=2, draws=128), "letters": Budget(steps=4000, seeds=2, draws=16)}
STUDY = Study("schedules", runs, gather, write_report, BUDGETS, "bounds")  # both studies of bounds share models
