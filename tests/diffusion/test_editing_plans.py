"""Plans that start below t = 1, repeat their steps, or lead from data to noise."""

import math

import pytest
import torch
from tiny import small, small_ddpm

from fastdiff.diffusion import (
    DDIM,
    DEIS,
    SAMPLERS,
    Ancestral,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    LinearSchedule,
    UniPC,
    as_sampler,
    make_plan,
)
from fastdiff.diffusion.editing_plans import UpTo
from fastdiff.diffusion.process import alpha, sigma, transition_variance
from fastdiff.kernels import InvalidValueError

SCHEDULE = LinearSchedule(-8.0, 5.0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_plan_from_a_start_is_that_of_the_lower_part_of_the_schedule(name):
    """For a linear schedule that is a linear schedule between gamma_0 and gamma(start)."""
    sampler = as_sampler(name)
    ours = make_plan(sampler, SCHEDULE, 7, start=0.4)
    other = make_plan(sampler, LinearSchedule(-8.0, -8.0 + 0.4 * 13.0), 7)
    torch.testing.assert_close(ours.gamma, other.gamma, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.table, other.table, rtol=3e-5, atol=1e-12)  # endpoints are float32


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("time", lambda i: i), ("quadratic", lambda i: i**2), ((0.0, 0.1, 0.5, 0.9, 1.0), None), ("gamma", lambda i: i),
        ("karras", lambda i: 14.0 * torch.log((1 - i) * math.exp(-8 / 14) + i * math.exp(-1.5 / 14)) / 6.5 + 8 / 6.5),
    ],
)  # fmt: skip
def test_every_spacing_is_rescaled(spacing, expected):
    i = torch.arange(5, dtype=torch.float64) / 4
    plan = make_plan(DDIM(spacing=spacing), SCHEDULE, 4, start=0.5)
    times = torch.tensor(spacing, dtype=torch.float64) if expected is None else expected(i)
    torch.testing.assert_close(plan.gamma, (-8.0 + 6.5 * times).flip(0)[:-1], rtol=0, atol=2e-6)


def test_a_plan_of_a_ddpm_from_a_start():
    """At steps of its chain too: the lower part of the chain, z_1 last."""
    model = small_ddpm(T=11)
    gamma = model.gamma(torch.arange(1000, dtype=torch.float64) / 999)
    options = (6, "fixed_small", True, None, 0.3)
    plan = make_plan(DDIM(), model.gamma, *options)
    torch.testing.assert_close(plan.gamma, model.gamma(0.3 * torch.linspace(1, 0, 6, dtype=torch.float64)))
    plan = make_plan(DDIM(spacing="linspace"), model.gamma, *options)
    assert torch.equal(plan.gamma, gamma[[300, 240, 180, 120, 60, 0]])
    plan = make_plan(DDIM(betas=(1e-4, 0.5)), model.gamma, *options)
    assert float(plan.gamma[0]) < float(
        make_plan(DDIM(betas=(1e-4, 0.5)), model.gamma, 6, "fixed_small", True).gamma[0]
    )
    assert torch.equal(plan.table[-1, 2:5], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def test_the_lower_part_of_a_schedule_has_the_slope_of_it():
    part, t = UpTo(SCHEDULE, 0.25), torch.tensor([0.1, 0.6], dtype=torch.float64)
    step = 1e-3
    slope = (part(t + step) - part(t - step)) / (2 * step)
    torch.testing.assert_close(part.slope(t), slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(), DDIM(eta=0.6), Euler(), EulerAncestral()])
def test_a_repeated_step_is_the_step_and_the_way_back(sampler):
    """Coefficients and variance of the forward process after the row, each by its own equation."""
    once, repeated = (make_plan(sampler, SCHEDULE, 5, resample=k) for k in (1, 3))
    gamma = make_plan(Ancestral(), SCHEDULE, 5).gamma
    below = torch.cat([gamma[1:], torch.tensor([-8.0], dtype=torch.float64)])
    assert torch.equal(repeated.gamma, once.gamma.repeat_interleave(3))
    assert repeated.calls_per_step == 3
    assert torch.equal(repeated.table[2::3], once.table)
    for row in (0, 1):
        a, b, s = repeated.table[row::3, 2:5].unbind(1)
        ratio = alpha(gamma) / alpha(below)
        forward = sigma(gamma) ** 2 - (ratio * sigma(below)) ** 2
        torch.testing.assert_close(a, ratio * once.table[:, 2])
        torch.testing.assert_close(b, ratio * once.table[:, 3])
        torch.testing.assert_close(s.square(), ratio**2 * once.table[:, 4] ** 2 + forward)
        assert torch.equal(repeated.table[row::3, 5:], once.table[:, 5:])


def test_repeated_steps_between_two_log_variances():
    """At both bounds they are those of the sampler with that variance."""
    learned = make_plan(Ancestral(), SCHEDULE, 4, "learned", resample=2)
    assert learned.log_variance is not None
    for column, variance in enumerate(("fixed_small", "fixed_large")):
        fixed = make_plan(Ancestral(), SCHEDULE, 4, variance, resample=2)
        torch.testing.assert_close(learned.log_variance[:, column], 2.0 * fixed.table[:, 4].log())
        assert torch.equal(learned.table[:, 2:4], fixed.table[:, 2:4])


@pytest.mark.parametrize("sampler", [DPMSolver(), Heun(), UniPC(), DEIS(), Ancestral(brownian=True)])
def test_steps_that_cannot_be_repeated(sampler):
    with pytest.raises(InvalidValueError, match="resample"):
        make_plan(sampler, SCHEDULE, 5, resample=2)


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), Euler(spacing="karras")])
def test_the_rows_to_noise_invert_each_other(sampler):
    """A DDIM step to t and the step back with the same eps_hat are the identity; the noise levels are those of both."""
    forward, back = (make_plan(sampler, SCHEDULE, 6, inverse=inverse) for inverse in (False, True))
    calls = forward.calls_per_step
    there, here = back.table[::calls], forward.table[::calls].flip(0)
    eps_hat, z = 0.7, 1.3
    x_hat = there[:, 0] * z - there[:, 1] * eps_hat
    z_t = there[:, 2] * z + there[:, 3] * x_hat
    again = here[:, 2] * z_t + here[:, 3] * (here[:, 0] * z_t - here[:, 1] * eps_hat)
    torch.testing.assert_close(again, torch.full_like(again, z), rtol=1e-12, atol=0)
    assert not there[:, 4].any()
    assert torch.equal(back.gamma[::calls][1:], forward.gamma[::calls].flip(0)[:-1])


def test_a_long_step_to_noise_keeps_its_accuracy():
    """eps_hat = 0 scales z by alpha_1 / alpha_0, and x_hat = 0 by sigma_1 / sigma_0, over 60 of gamma."""
    plan = make_plan(DDIM(), LinearSchedule(-30.0, 30.0), 1, inverse=True)
    low, high = (torch.tensor(g, dtype=torch.float64) for g in (-30.0, 30.0))
    a, b = plan.table[0, 2], plan.table[0, 3]
    torch.testing.assert_close(a, sigma(high) / sigma(low), rtol=1e-9, atol=0)
    assert abs(float(a * alpha(low) + b - alpha(high))) < 1e-15 * float(a)


@pytest.mark.parametrize(
    "sampler", [Ancestral(), DDIM(eta=0.1), DPMSolver(), UniPC(), Heun(clip_denoised=True), EulerAncestral()]
)
def test_samplers_that_have_no_inverse(sampler):
    with pytest.raises(InvalidValueError, match="sampler must be ddim"):
        make_plan(sampler, SCHEDULE, 5, inverse=True)


@pytest.mark.parametrize(("name", "value"), [("start", 0.0), ("start", 1.5), ("start", math.nan), ("resample", 0)])
def test_values_that_are_rejected(name, value):
    with pytest.raises(InvalidValueError, match=f"{name} must"):
        make_plan(Ancestral(), small().gamma, 5, **{name: value})


def test_the_variance_of_the_way_back_is_that_of_the_chain():
    """With A = B = S = 0 the row would be noise of the forward process alone; the sum of both is sigma_t² where
    x_hat = x: the repeated step keeps the marginal of known pixels.
    """
    plan = make_plan(Ancestral(), SCHEDULE, 5, resample=2)
    gamma, (a, b, s) = plan.gamma[::2], plan.table[::2, 2:5].unbind(1)
    torch.testing.assert_close(a * alpha(gamma) + b, alpha(gamma))  # the mean of z_t' for x = 1
    torch.testing.assert_close((a * sigma(gamma)).square() + s.square(), sigma(gamma).square())
    assert bool((s.square() > transition_variance(gamma - 13.0 / 5, gamma)).all())
