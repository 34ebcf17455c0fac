"""Does a VAE's picture save steps? FD-digits against the number of steps: DDPM, DiffuseVAE of formulation 1 and of 2.

    fastdiff reproduce speed-up

The three have the same number of parameters (a DiffuseVAE's are those of both stages), the same number of optimiser
steps, the same noise levels in training (all of them, `DDPMConfig.continuous`), and every one is sampled with the same
number of calls of its network.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..datasets import digits
from ..evaluation import evaluate
from ..frechet import fd_digits
from ..interpolation import VARIED, strips
from ..latent_mixture import fit_mixture, scikit_learn
from ..models import HVAE, ConvVAEConfig, DDPMConfig, DiffuseVAE, DiffuseVAEConfig, HVAEConfig, UNetConfig
from ..sample import sample
from ..training import TrainConfig
from .budget import Budget
from .runner import Arm, load_arm, measure_arms
from .speed_up_report import BETAS, COMPONENTS, FEW, STEPS, write_report
from .study import Study

DATA = {"shape": (1, 8, 8), "levels": 17}
VAE = HVAEConfig(**DATA, network=ConvVAEConfig(widths=(28, 32)))
SHOWN = (5, 10, 25)  # numbers of steps whose samples the document shows
IMAGES = 1500
# What is sampled: each sampler at several numbers of steps, even in time, and the chains of few betas of DiffuseVAE's
# table 3.
WALKS: dict[str, dict[str, Any]] = {
    **{f"ddim-{n}": {"steps": n, "sampler": "ddim"} for n in STEPS},
    **{f"ancestral-{n}": {"steps": n, "variance": "small"} for n in STEPS},
    **{f"betas-{n}": {"steps": n, "variance": "small", "betas": pair} for n, pair in BETAS.items()},
}
MIXTURE_WALKS = {f"mixture-{n}": WALKS[f"ddim-{n}"] for n in FEW}  # the same, with z from a mixture


def ddpm(width: int, lower: int) -> DDPMConfig:
    """A DDPM on the digits that is trained at all noise levels."""
    return DDPMConfig(**DATA, continuous=True, network=UNetConfig(widths=(width, lower), blocks=2, dropout=0.1))


def arms(budget: Budget) -> list[Arm]:
    """The models of the study, one per setting and seed."""
    train = TrainConfig("digits", budget.steps, learning_rate=3e-3)
    settings: dict[str, Any] = {"vae": VAE, "ddpm": ddpm(40, 52)}
    for formulation in (1, 2):
        settings[f"diffusevae{formulation}"] = DiffuseVAEConfig(
            **DATA, vae=VAE, refiner=ddpm(32, 48), formulation=formulation
        )
    return [
        Arm(f"{name}-seed{seed}", model, replace(
            train, seed=seed, loss="elbo" if name == "vae" else "simple",
            first_stage=f"vae-seed{seed}" if isinstance(model, DiffuseVAEConfig) else None,
        ))
        for name, model in settings.items()
        for seed in range(budget.seeds)
    ]  # fmt: skip


def gather(everything: list[Arm], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Distances by sampler and number of steps, bounds, samples, and walks through the latents."""
    settings = {
        "images": IMAGES, "draws": budget.draws, "walks": WALKS, "mixture_walks": MIXTURE_WALKS,
        "components": COMPONENTS, "seeds": "of the samples: that of the training",
    }  # fmt: skip
    return {
        "images": IMAGES,
        "models": measure_arms(everything, folder, workers, measure, "speed-up", settings),
        "pictures": _pictures(everything, folder),
        "strips": _strips(load_arm(next(arm for arm in everything if arm.name == "diffusevae2-seed0"), folder)),
    }


def measure(arm: Arm, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Bits/dim of one model, and FD-digits of its samples by every sampler and number of steps.

    The samples' seed is the training's: what seeds differ by is then the error of training and of sampling.
    """
    model, data = load_arm(arm, folder), digits()
    result = evaluate(model, data.test_images, draws=settings["draws"])
    walks = {"vae": {}} if isinstance(model, HVAE) else dict(settings["walks"])
    if isinstance(model, (HVAE, DiffuseVAE)):
        mixture = fit_mixture(model, data.train_images, settings["components"], arm.train.seed)
        above = {"vae-mixture": {}} if isinstance(model, HVAE) else settings["mixture_walks"]
        walks |= {name: {**options, "mixture": mixture} for name, options in above.items()}
    distances = {}
    for name, options in walks.items():
        images = sample(model, settings["images"], seed=arm.train.seed, batch_size=250, output="levels", **options)
        found = fd_digits(images)
        distances[name] = [found.value, found.standard_error]
    return {"parameters": sum(p.numel() for p in model.parameters()), **result.row(), "distances": distances}


def _strips(model: DiffuseVAE) -> dict[str, list[list[list[int]]]]:
    """Two walks of 16 images through each thing that can be varied while the rest is held, as levels."""
    walks = {vary: strips(model, vary, 2, 16, seed=0, steps=50, data=digits()) for vary in VARIED}
    return {vary: images.flatten(1).view(2, 16, -1).tolist() for vary, images in walks.items()}


def _pictures(everything: list[Arm], folder: Path) -> dict[str, list[list[int]]]:
    """Samples of every model of the first seed at the numbers of steps `SHOWN`, each as its 64 levels."""
    found = {}
    for arm in everything:
        if arm.train.seed == 0 and not isinstance(arm.model, HVAEConfig):
            for steps in SHOWN:
                images = sample(load_arm(arm, folder), 16, steps=steps, sampler="ddim", output="levels")
                found[f"{arm.name.removesuffix('-seed0')}-{steps}"] = images.flatten(1).tolist()
    return found


STUDY = Study(
    "speed-up", arms, gather, write_report, Budget(steps=4000, seeds=3, draws=32), "diffusevae", needs=scikit_learn
)
