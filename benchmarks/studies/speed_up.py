"""Does the image of a VAE save sampling steps? FD-digits against the number of steps: DDPM and both DiffuseVAEs.

    python benchmarks/studies/reproduce.py speed-up

The DDPM and the DiffuseVAEs of formulations 1 and 2 have about the same number of parameters (for a DiffuseVAE those of
both stages) and the same number of optimiser steps. All are trained at all noise levels
(`DDPMConfig.continuous_noise_conditioning`), and are compared at equal numbers of calls of their networks.
"""

from pathlib import Path
from typing import Any

from attrs import evolve

from fastdiff import Latents, sample
from fastdiff.data import digits
from fastdiff.diffusion import SAMPLERS
from fastdiff.evaluation import evaluate, fd_digits
from fastdiff.models import ConvVAEConfig, DDPMConfig, DiffuseVAEConfig, HVAEConfig, ImageConfig, Model, UNetConfig
from fastdiff.sampling import fit_mixture, interpolate
from fastdiff.sampling.interpolation import VARIED
from fastdiff.sampling.mixtures import scikit_learn
from fastdiff.training import TrainConfig

from .runner import Run, load_run, measure_runs
from .speed_up_report import BETAS, COMPONENTS, FEW, STEPS, write_report
from .study import Budget, Study

DATA: dict[str, Any] = {"shape": (1, 8, 8), "levels": 17}
VAE = HVAEConfig(**DATA, network=ConvVAEConfig(widths=(28, 32)))
SHOWN = (5, 10, 25)  # numbers of steps whose samples the document shows
IMAGES = 1500

Setting = dict[str, Any]  # of a sampler: its name, its options and the number of steps, in plain JSON types


def setting(sampler: str, steps: int, **options: Any) -> Setting:
    """Return a sampler and a number of steps in plain JSON types."""
    return {"sampler": sampler, "steps": steps, "options": options}


SETTINGS: dict[str, Setting] = {
    **{f"ddim-{n}": setting("ddim", n) for n in STEPS},
    **{f"ancestral-{n}": setting("ancestral", n, variance="fixed_small") for n in STEPS},
    **{f"betas-{n}": setting("ancestral", n, variance="fixed_small", betas=pair) for n, pair in BETAS.items()},
}
MIXTURE_SETTINGS = {f"mixture-{n}": SETTINGS[f"ddim-{n}"] for n in FEW}  # with z from a mixture


def network(width: int, lower: int) -> dict[str, Any]:
    """Return the fields of a diffusion on the digits that is trained at all noise levels."""
    return {
        **DATA, "continuous_noise_conditioning": True,
        "network": UNetConfig(widths=(width, lower), blocks=2, dropout=0.1),
    }  # fmt: skip


def runs(budget: Budget) -> list[Run]:
    """Return the models of the study, one per setting and seed."""
    train = TrainConfig(data="digits", max_steps=budget.steps, learning_rate=3e-3)
    models: dict[str, ImageConfig] = {"vae": VAE, "ddpm": DDPMConfig(**network(40, 52))}
    for formulation in (1, 2):
        models[f"diffusevae{formulation}"] = DiffuseVAEConfig(**network(32, 48), vae=VAE, formulation=formulation)
    return [
        Run(f"{name}-seed{seed}", model, evolve(
            train, seed=seed, loss="elbo" if name == "vae" else "simple",
            first_stage=f"vae-seed{seed}" if name.startswith("diffusevae") else None,
        ))
        for name, model in models.items()
        for seed in range(budget.seeds)
    ]  # fmt: skip


def gather(everything: list[Run], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Return FD-digits by sampler and number of steps, bounds, samples, and interpolations in the latents."""
    options = {
        "images": IMAGES, "draws": budget.draws, "settings": SETTINGS, "mixture_settings": MIXTURE_SETTINGS,
        "components": COMPONENTS, "seeds": "of the samples: that of the training",
    }  # fmt: skip
    return {
        "images": IMAGES,
        "models": measure_runs(everything, folder, workers, measure, "speed-up", options),
        "samples": _samples(everything, folder),
        "strips": _strips(load_run(next(run for run in everything if run.name == "diffusevae2-seed0"), folder)),
    }


def measure(run: Run, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return the bits/dim of a model, and FD-digits of its samples by every sampler and number of steps.

    The seed of the samples is that of the training, so the spread over the seeds includes training and sampling.
    """
    model, data = load_run(run, folder), digits()
    result = evaluate(model, data.test_images, draws=options["draws"])
    is_diffusion, has_z = "x_T" in model.latent_variables, "z" in model.latent_variables
    settings: dict[str, Any] = options["settings"] if is_diffusion else {"vae": None}
    requests = {name: (each, None) for name, each in settings.items()}
    if has_z:
        latents = Latents(mixture=fit_mixture(model, data.train_images, options["components"], run.train.seed))
        with_mixture: dict[str, Any] = options["mixture_settings"] if is_diffusion else {"vae-mixture": None}
        requests |= {name: (each, latents) for name, each in with_mixture.items()}
    distances = {}
    for name, (each, latents) in requests.items():
        chosen = {} if each is None else {
            "steps": each["steps"], "sampler": SAMPLERS[each["sampler"]](**each["options"]),
        }  # fmt: skip
        images = sample(
            model, options["images"], **chosen, seed=run.train.seed, latents=latents, batch_size=250, output="levels"
        )
        found = fd_digits(images)
        distances[name] = [found.value, found.standard_error]
    return {"parameters": sum(p.numel() for p in model.parameters()), **result.row(), "distances": distances}


def _strips(model: Model) -> dict[str, list[list[list[int]]]]:
    """Return two rows of 16 images that interpolate each latent in turn, as levels."""
    images = {vary: interpolate(model, vary, 2, 16, seed=0, steps=50, data=digits()) for vary in VARIED}
    return {vary: rows.flatten(1).view(2, 16, -1).tolist() for vary, rows in images.items()}


def _samples(everything: list[Run], folder: Path) -> dict[str, list[list[int]]]:
    """Return 16 samples of every diffusion model of the first seed at the numbers of steps `SHOWN`, as levels."""
    found = {}
    for run in everything:
        if run.train.seed == 0 and run.setting != "vae":
            model = load_run(run, folder)
            for steps in SHOWN:
                images = sample(model, 16, steps, "ddim", output="levels")
                found[f"{run.setting}-{steps}"] = images.flatten(1).tolist()
    return found


STUDY = Study(
    "speed-up", runs, gather, write_report, Budget(steps=4000, seeds=3, draws=32), "diffusevae", needs=scikit_learn
)
