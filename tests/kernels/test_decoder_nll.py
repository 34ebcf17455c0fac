"""The discretised likelihood: levels, dtypes, extreme variances and means, NaN, and that no large tensor is built.

Measured errors, relative to the largest entry: 7e-7 in the reference and 8.1e-7 in the kernels, mostly from e^{-logvar}
at log-variances of -13 and -20. For single elements: 8e-7 in the nats and 3e-6 in the gradients.
"""

import oracle
import pytest
import torch
from fastdiff_kernels import decoder_nll, to_unit_range, use_backend
from fastdiff_kernels.decoder_nll import gradient_reference, nll_reference
from lengths import usually
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BACKENDS = ("torch", "interpreter")


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def evaluate(x, mean, logvar, levels, backend):
    """Nats [B], and the gradients of their weighted sum to mean and logvar, of the operation and in float64."""
    weight = data(len(x), seed=5)
    leaves = [mean.clone().requires_grad_(), logvar.clone().requires_grad_()]
    with use_backend(backend):
        nats = decoder_nll(x, *leaves, levels)
        ours = [nats.detach(), *torch.autograd.grad((nats * weight).sum(), leaves)]
    wide = [mean.double().requires_grad_(), logvar.double().requires_grad_()]
    spread = wide[1] if logvar.dim() == x.dim() else oracle.shaped(wide[1], x).expand(x.shape)
    nats = oracle.decoder_nll(x, wide[0], spread, levels)
    return ours, [nats.detach(), *torch.autograd.grad((nats * weight.double()).sum(), wide)]


def relative_errors(ours, exact):
    """Largest error, relative to the largest entry or 1."""
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)) for a, b in zip(ours, exact, strict=True)
    ]


LEVELS = [*(("torch", levels) for levels in (2, 3, 17, 100, 255, 256)), ("interpreter", 17), ("interpreter", 256)]


@pytest.mark.parametrize(("backend", "levels"), LEVELS)
@pytest.mark.parametrize("per_element", [False, True])
def test_values_and_gradients(levels, per_element, backend):
    """Random data and means, log-variances from -20 to 20, against the full tensor of levels in float64."""
    for spread in (-20.0, -13.3, -8.0, -4.0, 0.0, 20.0):
        x = torch.randint(levels, (3, 2, 11, 17), dtype=torch.uint8)
        logvar = torch.full(x.shape if per_element else (3,), spread)
        errors = relative_errors(*evaluate(x, data(*x.shape), logvar, levels, backend))
        assert max(errors) < 1e-6, f"logvar {spread}: {errors}"


@pytest.mark.parametrize(("backend", "levels"), usually(LEVELS[:7], [*LEVELS, ("interpreter", 2)], True))
def test_every_single_element(levels, backend):
    """One element per sample: means near the data, halfway between two levels, at the borders and far outside."""
    size = 64 if backend == "torch" else 6
    x = torch.arange(size).mul(5).remainder(levels).to(torch.uint8)
    centres = to_unit_range(x, levels)
    for spread in (-20.0, -13.3, -8.0, 20.0):
        near = centres + (0.5 * torch.tensor(spread)).exp() * data(size)
        means = {"near": near, "halfway": centres + 1.0 / levels, "border": data(size).sign(), "far": 1e3 * data(size)}
        for name, mean in means.items():
            ours, exact = evaluate(x[:, None], mean[:, None], torch.full((size,), spread), levels, backend)
            error = float(((ours[0].double() - exact[0]).abs() / (1.0 + exact[0])).max())
            assert error < 1e-6, f"logvar {spread}, {name}: {error:.2g}"
            errors = relative_errors(ours[1:], exact[1:])
            assert max(errors) < 4e-6, f"logvar {spread}, {name}: gradients {errors}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_precisions_in_one_block(backend):
    """Neighbours with distributions from one level wide to all levels wide: the widest determines the window."""
    x = torch.randint(256, (2, 3, 19, 19), dtype=torch.uint8)
    logvar = torch.linspace(-16.0, 10.0, x.numel())[torch.randperm(x.numel())].view(x.shape)
    mean = to_unit_range(x, 256) + (0.5 * logvar).exp() * data(*x.shape)
    assert max(relative_errors(*evaluate(x, mean, logvar, 256, backend))) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_half_precision(dtype):
    """Errors below two units in the last place."""
    x = torch.randint(256, (3, 2, 21, 37), dtype=torch.uint8)
    unit = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    for logvar in (data(*x.shape, seed=1).to(dtype) - 2.0, data(3, seed=1) - 2.0):
        nats, *gradients = relative_errors(*evaluate(x, data(*x.shape).to(dtype), logvar, 256, "torch"))
        assert nats < 1e-6
        assert max(gradients) < 2 * unit


@pytest.mark.parametrize(("levels", "backend"), [(2, "interpreter"), (17, "torch"), (256, "torch")])
def test_probabilities_sum_to_one(levels, backend):
    """Over the levels, for one mean and one variance at a time."""
    x = torch.arange(levels, dtype=torch.uint8).expand(7, levels).reshape(-1, 1)
    mean = torch.tensor([-40.0, -1.0, -0.3, 0.0, 0.123, 1.0, 2.0]).repeat_interleave(levels)[:, None]
    for spread in (-14.0, -6.0, 0.0, 9.0):
        with use_backend(backend):
            nats = decoder_nll(x, mean, torch.full((len(x),), spread), levels)
        total = torch.exp(-nats.double()).view(7, levels).sum(1)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_element", [False, True])
def test_a_nan_shows(per_element, backend):
    """A NaN in mean or logvar shows in the nats of its sample and in its own gradient, and nowhere else."""
    x = torch.randint(256, (3, 2, 5), dtype=torch.uint8)
    for spoil in ("mean", "logvar"):
        mean, logvar = data(3, 2, 5), torch.full((3, 2, 5) if per_element else (3,), -4.0)
        (mean if spoil == "mean" else logvar).view(3, -1)[1, 0] = float("nan")
        mean.requires_grad_()
        with use_backend(backend):
            nats = decoder_nll(x, mean, logvar)
            (gradient,) = torch.autograd.grad(nats.sum(), mean)
        assert nats.isnan().tolist() == [False, True, False]
        whole = spoil == "logvar" and not per_element
        assert int(gradient.isnan().sum()) == (10 if whole else 1)
        assert gradient[1, 0, 0].isnan()


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (300, 7)])
@pytest.mark.parametrize("spread", [-13.3, 20.0])
def test_the_reference_builds_no_tensor_of_levels(shape, spread):
    x, mean = torch.randint(256, shape, dtype=torch.uint8), data(*shape)
    for logvar in (torch.full(shape[:1], spread), torch.full(shape, spread)):
        with Largest() as largest:
            nll_reference(x, mean, logvar, 256)
            gradient_reference(torch.ones(shape[0]), x, mean, logvar, 256)
        assert 0 < largest.numel <= x.numel()
