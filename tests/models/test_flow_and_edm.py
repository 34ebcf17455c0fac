"""Flow matching and EDM as variational diffusion models: bound, density, samplers, gradients against closed forms."""

import copy
import math

import pytest
import torch
from lengths import usually
from tiny import diffusion_nats, images, plan_of, run, small
from torch import Tensor, nn

from fastdiff.diffusion import SAMPLERS, gamma_table
from fastdiff.diffusion.bound import prior_nats, stratified_times
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.diffusion.rows import ddim
from fastdiff.evaluation import evaluate, evaluate_ode, ode_log_density, standard_error
from fastdiff.kernels import Noise, Stream, to_unit_range
from fastdiff.models import VDM, VDMConfig

S2 = 0.25  # variance of the data
ENDS = (-11.0, 9.0)
KINDS = {
    "flow": {"prediction": "velocity", "schedule": "flow"},
    "edm": {"prediction": "edm", "schedule": "linear", "sigma_data": 0.8},
}


class Best(nn.Module):
    """The best network of each kind for x ~ N(0, S2), from the definition of its output.

    Velocity: E[eps - x | z]. EDM: (E[x | y] - c_skip y) / c_out with sigma_data = 0.8, for the input c_in y.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, features: Tensor, noise_level: Tensor, labels: Tensor | None = None) -> Tensor:
        gamma = (ENDS[0] + (ENDS[1] - ENDS[0]) * noise_level.double())[:, None, None, None]
        if self.kind == "flow":
            a, s = alpha(gamma), sigma(gamma)
            return (features * (s - a * S2) / (a**2 * S2 + s**2)).float()
        s, d = torch.exp(gamma / 2), 0.8
        total = s**2 + d**2
        y = features * total.sqrt()
        return ((S2 / (S2 + s**2) - d**2 / total) * y * total.sqrt() / (s * d)).float()


def best(kind: str) -> VDM:
    config = VDMConfig(
        shape=(1, 4, 4), levels=17, gamma_0=ENDS[0], gamma_1=ENDS[1], learn_endpoints=False, fourier=None, **KINDS[kind]
    )
    return VDM(config, network=Best(kind)).eval()


def as_levels(x: Tensor) -> Tensor:
    """Continuous data on the scale of the levels, unrounded: a model maps them back to x."""
    return 0.5 * ((x + 1.0) * 17.0 - 1.0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_bound_is_the_entropy(kind):
    """recon + prior + diffusion against ½ log(2 pi e S2) per dimension; the finite endpoints cost 5.4e-4."""
    count = 20_000
    model, x = best(kind), S2**0.5 * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    u = (torch.randperm(count, generator=torch.Generator().manual_seed(1)).double() + 0.5) / count
    diffusion = diffusion_nats(model, as_levels(x), Noise(1), u).double()
    eps = Noise(1, stream=Stream.RECON).normal(x.shape).double()
    recon = (0.5 * eps.square() + 0.5 * math.log(2 * math.pi) + 0.5 * ENDS[0]).flatten(1).sum(1)
    total = diffusion + recon + prior_nats(x.double(), torch.tensor(ENDS[1]).double())
    entropy = 8 * math.log(2 * math.pi * math.e * S2)
    assert abs(float(total.mean()) - entropy) < 4 * standard_error(total) + 6e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_the_flow_is_the_true_one(kind):
    """Measured: 6.1e-5 of log p(z_0) at 64 steps evenly spaced in gamma, as for the other predictions."""
    model, ends = best(kind), torch.tensor(ENDS[0])
    scale = math.sqrt(float(alpha(ends) ** 2 * S2 + sigma(ends) ** 2))
    z_0 = scale * torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(0.0, scale).log_prob(z_0.double()).flatten(1).sum(1)
    torch.testing.assert_close(ode_log_density(model, z_0, Noise(0)), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_both_bounds_of_discrete_data_run(kind):
    """A small network: finite, and the same with and without Fourier features' channels in the input."""
    for fourier in (None, (3, 4)):
        model = small(**KINDS[kind], fourier=fourier)
        for bits in (evaluate_ode(model, images(2), steps=2, draws=1), evaluate(model, images(2), draws=1).bpd.total):
            assert bits.isfinite().all()


@pytest.mark.parametrize("sampler", usually(set(SAMPLERS) - {"dpm-solver-sde-2s"}, list(SAMPLERS)))  # 5 s each
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_samplers_end_at_the_data(kind, sampler):
    """The variance of z_0 / alpha_0 is that of the data, S2 + e^gamma_0, at 200 steps evenly spaced in t.

    Measured: 5.7 % less with ancestral sampling, 2.1 % with DDIM, 0.5 % with the others; 0.8 % is one standard error.
    """
    model = best(kind)
    z_0 = run(model, 2000, plan_of(model, 200, sampler), Noise(4)) / alpha(torch.tensor(ENDS[0]))
    assert float(z_0.var()) == pytest.approx(S2 + math.exp(ENDS[0]), rel=0.08)
    assert abs(float(z_0.mean())) < 4 * (S2 / z_0.numel()) ** 0.5


# ------------------------------------------------------------------------------------------------ Euler and DDIM


def bimodal(z: Tensor, gamma: Tensor) -> Tensor:
    """E[x | z] where x is -1 or 1."""
    return torch.tanh(alpha(gamma) / sigma(gamma) ** 2 * z)


@pytest.mark.parametrize("schedule", ["flow", "linear"])
def test_a_ddim_step_is_an_euler_step_of_the_flow(schedule):
    """On z / (alpha + sigma) = (1 - tau) x + tau eps, Euler in tau along u = (z - x_hat) / tau.

    Measured: 1.1e-15 in float64 after any of 15 steps.
    """
    model = small(gamma_0=-13.3, learn_endpoints=False, schedule=schedule)
    gamma = gamma_table(model.gamma, 15)
    z = torch.randn(500, dtype=torch.float64)
    path = z / (alpha(gamma[-1]) + sigma(gamma[-1]))
    descending, rows = gamma.flip(0), ddim(gamma)
    for k in range(15):
        t, s = descending[k], descending[k + 1]
        z = rows.table[k, 2] * z + rows.table[k, 3] * bimodal(z, t)
        tau_t, tau_s = (sigma(g) / (alpha(g) + sigma(g)) for g in (t, s))
        x_hat = bimodal(path * (alpha(t) + sigma(t)), t)
        path = path + (tau_s - tau_t) * (path - x_hat) / tau_t
        torch.testing.assert_close(z / (alpha(s) + sigma(s)), path, rtol=0, atol=1e-14)


@torch.no_grad()
def test_ddim_of_a_flow_model_is_eulers_method():
    """The sampling loop in float32 against Euler's method in float64 with the network's velocity. Measured: 9.4e-7."""
    model = small("velocity", schedule="flow", learn_endpoints=False, fourier=None)
    z = Noise(3, stream=Stream.INITIAL).normal((4, *model.shape))
    ours = run(model, 4, plan_of(model, 12, "ddim"), Noise(3))
    gamma = gamma_table(model.gamma, 12).flip(0)
    tau = sigma(gamma) / (alpha(gamma) + sigma(gamma))
    scale = alpha(gamma) + sigma(gamma)
    path = z.double() / scale[0]
    for k in range(12):
        noise_level = ((gamma[k] + 8.0) / 13.0).float().expand(4)
        path = path + (tau[k + 1] - tau[k]) * model.network((path * scale[k]).float(), noise_level, None).double()
    torch.testing.assert_close(ours.double() / scale[-1], path, rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------------------ gradients


class Plain(nn.Module):
    """Two convolutions and the noise level, in any dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, noise_level: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.last(torch.tanh(self.first(x) + noise_level[:, None, None, None]))


def flow_matching(network: nn.Module, x: Tensor, eps: Tensor, u: Tensor, noise_level) -> Tensor:
    """(tau_1 - tau_0) |eps - x - u_hat|² at uniform tau; the network sees the variance-preserving latent."""
    low, high = (1.0 / (1.0 + math.exp(-end / 2)) for end in (-8.0, 5.0))
    tau = (low + (high - low) * u)[:, None, None, None]
    z = ((1.0 - tau) * x + tau * eps) / ((1.0 - tau) ** 2 + tau**2).sqrt()
    gamma = 2.0 * torch.log(tau / (1.0 - tau)).flatten()
    return (high - low) * (eps - x - network(z, noise_level(gamma))).square().sum()


def edm(network: nn.Module, x: Tensor, eps: Tensor, u: Tensor, noise_level) -> Tensor:
    """(s² + 0.25) / (0.25 s²) |x - D(x + s eps)|² at uniform ln s, times the density of ln s and the range."""
    gamma, d = -8.0 + 13.0 * u, 0.8
    s = torch.exp(gamma / 2)[:, None, None, None]
    y, total = x + s * eps, s**2 + d**2
    x_hat = d**2 / total * y + s * d / total.sqrt() * network(y / total.sqrt(), noise_level(gamma))
    density = torch.exp(-0.5 * ((s.log() + 1.2) / 1.2) ** 2) / (1.2 * math.sqrt(2.0 * math.pi))
    return (6.5 * density * (s**2 + 0.25) / (0.25 * s**2) * (x - x_hat).square()).sum()


@pytest.mark.parametrize(("loss", "reference"), [("flow", flow_matching), ("edm", edm)])
def test_gradients_are_those_of_the_papers_loss_in_float64(loss, reference):
    """Of a whole model in float32 against autograd of the plain loss in float64, to rounding. Measured: 1.1e-6 of the
    largest entry of each parameter's gradient, 7.8e-8 of the loss.
    """
    torch.manual_seed(0)
    config = VDMConfig(shape=(1, 8, 8), levels=17, gamma_0=-8.0, learn_endpoints=False, fourier=None, **KINDS[loss])
    model, x, noise = VDM(config, network=Plain()), images(16), Noise(5, step=2)
    objective = model(x, noise, loss=loss)
    objective.loss.sum().backward()
    plain = copy.deepcopy(model.network).double()
    plain.zero_grad()
    eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape).double()
    u = stratified_times(noise, 16)
    value = reference(plain, to_unit_range(x, 17).double(), eps, u, lambda gamma: (gamma + 8.0) / 13.0)
    value.backward()
    ours = (objective.loss - objective.vlb.recon - objective.vlb.prior).sum()
    torch.testing.assert_close(ours.double(), value, rtol=3e-7, atol=0)
    for one, other in zip(model.network.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=0, atol=3e-6 * float(other.grad.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_learned_endpoints_follow_the_bound(kind):
    """Under the papers' losses as well, in continuous time and at finite T. Measured: 9.4e-7 of the gradient."""
    model, x, noise = small(**KINDS[kind]), images(7), Noise(3)
    ends = [model.gamma.gamma_0, model.gamma.gamma_1]
    for T in (None, 9):
        ours = torch.autograd.grad(model(x, noise, loss=kind, T=T).loss.sum(), ends)
        for one, other in zip(ours, torch.autograd.grad(model.vlb(x, noise, T).total.sum(), ends), strict=True):
            torch.testing.assert_close(one, other, rtol=3e-6, atol=0)


def test_where_the_weight_of_a_loss_underflows_gradients_are_finite():
    """EDM's weight at gamma = 60 is e^-277."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = nn.Parameter(torch.tensor(120.0))

        def forward(self, t: Tensor) -> Tensor:
            return self.width.to(t.dtype) * (t - 0.5)

    config = VDMConfig(shape=(1, 8, 8), levels=17, fourier=None)
    model = VDM(config, network=Plain(), schedule=Wide())
    model(images(8), Noise(0), loss="edm").loss.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
