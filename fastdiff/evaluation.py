"""Bits per dimension of a data set, the same for any batch size, with the standard error over its images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .kernels import Noise, centre
from .models import HVAE, DiffuseVAE, DiffusionModel, Model
from .models.base import evaluating
from .models.hvae import active_units, level_nats
from .ode import check_integrator, ode_nats
from .schedules import gamma_table
from .vlb import Vlb

EVALUATION_STEP = 2**32 - 1  # a step that no training reaches: the two share no draw
OWN = "own"


@dataclass(frozen=True)
class Evaluation:
    """The bound over a data set: per-image terms in bits per dimension, each float64 [N], averaged over the draws."""

    bpd: Vlb
    steps: int | None

    @property
    def mean(self) -> float:
        """Bits per dimension, the mean over the images."""
        return float(self.bpd.total.double().mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the images (which contains the error of the draws)."""
        return standard_error(self.bpd.total)

    def row(self) -> dict[str, float | int | None]:
        """The figures that a table shows."""
        terms = {name: float(getattr(self.bpd, name).double().mean()) for name in ("recon", "prior", "diffusion")}
        return {"steps": self.steps, "bpd": self.mean, "se": self.standard_error, **terms}


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of [N]; NaN for one value."""
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@torch.no_grad()
def evaluate(
    model: Any,
    images: Tensor,
    labels: Tensor | None = None,
    steps: int | str | None = OWN,
    draws: int = 16,
    seed: int = 0,
    batch_size: int = 512,
    exact: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Evaluate the bound on every image, ``draws`` times each, at times stratified over all images and draws.

    Draw r of image i is sample r · N + i of one global batch of N · draws, so the result depends on the seed and not
    on the batch size; the draws of one image are evenly spaced in time.

    Args:
        model: any model of the family; it is evaluated in eval mode and left as it was.
        images: uint8 [N, C, H, W], N >= 1.
        labels: int64 [N] for a class-conditional bound, or None; the conditions after the classes count as labels too
            ("no label", and "augmented" where the model is told).
        steps: T of the bound, None for continuous time; by default (`OWN`) the model's own.
        draws, batch_size: at least 1.
        seed: of all draws.
        exact: whether the diffusion term is the sum over all steps of the chain, one draw of z_t each, instead of
            ``draws`` of its terms. It calls the network T times per image, and needs a finite T.
        progress: whether to show a progress bar.

    Raises:
        TypeError, ValueError: images or labels that do not fit the model; no images; draws, batch_size or steps below
            1; exact at T = infinity.
        ScheduleError: a schedule of the model that is not increasing.
    """
    chain, intervals = chain_of(model, steps, exact)
    rounds = draws + (intervals if exact and intervals else 0)
    _check(model, images, labels, draws, batch_size, rounds)
    count = len(images)

    def bound(x: Tensor, y: Tensor | None, noise: Noise) -> list[Tensor]:
        vlb = model.vlb(x, noise, chain, labels=y, total=count * draws)
        return [vlb.recon, vlb.prior, vlb.diffusion]

    def one_step(x: Tensor, y: Tensor | None, noise: Noise) -> list[Tensor]:
        sample = int(noise.key[2]) + torch.arange(len(x), device=x.device, dtype=torch.float64)
        u = (torch.floor(sample / count) + 0.5) / (
            intervals or 1
        )  # round r over the data set takes step r of the chain
        return [model.diffusion_nats(centre(x, model.levels), noise, u, intervals, y)]

    title = f"bound at T = {'inf' if chain is None else chain}"
    with evaluating(model), tqdm(
        total=count * rounds, unit="img", desc=title, disable=not progress, leave=False
    ) as bar:  # fmt: skip
        passes = _Passes(images, labels, seed, batch_size, model.device, bar)
        if exact and intervals is not None:
            ends = passes.mean(draws, lambda x, y, noise: list(model.end_terms(x, noise, y)))
            terms = [*ends, *passes.mean(intervals, one_step)]
        else:
            terms = passes.mean(draws, bound)
    return Evaluation(Vlb(*terms).bpd(model.dims), chain)


def evaluate_ode(
    model: Any,
    images: Tensor,
    labels: Tensor | None = None,
    steps: int = 64,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 512,
    progress: bool = False,
) -> Tensor:
    """Evaluate the bound through the probability-flow ODE, `fastdiff.ode.ode_nats`, in bits per dimension.

    Args:
        model, images, labels, draws, seed, batch_size, progress: as in `evaluate`.
        steps: steps of the integrator.

    Returns:
        float64 [N], the mean over the draws for each image.

    Raises:
        TypeError, ValueError, ScheduleError: as in `evaluate`.
    """
    check_integrator(steps)
    _check_model("evaluate_ode", model, (DiffusionModel,))
    _check(model, images, labels, draws, batch_size, draws)
    with evaluating(model), tqdm(
        total=len(images) * draws, unit="img", desc="probability-flow ODE", disable=not progress, leave=False
    ) as bar:  # fmt: skip
        passes = _Passes(images, labels, seed, batch_size, model.device, bar)
        [nats] = passes.mean(draws, lambda x, y, noise: [ode_nats(model, x, noise, steps, y)])
    return nats / (model.dims * math.log(2.0))


def evaluate_levels(model: Any, images: Tensor, seed: int = 0, batch_size: int = 512) -> dict[str, list[Any]]:
    """What the latents of a VAE, or of a DiffuseVAE's first stage, say: collapse is seen here.

    Args:
        model: any model of the family.
        images: uint8 [N, C, H, W], N >= 1.
        seed: of one draw per image.
        batch_size: images per call of the networks, at least 1.

    Returns:
        ``active_units``, their number per level, and ``level_nats``, the mean term of every level in the bound, from
        z_1 up; an empty dictionary for a model without such latents.

    Raises:
        TypeError, ValueError: as in `evaluate`.
    """
    vae = model.vae if isinstance(model, DiffuseVAE) else model
    if not isinstance(vae, HVAE):
        return {}
    _check(vae, images, None, 1, batch_size, 1)
    images, noise = images.to(vae.device), Noise(seed, EVALUATION_STEP).to(vae.device)
    with evaluating(vae):
        return {
            "active_units": active_units(vae, images, batch_size),
            "level_nats": level_nats(vae, images, noise, batch_size),
        }


class _Passes:
    """Passes over a data set: draw r of image i is sample r · N + i of the noise."""

    def __init__(
        self, images: Tensor, labels: Tensor | None, seed: int, batch_size: int, device: torch.device, bar: Any
    ) -> None:
        self.images, self.labels, self.seed, self.batch_size = images, labels, seed, batch_size
        self.device, self.bar = device, bar

    def mean(self, repeats: int, terms: Callable[[Tensor, Tensor | None, Noise], list[Tensor]]) -> list[Tensor]:
        """Means over ``repeats`` draws of every image of what ``terms`` returns for a batch, each float64 [N]."""
        count, sums = len(self.images), None
        for first in range(0, count * repeats, self.batch_size):
            index = torch.arange(first, min(first + self.batch_size, count * repeats)) % count
            x = self.images[index].to(self.device)
            y = None if self.labels is None else self.labels[index].to(self.device)
            noise = Noise(self.seed, EVALUATION_STEP, first_sample=first)
            values = torch.stack(terms(x, y, noise)).detach().double().cpu()
            sums = torch.zeros(len(values), count, dtype=torch.float64) if sums is None else sums
            sums.index_add_(1, index, values)
            self.bar.update(len(index))
        assert sums is not None
        return list(sums / repeats)


TABLE_HEAD = f"{'T':>8}  {'bits/dim':>9}  {'± s.e.':>7}  {'recon':>8}  {'prior':>8}  {'diffusion':>9}"


def format_row(evaluation: Evaluation) -> str:
    """A line for people, under `TABLE_HEAD`: bits per dimension with its standard error and its three terms."""
    row = evaluation.row()
    steps = "inf" if row["steps"] is None else str(row["steps"])
    return (
        f"{steps:>8}  {row['bpd']:9.4f}  {row['se']:7.4f}  {row['recon']:8.4f}  {row['prior']:8.4f}  "
        f"{row['diffusion']:9.4f}"
    )


def chain_of(model: Any, steps: int | str | None, exact: bool) -> tuple[int | None, int | None]:
    """T and the number of its Gaussian steps, None for continuous time.

    Raises:
        ValueError: steps that the model cannot have, or exact at T = infinity.
    """
    _check_model("evaluate", model)
    if isinstance(steps, str) and steps != OWN:
        raise ValueError(f"evaluate: steps is {steps!r}; allowed: an integer >= 1, None, or {OWN!r}")
    chain = model.steps if isinstance(steps, str) else steps
    intervals = model.intervals("evaluate", chain)
    chain = model.steps if isinstance(model, HVAE) else chain  # its only one
    if exact and not isinstance(model, DiffusionModel):
        raise ValueError(f"evaluate: exact for a {model.kind}; allowed: exact with a diffusion model")
    if exact and intervals is None:
        raise ValueError("evaluate: exact at T = infinity; allowed: exact with a finite number of steps")
    return chain, intervals


def _check_model(where: str, model: Any, kinds: tuple[type, ...] = (Model,)) -> None:
    if not isinstance(model, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{where}: model is a {type(model).__name__}; allowed: {names} (fastdiff.load gives a model)")


def check_draws(draws: int, batch_size: int) -> None:
    """Check two numbers of `evaluate`.

    Raises:
        ValueError: no integer of at least 1.
    """
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"evaluate: {name} is {value!r}; allowed: an integer >= 1")


def _check(model: Any, images: Tensor, labels: Tensor | None, draws: int, batch_size: int, rounds: int) -> None:
    check_draws(draws, batch_size)
    model.check_images("evaluate", images)
    if not len(images):
        raise ValueError("evaluate: no images; allowed: at least 1")
    model.check_labels("evaluate", labels, len(images))
    if len(images) * rounds > 2**32:
        raise ValueError(
            f"evaluate: {len(images)} images {rounds} times; allowed: 2**32 draws, which the noise can tell apart"
        )
    if isinstance(model, DiffusionModel):
        gamma_table(model.gamma, 256)  # a schedule that falls would give a bound that is none
