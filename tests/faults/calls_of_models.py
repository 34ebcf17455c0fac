"""Right and wrong arguments of sampling, bounds, models, configurations, data and training."""

import tempfile
from pathlib import Path

import torch
from tiny import images, small, small_ddpm, small_vae

import fastdiff
from fastdiff.data import ImageOptions, from_torch, load_dataset
from fastdiff.diffusion import DDIM, DEIS, Ancestral, DPMSolver, Euler, Heun, UniPC
from fastdiff.evaluation import evaluate, evaluate_ode
from fastdiff.models import DDPMConfig, VDMConfig
from fastdiff.sampling import interpolate, reconstruct
from fastdiff.training import TrainConfig, TrainState, runs, train

from . import wrong_values as wrong
from .calls_of_operations import NOISE, Call, X
from .subjects import CONFIG, NETWORK, data, small_model, trained


def models() -> dict[str, Call]:
    """Sampling and loading."""
    model, vae, ddpm, half = small(num_classes=10), small_vae(), small_ddpm(), small(seed=1).half()
    sampled = {"model": model, "n": 2, "steps": 2, "labels": 1}
    other_models = [None, 3, torch.nn.Linear(2, 2), half, *wrong.PATH[:4]]
    return {
        "sample": Call(
            fastdiff.sample,
            sampled,
            {
                "model": other_models,
                "n": wrong.COUNT,
                "steps": [*wrong.POSITIVE[:-4], 0, -1],
                "seed": wrong.SEED,
                "labels": wrong.LABELS_OF_SAMPLES,
                "guidance": wrong.REAL,
                "sampler": [*wrong.CHOICE, None],
                "batch_size": wrong.POSITIVE,
                "output": [*wrong.CHOICE, None],
                "device": wrong.DEVICE,
                "callback": [3, "x"],
                "latents": [3, "x", fastdiff.Latents(temperature=2.0)],
                "cond": [X, 3, "x"],
            },
        ),
        "sample of a VAE": Call(
            fastdiff.sample,
            {"model": vae, "n": 2},
            {
                "steps": [2],
                "sampler": ["ddim"],
                "labels": [1],
                "latents": [
                    3,
                    "x",
                    fastdiff.Latents(z=torch.zeros(3, 5)),
                    fastdiff.Latents(z=X),
                    fastdiff.Latents(mixture="no/such"),
                ],
            },
        ),
        "sample of a DDPM": Call(fastdiff.sample, {"model": ddpm, "n": 1, "steps": 2}, {"steps": [1, 0, 10**9]}),
        "Latents": Call(
            fastdiff.Latents, {}, {"temperature": wrong.POSITIVE_REAL, "mixture": [3, [], X], "z": [3, "x"]}
        ),
        "load": Call(
            fastdiff.load,
            {"path_or_name": "digits"},
            {"path_or_name": [*wrong.PATH, None, 3, b"x", []], "network": [torch.nn.Linear(2, 2)]},
        ),
    }


def bounds() -> dict[str, Call]:
    """Bounds and reconstructions."""
    model, vae, two, half = small(num_classes=10), small_vae(), images(2), small(seed=1).half()
    return {
        "vlb": Call(
            model.vlb,
            {"x": two, "noise": NOISE},
            {"x": wrong.IMAGES, "labels": wrong.LABELS, "T": [0, -1, 1.5, "x", wrong.NAN, True], "noise": [None, 3, X]},
        ),
        "forward": Call(
            model.forward,
            {"x": two, "noise": NOISE},
            {
                "x": wrong.IMAGES,
                "labels": wrong.LABELS,
                "T": [0, -1, 1.5, "x", wrong.NAN],
                "loss": [*wrong.CHOICE, None],
                "noise": [None, 3, X],
            },
        ),
        "evaluate": Call(
            evaluate,
            {"model": model, "images": two, "draws": 1},
            {
                "model": [None, 3, half, "digits"],
                "images": [*wrong.IMAGES, two[:0]],
                "labels": wrong.LABELS,
                "T": [0, -1, 1.5, "x", wrong.NAN],
                "draws": wrong.POSITIVE,
                "seed": wrong.SEED,
                "batch_size": wrong.POSITIVE,
                "exact": [True],
            },
        ),
        "evaluate_ode": Call(
            evaluate_ode,
            {"model": model, "images": two, "steps": 1, "draws": 1},
            {
                "model": [vae, None],
                "images": wrong.IMAGES,
                "steps": wrong.POSITIVE,
                "dequantization": wrong.CHOICE,
                "samples": [*wrong.POSITIVE, 2],
                "divergence": wrong.CHOICE,
                "probes": wrong.POSITIVE,
            },
        ),
        "reconstruct": Call(
            reconstruct,
            {"model": vae, "images": two},
            {"model": [model, None], "images": wrong.IMAGES, "seed": wrong.SEED, "batch_size": wrong.POSITIVE},
        ),
        "interpolate": Call(
            interpolate,
            {"model": vae, "vary": "latent", "count": 2},
            {"model": [None, 3], "count": [*wrong.POSITIVE, 1], "vary": [*wrong.CHOICE, None]},
        ),
    }


def settings() -> dict[str, Call]:
    """The configuration of a training."""
    config = {"data": "digits", "max_steps": 2}
    real = dict.fromkeys(("learning_rate", "schedule_learning_rate", "clip_norm"), wrong.POSITIVE_REAL)
    chances = dict.fromkeys(("shift", "flip", "label_dropout"), wrong.PROBABILITY)
    chances |= {name: [*wrong.PROBABILITY, 1.0] for name in ("beta_1", "beta_2", "ema")}
    whole = dict.fromkeys(("max_steps", "batch_size", "accumulate"), wrong.POSITIVE)
    return {
        "TrainConfig": Call(
            TrainConfig,
            config,
            {
                **real,
                **chances,
                **whole,
                "data": [3, None, [], b"x"],
                "loss": wrong.CHOICE,
                "precision": wrong.CHOICE,
                "decay": wrong.CHOICE,
                "seed": wrong.SEED,
                "compile": wrong.FLAG,
                "images": [3, "x"],
                "T": [*wrong.POSITIVE[:-4], 0, -1],
                "first_stage": [3, []],
                "warm_up": wrong.COUNT,
                "unknown": [1],
            },
        ),
    }


def other_settings() -> dict[str, Call]:
    """Configurations of images, models and samplers."""
    return {
        "ImageOptions": Call(
            ImageOptions,
            {"size": 8},
            {
                "size": [*wrong.POSITIVE[:-4], 0, -1],
                "resize": [4, 0, "x", 1.5],
                "crop": wrong.CHOICE,
                "color": wrong.CHOICE,
                "classes": wrong.FLAG,
                "held_out": [0, -1, 1.5],
                "skip_damaged": wrong.FLAG,
            },
        ),
        "VDMConfig": Call(
            VDMConfig,
            {"shape": (1, 8, 8), "levels": 17, "network": NETWORK},
            {
                "shape": [3, (1, 8), (0, 8, 8), (1.5, 8, 8), "x", None],
                "levels": [1, 257, 1.5, None],
                "gamma_0": [wrong.NAN, "x", wrong.INF],
                "prediction": wrong.CHOICE[1:],
                "sigma_data": wrong.POSITIVE_REAL,
                "network": [3, "x"],
                "num_classes": [-1, 1.5, "x"],
                "fourier": [3, (1,), "x", (4, 3), (-1, 2)],
            },
        ),
        "DDPMConfig": Call(
            DDPMConfig,
            {"shape": (1, 8, 8), "levels": 17, "T": 12, "network": NETWORK},
            {"T": wrong.POSITIVE, "shape": [(1, 8)]},
        ),
        **{
            kind.__name__: Call(
                kind,
                {},
                {
                    "spacing": [*wrong.CHOICE, None, (), (0.0, 0.5), (0.0, 0.7, 0.2, 1.0), (0.0, "x", 1.0)],
                    "rho": wrong.POSITIVE_REAL,
                    "order": [0, 4, 1.5, "x", None],
                    "temperature": wrong.POSITIVE_REAL,
                    "betas": [(0.5,), (0.8, 0.1), (0.0, 2.0), 3, "x", (wrong.NAN, 0.1)],
                    "clip_denoised": wrong.FLAG,
                    "eta": [2.0, -1.0, wrong.NAN, "x"],
                },
            )
            for kind in (Ancestral, DDIM, DPMSolver, Heun, Euler, UniPC, DEIS)
        },
    }


def data_sets() -> dict[str, Call]:
    """Data sets."""
    part = [(images(1)[0], 0)]
    return {
        "load_dataset": Call(
            load_dataset,
            {"name": "digits"},
            {
                "name": [*wrong.PATH, 3, None, b"x", []],
                "options": [3, "x", ImageOptions(held_out=2), ImageOptions(size=8, resize=9, held_out=1)],
            },
        ),
        "from_torch": Call(
            from_torch,
            {"train": part, "test": part, "levels": 17},
            {
                "train": [None, 3, [], [3], ["x"], [(None, 0)], [(X, 0)], {}],
                "test": [None, [], 3],
                "levels": [1, 257, 1.5, "x", None, True],
                "num_classes": [-1, 1.5, "x", None],
                "options": [3, ImageOptions(classes=True)],
                "name": [3],
            },
        ),
    }


def training() -> dict[str, Call]:
    """Training and runs on disk."""
    state = trained()
    folder = Path(tempfile.mkdtemp())
    start = {"out": folder / "run", "build": small_model, "config": CONFIG, "data": data()}

    def first_step(state: object, data: object, workers: object = 0) -> object:
        return next(iter(train(state, data, workers)))  # type: ignore[arg-type]

    return {
        "train": Call(
            first_step,
            {"state": state, "data": data()},
            {
                "state": [None, 3, small_model()],
                "data": [None, 3, images(2), "digits", small_data()],
                "workers": [-1, 1.5, "x"],
            },
        ),
        "TrainState": Call(
            TrainState,
            {"model": small_model(), "config": CONFIG},
            {"model": [None, 3, torch.nn.Linear(2, 2)], "config": [None, 3, {"data": "digits"}]},
        ),
        "runs.start": Call(
            runs.start,
            start,
            {
                "out": ["/dev/null", "/dev/null/x", "a\0b", "x" * 300, "/proc/x", None, 3],
                "build": [None, 3, lambda: None],
                "config": [None, 3],
                "data": [None, 3, "digits", small_data()],
                "device": wrong.DEVICE,
            },
        ),
        "runs.resume": Call(
            runs.resume,
            {"out": folder, "settings": {}},
            {"out": [*wrong.PATH, None, 3], "settings": [{"max_steps": 0}, {"x": 1}, None, 3]},
        ),
        "RunOptions": Call(
            runs.RunOptions,
            {},
            {
                "save_every": wrong.POSITIVE,
                "keep": wrong.POSITIVE,
                "evaluations": wrong.COUNT,
                "workers": [-1, 1.5, "x"],
            },
        ),
    }


def small_data():
    """Return images of another number of levels."""
    return from_torch([images(1)[0]], [images(1)[0]], levels=256)
