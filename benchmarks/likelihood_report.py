"""The document docs/likelihood.md, from the numbers of docs/likelihood.json alone."""

import math
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.evaluation import DEQUANTIZATIONS, standard_error
from fastdiff.evaluation.ode_bound import importance_weighted_nats

Parts = dict[str, Any]
Found = dict[str, Any]


def write_report(found: Found, path: Path) -> None:
    """Write the document; a section whose numbers are not there yet is left out."""
    settings, parts = found["settings"], found["parts"]
    sections = [
        "# Likelihood of the digits",
        paragraph(
            f"""Bounds on the bits per dimension of the embedded model `{settings["model"]}` through the
            probability-flow ODE, on its {settings["images"]} held-out images or the first of them, in continuous time,
            with labels not given. `python benchmarks/likelihood.py` measured them (torch {settings["torch"]}, one
            thread) and wrote this document; the log-weights of every draw are in `likelihood.json`. "±" is a standard
            error over the images of the row, which includes that of the draws. By writers it is not known: the data
            set does not say who wrote a digit."""
        ),
        dequantisation_section(settings, parts),
        samples_section(settings, parts),
        variance_section(settings, parts),
    ]
    path.write_text("\n\n".join(section for section in sections if section) + "\n")


def dequantisation_section(settings: Found, parts: Parts) -> str:
    """K = 1 on all held-out images, with one probe."""
    scale = settings["dims"] * math.log(2.0)
    nats: dict[str, Tensor] = {}
    for name in DEQUANTIZATIONS:
        draws = [
            torch.tensor(value[0]).double()
            for key, value in sorted(parts.items())
            if key.startswith(f"one probe/{name}/")
        ]
        if draws:
            nats[name] = -torch.stack(draws).mean(0) / scale
    if "normal" not in nats:
        return ""
    lines = ["| dequantisation | bits/dim | ± s.e. | minus normal, paired | ± s.e. |", "|---|---:|---:|---:|---:|"]
    for name, values in nats.items():
        gap = values - nats["normal"]
        paired = "" if name == "normal" else f"{float(gap.mean()):+.4f} | {standard_error(gap):.4f}"
        lines.append(f"| {name} | {float(values.mean()):.4f} | {standard_error(values):.4f} | {paired or ' | '} |")
    text = f"""The dequantisations of `fastdiff evaluate digits --ode {settings["steps"]} --dequantization …`: K = 1,
    one probe of Hutchinson's estimate at every step, two draws per image, {settings["steps"]} steps. A bin is
    ± {math.exp(-0.5 * settings["gamma"][0]) / settings["levels"]:.2f} sigma_0 wide here, so that the truncated normal
    distribution is nearly the normal one, and the uniform one puts most of its draws where the model's density is
    low."""
    return "\n\n".join(["## Dequantisation", paragraph(text), "\n".join(lines)])


def log_weights_of(parts: Parts, prefix: str, images: int) -> Tensor | None:
    """Return the log-weights of an experiment, float64 [probes, K, images]; None without any."""
    chosen = sorted(
        (int(key.rpartition("/")[2]), value) for key, value in parts.items() if key.startswith(f"{prefix}/")
    )
    if not chosen:
        return None
    return torch.cat([torch.tensor(value).double().unflatten(1, (-1, images)) for _, value in chosen], 1)


def samples_section(settings: Found, parts: Parts) -> str:
    """The bound against K, with the exact divergence and with probes."""
    scale, rows = settings["dims"] * math.log(2.0), []
    few, some = settings["few"], settings["some"]
    experiments = [(f"exact/{name}", name, "exact", few) for name in DEQUANTIZATIONS]
    experiments.append(("4 probes/truncated-normal", "truncated-normal", "4 probes", some))
    for prefix, name, divergence, images in experiments:
        weights = log_weights_of(parts, prefix, images)
        if weights is None:
            continue
        one = None
        for K in (1, 5, 20):
            if weights.shape[1] < K:
                continue
            bounds = [importance_weighted_nats(part) for part in weights.split(K, 1) if part.shape[1] == K]
            values = torch.stack(bounds).mean(0) / scale
            one = values if one is None else one
            gap = values - one
            paired = " | " if K == 1 else f"{float(gap.mean()):+.4f} | {standard_error(gap):.4f}"
            rows.append(
                f"| {name} | {divergence} | {images} | {K} | {float(values.mean()):.4f} | "
                f"{standard_error(values):.4f} | {paired} |"
            )
    if not rows:
        return ""
    lines = [
        "| dequantisation | divergence | images | K | bits/dim | ± s.e. | minus K = 1, paired | ± s.e. |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
        *rows,
    ]
    text = f"""K importance samples, {settings["steps"]} steps; the rows of one kind share their {settings["samples"]}
    samples, which K = 1 and K = 5 take one by one and five by five. With probes the noise of the log-density is kept
    out of the logarithm (`fastdiff.evaluation.ode_bound`), which makes the bound looser, not wrong: it may rise
    with K."""
    blocks = ["## Importance samples", paragraph(text), "\n".join(lines), steps_paragraph(settings, parts)]
    return "\n\n".join(block for block in blocks if block)


def steps_paragraph(settings: Found, parts: Parts) -> str:
    """The error of the integrator, on common latents."""
    few, steps = settings["few"], settings["steps"]
    first = parts.get("exact/truncated-normal/0")
    if first is None or "steps/64" not in parts or "steps/16" not in parts:
        return ""
    reference = torch.tensor(parts["steps/64"][0]).double()
    texts = []
    for count, values in ((16, parts["steps/16"][0]), (steps, first[0][:few])):
        gap = (torch.tensor(values).double() - reference) / (settings["dims"] * math.log(2.0))
        texts.append(f"with {count} steps by {-float(gap.mean()):+.4f} ± {standard_error(gap):.4f} bits/dim")
    return paragraph(
        f"""The integrator: against 64 steps from the same {few} latents, exact divergence, the bound changes
        {" and ".join(texts)}."""
    )


def variance_section(settings: Found, parts: Parts) -> str:
    """The variance of the VLB's diffusion term under the densities of gamma."""
    texts, titles = [], {"variance": "`digits`", "variance of flow-digits": "a model that predicts the velocity"}
    for key, title in titles.items():
        if key not in parts:
            continue
        rows, scale = parts[key], (settings["dims"] * math.log(2.0)) ** 2
        lines = [
            f"| density of gamma, {title} | one draw | ratio to linear | 16 draws | ratio to linear |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, row in rows.items():
            single, sixteen = row["single"], row["sixteen"]
            lines.append(
                f"| {name} | {single / scale:.3f} | {single / rows['linear']['single']:.2f} | {sixteen / scale:.4f} | "
                f"{sixteen / rows['linear']['sixteen']:.2f} |"
            )
        texts.append("\n".join(lines))
    if not texts:
        return ""
    intro = """The variance of an image's diffusion term in continuous time, in (bits/dim)², mean over 50 held-out
    images: of one draw at a random time, and of the mean of 16 draws that are evenly spread in time, as `evaluate`
    spreads them. All rows estimate the same number. "fitted" is `fastdiff evaluate --importance`, fitted to 40
    draws of each image; the others are closed forms, `fastdiff.diffusion.SCHEDULES`."""
    if "variance of flow-digits" in parts:
        low, high = settings["velocity"]["gamma"]
        intro += f""" The second model is `flow-digits` with learned endpoints, which the preset no longer has, after
        3000 steps: gamma from {low:.2f} to {high:.2f}. importance-velocity is the
        density that has the least variance if the error of its velocity does not depend on gamma."""
    return "\n\n".join(["## Importance sampling of gamma", paragraph(intro), *texts])


def paragraph(text: str) -> str:
    """Break a text into lines of at most 118 characters."""
    return textwrap.fill(" ".join(text.split()), 118, break_on_hyphens=False, break_long_words=False)
