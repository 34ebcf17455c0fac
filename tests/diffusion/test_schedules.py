"""Schedules against closed forms and their own derivatives; what the parameters of a learned one follow."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import diffusion_nats, images, small

from fastdiff.diffusion import (
    LOSSES,
    SCHEDULES,
    SPACINGS,
    BetaLinearSchedule,
    BetaSchedule,
    CosineSchedule,
    FlowSchedule,
    FunctionSchedule,
    LearnedSchedule,
    LinearSchedule,
    Schedule,
    ScheduleError,
    as_schedule,
    gamma_table,
    linear_betas,
)
from fastdiff.diffusion.bound import loss_weight, stratified_times
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.kernels import InvalidValueError, Noise
from fastdiff.models import VDM

T = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)


def perturbed(schedule: torch.nn.Module, seed: int = 0, size: float = 0.5) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in schedule.named_parameters():
            if not name.startswith("gamma"):
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return schedule


@settings(max_examples=30)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    gamma_0=st.floats(-20, 0),
    width=st.floats(0.5, 30),
    seed=st.integers(0, 99),
)
def test_pinned_schedules_increase_between_their_endpoints(name, gamma_0, width, seed):
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


def flow_in_decimals(gamma_0: float, gamma_1: float, t: float) -> tuple[Decimal, Decimal]:
    """gamma and gamma' of the straight path, from its definition with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        low, high = (1 / (1 + (-Decimal(end) / 2).exp()) for end in (gamma_0, gamma_1))
        tau = low + (high - low) * Decimal(t)
        return 2 * (tau / (1 - tau)).ln(), 2 * (high - low) / (tau * (1 - tau))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [(-30.0, 30.0), (-13.3, 5.0), (20.0, 30.0), (-30.0, -20.0)])
def test_the_straight_path_to_rounding(ends, dtype):
    """z / (alpha + sigma) = (1 - tau) x + tau eps with tau linear in t, also where 1 - tau is 3e-7.

    Measured: gamma to 3.4 ulp of max(|gamma|, 1), gamma' to 2.1 ulp; 2.1e-6 at |gamma| = 30 in float32.
    """
    schedule, ulp = FlowSchedule(*ends), torch.finfo(dtype).eps
    near = 10.0 ** torch.linspace(-20.0, -2.0, 50, dtype=torch.float64)
    t = torch.cat([torch.linspace(0.0, 1.0, 51, dtype=torch.float64), near, 1.0 - near]).to(dtype)
    for time, gamma, slope in zip(t.tolist(), schedule(t).tolist(), schedule.slope(t).tolist(), strict=True):
        exact, exact_slope = flow_in_decimals(float(schedule.gamma_0), float(schedule.gamma_1), time)
        assert abs(Decimal(gamma) - exact) <= Decimal(4 * ulp) * max(abs(exact), 1)
        assert abs(Decimal(slope) / exact_slope - 1) <= Decimal(3 * ulp)
    gamma = schedule(T)
    tau = sigma(gamma) / (alpha(gamma) + sigma(gamma))
    torch.testing.assert_close(tau.diff(), ((tau[-1] - tau[0]) / 100).expand(100), rtol=1e-8, atol=1e-15)


def test_betas_give_the_levels_of_the_chain_and_geometric_means_between_them():
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
    assert torch.equal(schedule.bfloat16()(T), BetaSchedule(betas)(T))  # a cast must not round a thousand betas


@pytest.mark.parametrize("betas", [[0.1], [0.1, 1.0], [0.1, 0.0], [[0.1, 0.2]], [0.1, math.nan]])
def test_wrong_betas(betas):
    with pytest.raises(ScheduleError, match="betas"):
        BetaSchedule(torch.tensor(betas))


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (-1.0, math.inf)])
def test_wrong_endpoints(ends):
    with pytest.raises(ScheduleError, match="gamma"):
        LinearSchedule(*ends)


def test_a_learned_schedule_has_at_least_one_sigmoid():
    with pytest.raises(ScheduleError, match="width"):
        LearnedSchedule(-8.0, 5.0, width=0)


def test_endpoints_of_a_learnable_schedule_get_gradients():
    schedule = LinearSchedule(-13.3, 5.0, learned=True)
    torch.testing.assert_close(schedule(T), -13.3 + 18.3 * T, rtol=1e-6, atol=1e-6)
    gamma_0, gamma_1 = schedule.endpoints()
    (gamma_1 - 2 * gamma_0).backward()
    assert schedule.gamma_0.grad == -2.0
    assert schedule.gamma_1.grad == 1.0
    assert not list(LinearSchedule(-1.0, 1.0).parameters())


# ------------------------------------------------------------------------------------------------ tables of gamma


class Dip(Schedule):
    """Decreases in the middle."""

    def forward(self, t):
        return -8.0 + 13.0 * t - 20.0 * t * (1.0 - t) * (t > 0.4) * (t < 0.6)


class Unbounded(Schedule):
    """gamma(0) is minus infinity."""

    def forward(self, t):
        return torch.log(t)


def test_a_table_is_checked_by_value():
    with pytest.raises(ScheduleError, match=r"Dip at 10 steps.* at entry 5"):
        gamma_table(Dip(), 10)
    with pytest.raises(ScheduleError, match=r"Unbounded at 4 steps.*finite.* at entry 0"):
        gamma_table(Unbounded(), 4)
    for steps in (0, -3, 1.5, True):
        with pytest.raises(InvalidValueError, match="steps"):
            gamma_table(LinearSchedule(-1.0, 1.0), steps)
    with pytest.raises(InvalidValueError, match="spacing"):
        gamma_table(LinearSchedule(-1.0, 1.0), 6, "even")


@pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(-13.3, 5.0), CosineSchedule(-12.0, 9.0), BetaSchedule(linear_betas())],
    ids=lambda schedule: type(schedule).__name__,
)
def test_spacings_by_their_definitions(schedule):
    steps = 7
    tables = {spacing: gamma_table(schedule, steps, spacing) for spacing in SPACINGS}
    for gamma in tables.values():
        assert gamma.dtype == torch.float64
        assert gamma[0] == tables["time"][0]
        assert gamma[-1] == pytest.approx(float(tables["time"][-1]), rel=1e-15)
    for i in range(steps + 1):
        t = torch.tensor(i / steps, dtype=torch.float64)
        assert tables["time"][i] == schedule(t)
        assert tables["quadratic"][i] == schedule(t**2)
    even = tables["gamma"].diff()
    torch.testing.assert_close(even, even.mean().expand(steps), rtol=1e-14, atol=0)
    same = torch.allclose(tables["gamma"], tables["time"], rtol=1e-14, atol=1e-14)
    assert same == isinstance(schedule, LinearSchedule)


# ------------------------------------------------------------------------------------------------ functions


def cubic(t: torch.Tensor) -> torch.Tensor:
    return -8.0 + 4.0 * t + 9.0 * t**3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_of_a_function_is_its_derivative(dtype):
    """gamma' = 4 + 27 t², with and without gradients, of any shape."""
    schedule, t = FunctionSchedule(cubic), T.to(dtype).reshape(-1, 1)
    assert torch.equal(schedule(t), cubic(t))
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            gamma, slope = schedule.both(t)
            assert gamma.dtype == slope.dtype == dtype
            torch.testing.assert_close(slope, 4.0 + 27.0 * t**2, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)
    assert [float(end) for end in schedule.endpoints()] == [-8.0, 5.0]


class Power(torch.nn.Module):
    """gamma(t) = 13 t^p - 8 with a learnable p."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, t):
        return 13.0 * t ** self.p.to(t.dtype) - 8.0


def test_the_slope_of_a_module_has_gradients_in_its_parameters():
    """d gamma' / dp of 13 p t^(p-1) is 13 t^(p-1) (1 + p log t)."""
    module = Power()
    schedule, t = FunctionSchedule(module), T[1:]
    assert list(schedule.parameters()) == [module.p]
    slope = schedule.slope(t)
    torch.testing.assert_close(slope.detach(), 26.0 * t, rtol=1e-6, atol=0)
    gradient = torch.autograd.grad(slope.sum(), module.p)[0]
    torch.testing.assert_close(gradient.double(), (13.0 * t * (1.0 + 2.0 * t.log())).sum(), rtol=1e-5, atol=0)


def test_a_function_must_be_finite_and_increase():
    for function in (lambda t: -t, lambda t: 0.0 * t, lambda t: torch.log(t), lambda t: (t - 0.5) ** 2):
        with pytest.raises(ScheduleError, match="gamma"):
            FunctionSchedule(function)
    with pytest.raises(InvalidValueError, match="schedule"):
        as_schedule(3)  # pyright: ignore[reportArgumentType]
    assert as_schedule(schedule := LinearSchedule(-1.0, 1.0)) is schedule


# ------------------------------------------------------------------------------------------------ in a model


def test_the_bound_of_a_denoiser_does_not_depend_on_the_schedule():
    """Gauss's rule over t with the same noise at all times: an integral over gamma, whatever the schedule.

    Measured: equal to 1.1e-5.
    """
    model, x = small(gamma_1=5.0, fourier=None, learn_endpoints=False), images(2)
    nodes, weights = np.polynomial.legendre.leggauss(120)

    @torch.no_grad()
    def bound(schedule: Schedule) -> torch.Tensor:
        model.gamma = schedule
        terms = [
            0.5 * weight * diffusion_nats(model, x, Noise(5), torch.tensor([0.5 + 0.5 * node] * 2).double())
            for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True)
        ]
        return torch.stack(terms).sum(0)

    linear = bound(model.gamma)
    for name in ("cosine", "beta-linear", "flow", "learned"):
        torch.testing.assert_close(bound(perturbed(SCHEDULES[name](-8.0, 5.0))), linear, rtol=2e-5, atol=0)


def gradients(model: VDM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_interior_endpoints_and_network(loss):
    """The interior follows the squared bound, the endpoints the bound, the network the loss: one backward pass for all
    against three. Measured: 3e-6 of the largest entry, sums of float32 in another order.
    """
    model, x, noise = small(schedule="learned"), images(7), Noise(3)
    perturbed(model.gamma, size=0.1)
    ours = gradients(model, model(x, noise, loss=loss).loss.sum())
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


@pytest.mark.parametrize("loss", ["simple", "sigmoid", "flow", "edm"])
def test_at_finite_steps_the_whole_schedule_follows_the_bound(loss):
    model, x, noise = small(schedule="learned"), images(7), Noise(3)
    perturbed(model.gamma, size=0.1)
    ours = gradients(model, model(x, noise, loss=loss, T=9).loss.sum())
    bound = gradients(model, model.vlb(x, noise, 9).total.sum())
    interior = [name for name in ours if name.startswith("gamma.")]
    scale = max(float(bound[name].abs().max()) for name in interior)
    for name in interior:
        torch.testing.assert_close(ours[name], bound[name], rtol=0, atol=1e-5 * scale)


def test_learning_the_interior_lowers_the_variance():
    """A denoiser whose error is concentrated at one gamma: the schedule learns to place its times there.

    L(t) = ½ gamma'(t) e(gamma(t)) with e a bump; its variance over t vanishes where gamma' is proportional to 1 / e.
    """

    def loss(gamma, slope):
        return 0.5 * slope * (0.05 + torch.exp(-((gamma + 2.0) ** 2)))

    schedule = LearnedSchedule(-8.0, 5.0, width=32)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.02)
    u = (torch.arange(128, dtype=torch.float64) + 0.5) / 128
    before = loss(schedule(u), schedule.slope(u)).detach()
    for _ in range(300):
        gamma, slope, follow = schedule.for_training(u)
        value = loss(gamma, slope)
        follow(value.detach())
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
    after = loss(schedule(u), schedule.slope(u)).detach()
    torch.testing.assert_close(after.mean(), before.mean(), rtol=2e-4, atol=0)  # the integral stays: measured 1.1e-4
    assert float(after.var() / before.var()) < 0.01  # measured 0.0067
    assert [float(end) for end in schedule.endpoints()] == [-8.0, 5.0]


def test_a_learned_schedule_does_not_collapse_to_a_jump():
    """A loss per unit of gamma that vanishes near gamma(0), as that of a trained network does, with batches of 64 times
    and noise of each sample. The best schedule has an equal loss at all times: its root mean square is the mean.

    Measured after 700 steps: 1.04 times the mean; without the limit on the steepness 55 times.
    """
    random = torch.Generator().manual_seed(0)

    def per_gamma(gamma):
        return 0.04 * torch.sigmoid(4.0 - gamma) * torch.sigmoid(4.0 * (gamma + 6.5))

    schedule = LearnedSchedule(-8.0, 5.0, width=64)
    optimizer = torch.optim.Adam(schedule.interior_parameters(), lr=0.03, betas=(0.9, 0.99))
    for _ in range(700):
        u = (torch.rand((), generator=random) + torch.arange(64) / 64) % 1
        gamma, slope, follow = schedule.for_training(u)
        value = slope * per_gamma(gamma) * torch.exp(0.7 * torch.randn(64, generator=random) - 0.245)
        follow(543.0 * value.detach())  # in nats, of 784 dimensions
        optimizer.zero_grad()
        value.mean().backward()
        torch.nn.utils.clip_grad_norm_(schedule.interior_parameters(), 1.0)
        optimizer.step()
    gamma, slope = schedule.both((torch.arange(4000) + 0.5) / 4000)
    losses = (slope * per_gamma(gamma)).detach()
    assert float(losses.square().mean().sqrt() / losses.mean()) < 1.1
