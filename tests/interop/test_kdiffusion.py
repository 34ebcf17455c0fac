"""k-diffusion's interface: samplers written here from their papers on our models, and ours on exact denoisers."""

import itertools
import math

import pytest
import torch
from tiny import images, plan_of, run, small, small_ddpm, small_diffusevae, small_restoration, small_vae
from torch import Tensor

import fastdiff
from fastdiff.diffusion import DDIM, DPMSolverSDE, EulerAncestral, SamplingError
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.interop import kdiffusion
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import InvalidTypeError, InvalidValueError, Noise, Stream, to_unit_range
from fastdiff.models import AddNoise, Guidance

# ------------------------------------------------------------------------------------------------ samplers of papers


def euler(model, x, sigmas, **extra_args):
    """x' = (x - D) / sigma, by Euler's method (Karras et al. 2022, algorithm 1 without the correction)."""
    for t, s in itertools.pairwise(sigmas):
        x = x + (s - t) * (x - model(x, t.expand(len(x)), **extra_args)) / t
    return x


def heun(model, x, sigmas, **extra_args):
    """Karras et al. 2022, algorithm 1: the trapezoidal rule, but for the step to 0."""
    for t, s in itertools.pairwise(sigmas):
        slope = (x - model(x, t.expand(len(x)), **extra_args)) / t
        guess = x + (s - t) * slope
        if s > 0:
            slope = 0.5 * (slope + (guess - model(guess, s.expand(len(x)), **extra_args)) / s)
        x = x + (s - t) * slope
    return x


def dpmpp_2m(model, x, sigmas, eta=0.0, noise=None, **extra_args):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) with lambda = -ln sigma; eta > 0 adds the noise of the SDE."""
    before, h_before = None, None
    for i, (t, s) in enumerate(itertools.pairwise(sigmas)):
        estimate = d = model(x, t.expand(len(x)), **extra_args)
        if s == 0:
            return estimate
        h = torch.log(t / s)
        if before is not None:
            d = d + 0.5 * (h / h_before) * (d - before)
        x = (s / t) * torch.exp(-eta * h) * x - torch.expm1(-(1 + eta) * h) * d
        if noise is not None:
            x = x + s * torch.sqrt(-torch.expm1(-2 * eta * h)) * noise(i)
        before, h_before = estimate, h
    return x


def ancestral(model, x, sigmas, eta=1.0, noise=None, **extra_args):
    """q(x_s | x_t, x_hat) of x_t = x + t eps for eta = 1: mean r² x_t + (1 - r²) x_hat, variance s² (1 - r²), r = s/t.

    In general a step of the ODE to sqrt(s² - u²), and noise of deviation u = eta s sqrt(1 - r²).
    """
    for i, (t, s) in enumerate(itertools.pairwise(sigmas)):
        u = eta * s * torch.sqrt(1 - (s / t) ** 2)
        down = torch.sqrt(s**2 - u**2)
        d = model(x, t.expand(len(x)), **extra_args)
        x = d + (down / t) * (x - d)
        if s > 0:
            x = x + u * noise(i)
    return x


THEIRS = {"ddim": euler, "heun": heun, "dpm-solver": dpmpp_2m}
STEPS = 7


def start(model, count: int, seed: int = 3) -> Tensor:
    """x_k of the latents that `fastdiff.sample` starts from with this seed."""
    z_1 = Noise(seed, stream=Stream.INITIAL).normal((count, *model.shape))
    return z_1 * torch.sqrt(1 + kdiffusion.denoiser(model).sigma_max ** 2)


# ------------------------------------------------------------------------------------------------ theirs on our models


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_their_samplers_are_ours_on_a_ddpm(name):
    """With its last step to x_hat; the images are those of `fastdiff.sample`. Measured: 3.1e-6 of the largest value."""
    model = small_ddpm(T=40, prediction="v")
    ours = run(model, 4, plan_of(model, STEPS, name), Noise(3))
    theirs = THEIRS[name](kdiffusion.denoiser(model), start(model, 4), kdiffusion.sigmas(model, STEPS, "time"))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5 * float(ours.abs().max()))
    assert torch.equal(kdiffusion.to_images(model, theirs), fastdiff.sample(model, 4, STEPS, name, seed=3))


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x", "digits"])
@torch.no_grad()
def test_their_samplers_are_ours_on_a_vdm(name, prediction):
    """Which ends at z_0 = alpha_0 x: at the lowest level and not at 0. Measured: 1.2e-5 of the largest value.

    An untrained network with Fourier features amplifies rounding too much for this.
    """
    model = fastdiff.load("digits") if prediction == "digits" else small(prediction, fourier=None)
    z_0 = run(model, 4, plan_of(model, STEPS, name), Noise(3))
    levels = kdiffusion.sigmas(model, STEPS + 1, "time")[:-1]
    theirs = THEIRS[name](kdiffusion.denoiser(model), start(model, 4), levels)
    ours = z_0 / alpha(model.gamma(torch.zeros(())).detach())
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-5 * float(ours.abs().max()))
    assert torch.equal(kdiffusion.to_images(model, theirs), fastdiff.sample(model, 4, STEPS, name, seed=3))


@torch.no_grad()
def test_labels_and_guidance():
    """In the denoiser or in each call, under any of their names. Measured: 4.8e-7 of the largest value."""
    model = small(num_classes=3, fourier=None)
    labels = torch.tensor([0, 2, 1, 1])
    x, levels = start(model, 4), kdiffusion.sigmas(model, STEPS + 1, "time")[:-1]
    guidance = Guidance(2.5, (0.2, 0.6))
    for weight in (None, 1.0, 2.5, guidance):
        ours = fastdiff.sample(model, 4, STEPS, "ddim", seed=3, labels=labels, guidance=weight)
        plain, made = kdiffusion.denoiser(model), kdiffusion.denoiser(model, labels, weight)
        results = [euler(made, x, levels), euler(plain, x, levels, y=labels, guidance=weight)]
        results.append(euler(plain, x, levels, class_cond=labels, cond_scale=weight, model_options={}, seed=9))
        for theirs in results:
            torch.testing.assert_close(theirs, results[0], rtol=0, atol=0)
            assert torch.equal(kdiffusion.to_images(model, theirs), ours)
    one = kdiffusion.denoiser(model, 1)(x, 2.0)
    torch.testing.assert_close(one, plain(x, 2.0, labels=torch.full((4,), 1)), rtol=0, atol=0)
    assert not torch.equal(one, plain(x, 2.0))
    # by its definition, on the two estimates
    both = plain(x, 2.0, labels=1, guidance=3.0)
    torch.testing.assert_close(both, plain(x, 2.0) + 3.0 * (one - plain(x, 2.0)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_call_is_the_prediction_of_x():
    """Levels that differ within the batch; against the conversion in float64. Measured: 1.6e-6 of the sample."""
    model = small("v")
    x, level = 3.0 * torch.randn(5, 1, 8, 8), torch.tensor([0.02, 0.3, 1.0, 4.0, 12.0])
    gamma = 2 * level.double().log()
    g = gamma[:, None, None, None]
    z = alpha(g) * x.double()
    eps_hat = model.eps_hat(z.float(), gamma.float()).double()
    expected = (z - sigma(g) * eps_hat) / alpha(g)
    found = kdiffusion.denoiser(model)(x, level)
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert float(error.max()) < 3e-6
    for k in range(5):
        alone = kdiffusion.denoiser(model)(x[k : k + 1], float(level[k]))
        torch.testing.assert_close(alone[0], found[k], rtol=0, atol=2e-5)


@torch.no_grad()
def test_at_and_beyond_the_ends():
    """sigma 0 is the data; above the highest level eps_hat is that of the highest, and the sample's scale its own."""
    model = small_ddpm(T=40)
    d, x = kdiffusion.denoiser(model), torch.randn(2, 1, 8, 8)
    assert torch.equal(d(x, 0.0), x)
    high = 3.0 * float(d.sigma_max)
    eps_hat = model.eps_hat(x * high / math.sqrt(1 + high**2), (2 * d.sigma_max.log()).expand(2))
    torch.testing.assert_close(d(high * x, high), high * x - high * eps_hat, rtol=0, atol=3e-6 * high)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        result = d(x.to(dtype), torch.ones(2, dtype=dtype))
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), d(x.to(dtype).float(), 1.0), rtol=1e-2, atol=2e-2)
    model.train()
    d(x, 1.0)
    assert model.training


@torch.no_grad()
def test_conditional_models():
    """Restoration and DiffuseVAE, of both formulations: the estimate of x, whose network sees x_t and cond."""
    model = small_restoration(AddNoise(deviation=0.25), formulation=2)
    cond, x = images(3), torch.randn(3, 1, 8, 8)
    as_data = to_unit_range(cond, 17)
    d = kdiffusion.denoiser(model, cond=cond)
    z = x / math.sqrt(1 + 4.0)
    eps_hat = model.eps_hat(z, torch.full((3,), 2 * math.log(2.0)), cond=as_data)
    torch.testing.assert_close(d(x, 2.0), x - 2.0 * eps_hat, rtol=0, atol=2e-6)
    vae = small_diffusevae(1)
    assert torch.isfinite(euler(kdiffusion.denoiser(vae, cond=as_data), x, kdiffusion.sigmas(vae, 3))).all()
    for call, words in (
        (lambda: kdiffusion.denoiser(model), "cond must be a tensor of conditioning images"),
        (lambda: kdiffusion.denoiser(small(), cond=as_data), "cond must be None for a vdm model"),
        (lambda: d(x[:2], 2.0), "cond must hold 2 images"),
    ):
        with pytest.raises((InvalidValueError, InvalidTypeError), match=words):
            call()


def test_levels():
    """Against the formulas of Karras et al. 2022, eq. 5, and of even steps in ln sigma; a DDPM's chain."""
    model = small()
    low, high = (math.exp(0.5 * float(g)) for g in model.gamma(torch.tensor([0.0, 1.0])).detach())
    for steps, rho in ((1, 7.0), (2, 7.0), (9, 3.0)):
        found = kdiffusion.sigmas(model, steps, rho=rho)
        places = [i / max(steps - 1, 1) for i in range(steps)]
        expected = [(high ** (1 / rho) + p * (low ** (1 / rho) - high ** (1 / rho))) ** rho for p in places]
        torch.testing.assert_close(found, torch.tensor([*expected, 0.0]), rtol=3e-6, atol=0)
    found = kdiffusion.sigmas(model, 5, "gamma")
    torch.testing.assert_close(found[:-1].log().diff(), torch.full((4,), math.log(low / high) / 4), rtol=3e-6, atol=0)
    chain = small_ddpm(T=1000)
    product = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    table = ((1 - product) / product).sqrt()
    d = kdiffusion.denoiser(chain)
    torch.testing.assert_close(d.sigmas.double(), table, rtol=2e-7, atol=0)
    torch.testing.assert_close(d.log_sigmas.double(), table.log(), rtol=1e-6, atol=1e-7)
    assert [float(d.sigma_min), float(d.sigma_max)] == [float(d.sigmas[0]), float(d.sigmas[-1])]
    torch.testing.assert_close(d.get_sigmas(), torch.cat([d.sigmas.flip(0), torch.zeros(1)]))
    torch.testing.assert_close(d.get_sigmas(4)[:-1].double(), table[[999, 666, 333, 0]], rtol=2e-7, atol=0)
    leading = kdiffusion.sigmas(chain, 4, "leading")
    torch.testing.assert_close(leading[:-1].double(), table[[750, 500, 250, 0]], rtol=2e-7, atol=0)
    for spacing, t in (("trailing", 999), ("leading", 0), ("time", 999)):
        one = kdiffusion.sigmas(chain, 1, spacing)
        torch.testing.assert_close(one.double(), torch.tensor([table[t], 0.0]).double(), rtol=2e-7, atol=0)
    for half in (d.half(), d.bfloat16()):  # the levels stay in float32, as those of a network in 16 bits do
        torch.testing.assert_close(half.sigmas.double(), table, rtol=2e-7, atol=0)
        torch.testing.assert_close(half.log_sigmas.double(), table.log(), rtol=1e-6, atol=1e-7)
    assert d.double().sigmas.dtype == torch.float64
    assert len(kdiffusion.denoiser(model).sigmas) == kdiffusion.TABLE
    assert d.inner_model is chain


# ------------------------------------------------------------------------------------------------ ours on denoisers

S2 = 0.25  # variance of the data
LEVELS = torch.tensor([20.0, 6.0, 2.1, 0.9, 0.4, 0.15, 0.05])


def exact(x: Tensor, level: Tensor) -> Tensor:
    """E[x | x + sigma eps] for x ~ N(0, S2)."""
    return x * S2 / (S2 + level.view(-1, 1, 1, 1).to(x) ** 2)


def step_noise(seed: int, shape):
    return lambda i: Noise(seed, step=i, stream=Stream.SAMPLER).normal(shape).double()


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("euler", euler, {}),
        ("ddim", euler, {}),
        ("heun", heun, {}),
        ("dpm-solver", dpmpp_2m, {}),
        ("ancestral", ancestral, {"eta": 1.0}),
        (DDIM(eta=0.4), ancestral, {"eta": 0.4}),
        (EulerAncestral(eta=0.7), ancestral, {"eta": 0.7}),
        ("dpm-solver-sde", dpmpp_2m, {"eta": 1.0}),
        (DPMSolverSDE(eta=0.5), dpmpp_2m, {"eta": 0.5}),
    ],
)
def test_our_samplers_are_theirs(ours, theirs, options, to_zero):
    """Step by step with the same noise, against float64. Measured: 4.3e-7 of the largest value."""
    levels = torch.cat([LEVELS, torch.zeros(1)]) if to_zero else LEVELS
    x = 20.0 * torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    found = kdiffusion.sampler(ours)(exact, x, levels, seed=11)
    noise = {"noise": step_noise(11, x.shape)} if options else {}
    expected = theirs(exact, x.double(), levels.double(), **options, **noise)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(("ours", "order"), [("heun", 2), ("dpm-solver", 2), ("unipc", 2), ("deis", 2), ("euler", 1)])
def test_our_samplers_converge_to_the_flow(ours, order):
    """x(sigma) = x(sigma_max) sqrt((S2 + sigma²) / (S2 + sigma_max²)) exactly; the error falls with the steps."""
    x = torch.linspace(-30.0, 30.0, 16).view(1, 1, 4, 4)
    errors = []
    for steps in (16, 32):
        levels = torch.linspace(math.log(20.0), math.log(0.05), steps + 1, dtype=torch.float64).exp()
        expected = x * math.sqrt((S2 + 0.05**2) / (S2 + 20.0**2))
        found = kdiffusion.sampler(ours)(exact, x, levels)
        errors.append(float((found - expected).abs().max() / expected.abs().max()))
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < 0.1**order * 1.5, errors


@pytest.mark.parametrize("ours", ["dpm-solver-sde", "dpm-solver-sde-2s"])
def test_stochastic_samplers_draw_the_data(ours):
    """Variance S2 of 20,000 numbers to four standard errors and the error of 80 steps."""
    levels = torch.cat([torch.linspace(math.log(20.0), math.log(0.02), 80).exp(), torch.zeros(1)])
    x = 20.0 * torch.randn(200, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    found = kdiffusion.sampler(ours)(exact, x, levels).double()
    assert abs(float(found.var()) / S2 - 1) < 4 * math.sqrt(2 / 20_000) + 0.03
    assert abs(float(found.mean())) < 4 * math.sqrt(S2 / 20_000)


@torch.no_grad()
def test_there_and_back():
    """Our sampler on our model through both interfaces is our sampler, to the rounding of a level."""
    model = small_ddpm(T=40, num_classes=2, prediction="v")
    labels = torch.tensor([0, 1, 1])
    for name in ("ancestral", "heun", "unipc", "deis", "dpm-solver-sde-2s"):
        variance = {"ancestral": fastdiff.diffusion.Ancestral(variance="fixed_small")}.get(name, name)
        ours = fastdiff.sample(model, 3, STEPS, variance, seed=3, labels=labels, guidance=1.5)
        levels = kdiffusion.sigmas(model, STEPS, "time")
        d, args = kdiffusion.denoiser(model), {"labels": labels, "guidance": 1.5}
        found = kdiffusion.sampler(name)(d, start(model, 3), levels, args, seed=3)
        difference = (kdiffusion.to_images(model, found).int() - ours.int()).abs()
        assert (difference > 0).sum() <= 1, name


def test_the_order_of_calls():
    """Levels are as they were given, the callback comes before the sample moves on."""
    levels = torch.cat([LEVELS, torch.zeros(1)])
    x = 20.0 * torch.randn(3, 1, 4, 4)
    for name, calls in (("ddim", 7), ("heun", 13), ("dpm-solver-sde-2s", 13)):
        seen, reported = [], []

        def model(x, level, flag=None, *, seen=seen):
            assert flag == "passed on"
            assert level.shape == (3,)
            assert level.dtype == torch.float32
            seen.append(float(level[0]))
            return exact(x, level)

        def callback(values, *, seen=seen, reported=reported):
            assert values["sigma"] == values["sigma_hat"] == seen[-1]
            torch.testing.assert_close(values["denoised"], exact(values["x"], values["sigma"].expand(3)))
            reported.append((values["i"], seen[-1]))

        kdiffusion.sampler(name)(model, x, levels, {"flag": "passed on"}, callback, True)
        assert reported == list(enumerate(LEVELS.tolist())), name
        assert len(seen) == calls
        if name == "heun":
            assert sorted(set(seen), reverse=True) == LEVELS.tolist()
        if calls == 13 and name != "heun":
            expected = (LEVELS[:-1] * LEVELS[1:]).sqrt()
            torch.testing.assert_close(torch.tensor(seen[1::2]), expected, rtol=1e-6, atol=0)


def test_seeds_and_batches():
    """A sample is a function of the seed and its index; ComfyUI's seed stands in the extra arguments."""
    x = 20.0 * torch.randn(4, 1, 4, 4)
    levels = torch.cat([LEVELS, torch.zeros(1)])
    sample = kdiffusion.sampler("ancestral")

    def model(x, level, **extra_args):
        return exact(x, level)

    whole = sample(model, x, levels, seed=5)
    parts = [sample(model, x[k : k + 2], levels, seed=5, first_sample=k) for k in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(sample(model, x, levels, {"seed": 5, "model_options": {}}), whole)
    assert not torch.equal(sample(model, x, levels), whole)
    assert torch.equal(sample(model, x, levels), sample(model, x, levels, {"seed": None}, seed=0))


def test_dtypes_one_step_and_clipping():
    x = 20.0 * torch.randn(2, 1, 4, 4)
    for dtype in (torch.float16, torch.float64):
        found = kdiffusion.sampler("heun")(exact, x.to(dtype), LEVELS)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), kdiffusion.sampler("heun")(exact, x, LEVELS), rtol=1e-2, atol=2e-2)
    one = kdiffusion.sampler("unipc")(exact, x, torch.tensor([20.0, 0.0]))
    torch.testing.assert_close(one, exact(x, torch.full((2,), 20.0)), rtol=0, atol=1e-5)
    clipped, beyond = kdiffusion.sampler(DDIM(clip_denoised=True)), 5.0 * torch.ones_like(x)
    for levels in ([20.0, 3.0, 0.0], [3.0, 0.0]):
        assert torch.equal(clipped(lambda x, level: beyond, x, torch.tensor(levels)), torch.ones_like(x))
    latents = torch.randn(2, 4, 3, 8, 8)  # any shape: video has five dimensions
    result = kdiffusion.sampler("dpm-solver")(lambda x, level: 0.0 * x, latents, LEVELS)
    torch.testing.assert_close(result, latents * 0.05 / 20.0, rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------------------------ errors


def wrong_calls():
    model, labelled = small(), small(num_classes=3)
    d, x = kdiffusion.denoiser(model), torch.randn(2, 1, 8, 8)
    sample = kdiffusion.sampler("ddim")
    yield lambda: kdiffusion.denoiser(torch.nn.Linear(1, 1)), "model must be a fastdiff model"
    yield lambda: kdiffusion.sigmas(small_vae(), 3), "model must be a diffusion model, got a hvae model"
    yield lambda: kdiffusion.denoiser(model, labels=1), "labels must be None for a vdm model without classes"
    yield lambda: kdiffusion.denoiser(labelled, labels=3), r"labels must be an integer in 0 \.\. 2"
    yield lambda: kdiffusion.denoiser(labelled, guidance=math.nan), "guidance must be a finite number"
    yield lambda: kdiffusion.denoiser(labelled, guidance=2.0)(x, 1.0), "guidance must be None without labels"
    yield lambda: kdiffusion.denoiser(labelled, [0, 1])(x[:1], 1.0), "one for each of the n = 1"
    yield lambda: d(x, 1.0, prompt="a cat"), "extra_args must be among labels, y, class_cond, guidance, cond_scale"
    yield lambda: d(x, torch.ones(3)), r"sigma must be a number or of shape \(2,\), got \(3,\)"
    yield lambda: d(x, -1.0), "sigma must be finite and >= 0"
    yield lambda: d(x, math.nan), "sigma must be finite and >= 0"
    yield lambda: d(x[:, :, :4], 1.0), r"x must have shape \[B, 1, 8, 8\]"
    yield lambda: d(images(2), 1.0), "x must be a float tensor, got dtype torch.uint8"
    yield lambda: kdiffusion.to_images(model, x[0]), r"x must have shape \[B, 1, 8, 8\]"
    yield lambda: kdiffusion.sigmas(model, 0), "steps must be an integer >= 1, got 0"
    yield lambda: kdiffusion.sigmas(model, True), "steps must be an integer >= 1, got True"
    yield lambda: kdiffusion.sigmas(model, 1.0), "steps must be an integer >= 1, got 1.0"
    for steps in (1, 4):
        yield lambda n=steps: kdiffusion.sigmas(model, n, "leading"), "a model that is not a DDPM"
        yield lambda n=steps: kdiffusion.sigmas(model, n, "vogon"), "spacing must be"
        yield lambda n=steps: kdiffusion.sigmas(model, n, rho=0.0), "rho must be"
    yield lambda: kdiffusion.sigmas(model, 1, (0.0, 1.0)), "steps must be an integer >= 2 with the spacing"
    yield lambda: kdiffusion.sigmas(model, 1, "model"), "steps must be an integer >= 2 with the spacing 'model'"
    yield lambda: kdiffusion.sampler("dpmpp_2m"), "sampler must be one of ancestral"
    yield lambda: kdiffusion.sampler(DDIM(spacing="karras")), "spacing must be 'time' here, got 'karras'"
    yield lambda: kdiffusion.sampler(DDIM(temperature=0.5)), "temperature must be 1.0 here"
    for levels in ([1.0], [[1.0, 0.0]], [1.0, 2.0], [1.0, 1.0], [1.0, -1.0], [1.0, 0.0, -1.0], [math.inf, 1.0], []):
        yield lambda levels=levels: sample(exact, x, torch.tensor(levels)), "sigmas must be a float tensor"
    yield lambda: sample(exact, x, torch.tensor([2, 1])), "decreasing .* got torch.int64"
    yield lambda: sample(exact, x.byte(), LEVELS), "x must be a float tensor"
    yield lambda: sample(lambda x, level: x[:1], x, LEVELS), "model must return a tensor of shape"
    yield lambda: sample(lambda x, level: math.nan * x, x, LEVELS), "the sample is not finite"


def test_errors_say_what_is_allowed():
    for call, words in wrong_calls():
        with pytest.raises((InvalidValueError, InvalidTypeError, SamplingError, ConfigError), match=words):
            call()


class OfComfy:
    """A denoiser as ComfyUI passes one to a sampler: known pixels are put in place around the call."""

    def __init__(self, known: Tensor, noise: Tensor, mask: Tensor) -> None:
        self.known, self.noise, self.mask = known, noise, mask

    def __call__(self, x, level, denoise_mask=None, model_options=None, seed=None):
        x = x * self.mask + (self.known + self.noise * level.view(-1, 1, 1, 1)) * (1 - self.mask)
        return exact(x, level) * self.mask + self.known * (1 - self.mask)


def test_as_comfyui_calls_it():
    """By keyword, with its own callback and extra arguments; what is known comes out as it is. Measured: 7.5e-9."""
    known, noise, mask = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[:, :, :, 2:] = 1
    seen, levels = [], torch.cat([LEVELS, torch.zeros(1)])
    x = known + noise * levels[0]
    extra_args = {"model_options": {}, "seed": 2**63 + 1, "denoise_mask": mask}
    for name in ("unipc", "dpm-solver-sde-2s"):
        result = kdiffusion.sampler(name)(
            OfComfy(known, noise, mask), x, levels, extra_args=extra_args, disable=True,
            callback=lambda values: seen.append((values["i"], values["denoised"].shape, values["x"].shape)),
        )  # fmt: skip
        torch.testing.assert_close(result[..., :2], known[..., :2], rtol=0, atol=1e-7)
    assert seen == [(i, x.shape, x.shape) for i in range(7)] * 2


def test_the_module_is_found_from_fastdiff():
    assert fastdiff.interop.kdiffusion is kdiffusion
    assert "kdiffusion" in fastdiff.interop.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fastdiff.interop.nothing  # noqa: B018
