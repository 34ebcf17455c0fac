"""The command line: ``fastdiff sample | train | evaluate | info``."""

import json
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from PIL import Image

from . import __version__, runs
from .checkpoint import embedded_names, load
from .config import ConfigError
from .datasets import DataError, check_fit, load_dataset
from .evaluation import evaluate, format_table
from .kernels import BackendError, backend
from .plots import grid
from .presets import PRESETS, preset
from .sample import SamplingError, sample
from .storage import CheckpointError
from .training import TrainingError

USER_ERRORS = (
    BackendError, CheckpointError, ConfigError, DataError, OSError, SamplingError, TrainingError, TypeError, ValueError,
    runs.RunError,
)  # fmt: skip
Name = tyro.conf.Positional


@dataclass
class Sample:
    """Draw images from a model and write them as one PNG grid."""

    model: Name[str] = "digits"
    """Checkpoint folder, run folder, or embedded model."""
    n: int = 64
    """Number of images."""
    out: Path = Path("samples.png")
    """Picture to write."""
    steps: int = 250
    """Sampler steps."""
    sampler: str = "ancestral"
    """ancestral, ddim or dpm-solver."""
    seed: int = 0
    """Image i is a function of the seed and i."""
    batch_size: int = 64
    """Images per call of the network."""
    label: int | None = None
    """Class of all images, for a class-conditional model."""
    guidance: float | None = None
    """Classifier-free guidance weight, with --label."""

    def run(self) -> int:
        """Sample, and write the picture."""
        if self.n < 1:
            raise ValueError(f"sample: n is {self.n}; allowed: an integer >= 1 for a picture")
        check_picture(self.out)
        images = sample(
            self.model, self.n, steps=self.steps, sampler=self.sampler, seed=self.seed, batch_size=self.batch_size,
            labels=self.label, guidance=self.guidance, progress=True, device=default_device(),
        )  # fmt: skip
        grid(images).save(self.out)
        print(f"wrote {self.out} ({self.n} images)")
        return 0


@dataclass
class Train:
    """Train a preset; Ctrl-C leaves a checkpoint, --resume goes on from it to the same weights."""

    preset: Name[str] = "digits"
    """Name of the preset."""
    out: Path | None = None
    """Folder of the run; by default runs/PRESET."""
    resume: bool = False
    """Go on with the run in that folder, with its own settings."""
    steps: int | None = None
    """Optimiser steps, instead of the preset's."""
    batch_size: int | None = None
    """Images per step, instead of the preset's."""
    learning_rate: float | None = None
    """Peak learning rate, instead of the preset's."""
    seed: int | None = None
    """Seed of everything, instead of the preset's."""
    data: str | None = None
    """Data set (digits, or the path of an .npz file), instead of the preset's."""
    save_every: int = 500
    """Steps between checkpoints."""

    def run(self) -> int:
        """Start or resume the run, and print its result."""
        chosen = preset(self.preset)
        names = ("steps", "batch_size", "learning_rate", "seed", "data")
        wanted = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.save_every < 1:
            raise ValueError(f"train: save-every is {self.save_every}; allowed: an integer >= 1")
        out, device = self.out or Path("runs") / self.preset, default_device()
        if self.resume:
            state = runs.resume(out, wanted, device)
            data = load_dataset(state.config.data)
            check_fit(state.model, data)
        else:
            config = replace(chosen.train, **wanted)
            data = load_dataset(config.data)
            state = runs.start(out, chosen.build, config, data, device)
        model: Any = state.model
        parameters, config = sum(p.numel() for p in model.parameters()), state.config
        print(f"{self.preset}: {parameters:,} parameters, {config.steps} steps of {config.batch_size} images, in {out}")
        outcome = runs.run(out, state, data, save_every=self.save_every)
        if outcome.stopped_by is not None:
            print(f"stopped after step {outcome.step}; go on with: fastdiff train {self.preset} --out {out} --resume")
            return 128 + outcome.stopped_by
        if outcome.evaluation is not None:
            print(f"held-out bits/dim of the averaged weights, in {out}:")
            print(format_table([outcome.evaluation]))
        return 0


@dataclass
class Evaluate:
    """Print bits/dim on the held-out images of a data set: its three terms and the standard error over the images."""

    model: Name[str] = "digits"
    """Checkpoint folder, run folder, or embedded model."""
    data: str = "digits"
    """Data set: digits, or the path of an .npz file."""
    steps: str = "inf"
    """Numbers of steps T of the bound, such as 1,10,100,inf."""
    draws: int = 64
    """Draws per image."""
    seed: int = 0
    """Seed of all draws."""
    batch_size: int = 512
    """Images per call of the network; it does not change the result beyond rounding."""
    conditional: bool = False
    """Give the labels to a class-conditional model."""
    json: bool = False
    """Print JSON lines instead of a table."""

    def run(self) -> int:
        """Evaluate at every T asked for, and print the table."""
        wanted = [parse_steps(part) for part in self.steps.split(",")]
        model = load(self.model).to(default_device())
        data = load_dataset(self.data)
        check_fit(model, data)
        labels = data.test_labels if self.conditional else None
        if self.conditional and labels is None:
            raise ValueError(f"evaluate: data set {data.name} has no labels; allowed: --conditional with labelled data")
        settings = {"draws": self.draws, "seed": self.seed, "batch_size": self.batch_size, "progress": True}
        results = [evaluate(model, data.test_images, labels, steps=steps, **settings) for steps in wanted]
        if self.json:
            print("\n".join(json.dumps(result.row()) for result in results))
        else:
            count = len(data.test_images)
            print(f"{self.model}: {count} held-out images of {data.name}, {self.draws} draws each, seed {self.seed}")
            print(format_table(results))
        return 0


@dataclass
class Info:
    """Print versions, backend, presets and embedded models."""

    def run(self) -> int:
        """Print what this installation is."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        print(f"fastdiff {__version__}, torch {torch.__version__}, backend {backend()}, device {device}")
        print(f"presets: {', '.join(PRESETS)}")
        print(f"embedded models: {', '.join(embedded_names())}")
        return 0


Command = (
    Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def check_picture(path: Path) -> None:
    """Check that a picture can be written to a path, before the work that makes it.

    Raises:
        ValueError: no such folder, or an ending that is no picture format.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path}: no folder {path.parent}; allowed: a path in an existing folder")
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; allowed: .png and other picture formats")


def parse_steps(text: str) -> int | None:
    """Read one T: an integer >= 1, or ``inf`` for None."""
    if text.strip() == "inf":
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"evaluate: steps holds {text!r}; allowed: integers >= 1 and inf, separated by commas")
    return int(text)


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; wrong input ends in one line on stderr and exit code 2."""
    command: Any = tyro.cli(Command, args=arguments, prog="fastdiff", description="Diffusion models with exact bounds.")
    try:
        return command.run()
    except USER_ERRORS as error:
        print(f"fastdiff: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastdiff: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
