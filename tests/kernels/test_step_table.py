"""Rows of a table by a counter on the device, and noise that advances: what a captured graph of a sampler replays."""

import pytest
import torch
from fastdiff_kernels import Noise, Stream, fourier_features, sampler_step, use_backend

BACKENDS = ("torch", "interpreter")
TABLE = torch.rand(5, 7, generator=torch.Generator().manual_seed(1))
Z, EPS_HAT = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_selects_its_row(backend):
    with use_backend(backend):
        for k in range(len(TABLE)):
            by_step = sampler_step(Z, EPS_HAT, TABLE, Noise(3), 0.7, step=torch.tensor([k]))
            by_row = sampler_step(Z, EPS_HAT, TABLE[k], Noise(3), 0.7)
            assert all(torch.equal(a, b) for a, b in zip(by_step, by_row, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_with_a_step(backend):
    results = []
    for row, step in ((TABLE, torch.tensor([3])), (TABLE[3], None)):
        leaves = [Z.clone().requires_grad_(), EPS_HAT.clone().requires_grad_(), Z.flip(0).requires_grad_()]
        with use_backend(backend):
            z_s, x_hat = sampler_step(leaves[0], leaves[1], row, None, 0.7, leaves[2], step=step)
            (z_s.square().sum() + x_hat.sum()).backward()
        results.append([leaf.grad for leaf in leaves])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("outside", [-1, 5, 2**40])
def test_a_step_outside_the_table_gives_nan(backend, outside):
    with use_backend(backend):
        for clip in (None, 0.5):
            for value in sampler_step(Z, EPS_HAT, TABLE, Noise(0), clip, step=torch.tensor([outside])):
                assert value.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_gradients_of_a_step_outside_the_table_are_nan(backend, clip):
    leaves = [Z.clone().requires_grad_(), EPS_HAT.clone().requires_grad_(), Z.flip(0).requires_grad_()]
    with use_backend(backend):
        z_s, _ = sampler_step(leaves[0], leaves[1], TABLE, None, clip, offset=leaves[2], step=torch.tensor([7]))
        z_s.sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_to_the_offset_is_no_difference_of_rounded_numbers(backend, dtype):
    """With O = 1 it is upstream (1 - A - B / alpha), which for an ancestral step is small beside both."""
    row = torch.tensor([1.1, 0.5, 0.9, 0.09, 0.0, 0.0, 1.0])
    offset = Z.to(dtype, copy=True).requires_grad_()
    with use_backend(backend):
        z_s, _ = sampler_step(Z.to(dtype), EPS_HAT.to(dtype), row, offset=offset)
        (gradient,) = torch.autograd.grad(z_s, offset, Z.flip(0).to(dtype))
    exact = Z.flip(0).to(dtype).double() * (1.0 - row[2].double() - row[3].double() * row[0].double())
    unit = {torch.float32: 1e-4, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}[dtype]
    assert (gradient.double() - exact).abs().max() <= unit * exact.abs().max()


def test_noise_that_is_moved_is_a_copy():
    noise = Noise(4, step=7)
    moved = noise.to("cpu")
    noise.advance()
    assert moved.counter.tolist() == [7]


def test_a_key_counts_modulo_32_bits_in_any_layout():
    strided = torch.tensor([5, 99, 2**40 + 1, 98, 2, 97, 3, 96])[::2]
    for backend in BACKENDS:
        with use_backend(backend):
            assert torch.equal(Noise.from_key(strided).normal((2, 5)), Noise(5, 1, 2, 3).normal((2, 5)))
    assert Noise.from_key(strided).integer() == Noise(5, 1, 2, 3).integer()


def test_advancing_noise_is_the_noise_of_the_next_step():
    noise = Noise(4, step=2**32 - 2, stream=Stream.SAMPLER)
    counter = noise.counter
    for expected in (2**32 - 2, 2**32 - 1, 0, 1):
        assert counter.tolist() == [expected]
        assert torch.equal(noise.normal((2, 9)), Noise(4, step=expected, stream=Stream.SAMPLER).normal((2, 9)))
        noise.advance()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_that_only_advances_equals_one_that_says_each_step(backend):
    """Every argument of the first loop's body is the same object in every turn, as in a graph's replay."""
    z = advanced = Z
    noise = Noise(4, stream=Stream.SAMPLER)
    with use_backend(backend):
        for k in range(len(TABLE)):
            advanced, _ = sampler_step(advanced, EPS_HAT, TABLE, noise, step=noise.counter)
            noise.advance()
            z, _ = sampler_step(z, EPS_HAT, TABLE[k], Noise(4, step=k, stream=Stream.SAMPLER))
    assert torch.equal(z, advanced)


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_in_another_dtype(backend):
    """A float32 latent and 16-bit features: the argument is reduced before anything is rounded to 16 bits."""
    z = 3.0 * torch.randn(2, 3, 8, 9)
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


WRONG = {
    r"row is shape \(7,\); allowed with step: a table": lambda: sampler_step(Z, Z, TABLE[0], step=torch.tensor([0])),
    r"row has shape \(6,\); allowed: \(7,\)": lambda: sampler_step(Z, Z, TABLE[:, :6], step=torch.tensor([0])),
    r"row is shape \(0, 7\); allowed with step": lambda: sampler_step(Z, Z, TABLE[:0], step=torch.tensor([0])),
    "sampler_step: step is 3; allowed: a torch.int64": lambda: sampler_step(Z, Z, TABLE, step=3),
    r"step is torch.int32 \(1,\) on cpu": lambda: sampler_step(Z, Z, TABLE, step=torch.tensor([0], dtype=torch.int32)),
    r"step is torch.int64 \(\) on cpu; allowed": lambda: sampler_step(Z, Z, TABLE, step=torch.tensor(0)),
    "fourier_features: dtype is torch.float64; allowed": lambda: fourier_features(Z, dtype=torch.float64),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    with pytest.raises((TypeError, ValueError), match=message):
        WRONG[message]()
