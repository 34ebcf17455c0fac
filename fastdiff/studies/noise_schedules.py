"""The claims about variational diffusion, measured on the digits: schedules, Fourier features, times, and steps.

    fastdiff reproduce schedules

All models share a network and a budget; seeds differ in weights, data order and noise. Bits per dimension are on the
297 held-out images with common draws for all models. What a claim turns out to be is what the document says.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..datasets import Dataset, digits
from ..evaluation import EVALUATION_STEP, evaluate, standard_error
from ..kernels import Noise, centre
from ..models import DDPMConfig, DiffusionModel, UNetConfig, VDMConfig
from ..presets import DIGITS
from ..schedules import BetaLinearSchedule, CosineSchedule, LinearSchedule, Schedule
from ..training import TrainConfig
from ..vlb import independent_times, stratified_times
from .budget import Budget
from .noise_schedules_report import SCHEDULES, write_report
from .runner import Arm, load_arm
from .study import Study

GAMMA = (-8.0, 5.0)
STEPS = [2**k for k in range(11)]
NETWORK = UNetConfig(widths=(32, 48), blocks=2, dropout=0.1)


def arms(budget: Budget) -> list[Arm]:
    """The models of the study, one per setting and seed."""
    base = VDMConfig(
        **DIGITS, gamma_0=GAMMA[0], gamma_1=GAMMA[1], learn_endpoints=False, fourier=(3, 4), head="levels",
        network=NETWORK,
    )  # fmt: skip
    train = TrainConfig("digits", budget.steps, learning_rate=3e-3, shift=0.5, label_dropout=0.6)
    settings: dict[str, tuple[Any, TrainConfig]] = {name: (replace(base, schedule=name), train) for name in SCHEDULES}
    settings["independent-times"] = (base, replace(train, stratified=False))
    settings["no-fourier"] = (replace(base, fourier=None), train)
    settings["eps"] = (replace(base, head="eps"), train)
    settings["eps-no-fourier"] = (replace(base, head="eps", fourier=None), train)
    settings["ddpm"] = (DDPMConfig(**DIGITS, network=NETWORK), replace(train, loss="simple"))
    return [
        Arm(f"{name}-seed{seed}", model, replace(training, seed=seed))
        for name, (model, training) in settings.items()
        for seed in range(budget.seeds if name != "ddpm" else 1)
    ]


def gather(everything: list[Arm], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """The numbers of all claims; ``workers`` is of no use here."""
    models, data = {arm.name: load_arm(arm, folder) for arm in everything}, digits()
    return {
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "bound": _bounds(models, data, budget.draws),
        "variance": _variances(models, data, budget.draws),
        "invariance": _invariance(models, data, budget.draws),
        "times": _batch_variances(models["linear-seed0"], data),
        "steps": _by_steps(models, data, budget.draws),
        "ddpm": _ddpm(models["ddpm-seed0"], data, budget.draws),
        "gamma": _curves(models),
        "training": {name: _training(folder / name / "metrics.jsonl") for name in models},
    }


def _bounds(models: dict[str, DiffusionModel], data: Dataset, draws: int) -> dict[str, Any]:
    """Bits/dim in continuous time of every VDM, with the per-image values that paired comparisons need.

    All denoisers are asked at the times of the linear schedule: the bound is the same (see `_invariance`), and the
    draws are then common to all.
    """
    rows = {}
    for name, model in _progress(models, "bounds"):
        if model.kind == "vdm":
            with _schedule(model, LinearSchedule(*GAMMA)):
                result = evaluate(model, data.test_images, steps=None, draws=draws)
            rows[name] = {**result.row(), "images": [round(v, 6) for v in result.bpd.total.tolist()]}
    return rows


@contextmanager
def _schedule(model: DiffusionModel, schedule: Schedule) -> Iterator[None]:
    """A model under another schedule with the same ends."""
    own = model.gamma
    try:
        model.gamma = schedule
        yield
    finally:
        model.gamma = own


def _variances(models: dict[str, DiffusionModel], data: Dataset, draws: int) -> dict[str, Any]:
    """Variance of one draw of the diffusion term, at an independent time, over images and draws; in (bits/dim)²."""
    chosen = {name: model for name, model in models.items() if name.rpartition("-seed")[0] in SCHEDULES}
    return {name: _spread(_single_draws(model, data, draws)) for name, model in _progress(chosen, "variances")}


def _invariance(models: dict[str, DiffusionModel], data: Dataset, draws: int) -> dict[str, Any]:
    """One denoiser under four schedules with the same ends: the bound must stay, the variance may not."""
    model = models["linear-seed0"]
    schedules: dict[str, Schedule] = {
        "linear": LinearSchedule(*GAMMA),
        "cosine": CosineSchedule(*GAMMA),
        "beta-linear": BetaLinearSchedule(*GAMMA),
        "learned": models["learned-seed0"].gamma,
    }
    rows, first = {}, None
    for name, schedule in _progress(schedules, "one denoiser"):
        with _schedule(model, schedule):
            values = _single_draws(model, data, draws)
        first = values if first is None else first
        gap = (values - first).mean(1)  # noise and times are common: the error of the difference is over the draws
        error = {"error": standard_error(values.mean(1)), "gap": float(gap.mean()), "gap_error": standard_error(gap)}
        rows[name] = {"diffusion": float(values.mean()), **error, **_spread(values)}
    return rows


def _single_draws(model: DiffusionModel, data: Dataset, draws: int) -> Tensor:
    """The diffusion term of every held-out image at independent times, bits/dim, float64 [draws, N]."""
    x = data.test_images
    rows = []
    with torch.no_grad():
        for r in range(draws):
            noise = Noise(1, EVALUATION_STEP - 1 - r)
            rows.append(model.diffusion_nats(centre(x, model.levels), noise, independent_times(noise, len(x)), None))
    return torch.stack(rows).double() / (model.dims * math.log(2.0))


def _spread(values: Tensor) -> dict[str, float]:
    """Variance over all draws and images, with a standard error from tenths of the images."""
    tenths = torch.stack([part.var() for part in values.chunk(10, dim=1)])
    return {"variance": float(values.var()), "se": standard_error(tenths)}


def _batch_variances(model: DiffusionModel, data: Dataset, batches: int = 400, size: int = 64) -> dict[str, Any]:
    """Variance of the mean over a training batch of the diffusion term: times spread evenly, or independent."""
    results = {}
    with torch.no_grad():
        for name, times in (("stratified", stratified_times), ("independent", independent_times)):
            means = []
            for k in range(batches):
                noise = Noise(2, k)
                chosen = noise.uniform((size, 1)).squeeze(1).mul(len(data.train_images)).long()
                x = data.train_images[chosen.clamp(max=len(data.train_images) - 1)]
                means.append(model.diffusion_nats(centre(x, model.levels), noise, times(noise, size), None).mean())
            values = torch.stack(means).double() / (model.dims * math.log(2.0))
            # of a sample variance, for values that are nearly normal
            results[name] = {"variance": float(values.var()), "se": float(values.var()) * (2.0 / (batches - 1)) ** 0.5}
    return results


def _by_steps(models: dict[str, DiffusionModel], data: Dataset, draws: int) -> dict[str, Any]:
    """The bound at T = 1, 2, 4, .., 1024 and infinity with common noise, and the paired differences L_2T - L_T."""
    results = {}
    for name in ("linear-seed0", "learned-seed0"):
        totals, rows = [], []
        for steps in tqdm([*STEPS, None], desc=f"{name} by steps", leave=False):
            result = evaluate(models[name], data.test_images, steps=steps, draws=draws)
            totals.append(result.bpd.total)
            rows.append(result.row())
        for row, fine, coarse in zip(rows[1:], totals[1:], totals[:-1], strict=True):
            row["difference"], row["difference_se"] = float((fine - coarse).mean()), standard_error(fine - coarse)
        results[name] = rows
    return results


def _ddpm(model: DiffusionModel, data: Dataset, draws: int) -> dict[str, Any]:
    """The DDPM's own bound, the exact sum over its 1000 steps, with either fixed variance of the same weights."""
    rows, own = {}, model.config
    try:
        for variance in ("small", "large"):
            model.config = replace(own, variance=variance)
            rows[variance] = evaluate(model, data.test_images, draws=16, exact=True, progress=True).row()
    finally:
        model.config = own
    rows["continuous"] = evaluate(model, data.test_images, steps=None, draws=draws).row()
    return rows


@torch.no_grad()
def _curves(models: dict[str, DiffusionModel]) -> dict[str, list[float]]:
    """gamma(t) at 101 times of the four schedules."""
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    return {"t": t.tolist(), **{name: models[f"{name}-seed0"].gamma(t).tolist() for name in SCHEDULES}}


def _training(path: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("step", "bpd", "recon", "prior", "diffusion")
    return [{key: row[key] for key in keys} for row in rows if row["event"] == "train"]


def _progress(items: dict[str, Any], title: str) -> Any:
    return tqdm(list(items.items()), desc=title, leave=False)


STUDY = Study("schedules", arms, gather, write_report, Budget(steps=2000, seeds=2, draws=128), "schedules")
