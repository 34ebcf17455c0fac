"""The noise schedule of a discrete chain of betas, as DDPM defines it (Ho et al. 2020, arXiv:2006.11239)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .schedules import Schedule, ScheduleError

COSINE_OFFSET, LARGEST_BETA = 0.008, 0.999  # of Nichol and Dhariwal 2021


class BetaSchedule(Schedule):
    """The schedule of a chain of betas, interpolated linearly in -log alpha² between its steps.

    alpha_i² = Π_{j <= i} (1 - beta_j) (Ho et al. 2020). Step i = 1 .. T lies at t = (i - 1) / (T - 1), so gamma is
    finite at t = 0, which is the first noisy latent and not the data. The interpolation keeps beta constant, in
    continuous time, between two steps.

    Args:
        betas: float64 [T], T >= 2, each in (0, 1).

    Raises:
        ScheduleError: fewer than two betas, or one outside (0, 1).
    """

    decay: Tensor

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        inside = (betas > 0) & (betas < 1)
        if betas.dim() != 1 or len(betas) < 2 or not inside.all():
            bad = "" if inside.all() else f" with the value {float(betas[~inside][0])}"
            raise ScheduleError(f"betas must be two or more numbers in (0, 1), got shape {tuple(betas.shape)}{bad}")
        self.register_buffer("decay", -torch.log1p(-betas).cumsum(0), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> "BetaSchedule":
        kept = self.decay
        super()._apply(fn, recurse)  # moves it; casting a model to 16 bits must not round neighbouring betas together
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
        """Return t for gamma, the inverse of the schedule, float32, of the shape of gamma."""
        decay = F.softplus(gamma.double())
        above = torch.searchsorted(self.decay, decay.contiguous()).clamp(1, len(self.decay) - 1)
        low, high = self.decay[above - 1], self.decay[above]
        return ((above - 1 + (decay - low) / (high - low)) / (len(self.decay) - 1)).float()


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Return ``steps`` betas evenly spaced from ``first`` to ``last`` (Ho et al. 2020), float64 [steps]."""
    return torch.linspace(first, last, steps, dtype=torch.float64, device="cpu")


def scaled_linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Return the squares of numbers evenly spaced from sqrt(first) to sqrt(last), float64 [steps].

    The schedule of latent diffusion (Rombach et al. 2022).
    """
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64, device="cpu").square()


def cosine_betas(steps: int = 1000) -> Tensor:
    """Return the betas of alpha_t² ∝ cos²(pi/2 (t + 0.008) / 1.008), at most 0.999, float64 [steps].

    beta_i = 1 - alpha²(i / steps) / alpha²((i - 1) / steps) (Nichol and Dhariwal 2021, eq. 17).
    """
    t = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
    kept = torch.cos(0.5 * math.pi * (t + COSINE_OFFSET) / (1.0 + COSINE_OFFSET)).square()
    return (1.0 - kept[1:] / kept[:-1]).clamp(max=LARGEST_BETA)


def betas_of(kind: str, steps: int, first: float, last: float) -> Tensor:
    """Return the betas of one of `BETA_SCHEDULES`, float64 [steps]; ``"cosine"`` ignores ``first`` and ``last``."""
    return cosine_betas(steps) if kind == "cosine" else BETA_SCHEDULES[kind](steps, first, last)


BETA_SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear_betas, "scaled_linear": scaled_linear_betas, "cosine": cosine_betas,
}  # fmt: skip


def log_expm1(x: Tensor) -> Tensor:
    """Return log(e^x - 1) for x > 0 without overflow and accurate near 0; it turns -log alpha² into gamma."""
    return x + torch.log(-torch.expm1(-x))
