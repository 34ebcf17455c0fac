"""The operations against float64: values and gradients, both backends, every dtype, odd sizes, any layout.

Tolerances are relative to the largest entry of the float64 result, a little above the measured errors: float32 3.9e-7
in values and gradients alike; bfloat16 and float16 one unit in the last place where the rounding is to nearest, two for
bfloat16 in the interpreter, which truncates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import oracle
import pytest
import torch
from fastdiff_kernels import (
    Noise,
    decoder_nll,
    diffuse,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    reparameterize,
    sampler_step,
    use_backend,
)
from torch import Tensor

BACKENDS = ("torch", "interpreter")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIT = {torch.float32: 5e-7, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
SHAPES = ((3, 1), (1, 1, 1, 1), (3, 2, 5, 7), (2, 3, 19, 19), (2, 1, 1, 1031), (0, 3, 4, 4))
ROW = (1.25, 0.75, 0.6, 0.3, -0.2, 0.4, 0.9)


@dataclass(frozen=True)
class Case:
    """An operation and its float64 counterpart, as functions of the same list of tensors."""

    ours: Callable[..., Tensor | tuple[Tensor, ...]]
    exact: Callable[..., Tensor | tuple[Tensor, ...]]
    differentiable: tuple[int, ...]  # positions of the arguments that get a gradient
    make: Callable[[tuple[int, ...], torch.dtype], list[Tensor]]


def normal(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def vector(size, seed=0, scale=4.0):
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


NOISE = Noise(20, 1, 2, 3)


def drawn(x: Tensor) -> Tensor:
    """The noise that an operation draws for data like x, in float64."""
    return NOISE.normal(x.shape).double()


def step_case(clip, guided, offset, prev):
    def ours(z_t, eps_hat, eps, x_prev, o, u):
        row = torch.tensor(ROW, device=z_t.device)
        return sampler_step(
            z_t, eps_hat, row, eps, clip, x_prev if prev else None, o if offset else None,
            u if guided else None, 1.5 if guided else None,
        )  # fmt: skip

    def exact(z_t, eps_hat, eps, x_prev, o, u):
        return oracle.sampler_step(
            z_t, eps_hat, ROW, eps, clip, x_prev if prev else None, o if offset else None, u if guided else None, 1.5
        )

    used = tuple(k for k, on in ((0, True), (1, True), (3, prev), (4, offset), (5, guided)) if on)
    return Case(ours, exact, used, lambda shape, dtype: [normal(shape, dtype, k) for k in range(6)])


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
    "sampler_step plain": step_case(None, guided=False, offset=False, prev=False),
    "sampler_step clipped": step_case(0.8, guided=False, offset=False, prev=True),
    "sampler_step guided": step_case(0.8, guided=True, offset=True, prev=True),
    "sampler_step drawn": Case(
        lambda z_t, eps_hat: sampler_step(z_t, eps_hat, torch.tensor(ROW, device=z_t.device), NOISE),
        lambda z_t, eps_hat: oracle.sampler_step(z_t, eps_hat, ROW, drawn(z_t), None, None, None, None, 1.0),
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


def run(function, tensors, differentiable):
    """Values and gradients of a random weighted sum of them."""
    leaves = [t.detach().requires_grad_(k in differentiable) for k, t in enumerate(tensors)]  # in the layout given
    outputs = function(*leaves)
    outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o is not None]
    total = sum((o.cpu().double() * normal(o.shape, torch.float64, 99)).sum() for o in outputs)
    total.backward()
    return [o.detach() for o in outputs], [leaves[k].grad for k in differentiable]


def assert_close(given: Tensor, exact: Tensor, dtype: torch.dtype, backend: str = "torch") -> None:
    assert given.shape == exact.shape
    allowed = UNIT[dtype] * (2.0 if backend == "interpreter" and dtype == torch.bfloat16 else 1.0)
    scale = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0
    error = float((given.double() - exact).abs().max()) if exact.numel() else 0.0
    assert error <= allowed * scale, f"error {error / scale:.3g} of the largest entry, allowed {allowed:.3g}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, dtype, backend):
    case = CASES[name]
    for shape in SHAPES:
        tensors = case.make(shape, dtype)
        wide = [t.double() for t in tensors]
        with use_backend(backend):
            values, gradients = run(case.ours, tensors, case.differentiable)
        exact_values, exact_gradients = run(case.exact, wide, case.differentiable)
        for given, exact in zip(values, exact_values, strict=True):
            assert_close(given, exact, given.dtype, backend)
        for k, given, exact in zip(case.differentiable, gradients, exact_gradients, strict=True):
            assert given.dtype == tensors[k].dtype
            assert_close(given, exact, dtype, backend)


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "expanded": lambda x: x[:1].expand(x.shape),
    "misaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_any_layout(name, layout, backend):
    """The same numbers as for contiguous arguments, in the layout of the first."""
    case = CASES[name]
    plain = case.make((2, 3, 4, 5), torch.float32)
    given = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in plain]
    plain = [t.contiguous() for t in given]
    with use_backend(backend):
        values, gradients = run(case.ours, given, case.differentiable)
        expected, expected_gradients = run(case.ours, plain, case.differentiable)
    for a, b in zip([*values, *gradients], [*expected, *expected_gradients], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    if layout == "channels last" and values[0].dim() == 4:
        assert values[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CASES)
def test_noise_of_another_layout(name):
    """Only the noise is channels-last: elements still pair up by their logical index."""
    case = CASES[name]
    tensors = case.make((2, 3, 4, 5), torch.float32)
    moved = [tensors[0], *(LAYOUTS["channels last"](t) if t.dim() == 4 else t for t in tensors[1:])]
    for backend in BACKENDS:
        with use_backend(backend):
            values, _ = run(case.ours, moved, case.differentiable)
            expected, _ = run(case.ours, tensors, case.differentiable)
        for a, b in zip(values, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_fourier_is_exact_where_the_formula_is_not():
    """At n = 8 the error against float64 stays below 3e-7; the formula as written loses 1e-4 in float32."""
    z = 4.0 * normal((2, 3, 64, 64), torch.float32)
    exact = oracle.fourier(z.double(), 7, 8)
    for backend in BACKENDS:
        with use_backend(backend):
            assert (fourier_features(z).double() - exact).abs().max() < 3e-7
    assert (oracle.fourier(z, 7, 8).double() - exact).abs().max() > 1e-5


def test_sampler_step_without_x_hat():
    z_t, eps_hat = normal((2, 3, 4, 4), torch.float32), normal((2, 3, 4, 4), torch.float32, 1)
    for backend in BACKENDS:
        with use_backend(backend):
            kept, x_hat = sampler_step(z_t, eps_hat, torch.tensor(ROW))
            alone, nothing = sampler_step(z_t, eps_hat, torch.tensor(ROW), keep_x_hat=False)
        assert x_hat is not None
        assert nothing is None
        assert torch.equal(kept, alone)


def test_the_loss_draws_the_noise_that_diffuse_drew():
    """diffuse and eps_loss meet on the counter: the noise recovered from z_t has no loss."""
    x, gamma = normal((3, 2, 8, 8), torch.float32), torch.tensor([-1.0, 0.0, 2.0])
    for backend in BACKENDS:
        with use_backend(backend):
            z_t = diffuse(x, gamma, NOISE)
            alpha, sigma = (torch.sigmoid(s * gamma).sqrt()[:, None, None, None] for s in (-1.0, 1.0))
            loss = eps_loss((z_t - alpha * x) / sigma, NOISE, torch.ones(3))
        assert loss.max() < 1e-10
