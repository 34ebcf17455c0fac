"""The variational upper bound on -log p(x): its three terms, training losses and the sampling of times.

    -log p(x) <= recon + prior + diffusion,
    recon = E[-log p(x | z_0)],  prior = KL(q(z_1 | x) || N(0, I)),  diffusion = the KL terms of the steps in between

All terms are nats per sample, float32 [B]. `Vlb.bpd` is the one place where bits appear.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import InvalidValueError, Noise, Stream


@dataclass(frozen=True)
class Vlb:
    """An upper bound on -log p(x) in nats, the negative ELBO: three terms, each float32 [B]."""

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
    """The training loss of a batch, and the bound estimated from the same draws.

    loss: [B], differentiable; vlb: in nats, detached. They are equal if the loss is the bound. gamma: float32 [B],
    where the diffusion term of each sample was taken, detached; None for a model without a diffusion.
    """

    loss: Tensor
    vlb: Vlb
    gamma: Tensor | None = None


LOSSES = ("elbo", "simple", "min-snr", "sigmoid", "flow", "edm")
EDM_GAMMA = (-2.4, 2.4)  # mean and deviation of gamma = 2 ln sigma in EDM: ln sigma ~ N(-1.2, 1.2²)
EDM_VARIANCE = 0.25  # sigma_data² of the weight


def loss_weight(name: str, gamma: Tensor, slope: Tensor) -> Tensor:
    """Return the factor of |eps - eps_hat|² in a training loss with times uniform in t; of the shape of gamma.

    All are ½ w(gamma) gamma'(t) (Kingma and Gao 2023, Understanding diffusion objectives as the ELBO):

    - ``"elbo"``: w = 1, the bound itself, ½ gamma';
    - ``"simple"``: w = 2 / gamma', so that the factor is 1 (Ho et al. 2020, L_simple);
    - ``"min-snr"``: min(SNR, 5) / SNR, L_simple with less weight near the data (Hang et al. 2023);
    - ``"sigmoid"``: w = sigmoid(2 + gamma), monotone in gamma (Kingma and Gao 2023);
    - ``"flow"``: w = e^{gamma / 2}, flow matching: the mean over t is the integral of |u - u_hat|², u = eps - x, over
      tau = sigma / (alpha + sigma) (Lipman et al. 2023);
    - ``"edm"``: w = 2 N(gamma; -2.4, 2.4²) (1 + e^gamma / 0.25), the loss of EDM: the mean over t is that of
      (s² + 0.25) / (0.25 s²) |x - x_hat|² over ln s ~ N(-1.2, 1.2²), s = sigma / alpha (Karras et al. 2022, table 1).

    The last two are the losses of their papers, restricted to the schedule's range of gamma; the weights are those of
    Kingma and Gao (2023, table 1) times 1 and times 8.

    Args:
        name: one of `LOSSES`.
        gamma, slope: gamma(t) and gamma'(t); at finite T the slope is T expm1(gamma_t - gamma_s).

    Raises:
        InvalidValueError: an unknown name.
    """
    if name == "elbo":
        return 0.5 * slope
    if name == "simple":
        return torch.ones_like(slope)
    if name == "min-snr":
        return torch.exp(torch.clamp(gamma + math.log(5.0), max=0.0))
    if name == "sigmoid":
        return 0.5 * slope * torch.sigmoid(2.0 + gamma)
    if name == "flow":
        return 0.5 * slope * torch.exp(0.5 * gamma)
    if name == "edm":
        mean, deviation = EDM_GAMMA
        log_weight = F.softplus(gamma - math.log(EDM_VARIANCE)) - 0.5 * ((gamma - mean) / deviation).square()
        return slope * torch.exp(log_weight) / (deviation * math.sqrt(2.0 * math.pi))
    raise InvalidValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")


def check_T(where: str, T: int | None, least: int = 1) -> None:
    """Check the number of steps of a bound: an integer >= ``least``, or None for continuous time.

    Raises:
        InvalidValueError: anything else.
    """
    if T is not None and (isinstance(T, bool) or not isinstance(T, int) or T < least):  # noqa: SIM300
        raise InvalidValueError(f"{where}: T must be an integer >= {least}, or None for continuous time, got {T!r}")


def prior_nats(x: Tensor, gamma_1: Tensor) -> Tensor:
    """Return KL(q(z_1 | x) || N(0, I)) = ½ Σ [alpha_1² (x² - 1) + softplus(-gamma_1)], [B], for x [B, ...] in [-1, 1].

    This equals ½ Σ [(1 - sigma_1²) x² + sigma_1² - ln sigma_1² - 1] without its cancellation. gamma_1 is a scalar, or
    broadcasts to x.
    """
    per_element = torch.sigmoid(-gamma_1) * (x.square() - 1.0) + F.softplus(-gamma_1)
    return 0.5 * per_element.flatten(1).sum(1)


def stratified_times(noise: Noise, batch: int, total: int | None = None) -> Tensor:
    """Return u_i = (u_0 + i / total) mod 1 for the samples i of a batch, float64 [B] in [0, 1).

    ``i`` counts from ``noise.first_sample``. u_0 depends on the seed and the step alone, so all batches of the same
    ``total`` samples share it (default: the batch itself).
    """
    first = noise.key[2]
    u_0 = noise.at(first_sample=0, stream=Stream.TIMES).uniform((1, 1)).double().squeeze()
    index = first + torch.arange(batch, device=noise.key.device)
    return (u_0 + index.double() / (total or max(batch, 1))).remainder(1.0)


def independent_times(noise: Noise, batch: int) -> Tensor:
    """Return independent uniform times, float64 [B] in [0, 1)."""
    return noise.at(stream=Stream.TIMES).uniform((batch, 1)).double().squeeze(1).remainder(1.0)


def training_times(noise: Noise, batch: int, stratified: bool, total: int | None = None) -> Tensor:
    """Return the times of a training batch: `stratified_times`, or `independent_times`."""
    return stratified_times(noise, batch, total) if stratified else independent_times(noise, batch)


def finite_times(u: Tensor, num_transitions: int) -> tuple[Tensor, Tensor]:
    """Return (s, t) of the transition that u in [0, 1) selects: t = i / n, s = t - 1 / n, i = 1 + floor(u n)."""
    i = torch.floor(u * num_transitions).clamp_(max=num_transitions - 1)
    return i / num_transitions, (i + 1.0) / num_transitions
