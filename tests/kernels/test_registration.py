"""The operations inside PyTorch: opcheck, torch.compile, dispatch modes, and the transforms that they reject."""

import contextlib
from functools import partial

import pytest
import torch
from fastdiff_kernels import (
    Noise,
    UnsupportedTransformError,
    decoder_nll,
    diffuse,
    dropout,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    group_norm_silu,
    noise_sum,
    reparameterize,
    sampler_step,
    use_backend,
)
from torch.utils._python_dispatch import TorchDispatchMode

NOISE = Noise(1, 2, 3, 4)
ROW = torch.tensor([1.25, 0.75, 0.6, 0.3, 0.4, 1.5, -0.2, 0.7, -0.5, 0.35])


def data(seed: int, grad: bool = False, shape: tuple[int, ...] = (2, 3, 4, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def last(x: torch.Tensor) -> torch.Tensor:
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(x.requires_grad)


VECTORS = data(1, True, (3,)), data(2, True, (3,))
SIX = data(3, True, (6,)), data(4, True, (6,))
OP_SAMPLES = {
    "draw": [(NOISE.key, [2, 7], torch.bfloat16, True), (NOISE.key, [2, 7], torch.float32, False)],
    "noise_sum": [(NOISE.key, torch.arange(6).view(3, 2), torch.ones(3, 2), [2, 7])],
    "diffuse": [
        (data(0, True), torch.zeros(2).requires_grad_(), NOISE.key),
        (last(data(0, True)), torch.zeros(2), data(1)),
    ],
    "diffuse_gamma_gradient": [(data(0), data(1), torch.zeros(2), NOISE.key)],
    "dropout": [(data(0, True), NOISE.key, 521, 77), (last(data(0)).half().requires_grad_(), NOISE.key, 9, 255)],
    "eps_squared_error": [(data(0, True), NOISE.key), (last(data(0, True)), data(1))],
    "eps_loss_gradient": [(torch.ones(2), data(0), NOISE.key), (torch.ones(2), last(data(0)), data(1))],
    "fourier_features": [(data(0, True), 3, 4, torch.float32), (last(data(0, True)), 3, 4, torch.bfloat16)],
    "fourier_gradient": [(data(0, shape=(2, 15, 4, 5)), data(1), 3, 4)],
    "sampler_step": [
        (
            data(0, True),
            data(1, True),
            ROW,
            None,
            NOISE.key,
            1.0,
            data(2, True),
            data(3),
            data(4, True),
            data(5, True),
            data(6, True),
            True,
        ),
        (last(data(0)), data(1), ROW, None, None, None, data(2, True), None, None, None, None, False),
        (data(0), data(1), torch.stack([ROW, ROW]), torch.tensor([1]), NOISE.key, *[None] * 6, False),
    ],
    "sampler_step_gradient": [
        (data(0), data(1), data(2), data(3), ROW, None, 1.0, data(5)),
        (data(0), None, last(data(2)), data(3), ROW[None], torch.tensor([0]), None, None),
    ],
    "decoder_nll": [
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), data(0, True), torch.zeros(2, 3, 4, 5).requires_grad_(), 17),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), last(data(0, True)), torch.zeros(2).requires_grad_(), 17),
    ],
    "decoder_nll_gradient": [
        (torch.ones(2), torch.zeros(2, 3, 4, 5, dtype=torch.uint8), data(0), torch.zeros(2, 3, 4, 5), 17),
        (torch.ones(2), torch.zeros(2, 3, 4, 5, dtype=torch.uint8), last(data(0)), torch.zeros(2), 17),
    ],
    "reparameterize": [
        (data(0, True), data(1, True), NOISE.key),
        (last(data(0, True)), data(1).bfloat16(), data(2)),
    ],
    "reparameterize_gradient": [
        (torch.ones(2), data(0), data(1), data(2), NOISE.key),
        (torch.ones(2), None, last(data(0)), data(1).bfloat16(), data(2)),
    ],
    "gaussian_log_ratio": [
        tuple(data(k, True) for k in range(5)),
        (last(data(0, True)), data(1).bfloat16(), data(2), data(3), data(4)),
    ],
    "gaussian_log_ratio_gradient": [(torch.ones(2), last(data(0)), data(1).bfloat16(), data(2), data(3), data(4))],
    "group_norm_silu": [
        (data(0, True), 3, *VECTORS, *[None] * 5, True, 1e-5),
        (last(data(0, True)), 1, *VECTORS, data(3, True, (2, 3)), data(4, True, (2, 3)), *[None] * 3, False, 0.1),
        (data(0, shape=(2, 3)).bfloat16(), 1, *VECTORS, *data(3, shape=(2, 6)).chunk(2, 1), *[None] * 3, True, 0.1),
        (last(data(0, True)), 3, *VECTORS, None, None, data(1, True, (2, 3)), last(data(2, True)), None, True, 0.1),
        (
            last(data(0, True)),
            2,
            *SIX,
            *[data(k, True, (2, 6)) for k in (5, 6)],
            data(1, True, (2, 3)),
            data(2, True),
            last(data(3, True)),
            True,
            0.1,
        ),
    ],
    "group_norm_silu_gradient": [
        (
            data(5),
            None,
            last(data(0)),
            torch.zeros(2, 3),
            torch.ones(2, 3),
            *torch.ones(2, 3),
            *[None] * 3,
            3,
            True,
            False,
        ),
        (
            data(5),
            None,
            data(0),
            torch.zeros(2, 1),
            torch.ones(2, 1),
            *torch.ones(2, 3),
            *data(3, shape=(2, 6)).chunk(2, 1),
            data(1, shape=(2, 3)),
            3,
            False,
            False,
        ),
        (
            data(5, shape=(2, 6, 4, 5)),
            data(1, shape=(2, 6, 4, 5)),
            last(data(0, shape=(2, 6, 4, 5))),
            torch.zeros(2, 2),
            torch.ones(2, 2),
            *torch.ones(2, 6),
            *data(3, shape=(2, 12)).chunk(2, 1),
            data(2, shape=(2, 3)),
            3,
            True,
            True,
        ),
    ],
}


def test_every_operation_has_a_sample():
    registered = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastdiff::")
    }
    assert registered == set(OP_SAMPLES)


@pytest.mark.parametrize("mode", ["torch", "interpreter"])
@pytest.mark.parametrize("name", OP_SAMPLES)
def test_opcheck(name, mode):
    """The launchers are opaque to a compiler, so for them only the schema and the fake implementation are checked."""
    checks = ("test_schema", "test_faketensor")
    checks += ("test_autograd_registration", "test_aot_dispatch_dynamic") if mode == "torch" else ()
    for arguments in OP_SAMPLES[name]:
        with use_backend(mode):
            torch.library.opcheck(getattr(torch.ops.fastdiff, name).default, arguments, test_utils=checks)


def every_operation(x, gamma, weight, row, other):
    """All operations in one graph."""
    z_t = diffuse(x, gamma, NOISE)
    features = fourier_features(dropout(z_t, 0.3, NOISE, 1), 3, 4)
    loss = eps_loss(features[:, :3], NOISE, weight)
    z_s, x_hat = sampler_step(z_t, features[:, 3:6], row, NOISE, 1.0, [other, x, z_t], other, features[:, 6:9])
    nll = decoder_nll(torch.zeros(x.shape, dtype=torch.uint8), z_s, gamma, levels=17)
    z, kl = reparameterize(z_s, x_hat, NOISE)
    ratio = gaussian_log_ratio(z, z_s, x_hat, x, z_t)
    z_s = group_norm_silu(z_s, 3, torch.ones(3), torch.zeros(3), x_hat[:, :, 0, 0], z[:, :, 0, 0])
    features, total = group_norm_silu(
        x, 3, torch.ones(6), torch.zeros(6), pre_shift=z[:, :, 0, 0], residual=z_s, skip=z
    )
    z_s = total[:, :3] * features[:, 3:] + group_norm_silu(z_s, 3, torch.ones(3), torch.zeros(3), activation=False)
    return loss.sum() + (z_s * x_hat).sum() + nll.sum() + (kl * ratio).sum()


ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # measured 3.3e-6: a compiler sees group norm as other sums than eager mode's


def test_compiled_equals_eager_forward_and_backward():
    results = []
    for function in (every_operation, torch.compile(every_operation, fullgraph=True, backend="aot_eager")):
        leaves = [data(0, True), torch.tensor([-1.0, 1.0]).requires_grad_(), torch.ones(2).requires_grad_()]
        total = function(*leaves, ROW, data(7))
        total.backward()
        results.append([total.detach(), *(leaf.grad for leaf in leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, **ROUNDING)


def test_inductor_compiles_every_operation():
    compiled = torch.compile(every_operation, fullgraph=True)
    arguments = (data(0), torch.tensor([-1.0, 1.0]), torch.ones(2), ROW, data(7))
    torch.testing.assert_close(compiled(*arguments), every_operation(*arguments), **ROUNDING)


class Watching(TorchDispatchMode):
    """Records the names of the operations that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_operation():
    """The direct call and the registered operation give the same numbers; a mode gets the second."""
    results = []
    for mode in (contextlib.nullcontext(), Watching()):
        x, gamma = data(0, True), torch.zeros(2, requires_grad=True)
        with mode:
            z = diffuse(x, gamma, NOISE)
            gradients = torch.autograd.grad(z.square().sum(), (x, gamma))
        if isinstance(mode, Watching):
            assert {"fastdiff::diffuse", "fastdiff::diffuse_gamma_gradient"} <= set(mode.seen)
        results.append((z, *gradients))
    for direct, registered in zip(*results, strict=True):
        assert torch.equal(direct, registered)


def test_a_second_derivative_is_rejected():
    """By way of the upstream gradient, and by way of a saved tensor only, where PyTorch would drop it silently."""
    x = data(0, True)
    (gradient,) = torch.autograd.grad(diffuse(x, torch.zeros(2), NOISE).square().sum(), x, create_graph=True)
    with pytest.raises(UnsupportedTransformError, match="once, not twice"):
        gradient.sum().backward()
    (gradient,) = torch.autograd.grad(eps_loss(x, NOISE, torch.ones(2)).sum(), x, create_graph=True)
    with pytest.raises(UnsupportedTransformError, match="once, not twice"):
        gradient.square().sum().backward()


def test_derivatives_that_would_be_zero_are_rejected():
    x, gamma, other = data(0), torch.zeros(2), data(1)
    for transform in (torch.func.grad, lambda f: lambda v: torch.func.jvp(f, (v,), (other,))):
        with pytest.raises(UnsupportedTransformError, match=r"fastdiff::diffuse.*forward-mode"):
            transform(lambda v: diffuse(v, gamma, NOISE).sum())(x)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(UnsupportedTransformError, match="fastdiff::eps_squared_error"),
    ):
        eps_loss(torch.autograd.forward_ad.make_dual(x, other), NOISE, torch.ones(2))


# Every operation that takes a Noise, as a function of data [B, C, H, W] and a noise.
DRAWING = {
    "normal": lambda x, noise: noise.normal(x.shape),
    "uniform": lambda x, noise: noise.uniform(x.shape, torch.bfloat16),
    "noise_sum": lambda x, noise: noise_sum(noise, NODES, torch.ones(8, 2), x.shape),
    "diffuse": lambda x, noise: diffuse(x, x[:, 0, 0, 0], noise),
    "dropout": lambda x, noise: dropout(x, 0.5, noise),
    "eps_loss": lambda x, noise: eps_loss(x, noise, x[:, 0, 0, 0]),
    "sampler_step": lambda x, noise: sampler_step(x, x, NOISY_ROW, noise),
    "sampler_step, a table": lambda x, noise: sampler_step(
        x, x, NOISY_ROW[None], noise, step=torch.tensor([0]), keep_x_hat=False
    )[0],
    "reparameterize": lambda x, noise: reparameterize(x, x, noise),
}
NODES = torch.arange(16).view(8, 2)
NOISY_ROW = torch.tensor([1.25, 0.75, 0.6, 0.3, 0.4, 1.0, 0.0, 0.0, 0.0, 0.0])
X = data(0, shape=(2, 3, 4, 2, 2, 3))  # two levels of vmap, and a batch of 4


def per_key(function):
    return lambda x, key: function(x, Noise.from_key(key))


def test_every_operation_with_a_noise_is_here():
    taking = {name for name, samples in OP_SAMPLES.items() if any(value is NOISE.key for value in samples[0])}
    covered = {"draw", "noise_sum", "diffuse", "dropout", "eps_squared_error", "sampler_step", "reparameterize"}
    assert taking == covered | {"diffuse_gamma_gradient", "eps_loss_gradient", "reparameterize_gradient"}


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
@pytest.mark.parametrize("name", DRAWING)
def test_vmap_with_one_noise_is_rejected(name, randomness):
    """It would be the same noise for every sample: in one level, in the inner or in the outer level of two."""
    function, keys = DRAWING[name], torch.stack([Noise(seed).key for seed in range(3)])
    vmap = partial(torch.func.vmap, randomness=randomness)
    keyed = per_key(function)
    for call in (
        lambda: vmap(lambda x: function(x, NOISE))(X[0]),
        lambda: vmap(lambda x: function(x, Noise(3)))(X[0]),
        lambda: vmap(vmap(lambda x: function(x, NOISE)))(X),
        lambda: vmap(lambda x, key: vmap(lambda x: keyed(x, key))(x))(X, keys[:2]),
        lambda: vmap(lambda x: vmap(keyed)(x, keys))(X),
    ):
        with pytest.raises(UnsupportedTransformError, match=r"under torch.func.vmap would draw the same noise"):
            call()


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("name", DRAWING)
def test_compiled_vmap_with_one_noise_is_rejected(name, fullgraph):
    """In one graph the compiler wraps our error in its own."""
    torch.compiler.reset()

    def mapped(x):
        return torch.func.vmap(lambda x: DRAWING[name](x, NOISE))(x)

    error = torch._dynamo.exc.TorchDynamoException if fullgraph else UnsupportedTransformError
    with pytest.raises(error, match="draw the same noise"):
        torch.compile(mapped, backend="aot_eager", fullgraph=fullgraph)(X[0])


@pytest.mark.parametrize("name", DRAWING)
def test_vmap_with_a_noise_per_sample_equals_a_loop(name):
    """In one level and in two, without a warning that there is no rule for vmap."""
    keyed = per_key(DRAWING[name])
    keys = torch.stack([Noise(seed, 7).key for seed in range(6)]).view(2, 3, 4)
    once = torch.func.vmap(keyed)(X[0], keys[0])
    twice = torch.func.vmap(torch.func.vmap(keyed))(X, keys)
    rows = [[keyed(X[a, b], keys[a, b]) for b in range(3)] for a in range(2)]
    single = isinstance(rows[0][0], torch.Tensor)
    for k in range(1 if single else len(rows[0][0])):
        part = (lambda value: value) if single else (lambda value, k=k: value[k])
        assert torch.equal(part(once), torch.stack([part(row) for row in rows[0]]))
        assert torch.equal(part(twice), torch.stack([torch.stack([part(row) for row in line]) for line in rows]))


def test_vmap_with_noise_as_a_tensor_equals_a_loop():
    """Values and gradients, with an argument that is the same for all samples."""
    x, gamma, eps = data(0, True, (3, 2, 4)), torch.zeros(2), data(1, shape=(2, 3, 4))
    mapped = torch.func.vmap(diffuse, in_dims=(0, None, 1))(x, gamma, eps)
    looped = torch.stack([diffuse(x[k], gamma, eps[:, k]) for k in range(3)])
    assert torch.equal(mapped, looped)
    gradients = [torch.autograd.grad(result.square().sum(), x)[0] for result in (mapped, looped)]
    assert torch.equal(*gradients)


MAPPED = {
    "diffuse": lambda x: diffuse(x, x[:, 0, 0, 0].detach(), data(7, shape=x.shape)),
    "gaussian_log_ratio": lambda x: gaussian_log_ratio(x, data(1), data(2), data(3), data(4)),
    "group_norm_silu": lambda x: group_norm_silu(x, 3, torch.ones(6), torch.zeros(6), skip=data(1))[0],
}


@pytest.mark.parametrize("name", MAPPED)
def test_vmap_over_upstream_gradients_equals_a_loop(name):
    """The gradient operations return a tensor, a tuple and a list."""
    x = data(0, True)
    y = MAPPED[name](x)
    upstream = torch.randn(3, *y.shape)
    found = torch.func.vmap(lambda u: torch.autograd.grad(y, x, u, retain_graph=True)[0])(upstream)
    expected = torch.stack([torch.autograd.grad(y, x, u, retain_graph=True)[0] for u in upstream])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
