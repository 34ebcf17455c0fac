"""Does the image of a VAE save sampling steps? Fréchet distance by number of steps: DDPM and both DiffuseVAEs.

    python benchmarks/studies/reproduce.py speed-up        # --data letters

The DDPM and the DiffuseVAEs of formulations 1 and 2 have about the same number of parameters (for a DiffuseVAE those of
both stages) and the same number of optimiser steps. All are trained at all noise levels
(`DDPMConfig.continuous_noise_conditioning`), and are compared at equal numbers of calls of their networks. On the
letters there is also a DiffuseVAE on a VAE whose KL has the weight 4, so that its latents lie nearer to the prior.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attrs import evolve

from fastdiff import Latents, sample
from fastdiff.diffusion import SAMPLERS
from fastdiff.evaluation import evaluate
from fastdiff.models import DDPMConfig, DiffuseVAEConfig, ImageConfig, Model, UNetConfig
from fastdiff.sampling import interpolate
from fastdiff.sampling.interpolation import VARIED
from fastdiff.sampling.mixtures import LatentMixture, draw_latents, fit_latents, fitted_to, scikit_learn

from .data_sets import DataSet
from .documents import image_text
from .runner import Run, load_run, measure_runs
from .speed_up_numbers import BETAS
from .speed_up_report import write_report
from .study import Budget, Study

SHOWN = (5, 10, 25)  # numbers of steps whose samples the document shows

Setting = dict[str, Any]  # of a sampler: its name, its options and the number of steps, in plain JSON types


@dataclass(frozen=True)
class Scope:
    """What the study trains and measures on a data set.

    Args:
        images: number of samples per setting.
        ddim, ancestral, betas, mixture: numbers of steps of DDIM, of ancestral sampling, of ancestral sampling with few
            betas, and of DDIM with z from a mixture.
        components: numbers of components that a mixture may have. Of several, that with the highest density of the
            held-out latents is taken.
        weighted: formulations of the DiffuseVAEs whose VAE is trained with a weight of the KL, by that weight.
    """

    images: int
    ddim: tuple[int, ...] = (5, 10, 25, 50, 100)
    ancestral: tuple[int, ...] = (5, 10, 25, 50, 100)
    betas: tuple[int, ...] = tuple(BETAS)
    mixture: tuple[int, ...] = (5, 10, 25, 50)
    components: tuple[int, ...] = (10,)
    weighted: tuple[tuple[float, tuple[int, ...]], ...] = ()

    @property
    def settings(self) -> dict[str, Setting]:
        """The samplers of all diffusion models, by name."""
        return {
            **{f"ddim-{n}": setting("ddim", n) for n in self.ddim},
            **{f"ancestral-{n}": setting("ancestral", n, variance="fixed_small") for n in self.ancestral},
            **{f"betas-{n}": setting("ancestral", n, variance="fixed_small", betas=BETAS[n]) for n in self.betas},
        }

    @property
    def mixture_settings(self) -> dict[str, Setting]:
        """The samplers of models whose z is drawn from a mixture, by name."""
        return {f"mixture-{n}": setting("ddim", n) for n in self.mixture}


def setting(sampler: str, steps: int, **options: Any) -> Setting:
    """Return a sampler and a number of steps in plain JSON types."""
    return {"sampler": sampler, "steps": steps, "options": options}


# Of the components 1, 2, 5, 10, 20 and 50, 10 were the best on the held-out latents of the first VAE of the digits.
SCOPES = {
    "digits": Scope(images=1500),
    "letters": Scope(
        images=1000, ancestral=(10, 25, 50), betas=(), components=(10, 20, 40), weighted=((4.0, (1,)),)
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ models


def diffusion(data: DataSet, network: UNetConfig) -> dict[str, Any]:
    """Return the fields of a diffusion that is trained at all noise levels."""
    return {**data.bare, "continuous_noise_conditioning": True, "network": network}


def runs(data: DataSet, budget: Budget) -> list[Run]:
    """Return the models of the study, one per setting and seed."""
    second = diffusion(data, data.second_stage)
    models: dict[str, ImageConfig] = {"vae": data.vae, "ddpm": DDPMConfig(**diffusion(data, data.ddpm))}
    first_stages = {}
    for beta, formulations in ((1.0, (1, 2)), *SCOPES[data.name].weighted):
        suffix, vae = "" if beta == 1.0 else f"-beta{beta:g}", evolve(data.vae, beta=beta)
        models[f"vae{suffix}"] = vae
        for formulation in formulations:
            name = f"diffusevae{formulation}{suffix}"
            models[name] = DiffuseVAEConfig(**second, vae=vae, formulation=formulation)
            first_stages[name] = f"vae{suffix}"
    train = data.training(budget.steps)
    return [
        Run(f"{name}-seed{seed}", model, evolve(
            train, seed=seed, loss="elbo" if name.startswith("vae") else "simple",
            first_stage=f"{first_stages[name]}-seed{seed}" if name in first_stages else None,
        ))
        for name, model in models.items()
        for seed in range(budget.seeds)
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ numbers


def gather(data: DataSet, everything: list[Run], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Return Fréchet distances by sampler and number of steps, bounds, samples, and interpolations in the latents."""
    scope = SCOPES[data.name]
    options = {
        "images": scope.images, "draws": budget.draws, "settings": scope.settings,
        "mixture_settings": scope.mixture_settings, "components": scope.components,
        "seeds": "of the samples: that of the training",
    }  # fmt: skip
    return {
        "images": scope.images,
        "components": scope.components,
        "yardstick": yardstick(data, scope.images),
        "models": measure_runs(everything, folder, workers, measure, "speed-up", options),
        "samples": _samples(everything, folder),
        "strips": _strips(data, load_run(next(run for run in everything if run.name == "diffusevae2-seed0"), folder)),
    }


def measure(run: Run, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return the bits/dim of a model, and Fréchet distances of its samples by every sampler and number of steps.

    The seed of the samples is that of the training, so the spread over the seeds includes training and sampling.
    """
    model, data = load_run(run, folder), run.data_set
    result = evaluate(model, data.load().test_images, draws=options["draws"])
    row = {"parameters": sum(p.numel() for p in model.parameters()), **result.row()}
    is_diffusion, has_z = "x_T" in model.latent_variables, "z" in model.latent_variables
    settings: dict[str, Any] = options["settings"] if is_diffusion else {"vae": None}
    requests = {name: (each, None) for name, each in settings.items()}
    if has_z:
        mixture = mixture_of(model, data, options["components"], run.train.seed)
        latents, row["components"] = Latents(mixture=mixture), mixture.components
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
        found = data.fd(images)
        distances[name] = [found.value, found.standard_error]
    return {**row, "distances": distances}


def yardstick(data: DataSet, count: int) -> list[float] | None:
    """Return the distance of a number of held-out images, evenly spaced among all, and its error; None for too few."""
    images = data.load().test_images[:]
    if len(images) < count:
        return None
    found = data.fd(images[[i * len(images) // count for i in range(count)]])
    return [found.value, found.standard_error]


def mixture_of(model: Model, data: DataSet, components: Sequence[int], seed: int) -> LatentMixture:
    """Return the mixture that is fitted to the latents of the training images.

    Of several numbers of components it has that with the highest mean log density of the latents of held-out images.
    """
    images, autoencoder = data.load(), model.autoencoder
    latents, held_out = (draw_latents(autoencoder, x, seed) for x in (images.train_images[:], images.test_images[:]))
    fits = [fit_latents(latents, count, seed, fitted_to(autoencoder)) for count in components]
    return max(fits, key=lambda fit: float(fit.log_density(held_out).mean()))


def _strips(data: DataSet, model: Model) -> dict[str, list[list[str]]]:
    """Return two rows of 16 images that interpolate each latent in turn, see `image_text`."""
    found = {vary: interpolate(model, vary, 2, 16, seed=0, steps=50, data=data.load()) for vary in VARIED}
    return {vary: [image_text(images[:16]), image_text(images[16:])] for vary, images in found.items()}


def _samples(everything: list[Run], folder: Path) -> dict[str, list[str]]:
    """Return 16 samples of every diffusion model of the first seed at the numbers of steps `SHOWN`."""
    found = {}
    for run in everything:
        if run.train.seed == 0 and not run.setting.startswith("vae"):
            model = load_run(run, folder)
            for steps in SHOWN:
                found[f"{run.setting}-{steps}"] = image_text(sample(model, 16, steps, "ddim", output="levels"))
    return found


BUDGETS = {"digits": Budget(steps=4000, seeds=3, draws=32), "letters": Budget(steps=4000, seeds=2, draws=16)}
STUDY = Study("speed-up", runs, gather, write_report, BUDGETS, "diffusevae", needs=scikit_learn)
