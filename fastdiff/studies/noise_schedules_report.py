"""The document of the study of noise schedules, written from its numbers alone."""

import math
from pathlib import Path
from typing import Any

from .figures import drawing, save
from .statistics import critical, difference, seed_variance

SCHEDULES = ("linear", "cosine", "beta-linear", "learned")
COMMAND = "fastdiff reproduce schedules"
TITLES = {
    "linear": "linear, fixed ends",
    "cosine": "cosine, same ends",
    "beta-linear": "β-linear, same ends",
    "learned": "learned (variance-minimising), same ends",
    "independent-times": "linear, times drawn independently in training",
    "no-fourier": "linear, without Fourier features",
    "eps": "linear, head eps",
    "eps-no-fourier": "linear, head eps, without Fourier features",
}


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write ``schedules.md`` and the three pictures that it shows."""
    _draw_steps(results, out / "schedules-steps.png")
    _draw_gamma(results, out / "schedules-gamma.png")
    _draw_training(results, out / "schedules-training.png")
    parts = [_head(results), _models(results), _variance(results), _times(results), _steps(results), _ddpm(results)]
    (out / "schedules.md").write_text("\n\n".join(parts) + "\n")


def mean_over_seeds(results: dict[str, Any], name: str) -> float:
    """Mean over the seeds of a setting's bits/dim."""
    seeds = results["budget"]["seeds"]
    return sum(results["bound"][f"{name}-seed{seed}"]["bpd"] for seed in range(seeds)) / seeds


def paired(results: dict[str, Any], one: str, other: str) -> tuple[float, float]:
    """Mean over seeds and images of bits/dim of ``one`` minus ``other``, with its standard error."""
    return difference(results["bound"], list(TITLES), results["budget"]["seeds"], one, other)


def verdict(difference: float, error: float, freedom: int, claim: str) -> str:
    """Say whether a difference that the claim wants negative is, at 95 % for so many degrees of freedom."""
    figure, limit = f"{difference:+.4f} ± {error:.4f} bits/dim", critical(freedom) * error
    if difference < -limit:
        return f"{claim}: **holds** here ({figure})."
    if difference > limit:
        return f"{claim}: **does not hold** here ({figure})."
    return f"{claim}: **not decided** here ({figure})."


def _head(results: dict[str, Any]) -> str:
    budget, sizes = results["budget"], sorted(results["parameters"].values())
    return f"""# Variational diffusion on the digits: schedules, Fourier features, times, steps

Written by `{COMMAND}` from `schedules.json`. Networks of {sizes[0]:,} to {sizes[-1]:,} parameters,
{budget["steps"]} optimiser steps of 64 images per model, {budget["seeds"]} seeds, gamma from -8 to 5; bits per
dimension on the 297 held-out digits, {budget["draws"]} draws each, the same draws for all models. Small models,
trained for two minutes: the numbers rank choices, they are no records."""


def _models(results: dict[str, Any]) -> str:
    lines = ["## Bits per dimension", "", "| model | bits/dim | against linear | ± |"]
    lines.append("|---|---:|---:|---:|")
    for name, title in TITLES.items():
        difference, error = paired(results, name, "linear")
        against = " | " if name == "linear" else f"{difference:+.4f} | {error:.4f}"
        lines.append(f"| {title} | {mean_over_seeds(results, name):.4f} | {against} |")
    freedom = len(TITLES) * (results["budget"]["seeds"] - 1)
    claims = [
        verdict(*paired(results, one, other), freedom, claim)
        for one, other, claim in (
            ("learned", "linear", "A learned schedule lowers bits/dim at equal budget"),
            ("linear", "no-fourier", "Fourier features lower bits/dim (head `levels`)"),
            ("eps", "eps-no-fourier", "Fourier features lower bits/dim (head `eps`)"),
            ("linear", "independent-times", "Stratified times in training lower bits/dim"),
            ("linear", "eps", "The head `levels` lowers bits/dim against `eps`"),
        )
    ]
    spread = math.sqrt(seed_variance(results["bound"], list(TITLES), results["budget"]["seeds"]))
    note = (
        f"Another seed trains another model: a standard deviation of {spread:.4f} bits/dim, pooled over the settings.\n"
        "The errors of the differences hold it beside that of the images. A claim holds where the difference is more\n"
        f"than {critical(freedom):.1f} of them, Student's t at 95 % for {freedom} degrees of freedom; the claims are\n"
        f"{len(claims)}."
    )
    bullets = "\n".join(f"- {claim}" for claim in claims)
    training = "![The terms of the bound over training](schedules-training.png)"
    return "\n".join(lines) + f"\n\n{bullets}\n\n{note}\n\n{training}"


def _variance(results: dict[str, Any]) -> str:
    seeds = range(results["budget"]["seeds"])
    lines = [
        "## Variance of the estimate",
        "",
        "One draw of the diffusion term at an independent time, over images and draws, in (bits/dim)². On the left",
        "each schedule with the denoiser trained under it; on the right the denoiser of `linear` under all four,",
        "where the mean must not move: the continuous-time bound depends on the ends alone.",
        "",
        "| schedule | own denoiser: variance | ratio to learned | one denoiser: diffusion | variance |",
        "|---|---:|---:|---:|---:|",
    ]
    own, errors = {}, {}
    for name in SCHEDULES:
        rows = [results["variance"][f"{name}-seed{seed}"] for seed in seeds]
        own[name] = sum(row["variance"] for row in rows) / len(rows)
        errors[name] = math.sqrt(sum(row["se"] ** 2 for row in rows)) / len(rows)
    for name in SCHEDULES:
        one, ratio = results["invariance"][name], own[name] / own["learned"]
        mean, alone = f"{one['diffusion']:.4f} ± {one['error']:.4f}", f"{own[name]:.3f} ± {errors[name]:.3f}"
        lines.append(f"| {name} | {alone} | {ratio:.2f} | {mean} | {one['variance']:.3f} ± {one['se']:.3f} |")
    gaps = [row for name, row in results["invariance"].items() if name != "linear"]
    apart = max(abs(row["gap"]) / row["gap_error"] for row in gaps)
    ratios = ", ".join(f"{own[name] / own['learned']:.2f} against {name}" for name in SCHEDULES[:-1])
    claims = [
        f"The bound does not depend on the schedule between its ends: {_state(apart < 3)} here; the largest gap to",
        f"  `linear`, paired, is {apart:.1f} standard errors of the draws.",
        "The learned schedule cuts the variance by an order of magnitude against β-linear: "
        f"{_state(own['beta-linear'] >= 10 * own['learned'])} here;",
        f"  the ratio of the variances is {ratios}.",
    ]
    bullets = "\n".join(claim if claim.startswith(" ") else f"- {claim}" for claim in claims)
    return "\n".join(lines) + f"\n\n{bullets}\n\n![gamma(t) of the four schedules](schedules-gamma.png)"


def _state(holds: bool) -> str:
    return "**holds**" if holds else "**does not hold**"


def _times(results: dict[str, Any]) -> str:
    even, alone = results["times"]["stratified"], results["times"]["independent"]
    figures = [f"{row['variance']:.5f} ± {row['se']:.5f}" for row in (even, alone)]
    return f"""## Stratified times

Variance of the mean of the diffusion term over a training batch of 64, over 400 batches: {figures[0]} (bits/dim)² with
times spread evenly, {figures[1]} with independent times, a ratio of {alone["variance"] / even["variance"]:.2f}."""


def _steps(results: dict[str, Any]) -> str:
    lines = [
        "## Number of steps",
        "",
        "The same weights at every T, with common noise; the difference is to the T before.",
        "",
        "| T | linear: bits/dim | difference | learned: bits/dim | difference |",
        "|---:|---:|---:|---:|---:|",
    ]
    columns = [results["steps"][f"{name}-seed0"] for name in ("linear", "learned")]
    for rows in zip(*columns, strict=True):
        steps = "∞" if rows[0]["steps"] is None else rows[0]["steps"]
        cells = [f"{row['bpd']:.4f} | {_difference(row)}" for row in rows]
        lines.append(f"| {steps} | {' | '.join(cells)} |")
    doublings = [row for rows in columns for row in rows[1:-1]]  # the last line is T = infinity
    fails = [row for row in doublings if row["difference"] >= 2 * row["difference_se"]]
    sure = sum(row["difference"] < -2 * row["difference_se"] for row in doublings)
    state = _state(not fails) if fails or sure == len(doublings) else "**is not contradicted**"
    claim = (
        f"- More steps lower the bound (L_2T < L_T): {state} here; {sure} of {len(doublings)} differences are below\n"
        f"  zero by two standard errors over the images, {len(fails)} above."
    )
    return "\n".join(lines) + f"\n\n{claim}\n\n![The bound against T](schedules-steps.png)"


def _difference(row: dict[str, Any]) -> str:
    return f"{row['difference']:+.4f} ± {row['difference_se']:.4f}" if "difference" in row else ""


def _ddpm(results: dict[str, Any]) -> str:
    lines = [
        "## DDPM beside it",
        "",
        "The same network trained on L_simple, T = 1000; its own bound is the exact sum over all steps, with either",
        "fixed variance.",
        "",
        "| bound | bits/dim | ± s.e. | recon | prior | diffusion |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    titles = {"small": "T = 1000, posterior variance", "large": "T = 1000, variance β_t", "continuous": "T = ∞"}
    for name, title in titles.items():
        row = results["ddpm"][name]
        cells = [f"{row[key]:.4f}" for key in ("bpd", "se", "recon", "prior", "diffusion")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _draw_steps(results: dict[str, Any], path: Path) -> None:
    plt = drawing()
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    for name in ("linear", "learned"):
        rows = results["steps"][f"{name}-seed0"]
        finite = [row for row in rows if row["steps"] is not None]
        line = axis.errorbar(
            [row["steps"] for row in finite], [row["bpd"] for row in finite], [row["se"] for row in finite],
            marker="o", markersize=3.5, capsize=2, label=f"{name} schedule",
        )  # fmt: skip
        axis.axhline(rows[-1]["bpd"], linestyle=":", color=line[0].get_color(), label=f"{name}, T = ∞")
    axis.set(xscale="log", yscale="log", xlabel="number of steps T", ylabel="bits/dim", title="The bound against T")
    axis.set_xscale("log", base=2)
    axis.legend(frameon=False)
    save(figure, path)
    plt.close(figure)


def _draw_gamma(results: dict[str, Any], path: Path) -> None:
    plt = drawing()
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    for name in SCHEDULES:
        axis.plot(
            results["gamma"]["t"], results["gamma"][name], label=name, linewidth=2.4 if name == "learned" else 1.4
        )
    axis.set(xlabel="t", ylabel="gamma(t) = -log SNR(t)", title="Schedules between the same ends")
    axis.legend(frameon=False)
    save(figure, path)
    plt.close(figure)


def _draw_training(results: dict[str, Any], path: Path) -> None:
    plt = drawing()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.0))
    for name in SCHEDULES:
        rows = results["training"][f"{name}-seed0"]
        left.plot([row["step"] for row in rows], [row["diffusion"] for row in rows], label=name, linewidth=1.2)
    left.set(xlabel="optimiser step", ylabel="bits/dim", ylim=(1.5, 4.0), title="Diffusion term over training")
    left.legend(frameon=False)
    rows = results["training"]["linear-seed0"]
    for term in ("recon", "prior", "diffusion"):
        right.plot([row["step"] for row in rows], [row[term] for row in rows], label=term, linewidth=1.2)
    right.set(xlabel="optimiser step", ylabel="bits/dim", yscale="log", title="Terms of the bound, linear schedule")
    right.legend(frameon=False)
    save(figure, path)
    plt.close(figure)
