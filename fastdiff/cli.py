"""The command line: ``fastdiff sample | train | evaluate | interpolate | fd | reproduce | info``."""

import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from . import __version__, runs
from .checkpoint import embedded_names, load
from .cli_arguments import check_picture, default_device, parse_steps, with_first_stage
from .config import ConfigError
from .datasets import DataError, check_fit, digits, load_dataset
from .evaluation import OWN, TABLE_HEAD, chain_of, check_draws, evaluate, evaluate_ode, format_row, standard_error
from .frechet import fd_digits
from .interpolation import strips
from .kernels import BackendError, Noise, backend
from .models import DiffusionModel
from .ode import check_integrator
from .plots import grid, to_uint8
from .presets import PRESETS, preset
from .sample import SamplingError, sample
from .storage import CheckpointError
from .studies import STUDIES, Budget, StudyError
from .training import TrainingError

USER_ERRORS = (
    BackendError, CheckpointError, ConfigError, DataError, OSError, SamplingError, TrainingError, TypeError, ValueError,
    StudyError, runs.RunError,
)  # fmt: skip
Name = tyro.conf.Positional
ODE_DRAWS = 4


@dataclass
class Sample:
    """Draw images from a model and write them as one PNG grid."""

    model: Name[str] = "digits"
    """Checkpoint folder, run folder, or embedded model."""
    n: int = 64
    """Number of images."""
    out: Path = Path("samples.png")
    """Picture to write."""
    steps: int | None = None
    """Sampler steps, by default 250; a VAE has none."""
    sampler: str | None = None
    """ancestral (the default), ddim, dpm-solver or heun."""
    eta: float | None = None
    """Of ddim: 0 is deterministic, 1 is ancestral."""
    grid: str | None = None
    """Where the steps are: even in time (the default), in gamma, or quadratic."""
    temperature: float = 1.0
    """Factor on the initial latent."""
    latent_temperature: float = 1.0
    """Factor on the latent of a DiffuseVAE's first stage."""
    variance: str | None = None
    """Of the ancestral sampler's steps: small, large or learned, instead of the model's own."""
    clip: bool = False
    """Clip the estimate of x to [-1, 1] at every step."""
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
            labels=self.label, guidance=self.guidance, eta=self.eta, grid=self.grid, temperature=self.temperature,
            latent_temperature=self.latent_temperature,
            variance=self.variance, clip=self.clip, progress=True, device=default_device(),
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
    """Data set (digits, an .npz file, the CIFAR-10 archive, a folder of images), instead of the preset's."""
    first_stage: str | None = None
    """Trained VAE under a DiffuseVAE: its run's folder or checkpoint."""
    save_every: int = 500
    """Steps between checkpoints."""

    def run(self) -> int:
        """Start or resume the run, and print its result."""
        chosen = preset(self.preset)
        names = ("steps", "batch_size", "learning_rate", "seed", "data", "first_stage")
        wanted = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.save_every < 1:
            raise ValueError(f"train: save-every is {self.save_every}; allowed: an integer >= 1")
        out, device = self.out or Path("runs") / self.preset, default_device()
        if self.resume:
            state = runs.resume(out, wanted, device, chosen.model)
            data = load_dataset(state.config.data)
            check_fit(state.model, data)
        else:
            config = replace(chosen.train, **wanted)
            data = load_dataset(config.data)
            state = runs.start(out, lambda: with_first_stage(chosen.build(), config.first_stage), config, data, device)
        model: Any = state.model
        parameters, config = sum(p.numel() for p in model.parameters()), state.config
        print(f"{self.preset}: {parameters:,} parameters, {config.steps} steps of {config.batch_size} images, in {out}")
        outcome = runs.run(out, state, data, save_every=self.save_every)
        if outcome.stopped_by is not None:
            print(f"stopped after step {outcome.step}; go on with: fastdiff train {self.preset} --out {out} --resume")
            return 128 + outcome.stopped_by
        if outcome.evaluation is not None:
            print(f"held-out bits/dim of the averaged weights, in {out}:")
            print(TABLE_HEAD, format_row(outcome.evaluation), sep="\n")
        return 0


@dataclass
class Evaluate:
    """Print bits/dim on the held-out images of a data set: its three terms and the standard error over the images."""

    model: Name[str] = "digits"
    """Checkpoint folder, run folder, or embedded model."""
    data: str = "digits"
    """Data set: digits, an .npz file, the CIFAR-10 archive, or a folder of images."""
    steps: str = OWN
    """Numbers of steps T of the bound, such as 1,10,100,inf; by default the model's own."""
    exact: bool = False
    """Sum over all steps of every finite T instead of drawing among them: T calls of the network per image."""
    ode: int | None = None
    """Also print the bound through the probability-flow ODE, integrated with this many steps, with few draws."""
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
        """Check everything that was asked for, then evaluate at one T after the other, printing as it goes."""
        wanted = [parse_steps("evaluate", part) for part in self.steps.split(",")]
        if self.ode is not None:
            check_integrator(self.ode)
        check_draws(self.draws, self.batch_size)
        Noise(self.seed)  # checks it
        model: Any = load(self.model).to(default_device())
        if self.ode is not None and not isinstance(model, DiffusionModel):
            raise ValueError(f"evaluate: ode for a {model.kind}; allowed: for a diffusion model")
        data = load_dataset(self.data)
        check_fit(model, data)
        labels = data.test_labels if self.conditional else None
        if self.conditional and labels is None:
            raise ValueError(f"evaluate: data set {data.name} has no labels; allowed: --conditional with labelled data")
        model.check_labels("evaluate", labels, len(data.test_images))
        for steps in wanted:
            chain_of(model, steps, self.exact)  # checks it
        settings: Any = {"draws": self.draws, "seed": self.seed, "batch_size": self.batch_size, "progress": True}
        if not self.json:
            draws = "the sum over all steps" if self.exact else f"{self.draws} draws each"
            print(f"{self.model}: {len(data.test_images)} held-out images of {data.name}, {draws}, seed {self.seed}")
            print(TABLE_HEAD)
        about = {"draws": self.draws, "seed": self.seed, "exact": self.exact}
        for steps in wanted:
            result = evaluate(model, data.test_images, labels, steps=steps, exact=self.exact, **settings)
            print(runs.json_line(result.row() | about) if self.json else format_row(result), flush=True)
        if self.ode is not None:
            settings["draws"] = min(self.draws, ODE_DRAWS)
            flow = evaluate_ode(model, data.test_images, labels, steps=self.ode, **settings)
            row = {"ode_steps": self.ode, "bpd": float(flow.mean()), "se": standard_error(flow), **about}
            line = (
                f"{'ODE':>8}  {row['bpd']:9.4f}  {row['se']:7.4f}  ({self.ode} steps, {settings['draws']} draws each)"
            )
            print(runs.json_line(row | {"draws": settings["draws"]}) if self.json else line)
        return 0


@dataclass
class Interpolate:
    """Write strips of images: a walk through one latent of a model while everything else is held."""

    model: Name[str]
    """Checkpoint folder, run folder, or embedded model: a VAE, a DiffuseVAE or a diffusion model."""
    vary: str = "latent"
    """latent (z of a VAE), noise (x_T), or class (z from one class's mean to the next's)."""
    rows: int = 6
    """Number of strips."""
    count: int = 10
    """Images per strip."""
    out: Path = Path("strips.png")
    """Picture to write."""
    steps: int = 50
    """Sampler steps."""
    sampler: str = "ddim"
    """ancestral, ddim, dpm-solver or heun."""
    seed: int = 0
    """Of the ends of the walks, and of what they share."""
    data: str = "digits"
    """Labelled data set, for --vary class."""

    def run(self) -> int:
        """Render the strips, and write the picture."""
        check_picture(self.out)
        model: Any = load(self.model).to(default_device())
        data = load_dataset(self.data) if self.vary == "class" else None
        if data is not None:
            check_fit(model, data)
        images = strips(model, self.vary, self.rows, self.count, self.seed, self.steps, self.sampler, data)
        grid(to_uint8(images, model.levels), columns=self.count).save(self.out)
        print(f"wrote {self.out} ({self.rows} strips of {self.count} images)")
        return 0


@dataclass
class Fd:
    """Print FD-digits of samples at several numbers of steps: the Fréchet distance on a digit classifier's features."""

    model: Name[str] = "digits"
    """Checkpoint folder, run folder, or embedded model, of images of the digits' shape."""
    n: int = 1500
    """Number of images; only distances of equal n compare."""
    steps: str = "10,50,250"
    """Numbers of sampler steps, separated by commas."""
    sampler: str = "ancestral"
    """One or more of ancestral, ddim, dpm-solver, heun, separated by commas."""
    eta: float | None = None
    """Of ddim: 0 is deterministic, 1 is ancestral."""
    grid: str = "time"
    """Where the steps are: even in time, in gamma, or quadratic."""
    seed: int = 0
    """Image i is a function of the seed and i."""
    batch_size: int = 250
    """Images per call of the network."""
    json: bool = False
    """Print JSON lines instead of a table."""

    def run(self) -> int:
        """Sample and compare for every sampler and number of steps asked for, and print the table."""
        if self.n < 2:
            raise ValueError(f"fd: n is {self.n}; allowed: an integer >= 2")
        parts = self.steps.split(",")
        if not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
            raise ValueError(f"fd: steps are {self.steps!r}; allowed: integers >= 1, separated by commas")
        numbers, samplers = [int(part) for part in parts], [name.strip() for name in self.sampler.split(",")]
        model = load(self.model).to(default_device())
        check_fit(model, digits())
        for name in samplers:
            for steps in numbers:  # checks them all before the first long run
                sample(
                    model, 0, steps=steps, sampler=name, eta=self.eta, grid=self.grid, seed=self.seed,
                    batch_size=self.batch_size,
                )  # fmt: skip
        if not self.json:
            print(f"{self.model}: FD-digits against the training digits, seed {self.seed}; only equal n compare")
            print(f"{'sampler':>12}  {'steps':>6}  {'n':>6}  {'FD-digits':>9}  {'± s.e.':>7}")
        self.report("held-out", None, digits().test_images)
        for name in samplers:
            for steps in numbers:
                images = sample(
                    model, self.n, steps=steps, sampler=name, eta=self.eta, grid=self.grid, seed=self.seed,
                    batch_size=self.batch_size, output="levels", progress=True,
                )  # fmt: skip
                self.report(name, steps, images)
        return 0

    def report(self, name: str, steps: int | None, images: Tensor) -> None:
        """Compare images with the training digits, and print one line."""
        result = fd_digits(images)
        row = {"sampler": name, "steps": steps, "n": len(images), "fd": result.value, "se": result.standard_error}
        line = f"{name:>12}  {steps or '':>6}  {len(images):>6}  {result.value:9.3f}  {result.standard_error:7.3f}"
        print(runs.json_line(row) if self.json else line, flush=True)


@dataclass
class Reproduce:
    """Train the small models of a study, measure, and write its document, numbers and pictures; it can be resumed."""

    study: Name[str] = "schedules"
    """Name of the study."""
    out: Path = Path("docs")
    """Folder of the document."""
    runs: Path | None = None
    """Folder of the trained models; by default runs/STUDY. What is trained there is not trained again."""
    steps: int | None = None
    """Optimiser steps per model, instead of the study's."""
    seeds: int | None = None
    """Seeds per setting, instead of the study's."""
    draws: int | None = None
    """Draws per held-out image, instead of the study's."""
    workers: int = 2
    """Models that are trained at a time, one thread each."""

    def run(self) -> int:
        """Run the study."""
        if self.study not in STUDIES:
            raise ValueError(f"reproduce: unknown study {self.study!r}; allowed: {', '.join(STUDIES)}")
        wanted = {name: getattr(self, name) for name in ("steps", "seeds", "draws") if getattr(self, name) is not None}
        for name, value in (wanted | {"workers": self.workers}).items():
            if value < 1:
                raise ValueError(f"reproduce: {name} is {value}; allowed: at least 1")
        study = STUDIES[self.study]
        study(self.out, self.runs or Path("runs") / self.study, replace(Budget(), **wanted), self.workers)
        return 0


@dataclass
class Info:
    """Print versions, backend, presets and embedded models."""

    def run(self) -> int:
        """Print what this installation is."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        print(f"fastdiff {__version__}, torch {torch.__version__}, backend {backend()}, device {device}")
        print(f"presets: {', '.join(PRESETS)}")  # names alone: building one would take its memory
        print(f"embedded models: {', '.join(embedded_names())}")
        return 0


Command = (
    Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Interpolate, tyro.conf.subcommand("interpolate")]
    | Annotated[Fd, tyro.conf.subcommand("fd")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


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
