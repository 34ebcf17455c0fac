"""The probability-flow ODE and its likelihood, an estimate independent of the variational bound.

Along gamma, from the data to the noise, the latents of the variance-preserving process follow

    dz / d gamma = ½ (sigma eps_hat(z, gamma) - sigma² z)

with the same marginals as the diffusion (Song et al. 2021, Score-based generative modeling through stochastic
differential equations, section 4.3), and log p(z_0) = log N(z_1; 0, 1) + the integral of the divergence.
"""

import math

import torch
from torch import Tensor

from ..diffusion import gamma_table
from ..diffusion.process import sigma
from ..kernels import InvalidValueError, Noise, Stream, diffuse, to_unit_range
from ..models import Diffusion


def check_integrator(steps: int) -> None:
    """Check a number of integration steps.

    Raises:
        InvalidValueError: not an integer >= 1.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidValueError(f"probability-flow ODE: steps must be an integer >= 1, got {steps!r}")


def ode_log_density(
    model: Diffusion,
    z_0: Tensor,
    noise: Noise,
    steps: int = 64,
    labels: Tensor | None = None,
    spacing: str = "gamma",
) -> Tensor:
    """Return log p(z_0) in nats under the probability-flow ODE, float64 [B].

    The divergence is Hutchinson's estimate with one Rademacher probe per sample, fixed along the path (Grathwohl et al.
    2019). The integrator is the classical Runge-Kutta method of order 4; each step calls the network and its gradient
    four times. The result is unbiased up to the error of the integrator.

    Args:
        model: the model, in eval mode.
        z_0: latents at t = 0, float32 [B, C, H, W].
        noise: of the probes; sample b is ``noise.first_sample + b``.
        steps: number of integration steps, >= 1.
        labels: int64 [B], or None.
        spacing: of the steps, one of `fastdiff.diffusion.SPACINGS`.

    Raises:
        InvalidValueError: steps below 1, or an unknown spacing.
        RuntimeError: under torch.inference_mode, where there are no gradients.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("ode_log_density computes gradients and cannot run under torch.inference_mode")
    check_integrator(steps)
    u = noise.at(stream=Stream.PROBE).uniform(z_0.shape, device=z_0.device)
    probe = torch.where(u <= 0.5, 1.0, -1.0)
    z = z_0.detach().float()
    integral = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    gamma = gamma_table(model.gamma, steps, spacing)

    def flow(z: Tensor, at: float) -> tuple[Tensor, Tensor]:
        """Return dz / d gamma, and the estimate of its divergence."""
        gamma_t = z.new_full((len(z),), at)
        scale = float(sigma(torch.tensor(at, dtype=torch.float64, device="cpu")))
        with torch.enable_grad():
            inputs = z.requires_grad_()
            velocity = 0.5 * scale * (model.eps_hat(inputs, gamma_t, labels) - scale * inputs)
            product = torch.autograd.grad(velocity, inputs, probe)[0]  # probeᵀ Jacobian
        return velocity.detach(), (product * probe).double().flatten(1).sum(1)

    for low, high in zip(gamma[:-1].tolist(), gamma[1:].tolist(), strict=True):
        h, middle = high - low, 0.5 * (low + high)
        v_1, d_1 = flow(z, low)
        v_2, d_2 = flow(z.detach() + 0.5 * h * v_1, middle)
        v_3, d_3 = flow(z.detach() + 0.5 * h * v_2, middle)
        v_4, d_4 = flow(z.detach() + h * v_3, high)
        z = z.detach() + h / 6.0 * (v_1 + 2.0 * v_2 + 2.0 * v_3 + v_4)
        integral += h / 6.0 * (d_1 + 2.0 * d_2 + 2.0 * d_3 + d_4)
    log_prior = -0.5 * (z.double().square() + math.log(2.0 * math.pi)).flatten(1).sum(1)
    return log_prior + integral


def ode_nats(model: Diffusion, x: Tensor, noise: Noise, steps: int = 64, labels: Tensor | None = None) -> Tensor:
    """Return one draw of the ODE's upper bound on -log p(x) of discrete data, in nats, float64 [B].

    E_{q(z_0 | x)} [log q(z_0 | x) - log p_ODE(z_0) - log p(x | z_0)] combines the ODE's density of z_0 with the model's
    decoder, since a density of z_0 alone is not a likelihood of discrete data.

    Args:
        model: the model, in eval mode.
        x: data uint8 [B, C, H, W] in [0, levels).
        noise: of z_0 and of the probes.
        steps: of the integrator.
        labels: int64 [B], or None.

    Raises:
        InvalidTypeError, InvalidValueError: images, labels or steps that do not fit.
    """
    model.check_images("ode_nats", x)
    gamma_0 = model.gamma.endpoints()[0].detach()
    eps = noise.at(stream=Stream.RECON)
    z_0 = diffuse(to_unit_range(x, model.levels), gamma_0.expand(len(x)), eps)
    drawn = eps.normal(x.shape, device=x.device).double()
    log_q = -0.5 * (drawn.square() + math.log(2.0 * math.pi)).flatten(1).sum(1)
    log_q = log_q - model.dims * math.log(float(sigma(gamma_0.double())))
    with torch.no_grad():
        recon = model.recon_nats(x, z_0, labels).double()
    return log_q - ode_log_density(model, z_0, noise, steps, labels) + recon
