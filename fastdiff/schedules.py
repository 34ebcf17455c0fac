"""Noise schedules: gamma(t) = -log SNR(t), increasing and finite on t in [0, 1], 0 = data, 1 = noise.

A schedule is a module with ``forward(t)`` and its derivative ``slope(t)``, both differentiable in the parameters, for
float32 or float64 t of any shape. Everything else (alpha, sigma, weights, sampler coefficients) derives from gamma.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ScheduleError(ValueError):
    """A schedule that is not finite and increasing where it is used."""


class Schedule(nn.Module):
    """gamma(t); subclasses give ``forward(t)`` and ``slope(t)``."""

    def slope(self, t: Tensor) -> Tensor:
        """Return gamma'(t), of the shape of t."""
        raise NotImplementedError

    def endpoints(self) -> tuple[Tensor, Tensor]:
        """Return gamma(0) and gamma(1), differentiable scalars in float32."""
        tensor = next(iter([*self.parameters(), *self.buffers()]), torch.empty(0))
        ends = self(torch.arange(2.0, device=tensor.device))  # made on the device: no copy that a graph cannot capture
        return ends[0], ends[1]

    def both(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma(t) and gamma'(t)."""
        return self(t), self.slope(t)

    def for_training(self, t: Tensor, loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Return gamma(t) and gamma'(t) whose gradients are those that the schedule is to be trained with.

        Args:
            t: times [B].
            loss: called in the backward pass; the continuous-time diffusion loss of each sample, [B], without a graph.
                Only a schedule with an interior of its own (`LearnedSchedule`) asks for it.
        """
        return self.both(t)


class PinnedSchedule(Schedule):
    """A shape between two endpoints, fixed or learnable, which gamma(t) meets to the rounding of float32.

    Args:
        gamma_0, gamma_1: endpoints, or their initial values; gamma_0 < gamma_1, finite.
        learned: whether the endpoints are parameters, which then follow the gradient of the bound.

    Raises:
        ScheduleError: endpoints that are not finite and increasing.
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
        """The angle at t and the angle between the ends, in float64: near pi/2 a tangent has no digits to spare."""
        a, b = (torch.atan(torch.exp(0.5 * end.double())) for end in (self.gamma_0, self.gamma_1))
        return a + (b - a) * t, b - a

    def forward(self, t: Tensor) -> Tensor:
        return (2.0 * self._angles(t.double())[0].tan().log()).to(t.dtype)

    def slope(self, t: Tensor) -> Tensor:
        angle, width = self._angles(t.double())
        return (4.0 * width / torch.sin(2.0 * angle)).to(t.dtype)


class BetaLinearSchedule(PinnedSchedule):
    """gamma(t) = log expm1(p + q t²): a noise rate beta(t) that grows linearly, as DDPM's.

    With the default endpoints p = 1e-4 and q = 10, the VDM paper's fit of DDPM's 1000 steps (Kingma et al. 2021,
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
        """-log alpha_t², and q."""
        p, end = (F.softplus(gamma.to(t.dtype)) for gamma in (self.gamma_0, self.gamma_1))
        return p + (end - p) * t.square(), end - p

    def forward(self, t: Tensor) -> Tensor:
        return log_expm1(self._decay(t)[0])

    def slope(self, t: Tensor) -> Tensor:
        decay, q = self._decay(t)
        return -2.0 * q * t / torch.expm1(-decay)


class BetaSchedule(Schedule):
    """The noise levels of a chain of betas, and the straight line between them in -log alpha².

    alpha_i² = Π_{j <= i} (1 - beta_j) (Ho et al. 2020); level i = 1 .. T stands at t = (i - 1) / (T - 1), so that
    gamma is finite at t = 0, which is the first noisy latent and not the data. Between the levels beta is constant in
    continuous time.

    Args:
        betas: float64 [T], T >= 2, each in (0, 1).

    Raises:
        ScheduleError: fewer than two, or values outside (0, 1).
    """

    decay: Tensor

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        inside = (betas > 0) & (betas < 1)
        if betas.dim() != 1 or len(betas) < 2 or not inside.all():
            bad = "" if inside.all() else f", {float(betas[~inside][0])} among them"
            raise ScheduleError(f"BetaSchedule: {tuple(betas.shape)} betas{bad}; allowed: two or more, in (0, 1)")
        self.register_buffer("decay", -torch.log1p(-betas).cumsum(0), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> "BetaSchedule":
        kept = self.decay
        super()._apply(fn, recurse)  # moves it; a model cast to 16 bits must not round a thousand levels together
        if self.decay.dtype != torch.float64:
            self.decay = kept.to(self.decay.device)
        return self

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-log alpha² at t, and its derivative."""
        gaps = len(self.decay) - 1
        position = t.double() * gaps
        below = position.detach().floor().clamp(0, gaps - 1).long()
        rise = self.decay[below + 1] - self.decay[below]
        return self.decay[below] + (position - below) * rise, rise * gaps

    def forward(self, t: Tensor) -> Tensor:
        return log_expm1(self._piece(t)[0]).to(t.dtype)

    def slope(self, t: Tensor) -> Tensor:
        decay, rate = self._piece(t)
        return (-rate / torch.expm1(-decay)).to(t.dtype)

    def time(self, gamma: Tensor) -> Tensor:
        """The inverse: t of gamma, float32, of the shape of gamma."""
        decay = F.softplus(gamma.double())
        above = torch.searchsorted(self.decay, decay.contiguous()).clamp(1, len(self.decay) - 1)
        low, high = self.decay[above - 1], self.decay[above]
        return ((above - 1 + (decay - low) / (high - low)) / (len(self.decay) - 1)).float()


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """DDPM's betas, evenly spaced from ``first`` to ``last`` (Ho et al. 2020), float64 [steps]."""
    return torch.linspace(first, last, steps, dtype=torch.float64, device="cpu")


def log_expm1(x: Tensor) -> Tensor:
    """log(e^x - 1) for x > 0, without overflow and with its relative accuracy near 0: gamma from -log alpha²."""
    return x + torch.log(-torch.expm1(-x))


class LearnedSchedule(PinnedSchedule):
    """A monotone network between the endpoints, gamma(t) = gamma_0 + (gamma_1 - gamma_0) g(t), g(0) = 0, g(1) = 1.

        g(t) = (m(t) - m(0)) / (m(1) - m(0)),   m(t) = w_1 t + mean_j w_3j sigmoid(w_2j t + b_j),   w > 0

    (Kingma et al. 2021, appendix on the noise schedule, here normalised so that the endpoints stay pinned). The
    continuous-time bound does not depend on g, but the variance of its estimate does: `for_training` gives the
    endpoints the gradient of the bound, and g the gradient of the squared loss.

    Args:
        gamma_0, gamma_1, learned: endpoints, see `PinnedSchedule`.
        width: number of sigmoids. They start evenly spread over [0, 1], so that g starts near the straight line.
    """

    def __init__(self, gamma_0: float, gamma_1: float, learned: bool = False, width: int = 256) -> None:
        super().__init__(gamma_0, gamma_1, learned)
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ScheduleError(f"LearnedSchedule: width is {width!r}; allowed: an integer >= 1")
        steepness = 20.0
        self.log_linear = nn.Parameter(torch.zeros(()))
        self.log_steepness = nn.Parameter(torch.full((width,), math.log(steepness)))
        self.bias = nn.Parameter(-steepness * (torch.arange(width) + 0.5) / width)
        self.log_height = nn.Parameter(torch.zeros(width))

    def _monotone(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """m(t) and m'(t), in the dtype of t."""
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
        """Return gamma(t) and gamma'(t), from one pass through the network."""
        g, slope = self.interior(t)
        width = self.gamma_1 - self.gamma_0
        return self.gamma_0 + width * g, width * slope

    def for_training(self, t: Tensor, loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Return gamma(t) and gamma'(t): plain gradients to the endpoints, those of the squared loss to the interior.

        d(L²) = 2 L dL: what reaches g and g' in the one backward pass is multiplied by 2 L, sample by sample. The
        variance of the estimate is E[L²] less a constant (Kingma et al. 2021, section 5.2).
        """
        g, slope = self.interior(t)
        for tensor in (g, slope):
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: gradient * (2.0 * loss().to(gradient.dtype)))
        width = self.gamma_1 - self.gamma_0
        return self.gamma_0 + width * g, width * slope


SCHEDULES: dict[str, type[PinnedSchedule]] = {
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
    "beta-linear": BetaLinearSchedule,
    "learned": LearnedSchedule,
}


def check_increasing(where: str, gamma: Tensor) -> None:
    """Check by value that a table of gamma at increasing t is finite and increasing.

    Raises:
        ScheduleError: with the first entry that is not.
    """
    values = gamma.detach().double().cpu()
    finite = torch.isfinite(values)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise ScheduleError(f"{where}: gamma is {float(values[index])} at entry {index}; allowed: finite values")
    rising = torch.diff(values) > 0
    if not rising.all():
        index = int((~rising).nonzero()[0])
        low, high = float(values[index]), float(values[index + 1])
        raise ScheduleError(
            f"{where}: gamma goes from {low:.6g} to {high:.6g} at entry {index + 1}; "
            "allowed: values that increase with t"
        )


GRIDS = ("time", "gamma", "quadratic")


@torch.no_grad()
def gamma_table(schedule: nn.Module, steps: int, grid: str = "time") -> Tensor:
    """Return gamma at steps + 1 points from t = 0 to t = 1, float64 [steps + 1] on the CPU, checked by value.

    Args:
        schedule: gamma(t).
        steps: number of intervals, at least 1.
        grid: ``"time"``: t = i / steps; ``"quadratic"``: t = (i / steps)², closer together near the data;
            ``"gamma"``: evenly spaced in gamma.

    Raises:
        ValueError: steps < 1, or an unknown grid.
        ScheduleError: a schedule that is not finite and increasing on this grid.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"gamma_table: steps is {steps!r}; allowed: an integer >= 1")
    if grid not in GRIDS:
        raise ValueError(f"gamma_table: unknown grid {grid!r}; allowed: {', '.join(GRIDS)}")
    device = next(iter([*schedule.parameters(), *schedule.buffers()]), torch.empty(0)).device
    i = torch.arange(steps + 1, dtype=torch.float64, device=device) / steps
    gamma = schedule(i.square() if grid == "quadratic" else i).double().cpu()
    check_increasing(f"{type(schedule).__name__} at {steps} steps", gamma)
    return gamma[0] + (gamma[-1] - gamma[0]) * i.cpu() if grid == "gamma" else gamma
