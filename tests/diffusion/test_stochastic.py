"""Stochastic samplers against float64 loops in the variance-exploding coordinates of k-diffusion, against diffusers'
schedulers given the same noise, and on Gaussian data against the exact recursion of the variance.

k-diffusion's y is z / alpha and its sigma is e^{gamma / 2} (called rho here).
"""

import sys
import types
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import plan_at, run

from fastdiff.diffusion import (
    BetaSchedule,
    DPMSolverSDE,
    DPMSolverSDE2S,
    EulerAncestral,
    LinearSchedule,
    Plan,
    linear_betas,
)
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.diffusion.rows import ancestral, ddim, dpm_solver
from fastdiff.diffusion.stochastic import dpm_solver_sde, dpm_solver_sde_2s, euler_ancestral
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import Noise, Stream, sampler_step
from fastdiff.models import DiffusionModel, ImageConfig

A, B, S, W, C_1, C_2, C_3, D = range(2, 10)  # columns of a row
S2 = 0.25  # variance of the Gaussian data
SHAPE = (3, 1, 4, 4)
GAMMA = torch.cat([torch.linspace(-9, -3, 5), torch.linspace(-2.2, 5, 4)]).double()  # uneven
Tensor = torch.Tensor
Denoise = Callable[[Tensor, Tensor], Tensor]


def two_points(z: Tensor, gamma: Tensor) -> Tensor:
    """E[x | z] where every pixel is -1 or 1."""
    return torch.tanh(alpha(gamma) / sigma(gamma) ** 2 * z)


class TwoPoints(DiffusionModel):
    def __init__(self) -> None:
        super().__init__(ImageConfig(shape=SHAPE[1:], levels=256))
        self.gamma = LinearSchedule(-9.0, 5.0)

    def predict(self, z_t, gamma, labels=None, cond=None):
        g, z = gamma[:, None, None, None].double(), z_t.double()
        return ((z - alpha(g) * two_points(z, g)) / sigma(g)).float(), None


def eps_of(plan: Plan, seed: int, row: int) -> Tensor:
    """The noise of a row, float64, as the loop draws it."""
    noise = Noise(seed, step=row, stream=Stream.SAMPLER)
    return (noise.normal(SHAPE) if plan.brownian is None else plan.brownian.draw(noise, SHAPE)).double()


def z_1(seed: int) -> Tensor:
    return Noise(seed, stream=Stream.INITIAL).normal(SHAPE)


def denoised(y: Tensor, rho: Tensor) -> Tensor:
    """x_hat in the coordinates of k-diffusion."""
    gamma = 2.0 * rho.log()
    return two_points(alpha(gamma) * y, gamma)


# ------------------------------------------------------------------------------------------------ float64 loops


def euler_a(y: Tensor, rho: Tensor, eps: list[Tensor], eta: float) -> Tensor:
    """dy / d rho = (y - x_hat) / rho by Euler to the lower deviation, and noise for the rest."""
    for k in range(len(rho) - 1):
        up = min(rho[k + 1], eta * rho[k + 1] * (1 - (rho[k + 1] / rho[k]) ** 2).sqrt())
        down = (rho[k + 1] ** 2 - up**2).clamp(min=0).sqrt()
        slope = (y - denoised(y, rho[k])) / rho[k]
        y = y + (down - rho[k]) * slope + up * eps[k]
    return y


def two_step(y: Tensor, rho: Tensor, eps: list[Tensor], eta: float) -> Tensor:
    """SDE-DPM-Solver++(2M) by variation of constants in lambda = -ln rho: weights e^{...} of x_hat and its slope."""
    before = None
    for k in range(len(rho) - 1):
        h = (rho[k] / rho[k + 1]).log()
        x_hat = denoised(y, rho[k])
        estimate = x_hat
        if before is not None:
            slope = (x_hat - before[0]) / (rho[k - 1] / rho[k]).log()
            estimate = x_hat + 0.5 * h * slope  # linear extrapolation to the middle of the step
        kept = rho[k + 1] / rho[k] * torch.exp(-eta * h)
        y = kept * y + (1 - torch.exp(-(1 + eta) * h)) * estimate
        y = y + rho[k + 1] * (1 - torch.exp(-2 * eta * h)).sqrt() * eps[k]
        before = (x_hat,)
    return y


def two_calls(y: Tensor, rho: Tensor, eps: list[Tensor]) -> Tensor:
    """dpmpp_sde with r = 1/2: an ancestral step to the geometric middle, then the whole step with x_hat from there."""

    def ancestral_step(start: Tensor, x_hat: Tensor, high: Tensor, low: Tensor, noise: Tensor) -> Tensor:
        up = low * (1 - (low / high) ** 2).sqrt()
        down = (low**2 - up**2).sqrt()
        return down / high * start + (1 - down / high) * x_hat + up * noise

    for k in range(len(rho) - 1):
        middle = (rho[k] * rho[k + 1]).sqrt()
        half = ancestral_step(y, denoised(y, rho[k]), rho[k], middle, eps[2 * k])
        y = ancestral_step(y, denoised(half, middle), rho[k], rho[k + 1], eps[2 * k + 1])
    return y


LOOPS = {
    "euler-a": (EulerAncestral(), lambda *rest: euler_a(*rest, 1.0)),
    "euler-a, eta 0.4": (EulerAncestral(eta=0.4), lambda *rest: euler_a(*rest, 0.4)),
    "euler-a, eta 1.15": (EulerAncestral(eta=1.15), lambda *rest: euler_a(*rest, 1.15)),
    "2m": (DPMSolverSDE(), lambda *rest: two_step(*rest, 1.0)),
    "2m, eta 0.4": (DPMSolverSDE(eta=0.4), lambda *rest: two_step(*rest, 0.4)),
    "2s": (DPMSolverSDE2S(), two_calls),
}


@pytest.mark.parametrize("brownian", [False, True])
@pytest.mark.parametrize("name", LOOPS)
def test_samplers_against_loops_in_float64(name, brownian):
    """Measured: 3.8e-7."""
    sampler, loop = LOOPS[name]
    if brownian:
        sampler = type(sampler)(brownian=True, **({"eta": sampler.eta} if hasattr(sampler, "eta") else {}))
    plan = plan_at(GAMMA, sampler)
    rho = torch.exp(0.5 * GAMMA.flip(0))
    eps = [eps_of(plan, 4, row) for row in range(len(plan.gamma))]
    expected = alpha(GAMMA[0]) * loop(z_1(4).double() / alpha(GAMMA[-1]), rho, eps)
    torch.testing.assert_close(run(TwoPoints(), 3, plan, Noise(4)).double(), expected, rtol=0, atol=1e-6)


@settings(max_examples=50)
@given(
    start=st.floats(-20.0, 10.0), gaps=st.lists(st.floats(1e-7, 6.0), min_size=1, max_size=5), eta=st.floats(0.0, 1.0)
)
def test_identities_of_rows(start, gaps, eta):
    """Euler ancestral is DDIM, with eta = 1 ancestral sampling; SDE-DPM-Solver++ lies between the ODE's and that."""
    gamma = torch.tensor([start, *gaps], dtype=torch.float64).cumsum(0)
    torch.testing.assert_close(euler_ancestral(gamma, eta).table, ddim(gamma, eta).table, rtol=1e-14, atol=0)
    torch.testing.assert_close(euler_ancestral(gamma).table, ancestral(gamma).table, rtol=1e-14, atol=0)
    torch.testing.assert_close(dpm_solver_sde(gamma, 0.0).table, dpm_solver(gamma).table, rtol=1e-14, atol=0)
    one, two = dpm_solver_sde(gamma).table, ancestral(gamma).table
    torch.testing.assert_close(one[0], two[0], rtol=1e-14, atol=0)  # the first step
    torch.testing.assert_close(one[:, [A, S]], two[:, [A, S]], rtol=1e-14, atol=0)
    torch.testing.assert_close(one[:, B], two[:, B] - one[:, C_1], rtol=1e-14, atol=0)


def test_which_rows_have_noise():
    assert ddim(GAMMA).noise_span is None
    assert euler_ancestral(GAMMA, 0.0).noise_span is None
    assert dpm_solver_sde(GAMMA, 0.0).noise_span is None
    down = GAMMA.flip(0)
    for plan in (ancestral(GAMMA), ddim(GAMMA, 0.5), dpm_solver_sde(GAMMA), euler_ancestral(GAMMA)):
        assert plan.noise_span is not None
        assert torch.equal(plan.noise_span, torch.stack([down[1:], down[:-1]], dim=1))
    plan = dpm_solver_sde_2s(GAMMA)
    assert plan.noise_span is not None
    assert plan.calls_per_step == 2
    assert torch.equal(plan.noise_span[1::2], torch.stack([down[1:], down[:-1]], dim=1))
    assert torch.equal(plan.noise_span[::2], torch.stack([plan.gamma[1::2], down[:-1]], dim=1))


def test_wrong_options():
    with pytest.raises(ConfigError, match="brownian must be one of True"):
        DPMSolverSDE2S(brownian=False)
    with pytest.raises(ConfigError, match="eta must lie in"):
        DPMSolverSDE(eta=1.1)
    with pytest.raises(ConfigError, match="eta must lie in"):
        EulerAncestral(eta=-0.1)


# ------------------------------------------------------------------------------------------------ Gaussian data


def total(gamma: Tensor) -> Tensor:
    """Variance of z_t for x ~ N(0, S2)."""
    return alpha(gamma) ** 2 * S2 + sigma(gamma) ** 2


class Gaussian(DiffusionModel):
    """The best denoiser of N(0, S2)."""

    def __init__(self) -> None:
        super().__init__(ImageConfig(shape=(1, 16, 16), levels=256))

    def predict(self, z_t, gamma, labels=None, cond=None):
        g = gamma[:, None, None, None].double()
        return (sigma(g) / total(g)).float() * z_t, None


def variance_of(plan: Plan, start: Tensor) -> Tensor:
    """The variance of the result, from the covariance of (z, x_hat_1, z_prev, and the noise of the previous row).

    The noise of the rows is that of a Brownian path where their spans overlap: cov = V(overlap) / sqrt(V V').
    """
    cov = torch.zeros(4, 4, dtype=torch.float64)
    cov[0, 0] = start
    correlation = torch.zeros(len(plan.gamma), dtype=torch.float64)  # of a row's noise with that of the row before
    if plan.calls_per_step == 2:
        assert plan.noise_span is not None
        low, high = plan.noise_span.unbind(1)
        length = torch.exp(-low) - torch.exp(-high)
        correlation[1::2] = (length[::2] / length[1::2]).sqrt()  # the first half of the step, and the whole of it
    for k, (gamma, row) in enumerate(zip(plan.gamma, plan.table, strict=True)):
        gain = alpha(gamma) * S2 / total(gamma)
        step = torch.zeros(4, 4, dtype=torch.float64)
        step[0] = torch.stack([row[A] + row[B] * gain, row[C_1], row[D], row[S] * correlation[k]])
        step[1, 0], step[2, 0] = gain, 1.0  # x_hat and z of this row are those before the next
        step[3, 3] = correlation[k]  # eps = correlation eps_before + the rest
        rest = (1 - correlation[k] ** 2).sqrt()
        fresh = torch.stack([row[S] * rest, torch.zeros(()), torch.zeros(()), rest]).double()
        cov = step @ cov @ step.T + torch.outer(fresh, fresh)
    return cov[0, 0]


CHOICES = {
    "2m": DPMSolverSDE(), "2m, eta 0.5": DPMSolverSDE(eta=0.5), "2s": DPMSolverSDE2S(), "euler-a": EulerAncestral(),
    "2m, one path": DPMSolverSDE(brownian=True), "euler-a, eta 0.6": EulerAncestral(eta=0.6, brownian=True),
}  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
def test_sample_mean_and_variance_on_gaussian_data(choice):
    """16,384 elements: standard errors of 0.8 % of the deviation in the mean and of 1.1 % in the variance."""
    for steps in (8, 32):
        plan = plan_at(torch.linspace(-13.3, 5, steps + 1, dtype=torch.float64), CHOICES[choice])
        start = total(plan.gamma[0])
        z = run(Gaussian(), 64, plan, Noise(steps), temperature=float(start.sqrt())).double()
        expected = variance_of(plan, start)
        assert abs(float(z.square().mean() / expected) - 1) < 4 * (2 / z.numel()) ** 0.5
        assert abs(float(z.mean() / expected.sqrt())) < 4 / z.numel() ** 0.5


@pytest.mark.parametrize(("name", "order"), [("2m", 2), ("2s", 2), ("euler-a", 1)])
def test_order_of_the_variance(name, order):
    """The variance tends to that of z_0 as steps^-order."""
    missing = []
    for steps in (64, 128, 256):
        plan = plan_at(torch.linspace(-6, 6, steps + 1, dtype=torch.float64), CHOICES[name])
        missing.append(abs(float(variance_of(plan, total(plan.gamma[0])) - total(torch.tensor(-6.0).double()))))
    assert 2**order * 0.85 < missing[0] / missing[1] < 2**order * 1.3
    assert 2**order * 0.85 < missing[1] / missing[2] < 2**order * 1.3


# ------------------------------------------------------------------------------------------------ diffusers

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
STEPS = 12


@pytest.fixture
def schedulers(monkeypatch):
    """diffusers, with an empty module in the place of torchsde, whose tree is not used: the noise is ours."""
    pytest.importorskip("diffusers")
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    import diffusers
    from diffusers.schedulers import scheduling_dpmsolver_sde

    return diffusers, scheduling_dpmsolver_sde


def our_gamma(timesteps) -> Tensor:
    """float64, increasing; diffusers' timestep t is our t / 999."""
    t = torch.as_tensor(timesteps).double().sort().values
    return BetaSchedule(linear_betas())(t / 999.0)


def compare(plan: Plan, rows: int, its_step, scaled: bool) -> float:
    """Run both for data of two points; ``its_step(k, eps_hat, y, eps)`` is a step of diffusers' in its coordinates.

    Returns the largest difference of z after a row.
    """
    ours = z_1(2)
    its = ours.double() / (alpha(plan.gamma[0]) if scaled else 1.0)
    z_prev, x_hat, worst = torch.zeros(SHAPE), torch.zeros(SHAPE), 0.0
    for k in range(rows):
        gamma, eps = plan.gamma[k], eps_of(plan, 2, k).float()
        eps_hat = lambda z, g=gamma: (z - alpha(g) * two_points(z, g)) / sigma(g)  # noqa: E731
        its = its_step(k, eps_hat(its * alpha(gamma) if scaled else its), its, eps.double())
        z, x_new = sampler_step(
            ours, eps_hat(ours.double()).float(), plan.table[k].float(), eps, history=[x_hat], z_prev=z_prev
        )
        z_prev, ours, x_hat = ours, z, x_new
        if k + 1 < len(plan.gamma):
            worst = max(worst, float((ours - its * (alpha(plan.gamma[k + 1]) if scaled else 1.0)).abs().max()))
    return worst


def rhos(scheduler, timesteps) -> Tensor:
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[torch.as_tensor(timesteps)]
    return ((1 - kept) / kept).sqrt()


@NUMPY
@pytest.mark.parametrize("brownian", [False, True])
def test_dpm_solver_sde_is_that_of_diffusers(schedulers, brownian):
    """Its steps round the sample to float32. Measured: 1.8e-6."""
    scheduler = schedulers[0].DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="sde-dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=False,
        final_sigmas_type="sigma_min", timestep_spacing="linspace",
    )  # fmt: skip
    scheduler.set_timesteps(STEPS)
    times = [*scheduler.timesteps.tolist(), 0]
    scheduler.sigmas = rhos(scheduler, times)
    plan = plan_at(our_gamma(times), DPMSolverSDE(brownian=brownian))

    def step(k: int, eps_hat: Tensor, z: Tensor, eps: Tensor) -> Tensor:
        return scheduler.step(eps_hat, scheduler.timesteps[k], z, variance_noise=eps).prev_sample

    assert compare(plan, STEPS, step, scaled=False) < 3e-6


@NUMPY
def test_euler_ancestral_is_that_of_diffusers(schedulers, monkeypatch):
    """Measured: 4.9e-7."""
    from diffusers.schedulers import scheduling_euler_ancestral_discrete as module

    scheduler = schedulers[0].EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="linspace")
    scheduler.set_timesteps(STEPS)
    times = scheduler.timesteps.round().long()
    scheduler.sigmas = torch.cat([rhos(scheduler, times), torch.zeros(1, dtype=torch.float64)])
    plan = plan_at(our_gamma(times), EulerAncestral(brownian=True), to_x=True)

    def step(k: int, eps_hat: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: eps)
        scheduler.scale_model_input(y, scheduler.timesteps[k])
        return scheduler.step(eps_hat, scheduler.timesteps[k], y).prev_sample

    assert compare(plan, STEPS, step, scaled=True) < 2e-6


@NUMPY
def test_dpm_solver_sde_2s_is_that_of_diffusers(schedulers):
    """DPMSolverSDEScheduler, called twice a step. Measured: 8.3e-7."""
    scheduler = schedulers[1].DPMSolverSDEScheduler(**BETAS, timestep_spacing="linspace")
    scheduler.set_timesteps(STEPS)
    times = scheduler.timesteps[::2].round().long()
    rho = rhos(scheduler, times)
    scheduler.sigmas = torch.cat([rho[:1], rho[1:].repeat_interleave(2), torch.zeros(1, dtype=torch.float64)])
    plan = plan_at(our_gamma(times), DPMSolverSDE2S(), to_x=True)

    def step(k: int, eps_hat: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        scheduler.noise_sampler = lambda high, low: eps
        scheduler.scale_model_input(y, scheduler.timesteps[k])
        return scheduler.step(eps_hat, scheduler.timesteps[k], y).prev_sample

    assert compare(plan, len(plan.gamma), step, scaled=True) < 2e-6
