"""diffusers' schedulers in float64, and what a comparison with them needs. A test skips without diffusers.

The oracle is diffusers' formulas: `in_float64` gives its schedulers tables in float64, made from its own configuration.
diffusers' timestep t = 0 .. 999 is our t / 999.
"""

import pytest
import torch

from fastdiff.diffusion import BetaSchedule, linear_betas
from fastdiff.diffusion.process import alpha, sigma

diffusers = pytest.importorskip("diffusers")

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
SHAPE = (4, 3, 5, 5)
STEP, TRAJECTORY = 1e-6, 3e-6  # tolerances of z of order 1


def in_float64(scheduler):
    config = scheduler.config
    betas = torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64)
    torch.testing.assert_close(scheduler.betas, betas.float())
    scheduler.betas, scheduler.alphas = betas, 1.0 - betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
    if isinstance(scheduler, diffusers.DDIMScheduler) and not config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def its_gamma(scheduler, t) -> torch.Tensor:
    """-log(alpha² / sigma²) at diffusers' timesteps, from its table."""
    kept = scheduler.alphas_cumprod[t]
    return -torch.log(kept / (1.0 - kept))


def its_sigmas(scheduler, timesteps) -> torch.Tensor:
    """e^{gamma / 2} in float64: set_timesteps makes them float32."""
    kept = scheduler.alphas_cumprod[torch.as_tensor(timesteps).long()]
    return ((1.0 - kept) / kept).sqrt()


def our_gamma(timesteps) -> torch.Tensor:
    """float64, increasing, from timesteps in any order."""
    t = torch.as_tensor(timesteps).double().sort().values
    return BetaSchedule(linear_betas())(t / 999.0)


def two_points(z_t: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """The exact eps_hat, float64, where every pixel is -1 or 1: x_hat = tanh(alpha z_t / sigma²)."""
    z_t = z_t.double()
    return (z_t - alpha(gamma) * torch.tanh(alpha(gamma) / sigma(gamma) ** 2 * z_t)) / sigma(gamma)


def error(ours: torch.Tensor, its: torch.Tensor) -> float:
    assert its.dtype == torch.float64  # or the oracle had rounded as we did
    return float((ours.double() - its).abs().max())
