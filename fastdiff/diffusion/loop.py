"""The sampling loop, the same for every diffusion model and every sampler: one row of coefficients per step."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import FastdiffError, Noise, Stream, reparameterize, sampler_step
from .plan import C_1, D, Plan, S

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
Callback = Callable[[int, int, Tensor, Tensor], object]


class SamplingError(FastdiffError, RuntimeError):
    """A sample that is not finite."""


@torch.no_grad()
def sample_latents(
    predict: Predict,
    initial: Tensor,
    plan: Plan,
    noise: Noise,
    unconditional: Predict | None = None,
    shared_noise: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Run a sampler from z_1 to its end, float32 [B, C, H, W].

    Args:
        predict: ``predict(z_t, gamma)``, for z_t [B, C, H, W] and gamma [B], returns eps_hat like z_t and v in [0, 1],
            which interpolates the log-variances, for a model with learned variances; else None.
        initial: z_1, float32 [B, C, H, W].
        plan: the steps (`fastdiff.diffusion.make_plan`).
        noise: the step noise; ``first_sample`` is the index of the batch's first sample in the request.
        unconditional: `predict` without labels, for classifier-free guidance by the plan's column w.
        shared_noise: use the noise of the first sample for the whole batch.
        callback: called after each row as ``callback(step, nfe, z, x_hat)``, with contiguous tensors: copies where z is
            channels-last, so that changes in place may not reach the sampler.

    Raises:
        SamplingError: the result is not finite.
    """
    device, table = initial.device, plan.table.float()
    stochastic, remembered = bool((table[:, S] != 0).any()), _remembered(table)
    keeps_latent, keeps_x_hat = bool((table[:, D] != 0).any()), remembered > 0 or callback is not None
    rows, gamma = table.to(device), plan.gamma.float().to(device)
    bounds = None if plan.log_variance is None else plan.log_variance.float().to(device)
    z, history = initial, [torch.zeros_like(initial)] * remembered
    z_prev = torch.zeros_like(initial) if keeps_latent else None
    eps = noise.to(device).at(step=0, stream=Stream.SAMPLER)  # its counter on the device selects the row
    for row in range(len(rows)):
        gamma_t = gamma.index_select(0, eps.counter).expand(len(z))
        eps_hat, v = predict(z, gamma_t)
        eps_hat_uncond = None if unconditional is None else unconditional(z, gamma_t)[0]
        step_noise = eps.normal((1, *z.shape[1:])).expand_as(z) if shared_noise else eps
        z_s, x_hat = sampler_step(
            z, eps_hat, rows, step_noise if stochastic else None, clip=1.0 if plan.clip_denoised else None,
            history=history, z_prev=z_prev, eps_hat_uncond=eps_hat_uncond, step=eps.counter, keep_x_hat=keeps_x_hat,
        )  # fmt: skip
        if bounds is not None:
            z_s = _add_learned_noise(z_s, bounds.index_select(0, eps.counter), v, step_noise)
        z_prev, z = (z if keeps_latent else None), z_s
        if x_hat is not None:
            history = [x_hat, *history][:remembered]
            if callback is not None:
                calls = (row + 1) * (1 if unconditional is None else 2)
                callback(row // plan.calls_per_step, calls, z.contiguous(), x_hat.contiguous())
        eps.advance()
    return _finite(z, len(rows))


def _remembered(table: Tensor) -> int:
    """Return how many previous estimates x_hat the rows read: the largest k with C_k != 0."""
    used = (table[:, C_1:D] != 0).any(0).tolist()
    return max((k for k, is_used in enumerate(used, 1) if is_used), default=0)


def _add_learned_noise(mean: Tensor, bounds: Tensor, v: Tensor | None, noise: Tensor | Noise) -> Tensor:
    """Return z_s = mean + exp(½ log-variance) eps, the log-variance interpolated by v (Nichol and Dhariwal, eq. 15)."""
    assert v is not None, "a plan with learned variances needs a model that predicts v"
    low, high = bounds.unbind(1)
    return reparameterize(mean, torch.lerp(low, high, v), noise)[0]


def _finite(z: Tensor, calls: int) -> Tensor:
    if not torch.isfinite(z).all():
        raise SamplingError(
            f"the sample is not finite after {calls} calls of the network; "
            "check the weights, the schedule, the temperature and the guidance weight"
        )
    return z
