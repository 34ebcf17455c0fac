"""Cases that sample: images as levels, and the latents that they were decoded from."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from number_cases.families import (
    COUNT,
    FAMILIES,
    LABELLED,
    LABELS,
    RESTORATION,
    SHIFTED,
    VAES,
    Case,
    degraded,
    fresh,
    mixture_of_three,
)

SAMPLERS = (("ancestral", {}), ("ddim", {}), ("ddim", {"eta": 0.5}), ("dpm-solver", {}), ("heun", {}))
SPACINGS = ("time", "gamma", "quadratic")
PAIRED = ("vdm", "ddpm, fixed_large", "diffusevae2", "diffusevae2, v")


def cases() -> Iterator[Case]:
    """All cases that sample."""
    yield from sampling_pairs()
    yield from sampling_families()
    yield from sampling_options()


def drawing(
    family: str, text: str, changes: dict[str, Any] | None = None, mixture: bool = False, **options: Any
) -> Case:
    """A case that samples. Formulation 2 rounds differently, so its latents alone are compared, with an allowance."""

    def run(api: Any) -> Any:
        settings: dict[str, Any] = {"steps": 5, "seed": 1} if family not in VAES else {"seed": 1}
        if family in RESTORATION:
            settings["cond"] = degraded(api, family)
        if mixture:
            settings["mixture"] = api.mixture(*mixture_of_three())
        images, z = api.sample(fresh(api, family, **(changes or {})), COUNT, **(settings | options))
        return z if shifted else [images, z]

    shifted = family in SHIFTED or (changes or {}).get("formulation") == 2
    allowance = 1e-4 if options.get("clip_denoised") else 1e-3
    return Case(f"sample, {family}: {text}", run, allowance if shifted else 0.0)


def name_of(options: dict[str, Any]) -> str:
    """Sampler options in words."""
    words = [str(options["sampler"])] if "sampler" in options else []
    return " ".join([*words, *(f"{key}={value}" for key, value in options.items() if key != "sampler")])


def sampling_pairs() -> Iterator[Case]:
    """All samplers, spacings and clipping together, for a VDM, a DDPM and formulation 2."""
    for family in PAIRED:
        for (sampler, own), spacing, clip in itertools.product(SAMPLERS, SPACINGS, (False, True)):
            options = {"sampler": sampler, **own, "spacing": spacing, "clip_denoised": clip}
            yield drawing(family, name_of(options), **options)


def sampling_families() -> Iterator[Case]:
    """Every sampler, spacing and clipping at least once, for the other families."""
    others = [name for name in FAMILIES if name not in (*PAIRED, *VAES)]
    for row, family in enumerate(others):
        for column, (sampler, own) in enumerate(SAMPLERS):
            spacing, clip = SPACINGS[(row + column) % 3], (row + column) % 2 == 0
            options = {"sampler": sampler, **own, "spacing": spacing, "clip_denoised": clip}
            yield drawing(family, name_of(options), **options)
    for family in FAMILIES:
        yield drawing(family, "in batches of 3", batch_size=3, temperature=0.9)
    for family in VAES:
        yield drawing(family, "all at once")


def sampling_options() -> Iterator[Case]:
    """Labels, guidance, temperatures, chains of betas, variances, predictions, schedules, conditioning images."""
    for family in LABELLED:
        yield drawing(family, "one label", labels=7, steps=4)
        for guidance in (0.0, 1.0, 2.5):
            yield drawing(family, f"labels, guidance={guidance}", labels=LABELS, guidance=guidance)
        more: dict[str, Any] = {"sampler": "dpm-solver", "spacing": "gamma", "clip_denoised": True}
        yield drawing(family, "labels, guidance, dpm-solver", labels=LABELS, guidance=2.0, **more)
    for variance in ("fixed_small", "fixed_large", "learned"):
        betas: dict[str, Any] = {"betas": (1e-6, 0.8), "variance": variance, "clip_denoised": True, "steps": 6}
        yield drawing("ddpm, learned", f"betas, {variance}", **betas)
        yield drawing("ddpm, learned", f"variance={variance}", variance=variance)
        if variance != "learned":
            yield drawing("diffusevae", f"betas, {variance}", **betas)
            yield drawing("diffusevae2", f"betas, {variance}", **betas)
    yield drawing("ddpm, fixed_large", "betas, ddim", betas=(1e-4, 0.5), sampler="ddim", steps=6)
    for prediction, clip in itertools.product(("epsilon", "x", "v", "score"), (False, True)):
        options = {"clip_denoised": clip, "sampler": "heun" if clip else "ancestral"}
        for family in ("vdm", "ddpm, fixed_small", "diffusevae"):
            yield drawing(family, f"prediction={prediction}, {name_of(options)}", {"prediction": prediction}, **options)
    for schedule, (sampler, own) in itertools.product(("linear", "learned", "cosine", "beta-linear"), SAMPLERS[1:4]):
        changes = {"schedule": schedule, "prediction": "epsilon"}
        yield drawing("vdm", f"schedule={schedule}, {name_of({'sampler': sampler, **own})}", changes, sampler=sampler)
    for family in ("diffusevae", "diffusevae2", "vae", "hvae"):
        yield drawing(family, "latent_temperature=0.7", latent_temperature=0.7)
    for family in ("vae", "diffusevae", "diffusevae2", "diffusevae2, v"):
        yield drawing(family, "mixture of latents", mixture=True, latent_temperature=0.8)
    for family, clip in itertools.product(("diffusevae", "diffusevae2", "diffusevae2, v"), (False, True)):
        cond = torch.rand(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2.0 - 1.0
        yield drawing(family, f"conditioning images, clip_denoised={clip}", cond=cond, clip_denoised=clip)
    levels = torch.randint(17, (COUNT, 1, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    yield drawing("diffusevae", "conditioning levels", cond=levels)
    for family in ("superresolution2", "denoising"):
        for clip in (False, True):
            changes, text = {"formulation": 2, "prediction": "v"}, f"formulation 2, v, clip_denoised={clip}"
            yield drawing(family, text, changes, clip_denoised=clip)
