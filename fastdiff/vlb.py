"""The variational bound: its three terms per sample, and the pieces that every model's bound is made of.

    -log p(x) <= recon + prior + diffusion,
    recon = E[-log p(x | z_0)],  prior = KL(q(z_1 | x) || N(0, 1)),  diffusion = the sum over the steps between

All terms are nats per sample, float32 [B]. `Vlb.bpd` is the one place where bits appear.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels import Noise, Stream


@dataclass(frozen=True)
class Vlb:
    """The negative evidence lower bound of a batch: three terms in nats, each float32 [B]."""

    recon: Tensor
    prior: Tensor
    diffusion: Tensor

    @property
    def total(self) -> Tensor:
        """recon + prior + diffusion, in nats, [B]."""
        return self.recon + self.prior + self.diffusion

    def detach(self) -> "Vlb":
        """Return the same terms without a graph."""
        return Vlb(self.recon.detach(), self.prior.detach(), self.diffusion.detach())

    def bpd(self, dims: int) -> "Vlb":
        """Return the same terms in bits per dimension, for data of ``dims`` dimensions."""
        bits = 1.0 / (dims * math.log(2.0))
        return Vlb(self.recon * bits, self.prior * bits, self.diffusion * bits)


@dataclass(frozen=True)
class Objective:
    """What one training step minimises, and the bound that the same draws estimate.

    loss: [B], with a graph; vlb: in nats, without one. They are the same number where the loss is the bound.
    """

    loss: Tensor
    vlb: Vlb


LOSSES = ("elbo", "simple", "min-snr", "sigmoid")


def loss_weight(name: str, gamma: Tensor, slope: Tensor) -> Tensor:
    """The factor of |eps - eps_hat|² in a training loss, where the times are uniform in t; like gamma in shape.

    All are ½ w(gamma) gamma'(t) (Kingma and Gao 2023, Understanding diffusion objectives as the ELBO):

    - ``"elbo"``: w = 1, the bound itself, ½ gamma';
    - ``"simple"``: w = 2 / gamma', so that the factor is 1 (Ho et al. 2020, L_simple);
    - ``"min-snr"``: min(SNR, 5) / SNR, L_simple less its weight near the data (Hang et al. 2023);
    - ``"sigmoid"``: w = sigmoid(2 + gamma), monotone in gamma (Kingma and Gao 2023).

    Args:
        name: one of `LOSSES`.
        gamma, slope: gamma(t) and gamma'(t); at finite T the slope is T expm1(gamma_t - gamma_s).

    Raises:
        ValueError: an unknown name.
    """
    if name == "elbo":
        return 0.5 * slope
    if name == "simple":
        return torch.ones_like(slope)
    if name == "min-snr":
        return torch.exp(torch.clamp(gamma + math.log(5.0), max=0.0))
    if name == "sigmoid":
        return 0.5 * slope * torch.sigmoid(2.0 + gamma)
    raise ValueError(f"unknown loss {name!r}; allowed: {', '.join(LOSSES)}")


def check_steps(where: str, steps: int | None, least: int = 1) -> None:
    """Check T: an integer of at least ``least``, or None for continuous time.

    Raises:
        ValueError: anything else.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < least):
        raise ValueError(f"{where}: steps is {steps!r}; allowed: an integer >= {least}, or None for continuous time")


def prior_nats(x: Tensor, gamma_1: Tensor) -> Tensor:
    """KL(q(z_1 | x) || N(0, 1)) = ½ Σ [alpha_1² (x² - 1) + softplus(-gamma_1)], [B], for centred x [B, ...].

    The same as ½ Σ [(1 - sigma_1²) x² + sigma_1² - ln sigma_1² - 1], without its cancellation; gamma_1 is a scalar or
    broadcasts to x.
    """
    per_element = torch.sigmoid(-gamma_1) * (x.square() - 1.0) + torch.nn.functional.softplus(-gamma_1)
    return 0.5 * per_element.flatten(1).sum(1)


def stratified_times(noise: Noise, batch: int, total: int | None = None) -> Tensor:
    """Return u_i = (u_0 + i / total) mod 1 for the samples i of a batch, float64 [B] in [0, 1).

    ``i`` counts from ``noise.first_sample``; u_0 depends on the seed and the step alone, so it is one for all batches
    of ``total`` samples (default: the batch itself).
    """
    first = noise.key[2]
    u_0 = noise.at(first_sample=0, stream=Stream.TIMES).uniform((1, 1)).double().squeeze()
    index = first + torch.arange(batch, device=noise.key.device)
    return (u_0 + index.double() / (total or max(batch, 1))).remainder(1.0)


def independent_times(noise: Noise, batch: int) -> Tensor:
    """Return a uniform time for every sample of a batch, drawn on its own, float64 [B] in [0, 1)."""
    return noise.at(stream=Stream.TIMES).uniform((batch, 1)).double().squeeze(1).remainder(1.0)


def finite_times(u: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return (s, t) of the step that u in [0, 1) falls on: t = i / steps, s = t - 1 / steps, i = 1 + floor(u steps)."""
    i = torch.floor(u * steps).clamp_(max=steps - 1)
    return i / steps, (i + 1.0) / steps
