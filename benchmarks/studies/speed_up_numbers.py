"""Statistics of the study of DiffuseVAE's speed-up: means and ratios of Fréchet distances, and their errors.

Results are those of one data set. A setting is a sampler and a number of steps, such as ``ddim-5``.
"""

import math
from collections.abc import Sequence
from typing import Any

from .comparison import critical

MODELS = {
    "ddpm": "DDPM",
    "diffusevae1": "DiffuseVAE 1",
    "diffusevae2": "DiffuseVAE 2",
    "diffusevae1-beta4": "DiffuseVAE 1, β = 4",
    "diffusevae2-beta4": "DiffuseVAE 2, β = 4",
}
STEPS = (5, 10, 25, 50, 100)
BETAS = {10: (1e-6, 0.8), 25: (1e-6, 0.6), 50: (1e-6, 0.3)}  # DiffuseVAE's table 3
SAMPLERS = {
    "ddim": "DDIM",
    "ancestral": "ancestral",
    "betas": "ancestral, few betas",
    "mixture": "DDIM, z from a mixture",
}

Results = dict[str, Any]


def models_of(results: Results) -> list[str]:
    """Return the diffusion models, in the order of `MODELS`."""
    return [name for name in MODELS if f"{name}-seed0" in results["models"]]


def pairs_of(results: Results) -> list[tuple[str, str]]:
    """Return the pairs of models that are compared: with the DDPM, 2 with 1, and β = 4 with β = 1."""
    found = models_of(results)
    pairs = [("diffusevae1", "ddpm"), ("diffusevae2", "ddpm"), ("diffusevae2", "diffusevae1")]
    for name in found:
        if name.endswith("-beta4"):
            pairs += [(name, "ddpm"), (name, name.removesuffix("-beta4"))]
    return [pair for pair in pairs if set(pair) <= set(found)]


def steps_of(results: Results, sampler: str) -> list[int]:
    """Return the numbers of steps that a sampler was measured with; a mixture's are those of a DiffuseVAE."""
    name = "diffusevae1" if sampler == "mixture" else "ddpm"
    settings = results["models"][f"{name}-seed0"]["distances"]
    return [n for n in STEPS if f"{sampler}-{n}" in settings]


def samplers_of(results: Results) -> list[str]:
    """Return the samplers that were measured, in the order of `SAMPLERS`."""
    return [sampler for sampler in SAMPLERS if steps_of(results, sampler)]


def setting_of(name: str, setting: str) -> str:
    """Return the setting whose samples a model has: a DDPM has no z, so a mixture does not change its samples."""
    return setting.replace("mixture", "ddim") if name == "ddpm" else setting


def distances(results: Results, name: str, setting: str) -> list[float]:
    """Return the distance of every seed of a model."""
    setting = setting_of(name, setting)
    return [results["models"][f"{name}-seed{s}"]["distances"][setting][0] for s in range(results["budget"]["seeds"])]


def log_variance(results: Results, setting: str) -> float:
    """Return the variance of the log distance between seeds, pooled over the models, which have few seeds each."""
    total, names = 0.0, models_of(results)
    for name in names:
        logs = [math.log(value) for value in distances(results, name, setting)]
        mean = sum(logs) / len(logs)
        total += sum((value - mean) ** 2 for value in logs)
    return total / (len(names) * (results["budget"]["seeds"] - 1))


def summary(results: Results, name: str, setting: str) -> tuple[float, float]:
    """Return the mean of a model's distance over its seeds, and its standard error (of training and of sampling)."""
    values = distances(results, name, setting)
    mean = sum(values) / len(values)
    return mean, mean * math.sqrt(log_variance(results, setting_of(name, setting)) / len(values))


def compare(results: Results, one: str, other: str, setting: str) -> tuple[float, str]:
    """Return the ratio of distances of ``one`` to ``other``, and whether it is "lower" or "higher" than 1, or "equal".

    The ratio is that of geometric means over the seeds; "equal" means not significantly different from 1. Two models of
    one seed share noise, and two DiffuseVAEs a VAE; the error ignores this, so it is too large rather than too small.
    """
    pair = distances(results, one, setting), distances(results, other, setting)
    return _ratio(results, *pair, 2.0 * log_variance(results, setting))


def compare_settings(results: Results, name: str, one: str, other: str) -> tuple[float, str]:
    """Return the ratio of the distances of one model in two settings, and its verdict, as `compare`."""
    variance = log_variance(results, one) + log_variance(results, other)
    return _ratio(results, distances(results, name, one), distances(results, name, other), variance)


def first_stage_ratio(results: Results, setting: str) -> tuple[float, str]:
    """Return the ratio of the VAEs' distance with z from the mixture to that of DiffuseVAE 1 in a setting of its own.

    The verdict is as that of `compare`, with the variance between seeds of that setting for both.
    """
    seeds = range(results["budget"]["seeds"])
    first = [results["models"][f"vae-seed{seed}"]["distances"]["vae-mixture"][0] for seed in seeds]
    return _ratio(results, first, distances(results, "diffusevae1", setting), 2.0 * log_variance(results, setting))


def _ratio(results: Results, one: Sequence[float], other: Sequence[float], variance: float) -> tuple[float, str]:
    """Return the ratio of the geometric means, and its verdict for a variance of the log ratio of one seed."""
    seeds = len(one)
    mean, error = sum(math.log(a / b) for a, b in zip(one, other, strict=True)) / seeds, math.sqrt(variance / seeds)
    limit = critical(len(models_of(results)) * (seeds - 1)) * error
    return math.exp(mean), "lower" if mean < -limit else "higher" if mean > limit else "equal"


def verdicts(results: Results, one: str, other: str, sampler: str) -> dict[str, list[int]]:
    """Return the numbers of steps of a sampler by the verdict of `compare`."""
    found: dict[str, list[int]] = {}
    for n in steps_of(results, sampler):
        found.setdefault(compare(results, one, other, f"{sampler}-{n}")[1], []).append(n)
    return found


def first_stages(results: Results) -> list[str]:
    """Return the settings of the VAEs: ``vae``, and ``vae-beta4`` where there is one."""
    return [name for name in ("vae", "vae-beta4") if f"{name}-seed0" in results["models"]]


def first_stage_distances(results: Results, name: str) -> tuple[float, float]:
    """Return the mean distance of the images of the VAEs of a setting, with z from the prior and from the mixture."""
    rows = [results["models"][f"{name}-seed{seed}"]["distances"] for seed in range(results["budget"]["seeds"])]
    prior, mixture = (sum(row[key][0] for row in rows) / len(rows) for key in ("vae", "vae-mixture"))
    return prior, mixture
