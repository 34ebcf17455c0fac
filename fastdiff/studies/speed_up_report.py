"""The document of the study of DiffuseVAE's speed-up, written from its numbers alone."""

import math
from pathlib import Path
from typing import Any

from .figures import draw_digits, drawing, save
from .prose import paragraph
from .statistics import critical

COMMAND = "fastdiff reproduce speed-up"
MODELS = {"ddpm": "DDPM", "diffusevae1": "DiffuseVAE 1", "diffusevae2": "DiffuseVAE 2"}
STEPS = (5, 10, 25, 50, 100)
BETAS = {10: (1e-6, 0.8), 25: (1e-6, 0.6), 50: (1e-6, 0.3)}  # DiffuseVAE's table 3
FEW = (5, 10, 25, 50)
COMPONENTS = 10  # of the mixture; of 1, 2, 5, 10, 20 and 50 the best on the held-out latents of the first VAE
SAMPLERS = {
    "ddim": ("DDIM", STEPS),
    "ancestral": ("ancestral", STEPS),
    "betas": ("ancestral, few betas", tuple(BETAS)),
    "mixture": ("DDIM, z from a mixture", FEW),
}


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write ``speed-up.md`` and its pictures."""
    _draw(results, out / "speed-up.png")
    _draw_samples(results, out / "speed-up-samples.png")
    _draw_strips(results, out / "speed-up-strips.png")
    parts = [_head(results), _short(results), _table(results), _answers(results), _why(results), _bounds(results)]
    parts.append(_controls())
    (out / "speed-up.md").write_text("\n\n".join(parts) + "\n")


def distances(results: dict[str, Any], name: str, walk: str) -> list[float]:
    """FD-digits of every seed of a model; a DDPM has no z, and is the same with a mixture."""
    walk = walk.replace("mixture", "ddim") if name == "ddpm" else walk
    return [results["models"][f"{name}-seed{s}"]["distances"][walk][0] for s in range(results["budget"]["seeds"])]


def log_variance(results: dict[str, Any], walk: str) -> float:
    """Variance of log FD-digits between seeds, pooled over the models: a few seeds of one would not tell it."""
    total = 0.0
    for name in MODELS:
        logs = [math.log(value) for value in distances(results, name, walk)]
        mean = sum(logs) / len(logs)
        total += sum((value - mean) ** 2 for value in logs)
    return total / (len(MODELS) * (results["budget"]["seeds"] - 1))


def summary(results: dict[str, Any], name: str, walk: str) -> tuple[float, float]:
    """Mean of a model's FD-digits over its seeds, and its standard error (of training and of sampling)."""
    values = distances(results, name, walk)
    mean = sum(values) / len(values)
    return mean, mean * math.sqrt(log_variance(results, walk) / len(values))


def compare(results: dict[str, Any], one: str, other: str, walk: str) -> tuple[float, str]:
    """Ratio of FD-digits of ``one`` to ``other`` (geometric means over seeds), and whether it is told from 1.

    Two models of one seed share noise, and the DiffuseVAEs a VAE; to ignore that makes the error too large, not too
    small.
    """
    seeds = results["budget"]["seeds"]
    logs = [
        math.log(a / b) for a, b in zip(distances(results, one, walk), distances(results, other, walk), strict=True)
    ]
    mean, error = sum(logs) / seeds, math.sqrt(2.0 * log_variance(results, walk) / seeds)
    limit = critical(len(MODELS) * (seeds - 1)) * error
    return math.exp(mean), "lower" if mean < -limit else "higher" if mean > limit else "not told apart"


def _head(results: dict[str, Any]) -> str:
    budget = results["budget"]
    sizes = sorted(row["parameters"] for name, row in results["models"].items() if not name.startswith("vae"))
    text = f"""
    Written by `{COMMAND}` from `speed-up.json`. A DDPM and DiffuseVAEs of both formulations, {sizes[0]:,} to
    {sizes[-1]:,} parameters in all (a DiffuseVAE's two stages together), each trained for {budget["steps"]} optimiser
    steps of 64 digits with {budget["seeds"]} seeds, on L_simple, at all noise levels; the VAE beneath has as many steps
    of its own. FD-digits of {results["images"]} samples against the training digits, the smaller the better; ± is the
    standard error over the seeds (of training and of sampling), its relative size pooled over the three models."""
    return "# Does a VAE's picture save steps?\n\n" + paragraph(text)


def _short(results: dict[str, Any]) -> str:
    """The answer in a sentence: where DiffuseVAE 1 by DDIM is nearer to the digits than the DDPM, and where farther."""
    words = {"lower": "nearer to the digits", "higher": "farther from them", "not told apart": "not told apart"}
    said = []
    for sampler, z in (("ddim", "the VAE's prior"), ("mixture", "a mixture")):
        steps: dict[str, list[str]] = {}
        for n in SAMPLERS[sampler][1]:
            steps.setdefault(compare(results, "diffusevae1", "ddpm", f"{sampler}-{n}")[1], []).append(str(n))
        found = [f"{words[verdict]} at {', '.join(cases)} steps" for verdict, cases in steps.items()]
        said.append(f"with z from {z} it is {' and '.join(found)}")
    return paragraph(f"In short, DiffuseVAE 1 against the DDPM, both by DDIM: {'; '.join(said)}.")


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
    prior, mixture = _own(results)
    size = COMPONENTS * (1 + 16 + 16 * 17 // 2) - 1
    notes = f"""
    Few betas: evenly spaced from {betas} steps (DiffuseVAE's table 3). The other samplers take steps even in time;
    ancestral steps have the posterior's variance. The mixture has {COMPONENTS} components ({size:,} numbers, not
    counted above), fitted to the latents of the training images (`fastdiff mixture`). The VAEs' own pictures are at
    {prior:.1f} with z from their prior and at {mixture:.1f} with the mixture's."""
    parts.append(paragraph(notes))
    parts.append("![FD-digits against the number of steps](speed-up.png)")
    parts.append(
        "![Samples of DDPM, DiffuseVAE 1 and DiffuseVAE 2 by DDIM](speed-up-samples.png)\n\n"
        "Samples of the first seed by DDIM: image i has one noise in all rows, and one z with both DiffuseVAEs."
    )
    return "\n\n".join(parts)


def _answers(results: dict[str, Any]) -> str:
    parts = [
        "## The claims",
        paragraph(
            "Ratios of FD-digits, geometric means over the seeds; bold where 95 % of Student's t, unpaired, tells them "
            "from 1: of 20 ratios that were 1 about one would be bold by chance."
        ),
    ]
    for one, other in (("diffusevae1", "ddpm"), ("diffusevae2", "ddpm"), ("diffusevae2", "diffusevae1")):
        counts = {"lower": 0, "higher": 0, "not told apart": 0}
        lines = [
            f"| {MODELS[one]} against {MODELS[other]} | " + " | ".join(f"{n} steps" for n in STEPS) + " |",
            "|---|" + "---:|" * len(STEPS),
        ]
        for sampler, (title, steps) in SAMPLERS.items():
            cells = dict.fromkeys(STEPS, "")
            for n in steps:
                ratio, verdict = compare(results, one, other, f"{sampler}-{n}")
                counts[verdict] += 1
                cells[n] = f"{ratio:.2f}" if verdict == "not told apart" else f"**{ratio:.2f}**"
            lines.append(f"| {title} | {' | '.join(cells.values())} |")
        found = f"{counts['lower']} lower, {counts['higher']} higher, {counts['not told apart']} not told apart"
        parts += ["\n".join(lines), f"{MODELS[one]} against {MODELS[other]}: {found}."]
    return "\n\n".join(parts)


def _own(results: dict[str, Any]) -> tuple[float, float]:
    """Mean FD-digits of the VAEs' own pictures, with z from the prior and from the mixture."""
    own = [row["distances"] for name, row in results["models"].items() if name.startswith("vae")]
    prior, mixture = (sum(row[key][0] for row in own) / len(own) for key in ("vae", "vae-mixture"))
    return prior, mixture


def _why(results: dict[str, Any]) -> str:
    """What the numbers say of the reason, for either outcome."""
    prior, mixture = _own(results)
    refined = summary(results, "diffusevae1", f"ddim-{STEPS[-1]}")[0]
    better = summary(results, "diffusevae1", f"mixture-{FEW[-1]}")[0]
    one, _ = compare(results, "diffusevae1", "ddpm", f"mixture-{FEW[0]}")
    said = [
        "The second stage changes the details of a picture, not what it shows.",
        f"The VAEs' pictures are at {prior:.1f} with z from the prior and at {mixture:.1f} with z from the mixture;",
        f"refined by DiffuseVAE 1 they are at {refined:.1f} (DDIM, {STEPS[-1]} steps)",
        f"and {better:.1f} ({FEW[-1]} steps).",
        "So it is the prior's z that keeps a DiffuseVAE from the digits however many steps it takes: it draws z that "
        "the encoder does not give, and no step mends what the VAE makes of them."
        if refined > 2.0 * better
        else "The mixture changes that little: the prior's z are not what limits a DiffuseVAE here.",
        f"At {FEW[0]} steps DiffuseVAE 1 with the mixture has {one:.2f} times the DDPM's distance:",
        "what the picture knows need not be drawn by steps." if one < 1.0 else "the picture saves no steps.",
    ]
    if mixture <= better:
        said.append(
            "With the mixture the VAE's own pictures are no farther from the digits than the refined ones: by "
            "FD-digits the second stage adds nothing to the samples here."
        )
    return "## Why\n\n" + paragraph(" ".join(said))


def _bounds(results: dict[str, Any]) -> str:
    lines = ["## Bits per dimension", "", "| model | parameters | bits/dim, each seed |", "|---|---:|---|"]
    for name, label in {"vae": "VAE (the first stage)", **MODELS}.items():
        rows = [results["models"][f"{name}-seed{seed}"] for seed in range(results["budget"]["seeds"])]
        found = ", ".join("{bpd:.3f}".format(**row) for row in rows)
        lines.append(f"| {label} | {rows[0]['parameters']:,} | {found} |")
    note = """
    The VAE is trained on its bound, the others on L_simple, whose weights are not the bound's. A DiffuseVAE's bound
    holds the KL of its latent, which the DDPM need not pay."""
    return "\n".join(lines) + "\n\n" + paragraph(note)


def _controls() -> str:
    text = """
    Walks of DiffuseVAE 2, first seed, by DDIM in 50 steps (`fastdiff interpolate`): along a line between two z, between
    the mean z of two classes, and on an arc between two x_T, everything else held. The digit is in z."""
    return "## Two latents\n\n" + paragraph(text) + "\n\n![Walks through z and x_T](speed-up-strips.png)"


def _draw(results: dict[str, Any], path: Path) -> None:
    plt = drawing()
    figure, axes = plt.subplots(1, len(SAMPLERS), figsize=(12.5, 3.7), sharey=True)
    for axis, (sampler, (title, steps)) in zip(axes, SAMPLERS.items(), strict=True):
        for name, label in MODELS.items():
            points = [summary(results, name, f"{sampler}-{n}") for n in steps]
            means, errors = zip(*points, strict=True)
            style = "--" if name == "diffusevae2" else "-"  # which may lie on that of formulation 1
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
    pictures = results["pictures"]
    steps = sorted({int(key.rpartition("-")[2]) for key in pictures})
    _draw_rows(
        [(f"{label}, {n} steps", pictures[f"{name}-{n}"]) for n in steps for name, label in MODELS.items()], path
    )


def _draw_strips(results: dict[str, Any], path: Path) -> None:
    titles = {"latent": "z to z", "class": "class to class", "noise": "x_T to x_T"}
    _draw_rows([(title, walk) for vary, title in titles.items() for walk in results["strips"][vary]], path)


def _draw_rows(rows: list[tuple[str, list[list[int]]]], path: Path) -> None:
    plt = drawing()
    figure, axes = plt.subplots(len(rows), 1, figsize=(8.4, 0.5 * len(rows)))
    for axis, (label, levels) in zip(axes, rows, strict=True):
        draw_digits(axis, levels, label)
    save(figure, path, bbox_inches="tight")  # the layout does not count the labels of images
    plt.close(figure)
