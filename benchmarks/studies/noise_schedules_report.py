"""The document of the study of noise schedules, written from its numbers alone, all data sets side by side."""

import math
from pathlib import Path
from typing import Any

from .comparison import critical, difference, evaluated, freedom, mean_over_seeds, seed_variance, seeds_of, verdict
from .data_sets import DATA_SETS
from .documents import bullets, paragraph
from .noise_schedules_figures import Results, draw_gamma, draw_steps, draw_training

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
CLAIMS = (
    ("learned", "linear", "A learned schedule lowers bits/dim at an equal budget"),
    ("linear", "no-fourier", "Fourier features lower bits/dim (prediction `categorical`)"),
    ("eps", "eps-no-fourier", "Fourier features lower bits/dim (prediction `epsilon`)"),
    ("linear", "independent-times", "Stratified times in training lower bits/dim"),
    ("linear", "eps", "The prediction `categorical` lowers bits/dim compared with `epsilon`"),
)


def write_report(everything: Results, out: Path) -> None:
    """Write ``schedules.md`` and its three figures."""
    draw_steps(everything, out / "schedules-steps.png")
    draw_gamma(everything, out / "schedules-gamma.png")
    draw_training(everything, out / "schedules-training.png")
    sections = [_opening, _models, _variance, _times, _steps]
    if any("ddpm" in results for results in everything.values()):
        sections.append(_ddpm)
    (out / "schedules.md").write_text("\n\n".join(section(everything) for section in sections) + "\n")


def paired(results: dict[str, Any], one: str, other: str) -> tuple[float, float, int]:
    """Return the mean over seeds and images of bits/dim of ``one`` minus ``other``, its standard error, and freedom."""
    return *difference(results["bound"], TITLES, one, other), freedom(results["bound"], TITLES)


def _holds(holds: bool) -> str:
    return "**holds**" if holds else "**does not hold**"


def _each(texts: dict[str, str]) -> str:
    """Join what is said of each data set into one sentence."""
    return "; ".join(f"{text} on the {data}" for data, text in texts.items())


# ------------------------------------------------------------------------------------------------ opening, models


def _opening(everything: Results) -> str:
    sources = " and ".join(f"`{DATA_SETS[data].file('schedules')}.json`" for data in everything)
    text = f"""
    Written by `{COMMAND}` (with `--data letters` for the letters) from the numbers in {sources}.
    The models of a data set share a network; gamma runs from -8 to 5. Bits per dimension are
    on the held-out images, with the same draws for all models of a data set. The models are small and were trained for
    minutes, so the numbers serve to compare them with each other."""
    title = "# Variational diffusion: schedules, Fourier features, times, number of steps"
    return "\n\n".join([title, paragraph(text), bullets(*(_scope(*each) for each in everything.items()))])


def _scope(data: str, results: dict[str, Any]) -> str:
    budget, sizes, rows = results["budget"], sorted(results["parameters"].values()), results["bound"]
    first = rows["linear-seed0"]
    text = f"""
    The {data}: {sizes[0]:,} to {sizes[-1]:,} parameters, {budget["steps"]} optimiser steps of
    {DATA_SETS[data].batch_size} images, {budget["seeds"]} seeds, {evaluated(first)}, {budget["draws"]} draws each."""
    if "group_sizes" in first:
        text += f"""
        The images of a family are not independent, so errors are over families: for the first seed of `linear`
        {first["se_groups"]:.4f} bits/dim over families, and {first["se"]:.4f} over images."""
    single = [f"`{name}`" for name in TITLES if len(seeds_of(rows, name)) == 1]
    missing = [f"`{name}`" for name in TITLES if not seeds_of(rows, name)]
    text += f" One seed alone: {', '.join(single)}." if single else ""
    return text + (f" Not trained: {', '.join(missing)}." if missing else "")


def _models(everything: Results) -> str:
    lines = ["## Bits per dimension", ""]
    lines.append("| model |" + "".join(f" {data}: bits/dim | minus linear | ± |" for data in everything))
    lines.append("|---|" + "---:|---:|---:|" * len(everything))
    for name, title in TITLES.items():
        cells = [cell for results in everything.values() for cell in _cells(results, name)]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    claims = []
    for one, other, claim in CLAIMS:
        rows = {
            data: verdict(*paired(results, one, other))
            for data, results in everything.items()
            if seeds_of(results["bound"], one) and seeds_of(results["bound"], other)
        }
        if rows:
            claims.append(f"{claim}: {_each(rows)}.")
    figure = "![The terms of the bound over training](schedules-training.png)"
    return "\n\n".join(["\n".join(lines), bullets(*claims), paragraph(_note(everything)), figure])


def _cells(results: dict[str, Any], name: str) -> list[str]:
    """Return the three cells of a setting in the table of bits/dim; empty ones where it was not trained."""
    if not seeds_of(results["bound"], name):
        return ["", "", ""]
    mean = f"{mean_over_seeds(results['bound'], name):.4f}"
    if name == "linear":
        return [mean, "", ""]
    gap, error, _ = paired(results, name, "linear")
    return [mean, f"{gap:+.4f}", f"{error:.4f}"]


def _note(everything: Results) -> str:
    deviations, limits, counts, single = {}, {}, {}, False
    for data, results in everything.items():
        degrees = freedom(results["bound"], TITLES)
        deviations[data] = f"{math.sqrt(seed_variance(results['bound'], TITLES)):.4f} bits/dim"
        limits[data] = f"{critical(degrees):.1f} standard errors ({degrees} degrees of freedom)"
        seeds = {name: len(seeds_of(results["bound"], name)) for name in TITLES}
        counts[data] = str(sum(bool(seeds[one] and seeds[other]) for one, other, _ in CLAIMS))
        single = single or 1 in seeds.values()
    alone = "A setting of one seed is taken to vary between seeds as the others do." if single else ""
    return f"""
    The models predict `categorical` where the table does not say otherwise. The standard deviation between seeds,
    pooled over the settings, is {_each(deviations)}. {alone} The errors of the differences include it beside
    the error over the images, or their families. A claim holds if the difference exceeds the 95 % point of Student's t:
    {_each(limits)}. The number of claims is {_each(counts)}."""


# ------------------------------------------------------------------------------------------------ variance, times


def own_variances(results: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the variance of one draw with the network trained with each schedule, and its error, over the seeds."""
    found = {}
    for name in SCHEDULES:
        rows = [results["variance"][f"{name}-seed{seed}"] for seed in seeds_of(results["variance"], name)]
        if rows:
            error = math.sqrt(sum(row["se"] ** 2 for row in rows)) / len(rows)
            found[name] = sum(row["variance"] for row in rows) / len(rows), error
    return found


def _variance(everything: Results) -> str:
    opening = """
    The table shows the variance of one draw of the diffusion term at an independent time, over images and draws, in
    (bits/dim)². On the left, each schedule has the network that was trained with it. On the right, all four schedules
    have the network of `linear`; there the mean must be the same, since the bound in continuous time depends on the
    endpoints alone. The errors of the variances are over the images, not over the seeds."""
    lines = [
        "| data | schedule | own network: variance | ratio to learned | one network: diffusion | variance | ratio |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    same, order = {}, {}
    for data, results in everything.items():
        own, one = own_variances(results), results["invariance"]
        for name in SCHEDULES:
            row, cells = one[name], " | "
            if name in own:
                cells = f"{_rounded(*own[name], 3)} | {own[name][0] / own['learned'][0]:.2f}"
            mean = f"{row['diffusion']:.4f} ± {row['error']:.4f} | {_rounded(row['variance'], row['se'], 3)}"
            lines.append(f"| {data} | {name} | {cells} | {mean} | {row['variance'] / one['learned']['variance']:.2f} |")
        largest = max(abs(row["gap"]) / row["gap_error"] for name, row in one.items() if name != "linear")
        same[data] = f"{_holds(largest < 3)} (largest paired difference to `linear`: {largest:.1f} standard errors)"
        of_one = {name: (row["variance"], row["se"]) for name, row in one.items()}
        found, which = (own, "own networks") if "beta-linear" in own else (of_one, "one network")
        order[data] = _order_of_magnitude(found["beta-linear"], found["learned"], which)
    claims = [
        f"The bound does not depend on the schedule between its endpoints: {_each(same)}.",
        f"The learned schedule reduces the variance by an order of magnitude compared with β-linear: {_each(order)}.",
    ]
    figure = "![gamma(t) of the four schedules](schedules-gamma.png)"
    return "\n\n".join(["## Variance of the estimate", paragraph(opening), "\n".join(lines), bullets(*claims), figure])


def _order_of_magnitude(one: tuple[float, float], other: tuple[float, float], which: str) -> str:
    """Return whether a variance is at least ten times another by two standard errors, each with its error."""
    ratio = one[0] / other[0]
    error = ratio * math.hypot(one[1] / one[0], other[1] / other[0])
    state = "**not decided**" if abs(ratio - 10) < 2 * error else _holds(ratio >= 10)
    return f"{state} (ratio {ratio:.1f} ± {error:.1f}, {which})"


def _rounded(value: float, error: float, places: int) -> str:
    """Return a value ± its error with so many decimal places, or with two digits of the error where that is more."""
    if error > 0.0:
        places = max(places, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


def _times(everything: Results) -> str:
    text = """
    The variance of the mean diffusion term of 64 random training images, in (bits/dim)², with their times spread
    evenly and with independent times, for the network of `linear`:"""
    lines = ["| data | stratified | independent | ratio |", "|---|---:|---:|---:|"]
    for data, results in everything.items():
        rows = [results["times"][name] for name in ("stratified", "independent")]
        cells = " | ".join(_rounded(row["variance"], row["se"], 5) for row in rows)
        lines.append(f"| {data} | {cells} | {rows[1]['variance'] / rows[0]['variance']:.2f} |")
    return "\n\n".join(["## Stratified times", paragraph(text), "\n".join(lines)])


# ------------------------------------------------------------------------------------------------ steps, DDPM


def _steps(everything: Results) -> str:
    columns = {
        f"{data}, {name.rpartition('-seed')[0]}": rows
        for data, results in everything.items()
        for name, rows in results["steps"].items()
    }
    text = "The same weights at every T, with common noise. The difference is to the row above."
    lines = ["## Number of steps", "", text, ""]
    lines.append("| T |" + "".join(f" {title} | difference |" for title in columns))
    lines.append("|---:|" + "---:|---:|" * len(columns))
    for rows in zip(*columns.values(), strict=True):
        T = "∞" if rows[0]["T"] is None else rows[0]["T"]
        cells = [f"{row['bpd']:.4f} | {_difference(row)}" for row in rows]
        lines.append(f"| {T} | {' | '.join(cells)} |")
    states = {data: _more_steps(results) for data, results in everything.items()}
    claim = f"More steps lower the bound (L_2T < L_T): {_each(states)}."
    return "\n\n".join(["\n".join(lines), bullets(claim), "![The bound against T](schedules-steps.png)"])


def _more_steps(results: dict[str, Any]) -> str:
    doublings = [row for rows in results["steps"].values() for row in rows[1:-1]]  # the last row is T = infinity
    fails = [row for row in doublings if row["difference"] >= 2 * row["difference_se"]]
    sure = sum(row["difference"] < -2 * row["difference_se"] for row in doublings)
    state = _holds(not fails) if fails or sure == len(doublings) else "**is not contradicted**"
    return (
        f"{state} ({sure} of {len(doublings)} differences are below zero by more than two standard errors, "
        f"{len(fails)} above)"
    )


def _difference(row: dict[str, Any]) -> str:
    return f"{row['difference']:+.4f} ± {row['difference_se']:.4f}" if "difference" in row else ""


def _ddpm(everything: Results) -> str:
    text = """
    The same network, trained on L_simple with T = 1000. Its own bounds are the exact sums over all steps, with each of
    the two fixed variances. [latent-steps.md](latent-steps.md) compares DDPMs that are trained on the bound."""
    lines = ["| data | bound | bits/dim | ± s.e. | recon | prior | diffusion |", "|---|---|---:|---:|---:|---:|---:|"]
    titles = {
        "fixed_small": "T = 1000, posterior variance", "fixed_large": "T = 1000, variance β_t", "continuous": "T = ∞",
    }  # fmt: skip
    for data, results in everything.items():
        for name, row in results.get("ddpm", {}).items():
            cells = [f"{row[key]:.4f}" for key in ("bpd", "se", "recon", "prior", "diffusion")]
            lines.append(f"| {data} | {titles[name]} | {' | '.join(cells)} |")
    return "\n\n".join(["## DDPM for comparison", paragraph(text), "\n".join(lines)])
