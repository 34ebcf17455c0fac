"""Channels-last data: the same numbers as contiguous data, in the order of the first argument, and no copies."""

import contextlib
from importlib import import_module
from itertools import product
from unittest import mock

import pytest
import torch
from cases import EVERY_CASE, evaluate
from fastdiff_kernels import (
    Noise,
    decoder_nll,
    diffuse,
    dropout,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    launch,
    reparameterize,
    sampler_step,
    use_backend,
)
from fastdiff_kernels._triton import INTERPRETED
from guards import guarded, surrounded
from lengths import usually

NOISE = Noise(5, 6, 7, 8)
ROW = torch.tensor([1.25, 0.75, 0.6, 0.3, 0.4, 1.5, -0.2, 0.0, 0.0, 0.0])
PLAIN_ROW = torch.tensor([1.25, 0.75, 0.6, 0.3, 0.4, 1.0, 0.0, 0.0, 0.0, 0.0])
BACKENDS = ("torch", "interpreter")


def data(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


# Operations of data a, b, c of one shape, with results like a whose numbers do not depend on the layout.
SAME = {
    "diffuse": lambda a, b, c: diffuse(a, torch.linspace(-2.0, 2.0, len(a)), NOISE),
    "diffuse, noise given": lambda a, b, c: diffuse(a, torch.linspace(-2.0, 2.0, len(a)), b.detach()),
    "dropout": lambda a, b, c: dropout(a, 0.3, NOISE, 1),
    "sampler_step": lambda a, b, c: sampler_step(a, b, PLAIN_ROW, NOISE, 0.8)[0],
    "sampler_step, guided": lambda a, b, c: sampler_step(a, b, ROW, NOISE, None, (c,), None, b)[0],
    "sampler_step, x_hat": lambda a, b, c: sampler_step(a, b, PLAIN_ROW, c.detach())[1],
    "reparameterize": lambda a, b, c: reparameterize(a, b, NOISE)[0],
    "fourier_features": lambda a, b, c: fourier_features(a, 3, 5),
    "fourier_features, one": lambda a, b, c: fourier_features(a, 2, 2, torch.bfloat16),
}
# Operations that add up over a sample.
SUMS = {
    "eps_loss": lambda a, b, c: eps_loss(a, NOISE, torch.ones(len(a))),
    "eps_loss, noise given": lambda a, b, c: eps_loss(a, b.detach(), torch.ones(len(a))),
    "gaussian_log_ratio": lambda a, b, c: gaussian_log_ratio(a, b, c, c, b),
    "decoder_nll": lambda a, b, c: decoder_nll((8 * b.sigmoid()).byte(), a, c, 8),
}


def results(function, tensors):
    """The value and the gradients to all tensors, for an upstream gradient in the layout of the value."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    value = function(*leaves)
    upstream = data(value.shape, value.dtype, 9)
    upstream = last(upstream) if value.dim() == 4 and not value.is_contiguous() else upstream
    return value.detach(), torch.autograd.grad(value, leaves, upstream, allow_unused=True)


SHAPES = ((2, 3, 4, 8), (1, 2, 4, 6), (1, 5, 4, 4))
UNEVEN = ((1, 3, 3, 5), (1, 17, 2, 4))  # copied where noise is drawn, since it cannot be drawn in tiles of these
USUAL = (SHAPES[0], UNEVEN[0])
EVERY = list(product(SHAPES + UNEVEN, BACKENDS))


@pytest.mark.parametrize(("shape", "backend"), usually(product(USUAL, BACKENDS), EVERY, True), ids=str)
@pytest.mark.parametrize("name", SAME)
def test_the_same_numbers_bit_for_bit(name, shape, backend):
    """Values and gradients; the results are in the layout of the first argument.

    PyTorch's own functions may round the last elements of a tensor differently, which its layout decides, and so may
    a compiler that fuses one product or the other into a sum.
    """

    def same(a, b):
        if backend == "torch" or not INTERPRETED:
            torch.testing.assert_close(a, b, rtol=1e-6 if a.dtype == torch.float32 else 2.0**-7, atol=1e-6)
        else:
            assert torch.equal(a, b)

    for dtype in (torch.float32, torch.bfloat16):
        tensors = [data(shape, dtype, k) for k in range(3)]
        with use_backend(backend):
            expected, wanted = results(SAME[name], tensors)
            found, gradients = results(SAME[name], [last(t) for t in tensors])
        same(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)
        for gradient, right in zip(gradients, wanted, strict=True):
            assert (gradient is None) == (right is None)
            if gradient is not None:
                same(gradient, right)
                assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", usually(USUAL, SHAPES + UNEVEN), ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_sums_differ_by_rounding_only(name, shape):
    """1e-6 of the value; gradients, which are no sums, are equal."""
    tensors = [data(shape, seed=k) for k in range(3)]
    with use_backend("interpreter"):
        expected, wanted = results(SUMS[name], tensors)
        found, gradients = results(SUMS[name], [last(t) for t in tensors])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    for gradient, right in zip(gradients, wanted, strict=True):
        assert gradient is right is None or torch.equal(gradient, right)


def test_many_programs_get_larger_blocks():
    """For 16-bit data that noise is drawn for; in other cases there are as many programs as before."""
    many, few = (torch.empty(batch, 3, 64, 64, dtype=torch.bfloat16, device="meta") for batch in (1024, 64))
    assert launch.grid_of(many, draws=True) == (1024 * 6, 12288, 6, 2048)
    assert launch.grid_of(many) == (1024 * 12, 12288, 12, 1024)
    assert launch.grid_of(few, draws=True) == launch.grid_of(few) == (64 * 12, 12288, 12, 1024)
    assert launch.grid_of(many.float(), draws=True) == launch.grid_of(many)
    tensors = [data((2, 3000), torch.bfloat16, k) for k in range(3)]
    for function in (SAME["diffuse"], SAME["sampler_step"]):
        with use_backend("interpreter"):
            expected = function(*tensors)
            with mock.patch.object(launch, "MANY", 1):
                assert launch.grid_of(tensors[0], draws=True)[3] == 2048
                assert torch.equal(function(*tensors), expected)


@contextlib.contextmanager
def counted():
    """Yield a list of the tensors that a launcher copies; a call in plain eager mode reaches it directly."""
    found, contiguous, copy_ = [], torch.Tensor.contiguous, torch.Tensor.copy_

    def counted_contiguous(self, *args, **kwargs):
        result = contiguous(self, *args, **kwargs)
        found.extend([self] * (result.data_ptr() != self.data_ptr()))
        return result

    def counted_copy(self, *args, **kwargs):
        found.append(self)
        return copy_(self, *args, **kwargs)

    with (
        mock.patch.object(torch.Tensor, "contiguous", counted_contiguous),
        mock.patch.object(torch.Tensor, "copy_", counted_copy),
        use_backend("interpreter"),
    ):
        yield found


KERNELS = (
    "decoder_nll_kernels", "diffuse", "dropout", "eps_loss", "fourier", "fourier_last", "gaussian_log_ratio",
    "reparameterize", "sampler_step_kernels",
)  # fmt: skip


@pytest.fixture
def no_kernels():
    """Launchers run, and launch nothing."""
    patches = []
    for module in map(import_module, (f"fastdiff_kernels.{name}" for name in KERNELS)):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            patches.append(mock.patch.object(module, name, mock.MagicMock()))
            patches[-1].start()
    yield
    for patch in patches:
        patch.stop()


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*SAME, *SUMS])
def test_nothing_is_copied(name, dtype):
    """Forward and backward, with all data contiguous, and with all channels-last."""
    for layout in (torch.Tensor.contiguous, last):
        leaves = [layout(data((2, 3, 8, 8), dtype, k)).requires_grad_() for k in range(3)]
        upstream = torch.empty_like({**SAME, **SUMS}[name](*leaves))
        with counted() as found:
            value = {**SAME, **SUMS}[name](*leaves)
            torch.autograd.grad(value, leaves, upstream, allow_unused=True)
        assert not found, [t.shape for t in found]


@pytest.mark.usefixtures("no_kernels")
def test_only_what_differs_is_copied():
    """Contiguous arguments beside a channels-last one, and the other way round."""
    z, eps_hat, x_1 = (data((2, 3, 8, 8), seed=k) for k in range(3))

    def count(z_t, eps_hat, x_1):
        with counted() as found:
            sampler_step(z_t, eps_hat, PLAIN_ROW, NOISE, None, (x_1,))
        return len(found)

    assert count(z, eps_hat, x_1) == count(last(z), last(eps_hat), last(x_1)) == 0
    assert count(last(z), last(eps_hat), x_1) == count(z, eps_hat, last(x_1)) == 1
    assert count(last(z), eps_hat, x_1) == count(z, last(eps_hat), last(x_1)) == 2


@pytest.mark.parametrize("dtype", usually([torch.float32], [torch.float32, torch.bfloat16]))
@pytest.mark.parametrize("name", [name for name in EVERY_CASE if name.endswith("channels last")])
def test_accesses_of_channels_last_kernels(name, dtype):
    """Every access is inside its argument, and every element is written once, with NaN between the tensors."""
    case = EVERY_CASE[name]
    for shape in ((2, 3, 8, 8), (1, 6, 4, 12)):
        tensors = [surrounded(t, "channels last" if t.dim() == 4 else "contiguous") for t in case.make(shape, dtype)]
        with use_backend("interpreter"), guarded() as guard:
            values, gradients = evaluate(case.ours, tensors, case.differentiable, lambda g: surrounded(g, "contiguous"))
        for one in guard.launches:
            one.assert_written_once()
        assert all(bool(value.isfinite().all()) for value in [*values, *gradients])
