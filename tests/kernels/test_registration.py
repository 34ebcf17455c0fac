"""The operations as citizens of PyTorch: opcheck, torch.compile, and errors for wrong arguments."""

import contextlib

import pytest
import torch
from fastdiff_kernels import (
    Noise,
    backend,
    decoder_nll,
    diffuse,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    group_norm_silu,
    launch,
    reparameterize,
    sampler_step,
    use_backend,
)
from torch.utils._python_dispatch import TorchDispatchMode

NOISE = Noise(1, 2, 3, 4)
ROW = torch.tensor([1.25, 0.75, 0.6, 0.3, -0.2, 0.4, 0.9])


def data(seed: int, grad: bool = False, shape: tuple[int, ...] = (2, 3, 4, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def last(x: torch.Tensor) -> torch.Tensor:
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(x.requires_grad)


VECTORS = data(1, True, (3,)), data(2, True, (3,))
OP_SAMPLES = {
    "draw": [(NOISE.key, [2, 7], torch.bfloat16, True), (NOISE.key, [2, 7], torch.float32, False)],
    "diffuse": [
        (data(0, True), torch.zeros(2).requires_grad_(), NOISE.key),
        (last(data(0, True)), torch.zeros(2), data(1)),
    ],
    "diffuse_gamma_gradient": [(data(0), data(1), torch.zeros(2), NOISE.key)],
    "eps_squared_error": [(data(0, True), NOISE.key), (last(data(0, True)), data(1))],
    "eps_loss_gradient": [(torch.ones(2), data(0), NOISE.key), (torch.ones(2), last(data(0)), data(1))],
    "fourier_features": [(data(0, True), 3, 4, torch.float32), (last(data(0, True)), 3, 4, torch.bfloat16)],
    "fourier_gradient": [(data(0, shape=(2, 15, 4, 5)), data(1), 3, 4)],
    "sampler_step": [
        (data(0, True), data(1, True), ROW, None, NOISE.key, 1.0, data(2, True), data(3), data(4, True), 1.5, True),
        (last(data(0)), data(1), ROW, None, None, None, None, data(3, True), None, 1.0, False),
        (data(0), data(1), torch.stack([ROW, ROW]), torch.tensor([1]), NOISE.key, None, None, None, None, 1.0, False),
    ],
    "sampler_step_gradient": [(data(0), data(1), data(2), data(3), ROW, None, 1.0, data(4), data(5), 1.5)],
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
        (data(0, True), 3, *VECTORS, None, None, 1e-5),
        (last(data(0, True)), 1, *VECTORS, data(3, True, (2, 3)), data(4, True, (2, 3)), 0.1),
        (data(0, shape=(2, 3)).bfloat16(), 1, *VECTORS, *data(3, shape=(2, 6)).chunk(2, 1), 0.1),
    ],
    "group_norm_silu_gradient": [
        (data(5), last(data(0)), torch.zeros(2, 3), torch.ones(2, 3), *torch.ones(2, 3), None, None),
        (data(5), data(0), torch.zeros(2, 1), torch.ones(2, 1), *torch.ones(2, 3), *data(3, shape=(2, 6)).chunk(2, 1)),
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
    for arguments in OP_SAMPLES[name]:
        with use_backend(mode):
            torch.library.opcheck(getattr(torch.ops.fastdiff, name).default, arguments)


def whole_card(x, gamma, weight, row, z_prev):
    """All operations in one graph."""
    z_t = diffuse(x, gamma, NOISE)
    features = fourier_features(z_t, 3, 4)
    loss = eps_loss(features[:, :3], NOISE, weight)
    z_s, x_hat = sampler_step(z_t, features[:, 3:6], row, NOISE, clip=1.0, x_prev=z_prev)
    nll = decoder_nll(torch.zeros(x.shape, dtype=torch.uint8), z_s, gamma, levels=17)
    z, kl = reparameterize(z_s, x_hat, NOISE)
    ratio = gaussian_log_ratio(z, z_s, x_hat, x, z_t)
    z_s = group_norm_silu(z_s, 3, torch.ones(3), torch.zeros(3), x_hat[:, :, 0, 0], z[:, :, 0, 0])
    return loss.sum() + (z_s * x_hat).sum() + nll.sum() + (kl * ratio).sum()


def test_compiled_whole_equals_eager_forward_and_backward():
    results = []
    for function in (whole_card, torch.compile(whole_card, fullgraph=True, backend="aot_eager")):
        leaves = [data(0, True), torch.tensor([-1.0, 1.0]).requires_grad_(), torch.ones(2).requires_grad_()]
        total = function(*leaves, ROW, data(7))
        total.backward()
        results.append([total.detach(), *(leaf.grad for leaf in leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


def test_inductor_compiles_the_whole():
    compiled = torch.compile(whole_card, fullgraph=True)
    arguments = (data(0), torch.tensor([-1.0, 1.0]), torch.ones(2), ROW, data(7))
    torch.testing.assert_close(compiled(*arguments), whole_card(*arguments), rtol=1e-6, atol=1e-6)


X, GAMMA = torch.zeros(2, 3, 4, 5), torch.zeros(2)
WRONG = {
    "diffuse: x has dtype torch.float64": lambda: diffuse(X.double(), GAMMA, NOISE),
    "diffuse: x is a list": lambda: diffuse([1.0], GAMMA, NOISE),
    r"diffuse: x has shape \(\); allowed: at least 1": lambda: diffuse(torch.tensor(1.0), GAMMA, NOISE),
    r"diffuse: gamma has shape \(3,\); allowed: \(2,\)": lambda: diffuse(X, torch.zeros(3), NOISE),
    "diffuse: gamma is dtype torch.float64": lambda: diffuse(X, GAMMA.double(), NOISE),
    "diffuse: gamma is a float": lambda: diffuse(X, 0.5, NOISE),
    r"diffuse: noise has shape \(2, 3, 4, 4\)": lambda: diffuse(X, GAMMA, X[..., :4]),
    "diffuse: noise is a int; allowed: a Noise": lambda: diffuse(X, GAMMA, 3),
    "diffuse: noise requires a gradient": lambda: diffuse(X, GAMMA, X.clone().requires_grad_()),
    "diffuse: gamma is on meta; allowed: the device of x": lambda: diffuse(X, GAMMA.to("meta"), NOISE),
    "eps_loss: eps_hat has dtype torch.int64": lambda: eps_loss(X.long(), NOISE, GAMMA),
    r"eps_loss: weight has shape \(2, 1\)": lambda: eps_loss(X, NOISE, GAMMA[:, None]),
    r"fourier_features: z has shape \(2,\)": lambda: fourier_features(GAMMA),
    "n_min = 5, n_max = 4; allowed: 0 <= n_min <= n_max": lambda: fourier_features(X, 5, 4),
    r"row has shape \(6,\); allowed: \(7,\)": lambda: sampler_step(X, X, ROW[:6]),
    r"sampler_step: eps_hat has shape \(2, 3\)": lambda: sampler_step(X, X[:, :, 0, 0], ROW),
    "sampler_step: offset is a int": lambda: sampler_step(X, X, ROW, offset=1),
    "both eps_hat_uncond and guidance": lambda: sampler_step(X, X, ROW, guidance=2.0),
    "clip is 0.0; allowed: a number > 0": lambda: sampler_step(X, X, ROW, clip=0.0),
    "decoder_nll: x is dtype torch.float32": lambda: decoder_nll(X, X, GAMMA),
    r"decoder_nll: x is \(2, 3, 4, 4\)": lambda: decoder_nll(X[..., :4].byte(), X, GAMMA),
    "levels is 17.5; allowed: an integer": lambda: decoder_nll(X.byte(), X, GAMMA, 17.5),
    "n_min is 3.5; allowed: an integer": lambda: fourier_features(X, 3.5),
    "Noise: step is True; allowed: an integer": lambda: Noise(1, True),
    "Noise.at: step is 1.0; allowed: an integer": lambda: NOISE.at(step=1.0),
    "from_key: key is a list; allowed: a tensor": lambda: Noise.from_key([1, 2, 3, 4]),
    "levels is 1; allowed: 2 to 256": lambda: decoder_nll(X.byte(), X, GAMMA, 1),
    r"decoder_nll: logvar has shape \(2, 3, 4, 4\)": lambda: decoder_nll(X.byte(), X, X[..., :4]),
    r"decoder_nll: logvar has shape \(3,\); allowed: \(2,\)": lambda: decoder_nll(X.byte(), X, torch.zeros(3)),
    "reparameterize: mean has dtype torch.float64": lambda: reparameterize(X.double(), X, NOISE),
    r"reparameterize: logvar has shape \(2,\); allowed: the shape of mean": lambda: reparameterize(X, GAMMA, NOISE),
    "reparameterize: noise requires a gradient": lambda: reparameterize(X, X, X.clone().requires_grad_()),
    "gaussian_log_ratio: z is a float": lambda: gaussian_log_ratio(0.0, X, X, X, X),
    r"gaussian_log_ratio: mean_p has shape \(2, 3, 4, 4\)": lambda: gaussian_log_ratio(X, X, X, X[..., :4], X),
    "gaussian_log_ratio: logvar_p is on meta": lambda: gaussian_log_ratio(X, X, X, X, X.to("meta")),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    with pytest.raises((TypeError, ValueError), match=message):
        WRONG[message]()


def test_backend_is_chosen_and_named(monkeypatch):
    assert backend() == "torch"
    with use_backend("interpreter"):
        assert backend() == "interpreter"
    monkeypatch.setenv("FASTDIFF_BACKEND", "auto")
    launch._chosen.cache_clear()
    assert backend() == "interpreter"
    monkeypatch.setenv("FASTDIFF_BACKEND", "cuda")
    launch._chosen.cache_clear()
    with pytest.raises(RuntimeError, match="unknown backend 'cuda'; allowed: auto, triton, interpreter, torch"):
        backend()
    with pytest.raises(RuntimeError, match="backend 'triton' needs a GPU"), use_backend("triton"):
        pass
    monkeypatch.undo()
    launch._chosen.cache_clear()


class Watching(TorchDispatchMode):
    """Notes the names of the operations that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_operation_and_eager_goes_straight():
    """The direct way and the registered one are the same numbers; only a mode asks for the second."""
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


def test_a_second_derivative_is_refused():
    """By way of the upstream gradient, and by way of what was saved only, where it would be dropped without a word."""
    x = data(0, True)
    (gradient,) = torch.autograd.grad(diffuse(x, torch.zeros(2), NOISE).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        gradient.sum().backward()
    (gradient,) = torch.autograd.grad(eps_loss(x, NOISE, torch.ones(2)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        gradient.square().sum().backward()


def test_derivatives_that_would_be_zero_are_refused():
    x, gamma, other = data(0), torch.zeros(2), data(1)
    for transform in (torch.func.grad, lambda f: lambda v: torch.func.jvp(f, (v,), (other,))):
        with pytest.raises(NotImplementedError, match="fastdiff::diffuse under forward-mode"):
            transform(lambda v: diffuse(v, gamma, NOISE).sum())(x)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="fastdiff::eps_squared_error"),
    ):
        eps_loss(torch.autograd.forward_ad.make_dual(x, other), NOISE, torch.ones(2))
