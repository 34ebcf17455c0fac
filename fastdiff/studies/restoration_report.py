"""The document of the study of restoration, written from its numbers alone."""

import math
from pathlib import Path
from typing import Any

from .figures import draw_digits, drawing, save
from .prose import paragraph

COMMAND = "fastdiff reproduce restoration"
STEPS = 50  # of DDIM
TITLES = {
    "down-2": "down-sampling by 2", "down-4": "down-sampling by 4", "noise-0.5": "added noise, deviation 0.5",
}  # fmt: skip
WAYS = {
    "degraded": "degraded image",
    "vae": "VAE of it",
    "diffusevae1": "DiffuseVAE's second stage",
    "restorer": "trained for it",
}


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write ``restoration.md`` and its pictures, one per degradation."""
    for name in TITLES:
        _draw(results, name, out / f"restoration-{name}.png")
    (out / "restoration.md").write_text("\n\n".join([_head(results), *_tables(results), _pictures()]) + "\n")


def found(results: dict[str, Any], way: str, degradation: str, seed: int) -> dict[str, Any]:
    """Figures of one way back from one degradation, with the models of one seed."""
    models = results["models"]
    if way in ("degraded", "restorer"):
        return models[f"{degradation}-seed{seed}"]["degraded" if way == "degraded" else degradation]
    return models[f"{way}-seed{seed}"][degradation]


def mean(results: dict[str, Any], way: str, degradation: str, key: str) -> float:
    """Mean over the seeds."""
    seeds = results["budget"]["seeds"]
    return sum(found(results, way, degradation, seed)[key] for seed in range(seeds)) / seeds


def summary(results: dict[str, Any], way: str, degradation: str, key: str) -> str:
    """Mean over the seeds and its standard error, which the degraded images, of no model, are shown without."""
    middle, seeds = mean(results, way, degradation, key), results["budget"]["seeds"]
    if way == "degraded":
        return f"{middle:.1f}"
    squares = sum((found(results, way, degradation, seed)[key] - middle) ** 2 for seed in range(seeds))
    return f"{middle:.1f} ± {math.sqrt(squares / (seeds - 1) / seeds):.1f}"


def _head(results: dict[str, Any]) -> str:
    budget = results["budget"]
    text = f"""
    Written by `{COMMAND}` from `restoration.json`. The 297 held-out digits are degraded and restored: by the VAE, which
    reconstructs the degraded image; by the second stage of a DiffuseVAE (formulation 1) that has seen its own VAE's
    pictures alone; and by a second stage of the same size that was trained on the degraded images. All are trained for
    {budget["steps"]} steps with {budget["seeds"]} seeds, and sampled by DDIM in {STEPS} steps; ± is the standard error
    over the seeds. The VAE's reconstructions of the images themselves, which the second stage knows, are at
    {_own(results, "vae")}; refined, at {_own(results, "diffusevae1")}."""
    title = "# Refining other pictures: super-resolution and denoising"
    return "\n\n".join([title, paragraph(text), paragraph(_short(results))])


def _short(results: dict[str, Any]) -> str:
    """Who comes nearest, counted from the means."""
    counts = {}
    for way in ("restorer", "diffusevae1"):
        others = [other for other in WAYS if other != way] if way == "restorer" else ["degraded"]
        for key, sign in (("psnr", 1.0), ("fd", -1.0)):
            counts[way, key] = sum(
                all(sign * (mean(results, way, name, key) - mean(results, other, name, key)) > 0 for other in others)
                for name in TITLES
            )
    trained, other = ([counts[way, key] for key in ("psnr", "fd")] for way in ("restorer", "diffusevae1"))
    return f"""
    In short: of {len(TITLES)} degradations, the second stage that was trained for one comes nearest of all by PSNR in
    {trained[0]} and by FD-digits in {trained[1]}; the one that was not improves on the degraded image by PSNR in
    {other[0]} and by FD-digits in {other[1]}."""


def _own(results: dict[str, Any], way: str) -> str:
    rows = [results["models"][f"{way}-seed{seed}"]["none"] for seed in range(results["budget"]["seeds"])]
    psnr, fd = (sum(row[key] for row in rows) / len(rows) for key in ("psnr", "fd"))
    return f"{psnr:.1f} dB and FD-digits {fd:.1f}"


def _tables(results: dict[str, Any]) -> list[str]:
    parts = []
    for key, title in (("psnr", "PSNR in dB, higher is nearer"), ("fd", "FD-digits, lower is more like digits")):
        lines = [f"| {title} | " + " | ".join(WAYS.values()) + " |", "|---|" + "---:|" * len(WAYS)]
        for degradation, name in TITLES.items():
            cells = [summary(results, way, degradation, key) for way in WAYS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    note = """
    A restored digit is one sample of what the digit may have been, not their mean, which would have the higher PSNR.
    FD-digits of 297 images compares within this table alone."""
    parts.append(paragraph(note))
    return parts


def _pictures() -> str:
    parts = ["Rows: the digits, degraded, the VAE's, the DiffuseVAE's second stage, the one trained for it."]
    return "\n\n".join([*parts, *(f"![{title}](restoration-{name}.png)" for name, title in TITLES.items())])


def _draw(results: dict[str, Any], degradation: str, path: Path) -> None:
    plt = drawing()
    rows = [results["originals"], *(found(results, way, degradation, 0)["levels"] for way in WAYS)]
    labels = ["digits", *WAYS.values()]
    figure, axes = plt.subplots(len(rows), 1, figsize=(7.2, 0.72 * len(rows) + 0.3))
    for axis, label, levels in zip(axes, labels, rows, strict=True):
        draw_digits(axis, levels, label)
    axes[0].set_title(TITLES[degradation])
    save(figure, path, bbox_inches="tight")  # the layout does not count the labels of images
    plt.close(figure)
