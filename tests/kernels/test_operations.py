"""The operations against float64: values and gradients, both backends, every dtype, odd sizes, any layout.

Tolerances are relative to the largest entry of the float64 result and slightly above the measured errors: float32
3.9e-7 in values and gradients; bfloat16 and float16 one unit in the last place where the rounding is to nearest, two
for bfloat16 in the interpreter, which truncates.
"""

from itertools import product

import oracle
import pytest
import torch
from cases import BACKENDS, CASES, DTYPES, NOISE, PLAIN_ROW, assert_close, normal, run
from fastdiff_kernels import diffuse, eps_loss, fourier_features, sampler_step, use_backend
from lengths import usually

# The interpreter takes long per program, and runs any shape, layout and mixture of dtypes in test_properties.
SHAPES = {
    "torch": ((3, 1), (1, 1, 1, 1), (3, 2, 5, 7), (2, 3, 19, 19), (2, 1, 1, 1031), (0, 3, 4, 4)),
    "interpreter": ((3, 2, 5, 7), (2, 1, 1, 1031)),
}


EVERY = list(product(BACKENDS, DTYPES))


@pytest.mark.parametrize(
    ("backend", "dtype"), usually([*EVERY[:3], ("interpreter", torch.float32)], EVERY, True), ids=str
)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, dtype, backend):
    case = CASES[name]
    for shape in SHAPES[backend]:
        tensors = case.make(shape, dtype)
        wide = [t.double() for t in tensors]
        with use_backend(backend):
            values, gradients = run(case.ours, tensors, case.differentiable)
        exact_values, exact_gradients = run(case.exact, wide, case.differentiable)
        for found, exact in zip(values, exact_values, strict=True):
            assert_close(found, exact, found.dtype, backend)
        for k, found, exact in zip(case.differentiable, gradients, exact_gradients, strict=True):
            assert found.dtype == tensors[k].dtype
            assert_close(found, exact, dtype, backend)


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "expanded": lambda x: x[:1].expand(x.shape),
    "misaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_any_layout(name, layout):
    """The reference gives the same numbers as for contiguous arguments, in the layout of the first argument."""
    case = CASES[name]
    plain = case.make((2, 3, 4, 5), torch.float32)
    moved = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in plain]
    plain = [t.contiguous() for t in moved]
    values, gradients = run(case.ours, moved, case.differentiable)
    expected, expected_gradients = run(case.ours, plain, case.differentiable)
    for a, b in zip([*values, *gradients], [*expected, *expected_gradients], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    if layout == "channels last" and values[0].dim() == 4:
        assert values[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CASES)
def test_arguments_of_different_layouts(name):
    """All but the first are channels-last: elements still pair up by their logical index."""
    case = CASES[name]
    tensors = case.make((2, 3, 4, 5), torch.float32)
    moved = [tensors[0], *(LAYOUTS["channels last"](t) if t.dim() == 4 else t for t in tensors[1:])]
    values, _ = run(case.ours, moved, case.differentiable)
    expected, _ = run(case.ours, tensors, case.differentiable)
    for a, b in zip(values, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_fourier_is_exact_where_the_formula_is_not():
    """At n = 8 the error against float64 stays below 3e-7. The formula as written has an error of 1e-4 in float32."""
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
            kept, x_hat = sampler_step(z_t, eps_hat, torch.tensor(PLAIN_ROW))
            alone, nothing = sampler_step(z_t, eps_hat, torch.tensor(PLAIN_ROW), keep_x_hat=False)
        assert x_hat is not None
        assert nothing is None
        assert torch.equal(kept, alone)


def test_the_loss_draws_the_noise_that_diffuse_drew():
    """`diffuse` and `eps_loss` draw from the same counter: the noise recovered from z_t has no loss."""
    x, gamma = normal((3, 2, 8, 8), torch.float32), torch.tensor([-1.0, 0.0, 2.0])
    for backend in BACKENDS:
        with use_backend(backend):
            z_t = diffuse(x, gamma, NOISE)
            alpha, sigma = (torch.sigmoid(s * gamma).sqrt()[:, None, None, None] for s in (-1.0, 1.0))
            loss = eps_loss((z_t - alpha * x) / sigma, NOISE, torch.ones(3))
        assert loss.max() < 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_in_another_dtype(backend):
    """A float32 latent and 16-bit features: the argument is reduced before anything is rounded to 16 bits."""
    z = 3.0 * normal((2, 3, 8, 9), torch.float32)
    with use_backend(backend):
        exact = fourier_features(z)
        for dtype, unit in ((torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)):
            leaf = z.clone().requires_grad_()
            features = fourier_features(leaf, dtype=dtype)
            assert features.dtype == dtype
            assert ((features.float() - exact).abs() <= unit * exact.abs().clamp(min=1e-2)).all()
            features.sum().backward()
            assert leaf.grad is not None
            assert leaf.grad.dtype == torch.float32
