"""Dequantisation: distributions q(z_0 | x) that turn a density of z_0 into a bound on the probability of discrete data.

Level k of a pixel lies at x_k = c ((2 k + 1) / levels - 1), and its bin is x_k ± c / levels, with the model's
``pixel_scale`` c, which is 1 but for models of other libraries. With a density p(z_0):

- ``"normal"``: q = N(alpha_0 x, sigma_0²), and P(x) = ∫ p(z_0) p(x | z_0) d z_0 with the model's decoder;
- ``"truncated-normal"``: z_0 = alpha_0 x + sigma_0 eps, eps standard normal given that |eps| <= tau,
  tau = c alpha_0 / (levels sigma_0), so that z_0 / alpha_0 stays in the bin of x (Zheng et al. 2023, Improved
  techniques for maximum likelihood estimation for diffusion ODEs);
- ``"uniform"``: z_0 / alpha_0 is uniform in the bin (Theis et al. 2016, A note on the evaluation of generative models).

In the last two P(x) is the integral of p over the bin, and there is no decoder. The first and the last bin are finite
here, so P may sum to less than 1 over all x: the mass of p outside [-c alpha_0, c alpha_0] is given to no image. With
bins that extend to infinity P(x) would be larger, so the bound holds for that model too.
"""

import math

import torch
from torch import Tensor

from ..kernels import InvalidValueError, Noise, Stream, diffuse
from ..models import Diffusion

DEQUANTIZATIONS = ("normal", "truncated-normal", "uniform")


def check_dequantization(name: str) -> None:
    """Check the name of a dequantisation.

    Raises:
        InvalidValueError: an unknown name.
    """
    if name not in DEQUANTIZATIONS:
        allowed = ", ".join(DEQUANTIZATIONS)
        raise InvalidValueError(f"probability-flow ODE: dequantization must be one of {allowed}, got {name!r}")


@torch.no_grad()
def dequantize(
    name: str, model: Diffusion, x: Tensor, noise: Noise, labels: Tensor | None = None, repeat: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw z_0 ~ q(z_0 | x), and return it with log q(z_0 | x) - log p(x | z_0) in nats.

    Args:
        name: one of `DEQUANTIZATIONS`.
        model: its schedule gives alpha_0 and sigma_0, and for ``"normal"`` its decoder p(x | z_0).
        x: data uint8 [B, C, H, W] in [0, levels).
        noise: of the draws; sample b is ``noise.first_sample + b``.
        labels: int64 [B] for the decoder, or None.
        repeat: number of the draw among the repeated draws of the same samples.

    Returns:
        z_0 [B, C, H, W], float32 for ``"normal"`` and float64 otherwise, and float64 [B]. Without a decoder
        log p(x | z_0) = 0.
    """
    noise = noise.at(stream=Stream.RECON + 256 * repeat)
    gamma_0 = model.gamma.endpoints()[0].detach()
    log_alpha, log_sigma = (-0.5 * torch.nn.functional.softplus(s * gamma_0.double()) for s in (1.0, -1.0))
    if name == "normal":
        z_0 = diffuse(model.to_unit(x), gamma_0.expand(len(x)), noise)
        eps = noise.normal(x.shape, device=x.device).double()
        log_q = -0.5 * (eps.square() + math.log(2.0 * math.pi)).flatten(1).sum(1) - model.dims * log_sigma
        return z_0, log_q + model.recon_nats(x, z_0, labels).double()
    half = model.pixel_scale / model.levels  # half the width of a bin
    data = half * (2.0 * x.double() + 1.0 - model.levels)
    if name == "uniform":
        u = noise.uniform(x.shape, device=x.device).double()
        log_width = math.log(2.0 * half) + log_alpha
        return log_alpha.exp() * (data + half * (2.0 * u - 1.0)), (-model.dims * log_width).expand(len(x))
    tau = torch.exp(-0.5 * gamma_0.double()) * half
    eps = truncated_normal(noise, x, tau)
    log_mass = torch.log(torch.erf(tau / math.sqrt(2.0)))
    log_q = -0.5 * (eps.square() + math.log(2.0 * math.pi)).flatten(1).sum(1) - model.dims * (log_sigma + log_mass)
    return log_alpha.exp() * data + log_sigma.exp() * eps, log_q


def truncated_normal(noise: Noise, like: Tensor, tau: Tensor) -> Tensor:
    """Draw standard normals given that they lie in [-tau, tau], float64 of the shape [B, ...] of ``like``.

    By inversion in the lower tail, where both the distribution function and its inverse keep their relative accuracy:
    one uniform number u in (0, 1] gives |eps| = -ndtri(Phi(-tau) + u (½ - Phi(-tau))), another one the sign.
    """
    u, v = noise.uniform((len(like), 2, *like.shape[1:]), device=like.device).unbind(1)
    outside = torch.special.ndtr(-tau)
    size = -torch.special.ndtri(outside + u.double() * (0.5 - outside))
    size = torch.minimum(size.clamp(min=0.0), tau)  # rounding
    return torch.where(v <= 0.5, size, -size)
