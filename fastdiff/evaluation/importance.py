"""A pilot pass over some images, which the proposal of importance sampling of gamma is fitted to."""

from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..diffusion import LinearSchedule, Schedule
from ..diffusion.bound import stratified_times
from ..diffusion.proposal import fit_proposal
from ..kernels import InvalidValueError, Noise
from ..models import Model
from .batches import EVALUATION_STEP, Batches

PILOT_STEP = EVALUATION_STEP - 1  # noise of its own: the estimate is unbiased given the proposal
PILOT_SAMPLES = 4096  # 64 for each bin of the proposal


def pilot_size(count: int) -> tuple[int, int]:
    """Return how many of ``count`` images the pilot pass takes, and how often each."""
    images = min(count, PILOT_SAMPLES)
    return images, -(-PILOT_SAMPLES // images)


def check_importance(model: Model, T: int | None) -> None:
    """Check that gamma can be importance-sampled.

    Raises:
        InvalidValueError: a finite T, or a model without a diffusion.
    """
    if T is not None or model.gamma_range() is None:
        raise InvalidValueError(
            f"evaluate: importance needs a diffusion in continuous time, T = None; the {model.kind} model has T = {T}"
        )


def pilot_proposal(batches: Batches, bar: tqdm) -> Schedule:
    """Return the proposal that is fitted to ½ |eps - eps_hat|² on some of the images, at evenly spread gamma.

    The images are evenly spread over the data set. The values do not depend on the size of the batches, nor on the
    number of processes that share them.
    """
    model, count = batches.model, len(batches.images)
    endpoints = model.gamma_range()
    assert endpoints is not None
    low, high = (float(end) for end in endpoints)
    size, rounds = pilot_size(count)
    index = torch.arange(size) * count // size
    labels = None if batches.labels is None else batches.labels[index]
    pilot = replace(batches, images=batches.images[index], labels=labels, order=None)
    linear = LinearSchedule(low, high).to(model.device)
    vlb = batches.execution.call(model.vlb)

    def integrand(x: Tensor, y: Tensor | None, noise: Noise) -> Tensor:
        noise = noise.at(step=PILOT_STEP)
        nats = vlb(x, noise, None, labels=y, total=size * rounds, proposal=linear).diffusion
        u = stratified_times(noise, len(x), size * rounds).to(nats.device)
        return torch.stack([linear(u), nats.double() / (high - low)])

    gamma, values = torch.cat([values for _, values in pilot.results(rounds, integrand, bar)], 1)
    return fit_proposal(gamma, values.nan_to_num(0.0, posinf=0.0), low, high).to(model.device)
