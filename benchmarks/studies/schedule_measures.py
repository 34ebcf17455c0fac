"""What the study of noise schedules measures on one trained model.

Every function takes the held-out images, and their groups where the data set has any (`bounds.held_out`).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from tqdm import tqdm

from fastdiff.diffusion import BetaLinearSchedule, CosineSchedule, LinearSchedule, Schedule
from fastdiff.diffusion.bound import independent_times, stratified_times
from fastdiff.evaluation import evaluate, standard_error
from fastdiff.evaluation.batches import EVALUATION_STEP
from fastdiff.kernels import Noise, Stream, diffuse, eps_loss, to_unit_range
from fastdiff.models import VDM, Model, model_of

from .bounds import bound_row, mean_and_error

GAMMA = (-8.0, 5.0)
BATCH_SIZE = 64  # of the training batches whose mean diffusion terms are compared
CHUNK = 512  # images that the network takes at a time


def schedules(learned: Schedule) -> dict[str, Schedule]:
    """Return the four schedules between the same endpoints, by name."""
    fixed = {"linear": LinearSchedule, "cosine": CosineSchedule, "beta-linear": BetaLinearSchedule}
    return {**{name: kind(*GAMMA) for name, kind in fixed.items()}, "learned": learned}


def with_schedule(model: VDM, schedule: Schedule) -> VDM:
    """Return a model with the same network and another schedule between the same endpoints."""
    return VDM(model.config, network=model.network, schedule=schedule).eval()


def continuous_bound(model: VDM, x: Tensor, groups: Tensor | None, draws: int) -> dict[str, Any]:
    """Return the row of the bound in continuous time, with the values that paired comparisons need.

    All networks are evaluated at the times of the linear schedule. The bound is the same (see `invariance`), and all
    models then share the draws.
    """
    result = evaluate(with_schedule(model, LinearSchedule(*GAMMA)), x, T=None, draws=draws, groups=groups)
    return bound_row(result)


def variance(model: VDM, x: Tensor, draws: int) -> dict[str, float]:
    """Return the variance of one draw of the diffusion term at an independent time, in (bits/dim)²."""
    return _spread(single_draws(model, x, draws))


def invariance(model: VDM, learned: Schedule, x: Tensor, draws: int) -> dict[str, Any]:
    """Return the diffusion term of one network under four schedules between the same endpoints, and its variance.

    The bound must be the same under all of them; the variance may differ.
    """
    rows, first = {}, None
    for name, schedule in tqdm(list(schedules(learned).items()), desc="one network", leave=False):
        values = single_draws(with_schedule(model, schedule), x, draws)
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


@torch.no_grad()
def single_draws(model: VDM, x: Tensor, draws: int) -> Tensor:
    """Return the diffusion term of every image at independent times, bits/dim, float64 [draws, N]."""
    rows = []
    for r in range(draws):
        noise = Noise(1, EVALUATION_STEP - 1 - r)
        u = independent_times(noise, len(x))
        parts = [slice(first, first + CHUNK) for first in range(0, len(x), CHUNK)]
        rows.append(
            torch.cat([diffusion_nats(model, x[part], noise.at(first_sample=part.start), u[part]) for part in parts])
        )
    return torch.stack(rows).double() / (model.dims * math.log(2.0))


def _spread(values: Tensor) -> dict[str, float]:
    """Return the variance over all draws and images, with a standard error from tenths of the images.

    Images of one group stand together, so most groups lie in one tenth.
    """
    tenths = torch.stack([part.var() for part in values.chunk(10, dim=1)])
    return {"variance": float(values.var()), "se": standard_error(tenths)}


@torch.no_grad()
def batch_variances(model: VDM, x: Tensor, batches: int) -> dict[str, Any]:
    """Return the variance of the mean diffusion term of a training batch, with stratified and independent times.

    Args:
        model: its schedule gives the times.
        x: the training images.
        batches: number of batches.
    """
    results = {}
    for name, times in (("stratified", stratified_times), ("independent", independent_times)):
        means = []
        for k in range(batches):
            noise = Noise(2, k)
            chosen = noise.uniform((BATCH_SIZE, 1)).squeeze(1).mul(len(x)).long().clamp(max=len(x) - 1)
            means.append(diffusion_nats(model, x[chosen], noise, times(noise, BATCH_SIZE)).mean())
        values = torch.stack(means).double() / (model.dims * math.log(2.0))
        # standard error of a sample variance, for values that are nearly normal
        results[name] = {"variance": float(values.var()), "se": float(values.var()) * (2.0 / (batches - 1)) ** 0.5}
    return results


def bounds_by_steps(
    model: VDM, x: Tensor, groups: Tensor | None, steps: Sequence[int], draws: int
) -> list[dict[str, Any]]:
    """Return the bounds at numbers of steps T and infinity with common noise, and the differences L_2T - L_T."""
    totals, rows = [], []
    for T in tqdm([*steps, None], desc="bounds by T", leave=False):
        result = evaluate(model, x, T=T, draws=draws, groups=groups)
        totals.append(result.bpd.total)
        rows.append(result.row())
    for row, fine, coarse in zip(rows[1:], totals[1:], totals[:-1], strict=True):
        row["difference"], row["difference_se"] = mean_and_error(fine - coarse, groups)
    return rows


def ddpm_bounds(model: Model, x: Tensor, draws: int) -> dict[str, Any]:
    """Return the DDPM's own bound, the exact sum over its 1000 steps, with both fixed variances of the same weights."""
    rows = {}
    for name in ("fixed_small", "fixed_large"):
        variant = model_of(evolve(model.config, variance=name))
        variant.load_state_dict(model.state_dict())
        rows[name] = evaluate(variant, x, draws=16, exact=True, progress=True).row()
    rows["continuous"] = evaluate(model, x, T=None, draws=draws).row()
    return rows


@torch.no_grad()
def curves(learned: Schedule) -> dict[str, list[float]]:
    """Return gamma(t) at 101 times of the four schedules."""
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    return {"t": t.tolist(), **{name: schedule(t).tolist() for name, schedule in schedules(learned).items()}}


def training_terms(path: Path) -> list[dict[str, float]]:
    """Return the terms of the bound over training, from the metrics.jsonl of a run."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("step", "bpd", "recon", "prior", "diffusion")
    return [{key: row[key] for key in keys} for row in rows if row["event"] == "train"]
