"""The document of the study of latent steps, written from its numbers alone."""

from pathlib import Path
from typing import Any

from .comparison import critical, difference, mean_and_error, over_seeds, seed_variance
from .documents import bullets, paragraph, plotting, save

COMMAND = "python benchmarks/studies/reproduce.py latent-steps"
ORDER = ("hvae-1", "hvae-2", "hvae-4", "hvae-8", "ddpm-2", "ddpm-10", "ddpm-100", "ddpm-1000", "vdm-inf")
TITLES = {
    "hvae-1": "VAE", "hvae-2": "HVAE, depth 2", "hvae-4": "HVAE, depth 4", "hvae-8": "HVAE, depth 8",
    "ddpm-2": "DDPM, T = 2", "ddpm-10": "DDPM, T = 10", "ddpm-100": "DDPM, T = 100", "ddpm-1000": "DDPM, T = 1000",
    "vdm-inf": "VDM, T = ∞",
}  # fmt: skip


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write ``latent-steps.md`` and its figure."""
    _draw(results, out / "latent-steps.png")
    (out / "latent-steps.md").write_text("\n\n".join([_opening(results), _table(results), _answers(results)]) + "\n")


def summary(results: dict[str, Any], name: str) -> tuple[float, float]:
    """Return the mean of a setting's bits/dim over its seeds, and its standard error over images and seeds."""
    rows, seeds = results["models"], results["budget"]["seeds"]
    return mean_and_error(over_seeds(rows, name, seeds), seed_variance(rows, ORDER, seeds) / seeds)


def _opening(results: dict[str, Any]) -> str:
    budget = results["budget"]
    sizes = sorted(row["parameters"] for row in results["models"].values())
    text = f"""
    Written by `{COMMAND}` from `latent-steps.json`. The models have {sizes[0]:,} to {sizes[-1]:,} parameters. Each is
    trained on its own bound for {budget["steps"]} optimiser steps of 64 images with {budget["seeds"]} seeds, without
    labels and without augmentation. Bits per dimension are on the 297 held-out digits, with {budget["draws"]} draws
    each. The DDPMs learn their variances. All values are bounds on the same likelihood, that of the 17 levels of a
    pixel, so they can be compared."""
    return "# Is a diffusion model a thousand-step VAE?\n\n" + paragraph(text)


def _table(results: dict[str, Any]) -> str:
    lines = [
        "| model | latent steps | bits/dim | ± | on training images | recon | prior | steps between | active units |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    seeds = range(results["budget"]["seeds"])
    for name in ORDER:
        rows = [results["models"][f"{name}-seed{seed}"] for seed in seeds]
        mean, error = summary(results, name)
        keys = ("train_bpd", "recon", "prior", "diffusion")
        terms = [f"{sum(row[key] for row in rows) / len(rows):.4f}" for key in keys]
        active = ", ".join(map(str, rows[0].get("active", [])))
        steps = name.rpartition("-")[2].replace("inf", "∞")
        lines.append(f"| {TITLES[name]} | {steps} | {mean:.4f} | {error:.4f} | {' | '.join(terms)} | {active} |")
    note = paragraph(
        "Active units: of the 16 units of each layer, for the first seed, from z_1 up. A layer without active units "
        "has collapsed to its prior."
    )
    return "\n".join(lines) + f"\n\n{note}\n\n![Bits/dim against the number of latent steps](latent-steps.png)"


def _answers(results: dict[str, Any]) -> str:
    pairs = [("hvae-2", "hvae-1"), ("hvae-4", "hvae-2"), ("hvae-8", "hvae-4"), ("ddpm-10", "ddpm-2"),
             ("ddpm-100", "ddpm-10"), ("ddpm-1000", "ddpm-100"), ("vdm-inf", "ddpm-1000")]  # fmt: skip
    limit = critical(len(ORDER) * (results["budget"]["seeds"] - 1))
    comparisons = []
    for one, other in pairs:
        mean, error = difference(results["models"], ORDER, results["budget"]["seeds"], one, other)
        state = "lower" if mean < -limit * error else "higher" if mean > limit * error else "no significant difference"
        comparisons.append(f"{TITLES[one]} minus {TITLES[other]}: {mean:+.4f} ± {error:.4f} bits/dim, {state}.")
    best = min(ORDER[:4], key=lambda name: summary(results, name)[0])
    mean, error = difference(results["models"], ORDER, results["budget"]["seeds"], "ddpm-1000", best)
    state = (
        "below" if mean < -limit * error else "above" if mean > limit * error else "not significantly different from"
    )
    answers = (
        "Its bound has the same form: both models are chains of Gaussian latents, and both bounds have the same three "
        "terms.",
        f"The bound of the DDPM with T = 1000 is {state} that of the best VAE here, {TITLES[best]}: "
        f"{mean:+.4f} ± {error:.4f} bits/dim.",
    )
    titles = ("## Do more steps lower the bound?", "## Is a diffusion model a thousand-step VAE?")
    return "\n\n".join([titles[0], bullets(*comparisons), titles[1], bullets(*answers)])


def _draw(results: dict[str, Any], path: Path) -> None:
    plt = plotting()
    figure, axis = plt.subplots(figsize=(6.8, 4.2))
    for label, names in (("VAE and HVAE", ORDER[:4]), ("DDPM", ORDER[4:8])):
        points = [(int(name.rpartition("-")[2]), *summary(results, name)) for name in names]
        steps, means, errors = zip(*points, strict=True)
        axis.errorbar(steps, means, errors, marker="o", markersize=4, capsize=3, label=label)
    mean, error = summary(results, "vdm-inf")
    line = axis.axhline(mean, linestyle=":", color="#3a7d44", label="VDM, T = ∞")
    axis.axhspan(mean - error, mean + error, alpha=0.2, color=line.get_color(), linewidth=0)
    axis.set(
        xscale="log", xlabel="latent steps", ylabel="bits/dim, held-out", title="The same bound, more latent steps"
    )
    axis.legend(frameon=False)
    save(figure, path)
    plt.close(figure)
