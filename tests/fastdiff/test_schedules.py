"""Schedules against closed forms, their own derivatives, and the two objectives of the learned one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import images, small

from fastdiff.kernels import Noise, centre
from fastdiff.models import VDM
from fastdiff.process import alpha
from fastdiff.schedules import (
    SCHEDULES,
    BetaLinearSchedule,
    BetaSchedule,
    CosineSchedule,
    LearnedSchedule,
    LinearSchedule,
    ScheduleError,
    gamma_table,
    linear_betas,
)
from fastdiff.vlb import loss_weight, stratified_times

T = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)


def perturbed(schedule: torch.nn.Module, seed: int = 0, size: float = 0.5) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in schedule.named_parameters():
            if not name.startswith("gamma"):
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return schedule


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    gamma_0=st.floats(-20, 0),
    width=st.floats(0.5, 30),
    seed=st.integers(0, 99),
)
def test_pinned_schedules_meet_their_ends_and_rise(name, gamma_0, width, seed):
    """Endpoints live in float32; the shape between them is computed in the dtype of t."""
    schedule = perturbed(SCHEDULES[name](gamma_0, gamma_0 + width), seed)
    gamma = schedule(T).detach()
    ends = [float(end) for end in schedule.endpoints()]
    assert gamma.dtype == torch.float64
    for value, end in zip(gamma[[0, -1]].tolist(), ends, strict=True):
        assert abs(value - end) < 1e-7 * (1 + abs(ends[0]) + abs(ends[1]))
    assert (torch.diff(gamma) > 0).all()


@pytest.mark.parametrize("name", [*SCHEDULES, "betas"])
def test_slopes_are_the_derivatives(name):
    schedule = BetaSchedule(linear_betas()) if name == "betas" else perturbed(SCHEDULES[name](-8.0, 5.0))
    t = (T[1:-1] + 0.0001234).requires_grad_()
    expected = torch.autograd.grad(schedule(t).sum(), t)[0]
    torch.testing.assert_close(schedule.slope(t.detach()), expected, rtol=1e-12, atol=1e-12)


def test_cosine_is_a_cosine():
    """alpha = cos(angle), the angle linear in t; far ends give Nichol and Dhariwal's cos(pi t / 2)."""
    a, b = math.atan(math.exp(-4.0)), math.atan(math.exp(2.5))
    torch.testing.assert_close(alpha(CosineSchedule(-8.0, 5.0)(T)), torch.cos(a + (b - a) * T), rtol=1e-12, atol=0)
    middle = T[10:-10]
    torch.testing.assert_close(
        alpha(CosineSchedule(-30.0, 30.0)(middle)), torch.cos(math.pi / 2 * middle), rtol=2e-6, atol=0
    )


def test_beta_linear_is_the_papers_fit_and_near_ddpm():
    """log expm1(1e-4 + 10 t²) by default; DDPM's thousand betas lie beside it."""
    expected = torch.log(torch.expm1(1e-4 + 10 * T**2))
    torch.testing.assert_close(BetaLinearSchedule()(T), expected, rtol=2e-6, atol=0)  # endpoints are float32
    ddpm = BetaSchedule(linear_betas())(T)
    assert float((ddpm - expected)[10:].abs().max()) < 0.15  # the fit leaves out a term 0.1 t
    ends = BetaLinearSchedule(-6.0, 4.0)(T)
    slopes = torch.diff(torch.nn.functional.softplus(ends))
    torch.testing.assert_close(
        torch.diff(slopes), torch.full((99,), float(slopes[1] - slopes[0]), dtype=torch.float64), rtol=1e-6, atol=1e-12
    )


def test_betas_give_the_chains_levels_and_a_line_between_them():
    betas = linear_betas()
    assert betas[0] == 1e-4
    assert betas[-1] == 0.02
    signal = torch.cumprod(1.0 - betas, 0)
    schedule = BetaSchedule(betas)
    gamma = gamma_table(schedule, 999)
    torch.testing.assert_close(gamma, torch.log((1.0 - signal) / signal), rtol=1e-9, atol=1e-9)
    between = torch.sigmoid(-schedule((torch.arange(999, dtype=torch.float64) + 0.5) / 999))
    torch.testing.assert_close(between, (signal[1:] * signal[:-1]).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.time(schedule(T)), T.float(), rtol=0, atol=1e-7)
    torch.testing.assert_close(schedule.time(schedule(T).float()), T.float(), rtol=0, atol=2e-6)
    assert torch.equal(schedule.bfloat16()(T), BetaSchedule(betas)(T))  # a cast must not round a thousand levels


@pytest.mark.parametrize("betas", [[0.1], [0.1, 1.0], [0.1, 0.0], [[0.1, 0.2]], [0.1, math.nan]])
def test_wrong_betas(betas):
    with pytest.raises(ScheduleError, match=r"BetaSchedule: .*allowed: two or more, in \(0, 1\)"):
        BetaSchedule(torch.tensor(betas))


def test_time_grids():
    schedule = LinearSchedule(-8.0, 4.0)
    torch.testing.assert_close(
        gamma_table(schedule, 4, "quadratic"), -8.0 + 12.0 * torch.tensor([0, 1, 4, 9, 16]).double() / 16.0
    )
    cosine = CosineSchedule(-8.0, 4.0)
    torch.testing.assert_close(gamma_table(cosine, 6, "gamma").diff(), torch.full((6,), 2.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="unknown grid 'karras'; allowed: time, gamma, quadratic"):
        gamma_table(cosine, 6, "karras")


@pytest.mark.parametrize("name", ["cosine", "beta-linear", "learned"])
def test_the_bound_of_a_denoiser_does_not_depend_on_the_schedule(name):
    """Gauss's rule over t with the same noise at all times: an integral over gamma, whatever the path.

    Measured: equal to 1.1e-5.
    """
    model = small(gamma_1=5.0, fourier=None, learn_endpoints=False)
    x = centre(images(2), 17)
    own = perturbed(SCHEDULES[name](-8.0, 5.0))
    values = []
    for schedule in (model.gamma, own):
        model.gamma = schedule
        nodes, weights = np.polynomial.legendre.leggauss(120)
        with torch.no_grad():
            terms = [
                0.5 * weight * model.diffusion_nats(x, Noise(5), torch.tensor([0.5 + 0.5 * node] * 2).double(), None)
                for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True)
            ]
        values.append(torch.stack(terms).sum(0))
    torch.testing.assert_close(values[0], values[1], rtol=2e-5, atol=0)


def gradients(model: VDM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", ["elbo", "simple", "min-snr", "sigmoid"])
def test_interior_follows_the_squared_bound_the_ends_the_bound_and_the_network_the_loss(loss):
    """One backward pass against three: measured 3e-6 of the largest entry, sums of float32 in another order."""
    model, x, noise = small(schedule="learned"), images(7), Noise(3)
    perturbed(model.gamma, size=0.1)
    ours = gradients(model, model.objective(x, noise, loss=loss).loss.sum())
    vlb = model.vlb(x, noise)
    ends = gradients(model, vlb.total.sum())
    squared = gradients(model, model.vlb(x, noise).diffusion.square().sum())
    u = stratified_times(noise, 7)
    weight = loss_weight(loss, model.gamma(u).float(), model.gamma.slope(u).float()).detach()
    bound = 0.5 * model.gamma.slope(u).float().detach()
    network = gradients(model, (model.vlb(x, noise).diffusion * weight / bound).sum())
    largest = max(float(gradient.abs().max()) for gradient in network.values())
    for name, gradient in ours.items():
        if name in ("gamma.gamma_0", "gamma.gamma_1"):
            expected = ends[name]
        else:
            expected = (squared if name.startswith("gamma.") else network)[name]
        scale = float(expected.abs().max()) if name.startswith("gamma.") else largest
        torch.testing.assert_close(gradient, expected, rtol=0, atol=5e-6 * scale, msg=name)
    assert float((ours["gamma.bias"] - ends["gamma.bias"]).abs().max()) > 10 * float(ends["gamma.bias"].abs().max())


@pytest.mark.parametrize("loss", ["simple", "sigmoid"])
def test_at_finite_steps_the_whole_schedule_follows_the_bound(loss):
    model, x, noise = small(schedule="learned"), images(7), Noise(3)
    perturbed(model.gamma, size=0.1)
    ours = gradients(model, model.objective(x, noise, loss=loss, steps=9).loss.sum())
    bound = gradients(model, model.vlb(x, noise, 9).total.sum())
    interior = [name for name in ours if name.startswith("gamma.")]
    scale = max(float(bound[name].abs().max()) for name in interior)
    for name in interior:
        torch.testing.assert_close(ours[name], bound[name], rtol=0, atol=1e-5 * scale)


def test_learning_the_interior_lowers_the_variance():
    """A denoiser whose error is concentrated at one gamma: the learned schedule spends its times there.

    L(t) = ½ gamma'(t) e(gamma(t)) with e a bump; its variance over t vanishes where gamma' is proportional to 1 / e.
    """

    def loss(gamma, slope):
        return 0.5 * slope * (0.05 + torch.exp(-((gamma + 2.0) ** 2)))

    schedule = LearnedSchedule(-8.0, 5.0, width=32)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.02)
    u = (torch.arange(128, dtype=torch.float64) + 0.5) / 128
    before = loss(schedule(u), schedule.slope(u)).detach()
    for _ in range(300):
        later: list[torch.Tensor] = []
        value = loss(*schedule.for_training(u, lambda later=later: later[0]))
        later.append(value.detach())
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
    after = loss(schedule(u), schedule.slope(u)).detach()
    torch.testing.assert_close(after.mean(), before.mean(), rtol=2e-4, atol=0)  # the integral stays: measured 1.1e-4
    assert float(after.var() / before.var()) < 0.01  # measured 0.0067
    assert [float(end) for end in schedule.endpoints()] == [-8.0, 5.0]


def test_learned_schedule_refuses_no_sigmoids():
    with pytest.raises(ScheduleError, match="width is 0; allowed: an integer >= 1"):
        LearnedSchedule(-8.0, 5.0, width=0)
