"""Bits per dimension of a data set, independent of the batch size, with standard errors over images and groups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..diffusion import Execution, Schedule, Vlb
from ..kernels import FastdiffError, InvalidValueError, Noise
from ..models import Model, check_model, evaluating
from .batches import Batches, Images, check_data, check_draws, progress_bar
from .compiled import CompiledDiffusion
from .groups import GroupMean, check_groups, group_means, group_standard_error, spread_order
from .importance import check_importance, pilot_proposal, pilot_size
from .ode_bound import OdeBound

OWN = "own"  # the model's own number of steps


class EvaluationError(FastdiffError, RuntimeError):
    """A bound that is not a number."""


@dataclass(frozen=True)
class Evaluation:
    """The bound over a data set: the terms of every image in bits per dimension, float64 [N], averaged over the draws.

    T is the number of steps, None for continuous time. kind says which bound it is: ``"VLB"``, ``"VLB, exact sum"``,
    ``"VLB, continuous time"``, or ``"VLB, continuous time, importance"``. groups: int64 [N], which images belong
    together, such as those of a font family; None where nothing is known.
    """

    bpd: Vlb
    T: int | None
    kind: str = "VLB"
    groups: Tensor | None = None

    @property
    def mean(self) -> float:
        """Mean bits per dimension over the images."""
        return float(self.bpd.total.double().mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the images; it includes the error of the draws."""
        return standard_error(self.bpd.total)

    @property
    def group_standard_error(self) -> float | None:
        """Standard error of the mean over independent groups of images; None without groups."""
        return None if self.groups is None else group_standard_error(self.bpd.total, self.groups)

    def by_group(self) -> list[GroupMean]:
        """Return number, size and mean bits per dimension of every group; an empty list without groups."""
        return [] if self.groups is None else group_means(self.bpd.total, self.groups)

    def row(self) -> dict[str, float | int | None]:
        """Return the figures of a table: T, bpd, its standard error, and the three terms.

        With groups also their number and the standard error over them, ``groups`` and ``se_groups``.
        """
        terms = {name: float(getattr(self.bpd, name).double().mean()) for name in ("recon", "prior", "diffusion")}
        row = {"T": self.T, "bpd": self.mean, "se": self.standard_error, **terms}
        if self.groups is None:
            return row
        return row | {"groups": len(self.groups.unique()), "se_groups": self.group_standard_error}


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of [N]; NaN for one value."""
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@torch.no_grad()
def evaluate(
    model: Model,
    images: Tensor | Images,
    labels: Tensor | None = None,
    T: int | str | None = OWN,
    draws: int = 16,
    seed: int = 0,
    batch_size: int = 512,
    exact: bool = False,
    progress: bool = False,
    sharded: bool = False,
    compile: bool = False,
    importance: bool = False,
    groups: Tensor | None = None,
) -> Evaluation:
    """Evaluate the bound on every image, ``draws`` times each, at times stratified over all images and draws.

    Draw r of image i is sample r · N + i of one global batch of N · draws samples, so the result depends on the seed
    and not on the batch size. The draws of one image are evenly spaced in time.

    Args:
        model: any model of the family. It is evaluated in eval mode, and its mode restored.
        images: uint8 [N, C, H, W], N >= 1, or a source that decodes them when they are indexed.
        labels: int64 [N] for a class-conditional bound, or None. The labels after the classes are allowed: "no label",
            and "augmented" for a model with that label.
        T: number of steps of the bound; None for continuous time; ``"own"`` for the model's own.
        draws, batch_size: >= 1.
        seed: of all draws.
        exact: compute the diffusion term as the sum over all steps of the chain, with one draw of z_t each, instead of
            ``draws`` of its terms. This calls the network T times per image and needs a finite T.
        progress: show a progress bar on stderr, if it takes longer than two seconds.
        sharded: divide the batches among the processes of the run (`fastdiff.io.processes`), which all must make the
            same call. Every process returns the full result, bit for bit that of a single process.
        compile: call the bound through ``torch.compile``, which changes it by rounding. The first batch takes longer.
        importance: in continuous time, draw gamma from a density fitted to the model in a pilot pass of some 4096 draws
            (`fastdiff.diffusion.fit_proposal`): the same expectation, and less variance of the draws.
        groups: int64 [N], which images belong together (`fastdiff.data.Dataset.test_groups`), for the error over them.
            The images are then evaluated in another order, which spreads the times of every group
            (`fastdiff.evaluation.groups.spread_order`): the result differs by the error of the draws.

    Raises:
        InvalidTypeError, InvalidValueError: images or labels that do not fit the model, no images, numbers out of
            range, exact in continuous time or for a VAE, importance at a finite T or for a VAE, no compiler.
        ScheduleError: the schedule of the model is not increasing.
        EvaluationError: the bound of an image is not a number.
        ProcessError: another process has failed or ended.
    """
    model = check_model("evaluate", model)
    if groups is not None:
        check_groups(groups, len(images))
    order = None if groups is None else spread_order(len(images))
    batches = Batches(model, images, labels, seed, batch_size, sharded, Execution(compile), order)
    with evaluating(batches.model):
        return replace(_evaluate(batches, T, draws, exact, importance, progress), groups=groups)


def _evaluate(
    batches: Batches, T: int | str | None, draws: int, exact: bool, importance: bool, progress: bool
) -> Evaluation:
    """Check the arguments of `evaluate`, and return its result."""
    model, count = batches.model, len(batches.images)
    T, num_transitions = check_bound(model, T, exact)
    check_draws(draws, batches.batch_size)
    rounds = draws + (num_transitions or 0 if exact else 0)
    check_data(model, batches.images, batches.labels, draws, batches.batch_size, rounds)
    model.check_schedule()
    if importance:
        check_importance(model, T)
    call = batches.execution.call
    batches.execution.check_device(model.device)
    proposal: dict[str, Schedule] = {}  # left out where there is none: a model of the user's own may not take one

    def bound(x: Tensor, y: Tensor | None, noise: Noise) -> Sequence[Tensor]:
        vlb = call(model.vlb)(x, noise, T, labels=y, total=count * draws, **proposal)
        return vlb.recon, vlb.prior, vlb.diffusion

    title = f"bound at T = {'inf' if T is None else T}"
    pilot = math.prod(pilot_size(count)) if importance else 0
    with progress_bar(count * rounds + pilot, title, progress, batches.sharded) as bar:
        if importance:
            proposal["proposal"] = pilot_proposal(batches, bar)
        if exact and num_transitions is not None:
            ends = batches.mean(draws, lambda x, y, noise: call(model.end_terms)(x, noise, y), bar)
            terms = [*ends, *_exact_diffusion(model, batches, num_transitions, bar)]
        else:
            terms = batches.mean(draws, bound, bar)
    continuous = T is None and model.gamma_range() is not None
    kind = "VLB" + ", continuous time" * continuous + ", exact sum" * exact + ", importance" * importance
    return _checked(Evaluation(Vlb(*terms).bpd(model.dims), T, kind))


def _checked(result: Evaluation) -> Evaluation:
    values = result.bpd.total
    wrong = int(values.isnan().sum())
    if wrong:
        raise EvaluationError(
            f"the bound is not a number for {wrong} of {len(values)} images: are the model's weights finite?"
        )
    return result


def _exact_diffusion(model: Model, batches: Batches, num_transitions: int, bar: tqdm) -> list[Tensor]:
    """Return the sum over all steps of the diffusion term of every image: round r over the data set takes step r."""
    count = len(batches.images)

    def one_step(x: Tensor, y: Tensor | None, noise: Noise) -> Sequence[Tensor]:
        sample = int(noise.key[2]) + torch.arange(len(x), device=x.device, dtype=torch.float64)
        u = (torch.floor(sample / count) + 0.5) / num_transitions
        return [batches.execution.call(model.transition_nats)(x, noise, u, num_transitions, y)]

    return batches.mean(num_transitions, one_step, bar)


def check_bound(model: Model, T: int | str | None, exact: bool) -> tuple[int | None, int | None]:
    """Return T and the number of Gaussian steps, checked; None in continuous time.

    Raises:
        InvalidValueError: a T that the model cannot have, or exact without a finite number of Gaussian steps.
    """
    if isinstance(T, str) and T != OWN:
        raise InvalidValueError(f"evaluate: T must be an integer >= 1, None or {OWN!r}, got {T!r}")
    T = model.check_T("evaluate", model.T if isinstance(T, str) else T)
    num_transitions = model.num_transitions(T)
    if exact and num_transitions is None:
        raise InvalidValueError(f"evaluate: exact needs a diffusion at a finite T; the {model.kind} model has T = {T}")
    return T, num_transitions


def evaluate_ode(
    model: Model,
    images: Tensor | Images,
    labels: Tensor | None = None,
    steps: int = 64,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 512,
    progress: bool = False,
    sharded: bool = False,
    compile: bool = False,
    dequantization: str = "normal",
    samples: int = 1,
    divergence: str = "hutchinson",
    probes: int = 1,
) -> Tensor:
    """Evaluate the bound through the probability-flow ODE, `fastdiff.evaluation.ode_nats`, in bits per dimension.

    Args:
        model, images, labels, draws, seed, batch_size, progress, sharded: as in `evaluate`.
        steps: steps of the integrator, >= 1.
        compile: call the network through ``torch.compile``.
        dequantization, samples, divergence, probes: the kind of the bound, see `fastdiff.evaluation.ode_nats`. Each
            draw takes ``samples`` importance samples.

    Returns:
        float64 [N], the mean over the draws of each image.

    Raises:
        InvalidTypeError, InvalidValueError, ScheduleError, ProcessError: as in `evaluate`; a model that is not an
            unconditional or class-conditional diffusion model.
    """
    bound = OdeBound(steps, dequantization, samples, divergence, probes)
    diffusion = check_model("evaluate_ode", model).unconditional_diffusion
    check_data(model, images, labels, draws, batch_size, draws)
    model.check_schedule()
    execution = Execution(compile)
    execution.check_device(model.device)
    diffusion = CompiledDiffusion(diffusion, execution) if compile else diffusion
    batches = Batches(model, images, labels, seed, batch_size, sharded, execution)
    with evaluating(model), progress_bar(len(images) * draws, "probability-flow ODE", progress, sharded) as bar:
        [nats] = batches.mean(draws, lambda x, y, noise: [bound.nats(diffusion, x, noise, y)], bar)
    return nats / (model.dims * math.log(2.0))
