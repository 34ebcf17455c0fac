"""The bound on -log P(x) of discrete data through the probability-flow ODE, with K importance samples.

    -log P(x) <= E[-log (1/K) Σ_k w_k],   w_k = p_ODE(z_k) p(x | z_k) / q(z_k | x),   z_k ~ q(z_0 | x)

(Burda et al. 2016, Importance weighted autoencoders), where q is a dequantisation (`dequantization`), and
p(x | z_k) = 1 where it has no decoder. The bound decreases in K and tends to -log P(x).

With Hutchinson's estimate log w_k carries a noise n_k of mean 0, and E e^{n_k} > 1: put into the sum, noisy weights
would give a number below the bound, which may lie below -log P(x). So for K > 1 the noisy log-weights enter linearly.
For any probabilities pi_k, log Σ_k w_k >= Σ_k pi_k log w_k + H(pi), with equality for pi_k ∝ w_k, H the entropy. Here
pi comes from all probes but one, and log w_k from that one, which is independent of pi; the mean over the probes left
out is a bound in expectation. The noise in pi makes it looser than the bound of the exact divergence: it need not
decrease in K, but its expectation is never below -log P(x).

All of this holds up to the error of the integrator, which has either sign and is large with few steps: compare a result
with that of twice as many.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import InvalidValueError, Noise
from ..models import Diffusion
from .dequantization import check_dequantization, dequantize
from .ode import check_integrator, log_densities


@dataclass(frozen=True)
class OdeBound:
    """How the bound through the ODE is computed.

    steps: of the integrator. dequantization: one of `DEQUANTIZATIONS`. samples: K. divergence, probes: see
    `ode_log_density`.

    Raises:
        InvalidValueError: a number below 1, an unknown name, probes for the exact divergence, or samples > 1 with a
            single probe.
    """

    steps: int = 64
    dequantization: str = "normal"
    samples: int = 1
    divergence: str = "hutchinson"
    probes: int = 1

    def __post_init__(self) -> None:
        check_integrator(self.steps, self.divergence, self.probes)
        check_dequantization(self.dequantization)
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise InvalidValueError(f"probability-flow ODE: samples must be an integer >= 1, got {self.samples!r}")
        if self.samples > 1 and self.divergence == "hutchinson" and self.probes == 1:
            raise InvalidValueError(
                "probability-flow ODE: probes must be >= 2 for samples > 1, or the divergence exact: the noise of a "
                "single probe in the weights would not give a bound"
            )

    def nats(
        self,
        model: Diffusion,
        x: Tensor,
        noise: Noise,
        labels: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return one draw of the bound in nats, float64 [B]; arguments as in `ode_nats`."""
        return importance_weighted_nats(self.log_weights(model, x, noise, labels, dtype))

    def log_weights(
        self,
        model: Diffusion,
        x: Tensor,
        noise: Noise,
        labels: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return log w_k estimated from each probe alone, float64 [probes, samples, B]; arguments as in `ode_nats`."""
        model.check_images("ode_nats", x)
        found = []
        for k in range(self.samples):
            z_0, log_q = dequantize(self.dequantization, model, x, noise, labels, k)
            density = log_densities(
                model, z_0.to(dtype), noise, self.steps, labels, "gamma", self.divergence, self.probes, k
            )
            found.append(density - log_q)
        return torch.stack(found, 1)


def ode_nats(
    model: Diffusion,
    x: Tensor,
    noise: Noise,
    steps: int = 64,
    labels: Tensor | None = None,
    dequantization: str = "normal",
    samples: int = 1,
    divergence: str = "hutchinson",
    probes: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return one draw of the ODE's upper bound on -log P(x) of discrete data, in nats, float64 [B].

    Args:
        model: the model, in eval mode.
        x: data uint8 [B, C, H, W] in [0, levels).
        noise: of z_0 and of the probes; sample b is ``noise.first_sample + b``.
        steps: of the integrator, >= 1.
        labels: int64 [B], or None.
        dequantization: q(z_0 | x). ``"normal"``: a normal distribution, with the model's decoder p(x | z_0);
            ``"truncated-normal"``, ``"uniform"``: within the level's bin, without a decoder. A density of z_0 alone is
            not a likelihood of discrete data.
        samples: number K of importance samples, >= 1.
        divergence, probes, dtype: see `ode_log_density`. Samples > 1 need the exact divergence or at least two probes.

    Raises:
        InvalidTypeError, InvalidValueError: images or labels that do not fit, an option outside of what it allows.
    """
    return OdeBound(steps, dequantization, samples, divergence, probes).nats(model, x, noise, labels, dtype)


def importance_weighted_nats(log_weights: Tensor) -> Tensor:
    """Return the bound of K samples from log-weights float64 [probes, K, B], [B]; see the module's equations.

    The log-weights of one probe must be exact if K > 1.
    """
    probes, samples = log_weights.shape[:2]
    if probes == 1 or samples == 1:
        return math.log(samples) - torch.logsumexp(log_weights.mean(0), 0)
    others = (log_weights.sum(0) - log_weights) / (probes - 1)
    log_pi = torch.log_softmax(others, 1)
    below = (log_pi.exp() * (log_weights - log_pi)).sum(1)  # Σ pi log w + H(pi), [probes, B]
    return math.log(samples) - below.mean(0)
