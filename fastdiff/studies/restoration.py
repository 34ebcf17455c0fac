"""DiffuseVAE's second stage on other pictures than its VAE's: super-resolution and denoising of the digits.

    fastdiff reproduce restoration

Three degradations: down-sampling by 2 and by 4, and added noise. Four ways back: none, the VAE (which reconstructs the
degraded picture), the second stage of a DiffuseVAE that was trained on its VAE's pictures alone, and a second stage of
the same size that was trained on the degraded pictures.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import to_dict
from ..datasets import digits
from ..frechet import fd_digits
from ..models import AddNoise, Downsample, RestorerConfig
from ..reconstruction import psnr, reconstruct
from ..training import TrainConfig
from .budget import Budget
from .restoration_report import STEPS, write_report
from .runner import Arm, load_arm, measure_arms
from .speed_up import DATA, ddpm
from .speed_up import arms as speed_up_arms
from .study import Study

DEGRADATIONS = {"down-2": Downsample(factor=2), "down-4": Downsample(factor=4), "noise-0.5": AddNoise(deviation=0.5)}
SHOWN = 10  # images in the document


def arms(budget: Budget) -> list[Arm]:
    """The models of the study: of `speed_up` the VAEs and the DiffuseVAEs of formulation 1, and a restorer each."""
    train = TrainConfig("digits", budget.steps, learning_rate=3e-3, loss="simple")
    below = [arm for arm in speed_up_arms(budget) if arm.name.startswith(("vae", "diffusevae1"))]
    return below + [
        Arm(
            f"{name}-seed{seed}",
            RestorerConfig(**DATA, refiner=ddpm(32, 48), degradation=degradation),
            replace(train, seed=seed),
        )
        for name, degradation in DEGRADATIONS.items()
        for seed in range(budget.seeds)
    ]


def gather(everything: list[Arm], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Distances of the restored images from the originals, and the first of them."""
    settings = {
        "walk": {"steps": STEPS, "sampler": "ddim"}, "shown": SHOWN, "seeds": "of the samples: that of the training",
        "degradations": {name: to_dict(degradation) for name, degradation in DEGRADATIONS.items()},
    }  # fmt: skip
    found = measure_arms(everything, folder, workers, measure, "restoration", settings)
    return {"models": found, "originals": _levels(digits().test_images[:SHOWN])}


def measure(arm: Arm, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """PSNR and FD-digits of the held-out images that a model restores, by degradation; the first of them as levels.

    A restorer is measured on its own degradation, and gives the figures of the degraded images too: their PSNR as they
    are, the rest at the nearest levels. The seed of noise and samples is the training's.
    """
    model, found = load_arm(arm, folder), {}
    images, shown = digits().test_images, settings["shown"]
    own = isinstance(arm.model, RestorerConfig)
    refines = own or arm.train.first_stage is not None
    options: Any = settings["walk"] if refines else {}
    wanted = {arm.name.rpartition("-seed")[0]: None} if own else {"none": None, **DEGRADATIONS}
    for name, degradation in wanted.items():
        result = reconstruct(model, images, degradation, seed=arm.train.seed, batch_size=297, **options)
        found[name] = _figures(images, result.images, result.images, shown)
        if own and result.picture is not None:
            found["degraded"] = _figures(images, result.picture, model.nearest_level(result.picture), shown)
    return found


def _figures(images: Tensor, restored: Tensor, levels: Tensor, shown: int) -> dict[str, Any]:
    return {
        "psnr": float(psnr(images, restored, DATA["levels"]).mean()),
        "fd": fd_digits(levels).value,
        "levels": _levels(levels[:shown]),
    }


def _levels(images: Tensor) -> list[list[int]]:
    return images.flatten(1).tolist()


STUDY = Study("restoration", arms, gather, write_report, Budget(steps=4000, seeds=3), "diffusevae", draws=False)
