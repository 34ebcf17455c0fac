"""Noise of the sampler's steps from a Brownian path, so that the same seed gives the same noise with any steps.

Divided by alpha_s e^{gamma_s}, a step of ancestral sampling reads

    z_s / (alpha_s e^{gamma_s}) = z_t / (alpha_t e^{gamma_t}) + (V_s - V_t) x_hat + sqrt(V_s - V_t) eps

with V = e^{-gamma}, so its noise is the increment of a Brownian motion W over the signal-to-noise ratio V:
sqrt(V_s - V_t) eps = W(V_s) - W(V_t). If eps is taken from one path W, then two half steps with the same x_hat are one
step, and chains with other numbers of steps, spacings or samplers meet the same noise.

The path is expanded in Haar functions of the measure dV = e^{-gamma} d gamma (Lévy's construction): gamma is divided
into cells [k, k + 1), over which the increments of W are independent, and every cell into halves of halves. A cell has
one normal for its whole increment, and each interval [a, b) inside of it one normal that divides its increment at the
midpoint m: a Brownian bridge, of variance V(a, m) V(m, b) / V(a, b). With V(a, b) = e^{-a} - e^{-b} and f the part of
an interval that lies in [gamma_s, gamma_t), the noise of a step is eps = Σ w N(node), with

    w(cell) = f(cell) sqrt(V(cell) / V(s, t)),
    w(interval) = (f(a, m) - f(m, b)) sqrt(V(a, m) V(m, b) / (V(a, b) V(s, t))).

The squares of the weights of a step add up to 1, and the weights of steps that do not overlap are orthogonal, so the
noise of a chain is independent N(0, 1), exactly. The normals are `Noise` of (seed, sample, node): no tree is stored,
and cells rather than one root make them independent of the range of gamma, of the schedule and of the model.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels import InvalidValueError, Noise, noise_sum

CELL_BITS, DEPTH = 8, 24  # a node is a cell, gamma in [-128, 128), and one of 2^24 intervals in it: 32 bits
MARGIN = 4  # gammas are moved by at most 2^-4 of the shorter step beside them: finer costs two draws a bit
ROWS = 1 << 16  # at a time, so that long chains need little memory
NEGLIGIBLE = 2.0**-24  # weights that float32 sums do not see


@dataclass(frozen=True)
class BrownianTable:
    """The noise of the rows of a plan as sums of normals: eps = Σ_j weights_j N(nodes_j).

    nodes: int64 [rows, J], in [0, 2**32). weights: float32 [rows, J], whose squares add up to 1 in every row; all are 0
    in a row without noise.
    """

    nodes: Tensor
    weights: Tensor

    def to(self, device: torch.device | str) -> "BrownianTable":
        """Return the table on ``device``."""
        return replace(self, nodes=self.nodes.to(device), weights=self.weights.to(device))

    def draw(self, noise: Noise, shape: "tuple[int, ...] | torch.Size") -> Tensor:
        """Draw the standard normals of one row for a batch, float32 [B, ...].

        Args:
            noise: its seed and first sample are used, and its step as the row; its stream is not. On the device of the
                table, where a captured graph finds the row at each replay. A row outside the table gives NaN.
            shape: [B, ...].
        """
        return noise_sum(noise, self.nodes, self.weights, shape)


def brownian_table(spans: Tensor) -> BrownianTable:
    """Return the table of the rows whose noise is the increment of the path over [gamma_s, gamma_t].

    Args:
        spans: float64 [rows, 2] of (gamma_s, gamma_t), gamma_s < gamma_t in (-128, 128); equal for a row without noise.

    Gammas are rounded to dyadic numbers: each by at most a 16th of the distance to the next one or of 1, whichever is
    less, and to a multiple of 2^-24. This shifts the times at which the path is read, and not the distribution: the
    noise of rows that do not overlap stays independent N(0, 1).

    Raises:
        InvalidValueError: gammas that are not finite, in order and in the range, or too close to be told apart.
    """
    if spans.dim() != 2 or spans.shape[1] != 2 or spans.dtype != torch.float64 or not len(spans):
        raise InvalidValueError(
            f"noise_span must be float64 [rows, 2], got a {spans.dtype} tensor of shape {tuple(spans.shape)}"
        )
    limit = 2 ** (CELL_BITS - 1)
    if not (spans.abs() < limit).all() or not (spans[:, 0] <= spans[:, 1]).all():
        raise InvalidValueError(f"noise_span must hold gamma_s <= gamma_t in (-{limit}, {limit})")
    low, high = _dyadic(spans).unbind(1)
    if not ((low < high) | (spans[:, 0] == spans[:, 1])).all():
        raise InvalidValueError(f"steps must be few enough to lie 2^-{DEPTH} apart in gamma for a Brownian path")
    parts = [_significant(*expansion(*part)) for part in zip(low.split(ROWS), high.split(ROWS), strict=True)]
    columns = max(nodes.shape[1] for nodes, _ in parts)
    padded = [[pad(each, (0, columns - each.shape[1])) for each in part] for part in parts]
    nodes, weights = (torch.cat(kind) for kind in zip(*padded, strict=True))
    return BrownianTable(nodes, weights)


def _significant(nodes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes and weights, float32, without columns of negligible weights: the largest first, of unit norm."""
    weights = torch.where(weights.abs() > NEGLIGIBLE, weights, 0.0)
    columns = max(1, int((weights != 0).sum(1).max()))
    order = weights.abs().sort(dim=1, descending=True, stable=True).indices[:, :columns]
    weights = weights.gather(1, order)
    nodes = torch.where(weights != 0, nodes.gather(1, order), 0)
    return nodes, (weights / weights.norm(dim=1, keepdim=True).clamp(min=NEGLIGIBLE)).float()


def _dyadic(spans: Tensor) -> Tensor:
    """Round gammas to multiples of 2^-depth, with a depth for each gamma that follows from the gammas beside it."""
    gamma, places = spans.unique(return_inverse=True)
    gap = torch.full((len(gamma) + 1,), torch.inf, dtype=torch.float64)
    gap[1:-1] = gamma.diff()
    nearest = torch.minimum(gap[:-1], gap[1:])
    depth = (MARGIN - 1 + torch.log2(1.0 / nearest).ceil().clamp(min=0)).clamp(max=DEPTH)
    scale = torch.exp2(depth)
    return ((gamma * scale).round() / scale)[places]


def expansion(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nodes, int64, and the weights, float64, of the increments over [low, high) divided by their deviation.

    low, high: float64 [rows], multiples of 2^-24, so that the ends and midpoints of all intervals are exact. Both
    results are [rows, N]: the cells, then the intervals around ``low``, then those around ``high``, where most weights
    are 0. A weight is accurate to a few units of float64's 2^-53: no two values of V are subtracted.
    """

    def measure(a: Tensor, b: Tensor) -> Tensor:
        """e^{-a} - e^{-b} in units of e^{-low}, 0 where a >= b."""
        return torch.exp(origin - a) * -torch.expm1(torch.minimum(a - b, torch.zeros_like(a)))

    def part(a: Tensor, b: Tensor) -> Tensor:
        """The part of [a, b) that lies in [low, high), by measure."""
        return measure(torch.maximum(a, start), torch.minimum(b, end)) / measure(a, b)

    def interval(gamma: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Node, start and weight of the interval of 2^-level that gamma lies in, [rows, levels]."""
        index = torch.floor((gamma - gamma.floor()) * torch.exp2(level))
        a, half = gamma.floor() + index * torch.exp2(-level), torch.exp2(-level - 1)
        left, right = measure(a, a + half), measure(a + half, a + 2 * half)
        weight = (part(a, a + half) - part(a + half, a + 2 * half)) * (left * right / (left + right)).sqrt()
        return _node(gamma.floor(), torch.exp2(level) + index), a, weight

    origin, start, end = low[:, None], low[:, None], high[:, None]
    cells = low.floor()[:, None] + torch.arange(max(1, int((high.ceil() - low.floor()).max())), dtype=torch.float64)
    whole = part(cells, cells + 1.0) * measure(cells, cells + 1.0).sqrt()
    level = torch.arange(float(_levels(torch.cat([low, high]))), dtype=torch.float64)[None]
    first, a, first_weight = interval(start, level)
    second, b, second_weight = interval(end, level)
    second_weight = torch.where(a == b, 0.0, second_weight)  # the same interval, and not twice
    nodes = torch.cat([_node(cells, torch.zeros_like(cells)), first, second], dim=1)
    weights = torch.cat([whole, first_weight, second_weight], dim=1)
    return nodes, weights / measure(start, end).clamp(min=torch.finfo(torch.float64).tiny).sqrt()


def _node(cell: Tensor, index: Tensor) -> Tensor:
    """Number a node: index 0 is the cell, and 2^level + i its interval i of 2^level."""
    return ((cell.long() + 2 ** (CELL_BITS - 1)) << DEPTH) + index.long()


def _levels(gamma: Tensor) -> int:
    """Return the number of levels of intervals that reach dyadic gammas: the least d with 2^d gamma integers."""
    depths = range(DEPTH + 1)
    return next(d for d in depths if d == DEPTH or bool((gamma * 2.0**d == (gamma * 2.0**d).round()).all()))
