"""The command ``fd``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import default_device, parse_counts, sampler_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion import Sampler
    from ..models import Model


@dataclass
class Fd:
    """Print FD-digits of samples at several numbers of steps: the Fréchet distance on a digit classifier's features."""

    model: tyro.conf.Positional[str] = "digits"
    """Checkpoint folder, run folder, or embedded model, of images of the digits' shape."""
    n: int = 1500
    """Number of images; compare only distances of equal n."""
    steps: str | None = None
    """Numbers of sampler steps, separated by commas, 10,50,250 by default; a VAE has none."""
    calls: str | None = None
    """Numbers of calls of the network instead of --steps: heun, which calls it twice a step, takes half as many."""
    sampler: str = "ancestral"
    """One or more of ancestral, ddim, dpm-solver, heun, euler, unipc, deis, dpm-solver-sde, dpm-solver-sde-2s, euler-a,
    separated by commas."""
    eta: float | None = None
    """Option of ddim, euler-a and dpm-solver-sde, the noise: 0 is deterministic, 1 that of ancestral sampling."""
    order: int | None = None
    """Option of unipc and deis: 1, 2 or 3 (the default)."""
    spacing: str | None = None
    """Where the steps lie: time (evenly, the default), gamma, quadratic, karras, or model (the model's own times)."""
    rho: float | None = None
    """Exponent of --spacing karras, 7 by default."""
    betas: tuple[float, float] | None = None
    """First and last of evenly spaced betas instead of a DDPM's own noise levels, see `fastdiff sample`."""
    variance: str | None = None
    """Option of ancestral: fixed_small, fixed_large or learned, instead of the model's own."""
    brownian: bool = False
    """Draw the noise of the steps from a Brownian path, see `fastdiff sample`."""
    mixture: Path | None = None
    """Mixture that the latent z of a VAE or a DiffuseVAE is drawn from."""
    seed: int = 0
    """Image i is a function of the seed and i."""
    batch_size: int = 250
    """Images per call of the network."""
    json: bool = False
    """Print JSON lines instead of a table."""

    def run(self) -> int:
        """Sample and compare for every sampler and number of steps, and print the table."""
        if self.n < 2:
            raise InvalidValueError(f"--n must be an integer >= 2, got {self.n}")
        if self.calls is not None and self.steps is not None:
            raise InvalidValueError(f"--calls must be absent where --steps is set, got {self.calls}")
        counts = parse_counts("calls", self.calls) if self.calls else parse_counts("steps", self.steps or "10,50,250")

        from ..checkpoints import load
        from ..data import digits
        from ..models import Request
        from ..training.batches import check_fit

        settings = self.settings(counts)
        model = load(self.model).to(default_device())
        check_fit(model, digits())
        if "sampler" not in model.sampling_options:  # a VAE: one setting, and `sample` rejects what it does not take
            settings = settings[:1] if self.steps or self.calls or self.sampler != "ancestral" else [(None, None, None)]
        for _, sampler, steps in settings:
            self.draw(model, 0, sampler, steps)  # checks all settings before the work
        if not self.json:
            print(f"{self.model}: FD-digits against the training digits, seed {self.seed}; compare only equal n")
            print(f"{'sampler':>18}  {'steps':>6}  {'calls':>6}  {'n':>6}  {'FD-digits':>9}  {'± s.e.':>7}")
        self.report("held-out", None, None, digits().test_images[:])
        for name, sampler, steps in settings:
            calls = None if sampler is None else model.prepare(Request(1, steps=steps, sampler=sampler)).rows
            self.report(name or model.kind, steps, calls, self.draw(model, self.n, sampler, steps))
        return 0

    def settings(self, counts: list[int]) -> "list[tuple[str | None, Sampler | None, int | None]]":
        """Return the name, the sampler and the number of steps of every row; ``counts`` are steps or calls."""
        names = ("eta", "order", "spacing", "rho", "betas", "variance", "brownian")
        options = {name: getattr(self, name) for name in names}
        rows = []
        for name in (part.strip() for part in self.sampler.split(",")):
            sampler = sampler_of(name, **options)
            per_step = sampler.calls_per_step if self.calls else 1
            if min(counts) < per_step:
                raise InvalidValueError(f"--calls must be integers >= {per_step} for {name}, got {self.calls}")
            rows += [(name, sampler, count // per_step) for count in counts]
        return rows

    def draw(self, model: "Model", n: int, sampler: "Sampler | None", steps: int | None) -> "Tensor":
        """Draw the images of a row, uint8 levels."""
        from ..models import Latents
        from ..sample import sample

        latents = None if self.mixture is None else Latents(mixture=self.mixture)
        return sample(
            model, n, steps, "ancestral" if sampler is None else sampler, self.seed, latents=latents,
            batch_size=self.batch_size, output="levels", progress=n > 0,
        )  # fmt: skip

    def report(self, name: str, steps: int | None, calls: int | None, images: "Tensor") -> None:
        """Compare images with the training digits, and print one line; ``calls`` are those of the network."""
        from ..evaluation import fd_digits
        from ..training.metrics import json_line

        result = fd_digits(images)
        row = {"sampler": name, "steps": steps, "calls": calls, "n": len(images)}
        row |= {"fd": result.value, "se": result.standard_error}
        line = f"{name:>18}  {steps or '':>6}  {calls or '':>6}  {len(images):>6}"
        line += f"  {result.value:9.3f}  {result.standard_error:7.3f}"
        print(json_line(row) if self.json else line, flush=True)
