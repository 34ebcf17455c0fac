"""The document of the study of noise schedules, written from its numbers alone."""

import math
from pathlib import Path
from typing import Any

from .comparison import critical, difference, seed_variance
from .documents import bullets, paragraph, plotting, save

COMMAND = "python benchmarks/studies/reproduce.py schedules"
SCHEDULES = ("linear", "cosine", "beta-linear", "learned")
TITLES = {
    "linear": "linear, fixed endpoints",
    "cosine": "cosine, same endpoints",
    "beta-linear": "β-linear, same endpoints",
    "learned": "learned (variance-minimising), same endpoints",
    "independent-times": "linear, independent times in training",
    "no-fourier": "linear, without Fourier features",
    "eps": "linear, prediction `epsilon`",
    "eps-no-fourier": "linear, prediction `epsilon`, without Fourier features",
}


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write ``schedules.md`` and its three figures."""
    _draw_steps(results, out / "schedules-steps.png")
    _draw_gamma(results, out / "schedules-gamma.png")
    _draw_training(results, out / "schedules-training.png")
    parts = [_opening(results), _models(results), _variance(results), _times(results), _steps(results), _ddpm(results)]
    (out / "schedules.md").write_text("\n\n".join(parts) + "\n")


def mean_over_seeds(results: dict[str, Any], name: str) -> float:
    """Return the mean over the seeds of a setting's bits/dim."""
    seeds = results["budget"]["seeds"]
    return sum(results["bound"][f"{name}-seed{seed}"]["bpd"] for seed in range(seeds)) / seeds


def paired(results: dict[str, Any], one: str, other: str) -> tuple[float, float]:
    """Return the mean over seeds and images of bits/dim of ``one`` minus ``other``, and its standard error."""
    return difference(results["bound"], list(TITLES), results["budget"]["seeds"], one, other)


def verdict(difference: float, error: float, freedom: int, claim: str) -> str:
    """State whether a claim that a difference is negative holds, at 95 % for ``freedom`` degrees of freedom."""
    figure, limit = f"{difference:+.4f} ± {error:.4f} bits/dim", critical(freedom) * error
    if difference < -limit:
        return f"{claim}: **holds** here ({figure})."
    if difference > limit:
        return f"{claim}: **does not hold** here ({figure})."
    return f"{claim}: **not decided** here ({figure})."


def _holds(holds: bool) -> str:
    return "**holds**" if holds else "**does not hold**"


# ------------------------------------------------------------------------------------------------ text and tables


def _opening(results: dict[str, Any]) -> str:
    budget, sizes = results["budget"], sorted(results["parameters"].values())
    text = f"""
    Written by `{COMMAND}` from `schedules.json`. The models have {sizes[0]:,} to {sizes[-1]:,} parameters and are
    trained for {budget["steps"]} optimiser steps of 64 images, with {budget["seeds"]} seeds; gamma runs from -8 to 5.
    Bits per dimension are on the 297 held-out digits, with {budget["draws"]} draws each, the same draws for all models.
    The models are small and were trained for two minutes each, so the numbers serve to compare them with each other."""
    title = "# Variational diffusion on the digits: schedules, Fourier features, times, number of steps"
    return f"{title}\n\n{paragraph(text)}"


def _models(results: dict[str, Any]) -> str:
    lines = ["## Bits per dimension", "", "| model | bits/dim | minus that of linear | ± |"]
    lines.append("|---|---:|---:|---:|")
    for name, title in TITLES.items():
        difference, error = paired(results, name, "linear")
        against = " | " if name == "linear" else f"{difference:+.4f} | {error:.4f}"
        lines.append(f"| {title} | {mean_over_seeds(results, name):.4f} | {against} |")
    freedom = len(TITLES) * (results["budget"]["seeds"] - 1)
    claims = [
        verdict(*paired(results, one, other), freedom, claim)
        for one, other, claim in (
            ("learned", "linear", "A learned schedule lowers bits/dim at an equal budget"),
            ("linear", "no-fourier", "Fourier features lower bits/dim (prediction `categorical`)"),
            ("eps", "eps-no-fourier", "Fourier features lower bits/dim (prediction `epsilon`)"),
            ("linear", "independent-times", "Stratified times in training lower bits/dim"),
            ("linear", "eps", "The prediction `categorical` lowers bits/dim compared with `epsilon`"),
        )
    ]
    spread = math.sqrt(seed_variance(results["bound"], list(TITLES), results["budget"]["seeds"]))
    note = f"""
    The models predict `categorical` where the table does not say otherwise. The standard deviation between seeds is
    {spread:.4f} bits/dim, pooled over the settings. The errors of the differences include it beside the error over the
    images. A claim holds if the difference exceeds {critical(freedom):.1f} standard errors, the 95 % point of Student's
    t with {freedom} degrees of freedom. There are {len(claims)} claims."""
    figure = "![The terms of the bound over training](schedules-training.png)"
    return "\n\n".join(["\n".join(lines), bullets(*claims), paragraph(note), figure])


def _variance(results: dict[str, Any]) -> str:
    opening = """
    The table shows the variance of one draw of the diffusion term at an independent time, over images and draws, in
    (bits/dim)². On the left, each schedule has the network that was trained with it. On the right, all four schedules
    have the network of `linear`; there the mean must be the same, since the bound in continuous time depends on the
    endpoints alone."""
    lines = [
        "| schedule | own network: variance | ratio to learned | one network: diffusion | variance |",
        "|---|---:|---:|---:|---:|",
    ]
    seeds, own, errors = range(results["budget"]["seeds"]), {}, {}
    for name in SCHEDULES:
        rows = [results["variance"][f"{name}-seed{seed}"] for seed in seeds]
        own[name] = sum(row["variance"] for row in rows) / len(rows)
        errors[name] = math.sqrt(sum(row["se"] ** 2 for row in rows)) / len(rows)
    for name in SCHEDULES:
        one, ratio = results["invariance"][name], own[name] / own["learned"]
        mean, alone = f"{one['diffusion']:.4f} ± {one['error']:.4f}", f"{own[name]:.3f} ± {errors[name]:.3f}"
        lines.append(f"| {name} | {alone} | {ratio:.2f} | {mean} | {one['variance']:.3f} ± {one['se']:.3f} |")
    gaps = [row for name, row in results["invariance"].items() if name != "linear"]
    largest = max(abs(row["gap"]) / row["gap_error"] for row in gaps)
    ratios = ", ".join(f"{own[name] / own['learned']:.2f} for {name}" for name in SCHEDULES[:-1])
    claims = [
        f"The bound does not depend on the schedule between its endpoints: {_holds(largest < 3)} here. The largest "
        f"paired difference to `linear` is {largest:.1f} standard errors of the draws.",
        "The learned schedule reduces the variance by an order of magnitude compared with β-linear: "
        f"{_holds(own['beta-linear'] >= 10 * own['learned'])} here. The ratios to its variance are {ratios}.",
    ]
    figure = "![gamma(t) of the four schedules](schedules-gamma.png)"
    return "\n\n".join(["## Variance of the estimate", paragraph(opening), "\n".join(lines), bullets(*claims), figure])


def _times(results: dict[str, Any]) -> str:
    stratified, independent = results["times"]["stratified"], results["times"]["independent"]
    figures = [f"{row['variance']:.5f} ± {row['se']:.5f}" for row in (stratified, independent)]
    text = f"""
    The variance of the mean diffusion term of a training batch of 64, over 400 batches, is {figures[0]} (bits/dim)²
    with stratified times and {figures[1]} with independent times, a ratio of
    {independent["variance"] / stratified["variance"]:.2f}."""
    return "## Stratified times\n\n" + paragraph(text)


def _steps(results: dict[str, Any]) -> str:
    lines = [
        "## Number of steps",
        "",
        "The same weights at every T, with common noise. The difference is to the row above.",
        "",
        "| T | linear: bits/dim | difference | learned: bits/dim | difference |",
        "|---:|---:|---:|---:|---:|",
    ]
    columns = [results["steps"][f"{name}-seed0"] for name in ("linear", "learned")]
    for rows in zip(*columns, strict=True):
        T = "∞" if rows[0]["T"] is None else rows[0]["T"]
        cells = [f"{row['bpd']:.4f} | {_difference(row)}" for row in rows]
        lines.append(f"| {T} | {' | '.join(cells)} |")
    doublings = [row for rows in columns for row in rows[1:-1]]  # the last row is T = infinity
    fails = [row for row in doublings if row["difference"] >= 2 * row["difference_se"]]
    sure = sum(row["difference"] < -2 * row["difference_se"] for row in doublings)
    state = _holds(not fails) if fails or sure == len(doublings) else "**is not contradicted**"
    claim = (
        f"More steps lower the bound (L_2T < L_T): {state} here. {sure} of {len(doublings)} differences are below "
        f"zero by more than two standard errors over the images, {len(fails)} above."
    )
    return "\n\n".join(["\n".join(lines), bullets(claim), "![The bound against T](schedules-steps.png)"])


def _difference(row: dict[str, Any]) -> str:
    return f"{row['difference']:+.4f} ± {row['difference_se']:.4f}" if "difference" in row else ""


def _ddpm(results: dict[str, Any]) -> str:
    text = """
    The same network, trained on L_simple with T = 1000. Its own bounds are the exact sums over all steps, with each of
    the two fixed variances."""
    lines = ["| bound | bits/dim | ± s.e. | recon | prior | diffusion |", "|---|---:|---:|---:|---:|---:|"]
    titles = {
        "fixed_small": "T = 1000, posterior variance", "fixed_large": "T = 1000, variance β_t", "continuous": "T = ∞",
    }  # fmt: skip
    for name, title in titles.items():
        row = results["ddpm"][name]
        cells = [f"{row[key]:.4f}" for key in ("bpd", "se", "recon", "prior", "diffusion")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n\n".join(["## DDPM for comparison", paragraph(text), "\n".join(lines)])


# ------------------------------------------------------------------------------------------------ figures


def _draw_steps(results: dict[str, Any], path: Path) -> None:
    plt = plotting()
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    for name in ("linear", "learned"):
        rows = results["steps"][f"{name}-seed0"]
        finite = [row for row in rows if row["T"] is not None]
        line = axis.errorbar(
            [row["T"] for row in finite], [row["bpd"] for row in finite], [row["se"] for row in finite],
            marker="o", markersize=3.5, capsize=2, label=f"{name} schedule",
        )  # fmt: skip
        axis.axhline(rows[-1]["bpd"], linestyle=":", color=line[0].get_color(), label=f"{name}, T = ∞")
    axis.set(xscale="log", yscale="log", xlabel="number of steps T", ylabel="bits/dim", title="The bound against T")
    axis.set_xscale("log", base=2)
    axis.legend(frameon=False)
    save(figure, path)
    plt.close(figure)


def _draw_gamma(results: dict[str, Any], path: Path) -> None:
    plt = plotting()
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
    plt = plotting()
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
