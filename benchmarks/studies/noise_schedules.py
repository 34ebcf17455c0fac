"""Claims about variational diffusion, measured on the digits: schedules, Fourier features, times, number of steps.

    python benchmarks/studies/reproduce.py schedules

All models share a network and a budget. The seeds differ in weights, data order and noise. Bits per dimension are on
the 297 held-out images, with common draws for all models.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from tqdm import tqdm

from fastdiff.data import Dataset, digits
from fastdiff.diffusion import BetaLinearSchedule, CosineSchedule, LinearSchedule, Schedule
from fastdiff.diffusion.bound import independent_times, stratified_times
from fastdiff.evaluation import evaluate, standard_error
from fastdiff.evaluation.batches import EVALUATION_STEP
from fastdiff.kernels import Noise, Stream, diffuse, eps_loss, to_unit_range
from fastdiff.models import VDM, DDPMConfig, ImageConfig, UNetConfig, VDMConfig, model_of
from fastdiff.training import TrainConfig

from .noise_schedules_report import SCHEDULES, write_report
from .runner import Run, load_run
from .study import Budget, Study

DATA: dict[str, Any] = {"shape": (1, 8, 8), "levels": 17, "num_classes": 10, "augmented": True}
GAMMA = (-8.0, 5.0)
STEPS = [2**k for k in range(11)]  # numbers of steps T of the bound
BATCHES, BATCH_SIZE = 400, 64  # training batches whose mean diffusion terms are compared
NETWORK = UNetConfig(widths=(32, 48), blocks=2, dropout=0.1)

Models = dict[str, Any]  # VDM by the name of its run


def runs(budget: Budget) -> list[Run]:
    """Return the models of the study, one per setting and seed."""
    base = VDMConfig(
        **DATA, gamma_0=GAMMA[0], gamma_1=GAMMA[1], learn_endpoints=False, fourier=(3, 4), prediction="categorical",
        network=NETWORK,
    )  # fmt: skip
    train = TrainConfig(data="digits", max_steps=budget.steps, learning_rate=3e-3, shift=0.5, label_dropout=0.6)
    settings: dict[str, tuple[ImageConfig, TrainConfig]] = {
        name: (evolve(base, schedule=name), train) for name in SCHEDULES
    }
    settings["independent-times"] = (base, evolve(train, stratified=False))
    settings["no-fourier"] = (evolve(base, fourier=None), train)
    settings["eps"] = (evolve(base, prediction="epsilon"), train)
    settings["eps-no-fourier"] = (evolve(base, prediction="epsilon", fourier=None), train)
    settings["ddpm"] = (DDPMConfig(**DATA, network=NETWORK), evolve(train, loss="simple"))
    return [
        Run(f"{name}-seed{seed}", model, evolve(training, seed=seed))
        for name, (model, training) in settings.items()
        for seed in range(budget.seeds if name != "ddpm" else 1)
    ]


def gather(everything: list[Run], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Return the numbers of all claims; ``workers`` is not used."""
    models, data = {run.name: load_run(run, folder) for run in everything}, digits()
    vdms: Models = {name: model for name, model in models.items() if model.kind == "vdm"}
    return {
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "bound": _bounds(vdms, data, budget.draws),
        "variance": _variances(vdms, data, budget.draws),
        "invariance": _invariance(vdms, data, budget.draws),
        "times": _batch_variances(vdms["linear-seed0"], data),
        "steps": _bounds_by_steps(vdms, data, budget.draws),
        "ddpm": _ddpm(models["ddpm-seed0"], data, budget.draws),
        "gamma": _curves(vdms),
        "training": {name: _training(folder / name / "metrics.jsonl") for name in models},
    }


def with_schedule(model: VDM, schedule: Schedule) -> VDM:
    """Return a model with the same network and another schedule between the same endpoints."""
    return VDM(model.config, network=model.network, schedule=schedule).eval()


def _bounds(models: Models, data: Dataset, draws: int) -> dict[str, Any]:
    """Return the bits/dim in continuous time of every model, with the per-image values that paired comparisons need.

    All networks are evaluated at the times of the linear schedule. The bound is the same (see `_invariance`), and all
    models then share the draws.
    """
    rows = {}
    for name, model in _progress(models, "bounds"):
        result = evaluate(with_schedule(model, LinearSchedule(*GAMMA)), data.test_images, T=None, draws=draws)
        rows[name] = {**result.row(), "images": [round(v, 6) for v in result.bpd.total.tolist()]}
    return rows


def _variances(models: Models, data: Dataset, draws: int) -> dict[str, Any]:
    """Return the variance of one draw of the diffusion term at an independent time, in (bits/dim)²."""
    chosen = {name: model for name, model in models.items() if name.rpartition("-seed")[0] in SCHEDULES}
    return {name: _spread(_single_draws(model, data, draws)) for name, model in _progress(chosen, "variances")}


def _invariance(models: Models, data: Dataset, draws: int) -> dict[str, Any]:
    """Return the diffusion term of one network under four schedules between the same endpoints, and its variance.

    The bound must be the same under all of them; the variance may differ.
    """
    schedules: dict[str, Schedule] = {
        "linear": LinearSchedule(*GAMMA),
        "cosine": CosineSchedule(*GAMMA),
        "beta-linear": BetaLinearSchedule(*GAMMA),
        "learned": models["learned-seed0"].gamma,
    }
    rows, first = {}, None
    for name, schedule in _progress(schedules, "one network"):
        values = _single_draws(with_schedule(models["linear-seed0"], schedule), data, draws)
        first = values if first is None else first
        gap = (values - first).mean(1)  # noise and times are common, so the error of the difference is over the draws
        error = {"error": standard_error(values.mean(1)), "gap": float(gap.mean()), "gap_error": standard_error(gap)}
        rows[name] = {"diffusion": float(values.mean()), **error, **_spread(values)}
    return rows


def diffusion_nats(model: VDM, x: Tensor, noise: Noise, u: Tensor) -> Tensor:
    """Return one draw of the diffusion term in continuous time at times u float64 [B], in nats, [B].

    ½ gamma'(t) |eps - eps_hat|² (Kingma et al. 2021, eq. 17), with the noise that `DiffusionModel.vlb` draws.
    """
    eps = noise.at(stream=Stream.DIFFUSION)
    gamma_t, slope = model.gamma.both(u)
    z_t = diffuse(to_unit_range(x, model.levels), gamma_t.float(), eps)
    return eps_loss(model.eps_hat(z_t, gamma_t.float()), eps, 0.5 * slope.float())


def _single_draws(model: VDM, data: Dataset, draws: int) -> Tensor:
    """Return the diffusion term of every held-out image at independent times, bits/dim, float64 [draws, N]."""
    x = data.test_images
    rows = []
    with torch.no_grad():
        for r in range(draws):
            noise = Noise(1, EVALUATION_STEP - 1 - r)
            rows.append(diffusion_nats(model, x, noise, independent_times(noise, len(x))))
    return torch.stack(rows).double() / (model.dims * math.log(2.0))


def _spread(values: Tensor) -> dict[str, float]:
    """Return the variance over all draws and images, with a standard error from tenths of the images."""
    tenths = torch.stack([part.var() for part in values.chunk(10, dim=1)])
    return {"variance": float(values.var()), "se": standard_error(tenths)}


def _batch_variances(model: VDM, data: Dataset) -> dict[str, Any]:
    """Return the variance of the mean diffusion term of a training batch, with stratified and independent times."""
    results = {}
    with torch.no_grad():
        for name, times in (("stratified", stratified_times), ("independent", independent_times)):
            means = []
            for k in range(BATCHES):
                noise = Noise(2, k)
                chosen = noise.uniform((BATCH_SIZE, 1)).squeeze(1).mul(len(data.train_images)).long()
                x = data.train_images[chosen.clamp(max=len(data.train_images) - 1)]
                means.append(diffusion_nats(model, x, noise, times(noise, BATCH_SIZE)).mean())
            values = torch.stack(means).double() / (model.dims * math.log(2.0))
            # standard error of a sample variance, for values that are nearly normal
            results[name] = {"variance": float(values.var()), "se": float(values.var()) * (2.0 / (BATCHES - 1)) ** 0.5}
    return results


def _bounds_by_steps(models: Models, data: Dataset, draws: int) -> dict[str, Any]:
    """Return the bounds at T = 1, 2, 4, .., 1024 and infinity with common noise, and the differences L_2T - L_T."""
    results = {}
    for name in ("linear-seed0", "learned-seed0"):
        totals, rows = [], []
        for T in tqdm([*STEPS, None], desc=f"{name} by T", leave=False):
            result = evaluate(models[name], data.test_images, T=T, draws=draws)
            totals.append(result.bpd.total)
            rows.append(result.row())
        for row, fine, coarse in zip(rows[1:], totals[1:], totals[:-1], strict=True):
            row["difference"], row["difference_se"] = float((fine - coarse).mean()), standard_error(fine - coarse)
        results[name] = rows
    return results


def _ddpm(model: Any, data: Dataset, draws: int) -> dict[str, Any]:
    """Return the DDPM's own bound, the exact sum over its 1000 steps, with both fixed variances of the same weights."""
    rows = {}
    for variance in ("fixed_small", "fixed_large"):
        variant = model_of(evolve(model.config, variance=variance))
        variant.load_state_dict(model.state_dict())
        rows[variance] = evaluate(variant, data.test_images, draws=16, exact=True, progress=True).row()
    rows["continuous"] = evaluate(model, data.test_images, T=None, draws=draws).row()
    return rows


@torch.no_grad()
def _curves(models: Models) -> dict[str, list[float]]:
    """Return gamma(t) at 101 times of the four schedules."""
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    return {"t": t.tolist(), **{name: models[f"{name}-seed0"].gamma(t).tolist() for name in SCHEDULES}}


def _training(path: Path) -> list[dict[str, float]]:
    """Return the terms of the bound over training, from the metrics of a run."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("step", "bpd", "recon", "prior", "diffusion")
    return [{key: row[key] for key in keys} for row in rows if row["event"] == "train"]


def _progress(items: dict[str, Any], title: str) -> Any:
    return tqdm(list(items.items()), desc=title, leave=False)


STUDY = Study("schedules", runs, gather, write_report, Budget(steps=2000, seeds=2, draws=128), "schedules")
