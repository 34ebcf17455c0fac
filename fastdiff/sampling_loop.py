"""The sampling loop: one for every diffusion model and every sampler, a row of coefficients a step."""

from typing import Any

import torch
from torch import Tensor

from .kernels import Noise, Stream, reparameterize, sampler_step
from .models import DiffusionModel
from .samplers import SAMPLERS, VARIANCES, Plan, plan
from .schedules import GRIDS, BetaSchedule, gamma_table, linear_betas


class SamplingError(RuntimeError):
    """A sample that is not finite."""


def sampling_plan(
    model: DiffusionModel,
    steps: int,
    sampler: str = "ancestral",
    eta: float | None = None,
    grid: str | None = None,
    variance: str | None = None,
    betas: tuple[float, float] | None = None,
) -> Plan:
    """Return what `sample_latents` does for a model: `fastdiff.samplers.plan` on the model's schedule.

    Args:
        model: the diffusion model.
        steps: calls of the network (half of them with Heun), at least 1, or 2 for a decoder that asks the network.
        sampler, eta, variance: see `fastdiff.samplers.plan`; by default the model's own variance.
        grid: where the steps are, one of `fastdiff.schedules.GRIDS`; ``"time"`` by default.
        betas: the first and the last of evenly spaced betas, ``steps`` of them, whose noise levels are taken instead of
            the model's: few-step chains such as (1e-6, 0.8) at 10 steps (DiffuseVAE, Pandey et al. 2022), for a model
            whose decoder asks the network. One that was trained at all noise levels (`DDPMConfig.continuous`) knows
            them. With so long steps the variance of ancestral sampling matters: beta ("large") leaves noise, the
            posterior's ("small") takes away from the variety; see docs/speed-up.md for the latter.

    Raises:
        ValueError: too few steps, unknown names, eta or a variance that does not go with the sampler or the model,
            betas outside (0, 1), of another kind of model or beside a grid.
    """
    for name, value, allowed in (("sampler", sampler, SAMPLERS), ("grid", grid, (None, *GRIDS))):
        if value not in allowed:
            raise ValueError(f"sample: unknown {name} {value!r}; allowed: {', '.join(filter(None, allowed))}")
    if variance not in (None, *VARIANCES):
        raise ValueError(f"sample: unknown variance {variance!r}; allowed: {', '.join(VARIANCES)}")
    if variance is not None and sampler != "ancestral":
        raise ValueError(f"sample: variance is {variance!r} for the sampler {sampler!r}; allowed: with ancestral")
    if variance == "learned" and model.variance != "learned":
        raise ValueError("sample: variance is 'learned' for a model that has not learned it; allowed: small, large")
    least = 1 + model.network_decoder
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
        raise ValueError(f"sample: steps is {steps!r}; allowed: an integer >= {least}")
    if betas is None:
        gamma = gamma_table(model.gamma, steps - model.network_decoder, grid or "time")
    else:
        gamma = _levels_of_betas(model, steps, betas, grid)
    own = model.variance if sampler == "ancestral" else "small"
    return plan(sampler, gamma, eta, variance or own, to_x=model.network_decoder)


def _levels_of_betas(model: DiffusionModel, steps: int, betas: tuple[float, float], grid: str | None) -> Tensor:
    """Gamma of a chain of ``steps`` linear betas, float64 [steps]."""
    if not model.network_decoder or grid is not None:
        raise ValueError(
            f"sample: betas is {betas!r} for a {model.kind}, with grid {grid!r}; "
            "allowed: for a DDPM or what refines with one, without a grid"
        )
    pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    if not pair or not all(isinstance(beta, (int, float)) for beta in betas) or not 0.0 < betas[0] <= betas[1] < 1.0:
        raise ValueError(f"sample: betas is {betas!r}; allowed: (first, last), numbers with 0 < first <= last < 1")
    return gamma_table(BetaSchedule(linear_betas(steps, *betas)), steps - 1)


@torch.no_grad()
def sample_latents(
    model: DiffusionModel,
    count: int,
    walk: Plan,
    noise: Noise,
    labels: Tensor | None = None,
    guidance: float | None = None,
    temperature: float = 1.0,
    clip: float | None = None,
    bar: Any = None,
    initial: Tensor | None = None,
    shared: bool = False,
) -> Tensor:
    """Run a sampler from z_1 ~ N(0, temperature²) to its end, float32 [count, C, H, W].

    Args:
        model: has ``predict(z_t, gamma, labels)``, ``shape``, ``device``, and ``offset``, a picture that its latents
            are shifted by, or None.
        walk: the sampler's rows, see `sampling_plan`.
        noise: whose first_sample is the index of the batch's first image in the request.
        labels, guidance: int64 [count] and a weight, or None.
        temperature, clip: factor on z_1; bound on |x_hat|, or None.
        bar: a progress bar to move on, or None.
        initial: z_1 itself (before the shift by ``offset``), [count, C, H, W], instead of drawing it.
        shared: whether all images take the noise of the first one, in z_1 and in every step.

    Raises:
        SamplingError: a latent that is not finite.
    """
    device, table = model.device, walk.table.float()
    stochastic, multistep = bool((table[:, 5] != 0).any()), bool((table[:, 4] != 0).any())
    noise, rows, gamma = noise.to(device), table.to(device), walk.gamma.float().to(device)
    bounds = None if walk.log_variance is None else walk.log_variance.float().to(device)
    drawn = 1 if shared else count
    if initial is None:
        initial = noise.at(stream=Stream.INITIAL).normal((drawn, *model.shape)).expand(count, *model.shape)
    offset = model.offset
    z = initial.to(device) * temperature + (0.0 if offset is None else offset)
    x_hat = torch.zeros_like(z) if multistep else None
    eps = noise.at(step=0, stream=Stream.SAMPLER)  # its counter leads the loop: the host names no step
    guidance = None if guidance == 1.0 else guidance  # the conditional model alone
    for _ in range(len(rows)):
        number = gamma.index_select(0, eps.counter).expand(count)
        latent = z if offset is None else z - offset
        eps_hat, fraction = model.predict(latent, number, labels)
        uncond = model.eps_hat(latent, number, None) if guidance is not None else None
        step_noise = eps.normal((1, *model.shape)).expand_as(z) if shared else eps
        z, x_hat = sampler_step(
            z, eps_hat, rows, step_noise if stochastic else None, clip=clip, x_prev=x_hat, offset=offset,
            eps_hat_uncond=uncond, guidance=guidance, step=eps.counter, keep_x_hat=multistep,
        )  # fmt: skip
        if bounds is not None:
            z = _add_noise(z, bounds.index_select(0, eps.counter), fraction, step_noise)
        eps.advance()
        if bar is not None:
            bar.update()
    return _finite(z, len(rows))


def _finite(z: Tensor, calls: int) -> Tensor:
    if not torch.isfinite(z).all():
        raise SamplingError(
            f"a sample is not finite after {calls} calls; the weights, the schedule, the temperature or the guidance "
            "are unsound"
        )
    return z


def _add_noise(mean: Tensor, bounds: Tensor, fraction: Tensor | None, noise: Tensor | Noise) -> Tensor:
    """z_s of a learned variance: the mean, and the network's own deviation times the noise."""
    if fraction is None:
        raise ValueError("sample_latents: a plan with learned variances for a model that has learned none")
    low, high = bounds.unbind(1)
    return reparameterize(mean, torch.lerp(low, high, fraction), noise)[0]
