"""The running text of the document of DiffuseVAE's speed-up; all that it says follows from the numbers."""

from .data_sets import DATA_SETS
from .documents import paragraph
from .speed_up_numbers import (
    MODELS,
    Results,
    compare,
    compare_settings,
    first_stage_distances,
    first_stage_ratio,
    first_stages,
    models_of,
    steps_of,
    summary,
)

COMMAND = "python benchmarks/studies/reproduce.py speed-up"
COUNTS = {3: "three", 4: "four", 5: "five"}
# What follows from the verdicts of `compare` on two Fréchet distances.
PRIORS = {
    "higher": ". So z limits the samples of a DiffuseVAE: the prior draws z that the encoder does not give.",
    "equal": ", no significant difference, so it is not shown that z from the prior limits a DiffuseVAE here.",
    "lower": ", so it is not z from the prior that limits a DiffuseVAE here.",
}
MORE_STEPS = {
    "higher": ": more steps do not correct what the VAE decodes.",
    "equal": ", no significant difference, so it is not shown that more steps correct what the VAE decodes.",
    "lower": ": more steps correct some of what the VAE decodes.",
}
SAVES = {
    "lower": "the image of the VAE saves sampling steps.",
    "equal": "no significant difference, so it is not shown that the image of the VAE saves sampling steps.",
    "higher": "the image of the VAE saves no sampling steps.",
}
IMPROVES = {
    "higher": "the second stage improves the samples.",
    "equal": "no significant difference, so it is not shown that the second stage improves the samples.",
    "lower": "the second stage makes the samples worse.",
}
FIRST_STAGES = {"vae": "VAE (the first stage)", "vae-beta4": "VAE, β = 4 (the first stage)"}


def opening(found: dict[str, Results]) -> str:
    """Return the title, and how the models of each data set were trained and measured."""
    parts = ["# Does the image of a VAE save sampling steps?"]
    for name, results in found.items():
        data, budget = DATA_SETS[name], results["budget"]
        rows = results["models"].items()
        sizes = sorted(row["parameters"] for key, row in rows if not key.startswith("vae"))
        command = COMMAND if name == "digits" else f"{COMMAND} --data {name}"
        count = len(models_of(results))
        text = f"""
        Written by `{command}` from `{data.file("speed-up")}.json`. A DDPM and DiffuseVAEs of both formulations, with
        {sizes[0]:,} to {sizes[-1]:,} parameters (both stages of a DiffuseVAE together), are trained for
        {budget["steps"]} optimiser steps of {data.batch_size} {name} with {budget["seeds"]} seeds, on L_simple, at all
        noise levels.
        The VAE of the first stage is trained first, for as many steps. {data.fd_name} compares {results["images"]}
        samples with the training {name}; lower is better. ± is the standard error over the seeds (of training and of
        sampling), with its relative size pooled over the {COUNTS.get(count, count)} models."""
        if results.get("yardstick"):
            value, error = results["yardstick"]
            text += f" For as many held-out {name} it is {value:.1f} ± {error:.1f} (the error over the images)."
        if "vae-beta4" in first_stages(results):
            text += f"""
            β = 4: the KL has this weight in the training loss of the VAE (Higgins et al. 2017), so that its
            latents lie nearer to the prior. {_terms(results)}"""
        parts.append(paragraph(text))
    return "\n\n".join(parts)


def _terms(results: Results) -> str:
    """Return both terms of the bounds of the VAEs with β = 1 and 4."""
    rows = [[results["models"][f"{vae}-seed{k}"] for k in range(results["budget"]["seeds"])] for vae in FIRST_STAGES]
    (kl, kl_4), (recon, recon_4) = (
        [sum(row[term] for row in each) / len(each) for each in rows] for term in ("prior", "recon")
    )
    return (
        f"On held-out images its KL is {kl_4:.3f} bits/dim (β = 1: {kl:.3f}), and the rest of its bound, the negative "
        f"log-likelihood of the images given z, {recon_4:.3f} ({recon:.3f})."
    )


def reasons(found: dict[str, Results]) -> str:
    """Return an explanation that fits the numbers of each data set, for either result."""
    parts = ["## Why"]
    for name, results in found.items():
        start = "" if len(found) == 1 else f"{name.capitalize()}: "
        parts.append(paragraph(start + " ".join([*_second_stage(name, results), *_weighted(name, results)])))
    return "\n\n".join(parts)


def _second_stage(name: str, results: Results) -> list[str]:
    distance, (prior, mixture) = DATA_SETS[name].fd_name, first_stage_distances(results, "vae")
    few, steps = steps_of(results, "mixture"), steps_of(results, "ddim")
    settings = f"ddim-{few[-1]}", f"mixture-{few[-1]}"
    refined = [summary(results, "diffusevae1", setting)[0] for setting in settings]
    times, limits = compare_settings(results, "diffusevae1", *settings)
    change, later = compare_settings(results, "diffusevae1", f"ddim-{steps[-1]}", f"ddim-{steps[0]}")
    ratio, verdict = compare(results, "diffusevae1", "ddpm", f"mixture-{few[0]}")
    vae, improves = first_stage_ratio(results, settings[1])
    parts = ["The second stage changes the details of an image and not which digit it shows."] * (name == "digits")
    return [
        *parts,
        f"{distance} of the VAEs' images is {prior:.1f} with z from the prior and {mixture:.1f} with z from the "
        f"mixture. Refined by DiffuseVAE 1 (DDIM, {few[-1]} steps) it is {refined[0]:.1f} and {refined[1]:.1f}:",
        f"the prior's is {times:.2f} times that of the mixture{PRIORS[limits]}",
        f"With z from the prior it is {change:.2f} times as high after {steps[-1]} steps as after {steps[0]}"
        f"{MORE_STEPS[later]}",
        f"At {few[0]} steps the {distance} of DiffuseVAE 1 with the mixture is {ratio:.2f} times that of the DDPM: "
        f"{SAVES[verdict]}",
        f"With the mixture, {distance} of the VAE's images is {vae:.2f} times that of the images refined in {few[-1]} "
        f"steps: measured by {distance}, {IMPROVES[improves]}",
    ]


def _weighted(name: str, results: Results) -> list[str]:
    """Return what a larger weight of the KL changes, where it was tried."""
    if "vae-beta4" not in first_stages(results):
        return []
    distance, most = DATA_SETS[name].fd_name, steps_of(results, "ddim")[-1]
    (prior, mixture), (prior_4, mixture_4) = (first_stage_distances(results, vae) for vae in ("vae", "vae-beta4"))
    parts = [
        f"With β = 4, {distance} of the VAE's images is {prior_4:.1f} with z from the prior and {mixture_4:.1f} with "
        f"z from the mixture (β = 1: {prior:.1f} and {mixture:.1f}).",
        f"So the prior's is {prior_4 / mixture_4:.2f} times that of the mixture with β = 4, and {prior / mixture:.2f} "
        "times with β = 1.",
    ]
    if "diffusevae1-beta4" not in models_of(results):
        return parts
    few = steps_of(results, "mixture")[-1]
    words = {"lower": "lower", "higher": "higher", "equal": "not significantly different"}
    for setting, z in ((f"ddim-{most}", "the prior"), (f"mixture-{few}", "the mixture")):
        value, _ = summary(results, "diffusevae1-beta4", setting)
        ratio, verdict = compare(results, "diffusevae1-beta4", "diffusevae1", setting)
        steps = setting.rpartition("-")[2]
        parts.append(
            f"Refined by its DiffuseVAE 1 in {steps} steps, with z from {z}, it is {value:.1f}, {ratio:.2f} times that "
            f"with β = 1: {words[verdict]}."
        )
    return parts


def bounds(found: dict[str, Results]) -> str:
    """Return the table of bits/dim."""
    lines = ["## Bits per dimension", "", "| model | parameters | bits/dim of each seed |", "|---|---:|---|"]
    for name, results in found.items():
        names = {each: FIRST_STAGES[each] for each in first_stages(results)}
        for each, text in (names | {model: MODELS[model] for model in models_of(results)}).items():
            rows = [results["models"][f"{each}-seed{seed}"] for seed in range(results["budget"]["seeds"])]
            cells = ", ".join("{bpd:.3f}".format(**row) for row in rows)
            title = text if len(found) == 1 else f"{name}: {text}"
            lines.append(f"| {title} | {rows[0]['parameters']:,} | {cells} |")
    note = """
    The VAE is trained on its bound, the others on L_simple, whose weights are not those of the bound. The bound of a
    DiffuseVAE includes the KL of its latent, which the bound of the DDPM does not have."""
    if any("vae-beta4" in first_stages(results) for results in found.values()):
        note += " The bits/dim with β = 4 are those of the bound itself, in which the KL has the weight 1."
    return "\n".join(lines) + "\n\n" + paragraph(note)


def interpolations(found: dict[str, Results]) -> str:
    """Return the section of the interpolations."""
    text = """
    Interpolations of DiffuseVAE 2, first seed, by DDIM in 50 steps (`fastdiff interpolate`): along a line between two
    z, along a line between the mean z of two classes, and along an arc between two x_T, with everything else fixed."""
    if "digits" in found:
        text += " z determines which digit or letter it is."
    figures = [f"![Interpolations in z and in x_T]({DATA_SETS[name].file('speed-up')}-strips.png)" for name in found]
    return "\n\n".join(["## Two latents", paragraph(text), *figures])
