"""Sampling and training of small VDMs against the same network in plain PyTorch, by the wall clock.

The presets of the digits, 8 × 8 pixels, and of the letters, 28 × 28: the shape in the table tells them apart. Both
sides call the same ``model.eps_hat``; the other side's noise, loss, likelihood and sampler loop are those of `naive`.
"""

import copy
from collections.abc import Callable
from functools import partial

import naive
import pytest
import torch
from clocks import wall_clock
from torch import Tensor

import fastdiff
from fastdiff.data import digits, letters
from fastdiff.diffusion.bound import stratified_times
from fastdiff.kernels import Noise, Stream
from fastdiff.models import DiffusionModel
from fastdiff.presets import preset

DATA = {"digits": digits, "letters": letters}


@pytest.fixture(params=list(DATA))
def data(request: pytest.FixtureRequest) -> str:
    """The name of a data set, and of its preset."""
    return request.param


@pytest.fixture
def model(device: torch.device, data: str) -> DiffusionModel:
    """A preset with random weights: what starts at zero could be faster than what a trained network holds."""
    model = preset(data).build().to(device)
    assert isinstance(model, DiffusionModel)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_sampling(device: torch.device, model: DiffusionModel, quick: bool, compare: Callable[..., None]) -> None:
    """A batch of images from ``fastdiff.sample`` against a hand-written ancestral loop."""
    count, steps = (8, 4) if quick else (64, 20)
    model.eval()
    noise, shape = Noise(seed=0).to(device), (count, *model.shape)

    def counted(k: int) -> Tensor:
        here = noise.at(stream=Stream.INITIAL) if k < 0 else noise.at(step=k, stream=Stream.SAMPLER)
        return here.normal(shape)

    def drawn(_: int) -> Tensor:
        return torch.randn(shape, device=device)

    ours = partial(fastdiff.sample, model, count, steps=steps, batch_size=count, output="levels")
    off = (ours().int() - naive.ancestral_loop(model, steps, counted).int()).abs()
    assert off.max() <= 1, "fastdiff and the naive loop sample different images"  # 1: rounding to a level
    assert off.float().mean() < 1e-2
    calls = {"fastdiff": ours, "eager": partial(naive.ancestral_loop, model, steps, drawn)}
    compare(("sample", f"{steps} steps", device, torch.float32, shape), calls, wall_clock(device), "wall")


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_training_step(
    device: torch.device, model: DiffusionModel, data: str, quick: bool, compare: Callable[..., None]
) -> None:
    """Bound, backward and optimiser on one batch against the same step with the naive bound."""
    x = DATA[data]().train_images[: 8 if quick else 64].to(device)
    noise = Noise(seed=0).to(device)
    model.eval()  # without dropout, for the comparison of the numbers
    eps, eps_0 = (noise.at(stream=stream).normal(x.shape) for stream in (Stream.DIFFUSION, Stream.RECON))
    draws = stratified_times(noise, len(x)).float(), eps, eps_0
    torch.testing.assert_close(model.vlb(x, noise).total, naive.bound(model, x, draws), rtol=1e-3, atol=0.0)
    model.train()
    twin = copy.deepcopy(model)
    calls = {
        "fastdiff": _training_step(model, lambda: model.vlb(x, noise).total),
        "eager": _training_step(twin, lambda: naive.bound(twin, x)),
    }
    compare(("train step", "", device, torch.float32, tuple(x.shape)), calls, wall_clock(device), "wall")


def _training_step(model: DiffusionModel, bound: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        bound().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
