"""The density of gamma under which a velocity error that does not depend on gamma costs the same everywhere.

A network that predicts the velocity u = eps - x of the straight path has eps - eps_hat = sigmoid(-s) (u - u_hat) with
s = gamma / 2. The variance of a Monte Carlo estimate of ½ ∫ E|eps - eps_hat|² d gamma is least where the density of
gamma is proportional to the root mean square of the integrand, here sigmoid(-s)². Its upper tail is

    tail(s) = ∫_s^∞ sigmoid(-r)² dr = softplus(-s) - sigmoid(-s),

and with y = sigmoid(s) it satisfies y e^{-y} = e^{-1 - tail}, a branch of Lambert's W function.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL = 0.1  # sigmoid(-s) below which the difference in `tail` is summed as its power series, float64 to 3 ulp
TERMS = 18  # the term of order n relative to the first is 2 SMALL^(n - 2) / n
NEWTON_STEPS = 5  # the start is within 0.32 of s for |s| <= 18, and four steps reach 4e-15


def tail(s: Tensor) -> Tensor:
    """Return ∫_s^∞ sigmoid(-r)² dr = softplus(-s) - sigmoid(-s), without cancellation; s float64 of any shape."""
    d = torch.sigmoid(-s)
    small = d.clamp(max=SMALL)
    series = torch.zeros_like(s)
    for n in range(TERMS, 1, -1):
        series = series * small + 1.0 / n
    return torch.where(d < SMALL, series * small.square(), F.softplus(-s) - d)


@torch.no_grad()
def inverse_tail(value: Tensor) -> Tensor:
    """Return s with tail(s) = value, for value > 0 in float64, by Newton's method on log tail(s); without a graph."""
    p = torch.sqrt(-2.0 * torch.expm1(-value))
    near = p - p.square() / 3.0 + 11.0 * p**3 / 72.0 - 43.0 * p**4 / 540.0  # 1 - y around y = 1
    w = torch.exp(-1.0 - value)
    far = 1.0 - w * (1.0 + w)  # 1 - y around y = 0
    d = torch.where(value < 1.0, near, far)
    s = torch.where(value < 1.0, torch.log1p(-d.clamp(max=0.9)), torch.log(w) + torch.log1p(w)) - torch.log(d)
    for _ in range(NEWTON_STEPS):
        at = tail(s)
        s = s + torch.log(at / value) * at / torch.sigmoid(-s).square()
    return s
