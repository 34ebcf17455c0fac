"""Each operation, on a CPU against eager PyTorch, on a GPU against eager, torch.compile and a copy of as many bytes.

"noise given" means a tensor that both sides read. "noise drawn" means that fastdiff draws the noise in the kernel, and
that the alternative calls ``randn_like``, or in the loss reads the tensor that it had to keep.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import naive
import pytest
import torch
from clocks import Call, gpu_clock, graph_of, host_clock, wall_clock
from spread import spread
from torch import Tensor

from fastdiff.kernels import (
    Noise,
    decoder_nll,
    diffuse,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    group_norm_silu,
    reparameterize,
    sampler_step,
)

CPU_SHAPES = {"cifar": (64, 3, 32, 32), "large": (16, 1, 256, 256)}  # large: 2^20 elements
GPU_SHAPES = {"cifar": (128, 3, 32, 32), "large": (64, 4, 512, 512)}  # large: 2^26 elements
QUICK_SHAPE, TINY_SHAPE = (8, 3, 32, 32), (2, 1, 4, 4)
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}  # of |ours - naive| / |naive|
GAMMA_0, GAMMA_1, LEVELS = -8.0, 5.0, 256


@dataclass(frozen=True)
class Case:
    """One operation on fixed inputs, and its naive form.

    Args:
        ours: fastdiff's call, without arguments.
        naive, args: the naive function and its arguments.
        checked: arguments with which ``naive`` computes the same numbers as ``ours``; with ``args`` it may draw noise.
        moved: the smallest number of bytes that ``ours`` can move.
        inputs, upstream: the tensors to differentiate by, and the upstream gradients.
        others: further alternatives by name, which are timed and not checked.
        shape: shape of the data, if it is not that of the benchmark.
    """

    operation: str
    noise: str
    ours: Callable[[], Any]
    naive: Callable[..., Any]
    args: tuple
    checked: tuple
    moved: int
    inputs: tuple[Tensor, ...] = ()
    upstream: Tensor | tuple[Tensor, ...] | None = None
    others: dict[str, Callable[[], Any]] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None

    def evaluate(self, function: Callable[..., Any], *args: Any) -> tuple[Tensor, ...]:
        """Run a function, and its backward if there are inputs to differentiate by. No gradient is accumulated."""
        out = function(*args)
        out = out if isinstance(out, tuple) else (out,)
        if not self.inputs:
            return out
        return (*(part.detach() for part in out), *torch.autograd.grad(out, self.inputs, self.upstream))


def diffuse_case(x: Tensor, drawn: bool) -> Case:
    """z_t from x: reads x, writes z_t."""
    gamma = torch.linspace(GAMMA_0, GAMMA_1, len(x), device=x.device)
    noise, eps = _noise_like(x)
    ours = partial(diffuse, x, gamma, noise if drawn else eps)
    args = (x, gamma) if drawn else (x, gamma, eps)
    return Case("diffuse", _label(drawn), ours, naive.noised, args, (x, gamma, eps), _bytes(x, 2 if drawn else 3))


def eps_loss_case(x: Tensor, drawn: bool) -> Case:
    """The loss and its gradient to eps_hat: reads eps_hat twice, writes the gradient. The naive form has eps stored."""
    eps_hat, weight = x.requires_grad_(), torch.rand(len(x), device=x.device) + 0.5
    noise, eps = _noise_like(x)
    ours = partial(eps_loss, eps_hat, noise if drawn else eps, weight)
    args = (eps_hat, eps, weight)
    moved, upstream = _bytes(x, 3 if drawn else 5), torch.ones_like(weight)
    return Case("eps_loss + gradient", _label(drawn), ours, naive.noise_loss, args, args, moved, (eps_hat,), upstream)


def fourier_case(z: Tensor, backward: bool) -> Case:
    """Two frequencies: one read and five writes; backward six reads and one write."""
    frequencies = torch.tensor([2.0**7, 2.0**8], device=z.device).view(2, 1, 1) * math.pi
    ours, args = partial(fourier_features, z), (z, frequencies)
    if not backward:
        return Case("fourier_features", "", ours, naive.fourier, args, args, _bytes(z, 6))
    z.requires_grad_()
    upstream = torch.randn(len(z), 5 * z.shape[1], *z.shape[2:], dtype=z.dtype, device=z.device)
    name, moved = "fourier_features + gradient", _bytes(z, 13)
    return Case(name, "", ours, naive.fourier, args, args, moved, (z,), upstream)


def sampler_step_case(z_t: Tensor, drawn: bool) -> Case:
    """An ancestral step in the middle of 50: reads z_t and eps_hat, writes z_s."""
    steps, k = 50, 25
    alpha_t, sigma_t, alpha_s, sigma_s, c, _ = _middle_of(steps)
    row = _row(z_t, alpha_t, sigma_t, A=(1.0 - c) * alpha_s / alpha_t, B=alpha_s * c, S=sigma_s * math.sqrt(c))
    coefficients = alpha_s / alpha_t, c * sigma_t, math.sqrt(c) * sigma_s
    eps_hat = torch.randn_like(z_t)
    noise, eps = _noise_like(z_t)
    ours = partial(_step, z_t, eps_hat, row, noise if drawn else eps)
    args = (z_t, eps_hat, *coefficients)
    checked, moved = (*args, eps), _bytes(z_t, 3 if drawn else 4)
    case = Case("sampler_step", _label(drawn), ours, naive.ancestral_step, args if drawn else checked, checked, moved)
    return replace(case, others=naive.diffusers_step(z_t, eps_hat, steps, k)) if drawn else case


def multistep_case(z_t: Tensor) -> Case:
    """DPM-Solver++(2M) in the middle of 20 steps: reads z_t, eps_hat and the last estimate, writes z_s and its own."""
    alpha_t, sigma_t, alpha_s, sigma_s, _, step = _middle_of(20)
    a, b = sigma_s / sigma_t, -alpha_s * math.expm1(-step)
    row = _row(z_t, alpha_t, sigma_t, A=a, B=1.5 * b, C1=-0.5 * b)
    eps_hat, x_prev = torch.randn_like(z_t), torch.randn_like(z_t)
    ours = partial(sampler_step, z_t, eps_hat, row, history=(x_prev,))
    args = (z_t, eps_hat, 1.0 / alpha_t, sigma_t / alpha_t, a, 1.5 * b, -0.5 * b, x_prev)
    return Case("sampler_step", "one estimate", ours, naive.multistep, args, args, _bytes(z_t, 5))


def _middle_of(steps: int) -> tuple[float, float, float, float, float, float]:
    """(alpha_t, sigma_t, alpha_s, sigma_s, c, difference of log(alpha / sigma)) of the step in the middle."""
    gamma = torch.linspace(GAMMA_0, GAMMA_1, steps + 1, dtype=torch.float64)
    gamma_t, gamma_s = gamma[steps // 2], gamma[steps // 2 - 1]
    roots = [(sign * value).sigmoid().sqrt().item() for value in (gamma_t, gamma_s) for sign in (-1.0, 1.0)]
    return *roots, -math.expm1(gamma_s - gamma_t), float(gamma_t - gamma_s) / 2.0


def _row(z_t: Tensor, alpha_t: float, sigma_t: float, A: float, B: float, S: float = 0.0, C1: float = 0.0) -> Tensor:
    row = [1.0 / alpha_t, sigma_t / alpha_t, A, B, S, 1.0, C1, 0.0, 0.0, 0.0]
    return torch.tensor(row, device=z_t.device)


def reparameterize_case(mean: Tensor, drawn: bool) -> Case:
    """z, its KL and the gradients: two reads and a write, three reads and two writes. Noise given is read twice."""
    logvar = (0.5 * torch.randn_like(mean) - 1.0).requires_grad_()
    upstream = torch.randn_like(mean), torch.ones(len(mean), device=mean.device)
    noise, eps = _noise_like(mean)
    mean.requires_grad_()
    ours = partial(reparameterize, mean, logvar, noise if drawn else eps)
    checked, moved = (mean, logvar, eps), _bytes(mean, 8 if drawn else 10)
    args, inputs = checked[:2] if drawn else checked, (mean, logvar)
    name = "reparameterize + gradient"
    return Case(name, _label(drawn), ours, naive.latent, args, checked, moved, inputs, upstream)


def gaussian_log_ratio_case(z: Tensor) -> Case:
    """The log-ratio and its five gradients, at a draw from q: reads five, then reads and writes five."""
    mean_q, mean_p = (0.5 * torch.randn_like(z) for _ in range(2))
    logvar_q, logvar_p = (0.5 * torch.randn_like(z) + shift for shift in (-2.0, 0.0))
    z = mean_q + (0.5 * logvar_q).exp() * z
    inputs = tuple(value.requires_grad_() for value in (z, mean_q, logvar_q, mean_p, logvar_p))
    ours, upstream = partial(gaussian_log_ratio, *inputs), torch.ones(len(z), device=z.device)
    name, moved = "gaussian_log_ratio + gradient", _bytes(z, 15)
    return Case(name, "", ours, naive.log_ratio, inputs, inputs, moved, inputs, upstream)


def group_norm_case(like: Tensor, modulated: bool, backward: bool) -> Case:
    """Channels-last features of as many elements, with a scale and shift: reads x, writes y; backward 2 reads, 1 write.

    Four channels per group. A user's model holds weight and bias in the dtype of its data; ours are float32.
    """
    size = next(size for size in ((128, 32, 32), (64, 8, 8), (4, 2, 2)) if like.numel() % math.prod(size) == 0)
    x = like.reshape(-1, *size).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, size[0], device=x.device).unbind(0)
    modulation = (0.5 * torch.randn(len(x), 2 * size[0], dtype=x.dtype, device=x.device)).chunk(2, 1)
    args = x, size[0] // 4, weight, bias, *(modulation if modulated else ())
    name, noise, ours = "group_norm_silu", "scale and shift" if modulated else "", partial(group_norm_silu, *args)
    if not backward:
        return Case(name, noise, ours, naive.norm_silu, args, args, _bytes(x, 2), shape=tuple(x.shape))
    inputs = tuple(value.detach().requires_grad_() for value in args if isinstance(value, Tensor))
    args, upstream = (inputs[0], args[1], *inputs[1:]), torch.randn_like(x)
    ours = partial(group_norm_silu, *args)
    case = Case(f"{name} + gradient", noise, ours, naive.norm_silu, args, args, _bytes(x, 5), inputs, upstream)
    return replace(case, shape=tuple(x.shape))


def fused_norm_case(like: Tensor, used: str) -> Case:
    """The norm, and its gradient, of what ``used`` names: an addition to x, per channel or per element, or two sources.

    Bytes are those of whole groups. The sum with a residual, or the concatenation with a skip, is written, and backward
    reads its gradient.
    """
    size = next(size for size in ((128, 32, 32), (64, 8, 8), (4, 2, 2)) if like.numel() % math.prod(size) == 0)
    x = like.reshape(-1, *size).contiguous(memory_format=torch.channels_last)
    channels = size[0] * (2 if used == "skip" else 1)
    given = {"pre_shift": torch.randn(x.shape[:2], dtype=x.dtype, device=x.device)} | dict.fromkeys(
        ("residual", "skip"), torch.randn_like(x)
    )
    leaves = [x, *torch.randn(2, channels, device=x.device).unbind(0), given[used]]
    inputs = tuple(value.detach().requires_grad_() for value in leaves)
    named = {name: inputs[3] if name == used else None for name in given}
    ours = partial(group_norm_silu, inputs[0], size[0] // 4, *inputs[1:3], **named)
    args = inputs[0], size[0] // 4, *inputs[1:3], *named.values()
    upstream = torch.randn(len(x), channels, *size[1:], dtype=x.dtype, device=x.device).contiguous(
        memory_format=torch.channels_last
    )
    moved = _bytes(x, {"pre_shift": 5, "residual": 8, "skip": 14}[used])
    upstream = upstream if used == "pre_shift" else (upstream, torch.randn_like(upstream))
    name, naively = "group_norm_silu + gradient", naive.fused_norm_silu
    return Case(name, used, ours, naively, args, args, moved, inputs, upstream, shape=tuple(x.shape))


def decoder_nll_case(like: Tensor) -> Case:
    """The likelihood of bytes and its gradients: reads x and the mean twice, writes the mean's gradient.

    For its memory, and its time at a size where the eager form takes 5 GiB, see `decoder_cost`.
    """
    x = torch.randint(LEVELS, like.shape, dtype=torch.uint8, device=like.device)
    centres = (2.0 * x.float() + 1.0) / LEVELS - 1.0
    mean = (centres + math.exp(0.5 * GAMMA_0) * like.float()).to(like.dtype).requires_grad_()
    logvar = torch.full((len(x),), GAMMA_0, device=x.device, requires_grad=True)
    ours, args = partial(decoder_nll, x, mean, logvar, LEVELS), (x, mean, logvar, LEVELS)
    moved, inputs, upstream = _bytes(mean, 3) + 2 * x.numel(), (mean, logvar), torch.ones(len(x), device=x.device)
    return Case("decoder_nll + gradient", "", ours, naive.level_nll, args, args, moved, inputs, upstream)


CASES = {
    "diffuse-given": partial(diffuse_case, drawn=False),
    "diffuse-drawn": partial(diffuse_case, drawn=True),
    "eps_loss-given": partial(eps_loss_case, drawn=False),
    "eps_loss-drawn": partial(eps_loss_case, drawn=True),
    "fourier_features-forward": partial(fourier_case, backward=False),
    "fourier_features-both": partial(fourier_case, backward=True),
    "sampler_step-given": partial(sampler_step_case, drawn=False),
    "sampler_step-drawn": partial(sampler_step_case, drawn=True),
    "sampler_step-history": multistep_case,
    "reparameterize-given": partial(reparameterize_case, drawn=False),
    "reparameterize-drawn": partial(reparameterize_case, drawn=True),
    "gaussian_log_ratio": gaussian_log_ratio_case,
    "group_norm_silu-forward": partial(group_norm_case, modulated=True, backward=False),
    "group_norm_silu-both": partial(group_norm_case, modulated=True, backward=True),
    "group_norm_silu-plain": partial(group_norm_case, modulated=False, backward=True),
    "group_norm_silu-pre_shift": partial(fused_norm_case, used="pre_shift"),
    "group_norm_silu-residual": partial(fused_norm_case, used="residual"),
    "group_norm_silu-skip": partial(fused_norm_case, used="skip"),
    "decoder_nll": decoder_nll_case,
}
SETTINGS = [
    ("cpu", "cifar", torch.float32),
    ("cpu", "large", torch.float32),
    ("cuda", "cifar", torch.float32),
    ("cuda", "cifar", torch.bfloat16),
    ("cuda", "large", torch.float32),
    ("cuda", "large", torch.bfloat16),
]
IDS = [f"{device}-{size}-{str(dtype).removeprefix('torch.')}" for device, size, dtype in SETTINGS]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("device", "size", "dtype"), SETTINGS, indirect=["device"], ids=IDS)
def test_operation(
    name: str, device: torch.device, size: str, dtype: torch.dtype, quick: bool, compare: Callable[..., None]
) -> None:
    """Time of one call: on a CPU by the wall clock, on a GPU without the launch and with a copy of as many bytes."""
    on_gpu = device.type == "cuda"
    if size == "large" and quick:
        pytest.skip("--quick: large sizes are left out")
    if size == "large" and name == "decoder_nll":
        pytest.skip(f"decoder_nll at a large size: the eager form would build tensors of {LEVELS} floats per element")
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    shape = GPU_SHAPES[size] if on_gpu else QUICK_SHAPE if quick else CPU_SHAPES[size]
    case = CASES[name](torch.randn(shape, dtype=dtype, device=device))
    check_same(case, TOLERANCE[dtype])
    calls = contenders(case, device)
    what = case.operation, case.noise, device, dtype, case.shape or shape
    if not on_gpu:
        compare(what, calls, wall_clock(device), "wall", case.moved)
        return
    calls["copy"] = yardstick(case, shape, dtype)
    if size == "large":
        compare(what, calls, gpu_clock(device, cold=True), "L2 cold", case.moved)
    else:
        # captured, so that no launches are timed; diffusers reads its tables on the host, which cannot be captured
        graphs = {name: graph_of(call).replay for name, call in calls.items() if name not in case.others}
        compare(what, graphs, gpu_clock(device, cold=False), "graph, L2 warm", case.moved)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_host_cost(name: str, device: torch.device, compare: Callable[..., None]) -> None:
    """Time of the host for one call on a tiny tensor, which is the cost per operation of small models."""
    case = CASES[name](torch.randn(TINY_SHAPE, device=device))
    what = case.operation, case.noise, device, torch.float32, case.shape or TINY_SHAPE
    compare(what, contenders(case, device), host_clock(device), "host")


def yardstick(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> Call:
    """A copy of as many bytes; for forward Fourier features a kernel of one read and five writes."""
    if case.operation == "fourier_features":
        return spread(torch.randn(shape, dtype=dtype, device="cuda"))
    source = torch.randint(256, (case.moved // 2,), dtype=torch.uint8, device="cuda")
    return partial(torch.empty_like(source).copy_, source)


def contenders(case: Case, device: torch.device) -> dict[str, Call]:
    """The calls to compare: fastdiff, eager, and on a GPU the eager form through torch.compile."""
    calls: dict[str, Call] = {
        "fastdiff": partial(case.evaluate, case.ours),
        "eager": partial(case.evaluate, case.naive, *case.args),
        **case.others,
    }
    if device.type == "cuda":
        compiled = torch.compile(case.naive, fullgraph=True, dynamic=False)
        calls["compile"] = partial(case.evaluate, compiled, *case.args)
        with warnings.catch_warnings():  # warnings about the alternative are not errors here
            warnings.simplefilter("ignore")
            calls["compile"]()
    return calls


def check_same(case: Case, tolerance: float) -> None:
    """Check that both sides compute the same from the same noise. A NaN does not pass."""
    ours, theirs = case.evaluate(case.ours), case.evaluate(case.naive, *case.checked)
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        error = float(torch.linalg.vector_norm(our.float() - their.float()) / torch.linalg.vector_norm(their.float()))
        assert error < tolerance, f"{case.operation} {case.noise}: fastdiff and the naive form differ by {error:.2g}"


def _step(*args: Any) -> Tensor:
    return sampler_step(*args, keep_x_hat=False)[0]


def _noise_like(x: Tensor) -> tuple[Noise, Tensor]:
    noise = Noise(seed=1).to(x.device)
    return noise, noise.normal(x.shape, dtype=x.dtype)


def _label(drawn: bool) -> str:
    return "noise drawn" if drawn else "noise given"


def _bytes(x: Tensor, accesses: int) -> int:
    return accesses * x.numel() * x.element_size()
