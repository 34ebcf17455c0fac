"""The command ``evaluate``."""

from dataclasses import dataclass

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import default_device
from .tables import TABLE_HEAD, format_row

ODE_DRAWS = 4  # at most, since each takes four calls of the network and its gradient per step


@dataclass
class Evaluate:
    """Print bits/dim on the held-out images of a data set: its three terms and the standard error over the images."""

    model: tyro.conf.Positional[str] = "digits"
    """Checkpoint folder, run folder, or embedded model."""
    data: str = "digits"
    """Data set: digits, an .npz file, a CIFAR-10 archive, or a folder of images."""
    T: str = "own"
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
    """Images per call of the network; it changes the result by rounding only."""
    conditional: bool = False
    """Condition a class-conditional model on the labels."""
    json: bool = False
    """Print JSON lines instead of a table."""

    def run(self) -> int:
        """Check all arguments, then evaluate at one T after the other, printing each result."""
        wanted = [_parse_T(part) for part in self.T.split(",")]

        from ..checkpoints import load
        from ..data import load_dataset
        from ..evaluation import evaluate, evaluate_latents, evaluate_ode, standard_error
        from ..evaluation.batches import check_draws
        from ..evaluation.bits_per_dim import check_bound
        from ..evaluation.ode import check_integrator
        from ..kernels import Noise
        from ..training.batches import check_fit
        from ..training.metrics import json_line

        check_draws(self.draws, self.batch_size)
        Noise(self.seed)  # checks it
        model = load(self.model).to(default_device())
        if self.ode is not None:
            check_integrator(self.ode)
            _ = model.unconditional_diffusion  # raises for other models
        data = load_dataset(self.data)
        check_fit(model, data)
        labels = data.test_labels if self.conditional else None
        if self.conditional and labels is None:
            raise InvalidValueError(f"--conditional needs labelled data, and {data.name} has no labels")
        model.check_labels("evaluate", labels, len(data.test_images))
        for T in wanted:
            check_bound(model, T, self.exact)
        if not self.json:
            draws = "the sum over all steps" if self.exact else f"{self.draws} draws each"
            print(f"{self.model}: {len(data.test_images)} held-out images of {data.name}, {draws}, seed {self.seed}")
            print(TABLE_HEAD)
        images, batch_size = data.test_images, self.batch_size
        layers = evaluate_latents(model, images, self.seed, batch_size)
        about = {"draws": self.draws, "seed": self.seed, "exact": self.exact}
        for T in wanted:
            result = evaluate(model, images, labels, T, self.draws, self.seed, batch_size, self.exact, progress=True)
            print(json_line(result.row() | about | layers) if self.json else format_row(result), flush=True)
        if layers and not self.json:
            for layer, (active, nats) in enumerate(zip(*layers.values(), strict=True), 1):
                print(f"z_{layer}: {active} of {model.latent_size} units active, {nats:.2f} nats per image")
        if self.ode is not None:
            draws = min(self.draws, ODE_DRAWS)
            bpd = evaluate_ode(model, images, labels, self.ode, draws, self.seed, batch_size, progress=True)
            mean, error = float(bpd.mean()), standard_error(bpd)
            row = {"ode_steps": self.ode, "bpd": mean, "se": error, **about, "draws": draws}
            line = f"{'ODE':>8}  {mean:9.4f}  {error:7.4f}  ({self.ode} steps, {draws} draws each)"
            print(json_line(row) if self.json else line)
        return 0


def _parse_T(text: str) -> int | str | None:
    """Read one T: an integer >= 1, ``inf`` for None, or ``own``."""
    text = text.strip()
    if text == "inf":
        return None
    if text == "own":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise InvalidValueError(f"--T must be integers >= 1, inf or own, separated by commas, got {text!r}")
    return int(text)
