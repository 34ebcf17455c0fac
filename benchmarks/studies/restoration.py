"""Super-resolution and denoising of the digits: conditional DDPMs, and the second stage of a DiffuseVAE.

    python benchmarks/studies/reproduce.py restoration

Three degradations: down-sampling by 2, down-sampling by 4, and additive noise. Each is compared with three models that
restore the images: the VAE, which reconstructs the degraded image; the second stage of a DiffuseVAE, which was trained
on the images of its VAE alone; and a restoration model of the same size, which was trained on the degraded images.
"""

from pathlib import Path
from typing import Any

from attrs import evolve
from torch import Tensor

from fastdiff.evaluation import psnr
from fastdiff.io.configuration import to_dict
from fastdiff.models import AddNoise, Degradation, Downsample, RestorationConfig
from fastdiff.sampling import reconstruct

from .data_sets import DataSet
from .restoration_report import STEPS, write_report
from .runner import Run, load_run, measure_runs
from .speed_up import diffusion
from .speed_up import runs as speed_up_runs
from .study import Budget, Study

DEGRADATIONS: dict[str, Downsample | AddNoise] = {
    "down-2": Downsample(factor=2),
    "down-4": Downsample(factor=4),
    "noise-0.5": AddNoise(deviation=0.5),
}
SHOWN = 10  # images in the document


def runs(data: DataSet, budget: Budget) -> list[Run]:
    """Return the models of the study: VAEs and DiffuseVAEs of formulation 1 of `speed_up`, and restoration models."""
    train = data.training(budget.steps, loss="simple")
    shared = [run for run in speed_up_runs(data, budget) if run.setting in ("vae", "diffusevae1")]
    return shared + [
        Run(
            f"{name}-seed{seed}",
            RestorationConfig(**diffusion(data, data.second_stage), degradation=degradation),
            evolve(train, seed=seed),
        )
        for name, degradation in DEGRADATIONS.items()
        for seed in range(budget.seeds)
    ]


def gather(data: DataSet, everything: list[Run], folder: Path, budget: Budget, workers: int) -> dict[str, Any]:
    """Return distances of the restored images from the originals, and the first images."""
    options = {
        "steps": STEPS, "sampler": "ddim", "shown": SHOWN, "seeds": "of the samples: that of the training",
        "degradations": {name: to_dict(degradation) for name, degradation in DEGRADATIONS.items()},
    }  # fmt: skip
    found = measure_runs(everything, folder, workers, measure, "restoration", options)
    return {"models": found, "originals": _levels(data.load().test_images[:SHOWN])}


def measure(run: Run, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return PSNR and FD-digits of the held-out images that a model restores, by degradation, and the first of them.

    A restoration model is measured on its own degradation. It also gives the figures of the degraded images: their PSNR
    as they are, the rest at the nearest levels. The seed of the noise and of the samples is that of the training.
    """
    model, found = load_run(run, folder), {}
    images, shown = run.data_set.load().test_images[:], options["shown"]
    restores = run.setting in DEGRADATIONS
    is_diffusion = "x_T" in model.latent_variables
    chosen = {"steps": options["steps"], "sampler": options["sampler"]} if is_diffusion else {}
    degradations: dict[str, Degradation | None] = {run.setting: None} if restores else {"none": None, **DEGRADATIONS}
    for name, degradation in degradations.items():
        result = reconstruct(model, images, degradation, seed=run.train.seed, batch_size=297, **chosen)
        found[name] = _figures(images, result.images, result.images, run.data_set, shown)
        if restores and result.start is not None:
            found["degraded"] = _figures(images, result.start, model.nearest_level(result.start), run.data_set, shown)
    return found


def _figures(images: Tensor, restored: Tensor, levels: Tensor, data: DataSet, shown: int) -> dict[str, Any]:
    return {
        "psnr": float(psnr(images, restored, data.levels).mean()),
        "fd": data.fd(levels).value,
        "levels": _levels(levels[:shown]),
    }


def _levels(images: Tensor) -> list[list[int]]:
    return images.flatten(1).tolist()


STUDY = Study(
    "restoration", runs, gather, write_report, {"digits": Budget(steps=4000, seeds=3)}, "diffusevae", draws=False
)
