"""Noise schedules between two endpoints: linear, cosine, beta-linear, flow, importance sampling, learned."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .beta_schedule import log_expm1
from .schedules import Schedule, ScheduleError, check_increasing
from .velocity_density import inverse_tail, tail


class PinnedSchedule(Schedule):
    """A schedule between two endpoints, fixed or learnable. gamma(0), gamma(1) equal them to float32 rounding.

    Args:
        gamma_0, gamma_1: endpoints, or their initial values; gamma_0 < gamma_1, finite.
        learned: whether the endpoints are parameters, trained on the bound.

    Raises:
        ScheduleError: the endpoints are not finite and increasing.
    """

    gamma_0: Tensor
    gamma_1: Tensor

    def __init__(self, gamma_0: float, gamma_1: float, learned: bool = False) -> None:
        super().__init__()
        ends = torch.tensor([gamma_0, gamma_1], dtype=torch.float64, device="cpu")
        check_increasing(f"{type(self).__name__}(gamma_0, gamma_1)", ends)
        for name, value in (("gamma_0", gamma_0), ("gamma_1", gamma_1)):
            tensor = torch.tensor(float(value))
            if learned:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def endpoints(self) -> tuple[Tensor, Tensor]:
        """Return gamma_0 and gamma_1, float32 scalars."""
        return self.gamma_0, self.gamma_1


class LinearSchedule(PinnedSchedule):
    """gamma(t) = gamma_0 + (gamma_1 - gamma_0) t (Kingma et al. 2021, section 5)."""

    def forward(self, t: Tensor) -> Tensor:
        return self.gamma_0 + (self.gamma_1 - self.gamma_0) * t

    def slope(self, t: Tensor) -> Tensor:
        return (self.gamma_1 - self.gamma_0) * torch.ones_like(t)


class CosineSchedule(PinnedSchedule):
    """gamma(t) = 2 log tan(a + (b - a) t), where alpha = cos of that angle (Nichol and Dhariwal 2021).

    a and b are the angles of the endpoints, atan(exp(gamma / 2)).
    """

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the angle at t and b - a, in float64 since tan is ill-conditioned near pi/2."""
        a, b = (torch.atan(torch.exp(0.5 * end.double())) for end in (self.gamma_0, self.gamma_1))
        return a + (b - a) * t, b - a

    def forward(self, t: Tensor) -> Tensor:
        return (2.0 * self._angles(t.double())[0].tan().log()).to(t.dtype)

    def slope(self, t: Tensor) -> Tensor:
        angle, width = self._angles(t.double())
        return (4.0 * width / torch.sin(2.0 * angle)).to(t.dtype)


class BetaLinearSchedule(PinnedSchedule):
    """gamma(t) = log expm1(p + q t²): the continuous limit of betas that grow linearly, as in DDPM.

    The default endpoints give p = 1e-4 and q = 10, the VDM paper's fit to DDPM's 1000 steps (Kingma et al. 2021,
    appendix). In general p = softplus(gamma_0) and p + q = softplus(gamma_1), since -log alpha² = softplus(gamma).
    """

    def __init__(
        self,
        gamma_0: float = math.log(math.expm1(1e-4)),
        gamma_1: float = math.log(math.expm1(1e-4 + 10.0)),
        learned: bool = False,
    ) -> None:
        super().__init__(gamma_0, gamma_1, learned)

    def _decay(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log alpha_t², and q."""
        p, end = (F.softplus(gamma.to(t.dtype)) for gamma in (self.gamma_0, self.gamma_1))
        return p + (end - p) * t.square(), end - p

    def forward(self, t: Tensor) -> Tensor:
        return log_expm1(self._decay(t)[0])

    def slope(self, t: Tensor) -> Tensor:
        decay, q = self._decay(t)
        return -2.0 * q * t / torch.expm1(-decay)


class FlowSchedule(PinnedSchedule):
    """gamma(t) = 2 log(tau / (1 - tau)), tau = tau_0 + (tau_1 - tau_0) t: the straight path of flow matching.

    z_t / (alpha_t + sigma_t) = (1 - tau) x + tau eps (Lipman et al. 2023; Liu et al. 2023), from
    tau_0 = sigmoid(gamma_0 / 2) to tau_1 = sigmoid(gamma_1 / 2).
    """

    def _path(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return tau, 1 - tau and tau_1 - tau_0, each without cancellation."""
        low, high = (0.5 * end.to(t.dtype) for end in (self.gamma_0, self.gamma_1))
        noise = (1.0 - t) * torch.sigmoid(low) + t * torch.sigmoid(high)
        signal = (1.0 - t) * torch.sigmoid(-low) + t * torch.sigmoid(-high)
        return noise, signal, -torch.expm1(low - high) * torch.sigmoid(high) * torch.sigmoid(-low)

    def forward(self, t: Tensor) -> Tensor:
        noise, signal, _ = self._path(t)
        return 2.0 * (noise.log() - signal.log())

    def slope(self, t: Tensor) -> Tensor:
        noise, signal, width = self._path(t)
        return 2.0 * width / (noise * signal)


class VImportanceSchedule(PinnedSchedule):
    """gamma with density p(gamma) ∝ alpha² = sigmoid(-gamma): importance sampling for a network that predicts v.

    Times are uniform in t, so a schedule is a sampling distribution of gamma, with p(gamma) = 1 / gamma'(t). Since
    eps - eps_hat = alpha (v - v_hat), this one minimises the variance of the continuous-time loss if the error of v
    does not depend on gamma. With h(gamma) = softplus(-gamma) = ∫_gamma^∞ p, h is linear in t.
    """

    def _tail(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return h(gamma(t)) for float64 t, and h(gamma_0) - h(gamma_1)."""
        start, end = (F.softplus(-gamma.double()) for gamma in (self.gamma_0, self.gamma_1))
        return start * (1.0 - t) + end * t, start - end

    def forward(self, t: Tensor) -> Tensor:
        return (-log_expm1(self._tail(t.double())[0])).to(t.dtype)

    def slope(self, t: Tensor) -> Tensor:
        h, width = self._tail(t.double())
        return (width / -torch.expm1(-h)).to(t.dtype)  # sigmoid(-gamma) = 1 - e^{-h}


class VelocityImportanceSchedule(PinnedSchedule):
    """gamma with density p(gamma) ∝ sigmoid(-gamma / 2)²: importance sampling for a network that predicts eps - x.

    As `VImportanceSchedule` for the velocity u of the straight path (flow matching), whose error enters as
    eps - eps_hat = sigmoid(-gamma / 2) (u - u_hat). The inverse of the distribution function is computed in float64,
    see `velocity_density`; its derivatives are those of the inverse function, first order only.
    """

    def _tail(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tail at gamma(t) / 2 for float64 t, and its difference between gamma_0 and gamma_1."""
        start, end = (tail(0.5 * gamma.double()) for gamma in (self.gamma_0, self.gamma_1))
        return start * (1.0 - t) + end * t, start - end

    def both(self, t: Tensor) -> tuple[Tensor, Tensor]:
        value, width = self._tail(t.double())
        s = inverse_tail(value.detach())
        s = s - (value - value.detach()) / torch.sigmoid(-s).square()  # adds the gradient, ds / d tail
        return (2.0 * s).to(t.dtype), (2.0 * width / torch.sigmoid(-s).square()).to(t.dtype)

    def forward(self, t: Tensor) -> Tensor:
        return self.both(t)[0]

    def slope(self, t: Tensor) -> Tensor:
        return self.both(t)[1]


MAX_STEEPNESS = 100.0  # of the sigmoids of a learned schedule: most of a rise takes 0.04 of the time, 2.5 of 64 times


class LearnedSchedule(PinnedSchedule):
    """A monotone network between the endpoints, gamma(t) = gamma_0 + (gamma_1 - gamma_0) g(t), g(0) = 0, g(1) = 1.

        g(t) = (m(t) - m(0)) / (m(1) - m(0)),   m(t) = w_1 t + mean_j w_3j sigmoid(w_2j t + b_j),   w > 0

    (Kingma et al. 2021, appendix on the noise schedule; here normalised, so that the endpoints stay fixed). The
    continuous-time bound does not depend on g, but the variance of its Monte Carlo estimate does. `for_training` gives
    the endpoints the gradient of the bound and g the gradient of the squared loss.

    No w_2 has an effect above `MAX_STEEPNESS`. Where the loss per unit of gamma is close to zero, as near gamma(0), the
    optimal g is steep; without the limit it can become a jump so narrow that hardly a batch has a time inside. The loss
    of the other times is then nothing, nothing widens the jump again, and the estimate of the bound means nothing.

    Args:
        gamma_0, gamma_1, learned: endpoints, see `PinnedSchedule`.
        width: number of sigmoids, >= 1. They start evenly spread over [0, 1], so that g starts near g(t) = t.
    """

    def __init__(self, gamma_0: float, gamma_1: float, learned: bool = False, width: int = 256) -> None:
        super().__init__(gamma_0, gamma_1, learned)
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ScheduleError(f"LearnedSchedule: width must be an integer >= 1, got {width!r}")
        steepness = 20.0
        self.log_linear = nn.Parameter(torch.zeros(()))
        self.log_steepness = nn.Parameter(torch.full((width,), math.log(steepness)))
        self.bias = nn.Parameter(-steepness * (torch.arange(width) + 0.5) / width)
        self.log_height = nn.Parameter(torch.zeros(width))

    def _monotone(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return m(t) and m'(t), in the dtype of t."""
        log_steepness = self.log_steepness.clamp(max=math.log(MAX_STEEPNESS))
        w_1, w_2, w_3 = (p.to(t.dtype).exp() for p in (self.log_linear, log_steepness, self.log_height))
        gate = torch.sigmoid(w_2 * t.unsqueeze(-1) + self.bias.to(t.dtype))
        return w_1 * t + (w_3 * gate).mean(-1), w_1 + (w_3 * w_2 * gate * (1.0 - gate)).mean(-1)

    def interior(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return g(t) and g'(t)."""
        value, slope = self._monotone(t)
        low, high = self._monotone(torch.arange(2, dtype=t.dtype, device=t.device))[0]
        return (value - low) / (high - low), slope / (high - low)

    def forward(self, t: Tensor) -> Tensor:
        return self.both(t)[0]

    def slope(self, t: Tensor) -> Tensor:
        return self.both(t)[1]

    def both(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma(t) and gamma'(t) from one evaluation of the network."""
        g, slope = self.interior(t)
        width = self.gamma_1 - self.gamma_0
        return self.gamma_0 + width * g, width * slope

    def for_training(self, t: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], None]]:
        """Return gamma(t) and gamma'(t); the endpoints get the bound's gradient, g that of the squared loss.

        The variance of the loss is E[L²] minus a constant (Kingma et al. 2021, section 5.2), and d(L²) = 2 L dL. So one
        backward pass of L serves both: the gradients that reach g and g' are multiplied by 2 L per sample.
        """
        g, slope = self.interior(t)

        def square(loss: Tensor) -> None:
            factor = 2.0 * loss.to(g.dtype)
            for tensor in (g, slope):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: gradient * factor)

        width = self.gamma_1 - self.gamma_0
        return self.gamma_0 + width * g, width * slope, square

    def interior_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of g."""
        return [p for name, p in self.named_parameters() if name not in ("gamma_0", "gamma_1")]


SCHEDULES: dict[str, type[PinnedSchedule]] = {
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
    "beta-linear": BetaLinearSchedule,
    "flow": FlowSchedule,
    "importance-v": VImportanceSchedule,
    "importance-velocity": VelocityImportanceSchedule,
    "learned": LearnedSchedule,
}
