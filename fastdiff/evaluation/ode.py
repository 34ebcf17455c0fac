"""The probability-flow ODE and its density of latents, an estimate independent of the variational bound.

Along gamma, from the data to the noise, the latents of the variance-preserving process follow

    dz / d gamma = ½ (sigma eps_hat(z, gamma) - sigma² z)

with the same marginals as the diffusion (Song et al. 2021, Score-based generative modeling through stochastic
differential equations, section 4.3), and log p(z_0) = log N(z_1; 0, 1) + the integral of the divergence.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..diffusion import gamma_table
from ..diffusion.process import sigma
from ..kernels import InvalidValueError, Noise, Stream
from ..models import Diffusion

DIVERGENCES = ("hutchinson", "exact")


def check_integrator(steps: int, divergence: str = "hutchinson", probes: int = 1) -> None:
    """Check the number of integration steps, and how the divergence is computed.

    Raises:
        InvalidValueError: steps or probes that are not an integer >= 1, an unknown divergence, or probes other than 1
            for the exact divergence.
    """
    for name, value in (("steps", steps), ("probes", probes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidValueError(f"probability-flow ODE: {name} must be an integer >= 1, got {value!r}")
    if divergence not in DIVERGENCES:
        allowed = ", ".join(DIVERGENCES)
        raise InvalidValueError(f"probability-flow ODE: divergence must be one of {allowed}, got {divergence!r}")
    if divergence == "exact" and probes != 1:
        raise InvalidValueError(
            f"probability-flow ODE: probes must be 1 for the exact divergence, which draws none, got {probes}"
        )


def ode_log_density(
    model: Diffusion,
    z_0: Tensor,
    noise: Noise,
    steps: int = 64,
    labels: Tensor | None = None,
    spacing: str = "gamma",
    divergence: str = "hutchinson",
    probes: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return log p(z_0) in nats under the probability-flow ODE, float64 [B].

    The latents are integrated by the classical Runge-Kutta method of order 4, which calls the network four times per
    step. The divergence is computed at the steps' ends and integrated by cubic interpolation between them.

    Args:
        model: the model, in eval mode.
        z_0: latents at t = 0, float [B, C, H, W].
        noise: of the probes; sample b is ``noise.first_sample + b``.
        steps: number of integration steps, >= 1.
        labels: int64 [B], or None.
        spacing: of the steps, one of `fastdiff.diffusion.SPACINGS`.
        divergence: ``"hutchinson"``: the mean of probeᵀ J probe over ``probes`` Rademacher probes (Hutchinson 1990;
            Grathwohl et al. 2019), with new probes at every step: one vector-Jacobian product for each. The log-density
            is unbiased up to the error of the integrator, but its exponential is not. ``"exact"``: the trace of J by as
            many vector-Jacobian products as there are dimensions.
        probes: number of probes, >= 1.
        dtype: of the latents along the path, in which the network is called.

    Raises:
        InvalidValueError: an unknown spacing or divergence, steps or probes below 1, probes for the exact divergence.
        RuntimeError: under torch.inference_mode, where there are no gradients.
    """
    return log_densities(model, z_0.to(dtype), noise, steps, labels, spacing, divergence, probes).mean(0)


def log_densities(
    model: Diffusion,
    z_0: Tensor,
    noise: Noise,
    steps: int,
    labels: Tensor | None = None,
    spacing: str = "gamma",
    divergence: str = "hutchinson",
    probes: int = 1,
    repeat: int = 0,
) -> Tensor:
    """Return log p(z_0) estimated from each probe alone, float64 [probes, B]; see `ode_log_density`.

    ``repeat`` is the number of the draw among the repeated draws of the same samples, which have probes of their own.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("ode_log_density computes gradients and cannot run under torch.inference_mode")
    check_integrator(steps, divergence, probes)
    gamma = gamma_table(model.gamma, steps, spacing)
    weights = integration_weights(gamma).tolist()
    z = z_0.detach()
    integral = torch.zeros(probes, len(z), dtype=torch.float64, device=z.device)

    def flow(z: Tensor, at: float) -> Tensor:
        """Return dz / d gamma."""
        gamma_t = z.new_full((len(z),), at)
        scale = float(sigma(torch.tensor(at, dtype=torch.float64, device="cpu")))
        return 0.5 * scale * (model.eps_hat(z, gamma_t, labels) - scale * z)

    def flow_with_divergence(z: Tensor, node: int) -> Tensor:
        """Return dz / d gamma at a step's end, and add its divergence there to the integral."""
        first = (repeat * (steps + 1) + node) * probes
        directions = None if divergence == "exact" else _probes(noise, z, first, probes)
        with torch.enable_grad():
            inputs = z.detach().requires_grad_()
            velocity = flow(inputs, float(gamma[node]))
            integral.add_(weights[node] * _divergences(velocity, inputs, directions))
        return velocity.detach()

    for node, (low, high) in enumerate(zip(gamma[:-1].tolist(), gamma[1:].tolist(), strict=True)):
        h, middle = high - low, 0.5 * (low + high)
        v_1 = flow_with_divergence(z, node)
        with torch.no_grad():
            v_2 = flow(z + 0.5 * h * v_1, middle)
            v_3 = flow(z + 0.5 * h * v_2, middle)
            v_4 = flow(z + h * v_3, high)
            z = z + h / 6.0 * (v_1 + 2.0 * v_2 + 2.0 * v_3 + v_4)
    flow_with_divergence(z, steps)
    log_prior = -0.5 * (z.double().square() + math.log(2.0 * math.pi)).flatten(1).sum(1)
    return log_prior + integral


def _probes(noise: Noise, z: Tensor, first: int, count: int) -> Iterator[Tensor]:
    """Yield ``count`` Rademacher probes like z, the repeated draws of the probes' noise from number ``first`` on."""
    for k in range(first, first + count):
        u = noise.at(stream=Stream.PROBE + 256 * k).uniform(z.shape, device=z.device)
        yield torch.where(u <= 0.5, 1.0, -1.0).to(z.dtype)


def _divergences(velocity: Tensor, inputs: Tensor, directions: Iterator[Tensor] | None) -> Tensor:
    """Return probeᵀ J probe for every probe, float64 [probes, B], J the Jacobian of ``velocity`` by ``inputs``.

    Without probes, the trace of J, [1, B].
    """
    if directions is not None:
        products = [(_product(velocity, inputs, probe) * probe).double().flatten(1).sum(1) for probe in directions]
        return torch.stack(products)
    trace = torch.zeros(len(velocity), dtype=torch.float64, device=velocity.device)
    for i in range(velocity[0].numel()):
        row = torch.zeros_like(velocity, memory_format=torch.contiguous_format)
        row.flatten(1)[:, i] = 1.0
        trace += _product(velocity, inputs, row).flatten(1)[:, i]
    return trace.unsqueeze(0)


def _product(velocity: Tensor, inputs: Tensor, direction: Tensor) -> Tensor:
    """Return directionᵀ J, like ``inputs``; the graph is kept for the next direction."""
    return torch.autograd.grad(velocity, inputs, direction, retain_graph=True)[0]


def integration_weights(nodes: Tensor) -> Tensor:
    """Return w with Σ w_i f(nodes_i) ≈ ∫ f from the first node to the last, for nodes float64 [N], N >= 2, increasing.

    f is the cubic through the four nodes around each interval (those that there are, if fewer): order 4 for any
    spacing. Inside, even spacing gives equal weights, which suit an integrand that is rough at the scale of the steps
    better than Simpson's alternating ones.
    """
    count = len(nodes)
    order = min(4, count)
    weights = torch.zeros_like(nodes)
    powers = torch.arange(order, dtype=nodes.dtype, device=nodes.device)
    for i in range(count - 1):
        first = min(max(i - 1, 0), count - order)
        width = nodes[i + 1] - nodes[i]
        local = (nodes[first : first + order] - nodes[i]) / width
        moments = width / (powers + 1.0)  # of u^p on the interval, u in [0, 1]
        weights[first : first + order] += torch.linalg.solve(local[None, :] ** powers[:, None], moments)
    return weights
