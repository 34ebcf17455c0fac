"""UniPC, DEIS, and Euler and Heun on Karras's noise levels, against diffusers' schedulers.

Every setting runs once with diffusers' formulas in float64 (`peers`) and the exact denoiser of `two_points`. Single
steps apply our row, in float32 by `sampler_step`, to that run's own latents and estimates; trajectories are ours
throughout. Where diffusers departs from the papers:

- DEIS and UniPC round the timesteps of Karras's noise levels to integers: the network is told another noise level than
  the one that the step uses. Our network gets the step's own gamma, as the denoiser here does.
- From Karras's noise levels the last step of DEIS has length 0, so that its last call of the network changes nothing;
  that of UniPC too with ``final_sigmas_type="sigma_min"``, where it gives NaN unless its order is lowered.
- UniPC's order never counts the corrector, as in the paper, but both fix the weight of a step with two estimates to ½
  B(h): from three estimates on B(h) cancels, so "bh1" and "bh2" differ in the first and last steps of order 3 alone.
- Both lower the order of the last steps (``lower_order_final``), which neither paper's algorithm does: a convergence of
  order 2 at most is left. DEIS does so for fewer than 15 steps, UniPC always.

Measured: whole trajectories with our rows in float64 differ by at most 5.8e-13; in float32, as they are used, single
steps differ by 2.4e-6 (5 steps; 7e-7 for 37) and trajectories by 8.4e-6. diffusers' Euler and Heun round to float32.
"""

import pytest
import torch
from peers import (
    BETAS,
    SHAPE,
    diffusers,
    error,
    in_float64,
    its_sigmas,
    our_gamma,
    two_points,
)
from tiny import plan_at

from fastdiff.diffusion import DEIS, BetaSchedule, Euler, Heun, Plan, Sampler, UniPC, linear_betas, make_plan
from fastdiff.diffusion.process import alpha, x_from_eps
from fastdiff.kernels import sampler_step

# raised by NumPy 2 inside diffusers' set_timesteps and DEIS, which hand it tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def used(scheduler, sigmas: torch.Tensor) -> torch.Tensor:
    """Give a scheduler its own sigmas in float64, the last first, after checking them; return them."""
    torch.testing.assert_close(scheduler.sigmas, sigmas.float(), rtol=2e-6, atol=0)
    scheduler.sigmas = sigmas
    return sigmas


def karras_sigmas(scheduler, steps: int, low: int) -> torch.Tensor:
    """Karras et al. 2022, eq. 5, from the last timestep to timestep ``low``, float64 [steps], rho = 7."""
    last, first = its_sigmas(scheduler, [low, 999]) ** (1.0 / 7.0)
    return (first + torch.arange(steps, dtype=torch.float64) / (steps - 1) * (last - first)) ** 7


def compare(scheduler, plan: Plan, exploding: bool = False) -> tuple[float, float, float]:
    """Run diffusers in float64 and ours; return the errors of single steps, of the trajectory, and of float64 rows.

    With ``exploding`` the scheduler's sample is z / alpha.
    """
    scale = alpha if exploding else torch.ones_like
    ours = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    its = double = ours.double()
    one, two, three = Memory(its), Memory(ours), Memory(double)
    worst = [0.0, 0.0, 0.0]
    gammas = [*plan.gamma, torch.tensor(float("-inf"), dtype=torch.float64)]
    for k, (t, row) in enumerate(zip(scheduler.timesteps, plan.table, strict=True)):
        gamma, row_32 = plan.gamma[k], row.float()
        eps_hat = two_points(its, gamma)
        single, _ = sampler_step(its.float(), eps_hat.float(), row_32, **one.rounded(plan))
        one.add(its, x_from_eps(its, eps_hat, gamma))
        step_from = its / scale(gamma)
        if exploding:
            scheduler.scale_model_input(step_from, t)
        its = scheduler.step(eps_hat, t, step_from).prev_sample
        after = gammas[k + 1] if k + 1 < len(plan.gamma) or not exploding else gammas[-1]
        its = its * scale(after)
        z_s, x_hat = sampler_step(ours, two_points(ours, gamma).float(), row_32, **two.rounded(plan))
        two.add(ours, x_hat)
        ours = z_s
        x_double = x_from_eps(double, two_points(double, gamma), gamma)
        z_s = row[2] * double + row[3] * x_double + three.combined(plan, row)
        three.add(double, x_double)
        double = z_s
        worst = [
            max(pair) for pair in zip(worst, (error(single, its), error(ours, its), error(double, its)), strict=True)
        ]
    return worst[0], worst[1], worst[2]


class Memory:
    """The last three estimates and two latents of a run."""

    def __init__(self, z: torch.Tensor) -> None:
        self.estimates, self.latents = [torch.zeros_like(z)] * 3, [torch.zeros_like(z)] * 2

    def add(self, z: torch.Tensor, x_hat: torch.Tensor) -> None:
        self.estimates, self.latents = [x_hat, *self.estimates[:2]], [z, self.latents[0]]

    def read(self, plan: Plan) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The values that C_1, C_2, C_3 and D multiply."""
        third = self.latents[1] if plan.third_is_latent else self.estimates[2]
        return [*self.estimates[:2], third], self.latents[0]

    def rounded(self, plan: Plan) -> dict:
        history, z_prev = self.read(plan)
        return {"history": [value.float() for value in history], "z_prev": z_prev.float()}

    def combined(self, plan: Plan, row: torch.Tensor) -> torch.Tensor:
        history, z_prev = self.read(plan)
        return sum(c * value for c, value in zip(row[6:], [*history, z_prev], strict=True))  # pyright: ignore


UNIPC = {
    f"{order}{'' if corrector else ' without corrector'} {solver}": (order, corrector, solver)
    for order, corrector, solver in [
        (1, True, "bh2"), (2, True, "bh2"), (3, True, "bh2"), (3, False, "bh2"), (2, False, "bh2"), (1, True, "bh1"),
        (2, True, "bh1"), (3, True, "bh1"), (2, False, "bh1"),
    ]
}  # fmt: skip


def unipc_scheduler(steps: int, order: int = 3, corrector: bool = True, solver: str = "bh2", **options):
    scheduler = in_float64(
        diffusers.UniPCMultistepScheduler(
            **BETAS, solver_order=order, solver_type=solver, disable_corrector=[] if corrector else list(range(steps)),
            **options,
        )
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    return scheduler


def check(worst: tuple[float, float, float], rounded: float = 0.0) -> None:
    single, trajectory, double = worst
    assert single < 4e-6
    assert trajectory < 1e-5
    assert double < 1e-12 + rounded


@pytest.mark.parametrize("steps", [5, 10, 37])
@pytest.mark.parametrize("setting", UNIPC)
def test_unipc_is_unipc(setting, steps):
    """The whole chain of a DDPM, whose last row gives x_hat: diffusers' step to sigma = 0."""
    scheduler = unipc_scheduler(steps, *UNIPC[setting])
    used(scheduler, torch.cat([its_sigmas(scheduler, scheduler.timesteps), torch.zeros(1, dtype=torch.float64)]))
    order, corrector, solver = UNIPC[setting]
    sampler = UniPC(order=order, corrector=corrector, solver=solver)
    check(compare(scheduler, plan_at(our_gamma(scheduler.timesteps), sampler, to_x=True)))


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_to_the_last_noise_level(order, lower):
    """A chain that ends at timestep 0, with and without lower orders at its end."""
    scheduler = unipc_scheduler(12, order, final_sigmas_type="sigma_min", lower_order_final=lower)
    times = [*scheduler.timesteps.tolist(), 0]
    used(scheduler, its_sigmas(scheduler, times))
    check(compare(scheduler, plan_at(our_gamma(times), UniPC(order=order, lower_order_final=lower))))


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("steps", [5, 14, 15, 37])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_deis(order, steps, lower):
    """diffusers' DEIS ends at timestep 0."""
    scheduler = in_float64(diffusers.DEISMultistepScheduler(**BETAS, solver_order=order, lower_order_final=lower))
    scheduler.set_timesteps(steps)
    times = [*scheduler.timesteps.tolist(), 0]
    used(scheduler, its_sigmas(scheduler, times))
    check(compare(scheduler, plan_at(our_gamma(times), DEIS(order=order, lower_order_final=lower))))


def karras_plan(sampler: Sampler, steps: int) -> Plan:
    return make_plan(sampler, BetaSchedule(linear_betas()), steps, network_decoder=True)


@pytest.mark.parametrize("steps", [9, 12, 40])
def test_karras_noise_levels(steps):
    """Our spacing "karras" of a DDPM is diffusers' ``use_karras_sigmas``, with its step to sigma = 0.

    diffusers' Euler rounds its sample to float32 at every step. Measured against it in float64: 1.1e-6.
    """
    zero = torch.zeros(1, dtype=torch.float64)
    scheduler = unipc_scheduler(steps, use_karras_sigmas=True)
    used(scheduler, torch.cat([karras_sigmas(scheduler, steps, 0), zero]))
    check(compare(scheduler, karras_plan(UniPC(spacing="karras"), steps)))
    scheduler = in_float64(diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True))
    scheduler.set_timesteps(steps)
    used(scheduler, torch.cat([karras_sigmas(scheduler, steps, 0), zero]))
    check(compare(scheduler, karras_plan(Euler(spacing="karras"), steps), exploding=True), 2e-6)
    scheduler = in_float64(diffusers.HeunDiscreteScheduler(**BETAS, use_karras_sigmas=True))
    scheduler.set_timesteps(steps)
    sigmas = karras_sigmas(scheduler, steps, 0)
    used(scheduler, torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2), zero]))
    check(compare(scheduler, karras_plan(Heun(spacing="karras"), steps), exploding=True))


def test_a_step_of_length_zero():
    """diffusers' last step from Karras's noise levels, where the last two are equal."""
    scheduler = diffusers.DEISMultistepScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(9)
    z = before = torch.randn(SHAPE)
    for t in scheduler.timesteps:
        before, z = z, scheduler.step(0.1 * z, t, z).prev_sample
    torch.testing.assert_close(z, before, rtol=1e-6, atol=0)
    options = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "lower_order_final": False}
    scheduler = unipc_scheduler(9, **options)
    for t in scheduler.timesteps:
        z = scheduler.step(0.1 * z, t, z).prev_sample
    assert z.isnan().all()
