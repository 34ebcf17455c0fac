"""Betas of three kinds, and the steps of a chain that few sampler steps take, against diffusers and brute force."""

import math
from fractions import Fraction

import pytest
import torch
from peers import diffusers

from fastdiff.diffusion import DDIM, LinearSchedule, make_plan
from fastdiff.diffusion.beta_schedule import BETA_SCHEDULES, BetaSchedule, betas_of
from fastdiff.diffusion.spacings import CHAIN_SPACINGS, chain_steps
from fastdiff.kernels import InvalidValueError
from fastdiff.models import DDPM, DDPMConfig
from fastdiff.networks import UNetConfig

THEIRS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.parametrize("kind", BETA_SCHEDULES)
@pytest.mark.parametrize("count", [10, 1000, 4000])
def test_betas_are_those_of_diffusers(kind, count):
    """Theirs are float32: measured 4e-7, relative, which is its rounding and that of their linspace."""
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=count, beta_start=2e-4, beta_end=0.03, beta_schedule=THEIRS[kind]
    )
    torch.testing.assert_close(betas_of(kind, count, 2e-4, 0.03).float(), scheduler.betas, rtol=6e-7, atol=0)


def test_cosine_betas_by_brute_force():
    def kept(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - kept((i + 1) / 50) / kept(i / 50), 0.999) for i in range(50)]
    torch.testing.assert_close(betas_of("cosine", 50, 0.1, 0.2), torch.tensor(betas, dtype=torch.float64))
    assert betas[-1] == 0.999


@pytest.mark.parametrize("spacing", CHAIN_SPACINGS)
def test_the_steps_are_the_timesteps_of_diffusers(spacing):
    """For every number of steps of a chain of 1000. Rounding gives theirs one more, -1, at 62 numbers of steps."""
    scheduler, with_one_more = diffusers.DDIMScheduler(timestep_spacing=spacing), []
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        theirs = sorted(scheduler.timesteps.tolist())
        if theirs[0] < 0:
            with_one_more.append(steps)
        assert chain_steps(spacing, 1000, steps) == [step for step in theirs if step >= 0], steps
    assert len(with_one_more) <= 62
    assert spacing == "trailing" or not with_one_more


@pytest.mark.parametrize("spacing", CHAIN_SPACINGS)
@pytest.mark.parametrize("count", [2, 7, 64, 1000])
def test_the_steps_increase_within_the_chain(spacing, count):
    for steps in range(1, count + 1):
        chosen = chain_steps(spacing, count, steps)
        assert len(chosen) == steps == len(set(chosen))
        assert sorted(chosen) == chosen
        assert 0 <= chosen[0] <= chosen[-1] <= count - 1
        if spacing == "trailing":
            assert chosen[-1] == count - 1
            assert abs(chosen[0] - (Fraction(count, steps) - 1)) <= Fraction(1, 2)
        elif spacing == "leading" or steps > 1:
            assert chosen[0] == 0
    assert chain_steps(spacing, count, count) == list(range(count))


@pytest.mark.parametrize("spacing", CHAIN_SPACINGS)
def test_a_plan_at_steps_of_the_chain(spacing):
    betas = betas_of("linear", 1000, 1e-4, 0.02)
    schedule = BetaSchedule(betas)
    kept = torch.cumprod(1 - betas, 0)[chain_steps(spacing, 1000, 7)].flip(0)
    plan = make_plan(DDIM(spacing=spacing), schedule, 7, network_decoder=True)
    torch.testing.assert_close(plan.gamma, -torch.log(kept / (1 - kept)), rtol=1e-10, atol=1e-10)
    with pytest.raises(InvalidValueError, match="steps must be <= 1000"):
        make_plan(DDIM(spacing=spacing), schedule, 1001, network_decoder=True)
    with pytest.raises(InvalidValueError, match="not a DDPM"):
        make_plan(DDIM(spacing=spacing), LinearSchedule(-5.0, 5.0), 7)


@pytest.mark.parametrize("kind", BETA_SCHEDULES)
def test_a_ddpm_has_these_betas(kind):
    config = DDPMConfig(
        shape=(1, 4, 4), levels=17, T=20, beta_count=20, beta_first=0.01, beta_last=0.3, beta_schedule=kind,
        network=UNetConfig(widths=(8,), blocks=1),
    )  # fmt: skip
    model = DDPM(config)
    torch.testing.assert_close(model.gamma.decay, -torch.log1p(-betas_of(kind, 20, 0.01, 0.3)).cumsum(0))
