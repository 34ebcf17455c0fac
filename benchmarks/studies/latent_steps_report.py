"""The document of the study of latent steps, written from its numbers alone, all data sets side by side."""

from pathlib import Path
from typing import Any

from .comparison import difference, direction, evaluated, freedom, mean_over_seeds, seeds_of, summary, verdict
from .data_sets import DATA_SETS
from .documents import bullets, paragraph, plotting, save

COMMAND = "python benchmarks/studies/reproduce.py latent-steps"
ORDER = ("hvae-1", "hvae-2", "hvae-4", "hvae-8", "ddpm-2", "ddpm-10", "ddpm-100", "ddpm-1000", "vdm-inf")
TITLES = {
    "hvae-1": "VAE", "hvae-2": "HVAE, depth 2", "hvae-4": "HVAE, depth 4", "hvae-8": "HVAE, depth 8",
    "ddpm-2": "DDPM, T = 2", "ddpm-10": "DDPM, T = 10", "ddpm-100": "DDPM, T = 100", "ddpm-1000": "DDPM, T = 1000",
    "vdm-inf": "VDM, T = ∞",
}  # fmt: skip
VAES, DIFFUSIONS = ORDER[:4], ORDER[4:]
# The models over which the variance between seeds is pooled. The seeds of DDPMs differ by more than those of VAEs. The
# digits' numbers were published with one pool, and keep it.
POOLS: dict[str, tuple[tuple[str, ...], ...]] = {"digits": (ORDER,), "letters": (VAES, DIFFUSIONS)}
PAIRS = (
    ("hvae-2", "hvae-1"), ("hvae-4", "hvae-2"), ("hvae-8", "hvae-4"), ("ddpm-10", "ddpm-2"), ("ddpm-100", "ddpm-10"),
    ("ddpm-1000", "ddpm-100"), ("vdm-inf", "ddpm-1000"),
)  # fmt: skip
CLAIMS = (
    ("hvae-4", "hvae-1", "The HVAE of depth 4 is below the VAE"),
    ("ddpm-1000", "hvae-4", "The DDPM with T = 1000 is below the HVAE of depth 4"),
    ("vdm-inf", "hvae-4", "The VDM is below the HVAE of depth 4"),
)
TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50)
STATES = {"lower": "lower", "higher": "higher", "equal": "no significant difference"}

Results = dict[str, dict[str, Any]]  # the numbers of the study by data set


def write_report(everything: Results, out: Path) -> None:
    """Write ``latent-steps.md`` and its figure."""
    _draw(everything, out / "latent-steps.png")
    parts = [_opening(everything), _table(everything), _terms(everything), _answers(everything)]
    (out / "latent-steps.md").write_text("\n\n".join(parts) + "\n")


def pool(data: str, name: str) -> tuple[str, ...]:
    """Return the models over which the variance between the seeds of a model is pooled."""
    return next(names for names in POOLS[data] if name in names)


def bound_of(everything: Results, data: str, name: str) -> tuple[float, float]:
    """Return the bits/dim of a model and its standard error."""
    return summary(everything[data]["models"], pool(data, name), name)


def compared(everything: Results, data: str, one: str, other: str) -> tuple[float, float, int] | None:
    """Return the difference of bits/dim, its standard error and degrees of freedom; None if one was not trained."""
    rows, pools = everything[data]["models"], (pool(data, one), pool(data, other))
    if not (seeds_of(rows, one) and seeds_of(rows, other)):
        return None
    return *difference(rows, pools[0], one, other, pools[1]), min(freedom(rows, each) for each in pools)


def _trained(results: dict[str, Any]) -> list[str]:
    return [name for name in ORDER if seeds_of(results["models"], name)]


# ------------------------------------------------------------------------------------------------ text and tables


def _opening(everything: Results) -> str:
    sources = " and ".join(f"`{DATA_SETS[data].file('latent-steps')}.json`" for data in everything)
    text = f"""
    Written by `{COMMAND}` (with `--data letters` for the letters) from the numbers in {sources}.
    Each model is trained on its own bound, without labels and without augmentation. Bits
    per dimension are on held-out images. The DDPMs learn their variances. All values of a data set are bounds on the
    same likelihood, that of the levels of a pixel, so they can be compared; those of two data sets cannot."""
    title = "# Is a diffusion model a thousand-step VAE?"
    return "\n\n".join([title, paragraph(text), bullets(*(_scope(*each) for each in everything.items()))])


def _scope(data: str, results: dict[str, Any]) -> str:
    budget, rows = results["budget"], results["models"]
    sizes = sorted(row["parameters"] for row in rows.values())
    first = rows["vdm-inf-seed0"]
    text = f"""
    The {data}: {sizes[0]:,} to {sizes[-1]:,} parameters, {budget["steps"]} optimiser steps of
    {DATA_SETS[data].batch_size} images, {budget["seeds"]} seeds, {evaluated(first)}, {budget["draws"]} draws each."""
    single = [TITLES[name] for name in _trained(results) if len(seeds_of(rows, name)) == 1]
    missing = [TITLES[name] for name in ORDER if name not in _trained(results)]
    text += f" One seed alone: {'; '.join(single)}." if single else ""
    text += f" Not trained: {'; '.join(missing)}." if missing else ""
    if "images" in first:
        return text
    return f"""
    {text} The images of a family are not independent, so errors are over families: for the VDM's first seed
    {first["se_groups"]:.4f} over families, and {first["se"]:.4f} over images. The VDM is the one of
    [schedules.md](schedules.md) with the linear schedule; unlike that of the digits it predicts `categorical`, and
    learns neither the schedule nor its endpoints. The VAEs have dropout, the other networks have none. The variance
    between seeds is pooled over the VAEs, and over the diffusion models, and taken for those of one seed too."""


def _table(everything: Results) -> str:
    lines = ["| model | latent steps |" + "".join(f" {data}: bits/dim | ± |" for data in everything)]
    lines.append("|---|---:|" + "---:|---:|" * len(everything))
    for name in (each for each in ORDER if any(each in _trained(results) for results in everything.values())):
        cells = []
        for data, results in everything.items():
            found = name in _trained(results)
            cells.append("{:.4f} | {:.4f}".format(*bound_of(everything, data, name)) if found else " | ")
        steps = name.rpartition("-")[2].replace("inf", "∞")
        lines.append(f"| {TITLES[name]} | {steps} | {' | '.join(cells)} |")
    note = paragraph("The errors are over the held-out images, or their families, and over seeds of training.")
    figure = "![Bits/dim against the number of latent steps](latent-steps.png)"
    return "\n\n".join(["\n".join(lines), note, figure])


def _terms(everything: Results) -> str:
    lines = [
        "| data | model | held-out | on training images | recon | prior | steps between | active units |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for data, results in everything.items():
        rows = results["models"]
        for name in _trained(results):
            keys = ("bpd", "train_bpd", "recon", "prior", "diffusion")
            terms = " | ".join(f"{mean_over_seeds(rows, name, key):.4f}" for key in keys)
            active = ", ".join(map(str, rows[f"{name}-seed0"].get("active", [])))
            lines.append(f"| {data} | {TITLES[name]} | {terms} | {active} |")
    note = paragraph(
        "Active units: the dimensions of each layer's latent that vary with the image, for the first seed, from z_1 up "
        f"({', '.join(f'of {DATA_SETS[data].vae.latent} on the {data}' for data in everything)}). A layer without "
        "active units has collapsed to its prior."
    )
    return "\n\n".join(["## Terms of the bound", "\n".join(lines), note])


def _answers(everything: Results) -> str:
    comparisons = []
    for one, other in PAIRS:
        states = []
        for data in everything:
            found = compared(everything, data, one, other)
            if found is not None:
                states.append(f"{found[0]:+.4f} ± {found[1]:.4f}, {STATES[direction(*found)]} ({data})")
        if states:
            comparisons.append(f"{TITLES[one]} minus {TITLES[other]}, bits/dim: {'; '.join(states)}.")
    answers = [
        "Its bound has the same form: both models are chains of Gaussian latents, and both bounds have the same three "
        "terms.",
        *(_best(everything, data) for data in everything),
    ]
    significant = paragraph(f"""
    A difference is significant, and a claim decided, beyond the 95 % point of Student's t, with the degrees of freedom
    of the variance between seeds: {_degrees(everything)}.""")
    titles = ("## Do more steps lower the bound?", "## Is a diffusion model a thousand-step VAE?")
    order = "The order that one expects of the bounds, VAE > HVAE > diffusion, in three comparisons:"
    claims = []
    for one, other, claim in CLAIMS:
        states = {data: compared(everything, data, one, other) for data in everything}
        states = {data: verdict(*found) for data, found in states.items() if found is not None}
        claims.append(f"{claim}: {'; '.join(f'{state} on the {data}' for data, state in states.items())}.")
    return "\n\n".join(
        [titles[0], bullets(*comparisons), significant, titles[1], bullets(*answers), order, bullets(*claims)]
    )


def _degrees(everything: Results) -> str:
    """Return the degrees of freedom of the comparisons by data set; the smaller ones of two models with two pools."""
    parts = []
    for data in everything:
        pairs = [compared(everything, data, one, other) for one, other, *_ in (*PAIRS, *CLAIMS)]
        found = sorted({pair[2] for pair in pairs if pair is not None})
        parts.append(f"{' or '.join(map(str, found))} on the {data}")
    return "; ".join(parts)


def _best(everything: Results, data: str) -> str:
    """State where the DDPM's bound is beside that of the VAE of the depth that turned out best."""
    depths = [name for name in _trained(everything[data]) if name in VAES]
    best = min(depths, key=lambda name: bound_of(everything, data, name)[0])
    found = compared(everything, data, "ddpm-1000", best)
    assert found is not None
    words = {"lower": "below", "higher": "above", "equal": "not significantly different from"}
    return (
        f"On the {data} the bound of the DDPM with T = 1000 is {words[direction(*found)]} that of the best VAE, "
        f"{TITLES[best]}: {found[0]:+.4f} ± {found[1]:.4f} bits/dim."
    )


# ------------------------------------------------------------------------------------------------ figure


def _draw(everything: Results, path: Path) -> None:
    plt = plotting()
    count = len(everything)
    figure, axes = plt.subplots(1, count, figsize=(6.8 if count == 1 else 11.0, 4.2), squeeze=False)
    for axis, (data, results) in zip(axes[0], everything.items(), strict=True):
        for label, kind in (("VAE and HVAE", "hvae"), ("DDPM", "ddpm")):
            names = [name for name in _trained(results) if name.startswith(kind)]
            points = [(int(name.rpartition("-")[2]), *bound_of(everything, data, name)) for name in names]
            steps, means, errors = zip(*points, strict=True)
            axis.errorbar(steps, means, errors, marker="o", markersize=4, capsize=3, label=label)
        mean, error = bound_of(everything, data, "vdm-inf")
        line = axis.axhline(mean, linestyle=":", color="#3a7d44", label="VDM, T = ∞")
        axis.axhspan(mean - error, mean + error, alpha=0.2, color=line.get_color(), linewidth=0)
        axis.set(xscale="log", yscale="log", xlabel="latent steps", ylabel="bits/dim, held-out")
        low, high = axis.get_ylim()
        ticks = [tick for tick in TICKS if low < tick < high]
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(f"The same bound, more latent steps, {data}")
        axis.legend(frameon=False)
    save(figure, path)
    plt.close(figure)
