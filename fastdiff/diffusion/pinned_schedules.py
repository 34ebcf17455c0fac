"""Noise schedules between two endpoints: linear, cosine, beta-linear and learned."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .beta_schedule import log_expm1
from .schedules import Schedule, ScheduleError, check_increasing


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


class LearnedSchedule(PinnedSchedule):
    """A monotone network between the endpoints, gamma(t) = gamma_0 + (gamma_1 - gamma_0) g(t), g(0) = 0, g(1) = 1.

        g(t) = (m(t) - m(0)) / (m(1) - m(0)),   m(t) = w_1 t + mean_j w_3j sigmoid(w_2j t + b_j),   w > 0

    (Kingma et al. 2021, appendix on the noise schedule; here normalised, so that the endpoints stay fixed). The
    continuous-time bound does not depend on g, but the variance of its Monte Carlo estimate does. `for_training` gives
    the endpoints the gradient of the bound and g the gradient of the squared loss.

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
        w_1, w_2, w_3 = (p.to(t.dtype).exp() for p in (self.log_linear, self.log_steepness, self.log_height))
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
    "learned": LearnedSchedule,
}
