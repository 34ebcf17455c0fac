"""Samplers against flows with a closed form, and the loop that runs them against the same rows in float64."""

import decimal
import math
from decimal import Decimal
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import plan_at, run

from fastdiff.diffusion import (
    DDIM,
    SAMPLERS,
    Ancestral,
    Denoiser,
    LinearSchedule,
    Plan,
    SamplingError,
    as_sampler,
    coefficient_rows,
    gamma_table,
    make_plan,
    process,
    sample_latents,
)
from fastdiff.diffusion.rows import ancestral, ddim
from fastdiff.kernels import FastdiffError, InvalidTypeError, InvalidValueError, Noise, Stream
from fastdiff.models import DiffusionModel, ImageConfig

GAMMA = st.floats(-20.0, 20.0)
ETA = st.floats(0.0, 1.0)
S2 = 0.25  # variance of the Gaussian data
A, B, S, W, C_1, C_2, C_3, D = range(2, 10)  # columns of a row


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def total(gamma: torch.Tensor) -> torch.Tensor:
    """Variance of z_t for x ~ N(0, S2)."""
    return process.alpha(gamma) ** 2 * S2 + process.sigma(gamma) ** 2


def gain(gamma: torch.Tensor) -> torch.Tensor:
    """E[x | z_t] / z_t for x ~ N(0, S2)."""
    return process.alpha(gamma) * S2 / total(gamma)


def loop(plan: Plan, denoise, z, step_noise=None, clip=None) -> torch.Tensor:
    """The loop in float64, row by row: x_hat = denoise(z, gamma), three remembered estimates and two latents."""
    history, z_prev, z_before = [torch.zeros_like(z)] * 3, torch.zeros_like(z), torch.zeros_like(z)
    for k, (gamma, row) in enumerate(zip(plan.gamma, plan.table, strict=True)):
        x_hat = denoise(z, gamma)
        x_hat = x_hat if clip is None else x_hat.clamp(-clip, clip)
        z_s = row[A] * z + row[B] * x_hat + row[D] * z_prev
        third = z_before if plan.third_is_latent else history[2]
        z_s = z_s + row[C_1] * history[0] + row[C_2] * history[1] + row[C_3] * third
        z_s = z_s if step_noise is None else z_s + row[S] * step_noise(k)
        z, z_prev, z_before, history = z_s, z, z_prev, [x_hat, *history[:2]]
    return z


class Toy(DiffusionModel):
    """A linear prediction, eps_hat = factor(gamma) z_t, and a constant v for the variance."""

    def __init__(self, factor, v=None, shape=(1, 8, 8)):
        super().__init__(ImageConfig(shape=shape, levels=256))
        self.gamma = LinearSchedule(-13.3, 5.0)
        self.factor, self.v = factor, v

    def predict(self, z_t, gamma, labels=None, cond=None):
        eps_hat = (self.factor(gamma.double())[:, None, None, None] * z_t).float()
        return eps_hat, None if self.v is None else torch.full_like(z_t, self.v)

    def denoise(self, z, gamma):
        return process.x_from_eps(z, self.factor(gamma) * z, gamma)


def optimal(gamma: torch.Tensor) -> torch.Tensor:
    """E[eps | z_t] / z_t for x ~ N(0, S2)."""
    return process.sigma(gamma) / total(gamma)


def wrong(gamma: torch.Tensor) -> torch.Tensor:
    """A denoiser whose x_hat leaves the range of the data."""
    return 0.3 * torch.cos(gamma)


def by_hand(plan: Plan, noise: Noise, factor, temperature: float = 1.0, clip: float | None = None) -> torch.Tensor:
    """`run` of a `Toy` in float64, for two samples [1, 8, 8]."""
    z = temperature * noise.at(stream=Stream.INITIAL).normal((2, 1, 8, 8)).double()

    def step_noise(k: int) -> torch.Tensor:
        at = noise.at(step=k, stream=Stream.SAMPLER)
        return at.normal((2, 1, 8, 8)) if plan.brownian is None else plan.brownian.draw(at, (2, 1, 8, 8))

    return loop(plan, Toy(factor).denoise, z, step_noise, clip)


def every_plan(gamma: torch.Tensor, to_x: bool = False) -> dict[str, Plan]:
    plans = {name: plan_at(gamma, name, to_x) for name in SAMPLERS} | {"eta 0.5": plan_at(gamma, DDIM(eta=0.5), to_x)}
    return plans | {v: plan_at(gamma, Ancestral(variance=v), to_x, v) for v in ("fixed_large", "learned")}


# ------------------------------------------------------------------------------------------------ rows


def test_rows_start_with_the_conversion_to_x_at_the_gamma_of_the_call():
    gamma = torch.linspace(-8, 5, 9, dtype=torch.float64)
    for name, plan in every_plan(gamma, to_x=True).items():
        down = gamma.flip(0)
        ends = {"heun": down[1:], "dpm-solver-sde-2s": (down[:-1] + down[1:]) / 2}  # where the second call is
        called = torch.cat([torch.stack([down[:-1], ends[name]], 1).flatten(), down[-1:]]) if name in ends else down
        assert torch.equal(plan.gamma, called)
        assert plan.table.dtype == torch.float64
        assert plan.table.shape == (len(called), 10)
        torch.testing.assert_close(plan.table[:, 0], 1 / process.alpha(called), rtol=1e-15, atol=0)
        ratio = process.sigma(called) / process.alpha(called)
        torch.testing.assert_close(plan.table[:, 1], ratio, rtol=1e-15, atol=0)
        assert (plan.table[:, W] == 1).all()
        assert (plan.with_guidance(2.5).table[:, W] == 2.5).all()


@pytest.mark.parametrize("name", ["ddim", "dpm-solver", "heun", "euler"])
def test_deterministic_samplers_leave_a_point_mass_at_its_noise_level(name):
    """With x_hat = x constant the flow is exact in any number of steps: z_0 = alpha_0 x + sigma_0 eps."""
    gamma = torch.linspace(-9, 6, 7, dtype=torch.float64)
    x, eps = tensor(0.7), tensor(-1.3)
    z_1 = process.alpha(gamma[-1]) * x + process.sigma(gamma[-1]) * eps
    z_0 = loop(plan_at(gamma, name), lambda z, g: x, z_1)
    torch.testing.assert_close(z_0, process.alpha(gamma[0]) * x + process.sigma(gamma[0]) * eps, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm-solver", 2), ("heun", 2)])
def test_order_of_the_deterministic_samplers(name, order):
    """On x ~ N(0, s²), where the flow is z_s sqrt(var_t / var_s): halving the step divides the error by 2^order."""
    errors = []
    for steps in (64, 128, 256):
        gamma = torch.linspace(-6, 6, steps + 1, dtype=torch.float64)
        exact = (total(gamma[0]) / total(gamma[-1])).sqrt()
        errors.append(abs(float(loop(plan_at(gamma, name), lambda z, g: gain(g) * z, tensor(1.0)) - exact)))
    for coarse, fine in pairwise(errors):
        assert 2**order * 0.85 < coarse / fine < 2**order * 1.3


@settings(max_examples=60)
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
        expected = tensor(float(a), float(alpha_s - alpha_t * a), float(d))
    torch.testing.assert_close(DDIM(eta=eta)(tensor(*gammas)).table[0, A:W], expected, rtol=3e-15, atol=0)


@settings(max_examples=60)
@given(gammas=st.lists(GAMMA, min_size=2, max_size=6, unique=True))
def test_ddim_goes_from_the_deterministic_flow_to_ancestral_sampling(gammas):
    gamma = tensor(*sorted(gammas))
    torch.testing.assert_close(ddim(gamma, 1.0).table, ancestral(gamma).table, rtol=5e-15, atol=0)
    flow = ddim(gamma)
    assert (flow.table[:, S] == 0).all()
    ratio = process.sigma(gamma[:-1]) / process.sigma(gamma[1:])
    torch.testing.assert_close(flow.table[:, A], ratio.flip(0), rtol=1e-15, atol=0)


@settings(max_examples=60)
@given(gamma_s=st.floats(-10, 10), gap=st.floats(0.01, 8))
def test_the_two_fixed_variances_by_gaussian_algebra(gamma_s, gap):
    """Large: the variance of q(z_t | z_s). Small: precisions add up, 1 / var = 1 / sigma_s² + ratio² / beta_t."""
    gamma = tensor(gamma_s, gamma_s + gap)
    variance, ratio = process.sigma(gamma) ** 2, process.alpha(gamma[1]) / process.alpha(gamma[0])
    beta = variance[1] - ratio**2 * variance[0]
    small = 1 / (1 / variance[0] + ratio**2 / beta)
    deviations = {v: ancestral(gamma, v).table[0, S] for v in ("fixed_small", "fixed_large")}
    torch.testing.assert_close(deviations["fixed_large"] ** 2, beta, rtol=3e-13, atol=0)
    torch.testing.assert_close(deviations["fixed_small"] ** 2, small, rtol=3e-13, atol=0)
    learned = ancestral(gamma, "learned")
    assert (learned.table[:, S] == 0).all()
    assert learned.log_variance is not None
    torch.testing.assert_close(learned.log_variance[0], torch.stack([small, beta]).log(), rtol=0, atol=3e-13)
    assert torch.equal(learned.table[:, :S], ancestral(gamma).table[:, :S])


# ------------------------------------------------------------------------------------------------ Gaussian data


def recursion(plan: Plan, start: torch.Tensor) -> torch.Tensor:
    """Variance of the samples of N(0, S2) with the optimal denoiser, exactly."""
    variance = start
    for g, row in zip(plan.gamma, plan.table, strict=True):
        variance = (row[A] + row[B] * gain(g)) ** 2 * variance + row[S] ** 2
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
    "small": Ancestral(), "large": Ancestral(variance="fixed_large"), "ddim": DDIM(), "eta 0.5": DDIM(eta=0.5),
    "eta 1": DDIM(eta=1.0),
}  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
def test_sample_variance_on_gaussian_data(choice):
    """`sample_latents` with the optimal denoiser of N(0, ½²) has the variance of the recursion, which tends to that of
    z_0 in proportion to 1 / steps.

    The mean of 8192 squares has a standard error of sqrt(2 / 8192) = 1.6 % of the variance.
    """
    model = Toy(optimal, shape=(1, 16, 16))
    missing = []
    for steps in (10, 50, 250, 500):
        gamma = gamma_table(model.gamma, steps)
        plan, start = plan_at(gamma, CHOICES[choice]), total(gamma[-1])
        expected = recursion(plan, start)
        missing.append(float(total(gamma[0]) - expected) * steps)
        if steps <= 250:
            z = run(model, 32, plan, Noise(steps), temperature=float(start.sqrt())).double()
            assert abs(float(z.square().mean() / expected) - 1) < 4 * (2 / z.numel()) ** 0.5
    assert missing[2] == pytest.approx(missing[3], rel=0.05)


def test_a_deterministic_sampler_scales_the_initial_latent():
    """Without noise every latent is z_1 times the same number, whatever its draw: no statistics needed."""
    model = Toy(optimal)
    gamma = gamma_table(model.gamma, 20)
    z_1 = Noise(2).at(stream=Stream.INITIAL).normal((2, 1, 8, 8))
    for name in ("ddim", "dpm-solver", "heun", "euler", "unipc", "deis"):
        plan = plan_at(gamma, name)
        factor = loop(plan, lambda z, g: gain(g) * z, tensor(1.0)).float()
        torch.testing.assert_close(run(model, 2, plan, Noise(2)), factor * z_1, rtol=3e-6, atol=0)


# ------------------------------------------------------------------------------------------------ the loop


GAMMAS = torch.linspace(-8, 5, 6, dtype=torch.float64)


def test_a_last_row_for_the_network_decoder_gives_x_hat():
    model = Toy(wrong, v=0.4)
    for name, plan in every_plan(GAMMAS).items():
        longer = every_plan(GAMMAS, to_x=True)[name]
        if name in ("unipc", "deis"):  # whose orders at the end are lower, and depend on the last row
            same_order = SAMPLERS[name](lower_order_final=False)
            plan, longer = plan_at(GAMMAS, same_order), plan_at(GAMMAS, same_order, to_x=True)
        assert torch.equal(longer.table[:-1], plan.table)
        assert longer.table[-1, A:].tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
        z_0 = run(model, 2, plan, Noise(4)).double()
        x_hat = process.x_from_eps(z_0, wrong(GAMMAS[0]) * z_0, GAMMAS[0])
        torch.testing.assert_close(run(model, 2, longer, Noise(4)).double(), x_hat, rtol=3e-7, atol=0)


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0, 1.2])
def test_learned_variances_interpolate_the_logarithms(v):
    """A network with one v everywhere is a table with that S."""
    learned, small, large = (ancestral(GAMMAS, variance) for variance in ("learned", "fixed_small", "fixed_large"))
    table = small.table.clone()
    table[:, S] = small.table[:, S] ** (1 - v) * large.table[:, S] ** v
    ours = run(Toy(wrong, v), 2, learned, Noise(6))
    expected = run(Toy(wrong), 2, Plan(small.gamma, table), Noise(6))
    torch.testing.assert_close(ours, expected, rtol=6e-7, atol=0)
    fixed = run(Toy(wrong, v), 2, small, Noise(6))  # v is not used
    assert torch.equal(fixed, run(Toy(wrong), 2, small, Noise(6)))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_loop_in_float64(name, temperature):
    plan = plan_at(GAMMAS, name)
    ours = run(Toy(optimal), 2, plan, Noise(7), temperature)
    torch.testing.assert_close(ours.double(), by_hand(plan, Noise(7), optimal, temperature), rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_clip_denoised_bounds_x_hat(name):
    sampler = SAMPLERS[name](clip_denoised=True)
    plan = plan_at(GAMMAS, sampler, to_x=True)
    assert plan.clip_denoised
    clipped = run(Toy(wrong), 2, plan, Noise(7))
    torch.testing.assert_close(clipped.double(), by_hand(plan, Noise(7), wrong, clip=1.0), rtol=1e-6, atol=1e-6)
    assert clipped.abs().max() <= 1
    plan = plan_at(GAMMAS, name, to_x=True)
    free = run(Toy(wrong), 2, plan, Noise(7))
    torch.testing.assert_close(free.double(), by_hand(plan, Noise(7), wrong), rtol=2e-6, atol=2e-5)
    assert free.abs().max() > 3


def invented(gamma: torch.Tensor, columns: list[int]) -> Plan:
    """A made-up plan with numbers of the size of 1 in the columns, and w = 1."""
    down = gamma.flip(0)[:-1]
    table = coefficient_rows(down, torch.zeros_like(down), torch.zeros_like(down))
    numbers = torch.rand(len(down), 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 0.5
    for column in columns:
        table[:, column] = numbers[:, column - A]
    return Plan(down, table)


@pytest.mark.parametrize("names", ["A B C1 C2 C3 D S", "A C2", "B C3", "A D", "B C1 D"])
def test_history_and_previous_latent(names):
    """x_hat up to three calls ago and the latent before the last; both are zero before the first row."""
    numbers = {"A": A, "B": B, "S": S, "C1": C_1, "C2": C_2, "C3": C_3, "D": D}
    columns = [numbers[name] for name in names.split()]
    plan = invented(torch.linspace(-1, 1, 8, dtype=torch.float64), columns)
    ours = run(Toy(wrong), 2, plan, Noise(9)).double()
    expected = by_hand(plan, Noise(9), wrong)
    torch.testing.assert_close(ours, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 1e-3
    clipped = sample_latents(
        Toy(wrong).predict, Noise(9).at(stream=Stream.INITIAL).normal((2, 1, 8, 8)),
        Plan(plan.gamma, plan.table, clip_denoised=True), Noise(9),
    )  # fmt: skip
    expected = by_hand(plan, Noise(9), wrong, clip=1.0)
    torch.testing.assert_close(clipped.double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


def test_guidance_on_an_interval():
    """The column w: x_hat from u + w (c - u) at every row, against the model of that combination."""
    plan = plan_at(GAMMAS, "dpm-solver")
    weights = torch.tensor([1.0, 0.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    table = plan.table.clone()
    table[:, W] = weights
    z_1 = Noise(3).normal((2, 1, 8, 8))
    c, u = Toy(optimal), Toy(wrong)
    batches = []

    def predict(z, gamma, conditional):
        batches.append(len(z))
        both = c.predict(z, gamma)[0], u.predict(z, gamma)[0]
        return torch.where(conditional[:, None, None, None], *both), None

    yes, no = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    ours = sample_latents(Denoiser(predict, (yes,), (no,)), z_1, Plan(plan.gamma, table), Noise(3))
    assert batches == [2, 4, 4, 4, 2]  # one call on twice the batch where w is not 1

    def denoise(z, gamma):
        w = weights[int((plan.gamma == gamma).nonzero())]
        return (1 - w) * u.denoise(z, gamma) + w * c.denoise(z, gamma)

    torch.testing.assert_close(ours.double(), loop(plan, denoise, z_1.double()), rtol=1e-5, atol=1e-5)


def test_shared_noise_is_that_of_the_first_sample():
    plan = plan_at(GAMMAS)
    z_1 = Noise(3).normal((1, 1, 8, 8)).expand(3, -1, -1, -1)
    one = sample_latents(Toy(optimal).predict, z_1[:1], plan, Noise(8, first_sample=4))
    three = sample_latents(Toy(optimal).predict, z_1, plan, Noise(8, first_sample=4), shared_noise=True)
    torch.testing.assert_close(three, one.expand_as(three), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "calls"), [("ancestral", 1), ("dpm-solver", 1), ("heun", 2)])
def test_the_callback_sees_every_row(name, calls):
    plan, seen, model = plan_at(GAMMAS, name), [], Toy(optimal)
    z_1 = Noise(0).at(stream=Stream.INITIAL).normal((2, 1, 8, 8))
    z_0 = sample_latents(model.predict, z_1, plan, Noise(0), callback=lambda *values: seen.append(values))
    assert [(step, nfe) for step, nfe, _, _ in seen] == [(k // calls, k + 1) for k in range(5 * calls)]
    assert torch.equal(seen[-1][2], z_0)
    for gamma, z_t, (_, _, _, x_hat) in zip(plan.gamma, [z_1, *(z for _, _, z, _ in seen)], seen, strict=False):
        torch.testing.assert_close(x_hat.double(), model.denoise(z_t.double(), gamma), rtol=1e-5, atol=1e-5)
    guided = []
    plan = plan.with_guidance(2.0)
    denoiser = Denoiser(model.predict, (), ())
    sample_latents(denoiser, z_1, plan, Noise(0), callback=lambda _, nfe, *rest: guided.append(nfe))
    assert guided == [2 * (k + 1) for k in range(5 * calls)]


def test_a_result_that_is_not_finite():
    with pytest.raises(SamplingError, match="after 5 calls"):
        run(Toy(lambda gamma: gamma * math.inf), 1, plan_at(GAMMAS), Noise(0))


# ------------------------------------------------------------------------------------------------ wrong samplers


WRONG = {
    "one of": lambda: as_sampler("rk4"),
    "variance": lambda: Ancestral(variance="beta"),
    "eta": lambda: DDIM(eta=1.1),
    "eta must be a finite": lambda: DDIM(eta=math.nan),
    "spacing": lambda: DDIM(spacing="cosine"),
    "temperature": lambda: DDIM(temperature=0.0),
    "betas": lambda: DDIM(betas=(0.2, 0.1)),
    "for a model without learned": lambda: plan_at(GAMMAS, Ancestral(variance="learned")),
    "betas must be None": lambda: plan_at(GAMMAS, DDIM(betas=(0.1, 0.2))),
    "spacing must be 'time'": lambda: plan_at(GAMMAS, DDIM(betas=(0.1, 0.2), spacing="gamma"), to_x=True),
    "steps must be an integer >= 2": lambda: make_plan(DDIM(), LinearSchedule(-3, 3), 1, network_decoder=True),
    "table": lambda: plan_at(GAMMAS, lambda gamma: Plan(gamma, torch.zeros(len(gamma), 7))),
    "finite": lambda: plan_at(GAMMAS, lambda gamma: Plan(gamma, torch.full((len(gamma), 10), math.nan))),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_samplers(words):
    with pytest.raises(FastdiffError, match=words) as caught:
        WRONG[words]()
    assert isinstance(caught.value, ValueError)


def test_something_that_is_no_sampler():
    with pytest.raises(InvalidTypeError, match="sampler"):
        as_sampler(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidTypeError, match="Plan"):
        plan_at(GAMMAS, lambda gamma: gamma)
    with pytest.raises(InvalidValueError, match="one of ancestral, ddim, dpm-solver, heun"):
        as_sampler("DDIM")
