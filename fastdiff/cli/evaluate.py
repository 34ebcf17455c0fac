"""The command ``evaluate``."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import load_data
from .choices import DEQUANTIZATIONS, DIVERGENCES, choice
from .common_flags import Computing, is_watched
from .tables import TABLE_HEAD, format_groups, format_ode_row, format_row

if TYPE_CHECKING:
    import torch

    from ..data import Dataset
    from ..evaluation import OdeBound
    from ..io.folders import Json
    from ..models import Model

ODE_DRAWS = 4  # at most, since each takes four calls of the network per step, and a gradient


@dataclass
class Evaluate(Computing):
    """Print bits/dim on the held-out images of a data set: its three terms and the standard error over the images.

    Every line ends with the kind of the bound. Where it is known which images belong together, such as the letters of a
    font family, one more line states the standard error over these groups.
    """

    model: tyro.conf.Positional[str] = "digits"
    """Checkpoint folder, run folder, or embedded model."""
    data: str | None = None
    """Data set (digits, letters, an .npz file, CIFAR-10, a folder of images), instead of that of the training."""
    T: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = "own"
    """Numbers of steps T of the bound, such as 1,10,100,inf; by default the model's own."""
    exact: bool = False
    """Sum over all steps of every finite T instead of drawing among them: T calls of the network per image."""
    ode: int | None = None
    """Also print the bound through the probability-flow ODE, integrated with this many steps, with few draws.
    Compare twice as many: too few steps give a number that is no bound.
    """
    dequantization: Annotated[str, choice(*DEQUANTIZATIONS)] = "normal"
    """With --ode: normal with the model's decoder; truncated-normal or uniform within the bin of a level."""
    samples: int = 1
    """With --ode: importance samples of each draw; more than one need --divergence exact or --probes 2 or more."""
    divergence: Annotated[str, choice(*DIVERGENCES)] = "hutchinson"
    """With --ode: estimated with random probes (hutchinson), or exact, with a gradient for every dimension."""
    probes: int = 1
    """With --ode: probes of the estimated divergence."""
    importance: bool = False
    """In continuous time (--T inf): fit the density of gamma to the model first, for draws of less variance."""
    draws: int = 64
    """Draws per image."""
    seed: int = 0
    """Seed of all draws."""
    batch_size: int = 512
    """Images per call of the network; it changes the result by rounding only."""
    conditional: bool = False
    """Condition a class-conditional model on the labels."""
    device: str = "auto"
    """Where to run: auto (the GPU if there is one), cpu, cuda, or cuda:1; under torchrun each process takes a GPU."""
    by_group: bool = False
    """Print the bits/dim of every group of held-out images too (font families, writers), where the data has groups."""
    compile: bool = False
    """Compile the model (torch.compile): the first batch takes longer, the others less."""
    json: bool = False
    """Print JSON lines instead of a table."""

    def run(self) -> int:
        """Check all arguments, then evaluate at one T after the other, printing each result."""
        wanted = [_parse_T(part) for part in self.T.split(",")]
        self.check_threads()

        from ..io.processes import joined

        with joined(self.device) as device:
            self.set_threads()
            self._evaluate(wanted, device)
        return 0

    def _evaluate(self, wanted: list[int | str | None], device: "torch.device") -> None:
        """Evaluate on a device; under torchrun the processes divide the work, and the first one prints."""
        from ..checkpoints import load
        from ..evaluation import evaluate, evaluate_latents
        from ..evaluation.batches import check_draws
        from ..evaluation.bits_per_dim import check_bound
        from ..evaluation.importance import check_importance
        from ..kernels import Noise
        from ..training.batches import check_fit

        check_draws(self.draws, self.batch_size)
        Noise(self.seed)  # checks it
        ode = self._ode_bound()
        model = load(self.model).to(device)
        if ode is not None:
            _ = model.unconditional_diffusion  # raises for other models
        data = load_data(self.model, self.data, model.shape)
        check_fit(model, data)
        if self.by_group and data.test_groups is None:
            raise InvalidValueError(f"--by-group needs a data set whose images have groups, and {data.name} has none")
        labels = data.test_labels if self.conditional else None
        if self.conditional and labels is None:
            raise InvalidValueError(f"--conditional needs labelled data, and {data.name} has no labels")
        images, common = data.test_images, {"batch_size": self.batch_size, "progress": is_watched(), "sharded": True}
        compiled = {"compile": self.compile}
        model.check_labels("evaluate", labels, len(images))
        for T in wanted:
            of_bound, _ = check_bound(model, T, self.exact)
            if self.importance:
                check_importance(model, of_bound)
        draws = "the sum over all steps" if self.exact else f"{self.draws} draws each"
        self._print(f"{self.model}: {len(images)} held-out images of {data.name}, {draws}, seed {self.seed}", None)
        self._print(f"{TABLE_HEAD}  bound (s.e. over the images)", None)
        layers = evaluate_latents(model, images, self.seed, **common)
        about = {"draws": self.draws, "seed": self.seed, "exact": self.exact}
        kind = {"exact": self.exact, "importance": self.importance}
        for T in wanted:
            result = evaluate(
                model, images, labels, T, self.draws, self.seed, groups=data.test_groups, **kind, **common, **compiled
            )
            row = result.row() | {"bound": result.kind, "importance": self.importance} | about | layers
            lines, groups = self._groups(result.bpd.total, data)
            self._print("\n".join([f"{format_row(result)}  {result.kind}", *lines]), row | groups)
        for layer, (active, nats) in enumerate(zip(*layers.values(), strict=True), 1):
            line = f"z_{layer}: {active} of {model.latent_size} units active, {nats:.2f} nats per image"
            self._print(line, None)
        if ode is not None:
            self._evaluate_ode(ode, model, data, labels)

    def _ode_bound(self) -> "OdeBound | None":
        """Return the bound through the ODE that the arguments ask for, checked; None without --ode."""
        from ..evaluation import OdeBound

        if self.ode is not None:
            return OdeBound(self.ode, self.dequantization, self.samples, self.divergence, self.probes)
        for name in ("dequantization", "samples", "divergence", "probes"):
            if getattr(self, name) != getattr(OdeBound, name):
                raise InvalidValueError(f"--{name} needs --ode STEPS, the bound through the probability-flow ODE")
        return None

    def _evaluate_ode(
        self,
        bound: "OdeBound",
        model: "Model",
        data: "Dataset",
        labels: "torch.Tensor | None",
    ) -> None:
        """Print the line of the bound through the ODE."""
        from ..evaluation import evaluate_ode, standard_error

        images = data.test_images
        draws = min(self.draws, ODE_DRAWS)
        bpd = evaluate_ode(
            model, images, labels, bound.steps, draws, self.seed, self.batch_size, progress=is_watched(), sharded=True,
            compile=self.compile, dequantization=bound.dequantization, samples=bound.samples,
            divergence=bound.divergence, probes=bound.probes,
        )  # fmt: skip
        kind = asdict(bound)
        mean, error = float(bpd.mean()), standard_error(bpd)
        row = {"ode_steps": kind.pop("steps"), "bpd": mean, "se": error, "bound": "ODE", **kind}
        about = {"draws": draws, "seed": self.seed, "exact": self.exact}
        lines, groups = self._groups(bpd, data)
        self._print("\n".join([format_ode_row(mean, error, bound, draws), *lines]), row | about | groups)

    def _groups(self, bpd: "torch.Tensor", data: "Dataset") -> "tuple[list[str], Json]":
        """Return the lines and the fields on the groups of the images; none where the data has no groups.

        With ``by_group`` every group has a line, in the order of its bits/dim.
        """
        from ..evaluation import group_means, group_standard_error

        if data.test_groups is None:
            return [], {}
        means = sorted(group_means(bpd, data.test_groups), key=lambda each: each.mean)
        error = group_standard_error(bpd, data.test_groups)
        lines = [format_groups(error, [each.mean for each in means], data.group_kind or "groups")]
        fields: Json = {"groups": len(means), "group_kind": data.group_kind, "se_groups": error}
        if self.by_group:
            named = [(data.group_name(each.group), each.n, each.mean) for each in means]
            lines += [f"{'':8}  {mean:9.4f}  {name}, {n} images" for name, n, mean in named]
            fields["by_group"] = [{"name": name, "n": n, "bpd": mean} for name, n, mean in named]
        return lines, fields

    def _print(self, line: str, row: "Json | None") -> None:
        """Print a line of the table, or with --json its row; None has no line in JSON."""
        from ..io.processes import is_first
        from ..training.metrics import json_line

        if is_first() and not (self.json and row is None):
            print(json_line(row) if self.json and row is not None else line, flush=True)


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
