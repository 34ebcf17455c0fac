"""The row of `sampler_step`: selection by a counter on the device, checks of its values, and guidance."""

import pytest
import torch
from cases import step_row
from fastdiff_kernels import InvalidValueError, Noise, Stream, sampler_step, use_backend

BACKENDS = ("torch", "interpreter")
TABLE = torch.rand(5, 10, generator=torch.Generator().manual_seed(1))
Z, EPS_HAT, U, Z_PREV = torch.randn(4, 2, 3, 4, 5, generator=torch.Generator().manual_seed(2)).unbind()
HISTORY = torch.randn(3, 2, 3, 4, 5, generator=torch.Generator().manual_seed(3)).unbind()
EVERYTHING = {"history": HISTORY, "z_prev": Z_PREV, "eps_hat_uncond": U}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_selects_its_row(backend):
    with use_backend(backend):
        for k in range(len(TABLE)):
            selected = sampler_step(Z, EPS_HAT, TABLE, Noise(3), 0.7, step=torch.tensor([k]), **EVERYTHING)
            alone = sampler_step(Z, EPS_HAT, TABLE[k], Noise(3), 0.7, **EVERYTHING)
            assert all(torch.equal(a, b) for a, b in zip(selected, alone, strict=True))


def leaves() -> list[torch.Tensor]:
    return [x.clone().requires_grad_() for x in (Z, EPS_HAT, *HISTORY, Z_PREV, U)]


def step_of(tensors, row, step, clip):
    z_t, eps_hat, *history, z_prev, u = tensors
    return sampler_step(z_t, eps_hat, row, Noise(3), clip, history, z_prev, u, step)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_with_a_step(backend):
    results = []
    for row, step in ((TABLE, torch.tensor([3])), (TABLE[3], None)):
        tensors = leaves()
        with use_backend(backend):
            z_s, x_hat = step_of(tensors, row, step, 0.7)
            (z_s.square().sum() + x_hat.sum()).backward()
        results.append([leaf.grad for leaf in tensors])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("outside", "clip"), [(-1, None), (5, 0.5), (2**40, None)])
def test_a_step_outside_the_table_gives_nan(backend, outside, clip):
    """In the values, and in the gradients to everything."""
    tensors = leaves()
    with use_backend(backend):
        results = step_of(tensors, TABLE, torch.tensor([outside]), clip)
        results[0].sum().backward()
    assert all(value.isnan().all() for value in (*results, *(leaf.grad for leaf in tensors)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_that_only_advances_equals_one_that_names_each_step(backend):
    """Every argument of the first loop's body is the same object at every step, as when a graph is replayed."""
    table = TABLE.clone()
    table[:, 5:] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    z = advanced = Z
    noise = Noise(4, stream=Stream.SAMPLER)
    with use_backend(backend):
        for k in range(len(table)):
            advanced, _ = sampler_step(advanced, EPS_HAT, table, noise, step=noise.counter)
            noise.advance()
            z, _ = sampler_step(z, EPS_HAT, table[k], Noise(4, step=k, stream=Stream.SAMPLER))
    assert torch.equal(z, advanced)


def test_guidance_is_a_column():
    """w = 1 is the conditional model and w = 0 the unconditional one, bit for bit; a table can switch between them."""
    rows = torch.tensor([step_row()] * 3)
    rows[:, 5] = torch.tensor([1.0, 0.0, 3.0])
    plain = [sampler_step(Z, eps_hat, rows[0]) for eps_hat in (EPS_HAT, U, U + 3.0 * (EPS_HAT - U))]
    for k, expected in enumerate(plain):
        guided = sampler_step(Z, EPS_HAT, rows, eps_hat_uncond=U, step=torch.tensor([k]))
        for a, b in zip(guided, expected, strict=True):
            assert torch.equal(a, b) if k < 2 else torch.allclose(a, b, atol=1e-6)


def test_mixed_dtypes():
    """Remembered tensors keep their own dtypes, and so do their gradients."""
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16, torch.float32, torch.float16, torch.float32)
    tensors = [x.detach().to(dtype).requires_grad_() for x, dtype in zip(leaves(), dtypes, strict=True)]
    results = []
    for backend in BACKENDS:
        with use_backend(backend):
            z_s, _ = step_of(tensors, TABLE[0], None, None)
            results.append([z_s, *torch.autograd.grad(z_s.float().sum(), tensors)])
    assert [x.dtype for x in results[0]] == [torch.bfloat16, *dtypes]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2.0**-6, atol=2.0**-6)


@pytest.mark.parametrize(("backend", "unit"), [("torch", 2.0**-8), ("interpreter", 2.0**-7)])
def test_gradients_of_guidance_are_rounded_once(backend, unit):
    """bfloat16 gradients to both estimates, from float64: half a unit in the last place, which is 2^-8 relative.

    Two roundings reach 1.4 times as much. The interpreter truncates instead of rounding, which is a whole unit.
    """
    row = step_row(guided=True)
    z, c, u = (torch.randn(4, 500, generator=torch.Generator().manual_seed(k)).bfloat16() for k in range(3))
    c.requires_grad_()
    u.requires_grad_()
    with use_backend(backend):
        z_s, _ = sampler_step(z, c, torch.tensor(row), eps_hat_uncond=u)
        found = torch.autograd.grad(z_s, (c, u), z)
    b_ratio, w = -float(torch.tensor(row[3]) * torch.tensor(row[1])), row[5]
    for gradient, factor in zip(found, (b_ratio * w, b_ratio * (1.0 - w)), strict=True):
        exact = factor * z.double()
        assert ((gradient.double() - exact).abs() <= 1.001 * unit * exact.abs()).all()


NEEDED = {
    "noise": (step_row(noisy=True), {}),
    "z_prev": (step_row(previous=True), {}),
    "eps_hat_uncond": (step_row(guided=True), {}),
    r"history\[0\]": (step_row(remembered=1), {}),
    r"history\[2\]": (step_row(remembered=3), {"history": HISTORY[:2]}),
    "finite": ((float("nan"), *step_row()[1:]), {}),
    "finite.*nan": ((*step_row()[:5], float("nan"), *step_row()[6:]), {"eps_hat_uncond": U}),
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_row_needs_what_its_coefficients_multiply(name):
    """On a CPU; a table is not looked at, and neither is a row under a compiler."""
    row, others = NEEDED[name]
    with pytest.raises(InvalidValueError, match=name):
        sampler_step(Z, EPS_HAT, torch.tensor(row), **others)
    sampler_step(Z, EPS_HAT, torch.tensor([row]), step=torch.tensor([0]), **others)
    compiled = torch.compile(lambda z: sampler_step(z, EPS_HAT, torch.tensor(row), **others), backend="eager")
    compiled(Z)
