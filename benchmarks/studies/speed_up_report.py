"""The document of the study of DiffuseVAE's speed-up, written from its numbers alone.

``found`` are the results by data set. What concerns several data sets stands side by side.
"""

from collections.abc import Iterator
from pathlib import Path

from .data_sets import DATA_SETS
from .documents import paragraph
from .speed_up_figures import draw
from .speed_up_numbers import (
    BETAS,
    MODELS,
    SAMPLERS,
    STEPS,
    Results,
    compare,
    first_stage_distances,
    first_stages,
    models_of,
    pairs_of,
    samplers_of,
    steps_of,
    summary,
    verdicts,
)
from .speed_up_text import bounds, interpolations, opening, reasons

Found = dict[str, Results]
WORDS = {"lower": "lower", "higher": "higher", "equal": "not significantly different"}
DRAWS = {"ddim": "the VAE's prior", "mixture": "a mixture"}  # of z


def write_report(found: Found, out: Path) -> None:
    """Write ``speed-up.md`` and its figures."""
    for name, results in found.items():
        draw(DATA_SETS[name], results, out)
    several = len(found) > 1
    parts = [opening(found), *(_short(name, results, several) for name, results in found.items())]
    if several:
        parts.append(_side_by_side(found))
    parts += [*_tables(found), *_figures(found), *_claims(found), reasons(found), bounds(found), interpolations(found)]
    (out / "speed-up.md").write_text("\n\n".join(parts) + "\n")


def label(found: Found, name: str, text: str) -> str:
    """Return the label of a row: with the name of the data set if there are several."""
    return text if len(found) == 1 else f"{name}: {text}"


def _cases(results: Results, one: str, other: str, sampler: str) -> str:
    """Return at which numbers of steps the distance of a model is lower, higher and equal."""
    found = verdicts(results, one, other, sampler)
    return " and ".join(f"{WORDS[verdict]} at {', '.join(map(str, steps))} steps" for verdict, steps in found.items())


def _short(name: str, results: Results, several: bool) -> str:
    """Return the answer in a paragraph: where a DiffuseVAE by DDIM has a lower distance than the DDPM."""
    sentences = []
    for model in (each for each in models_of(results) if each.startswith("diffusevae1")):
        parts = [
            f"with z from {z} its {DATA_SETS[name].fd_name} is {_cases(results, model, 'ddpm', sampler)}"
            for sampler, z in DRAWS.items()
        ]
        sentences.append(f"{MODELS[model]} compared with the DDPM, both sampled by DDIM: {'; '.join(parts)}.")
    start = f"In short, on the {name}, " if several else "In short, "
    return paragraph(start + " ".join(sentences))


def _side_by_side(found: Found) -> str:
    """Return a table of the claims by data set."""
    lines = ["| distance, by DDIM | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for one, other in dict.fromkeys(pair for results in found.values() for pair in pairs_of(results)):
        for sampler, z in DRAWS.items():
            cells = [
                _cases(results, one, other, sampler) if (one, other) in pairs_of(results) else "not tried"
                for results in found.values()
            ]
            claim = f"{MODELS[one]} compared with {MODELS[other]}, z from {z}"
            lines.append(f"| {claim} | {' | '.join(cells)} |")
    for vae in ("vae", "vae-beta4"):
        suffix = ", β = 4" if vae == "vae-beta4" else ""
        pairs = [first_stage_distances(each, vae) if vae in first_stages(each) else None for each in found.values()]
        if any(pairs):
            cells = [f"{pair[0]:.1f} and {pair[1]:.1f}" if pair else "not tried" for pair in pairs]
            lines.append(f"| the VAE's images{suffix}, z from its prior and from a mixture | {' | '.join(cells)} |")
    return "\n\n".join(["## Digits and letters", "\n".join(lines), paragraph(_left_out(found))])


def _left_out(found: Found) -> str:
    """Return what was tried on another data set only."""
    parts = []
    for name, results in found.items():
        missing = []
        for sampler, title in SAMPLERS.items():
            steps = [n for n in _columns(found, (sampler,)) if n not in steps_of(results, sampler)]
            some = len(steps) < len(_columns(found, (sampler,)))
            missing += [title + (f" with {', '.join(map(str, steps))} steps" if some else "")] if steps else []
        models = dict.fromkeys(each for other in found.values() for each in models_of(other))
        missing += [MODELS[each] for each in models if each not in models_of(results)]
        if "vae-beta4" in first_stages(results) and "diffusevae2-beta4" not in models:
            missing.append(MODELS["diffusevae2-beta4"])
        if missing:
            parts.append(f"Not tried on the {name}: {'; '.join(missing)}.")
    seeds = ", ".join(f"{results['budget']['seeds']} on the {name}" for name, results in found.items())
    return " ".join([*parts, f"Seeds of training: {seeds}."])


# ------------------------------------------------------------------------------------------------ distances


def _columns(found: Found, samplers: tuple[str, ...]) -> list[int]:
    return [n for n in STEPS if any(n in steps_of(each, sampler) for each in found.values() for sampler in samplers)]


def _table(title: str, columns: list[int]) -> list[str]:
    return [f"| {title} | " + " | ".join(f"{n} steps" for n in columns) + " |", "|---|" + "---:|" * len(columns)]


def _tables(found: Found) -> Iterator[str]:
    for sampler, title in SAMPLERS.items():
        columns = _columns(found, (sampler,))
        if not columns:
            continue
        lines = _table(title, columns)
        for name, results in found.items():
            steps = steps_of(results, sampler)
            for model in models_of(results) if steps else ():
                cells = [
                    "{:.1f} ± {:.1f}".format(*summary(results, model, f"{sampler}-{n}")) if n in steps else ""
                    for n in columns
                ]
                lines.append(f"| {label(found, name, MODELS[model])} | {' | '.join(cells)} |")
        yield "\n".join(lines)
    betas = ", ".join(f"{first:g} to {last:g} at {n}" for n, (first, last) in BETAS.items())
    few = f"Few betas: evenly spaced betas from {betas} steps (DiffuseVAE's table 3). The other samplers take steps"
    start = few if any("betas" in samplers_of(results) for results in found.values()) else "The samplers take steps"
    yield paragraph(
        f"{start} evenly spaced in time. Ancestral sampling uses the posterior variance. {_mixtures(found)}"
    )


def _mixtures(found: Found) -> str:
    """Return the numbers of components of the mixtures, and the distances of the VAEs' images."""
    parts = []
    for name, results in found.items():
        latent = DATA_SETS[name].vae.latent
        counts = sorted({row.get("components", 10) for key, row in results["models"].items() if "vae" in key})
        sizes = " or ".join(f"{count * (1 + latent + latent * (latent + 1) // 2) - 1:,}" for count in counts)
        of = f" of the {name}" if len(found) > 1 else ""
        components = " or ".join(map(str, counts))
        parts.append(
            f"The mixture{of} has {components} components ({sizes} parameters, which are not counted above) and is "
            "fitted to the latents of the training images (`fastdiff mixture`)."
        )
        if len(results.get("components", ())) > 1:
            tried = ", ".join(map(str, results["components"]))
            parts.append(f"Of {tried} components each has the number with the highest density of held-out latents.")
        for vae in first_stages(results):
            prior, mixture = first_stage_distances(results, vae)
            beta = " with β = 4" if vae == "vae-beta4" else ""
            parts.append(
                f"{DATA_SETS[name].fd_name} of the VAEs' images{beta} is {prior:.1f} with z from the prior and "
                f"{mixture:.1f} with z from the mixture."
            )
    return " ".join(parts)


def _figures(found: Found) -> Iterator[str]:
    for name in found:
        data = DATA_SETS[name]
        yield f"![{data.fd_name} against the number of steps]({data.file('speed-up')}.png)"
    for name, results in found.items():
        titles = [MODELS[model] for model in models_of(results)]
        title = f"{', '.join(titles[:-1])} and {titles[-1]}"
        yield f"![Samples of {title} by DDIM]({DATA_SETS[name].file('speed-up')}-samples.png)"
    which = "both" if len(found) == 1 else "all"
    yield paragraph(f"""
    Samples of the first seed by DDIM. Image i has the same noise in all rows, and the same z in {which}
    DiffuseVAEs.""")


def _claims(found: Found) -> Iterator[str]:
    yield "## The claims"
    distance = " and ".join(DATA_SETS[name].fd_name for name in found)
    yield paragraph(f"""
    Ratios of {distance}, geometric means over the seeds. A ratio is bold where it differs significantly from 1: at 95 %
    of Student's t, unpaired. Of 20 ratios equal to 1 about one would be bold by chance. A Fréchet distance is biased
    upwards, the more the fewer the samples (Chong and Forsyth 2020), which draws the ratios towards 1.""")
    for one, other in dict.fromkeys(pair for results in found.values() for pair in pairs_of(results)):
        having = {name: results for name, results in found.items() if (one, other) in pairs_of(results)}
        columns = _columns(having, tuple(SAMPLERS))
        lines, counted = _table(f"{MODELS[one]} / {MODELS[other]}", columns), []
        for name, results in having.items():
            counts = dict.fromkeys(WORDS, 0)
            for sampler in samplers_of(results):
                cells = dict.fromkeys(columns, "")
                for n in steps_of(results, sampler):
                    ratio, verdict = compare(results, one, other, f"{sampler}-{n}")
                    counts[verdict] += 1
                    cells[n] = f"{ratio:.2f}" if verdict == "equal" else f"**{ratio:.2f}**"
                lines.append(f"| {label(found, name, SAMPLERS[sampler])} | {' | '.join(cells.values())} |")
            total = ", ".join(f"{count} {WORDS[verdict]}" for verdict, count in counts.items())
            counted.append(label(found, name, total))
        yield "\n".join(lines)
        yield paragraph(f"{MODELS[one]} compared with {MODELS[other]}: {'; '.join(counted)}.")
