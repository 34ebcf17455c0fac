"""The document of the study of DiffuseVAE's speed-up, written from its numbers alone."""

import math
from pathlib import Path
from typing import Any

from .comparison import critical
from .documents import draw_digits, paragraph, plotting, save

COMMAND = "python benchmarks/studies/reproduce.py speed-up"
MODELS = {"ddpm": "DDPM", "diffusevae1": "DiffuseVAE 1", "diffusevae2": "DiffuseVAE 2"}
STEPS = (5, 10, 25, 50, 100)
BETAS = {10: (1e-6, 0.8), 25: (1e-6, 0.6), 50: (1e-6, 0.3)}  # DiffuseVAE's table 3
FEW = (5, 10, 25, 50)
COMPONENTS = 10  # of the mixture; among 1, 2, 5, 10, 20 and 50 the best on the held-out latents of the first VAE
SAMPLERS = {
    "ddim": ("DDIM", STEPS),
    "ancestral": ("ancestral", STEPS),
    "betas": ("ancestral, few betas", tuple(BETAS)),
    "mixture": ("DDIM, z from a mixture", FEW),
}


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write ``speed-up.md`` and its figures."""
    _draw(results, out / "speed-up.png")
    _draw_samples(results, out / "speed-up-samples.png")
    _draw_strips(results, out / "speed-up-strips.png")
    parts = [_opening(results), _short(results), _table(results), _answers(results), _why(results), _bounds(results)]
    parts.append(_interpolations())
    (out / "speed-up.md").write_text("\n\n".join(parts) + "\n")


# ------------------------------------------------------------------------------------------------ statistics


def distances(results: dict[str, Any], name: str, setting: str) -> list[float]:
    """Return FD-digits of every seed of a model; a DDPM has no z, so a mixture does not change its samples."""
    setting = setting.replace("mixture", "ddim") if name == "ddpm" else setting
    return [results["models"][f"{name}-seed{s}"]["distances"][setting][0] for s in range(results["budget"]["seeds"])]


def log_variance(results: dict[str, Any], setting: str) -> float:
    """Return the variance of log FD-digits between seeds, pooled over the models, which have few seeds each."""
    total = 0.0
    for name in MODELS:
        logs = [math.log(value) for value in distances(results, name, setting)]
        mean = sum(logs) / len(logs)
        total += sum((value - mean) ** 2 for value in logs)
    return total / (len(MODELS) * (results["budget"]["seeds"] - 1))


def summary(results: dict[str, Any], name: str, setting: str) -> tuple[float, float]:
    """Return the mean of a model's FD-digits over its seeds, and its standard error (of training and of sampling)."""
    values = distances(results, name, setting)
    mean = sum(values) / len(values)
    return mean, mean * math.sqrt(log_variance(results, setting) / len(values))


def compare(results: dict[str, Any], one: str, other: str, setting: str) -> tuple[float, str]:
    """Return the ratio of FD-digits of ``one`` to ``other``, and whether it is "lower" or "higher" than 1, or "equal".

    The ratio is that of geometric means over the seeds; "equal" means not significantly different from 1. Two models of
    one seed share noise, and two DiffuseVAEs a VAE; the error ignores this, so it is too large rather than too small.
    """
    seeds = results["budget"]["seeds"]
    pairs = zip(distances(results, one, setting), distances(results, other, setting), strict=True)
    logs = [math.log(a / b) for a, b in pairs]
    mean, error = sum(logs) / seeds, math.sqrt(2.0 * log_variance(results, setting) / seeds)
    limit = critical(len(MODELS) * (seeds - 1)) * error
    return math.exp(mean), "lower" if mean < -limit else "higher" if mean > limit else "equal"


def _vaes(results: dict[str, Any]) -> tuple[float, float]:
    """Return the mean FD-digits of the VAEs' images, with z from the prior and with z from the mixture."""
    rows = [row["distances"] for name, row in results["models"].items() if name.startswith("vae")]
    prior, mixture = (sum(row[key][0] for row in rows) / len(rows) for key in ("vae", "vae-mixture"))
    return prior, mixture


# ------------------------------------------------------------------------------------------------ text and tables


def _opening(results: dict[str, Any]) -> str:
    budget = results["budget"]
    sizes = sorted(row["parameters"] for name, row in results["models"].items() if not name.startswith("vae"))
    text = f"""
    Written by `{COMMAND}` from `speed-up.json`. A DDPM and DiffuseVAEs of both formulations, with {sizes[0]:,} to
    {sizes[-1]:,} parameters (both stages of a DiffuseVAE together), are trained for {budget["steps"]} optimiser steps
    of 64 digits with {budget["seeds"]} seeds, on L_simple, at all noise levels. The VAE of the first stage is trained
    first, for as many steps. FD-digits compares {results["images"]} samples with the training digits; lower is better.
    ± is the standard error over the seeds (of training and of sampling), with its relative size pooled over the
    three models."""
    return "# Does the image of a VAE save sampling steps?\n\n" + paragraph(text)


def _short(results: dict[str, Any]) -> str:
    """Return the answer in a sentence: where DiffuseVAE 1 by DDIM has a lower FD-digits than the DDPM."""
    words = {"lower": "lower", "higher": "higher", "equal": "not significantly different"}
    parts = []
    for sampler, z in (("ddim", "the VAE's prior"), ("mixture", "a mixture")):
        steps: dict[str, list[str]] = {}
        for n in SAMPLERS[sampler][1]:
            steps.setdefault(compare(results, "diffusevae1", "ddpm", f"{sampler}-{n}")[1], []).append(str(n))
        found = [f"{words[verdict]} at {', '.join(cases)} steps" for verdict, cases in steps.items()]
        parts.append(f"with z from {z} its FD-digits is {' and '.join(found)}")
    return paragraph(f"In short, DiffuseVAE 1 compared with the DDPM, both sampled by DDIM: {'; '.join(parts)}.")


def _table(results: dict[str, Any]) -> str:
    parts = []
    for sampler, (title, steps) in SAMPLERS.items():
        lines = [
            f"| {title} | " + " | ".join(f"{n} steps" for n in steps) + " |",
            "|---|" + "---:|" * len(steps),
        ]
        for name, label in MODELS.items():
            cells = ["{:.1f} ± {:.1f}".format(*summary(results, name, f"{sampler}-{n}")) for n in steps]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    betas = ", ".join(f"{first:g} to {last:g} at {n}" for n, (first, last) in BETAS.items())
    prior, mixture = _vaes(results)
    size = COMPONENTS * (1 + 16 + 16 * 17 // 2) - 1
    notes = f"""
    Few betas: evenly spaced betas from {betas} steps (DiffuseVAE's table 3). The other samplers take steps evenly
    spaced in time. Ancestral sampling uses the posterior variance. The mixture has {COMPONENTS} components ({size:,}
    parameters, which are not counted above) and is fitted to the latents of the training images (`fastdiff mixture`).
    FD-digits of the VAEs' images is {prior:.1f} with z from the prior and {mixture:.1f} with z from the mixture."""
    parts.append(paragraph(notes))
    parts.append("![FD-digits against the number of steps](speed-up.png)")
    caption = """
    Samples of the first seed by DDIM. Image i has the same noise in all rows, and the same z in both DiffuseVAEs."""
    parts.append("![Samples of DDPM, DiffuseVAE 1 and DiffuseVAE 2 by DDIM](speed-up-samples.png)")
    parts.append(paragraph(caption))
    return "\n\n".join(parts)


def _answers(results: dict[str, Any]) -> str:
    opening = """
    Ratios of FD-digits, geometric means over the seeds. A ratio is bold where it differs significantly from 1: at 95 %
    of Student's t, unpaired. Of 20 ratios equal to 1 about one would be bold by chance."""
    parts = ["## The claims", paragraph(opening)]
    for one, other in (("diffusevae1", "ddpm"), ("diffusevae2", "ddpm"), ("diffusevae2", "diffusevae1")):
        counts = {"lower": 0, "higher": 0, "equal": 0}
        lines = [
            f"| {MODELS[one]} / {MODELS[other]} | " + " | ".join(f"{n} steps" for n in STEPS) + " |",
            "|---|" + "---:|" * len(STEPS),
        ]
        for sampler, (title, steps) in SAMPLERS.items():
            cells = dict.fromkeys(STEPS, "")
            for n in steps:
                ratio, verdict = compare(results, one, other, f"{sampler}-{n}")
                counts[verdict] += 1
                cells[n] = f"{ratio:.2f}" if verdict == "equal" else f"**{ratio:.2f}**"
            lines.append(f"| {title} | {' | '.join(cells.values())} |")
        found = f"{counts['lower']} lower, {counts['higher']} higher, {counts['equal']} not significantly different"
        parts += ["\n".join(lines), f"{MODELS[one]} compared with {MODELS[other]}: {found}."]
    return "\n\n".join(parts)


def _why(results: dict[str, Any]) -> str:
    """Return an explanation that fits the numbers, for either outcome."""
    prior, mixture = _vaes(results)
    from_prior = summary(results, "diffusevae1", f"ddim-{STEPS[-1]}")[0]
    from_mixture = summary(results, "diffusevae1", f"mixture-{FEW[-1]}")[0]
    ratio, _ = compare(results, "diffusevae1", "ddpm", f"mixture-{FEW[0]}")
    parts = [
        "The second stage changes the details of an image and not which digit it shows.",
        f"FD-digits of the VAEs' images is {prior:.1f} with z from the prior",
        f"and {mixture:.1f} with z from the mixture.",
        f"Refined by DiffuseVAE 1 it is {from_prior:.1f} (DDIM, {STEPS[-1]} steps)",
        f"and {from_mixture:.1f} ({FEW[-1]} steps).",
        "So z limits the samples of a DiffuseVAE at any number of steps: the prior draws z that the encoder does not "
        "give, and further steps do not correct the images that the VAE decodes from them."
        if from_prior > 2.0 * from_mixture
        else "The mixture changes this little, so it is not z from the prior that limits a DiffuseVAE here.",
        f"At {FEW[0]} steps the FD-digits of DiffuseVAE 1 with the mixture is {ratio:.2f} times that of the DDPM:",
        "the image of the VAE saves sampling steps."
        if ratio < 1.0
        else "the image of the VAE saves no sampling steps.",
    ]
    if mixture <= from_mixture:
        parts.append(
            "With the mixture, FD-digits of the VAE's images is not higher than that of the refined ones: measured by "
            "FD-digits, the second stage does not improve the samples here."
        )
    return "## Why\n\n" + paragraph(" ".join(parts))


def _bounds(results: dict[str, Any]) -> str:
    lines = ["## Bits per dimension", "", "| model | parameters | bits/dim of each seed |", "|---|---:|---|"]
    for name, label in {"vae": "VAE (the first stage)", **MODELS}.items():
        rows = [results["models"][f"{name}-seed{seed}"] for seed in range(results["budget"]["seeds"])]
        found = ", ".join("{bpd:.3f}".format(**row) for row in rows)
        lines.append(f"| {label} | {rows[0]['parameters']:,} | {found} |")
    note = """
    The VAE is trained on its bound, the others on L_simple, whose weights are not those of the bound. The bound of a
    DiffuseVAE includes the KL of its latent, which the bound of the DDPM does not have."""
    return "\n".join(lines) + "\n\n" + paragraph(note)


def _interpolations() -> str:
    text = """
    Interpolations of DiffuseVAE 2, first seed, by DDIM in 50 steps (`fastdiff interpolate`): along a line between two
    z, along a line between the mean z of two classes, and along an arc between two x_T, with everything else fixed. z
    determines the digit."""
    return "## Two latents\n\n" + paragraph(text) + "\n\n![Interpolations in z and in x_T](speed-up-strips.png)"


# ------------------------------------------------------------------------------------------------ figures


def _draw(results: dict[str, Any], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(1, len(SAMPLERS), figsize=(12.5, 3.7), sharey=True)
    for axis, (sampler, (title, steps)) in zip(axes, SAMPLERS.items(), strict=True):
        for name, label in MODELS.items():
            points = [summary(results, name, f"{sampler}-{n}") for n in steps]
            means, errors = zip(*points, strict=True)
            style = "--" if name == "diffusevae2" else "-"  # it may coincide with that of formulation 1
            axis.errorbar(steps, means, errors, linestyle=style, marker="o", markersize=4, capsize=3, label=label)
        axis.set(xscale="log", yscale="log", xlabel="steps", title=title)
        axis.set_xticks(steps, [str(n) for n in steps])
        axis.minorticks_off()
    axes[0].set(ylabel="FD-digits")
    axes[0].set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes[0].minorticks_off()
    axes[0].legend(frameon=False)
    save(figure, path)
    plt.close(figure)


def _draw_samples(results: dict[str, Any], path: Path) -> None:
    samples = results["samples"]
    steps = sorted({int(key.rpartition("-")[2]) for key in samples})
    _draw_rows([(f"{label}, {n} steps", samples[f"{name}-{n}"]) for n in steps for name, label in MODELS.items()], path)


def _draw_strips(results: dict[str, Any], path: Path) -> None:
    titles = {"latent": "z to z", "class": "class to class", "noise": "x_T to x_T"}
    _draw_rows([(title, row) for vary, title in titles.items() for row in results["strips"][vary]], path)


def _draw_rows(rows: list[tuple[str, list[list[int]]]], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(len(rows), 1, figsize=(8.4, 0.5 * len(rows)))
    for axis, (label, levels) in zip(axes, rows, strict=True):
        draw_digits(axis, levels, label)
    save(figure, path, bbox_inches="tight")  # the layout does not count the labels of images
    plt.close(figure)
