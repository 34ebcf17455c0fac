"""Every operation with its float64 counterpart, as functions of the same list of tensors, and their comparison."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import oracle
import torch
from fastdiff_kernels import (
    Noise,
    decoder_nll,
    diffuse,
    dropout,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    group_norm_blocks,
    group_norm_silu,
    noise_sum,
    reparameterize,
    sampler_step,
)
from torch import Tensor

BACKENDS = ("torch", "interpreter")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIT = {torch.float32: 5e-7, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
ROW = (1.25, 0.75, 0.6, 0.3, 0.4, 1.5, -0.2, 0.7, -0.5, 0.35)  # 1/alpha, sigma/alpha, A, B, S, w, C1, C2, C3, D


@dataclass(frozen=True)
class Case:
    """An operation and its float64 counterpart, as functions of the same list of tensors."""

    ours: Callable[..., Tensor | tuple[Tensor, ...]]
    exact: Callable[..., Tensor | tuple[Tensor, ...]]
    differentiable: tuple[int, ...]  # positions of the arguments that get a gradient
    make: Callable[[tuple[int, ...], torch.dtype], list[Tensor]]
    sums_first: tuple[
        int, ...
    ] = ()  # positions of the arguments whose gradient adds up the first one's over its pixels


def normal(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def vector(size, seed=0, scale=4.0):
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


NOISE = Noise(20, 1, 2, 3)


def drawn(x: Tensor) -> Tensor:
    """The noise that an operation draws for data like x, in float64."""
    return NOISE.normal(x.shape).double()


def step_row(noisy=False, remembered=0, previous=False, guided=False):
    """ROW without the coefficients of what is absent, as a sampler's row is."""
    kept = [True] * 4 + [noisy, guided] + [k < remembered for k in range(3)] + [previous]
    return tuple(value if keep else float(k == 5) for k, (value, keep) in enumerate(zip(ROW, kept, strict=True)))


def step_case(clip=None, remembered=0, previous=False, guided=False):
    """A step with noise as a tensor; its tensors are z_t, eps_hat, eps, then what else the step takes."""
    row = step_row(True, remembered, previous, guided)

    def arguments(z_t, eps_hat, eps, *others):
        others = list(others)
        history = tuple(others.pop(0) for _ in range(remembered))
        z_prev, u = (others.pop(0) if on else None for on in (previous, guided))
        return eps, clip, history, z_prev, u

    def ours(z_t, eps_hat, *others):
        return sampler_step(z_t, eps_hat, torch.tensor(row, device=z_t.device), *arguments(z_t, eps_hat, *others))

    def exact(z_t, eps_hat, *others):
        return oracle.sampler_step(z_t, eps_hat, row, *arguments(z_t, eps_hat, *others))

    tensors = 3 + remembered + previous + guided
    used = (0, 1, *range(3, tensors))
    return Case(ours, exact, used, lambda shape, dtype: [normal(shape, dtype, k) for k in range(tensors)])


PLAIN_ROW, NOISY_ROW = step_row(), step_row(noisy=True)


def decoder_case(levels, per_element):
    def exact(x, mean, logvar):
        spread = logvar if per_element else oracle.shaped(logvar, x).expand(x.shape)
        return oracle.decoder_nll(x, mean, spread, levels)

    def make(shape, dtype):
        x = torch.randint(levels, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
        logvar = normal(shape, dtype, 1) if per_element else vector(shape[0], 1, 1.0)
        return [x, normal(shape, dtype), logvar - 2.0]

    return Case(lambda x, mean, logvar: decoder_nll(x, mean, logvar, levels), exact, (1, 2), make)


CASES = {
    "diffuse": Case(
        diffuse,
        oracle.diffuse,
        (0, 1),
        lambda shape, dtype: [normal(shape, dtype), vector(shape[0]), normal(shape, dtype, 1)],
    ),
    "diffuse drawn": Case(
        lambda x, gamma: diffuse(x, gamma, NOISE),
        lambda x, gamma: oracle.diffuse(x, gamma, drawn(x)),
        (0, 1),
        lambda shape, dtype: [normal(shape, dtype), vector(shape[0])],
    ),
    "dropout": Case(
        lambda x: dropout(x, 0.3, NOISE, 2),
        lambda x: oracle.dropout(x, 0.3, 20, 1, 2, 2),
        (0,),
        lambda shape, dtype: [normal(shape, dtype)],
    ),
    "eps_loss": Case(
        eps_loss,
        oracle.eps_loss,
        (0, 2),
        lambda shape, dtype: [normal(shape, dtype), normal(shape, dtype, 1), vector(shape[0], 2).abs()],
    ),
    "eps_loss drawn": Case(
        lambda eps_hat, weight: eps_loss(eps_hat, NOISE, weight),
        lambda eps_hat, weight: oracle.eps_loss(eps_hat, drawn(eps_hat), weight),
        (0, 1),
        lambda shape, dtype: [normal(shape, dtype), vector(shape[0], 2).abs()],
    ),
    "fourier_features": Case(
        lambda z: fourier_features(z, 3, 5),
        lambda z: oracle.fourier(z, 3, 5),
        (0,),
        lambda shape, dtype: [normal(shape, dtype)],
    ),
    "sampler_step plain": step_case(),
    "sampler_step clipped": step_case(0.8, remembered=1),
    "sampler_step guided": step_case(2.0, remembered=3, previous=True, guided=True),
    "sampler_step drawn": Case(
        lambda z_t, eps_hat: sampler_step(z_t, eps_hat, torch.tensor(NOISY_ROW, device=z_t.device), NOISE),
        lambda z_t, eps_hat: oracle.sampler_step(z_t, eps_hat, NOISY_ROW, drawn(z_t)),
        (0, 1),
        lambda shape, dtype: [normal(shape, dtype), normal(shape, dtype, 1)],
    ),
    "decoder_nll": decoder_case(17, per_element=False),
    "decoder_nll, logvar like mean": decoder_case(256, per_element=True),
    "reparameterize": Case(
        reparameterize,
        oracle.reparameterize,
        (0, 1),
        lambda shape, dtype: [normal(shape, dtype, k) for k in range(3)],
    ),
    "reparameterize drawn": Case(
        lambda mean, logvar: reparameterize(mean, logvar, NOISE),
        lambda mean, logvar: oracle.reparameterize(mean, logvar, drawn(mean)),
        (0, 1),
        lambda shape, dtype: [normal(shape, dtype, k) for k in range(2)],
    ),
    "gaussian_log_ratio": Case(
        gaussian_log_ratio,
        oracle.gaussian_log_ratio,
        (0, 1, 2, 3, 4),
        lambda shape, dtype: [normal(shape, dtype, k) for k in range(5)],
    ),
}


def cancellation(case: Case, position: int, first: Tensor) -> float:
    """What rounding of its terms may change in a gradient that adds up the first one, whatever the arguments are."""
    if position not in case.sums_first or not first.numel():
        return 0.0
    return 2.0**-24 * float(first.reshape(*first.shape[:2], -1).abs().sum(2).max())


def run(function, tensors, differentiable):
    """Values and gradients of a random weighted sum of them."""
    leaves = [t.detach().requires_grad_(k in differentiable) for k, t in enumerate(tensors)]  # layouts are kept
    outputs = function(*leaves)
    outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o is not None]
    total = sum((o.cpu().double() * normal(o.shape, torch.float64, 99)).sum() for o in outputs)
    with scope(function):
        total.backward()
    return [o.detach() for o in outputs], [leaves[k].grad for k in differentiable]


def assert_close(found: Tensor, exact: Tensor, dtype: torch.dtype, backend: str = "torch") -> None:
    assert found.shape == exact.shape
    allowed = UNIT[dtype] * (2.0 if backend == "interpreter" and dtype == torch.bfloat16 else 1.0)
    scale = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0
    error = float((found.double() - exact).abs().max()) if exact.numel() else 0.0
    assert error <= allowed * scale, f"error {error / scale:.3g} of the largest entry, allowed {allowed:.3g}"


EVERYTHING = "scale shift pre_shift residual skip"
EPS = 0.1  # a group of one or of equal elements has no variance: 1e-5 would magnify its rounding 300 times


@dataclass(frozen=True)
class InTiles:
    """A function that is run and differentiated with groups that do not fit on chip."""

    function: Callable[..., Tensor | tuple[Tensor, ...]]

    def __call__(self, *tensors):
        with self.forced():
            return self.function(*tensors)

    def forced(self):
        return mock.patch.object(group_norm_blocks, "ON_CHIP", 16)


def scope(function):
    """The context in which a function of a case is differentiated."""
    return function.forced() if isinstance(function, InTiles) else contextlib.nullcontext()


def group_norm_case(used="", tiles=False, activation=True):
    """Groups are normalised in one kernel, or in ``tiles``, with the optional tensors that ``used`` names.

    A group holds channels of x and of skip where the channels allow it.
    """
    names = used.split()

    def arguments(x, others):
        named = dict(zip(names, others, strict=True))
        channels = x.shape[1] + (named["skip"].shape[1] if "skip" in named else 0)
        return math.gcd(channels, 4), named | {"eps": EPS, "activation": activation}

    def ours(x, weight, bias, *others):
        groups, named = arguments(x, others)
        return group_norm_silu(x, groups, weight, bias, **named)

    def exact(x, weight, bias, *others):
        groups, named = arguments(x, others)
        return oracle.group_norm_silu(x, groups, weight, bias, **named)

    def make(shape, dtype):
        behind = (shape[0], shape[1] + 2, *shape[2:])
        channels = shape[1] + (behind[1] if "skip" in names else 0)
        sizes = {"pre_shift": shape[:2], "scale": (shape[0], channels), "shift": (shape[0], channels)}
        data = {"residual": shape, "skip": behind}
        others = [normal(sizes.get(name, data.get(name)), dtype if name in data else torch.float32, 3 + k)
                  for k, name in enumerate(names)]  # fmt: skip
        return [normal(shape, dtype), vector(channels, 1, 1.0), vector(channels, 2, 1.0), *others]

    sums_first = (3 + names.index("pre_shift"),) if "pre_shift" in names else ()
    return Case(InTiles(ours) if tiles else ours, exact, tuple(range(3 + len(names))), make, sums_first)


def channels_last(case: Case) -> Case:
    """The case with images [B, C, H, W] in channels-last memory, where drawn noise has another order than the data."""

    def ours(*tensors):
        return case.ours(*(t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors))

    return Case(ours, case.exact, case.differentiable, case.make)


LAST = (
    "diffuse drawn", "dropout", "eps_loss drawn", "sampler_step drawn", "reparameterize drawn", "fourier_features",
)  # fmt: skip
NODES = torch.tensor([[0, 1, 2], [2**32 - 1, 7, 2**24], [3, 4, 5]])
WEIGHTS = torch.tensor([[9.0] * 3, [0.8, -0.5, 0.33], [9.0] * 3])
TABLE = torch.tensor([[9.0] * 10, PLAIN_ROW, [9.0] * 10])
MORE_CASES = {
    "draw": Case(
        lambda x: NOISE.normal(x.shape, x.dtype, x.device),
        lambda x: NOISE.normal(x.shape).to(x.dtype),
        (),
        lambda shape, dtype: [normal(shape, dtype)],
    ),
    "draw uniform": Case(
        lambda x: NOISE.uniform(x.shape, x.dtype, x.device),
        lambda x: NOISE.uniform(x.shape).to(x.dtype),
        (),
        lambda shape, dtype: [normal(shape, dtype)],
    ),
    "draw, a sum of three": Case(
        lambda x: noise_sum(NOISE.to(x.device), NODES.to(x.device), WEIGHTS.to(x.device), x.shape),
        lambda x: sum(
            weight * NOISE.at(step=node, stream=15).normal(x.shape).double()
            for node, weight in zip(NODES[1].tolist(), WEIGHTS[1].tolist(), strict=True)
        ),
        (),
        lambda shape, dtype: [normal(shape, dtype)],
    ),
    "sampler_step without x_hat": Case(
        lambda z_t, eps_hat: sampler_step(z_t, eps_hat, torch.tensor(PLAIN_ROW, device=z_t.device), keep_x_hat=False),
        lambda z_t, eps_hat: oracle.sampler_step(z_t, eps_hat, PLAIN_ROW)[0],
        (0, 1),
        lambda shape, dtype: [normal(shape, dtype, 0), normal(shape, dtype, 1)],
    ),
    "sampler_step with a table": Case(
        lambda z_t, eps_hat: sampler_step(
            z_t, eps_hat, TABLE.to(z_t.device), None, 0.8, step=torch.tensor([1], device=z_t.device)
        ),
        lambda z_t, eps_hat: oracle.sampler_step(z_t, eps_hat, PLAIN_ROW, None, 0.8),
        (0, 1),
        lambda shape, dtype: [normal(shape, dtype, 0), normal(shape, dtype, 1)],
    ),
    "sampler_step, two estimates": step_case(remembered=2),
    "sampler_step, a latent": step_case(previous=True, guided=True),
    "fourier_features in float32": Case(
        lambda z: fourier_features(z, 2, 2, torch.float32),
        lambda z: oracle.fourier(z, 2, 2),
        (0,),
        lambda shape, dtype: [normal(shape, dtype)],
    ),
    "group_norm_silu, whole groups": group_norm_case(),
    "group_norm_silu, modulated": group_norm_case("scale shift"),
    "group_norm_silu, pre_shift": group_norm_case("pre_shift"),
    "group_norm_silu, residual": group_norm_case("residual"),
    "group_norm_silu, skip": group_norm_case("skip"),
    "group_norm_silu, everything": group_norm_case(EVERYTHING),
    "group_norm_silu, plain": group_norm_case(activation=False),
    "group_norm_silu in tiles": group_norm_case("scale shift", tiles=True),
    "group_norm_silu in tiles, pre_shift": group_norm_case("pre_shift", tiles=True),
    "group_norm_silu in tiles, residual": group_norm_case("residual", tiles=True),
    "group_norm_silu in tiles, everything": group_norm_case(EVERYTHING, tiles=True, activation=False),
}
EVERY_CASE = {**MORE_CASES, **CASES, **{f"{name}, channels last": channels_last(CASES[name]) for name in LAST}}


def evaluate(function, tensors, differentiable, place=lambda upstream: upstream):
    """Values and gradients; the layouts of the tensors are kept, and ``place`` lays out the upstream gradients."""
    leaves = [t.detach().requires_grad_(k in differentiable) for k, t in enumerate(tensors)]
    outputs = function(*leaves)
    outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o is not None]
    upstream = [place(normal(o.shape, o.dtype, 99 + k)) for k, o in enumerate(outputs)]
    wanted = [leaves[k] for k in differentiable]
    with scope(function):
        gradients = torch.autograd.grad(outputs, wanted, upstream) if wanted else ()
    return [o.detach() for o in outputs], list(gradients)
