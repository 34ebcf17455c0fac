"""Commands that measure a model: ``evaluate`` and ``fd``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from torch import Tensor

from .. import runs
from ..checkpoint import load
from ..datasets import check_fit, digits, load_dataset
from ..evaluation import (
    OWN,
    TABLE_HEAD,
    chain_of,
    check_draws,
    evaluate,
    evaluate_levels,
    evaluate_ode,
    format_row,
    standard_error,
)
from ..frechet import fd_digits
from ..kernels import Noise
from ..models import HVAE, DiffuseVAE, DiffusionModel, Restorer
from ..ode import check_integrator
from ..sample import sample
from .arguments import default_device, parse_steps

Name = tyro.conf.Positional
ODE_DRAWS = 4


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
        levels = evaluate_levels(model, data.test_images, self.seed, self.batch_size)
        about = {"draws": self.draws, "seed": self.seed, "exact": self.exact}
        for steps in wanted:
            result = evaluate(model, data.test_images, labels, steps=steps, exact=self.exact, **settings)
            print(runs.json_line(result.row() | about | levels) if self.json else format_row(result), flush=True)
        if not self.json:
            _print_levels(model, levels)
        if self.ode is not None:
            settings["draws"] = min(self.draws, ODE_DRAWS)
            flow = evaluate_ode(model, data.test_images, labels, steps=self.ode, **settings)
            row = {"ode_steps": self.ode, "bpd": float(flow.mean()), "se": standard_error(flow), **about}
            line = (
                f"{'ODE':>8}  {row['bpd']:9.4f}  {row['se']:7.4f}  ({self.ode} steps, {settings['draws']} draws each)"
            )
            print(runs.json_line(row | {"draws": settings["draws"]}) if self.json else line)
        return 0


def _print_levels(model: Any, found: dict[str, list[Any]]) -> None:
    """Print how much every latent of a VAE says, if the model has one."""
    latent = (model.vae if isinstance(model, DiffuseVAE) else model).config.latent if found else 0
    for level, (active, nats) in enumerate(zip(*found.values(), strict=True), 1):
        print(f"z_{level}: {active} of {latent} units active, {nats:.2f} nats per image")


@dataclass
class Fd:
    """Print FD-digits of samples at several numbers of steps: the Fréchet distance on a digit classifier's features."""

    model: Name[str] = "digits"
    """Checkpoint folder, run folder, or embedded model, of images of the digits' shape."""
    n: int = 1500
    """Number of images; only distances of equal n compare."""
    steps: str | None = None
    """Numbers of sampler steps, separated by commas, by default 10,50,250; a VAE has none."""
    sampler: str | None = None
    """One or more of ancestral (the default), ddim, dpm-solver, heun, separated by commas."""
    eta: float | None = None
    """Of ddim: 0 is deterministic, 1 is ancestral."""
    grid: str | None = None
    """Where the steps are: even in time (the default), in gamma, or quadratic."""
    betas: tuple[float, float] | None = None
    """First and last of evenly spaced betas instead of a DDPM's own noise levels, see `fastdiff sample`."""
    variance: str | None = None
    """Of the ancestral sampler's steps: small, large or learned, instead of the model's own."""
    mixture: Path | None = None
    """Mixture of latents that a VAE's or a DiffuseVAE's latent is drawn from."""
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
        parts = (self.steps or "10,50,250").split(",")
        if not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
            raise ValueError(f"fd: steps are {self.steps!r}; allowed: integers >= 1, separated by commas")
        model = load(self.model).to(default_device())
        check_fit(model, digits())
        if isinstance(model, Restorer):
            raise ValueError("fd: model is a restorer, which needs images; allowed: a model that draws them by itself")
        common: Any = {"seed": self.seed, "batch_size": self.batch_size, "mixture": self.mixture}
        options = {"eta": self.eta, "grid": self.grid, "betas": self.betas, "variance": self.variance}
        walks: list[tuple[str, int | None, Any]] = [
            (name.strip(), int(part), {"sampler": name.strip(), "steps": int(part), **options})
            for name in (self.sampler or "ancestral").split(",")
            for part in parts
        ]
        if isinstance(model, HVAE):  # its chain is its own, and `sample` refuses what is asked for
            walks = [("vae", None, {"sampler": self.sampler, **options})]
            if self.steps is not None:
                raise ValueError(f"fd: steps are {self.steps!r} for a VAE, which has one chain; allowed: none")
        for _, _, walk in walks:  # checks them all before the first long run
            sample(model, 0, **walk, **common)
        if not self.json:
            print(f"{self.model}: FD-digits against the training digits, seed {self.seed}; only equal n compare")
            print(f"{'sampler':>12}  {'steps':>6}  {'n':>6}  {'FD-digits':>9}  {'± s.e.':>7}")
        self.report("held-out", None, digits().test_images)
        for name, steps, walk in walks:
            self.report(name, steps, sample(model, self.n, **walk, **common, output="levels", progress=True))
        return 0

    def report(self, name: str, steps: int | None, images: Tensor) -> None:
        """Compare images with the training digits, and print one line."""
        result = fd_digits(images)
        row = {"sampler": name, "steps": steps, "n": len(images), "fd": result.value, "se": result.standard_error}
        line = f"{name:>12}  {steps or '':>6}  {len(images):>6}  {result.value:9.3f}  {result.standard_error:7.3f}"
        print(runs.json_line(row) if self.json else line, flush=True)
