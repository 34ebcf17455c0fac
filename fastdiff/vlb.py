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

    def bpd(self, dims: int) -> "Vlb":
        """Return the same terms in bits per dimension, for data of ``dims`` dimensions."""
        bits = 1.0 / (dims * math.log(2.0))
        return Vlb(self.recon * bits, self.prior * bits, self.diffusion * bits)


def prior_nats(x: Tensor, gamma_1: Tensor) -> Tensor:
    """KL(q(z_1 | x) || N(0, 1)) = ½ Σ [alpha_1² (x² - 1) + softplus(-gamma_1)], [B], for centred x [B, ...].

    The same as ½ Σ [(1 - sigma_1²) x² + sigma_1² - ln sigma_1² - 1], without its cancellation.
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


def finite_times(u: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return (s, t) of the step that u in [0, 1) falls on: t = i / steps, s = t - 1 / steps, i = 1 + floor(u steps)."""
    i = torch.floor(u * steps).clamp_(max=steps - 1)
    return i / steps, (i + 1.0) / steps
