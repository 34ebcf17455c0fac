"""Cases on training, checkpoints and the command line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from number_cases.families import COUNT, EMBEDDED, FAMILIES, RESTORATION, VAES, Case, fresh, held_out
from PIL import Image
from torch import Tensor

import fastdiff


def cases(folder: Path) -> Iterator[Case]:
    """All cases of this file; checkpoints that the first version writes to ``folder`` are read by both."""
    yield from training(folder)
    yield from checkpoints(folder)
    yield from settings()
    yield from commands()


NAMES = (
    "digits", "vdm-digits", "ddpm-digits", "vae-digits", "hvae-digits", "diffusevae-digits", "diffusevae2-digits",
    "superresolution2-digits", "superresolution4-digits", "denoising-digits", "vdm-cifar10", "vdm-imagenet32",
    "vdm-imagenet64", "ddpm-cifar10", "vae-cifar10", "vae-celeba64", "diffusevae-cifar10", "diffusevae2-cifar10",
    "diffusevae-celeba64",
)  # fmt: skip
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "preset": ("vdm", {}),
    "learned schedule": ("vdm, learned schedule", {}),
    "learned schedule, T=10, independent times": ("vdm, learned schedule", {"T": 10, "stratified": False}),
    "learned schedule, min-snr, flips": ("vdm, learned schedule", {"loss": "min-snr", "flip": 0.5, "shift": 0.0}),
    "sigmoid, no clipping": ("vdm", {"loss": "sigmoid", "clip_norm": None, "decay": "constant"}),
    "simple, preset": ("ddpm, fixed_large", {}),
    "elbo": ("ddpm, fixed_large", {"loss": "elbo"}),
    "simple and bound": ("ddpm, learned", {}),
    "min-snr": ("ddpm, fixed_small", {"loss": "min-snr", "T": 20}),
    "preset, other schedule": (
        "vdm, fixed cosine schedule",
        {"weight_decay": 0.5, "warm_up": 0, "learning_rate": 1e-4},
    ),
    "paper's network, elbo": ("vdm, paper's network", {}),
    "paper's network, sigmoid": ("ddpm, paper's network", {"loss": "sigmoid", "flip": 0.5}),
    **{f"preset of {name}": (name, {}) for name in ("diffusevae", "diffusevae2", *RESTORATION, *VAES)},
    "elbo, learned variances": ("diffusevae2, v, learned", {"loss": "elbo"}),
}


def training(folder: Path) -> Iterator[Case]:
    """Three steps of every family: reports, weights, averaged weights, moments; the same after a resumed step."""
    for text, (family, changes) in TRAININGS.items():

        def steps(api: Any, family: str = family, changes: dict[str, Any] = changes, text: str = text) -> Any:
            config = api.train_config(FAMILIES[family][0], max_steps=3, batch_size=16, **changes)
            torch.manual_seed(config.seed)
            state = api.state_of(fresh(api, family), config)
            path, reports = folder / f"training, {family}, {text}", []
            for report in api.train(state, api.digits()):
                reports.append(report)
                if report[0] == 2 and not path.exists():
                    api.save_training(path, state)
            resumed = api.load_training(path)
            list(api.train(resumed, api.digits()))
            tensors = tensors_of(state)
            if not all(map(torch.equal, tensors, tensors_of(resumed))):
                raise ValueError("the resumed training ended with other tensors")
            return [reports, tensors]

        yield Case(f"train, {family}: {text}", steps)


def tensors_of(state: Any) -> list[Tensor]:
    """Weights, averaged weights and the optimiser's moments, in the order of the parameters."""
    moments = [state.optimizer.state[parameter] for parameter in state.model.parameters()]
    weights = [*state.model.state_dict().values(), *state.averaged.state_dict().values()]
    return [*weights, *(values[key] for values in moments for key in sorted(values))]


def checkpoints(folder: Path) -> Iterator[Case]:
    """Models that the first version saved: their tensors in order, and their bounds."""
    for family in FAMILIES:

        def loaded(api: Any, family: str = family) -> Any:
            path = folder / family
            if not path.exists():
                fresh(api, family).save(path)
            model = api.load(path)
            bound = api.vlb(model, held_out(api, COUNT), "own", None)
            return [list(model.state_dict().values()), bound, model.kind if family == EMBEDDED else ""]

        yield Case(f"checkpoint, {family}", loaded)


def settings() -> Iterator[Case]:
    """Every preset: the shapes of its model's parameters in order, and how it is trained."""
    for name in NAMES:

        def described(api: Any, name: str = name) -> Any:
            with torch.device("meta"):
                shapes = [list(parameter.shape) for parameter in api.build(name).parameters()]
            return [str(shapes), str(api.settings(api.train_config(name)))]

        yield Case(f"preset {name}", described)


def commands() -> Iterator[Case]:
    """The embedded model as a user meets it."""
    yield Case("embedded: sample of 8 in 20 steps", lambda api: api.sample(api.load("digits"), 8, steps=20))
    yield Case(
        "embedded: bits per dimension of 100 images",
        lambda api: [api.evaluate(api.load("digits"), held_out(api, 100), T=T, draws=4) for T in (None, 100)],
    )

    for output in ("uint8", "levels", "float", "pil"):

        def presented(api: Any, output: str = output) -> Any:
            return list(map(np.asarray, fastdiff.sample("digits", 5, 4, seed=2, batch_size=2, output=output)))

        yield Case(f"embedded: output={output}", presented)

    def picture(_: Any) -> Any:  # 8 × 8 images, without the caption below them, which earlier commits do not have
        return [command("sample digits --out x.png"), pixels("x.png")[: 8 * 68 + 4]]

    yield Case("fastdiff sample digits --out x.png", picture)

    def run(api: Any) -> Any:
        command(f"train vae-digits {api.MAX_STEPS} 4 --batch-size 8 --out run")
        rows = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
        figures = [[value for key, value in row.items() if key != "images_per_second"] for row in rows]
        return [str(figures), pixels("run/samples.png"), list(api.load("run").state_dict().values())]

    yield Case("fastdiff train vae-digits: metrics, samples, weights", run)


def command(line: str) -> None:
    """Run the command line of the version in the working directory."""
    subprocess.run([sys.executable, "-m", "fastdiff", *line.split()], check=True, capture_output=True)


def pixels(path: str) -> np.ndarray:
    """The pixels of a picture."""
    with Image.open(path) as image:
        return np.asarray(image)
