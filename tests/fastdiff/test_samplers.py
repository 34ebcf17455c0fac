"""Samplers against flows with a closed form, and the loop that runs them against the same rows by hand."""

import decimal
from decimal import Decimal
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fastdiff import process
from fastdiff.kernels import Noise, Stream
from fastdiff.models import DiffusionModel, ImageConfig
from fastdiff.sample import sample_latents
from fastdiff.samplers import SAMPLERS, Plan, ancestral, ddim, plan
from fastdiff.schedules import BetaSchedule, CosineSchedule, LinearSchedule, gamma_table, linear_betas

GAMMA = st.floats(-20.0, 20.0)
ETA = st.floats(0.0, 1.0)
S2 = 0.25  # variance of the Gaussian data


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def total(gamma: torch.Tensor) -> torch.Tensor:
    """Variance of z_t for x ~ N(0, S2)."""
    return process.alpha(gamma) ** 2 * S2 + process.sigma(gamma) ** 2


def gain(gamma: torch.Tensor) -> torch.Tensor:
    """E[x | z_t] / z_t for x ~ N(0, S2)."""
    return process.alpha(gamma) * S2 / total(gamma)


def walk(rows: Plan, denoise, z: torch.Tensor) -> torch.Tensor:
    """Run a sampler's coefficients in float64, without its noise, with an exact denoiser of (z, gamma)."""
    x_prev = torch.zeros_like(z)
    for g, row in zip(rows.gamma, rows.table, strict=True):
        x_hat = denoise(z, g)
        z, x_prev = row[2] * z + row[3] * x_hat + row[4] * x_prev, x_hat
    return z


class Toy(DiffusionModel):
    """A linear prediction, eps_hat = factor(gamma) z_t, and a constant fraction for the variance."""

    def __init__(self, factor, fraction=None, shape=(1, 8, 8)):
        super().__init__()
        self.config = ImageConfig(shape=shape, levels=256)
        self.gamma = LinearSchedule(-13.3, 5.0, learned=True)  # a parameter says where the model is
        self.factor, self.fraction = factor, fraction

    def predict(self, z_t, gamma, labels=None):
        eps_hat = (self.factor(gamma.double())[:, None, None, None] * z_t).float()
        return eps_hat, None if self.fraction is None else torch.full_like(z_t, self.fraction)


def optimal(gamma: torch.Tensor) -> torch.Tensor:
    """E[eps | z_t] / z_t for x ~ N(0, S2)."""
    return process.sigma(gamma) / total(gamma)


def wrong(gamma: torch.Tensor) -> torch.Tensor:
    """A denoiser whose x_hat leaves the range of the data."""
    return 0.3 * torch.cos(gamma)


def every_plan(gamma: torch.Tensor, to_x: bool = False) -> dict[str, Plan]:
    plans = {name: plan(name, gamma, to_x=to_x) for name in SAMPLERS}
    plans |= {"ddim, eta ½": plan("ddim", gamma, eta=0.5, to_x=to_x)}
    return plans | {f"ancestral, {v}": plan("ancestral", gamma, variance=v, to_x=to_x) for v in ("large", "learned")}


def test_rows_begin_with_the_conversion_to_x_at_the_gamma_that_the_network_is_asked_at():
    grid = torch.linspace(-8, 5, 9, dtype=torch.float64)
    for name, rows in every_plan(grid, to_x=True).items():
        down = grid.flip(0)
        asked = torch.cat([torch.stack([down[:-1], down[1:]], 1).flatten(), down[-1:]]) if name == "heun" else down
        assert torch.equal(rows.gamma, asked)
        assert rows.table.dtype == torch.float64
        assert rows.table.shape == (len(asked), 7)
        torch.testing.assert_close(rows.table[:, 0], 1 / process.alpha(asked), rtol=1e-15, atol=0)
        ratio = process.sigma(asked) / process.alpha(asked)
        torch.testing.assert_close(rows.table[:, 1], ratio, rtol=1e-15, atol=0)
        assert (rows.table[:-1, 6] == 1).all()  # a picture that shifts the latents shifts the last x_hat no more
        assert rows.table[-1, 6] == 0


def test_a_grid_in_float32_gives_the_same_plans_in_float64():
    grid = torch.linspace(-8, 5, 9)
    for name in SAMPLERS:
        assert torch.equal(plan(name, grid).table, plan(name, grid.double()).table)


@pytest.mark.parametrize("name", ["ddim", "dpm-solver", "heun"])
def test_deterministic_samplers_leave_a_point_mass_at_its_noise_level(name):
    """With x_hat = x constant the flow is exact in any number of steps: z_0 = alpha_0 x + sigma_0 eps."""
    gamma = torch.linspace(-9, 6, 7, dtype=torch.float64)
    x, eps = tensor(0.7), tensor(-1.3)
    z_1 = process.alpha(gamma[-1]) * x + process.sigma(gamma[-1]) * eps
    z_0 = walk(plan(name, gamma), lambda z, g: x, z_1)
    torch.testing.assert_close(z_0, process.alpha(gamma[0]) * x + process.sigma(gamma[0]) * eps, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm-solver", 2), ("heun", 2)])
def test_order_of_the_deterministic_samplers(name, order):
    """On x ~ N(0, s²), where the flow is z_s sqrt(var_t / var_s): halving the step divides the error by 2^order."""
    errors = []
    for steps in (64, 128, 256):
        gamma = torch.linspace(-6, 6, steps + 1, dtype=torch.float64)
        exact = (total(gamma[0]) / total(gamma[-1])).sqrt()
        errors.append(abs(float(walk(plan(name, gamma), lambda z, g: gain(g) * z, tensor(1.0)) - exact)))
    for coarse, fine in pairwise(errors):
        assert 2**order * 0.85 < coarse / fine < 2**order * 1.3


@given(gammas=st.tuples(GAMMA, GAMMA).filter(lambda pair: pair[0] + 1e-9 < pair[1]), eta=ETA)
@example(gammas=(-13.3, 5.0), eta=1.0)  # one step: sigma_s² - d² is e^-18 of sigma_s²
def test_ddim_is_the_textbook_form(gammas, eta):
    """z_s = alpha_s x + sqrt(sigma_s² - d²) eps_hat + d eps (Song et al. 2021, eq. 12 and 16), in 60 digits."""
    with decimal.localcontext() as context:
        context.prec = 60
        low, high = (Decimal(gamma) for gamma in gammas)
        squares = [1 / (1 + gamma.exp()) for gamma in (low, high)]
        alpha_s, alpha_t = (square.sqrt() for square in squares)
        sigma_s, sigma_t = ((1 - square).sqrt() for square in squares)
        d = Decimal(eta) * sigma_s / sigma_t * (1 - squares[1] / squares[0]).sqrt()
        a = (sigma_s**2 - d**2).sqrt() / sigma_t
        expected = tensor(float(a), float(alpha_s - alpha_t * a), 0.0, float(d))
    torch.testing.assert_close(ddim(tensor(*gammas), eta).table[0, 2:6], expected, rtol=3e-15, atol=0)


@given(gammas=st.lists(GAMMA, min_size=2, max_size=6, unique=True))
def test_ddim_goes_from_the_deterministic_flow_to_ancestral_sampling(gammas):
    gamma = tensor(*sorted(gammas))
    torch.testing.assert_close(ddim(gamma, 1.0).table, ancestral(gamma).table, rtol=5e-15, atol=0)
    assert torch.equal(plan("ddim", gamma, eta=0.5).table, ddim(gamma, 0.5).table)
    assert torch.equal(plan("ddim", gamma, eta=1.0).table, ddim(gamma, 1.0).table)
    flow = plan("ddim", gamma, eta=0.0)
    assert torch.equal(flow.table, plan("ddim", gamma).table)
    assert (flow.table[:, 5] == 0).all()
    ratio = process.sigma(gamma[:-1]) / process.sigma(gamma[1:])
    torch.testing.assert_close(flow.table[:, 2], ratio.flip(0), rtol=1e-15, atol=0)


@given(gamma_s=st.floats(-10, 10), gap=st.floats(0.01, 8))
def test_the_two_variances_by_gaussian_algebra(gamma_s, gap):
    """Large: what q(z_t | z_s) adds, beta_t. Small: precisions add up, 1 / var = 1 / sigma_s² + ratio² / beta_t."""
    gamma = tensor(gamma_s, gamma_s + gap)
    variance, ratio = process.sigma(gamma) ** 2, process.alpha(gamma[1]) / process.alpha(gamma[0])
    beta = variance[1] - ratio**2 * variance[0]
    small = 1 / (1 / variance[0] + ratio**2 / beta)
    deviations = {v: ancestral(gamma, v).table[0, 5] for v in ("small", "large")}
    torch.testing.assert_close(deviations["large"] ** 2, beta, rtol=3e-13, atol=0)
    torch.testing.assert_close(deviations["small"] ** 2, small, rtol=3e-13, atol=0)
    learned = ancestral(gamma, "learned")
    assert (learned.table[:, 5] == 0).all()
    assert learned.log_variance is not None
    torch.testing.assert_close(learned.log_variance[0], torch.stack([small, beta]).log(), rtol=0, atol=3e-13)
    assert torch.equal(learned.table[:, :5], ancestral(gamma).table[:, :5])


def recursion(rows: Plan, start: torch.Tensor) -> torch.Tensor:
    """Variance of the samples of N(0, S2) with the optimal denoiser, exactly."""
    variance = start
    for g, row in zip(rows.gamma, rows.table, strict=True):
        variance = (row[2] + row[3] * gain(g)) ** 2 * variance + row[5] ** 2
    return variance


def test_ancestral_variance_on_gaussian_data():
    """x ~ N(0, ½²), optimal denoiser, gamma linear from -13.3 to 5: the recursion of the sample variance.

    Expected: sample standard deviations of an independent Monte Carlo simulation, 0.338, 0.456, 0.490, 0.497 at 10, 50,
    250, 1000 steps, known to about 0.002; and the limit ½, approached in proportion to 1 / steps.
    """
    for steps, expected in ((10, 0.338), (50, 0.456), (250, 0.490), (1000, 0.497)):
        gamma = torch.linspace(-13.3, 5, steps + 1, dtype=torch.float64)
        deviation = recursion(ancestral(gamma), tensor(1.0)).sqrt()
        assert abs(deviation - expected) < 0.002
        assert 0.8 < (0.5 - deviation) * steps / 2.25 < 1.1 or steps == 10


CHOICES = {
    "small": {"name": "ancestral"},
    "large": {"name": "ancestral", "variance": "large"},
    "ddim": {"name": "ddim"},
    "eta ½": {"name": "ddim", "eta": 0.5},
    "eta 1": {"name": "ddim", "eta": 1.0},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_sample_variance_on_gaussian_data(choice):
    """`sample_latents` with the optimal denoiser of N(0, ½²) has the variance of the recursion, which tends to that of
    z_0 in proportion to 1 / steps.

    The mean of 8192 squares has a standard error of sqrt(2 / 8192) = 1.6 % of the variance.
    """
    model = Toy(optimal, shape=(1, 16, 16))
    missing = []
    for steps in (10, 50, 250, 1000):
        gamma = gamma_table(model.gamma, steps)
        rows, start = plan(gamma=gamma, **CHOICES[choice]), total(gamma[-1])
        expected = recursion(rows, start)
        z = sample_latents(model, 32, rows, Noise(steps), temperature=float(start.sqrt())).double()
        assert abs(float(z.square().mean() / expected) - 1) < 4 * (2 / z.numel()) ** 0.5
        missing.append(float(total(gamma[0]) - expected) * steps)
    assert missing[2] == pytest.approx(missing[3], rel=0.05)


def test_a_deterministic_sampler_scales_the_initial_latent():
    """Without noise every latent is z_1 times the same number, whatever its draw: no statistics needed."""
    model = Toy(optimal)
    gamma = gamma_table(model.gamma, 20)
    z_1 = Noise(2).at(stream=Stream.INITIAL).normal((2, 1, 8, 8))
    for name in ("ddim", "dpm-solver", "heun"):
        rows = plan(name, gamma)
        factor = walk(rows, lambda z, g: gain(g) * z, tensor(1.0)).float()
        torch.testing.assert_close(sample_latents(model, 2, rows, Noise(2)), factor * z_1, rtol=3e-6, atol=0)


def test_a_plan_to_x_ends_in_x_hat():
    grid = torch.linspace(-8, 5, 6, dtype=torch.float64)
    model = Toy(wrong, fraction=0.4)
    for name, rows in every_plan(grid).items():
        longer = every_plan(grid, to_x=True)[name]
        assert torch.equal(longer.table[:-1], rows.table)
        assert longer.table[-1, 2:].tolist() == [0, 1, 0, 0, 0]
        z_0 = sample_latents(model, 2, rows, Noise(4)).double()
        x_hat = process.x_from_eps(z_0, wrong(grid[0]) * z_0, grid[0])
        torch.testing.assert_close(sample_latents(model, 2, longer, Noise(4)).double(), x_hat, rtol=3e-7, atol=0)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0, 1.2])
def test_learned_variances_lie_between_the_two_in_the_logarithm(fraction):
    """A network that says the same everywhere is a table with that S."""
    grid = torch.linspace(-8, 5, 6, dtype=torch.float64)
    learned, small, large = (ancestral(grid, variance) for variance in ("learned", "small", "large"))
    table = small.table.clone()
    table[:, 5] = small.table[:, 5] ** (1 - fraction) * large.table[:, 5] ** fraction
    given = sample_latents(Toy(wrong, fraction), 2, learned, Noise(6))
    expected = sample_latents(Toy(wrong), 2, Plan(small.gamma, table), Noise(6))
    torch.testing.assert_close(given, expected, rtol=6e-7, atol=0)
    fixed = sample_latents(Toy(wrong, fraction), 2, small, Noise(6))  # a fixed variance asks no network
    assert torch.equal(fixed, sample_latents(Toy(wrong), 2, small, Noise(6)))


def by_hand(rows: Plan, noise: Noise, factor, temperature: float = 1.0, clip: float | None = None) -> torch.Tensor:
    """The loop in float64 on `Toy` latents [2, 1, 8, 8]."""
    shape = (2, 1, 8, 8)
    z = temperature * noise.at(stream=Stream.INITIAL).normal(shape).double()
    x_prev = torch.zeros_like(z)
    for k, (g, row) in enumerate(zip(rows.gamma, rows.table, strict=True)):
        x_hat = process.x_from_eps(z, factor(g) * z, g)
        x_hat = x_hat if clip is None else x_hat.clamp(-clip, clip)
        eps = noise.at(step=k, stream=Stream.SAMPLER).normal(shape)
        z, x_prev = row[2] * z + row[3] * x_hat + row[4] * x_prev + row[5] * eps, x_hat
    return z


@pytest.mark.parametrize("name", SAMPLERS)
def test_temperature_scales_the_initial_latent_only(name):
    rows = plan(name, torch.linspace(-8, 5, 6, dtype=torch.float64))
    for temperature in (0.5, 1.0, 1.7):
        given = sample_latents(Toy(optimal), 2, rows, Noise(7), temperature=temperature)
        expected = by_hand(rows, Noise(7), optimal, temperature=temperature)
        torch.testing.assert_close(given.double(), expected, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_clip_bounds_x_hat(name):
    gamma = torch.linspace(-8, 5, 6, dtype=torch.float64)
    rows = plan(name, gamma, to_x=True)
    given = sample_latents(Toy(wrong), 2, rows, Noise(7), clip=1.0)
    torch.testing.assert_close(given.double(), by_hand(rows, Noise(7), wrong, clip=1.0), rtol=1e-6, atol=1e-6)
    assert given.abs().max() <= 1
    free = sample_latents(Toy(wrong), 2, rows, Noise(7))
    torch.testing.assert_close(free.double(), by_hand(rows, Noise(7), wrong), rtol=2e-6, atol=2e-5)
    assert free.abs().max() > 3


def test_the_bar_moves_once_for_every_call_of_the_network():
    class Bar:
        moved = 0

        def update(self):
            self.moved += 1

    for name, calls in (("ancestral", 5), ("dpm-solver", 5), ("heun", 10)):
        bar = Bar()
        rows = plan(name, torch.linspace(-8, 5, 6, dtype=torch.float64))
        sample_latents(Toy(optimal), 1, rows, Noise(0), bar=bar)
        assert bar.moved == calls


@pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(-13.3, 5.0), CosineSchedule(-12.0, 9.0), BetaSchedule(linear_betas())],
    ids=lambda schedule: type(schedule).__name__,
)
def test_grids_by_their_definitions(schedule):
    steps = 7
    grids = {grid: gamma_table(schedule, steps, grid) for grid in ("time", "quadratic", "gamma")}
    for gamma in grids.values():
        assert gamma.dtype == torch.float64
        assert gamma[0] == grids["time"][0]
        assert gamma[-1] == pytest.approx(float(grids["time"][-1]), rel=1e-15)
    for i in range(steps + 1):
        assert grids["time"][i] == schedule(tensor(i / steps))
        assert grids["quadratic"][i] == schedule(tensor((i / steps) ** 2))
    even = grids["gamma"].diff()
    torch.testing.assert_close(even, even.mean().expand(steps), rtol=1e-14, atol=0)
    same = torch.allclose(grids["gamma"], grids["time"], rtol=1e-14, atol=1e-14)
    assert same == isinstance(schedule, LinearSchedule)
    with pytest.raises(ValueError, match="unknown grid 'cosine'; allowed: time, gamma, quadratic"):
        gamma_table(schedule, steps, "cosine")


WRONG = {
    "unknown sampler 'euler'; allowed: ancestral, ddim, dpm-solver, heun": {"name": "euler"},
    "unknown variance 'beta'; allowed: small, large, learned": {"name": "ancestral", "variance": "beta"},
    "eta is -0.1; allowed: 0 <= eta <= 1": {"name": "ddim", "eta": -0.1},
    "eta is 1.1; allowed: 0 <= eta <= 1": {"name": "ddim", "eta": 1.1},
    "eta is nan; allowed: 0 <= eta <= 1": {"name": "ddim", "eta": float("nan")},
    "eta is 0.0 for the sampler 'heun'; allowed: eta with ddim": {"name": "heun", "eta": 0.0},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_plans(message):
    with pytest.raises(ValueError, match=message):
        plan(gamma=torch.linspace(-8, 5, 4, dtype=torch.float64), **WRONG[message])
