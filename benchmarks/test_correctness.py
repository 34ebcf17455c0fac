"""The operations on the device that is about to be timed: a part of `make bench-gpu`.

    pytest benchmarks/test_correctness.py            on this machine's GPU, and on its CPU where possible

Values and gradients of every case of `tests/cases.py` against float64, odd sizes, misaligned pointers and channels-last
data, more than 2³¹ elements, bit-identical reruns, and replayed CUDA graphs against eager calls, also of an `Engine`'s
sampling loop. The suite of `tests/` runs the same kernels in Triton's interpreter. Only a GPU shows its rounding, its
approximate instructions for 16-bit results, its memory and its graphs.
"""

import contextlib
import math
from itertools import pairwise

import pytest
import torch
from cases import DTYPES, EVERY_CASE, UNIT, Case, cancellation, run
from clocks import graph_of
from fastdiff_kernels.launch import WARPS, grid_of
from fastdiff_kernels.noise import philox, uniform_from_word
from fastdiff_kernels.noise_kernels import draw_kernel
from torch import Tensor

import fastdiff
from fastdiff.kernels import Noise, Stream, diffuse, eps_loss, fourier_features, sampler_step, use_backend
from fastdiff.presets import preset

SMALL = (2, 4, 6, 6)
SHAPES = ((3, 2, 5, 7), (1, 1, 1, 1), (5, 3, 32, 32), (2, 1, 1, 1031), (3, 4, 61, 67), (0, 3, 4, 4))
NORM_SHAPES = ((2, 64, 8, 8), (2, 96, 16, 16))  # as in networks: many channels, whose groups share a program
PLACES = ("aligned", "misaligned", "channels-last")
BOTH = pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
NORMAL_ERROR = 4e-6  # of a drawn normal, by its contract
FAST_RMS = 1e-5  # where the result is rounded to 16 bits
GPU_UNIT = 2e-6  # float32 on a GPU: approximate roots and exponentials, sums in another order; not yet measured


def placed(x: Tensor, device: torch.device, place: str) -> Tensor:
    """x on the device: at a multiple of 16 bytes, or of no more than an element; or channels-last."""
    if place == "channels-last" and x.dim() == 4:
        return x.to(device).contiguous(memory_format=torch.channels_last)
    if place != "misaligned" or x.dim() < 2:
        return x.to(device)
    padded = torch.empty(x.numel() + 1, dtype=x.dtype, device=device)
    return padded[1:].copy_(x.flatten()).view(x.shape)


def evaluated(case: Case, tensors: list[Tensor], exact: bool = False) -> list[tuple[Tensor, bool]]:
    """Values and gradients on the CPU, each with whether it is a gradient. What is exact never meets a kernel."""
    function = case.exact if exact else case.ours
    with use_backend("torch") if exact else contextlib.nullcontext():
        if not case.differentiable:
            return [(function(*tensors).cpu(), False)]
        values, gradients = run(function, tensors, case.differentiable)
    return [(x.cpu(), False) for x in values] + [(x.cpu(), True) for x in gradients]


def tolerance(name: str, found: torch.dtype, dtype: torch.dtype, device: torch.device) -> float:
    """Relative to the largest entry: rounding, and the error of drawn noise, which is approximate for 16-bit data."""
    unit = GPU_UNIT if found == torch.float32 and device.type == "cuda" else UNIT[found]
    sums = 8.0 if name.startswith("group_norm") else 1.0  # its gradients to weight and bias are sums over all pixels
    return sums * unit + (NORMAL_ERROR if dtype == torch.float32 else 10.0 * FAST_RMS) * ("draw" in name)


def check(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, places: tuple[str, ...]) -> None:
    """Compare values and gradients of a case with float64."""
    case = EVERY_CASE[name]
    tensors = case.make(shape, dtype)
    expected = evaluated(case, [t.double() if t.is_floating_point() else t for t in tensors], exact=True)
    for place in places:
        found = evaluated(case, [placed(t, device, place) for t in tensors])
        values = len(found) - len(case.differentiable)
        for k, ((ours, is_gradient), (exact, _)) in enumerate(zip(found, expected, strict=True)):
            assert ours.shape == exact.shape
            scale = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0
            allowed = scale * tolerance(name, dtype if is_gradient else ours.dtype, dtype, device)
            if is_gradient:
                allowed += cancellation(case, case.differentiable[k - values], expected[values][0])
            error = float((ours.double() - exact).abs().max()) if exact.numel() else 0.0
            assert error <= allowed, f"{name} {shape} {place}: error {error / scale:.3g}"


@BOTH
@pytest.mark.parametrize("name", EVERY_CASE)
def test_every_kernel_once(name: str, device: torch.device) -> None:
    """One small size each: what a few seconds on a GPU can tell."""
    check(name, SMALL, torch.float32, device, ("aligned",))


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EVERY_CASE)
def test_values_and_gradients(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """At sizes from no block to several blocks, aligned and not, contiguous and channels-last."""
    for shape in (*SHAPES, *(NORM_SHAPES if name.startswith("group_norm") else ())):
        check(name, shape, dtype, device, PLACES)


@BOTH
@pytest.mark.parametrize("name", EVERY_CASE)
def test_two_runs_are_bit_identical(name: str, device: torch.device) -> None:
    """Also sums of many blocks: no order of additions depends on timing."""
    tensors = [t.to(device) for t in EVERY_CASE[name].make((3, 4, 61, 67), torch.float32)]
    for (first, _), (second, _) in zip(*(evaluated(EVERY_CASE[name], tensors) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


@BOTH
def test_noise_is_that_of_the_cpu(device: torch.device) -> None:
    """Uniforms are bit-identical, and normals within twice the error of the contract."""
    noise, shape = Noise(2**63 + 11, step=7, first_sample=5, stream=Stream.SAMPLER), (37, 3, 61, 67)
    with use_backend("torch"):
        uniform, normal = noise.uniform(shape), noise.normal(shape)
    assert torch.equal(noise.uniform(shape, device=device).cpu(), uniform)
    assert (noise.normal(shape, device=device).cpu() - normal).abs().max() <= 2 * NORMAL_ERROR


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_approximate_instructions_keep_the_contract(device: torch.device) -> None:
    """Normals drawn as for 16-bit results, but written in float32: root mean square error, and no NaN."""
    shape, noise = (64, 1 << 18), Noise(3, stream=Stream.DIFFUSION).to(device)
    fast = torch.empty(shape, device=device)
    programs, n, blocks, block = grid_of(fast)
    draw_kernel[(programs,)](noise.key, fast, n, blocks, NORMAL=True, FAST=True, BLOCK=block, num_warps=WARPS)
    uniform = noise.uniform(shape).double().view(64, -1, 2, 2)
    radius, angle = (-2.0 * uniform[..., 0].log()).sqrt(), 2.0 * math.pi * uniform[..., 1]
    exact = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).view(shape)
    error = (fast.double() - exact).square().mean().sqrt()
    print(f"\nroot mean square error {float(error):.2g}, largest {float((fast.double() - exact).abs().max()):.2g}")
    assert error <= FAST_RMS


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_more_than_2_to_the_31_elements(device: torch.device) -> None:
    """Three samples of 2³⁰ elements. The last one equals the same sample alone, and has the noise of its counters."""
    n, last = 2**30, slice(-4096, None)
    x, gamma = torch.empty(3, n, dtype=torch.bfloat16, device=device), torch.zeros(3, device=device)
    for sample in x:
        sample.normal_()
    noise = Noise(5, first_sample=2**32 - 1)
    z = diffuse(x, gamma, noise)
    alone = diffuse(x[2:], gamma[2:], noise.at(first_sample=2**32 + 1))
    assert torch.equal(z[2], alone[0])
    loss = eps_loss(z, noise, torch.ones(3, device=device))
    torch.testing.assert_close(loss[2:], eps_loss(z[2:], noise.at(first_sample=1), gamma[2:] + 1.0), rtol=1e-6, atol=0)
    plain = z.float().sub_(x.float(), alpha=0.5**0.5).mul_(2.0**0.5)  # the noise that is in z
    assert float(plain.mean(dtype=torch.float64).abs()) < 1e-3
    quads = torch.arange(n // 4 - 1024, n // 4)
    words = philox(5, quads, *(torch.tensor(value) for value in (1, 0, 0)))  # sample 2 after 2³² - 1 is sample 1
    u = torch.stack([uniform_from_word(word) for word in words], -1).double().view(-1, 2, 2)
    radius, angle = (-2.0 * u[..., 0].log()).sqrt(), 2.0 * math.pi * u[..., 1]
    drawn = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten()
    assert (plain[2, last].cpu() - drawn).abs().max() < 0.1  # z is rounded to bfloat16
    features = fourier_features(x[:, : 2**29].view(3, 1, -1), 3, 3)
    assert torch.equal(features[2], fourier_features(x[2:, : 2**29].view(1, 1, -1), 3, 3)[0])


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_replayed_graph_draws_fresh_noise(device: torch.device, dtype: torch.dtype) -> None:
    """One captured sampler step, replayed along the table, equals eager calls that name each step."""
    shape, steps = (4, 3, 32, 32), 6
    table = torch.rand(steps, 10, device=device)
    table[:, 5:] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], device=device)  # no guidance, no history
    start, eps_hat = torch.randn(shape, device=device).to(dtype), torch.randn(shape, device=device).to(dtype)
    noise, z = Noise(9, stream=Stream.SAMPLER).to(device), start.clone()

    def body() -> None:
        z.copy_(sampler_step(z, eps_hat, table, noise, step=noise.counter, keep_x_hat=False)[0])
        noise.advance()

    graph = graph_of(body)
    noise.counter.zero_()
    z.copy_(start)
    eager, seen = start, []
    for k in range(steps):
        graph.replay()
        eager = sampler_step(eager, eps_hat, table[k], noise.at(step=k), keep_x_hat=False)[0]
        assert torch.equal(z, eager)
        seen.append(z.clone())
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_captured_training_step(device: torch.device) -> None:
    """Diffusion, loss and gradient in one graph: each replay equals the eager step with its noise."""
    x = torch.randn(4, 3, 32, 32, device=device)
    gamma, weight = torch.linspace(-4.0, 4.0, 4, device=device), torch.ones(4, device=device)
    noise, gradient = Noise(9, stream=Stream.DIFFUSION).to(device), torch.empty_like(x)

    def step(eps: Noise) -> Tensor:
        z_t = diffuse(x, gamma, eps).requires_grad_()
        return torch.autograd.grad(eps_loss(0.3 * z_t, eps, weight).sum(), z_t)[0]

    def body() -> None:
        gradient.copy_(step(Noise.from_key(noise.key.clone())))
        noise.advance()

    graph = graph_of(body)
    noise.counter.zero_()
    for k in range(3):
        graph.replay()
        assert torch.equal(gradient, step(noise.at(step=k)))


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("guidance", [None, 2.0], ids=["plain", "guided"])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm-solver", "heun"])
def test_an_engine_with_a_graph_samples_as_the_eager_loop(
    device: torch.device, sampler: str, guidance: float | None
) -> None:
    """Every latent of every step is that of the eager loop, so that each replay draws the noise of its own step.

    One recording serves two seeds and two numbers of steps. With guidance each row is one call on twice the batch.
    """
    model = preset("digits").build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model = model.to(device)
    captured, eager = (fastdiff.Engine(model, graph=graph) for graph in (True, False))
    labels = None if guidance is None else 3
    drawn = []
    for seed, steps in ((0, 5), (1, 5), (0, 7), (0, 5)):
        found: dict[fastdiff.Engine, list[Tensor]] = {captured: [], eager: []}
        images = []
        for engine, latents in found.items():
            keep = lambda step, nfe, z_t, x_hat, latents=latents: latents.append(z_t)  # noqa: E731
            images.append(
                engine.sample(4, steps, sampler, seed, labels=labels, guidance=guidance, output="levels", callback=keep)
            )
        assert captured.execution.captures(device)
        assert captured.execution._graphs.reason is None, "the loop was not captured"
        assert len(found[captured]) == len(found[eager]) > 0
        for ours, expected in zip(*found.values(), strict=True):
            assert torch.equal(ours, expected)
        assert torch.equal(*images)
        drawn.append(found[captured])
    assert not torch.equal(drawn[0][0], drawn[1][0])  # another seed
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[3], strict=True))
