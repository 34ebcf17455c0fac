"""The calls that `side_by_side` times, for each side, and the checks that the sides compute the same.

A side is made when it is needed: `forward_sides`, `sampling_sides` and `training_sides` return functions that compile,
capture and return the call. The sides are

- ``"diffusers"``: as its pipelines call it, in eager mode.
- ``"diffusers compiled"`` and further modes of ``torch.compile``: the network compiled, its timesteps on the device.
- ``"fastdiff"``: our model in eager mode.
- ``"fastdiff best"``: compiled, and on a GPU a captured graph; sampling through `fastdiff.Engine`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from clocks import Call, graph_of
from footprint import GOOGLE_SCHEDULER
from side_models import TEMPERATURE, TIMESTEPS, Pair, ddim_of, level_of, scheduler_of
from torch import Tensor, nn
from torch.nn import functional as F

import fastdiff
from fastdiff.diffusion.bound import training_times
from fastdiff.kernels import Noise, Stream
from fastdiff.models import DiffusionModel

Sides = dict[str, Callable[[], Call]]
DIFFUSERS, FASTDIFF, BEST = "diffusers", "fastdiff", "fastdiff best"
MODES = {"cpu": ("default",), "cuda": ("default", "reduce-overhead", "max-autotune")}  # of diffusers' torch.compile
# |ours - theirs| / |theirs|; on a CPU, for 6.5M, 1.6e-6, 5.1e-5 and 2.4e-7 in float32, and 0.012 and 0.021 in bfloat16
TOLERANCES = {
    "eps_hat": {torch.float32: 1e-5, torch.bfloat16: 0.03},
    "images": {torch.float32: 2e-4, torch.bfloat16: 0.05},
    "loss": {torch.float32: 1e-5},
}
SEED = 0


class DifferentError(AssertionError):
    """Two sides that do not compute the same."""


def name_of(mode: str) -> str:
    """The side of diffusers' network in a mode of ``torch.compile``."""
    return f"{DIFFUSERS} compiled" if mode == "default" else f"{DIFFUSERS} {mode}"


def compiled(module: nn.Module, mode: str = "default") -> Callable[..., Any]:
    """The module compiled as a whole for the sizes of its first call."""
    return torch.compile(module, fullgraph=True, dynamic=False, mode=mode)


# ------------------------------------------------------------------------------------------------ forward


def forward_sides(pair: Pair, batch: int, dtype: torch.dtype, device: torch.device, modes: tuple[str, ...]) -> Sides:
    """One call of the network without gradients, with a timestep for each image."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(batch, *pair.shape, generator=generator).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    timesteps = torch.randint(TIMESTEPS, (batch,), generator=generator).to(device)
    level, network, other = level_of(timesteps), pair.network, pair.theirs
    sides: Sides = {FASTDIFF: lambda: torch.no_grad()(lambda: network(x, level))}

    def best() -> Call:
        call = compiled(network)
        return replayed(lambda: call(x, level), device)

    def theirs(call: Callable[..., Any]) -> Call:
        return torch.no_grad()(lambda: call(x, timesteps, return_dict=False)[0])

    if other is not None:
        check_close("eps_hat", sides[FASTDIFF]()(), theirs(other)(), dtype)
        sides[DIFFUSERS] = lambda: theirs(other)
        for mode in modes:
            sides[name_of(mode)] = lambda mode=mode: theirs(compiled(other, mode))
    sides[BEST] = best
    return sides


def replayed(call: Call, device: torch.device) -> Call:
    """A call without gradients; on a GPU replays of its captured graph, which leave the result where it is."""
    call = torch.no_grad()(call)
    return torch.no_grad()(graph_of)(call).replay if device.type == "cuda" else call


# ------------------------------------------------------------------------------------------------ sampling


def sampling_sides(
    pair: Pair, batch: int, steps: int, dtype: torch.dtype, device: torch.device, modes: tuple[str, ...]
) -> Sides:
    """Images uint8 on the CPU by DDIM, from initial noise that each side draws, at the same timesteps."""
    sampler, other, shape = ddim_of(), pair.theirs, (batch, *pair.shape)
    arguments = {"steps": steps, "sampler": sampler, "batch_size": batch, "output": "uint8"}
    sides: Sides = {FASTDIFF: lambda: partial(fastdiff.Engine(pair.ours, graph=False).sample, batch, **arguments)}
    if other is not None:
        check_images(pair, batch, steps, dtype, device)
        sides[DIFFUSERS] = lambda: partial(pipeline, other, steps, drawn(shape, dtype, device), device)
        for mode in modes:
            start = drawn(shape, dtype, device)
            sides[name_of(mode)] = lambda mode=mode, start=start: partial(
                pipeline, compiled(other, mode), steps, start, device
            )

    def best() -> Call:
        call = partial(fastdiff.Engine(pair.ours, compile=True).sample, batch, **arguments)
        check_levels(call(seed=SEED), sides[FASTDIFF]()(seed=SEED), dtype)
        return call

    sides[BEST] = best
    return sides


def drawn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """What draws initial latents of a shape from torch's generator."""
    return lambda: TEMPERATURE * torch.randn(shape, dtype=dtype, device=device)


@torch.no_grad()
def pipeline(network: Callable[..., Any], steps: int, start: Callable[[], Tensor], device: torch.device) -> Tensor:
    """The images of ``DDIMPipeline``, from its loop: uint8 [B, C, H, W] on the CPU."""
    return as_bytes(trajectory(network, steps, start(), device))


def trajectory(network: Callable[..., Any], steps: int, image: Tensor, device: torch.device) -> Tensor:
    """The loop of ``DDIMPipeline`` with eta = 0: the network and ``scheduler.step``, from initial latents.

    The network's timesteps lie on its device: the pipeline copies one in each step, which waits for a GPU and keeps
    ``reduce-overhead`` from capturing.
    """
    scheduler = scheduler_of(steps)
    on_device = scheduler.timesteps.to(device)
    image = image.contiguous(memory_format=torch.channels_last)
    for k, t in enumerate(scheduler.timesteps):
        if device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        model_output = network(image, on_device[k], return_dict=False)[0]
        image = scheduler.step(model_output, t, image, eta=0.0).prev_sample
    return image


def as_bytes(image: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 on the CPU."""
    return ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def check_images(pair: Pair, batch: int, steps: int, dtype: torch.dtype, device: torch.device) -> None:
    """Check that both sides sample the same images from the same initial noise, before they are rounded to levels."""
    assert pair.theirs is not None
    batch, steps = min(batch, 2), min(steps, 10)
    found: list[Tensor] = []

    def keep(step: int, nfe: int, z_t: Tensor, x_hat: Tensor) -> None:
        found[:] = [z_t]

    engine = fastdiff.Engine(pair.ours, graph=False)
    engine.sample(batch, steps, ddim_of(), seed=SEED, callback=keep)
    start = TEMPERATURE * Noise(SEED, stream=Stream.INITIAL).normal((batch, *pair.shape)).to(device, dtype)
    with torch.no_grad():
        expected = trajectory(pair.theirs, steps, start, device)
    check_close("images", found[0], expected, dtype)


def check_levels(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Check that two ways to sample differ by rounding to a level at most; in bfloat16 by its rounding."""
    off = (found.int() - expected.int()).abs()
    most, mean = (1, 0.01) if dtype == torch.float32 else (16, 2.0)
    if off.max() > most or off.float().mean() > mean:
        raise DifferentError(f"images differ by up to {off.max()} levels, by {off.float().mean():.3g} in the mean")


# ------------------------------------------------------------------------------------------------ training


def training_sides(pair: Pair, batch: int, dtype: torch.dtype, device: torch.device, modes: tuple[str, ...]) -> Sides:
    """Noise, network, squared error on the noise, gradients and AdamW on one batch of images, with dropout.

    In bfloat16 the networks compute under autocast and the weights are float32.
    """
    x = torch.randint(256, (batch, *pair.shape), generator=torch.Generator().manual_seed(SEED), dtype=torch.uint8)
    x, other = x.to(device), pair.theirs
    sides = model_training_sides(pair.ours, x, "simple", dtype)
    if other is not None:
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler(**GOOGLE_SCHEDULER)
        check_losses(pair, x, scheduler)

        def loss(call: Callable[..., Any]) -> Tensor:
            data = x.float() / 127.5 - 1.0
            noise = torch.randn_like(data)
            timesteps = torch.randint(TIMESTEPS, (batch,), device=device)
            return their_loss(call, scheduler, data, noise, timesteps)

        def theirs(call: Callable[..., Any]) -> Call:
            return training_step(other, partial(loss, call), dtype, device)

        best = sides.pop(BEST)
        sides[DIFFUSERS] = lambda: theirs(other)
        for mode in modes:
            sides[name_of(mode)] = lambda mode=mode: theirs(compiled(other, mode))
        sides[BEST] = best
    return sides


def model_training_sides(model: DiffusionModel, x: Tensor, loss: str, dtype: torch.dtype) -> Sides:
    """Our sides of a training step on images x uint8: `fastdiff.training` without its metrics and averages."""

    def side(call: Callable[..., Any]) -> Call:
        noise = Noise(SEED).to(x.device)

        def mean_loss() -> Tensor:
            noise.advance()
            return call(x, noise, None, loss).loss.mean()

        return training_step(model, mean_loss, dtype, x.device)

    return {FASTDIFF: lambda: side(model), BEST: lambda: side(torch.compile(model, dynamic=False))}


def their_loss(call: Callable[..., Any], scheduler: Any, data: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The mean squared error of diffusers' examples."""
    z_t = scheduler.add_noise(data, noise, timesteps).contiguous(memory_format=torch.channels_last)
    return F.mse_loss(call(z_t, timesteps, return_dict=False)[0].float(), noise)


def training_step(module: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype, device: torch.device) -> Call:
    """A call of loss, gradients and a step of AdamW, which sets the module to training mode."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)

    def precision() -> AbstractContextManager:
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def step() -> None:
        module.train()
        with precision():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def check_losses(pair: Pair, x: Tensor, scheduler: Any) -> None:
    """Check that both losses are the same for the same noise and times; ours is a sum over pixels."""
    ours, theirs = pair.ours.eval(), pair.theirs
    assert theirs is not None
    theirs.eval()
    x = x[:2]
    noise = Noise(SEED).to(x.device)
    found = ours(x, noise, None, "simple").loss.mean() / ours.dims
    data = x.float() / 127.5 - 1.0
    eps = noise.at(stream=Stream.DIFFUSION).normal(data.shape, device=x.device)
    timesteps = (training_times(noise, len(x), True, None).to(x.device) * TIMESTEPS).floor().long()
    check_close("loss", found, their_loss(theirs, scheduler, data, eps, timesteps), torch.float32)


def check_close(what: str, found: object, expected: object, dtype: torch.dtype) -> None:
    """Raise a `DifferentError` unless |found - expected| <= tolerance |expected|. A NaN does not pass."""
    assert isinstance(found, Tensor)
    assert isinstance(expected, Tensor)
    norm = torch.linalg.vector_norm
    error = float(norm(found.float() - expected.float()) / norm(expected.float()))
    if not error <= TOLERANCES[what][dtype]:
        raise DifferentError(f"{what} of the two networks differ by {error:.2g}")
