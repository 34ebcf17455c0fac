"""The document of the study of restoration, written from its numbers alone."""

import math
from pathlib import Path
from typing import Any

from .documents import draw_images, paragraph, plotting, save

COMMAND = "python benchmarks/studies/reproduce.py restoration"
STEPS = 50  # of DDIM
TITLES = {
    "down-2": "down-sampling by 2", "down-4": "down-sampling by 4", "noise-0.5": "additive noise, deviation 0.5",
}  # fmt: skip
METHODS = {
    "degraded": "degraded image",
    "vae": "VAE reconstruction",
    "diffusevae1": "DiffuseVAE's second stage",
    "restoration": "restoration model",
}


def write_report(found: dict[str, Any], out: Path) -> None:
    """Write ``restoration.md`` and its figures, one per degradation; ``found`` are the results by data set."""
    results = found["digits"]
    for name in TITLES:
        _draw(results, name, out / f"restoration-{name}.png")
    (out / "restoration.md").write_text("\n\n".join([*_opening(results), *_tables(results), *_figures()]) + "\n")


def found(results: dict[str, Any], method: str, degradation: str, seed: int) -> dict[str, Any]:
    """Return the figures of a method at a degradation, with the models of a seed."""
    models = results["models"]
    if method in ("degraded", "restoration"):
        return models[f"{degradation}-seed{seed}"]["degraded" if method == "degraded" else degradation]
    return models[f"{method}-seed{seed}"][degradation]


def mean(results: dict[str, Any], method: str, degradation: str, key: str) -> float:
    """Return the mean over the seeds."""
    seeds = results["budget"]["seeds"]
    return sum(found(results, method, degradation, seed)[key] for seed in range(seeds)) / seeds


def summary(results: dict[str, Any], method: str, degradation: str, key: str) -> str:
    """Return the mean over the seeds and its standard error, the mean alone for the degraded images."""
    middle, seeds = mean(results, method, degradation, key), results["budget"]["seeds"]
    if method == "degraded":
        return f"{middle:.1f}"
    squares = sum((found(results, method, degradation, seed)[key] - middle) ** 2 for seed in range(seeds))
    return f"{middle:.1f} ± {math.sqrt(squares / (seeds - 1) / seeds):.1f}"


def _opening(results: dict[str, Any]) -> list[str]:
    budget = results["budget"]
    text = f"""
    Written by `{COMMAND}` from `restoration.json`. The 297 held-out digits are degraded and restored by three models:
    the VAE, which reconstructs the degraded image; the second stage of a DiffuseVAE (formulation 1), which was trained
    on the reconstructions of its VAE alone; and a restoration model, a second stage of the same size that was trained
    on the degraded images. All are trained for {budget["steps"]} steps with {budget["seeds"]} seeds, and sampled by
    DDIM in {STEPS} steps; ± is the standard error over the seeds. Without degradation, the reconstructions of the VAE,
    which the second stage was trained on, have {_undegraded(results, "vae")}; refined by the second stage they have
    {_undegraded(results, "diffusevae1")}."""
    title = "# Super-resolution and denoising of the digits"
    return [title, paragraph(text), paragraph(_short(results))]


def _short(results: dict[str, Any]) -> str:
    """Return the answer in two sentences: which method is best, counted from the means."""
    counts = {}
    for method in ("restoration", "diffusevae1"):
        others = [name for name in METHODS if name != method] if method == "restoration" else ["degraded"]
        for key, sign in (("psnr", 1.0), ("fd", -1.0)):
            counts[method, key] = sum(
                all(sign * (mean(results, method, name, key) - mean(results, other, name, key)) > 0 for other in others)
                for name in TITLES
            )
    trained, other = ([counts[method, key] for key in ("psnr", "fd")] for method in ("restoration", "diffusevae1"))
    return f"""
    In short: of {len(TITLES)} degradations, the restoration model is the best method by PSNR in {trained[0]} and by
    FD-digits in {trained[1]}. DiffuseVAE's second stage improves on the degraded image by PSNR in {other[0]} and by
    FD-digits in {other[1]}."""


def _undegraded(results: dict[str, Any], method: str) -> str:
    rows = [results["models"][f"{method}-seed{seed}"]["none"] for seed in range(results["budget"]["seeds"])]
    psnr, fd = (sum(row[key] for row in rows) / len(rows) for key in ("psnr", "fd"))
    return f"a PSNR of {psnr:.1f} dB and an FD-digits of {fd:.1f}"


def _tables(results: dict[str, Any]) -> list[str]:
    parts = []
    for key, title in (("psnr", "PSNR in dB, higher is better"), ("fd", "FD-digits, lower is better")):
        lines = [f"| {title} | " + " | ".join(METHODS.values()) + " |", "|---|" + "---:|" * len(METHODS)]
        for degradation, name in TITLES.items():
            cells = [summary(results, method, degradation, key) for method in METHODS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    note = """
    A restored digit is one sample of the posterior and not its mean, which would have the higher PSNR. The values of
    FD-digits are of 297 images, so they compare only with each other."""
    parts.append(paragraph(note))
    return parts


def _figures() -> list[str]:
    rows = "Rows: the digits, the degraded images, then the results of the three models, for the first seed."
    return [rows, *(f"![{title}](restoration-{name}.png)" for name, title in TITLES.items())]


def _draw(results: dict[str, Any], degradation: str, path: Path) -> None:
    plt = plotting()
    rows = [results["originals"], *(found(results, method, degradation, 0)["levels"] for method in METHODS)]
    labels = ["digits", *METHODS.values()]
    figure, axes = plt.subplots(len(rows), 1, figsize=(7.2, 0.72 * len(rows) + 0.3))
    for axis, label, levels in zip(axes, labels, rows, strict=True):
        draw_images(axis, levels, label)
    axes[0].set_title(TITLES[degradation])
    save(figure, path, bbox_inches="tight")  # the layout does not count the labels of images
    plt.close(figure)
