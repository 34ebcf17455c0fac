"""Our sampler rows, gammas and velocities against diffusers' schedulers, given the same eps_hat and noise.

The oracle is diffusers' formulas: `in_float64` gives its schedulers tables in float64, made from its own configuration.
By default their tables are float32, where 1 - alphas_cumprod keeps three digits at t = 0: that alone changes a step of
DDPM by up to 3e-4 (measured at t = 2). Our rows are applied as they are used, in float32 by `sampler_step`.

diffusers' timestep t = 0 .. 999 is our t / 999. Measured: single steps differ by 5.6e-7, trajectories by 1.8e-6.
"""

import pytest
import torch
from peers import (
    BETAS,
    SHAPE,
    STEP,
    TRAJECTORY,
    diffusers,
    error,
    in_float64,
    its_gamma,
    its_sigmas,
    our_gamma,
    two_points,
)
from tiny import plan_at

from fastdiff.diffusion import DDIM, Ancestral, Plan
from fastdiff.diffusion.process import alpha, sigma, v_from_eps
from fastdiff.diffusion.rows import ancestral, ddim, dpm_solver, heun
from fastdiff.kernels import diffuse, reparameterize, sampler_step

# raised by NumPy 2 inside diffusers' set_timesteps, which hands it tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def latent(gamma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(z_t, eps_hat) float32 at gamma, such that x_hat is N(0, 1) as well."""
    x_hat, eps_hat = torch.randn(2, *SHAPE)
    return alpha(gamma).float() * x_hat + sigma(gamma).float() * eps_hat, eps_hat


def drawn(seed: int) -> torch.Tensor:
    """The noise that a scheduler draws from a generator of this seed, when its eps_hat is float64."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


# ------------------------------------------------------------------------------------------------ gammas


def test_gamma_is_that_of_alphas_cumprod():
    scheduler = in_float64(diffusers.DDPMScheduler(**BETAS))
    torch.testing.assert_close(our_gamma(range(1000)), its_gamma(scheduler, torch.arange(1000)), rtol=0, atol=5e-13)


TIMES = torch.tensor([0, 1, 2, 10, 100, 500, 998, 999])


def test_diffuse_is_add_noise():
    x, noise = torch.randn(2, len(TIMES), *SHAPE[1:])
    z_t = diffuse(x, our_gamma(TIMES).float(), noise)
    scheduler = diffusers.DDPMScheduler(**BETAS)
    assert (z_t - scheduler.add_noise(x, noise, TIMES)).abs().max() < 4e-6  # measured: 2.8e-6, of its float32 table
    its = in_float64(scheduler).add_noise(x.double(), noise.double(), TIMES)
    assert error(z_t, its) < 4e-7  # measured: 2.4e-7


def test_v_is_get_velocity():
    scheduler = in_float64(diffusers.DDPMScheduler(**BETAS))
    x, noise = torch.randn(2, len(TIMES), *SHAPE[1:], dtype=torch.float64)
    gamma = our_gamma(TIMES).reshape(-1, 1, 1, 1)
    z_t = alpha(gamma) * x + sigma(gamma) * noise
    assert error(v_from_eps(z_t, noise, gamma), scheduler.get_velocity(x, noise, TIMES)) < 3e-13  # measured: 1.3e-13


# ------------------------------------------------------------------------------------------------ single steps


def set_steps(scheduler, steps: int) -> list[int]:
    """Let the scheduler choose its timesteps; return the indices of the steps to compare, the last two among them."""
    scheduler.set_timesteps(steps)
    return list(range(steps)) if steps < 100 else [0, 1, steps // 2, steps - 100, steps - 10, steps - 2, steps - 1]


def errors(scheduler, plan: Plan, chosen: list[int], clip: float | None = None, **options) -> tuple[float, float]:
    """The largest errors of z_s and of alpha_t x_hat over the chosen steps, each from a latent of its own.

    x_hat is a difference of terms of the size of z_t / alpha_t, so the accuracy of float32 is that of alpha_t x_hat.
    """
    worst_z = worst_x = 0.0
    for i in chosen:
        t, gamma = int(scheduler.timesteps[i]), plan.gamma[i]
        torch.testing.assert_close(gamma, its_gamma(scheduler, t), rtol=0, atol=5e-13)
        z_t, eps_hat = latent(gamma)
        generator = torch.Generator().manual_seed(i)
        its = scheduler.step(eps_hat.double(), t, z_t.double(), generator=generator, **options)
        z_s, x_hat = sampler_step(z_t, eps_hat, plan.table[i].float(), noise=drawn(i), clip=clip)
        worst_z = max(worst_z, error(z_s, its.prev_sample))
        worst_x = max(worst_x, float(alpha(gamma)) * error(x_hat, its.pred_original_sample))
    return worst_z, worst_x


SPACINGS = [(1000, "leading"), (50, "leading"), (50, "trailing")]


@pytest.mark.parametrize(("steps", "spacing"), SPACINGS)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_is_ddpm(steps, spacing, clip, variance):
    """The last row goes to x_hat, as diffusers' step without a previous timestep."""
    scheduler = in_float64(
        diffusers.DDPMScheduler(**BETAS, variance_type=variance, clip_sample=clip is not None, timestep_spacing=spacing)
    )
    chosen = set_steps(scheduler, steps)
    plan = plan_at(our_gamma(scheduler.timesteps), Ancestral(variance=variance), to_x=True)
    assert len(plan.table) == steps
    rows = ancestral(our_gamma(scheduler.timesteps), variance).table
    torch.testing.assert_close(plan.table[:-1], rows, rtol=0, atol=0)
    if spacing == "trailing" and variance == "fixed_large":
        chosen = chosen[:-1]  # see test_the_last_step_of_a_trailing_chain_draws_no_noise
    worst = errors(scheduler, plan, chosen, clip)
    assert max(worst) < STEP


@pytest.mark.parametrize(("steps", "spacing"), SPACINGS)
def test_learned_variances_are_the_learned_range(steps, spacing):
    """diffusers' network returns v in [-1, 1]; ours is (v + 1) / 2, between the small and the large log-variance."""
    scheduler = in_float64(
        diffusers.DDPMScheduler(**BETAS, variance_type="learned_range", clip_sample=False, timestep_spacing=spacing)
    )
    chosen = set_steps(scheduler, steps)
    plan = plan_at(our_gamma(scheduler.timesteps), to_x=True, variance="learned")
    worst = 0.0
    for i in chosen if spacing == "leading" else chosen[:-1]:
        z_t, eps_hat = latent(plan.gamma[i])
        v = 2.0 * torch.rand(SHAPE) - 1.0
        generator = torch.Generator().manual_seed(i)
        output = torch.cat([eps_hat, v], dim=1).double()
        its = scheduler.step(output, int(scheduler.timesteps[i]), z_t.double(), generator=generator).prev_sample
        mean, _ = sampler_step(z_t, eps_hat, plan.table[i].float())
        low, high = plan.log_variance[i].float()
        ours, _ = reparameterize(mean, torch.lerp(low, high, 0.5 * (v + 1.0)), drawn(i))
        worst = max(worst, error(ours, its))
    assert worst < STEP


def test_the_last_step_of_a_trailing_chain_draws_no_noise():
    """An intended difference: diffusers adds noise wherever t > 0, so also in its step from t = 19 to x_hat."""
    scheduler = in_float64(
        diffusers.DDPMScheduler(**BETAS, variance_type="fixed_large", clip_sample=False, timestep_spacing="trailing")
    )
    scheduler.set_timesteps(50)
    plan = plan_at(our_gamma(scheduler.timesteps), Ancestral(variance="fixed_large"), to_x=True)
    z_t, eps_hat = latent(plan.gamma[-1])
    t = int(scheduler.timesteps[-1])
    its = scheduler.step(eps_hat.double(), t, z_t.double(), generator=torch.Generator().manual_seed(0))
    z_s, _ = sampler_step(z_t, eps_hat, plan.table[-1].float(), noise=drawn(0))
    assert t == 19
    assert error(z_s, its.pred_original_sample) < STEP
    noise = (1.0 - scheduler.alphas_cumprod[t]).sqrt() * drawn(0)
    assert error(z_s + noise, its.prev_sample) < STEP


@pytest.mark.parametrize(("steps", "spacing"), SPACINGS)
@pytest.mark.parametrize("to_x", [True, False])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_ddim(steps, spacing, to_x, clip, eta):
    """Without set_alpha_to_one diffusers ends at timestep 0; with leading spacing its last step stays there."""
    scheduler = in_float64(
        diffusers.DDIMScheduler(**BETAS, set_alpha_to_one=to_x, clip_sample=clip is not None, timestep_spacing=spacing)
    )
    chosen = set_steps(scheduler, steps)
    if to_x:
        plan = plan_at(our_gamma(scheduler.timesteps), DDIM(eta=eta), to_x=True)
    elif spacing == "trailing":
        plan = ddim(our_gamma([*scheduler.timesteps, 0]), eta)
    else:
        plan, chosen = ddim(our_gamma(scheduler.timesteps), eta), chosen[:-1]
    assert len(plan.table) == chosen[-1] + 1
    worst = errors(scheduler, plan, chosen, clip, eta=eta, use_clipped_model_output=clip is not None)
    assert max(worst) < STEP


# ------------------------------------------------------------------------------------------------ trajectories


@pytest.mark.parametrize("steps", [9, 37])
def test_dpm_solver_is_the_midpoint_multistep_solver(steps):
    """The last step goes to timestep 0 at order 2. diffusers rounds its sample to float32 before every step."""
    scheduler = in_float64(
        diffusers.DPMSolverMultistepScheduler(
            **BETAS, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=False,
            final_sigmas_type="sigma_min", timestep_spacing="linspace",
        )
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    times = [*scheduler.timesteps.tolist(), 0]
    sigmas = its_sigmas(scheduler, times)
    torch.testing.assert_close(scheduler.sigmas, sigmas.float(), rtol=1e-6, atol=0)
    scheduler.sigmas = sigmas
    plan = dpm_solver(our_gamma(times))
    ours = torch.randn(SHAPE)
    its, history, worst = ours.double(), [torch.zeros(SHAPE)], 0.0
    for t, gamma, row in zip(scheduler.timesteps, plan.gamma, plan.table, strict=True):
        its = scheduler.step(two_points(its, its_gamma(scheduler, t)), t, its).prev_sample
        ours, *history = sampler_step(ours, two_points(ours, gamma).float(), row.float(), history=history)
        worst = max(worst, error(ours, its))
    assert worst < TRAJECTORY


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_heun_is_heun(spacing):
    """diffusers' sample is z / alpha; its last step, of one call, goes to x_hat."""
    scheduler = in_float64(diffusers.HeunDiscreteScheduler(**BETAS, timestep_spacing=spacing))
    steps = 25
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.unique().flip(0)
    sigmas = torch.cat([its_sigmas(scheduler, scheduler.timesteps), torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(scheduler.sigmas, sigmas.float(), rtol=1e-6, atol=0)
    scheduler.sigmas = sigmas
    plan = plan_at(our_gamma(times), "heun", to_x=True)
    assert len(plan.table) == 2 * steps - 1
    torch.testing.assert_close(plan.table[:-1], heun(our_gamma(times)).table, rtol=0, atol=0)
    ours = torch.randn(SHAPE)
    its, history, worst = ours.double() / alpha(plan.gamma[0]), [torch.zeros(SHAPE)], 0.0
    for t, gamma, row in zip(scheduler.timesteps, plan.gamma, plan.table, strict=True):
        its_z = scheduler.scale_model_input(its, t)
        its = scheduler.step(two_points(its_z, its_gamma(scheduler, int(t))), t, its).prev_sample
        ours, *history = sampler_step(ours, two_points(ours, gamma).float(), row.float(), history=history)
        scale = (scheduler.sigmas[scheduler.step_index] ** 2 + 1.0).sqrt()
        worst = max(worst, error(ours, its / scale))
    assert worst < TRAJECTORY
