"""The Brownian path: weights against decimal arithmetic, the laws of Brownian motion, samplers that share a path."""

import math
from decimal import Decimal, localcontext
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny import plan_at, run, small_ddpm
from torch.nn.functional import cosine_similarity, pad

import fastdiff
from fastdiff.data import digits
from fastdiff.diffusion import DDIM, Ancestral, BrownianTable, DPMSolverSDE, EulerAncestral, Plan, brownian_table
from fastdiff.diffusion.brownian import DEPTH, _dyadic, expansion
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.diffusion.rows import ancestral, spans
from fastdiff.kernels import InvalidValueError, Noise, Stream
from fastdiff.models import DiffusionModel, ImageConfig

DYADIC = st.integers(-20 * 2**10, 20 * 2**10).map(lambda k: k / 2**10)
GAMMA = st.floats(-30.0, 20.0)


def snr_length(low: float, high: float) -> Decimal:
    """e^{-low} - e^{-high} with the digits of the context."""
    return (-Decimal(low)).exp() - (-Decimal(high)).exp()


def overlap(a: float, b: float, low: float, high: float) -> Decimal:
    """The part of [a, b) in [low, high), by V."""
    a_in, b_in = max(a, low), min(b, high)
    return snr_length(a_in, b_in) / snr_length(a, b) if a_in < b_in else Decimal(0)


def weight(node: int, low: float, high: float) -> Decimal:
    """<Haar function of the node, indicator of [low, high)> / norm of the indicator, in the measure dV."""
    cell, index = (node >> 24) - 128, node % 2**24
    if index == 0:
        return overlap(cell, cell + 1, low, high) * (snr_length(cell, cell + 1) / snr_length(low, high)).sqrt()
    level = index.bit_length() - 1
    width = 2.0**-level
    a = cell + (index - 2**level) * width
    left, right = snr_length(a, a + width / 2), snr_length(a + width / 2, a + width)
    difference = overlap(a, a + width / 2, low, high) - overlap(a + width / 2, a + width, low, high)
    return difference * (left * right / ((left + right) * snr_length(low, high))).sqrt()


def dense(nodes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weights over all nodes that occur, float64 [rows, number of nodes]."""
    values, places = nodes.unique(return_inverse=True)
    matrix = torch.zeros(len(nodes), len(values), dtype=torch.float64)
    return matrix.scatter_add_(1, places.view_as(nodes), weights.double())


def deviation(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """sqrt(V(low) - V(high))."""
    return (torch.exp(-low) * -torch.expm1(low - high)).sqrt()


def table_of(*gammas: float) -> BrownianTable:
    return brownian_table(spans(torch.tensor(sorted(gammas), dtype=torch.float64)))


# ------------------------------------------------------------------------------------------------ weights


@settings(max_examples=40)
@given(pair=st.tuples(DYADIC, DYADIC).filter(lambda pair: pair[0] < pair[1]))
def test_weights_in_sixty_digits(pair):
    """V from e^-20 to e^20. Measured: errors of 2.3e-16 in a weight and of 4.5e-16 in the sum of squares."""
    low, high = pair
    nodes, weights = expansion(*torch.tensor(pair, dtype=torch.float64).split(1))
    with localcontext() as context:
        context.prec = 60
        for node, value in zip(nodes[0].tolist(), weights[0].tolist(), strict=True):
            if value:  # a node may stand twice, once with weight 0
                assert abs(value - float(weight(node, low, high))) < 5e-16
    assert abs(float(weights.square().sum()) - 1) < 1e-15


@settings(max_examples=60)
@given(points=st.lists(DYADIC, min_size=3, max_size=3, unique=True))
def test_increments_add_up(points):
    """W(q) - W(p) = (W(q) - W(m)) + (W(m) - W(p)), node by node. Measured: 3.4e-16."""
    p, m, q = (torch.tensor([point], dtype=torch.float64) for point in sorted(points))
    low, high = torch.cat([p, m, p]), torch.cat([m, q, q])
    matrix = dense(*expansion(low, high)) * (deviation(low, high) / deviation(p, q))[:, None]
    torch.testing.assert_close(matrix[0] + matrix[1], matrix[2], rtol=0, atol=1e-15)


@settings(max_examples=60)
@given(points=st.lists(GAMMA, min_size=3, max_size=8, unique=True).map(sorted))
def test_increments_between_any_gammas_add_up(points):
    """Gammas that are not dyadic are read at dyadic ones, the same for all rows of a table. Measured: 6e-8."""
    if min(b - a for a, b in pairwise(points)) < 1e-5:
        return
    gamma = torch.tensor(points, dtype=torch.float64)
    ends = torch.cat([spans(gamma), gamma[[0, -1]][None]])
    read = _dyadic(ends)
    for each, moved in zip(ends.flatten().tolist(), (read - ends).flatten().tolist(), strict=True):
        nearest = min(1.0, *(abs(each - other) for other in points if other != each))
        assert abs(moved) <= max(nearest / 16, 2.0**-25)
    low, high = read.unbind(1)
    table = brownian_table(ends)
    matrix = dense(table.nodes, table.weights) * (deviation(low, high) / deviation(low[-1], high[-1]))[:, None]
    torch.testing.assert_close(matrix[:-1].sum(0), matrix[-1], rtol=0, atol=1.5e-7)


@settings(max_examples=60)
@given(points=st.lists(GAMMA, min_size=2, max_size=30, unique=True))
def test_rows_are_independent_and_of_unit_variance(points):
    """The Gram matrix of the weights is the identity, to the rounding of float32 weights. Measured: 7.9e-8."""
    points = sorted(points)
    points = [points[0], *(b for a, b in pairwise(points) if b - a > 1e-5)]
    if len(points) > 1:
        table = table_of(*points)
        matrix = dense(table.nodes, table.weights)
        gram = matrix @ matrix.T
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=2e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 250, 1000])
def test_the_gram_matrix_of_chains(steps):
    """gamma from -30 to 13, V from e^-13 to e^30: orthonormal to 4.5e-16 in float64, and to 6.2e-8 as used."""
    gamma = torch.linspace(-30.0, 13.0, steps + 1, dtype=torch.float64)
    low, high = _dyadic(spans(gamma)).unbind(1)
    exact = dense(*expansion(low, high))
    identity = torch.eye(steps, dtype=torch.float64)
    torch.testing.assert_close(exact @ exact.T, identity, rtol=0, atol=1e-15)
    table = brownian_table(spans(gamma))
    rounded = dense(table.nodes, table.weights)
    torch.testing.assert_close(rounded @ rounded.T, identity, rtol=0, atol=1.5e-7)
    assert table.nodes.shape[1] < 50
    assert 0 <= int(table.nodes.min()) <= int(table.nodes.max()) < 2**32


def test_more_steps_have_nearly_the_noise_of_fewer():
    """The increment over a step of a chain, from its own table and summed over a finer chain: correlations by weights.

    The gammas of the two chains are read at slightly different times. Measured: at least 0.957, on average 0.979.
    """
    for coarse, fine in ((10, 20), (20, 40), (20, 260), (40, 80)):
        ends = [spans(torch.linspace(-13.3, 5.0, steps + 1, dtype=torch.float64)) for steps in (coarse, fine)]
        tables = [brownian_table(each) for each in ends]
        deviations = [deviation(*each.unbind(1)) for each in ends]
        nodes, weights = (
            torch.cat([pad(each, (0, 64 - each.shape[1])) for each in kind])
            for kind in zip(*((table.nodes, table.weights) for table in tables), strict=True)
        )
        both = dense(nodes, weights)
        own, summed = both[:coarse], (both[coarse:] * deviations[1][:, None]).view(coarse, -1, both.shape[1]).sum(1)
        correlation = (own * summed).sum(1) / (own.norm(dim=1) * summed.norm(dim=1))
        assert correlation.min() > 0.95
        assert correlation.mean() > 0.97


# ------------------------------------------------------------------------------------------------ draws


TABLE = table_of(*torch.linspace(-13.3, 5.0, 8, dtype=torch.float64).tolist())


def test_a_draw_is_the_sum_of_its_normals():
    for row in range(7):
        noise = Noise(2**63 + 5, step=row, first_sample=11, stream=Stream.SAMPLER)
        expected = torch.zeros(3, 2, 5, dtype=torch.float64)
        for node, w in zip(TABLE.nodes[row].tolist(), TABLE.weights[row].tolist(), strict=True):
            normal = Noise(2**63 + 5, step=node, first_sample=11, stream=Stream.BROWNIAN).normal((3, 2, 5))
            expected += w * normal.double()
        torch.testing.assert_close(TABLE.draw(noise, (3, 2, 5)).double(), expected, rtol=0, atol=1e-6)
        assert noise.key[3] == Stream.SAMPLER  # as it was


@settings(max_examples=20)
@given(seed=st.integers(0, 2**64 - 1), first=st.integers(0, 2**32 - 1), split=st.integers(1, 5), row=st.integers(0, 6))
def test_a_sample_has_the_same_noise_in_any_batch(seed, first, split, row):
    noise = Noise(seed, step=row, first_sample=first)
    whole = TABLE.draw(noise, (6, 3, 3))
    parts = [TABLE.draw(noise, (split, 3, 3)), TABLE.draw(noise.at(first_sample=first + split), (6 - split, 3, 3))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, TABLE.draw(noise, (6, 3, 3)))


def test_the_statistics_of_draws():
    """100,000 elements of 7 rows: normal by Kolmogorov and Smirnov, and without correlation between rows."""
    noise, draws = Noise(1), []
    for _ in range(7):
        draws.append(TABLE.draw(noise, (100, 1000)).flatten().double())
        noise.advance()
    rows = torch.stack(draws)
    for row in rows:
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(rows) - torch.eye(7)).abs().max() < 4 / math.sqrt(100_000)
    assert (rows.square().mean(1) - 1).abs().max() < 4 * math.sqrt(2 / 100_000)


# ------------------------------------------------------------------------------------------------ samplers


class Constant(DiffusionModel):
    """x_hat = x, whatever the latent."""

    def __init__(self, x: float) -> None:
        super().__init__(ImageConfig(shape=(1, 4, 4), levels=17))
        self.x = x

    def predict(self, z_t, gamma, labels=None, cond=None):
        g = gamma[:, None, None, None].double()
        return ((z_t - alpha(g) * self.x) / sigma(g)).float(), None


SAMPLERS = [Ancestral(brownian=True), EulerAncestral(brownian=True), DPMSolverSDE(brownian=True), "dpm-solver-sde-2s"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_is_several_for_a_constant_estimate(sampler):
    """Where gammas are dyadic, 4, 8 and 32 steps of all samplers end at the same latent. Measured: 9e-8."""
    results = []
    for count, each in ((4, Ancestral(brownian=True)), (4, sampler), (8, sampler), (32, sampler)):
        gamma = torch.linspace(-6.0, 2.0, count + 1, dtype=torch.float64)
        results.append(run(Constant(0.3), 3, plan_at(gamma, each), Noise(5)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=3e-7)
    other = run(Constant(0.3), 3, plan_at(torch.linspace(-6.0, 2.0, 9, dtype=torch.float64)), Noise(5))
    assert (other - results[0]).abs().max() > 0.03  # of sigma_0 = 0.05: independent noise


def test_all_variances_have_the_same_normals():
    """And the row of the network decoder has none."""
    gamma = torch.linspace(-8.0, 5.0, 6, dtype=torch.float64)
    tables = [
        plan_at(gamma, Ancestral(variance=kind, brownian=True), True, "learned").brownian
        for kind in ("fixed_small", "fixed_large", "learned")
    ]
    first = tables[0]
    assert first is not None
    assert (first.weights[:-1] != 0).any(1).all()
    assert (first.weights[-1] == 0).all()
    for other in tables[1:]:
        assert other is not None
        assert torch.equal(first.nodes, other.nodes)
        assert torch.equal(first.weights, other.weights)


def test_images_do_not_depend_on_the_batch_and_share_noise():
    model, sampler = small_ddpm(), Ancestral(brownian=True)
    options = {"steps": 5, "sampler": sampler, "seed": 3, "output": "levels"}
    alone, together = (fastdiff.sample(model, 5, batch_size=size, **options) for size in (1, 5))
    assert (alone != together).float().mean() < 0.02  # the network rounds otherwise
    plan = plan_at(torch.linspace(-8.0, 5.0, 6, dtype=torch.float64), sampler)
    z_1 = Noise(3).normal((1, 1, 4, 4)).expand(3, -1, -1, -1)
    predict = Constant(0.3).predict
    one = fastdiff.diffusion.sample_latents(predict, z_1[:1], plan, Noise(8, first_sample=4))
    three = fastdiff.diffusion.sample_latents(predict, z_1, plan, Noise(8, first_sample=4), shared_noise=True)
    torch.testing.assert_close(three, one.expand_as(three), rtol=0, atol=1e-6)


def test_the_digits_keep_their_composition():
    """Images of 20 and 40 steps of the embedded model: cosine around the mean image. Measured: 0.909 and 0.290."""
    mean = digits().train_images[:].float().mean(0) / 8.0 - 1.0
    found = {}
    for brownian in (True, False):
        a, b = (
            (fastdiff.sample("digits", 32, steps, Ancestral(brownian=brownian), 3, output="float") - mean).flatten(1)
            for steps in (20, 40)
        )
        found[brownian] = float(cosine_similarity(a, b).mean())
    assert found[True] > 0.87
    assert found[False] < 0.4


# ------------------------------------------------------------------------------------------------ bad input


def ends(*pairs: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.float64)


def own_sampler(gamma: torch.Tensor) -> Plan:
    plan = ancestral(gamma)
    return Plan(plan.gamma, plan.table)


WRONG = {
    r"noise_span must be float64 \[rows, 2\]": lambda: brownian_table(torch.zeros(3, dtype=torch.float64)),
    "got a torch.float32": lambda: brownian_table(torch.zeros(3, 2)),
    "shape .0, 2.": lambda: brownian_table(torch.zeros(0, 2, dtype=torch.float64)),
    "gamma_s <= gamma_t": lambda: brownian_table(ends((2.0, 1.0))),
    "in .-128, 128.": lambda: brownian_table(ends((-128.0, 1.0))),
    "must hold": lambda: brownian_table(ends((math.nan, 1.0))),
    f"2\\^-{DEPTH} apart": lambda: brownian_table(ends((1.0 + 2.0**-40, 1.0 + 2.0**-30))),
    "brownian must be False for a sampler without noise": lambda: plan_at(ends((-1, 1))[0], DDIM(brownian=True)),
    "without noise_span": lambda: plan_at(ends((-1, 1))[0], fastdiff.diffusion.samplers.FunctionSampler(
        function=own_sampler, brownian=True)),
    r"noise_span of a Plan must be \[1, 2\]": lambda: plan_at(
        ends((-1, 1))[0], lambda gamma: Plan(gamma[1:], ancestral(gamma).table, noise_span=gamma)),
    "noise_span of a Plan must be finite": lambda: plan_at(
        ends((-1, 1))[0], lambda gamma: Plan(gamma[1:], ancestral(gamma).table, noise_span=gamma[None] * math.nan)),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_spans(words):
    with pytest.raises(InvalidValueError, match=words):
        WRONG[words]()
