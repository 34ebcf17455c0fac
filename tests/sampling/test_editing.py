"""Variations and inpainting: laws on Gaussian data in closed form, known pixels, ways of running, bad arguments."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian import (
    COV,
    GAMMA_0,
    MEAN,
    Gaussian,
    Law,
    ancestral_law,
    errors,
    gammas,
    levels_of,
    noised,
    scales,
)
from recorded_graph import RecordedGraphs
from tiny import exact_model, images, small, small_ddpm, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff import Engine, Guidance, Noise
from fastdiff.data import digits
from fastdiff.diffusion import DDIM, Ancestral, DPMSolver, EulerAncestral, Execution, Heun, UniPC, as_sampler
from fastdiff.kernels import FastdiffError, Stream
from fastdiff.models import Edit, Request
from fastdiff.sampling import draw_images, edit, inpaint

N = 20_000
LEVELS, X = levels_of(200, 60, 150, 100)
UNKNOWN = torch.tensor([True, False, True, False])
MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:6, 1:5] = True


def drawn(model: Gaussian, sampler="ancestral", steps: int = 8, count: int = N, **options) -> torch.Tensor:
    """z_0 / alpha_0 of a request, [count, 4]."""
    request = Request(
        count, 3, steps, as_sampler(sampler), edit=Edit(LEVELS.expand(count, 1, 2, 2), **options)
    )  # fmt: skip
    return draw_images(model, request, batch_size=count).flatten(1)


# ------------------------------------------------------------------------------------------------ variations


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_a_variation_has_its_law(strength):
    """z_t ~ q(z_t | x) at t = strength, then 8 steps, against the recursion. Measured: at most 2.5 standard errors."""
    everything = torch.ones(4, dtype=torch.bool)
    gamma = gammas(8, strength)
    law = ancestral_law(noised(X, gamma[0]), gamma, X, everything)
    assert max(errors(drawn(Gaussian(), strength=strength), law)) < 3.5


def test_a_variation_by_the_ode_in_closed_form():
    """For independent pixels z_0 = alpha_0 m + (z_t - alpha_t m) s_0 / s_t with s² = alpha² S² + sigma², per sample.

    Measured: 5.8e-5 with 128 steps of Heun's method.
    """
    cov = COV.diagonal().diag()
    model = Gaussian(cov)
    out = drawn(model, Heun(), 128, 50, strength=0.6).double()
    gamma_t, gamma_0 = gammas(1, 0.6)
    (alpha_t, sigma_t), (alpha_0, sigma_0) = scales(gamma_t), scales(gamma_0)
    eps = Noise(3, stream=Stream.INITIAL).normal((50, 4)).double()
    z_t = alpha_t * X + sigma_t * eps
    before, after = (a**2 * cov.diagonal() + s**2 for a, s in ((alpha_t, sigma_t), (alpha_0, sigma_0)))
    expected = MEAN + (z_t - alpha_t * MEAN) * (after / before).sqrt() / alpha_0
    torch.testing.assert_close(out, expected, rtol=0, atol=6e-5)


def test_a_small_strength_keeps_the_image_and_strength_one_does_not():
    model, x = fastdiff.load("digits"), digits().test_images[:4]
    changes = [float((edit(model, x, s, 6, output="levels") != x).float().mean()) for s in (1e-3, 0.3, 1.0)]
    assert changes[0] == 0.0
    assert 0.05 < changes[1] < changes[2]


def test_the_temperature_scales_the_added_noise():
    """x ~ N(alpha_t x, (T sigma_t)²) is where the sampler starts: seen with one step of a network that returns 0."""
    model = Gaussian()
    model.predict = lambda z, gamma, labels=None, cond=None: (torch.zeros_like(z), None)
    alpha_t, sigma_t = scales(gammas(1, 0.5)[0])
    eps = Noise(3, stream=Stream.INITIAL).normal((5, 4))
    for temperature in (1.0, 0.3):
        out = drawn(model, DDIM(temperature=temperature), 1, 5, strength=0.5)
        torch.testing.assert_close(out, (X + temperature * sigma_t / alpha_t * eps).float(), rtol=0, atol=2e-6)


def test_the_noise_level_of_the_start_is_that_of_the_first_row():
    """The spacing "leading" of a DDPM's chain begins below t = strength."""
    model = small_ddpm()
    seen = []
    model.predict = lambda z, gamma, labels=None, cond=None: (seen.append((z, gamma)), (torch.zeros_like(z), None))[1]
    x = images(3)
    edit(model, x, 0.5, 4, DDIM(spacing="leading"), seed=2)
    z, gamma = seen[0]
    alpha_t, sigma_t = scales(gamma[0].double())
    eps = Noise(2, stream=Stream.INITIAL).normal((3, 1, 8, 8))
    expected = alpha_t * ((2.0 * x + 1.0) / 17.0 - 1.0) + sigma_t * eps
    torch.testing.assert_close(z, expected.float(), rtol=0, atol=2e-6)
    assert float(gamma[0]) < float(model.gamma(torch.tensor(0.5)))


def test_a_diffusevae_is_conditioned_on_its_reconstructions():
    for formulation in (1, 2):
        model, x = small_diffusevae(formulation), images(5)
        cond = model.edit_cond(x, 2)
        ours = edit(model, x, 0.4, 5, batch_size=3)
        assert torch.equal(ours, edit(model, x, 0.4, 5, cond=cond, batch_size=3))
        assert (ours != edit(model, x, 0.4, 5, cond=0.5 * cond, batch_size=3)).any()


# ------------------------------------------------------------------------------------------------ inpainting


def start_of(gamma: torch.Tensor, strength: float) -> Law:
    """The law of z_t where inpainting starts."""
    mean, cov = noised(X, gamma)
    if strength < 1.0:
        return mean, cov
    variances = torch.where(UNKNOWN, 1.0, cov.diagonal())
    return torch.where(UNKNOWN, 0.0, mean), variances.diag()


@pytest.mark.parametrize(("strength", "resample"), [(1.0, 1), (1.0, 2), (1.0, 5), (0.6, 1), (0.6, 5)])
def test_inpainting_has_the_law_of_the_replacement_method(strength, resample):
    """Correlated pixels, 8 steps, against the recursion in float64. Measured: at most 2.9 standard errors."""
    gamma = gammas(8, strength)
    law = ancestral_law(start_of(gamma[0], strength), gamma, X, UNKNOWN, resample)
    mask = UNKNOWN.view(1, 1, 2, 2).expand(N, 1, 2, 2)
    out = drawn(Gaussian(), strength=strength, unknown=mask, resample=resample)
    assert max(errors(out, law)) < 3.5
    alpha_0, sigma_0 = scales(gamma[-1])
    known, variance = law[0][~UNKNOWN], law[1].diagonal()[~UNKNOWN]  # a path of the forward process ends in q(z_0 | x)
    torch.testing.assert_close(known, X[~UNKNOWN])
    torch.testing.assert_close(variance, ((sigma_0 / alpha_0) ** 2).expand(2))


def test_repeated_steps_approach_the_conditional():
    """KL(p(x_unknown) || p(x_unknown | x_known)) in nats, 64 steps. Measured: 0.114, 0.048, 0.0125, 0.0048, 0.0022."""
    u, k = UNKNOWN.nonzero().flatten(), (~UNKNOWN).nonzero().flatten()
    gain = COV[u][:, k] @ torch.linalg.inv(COV[k][:, k])
    mean, cov = MEAN[u] + gain @ (X[k] - MEAN[k]), COV[u][:, u] - gain @ COV[k][:, u]
    true = torch.distributions.MultivariateNormal(mean, cov)
    gamma, distances = gammas(64), []
    for resample in (1, 2, 5, 10, 20):
        law = ancestral_law(start_of(gamma[0], 1.0), gamma, X, UNKNOWN, resample)
        ours = torch.distributions.MultivariateNormal(law[0][u], law[1][u][:, u])
        distances.append(float(torch.distributions.kl_divergence(ours, true)))
    assert distances == sorted(distances, reverse=True)
    assert 0.1 < distances[0] < 0.12
    assert distances[-1] < 0.0023


@pytest.mark.parametrize("sampler", ["ancestral", DDIM(), DDIM(eta=0.5), UniPC(), Heun(), EulerAncestral()])
def test_independent_pixels_are_drawn_from_their_distribution(sampler):
    """Each pixel ignores the others, so the unknown ones are those of a sample from the same seed, exactly."""
    model, x = exact_model(torch.tensor([0.5, 0.1, 0.15, 0.25]), -7.0, 8.0), images(6, shape=(1, 4, 4), levels=4)
    mask = torch.arange(16).view(4, 4) % 3 == 0
    free = fastdiff.sample(model, 6, 6, sampler, seed=4, output="levels")
    assert torch.equal(inpaint(model, x, mask, 6, sampler, seed=4, output="levels"), torch.where(mask, free, x))


@pytest.mark.parametrize(
    "sampler", ["ancestral", Ancestral(clip_denoised=True), DDIM(), DPMSolver(), Heun(), Ancestral(brownian=True)]
)
@pytest.mark.parametrize("build", [small, small_ddpm, lambda: small_ddpm(pixels="ends", variance="learned")])
def test_every_sampler_leads_known_pixels_to_the_image(build, sampler):
    """Before they are copied; a level is 1 / 17 of the range, the last noise of the VDM a tenth of that."""
    model, x = build(), images(4)
    unknown = MASK.expand(4, 1, 8, 8)
    out = draw_images(model, Request(4, 1, 8, as_sampler(sampler), edit=Edit(x, unknown=unknown)))
    assert torch.equal(out[~unknown], x[~unknown])
    assert (out[unknown] != x[unknown]).float().mean() > 0.5


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize("resample", [1, 3])
def test_known_pixels_follow_the_forward_process(variance, resample):
    """Moments of (z - alpha x) / sigma of known pixels after the 5th and the 9th of 10 steps of a DDPM.

    With the variance fixed_large of the others their deviation would be 1.045 and 35 times that of the forward process.
    Measured: within 1.6 standard errors of N(0, 1).
    """
    model, x = small_ddpm(variance=variance, T=10), images(1).expand(100, 1, 8, 8)
    sampler = Ancestral(variance="fixed_small") if variance == "learned" and resample > 1 else Ancestral()
    unknown = (torch.arange(64).view(8, 8) % 8 == 0).expand(100, 1, 8, 8)
    seen = []
    request = Request(100, 1, 10, sampler, edit=Edit(x, unknown=unknown, resample=resample))
    draw_images(model, request, 100, callback=lambda step, nfe, z, x_hat: seen.append(z))
    gamma = model.gamma(torch.linspace(1, 0, 10, dtype=torch.float64))
    data = (2.0 * x.double() + 1.0) / 17.0 - 1.0
    for k in (5, 9):
        alpha, sigma = scales(gamma[k])
        eps = ((seen[k * resample - 1] - alpha * data) / sigma)[~unknown]  # the rows of a step end at t, ..., t, s
        n = len(eps)
        assert abs(float(eps.mean())) < 3.5 / n**0.5
        assert abs(float(eps.var()) - 1.0) < 3.5 * (2.0 / n) ** 0.5


def test_unknown_pixels_of_fixed_large_have_the_variance_of_the_sampler():
    """The network's estimate has the same mean there: with a mask the unknown pixels are those without one, where the
    network ignores its neighbours.
    """
    model = small_ddpm(variance="fixed_large")
    model.predict = lambda z, gamma, labels=None, cond=None: (0.3 * z, None)
    x, unknown = images(5), MASK.expand(5, 1, 8, 8)
    free = draw_images(model, Request(5, 1, 6))
    out = draw_images(model, Request(5, 1, 6, edit=Edit(x, unknown=unknown)))
    assert torch.equal(out[unknown], free[unknown])


def test_the_image_below_the_mask_does_not_matter():
    model, x = small(), images(4)
    other = torch.where(MASK, images(4, seed=9), x)
    assert torch.equal(inpaint(model, x, MASK, 5), inpaint(model, other, MASK, 5))
    assert not torch.equal(inpaint(model, x, MASK, 5, strength=0.5), inpaint(model, other, MASK, 5, strength=0.5))


@pytest.mark.parametrize("resample", [1, 4])
def test_known_pixels_are_kept_exactly_and_masks_have_several_shapes(resample):
    model, x = small(shape=(2, 8, 8)), images(3, shape=(2, 8, 8))
    expected = inpaint(model, x, MASK, 2, resample=resample, output="levels")
    kept = ~MASK.expand_as(x)
    assert torch.equal(expected[kept], x[kept])
    for mask in (MASK[None], MASK.expand(2, 8, 8), MASK.expand(3, 1, 8, 8), 255 * MASK.expand(3, 2, 8, 8).byte()):
        assert torch.equal(inpaint(model, x, mask, 2, resample=resample, output="levels"), expected)
    each = torch.stack([MASK.roll(k, 1) for k in range(3)])[:, None]
    out = inpaint(model, x, each, 2, resample=resample, output="levels")
    assert torch.equal(out[0], expected[0])
    kept = ~each.expand_as(x)
    assert torch.equal(out[kept], x[kept])


# ------------------------------------------------------------------------------------------------ ways of running


CASES = {
    "edit": lambda model, x, **rest: edit(model, x, 0.6, 3, **rest),
    "inpaint": lambda model, x, **rest: inpaint(model, x, MASK, 3, **rest),
    "repaint": lambda model, x, **rest: inpaint(model, x, MASK, 3, resample=2, **rest),
    "guided": lambda model, x, **rest: inpaint(
        model, x, MASK, 3, labels=1, guidance=Guidance(2.0, (0.0, 0.5)), **rest
    ),
}  # fmt: skip
MODELS = {"vdm": lambda: small(num_classes=3), "ddpm": lambda: small_ddpm(num_classes=3)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_a_replayed_loop_gives_the_images_of_the_plain_one(case, model):
    """Bit for bit, in a second batch and with other images: mask and images are inputs of the recording."""
    model, call, graphs = MODELS[model](), CASES[case], RecordedGraphs()
    engine = Engine(model)
    engine.execution = Execution(graphs=graphs)
    for seed in (1, 2):
        x = images(4, seed)
        assert torch.equal(call(engine, x, seed=seed, batch_size=2), call(model, x, seed=seed, batch_size=2))
    assert graphs.recordings == (2 if case == "guided" else 1)


@pytest.mark.parametrize("case", CASES)
def test_images_do_not_depend_on_the_batch_size(case):
    engine, x = Engine(small(num_classes=3), batch_invariant=4), images(7)
    whole, parts = (CASES[case](engine, x, batch_size=size) for size in (7, 2))
    assert torch.equal(whole, parts)


def test_a_class_is_filled_in():
    """Guidance changes unknown pixels alone; a weight of 1 is the conditional model."""
    model, x = small(num_classes=3), images(4)
    plain, other, guided = (
        inpaint(model, x, MASK, 5, labels=label, guidance=weight, output="levels")
        for label, weight in ((1, None), (2, None), (1, 4.0))
    )
    assert (plain != other).any()
    assert (plain != guided).any()
    assert torch.equal(plain, inpaint(model, x, MASK, 5, labels=1, guidance=1.0, output="levels"))


@pytest.mark.parametrize("build", [lambda: small_diffusevae(2), small_restoration])
def test_conditional_models_inpaint_with_their_conditioning_images(build):
    model, x = build(), images(3)
    cond = model.example_cond(x, Noise(0))
    cond = model.edit_cond(x, 3) if cond is None else cond
    out = inpaint(model, x, MASK, 4, cond=cond, output="levels")
    assert torch.equal(out[~MASK.expand_as(out)], x[~MASK.expand_as(out)])


def test_outputs():
    model, x = small(), images(2)
    levels = edit(model, x, 0.3, 3, output="levels")
    assert torch.equal(edit(model, x, 0.3, 3), torch.round(levels.float() * 255 / 16).byte())
    assert len(edit(model, x, 0.3, 3, output="pil")) == 2
    assert edit(model, x, 0.3, 3, output="float").abs().max() <= 1.0
    assert torch.equal(edit("digits", x, 0.3, 1), edit(Engine("digits"), x, 0.3, 1))


# ------------------------------------------------------------------------------------------------ rejections


X2 = images(2)
WRONG = [
    ("images must be a torch.uint8", {"images": X2.float()}), ("images must have shape", {"images": X2[:, :, :7]}),
    ("images must lie in 0 .. 16", {"images": 2 * X2 + 17}), ("images must hold", {"images": X2[:0]}),
    ("images must be", {"images": None}), ("steps must", {"steps": 0}), ("sampler must", {"sampler": "runge"}),
    ("labels", {"labels": 3}), ("guidance must", {"guidance": 2.0}), ("no cond", {"cond": X2}),
    ("batch_size must", {"batch_size": 0}), ("output must", {"output": "png"}), ("seed", {"seed": -1}),
    ("model must have a diffusion", {"model": small_vae()}), ("model must", {"model": 3}),
    ("strength must", {"strength": 0.0}), ("strength must", {"strength": 1.01}), ("strength must", {"strength": "1"}),
    ("strength must", {"strength": float("nan")}), ("strength must", {"strength": True}),
    ("strength. must be larger for 2 steps, got 1e-300", {"strength": 1e-300}),
    ("cond must", {"model": small_restoration()}),
]  # fmt: skip
WRONG_MASKS = [
    ("mask must be a torch.bool", {"mask": MASK.float()}), ("mask must be a torch.bool", {"mask": None}),
    ("mask must have shape .8, 8.", {"mask": MASK[:7]}), ("mask must have shape", {"mask": MASK.expand(3, 8, 8)}),
    ("mask must have shape", {"mask": MASK.expand(3, 1, 8, 8)}), ("mask must have shape", {"mask": MASK[0]}),
    ("mask must have at least one pixel to fill in", {"mask": torch.zeros(8, 8, dtype=torch.bool)}),
    ("mask must have at least one pixel to keep", {"mask": torch.ones(8, 8, dtype=torch.uint8)}),
    ("image 1", {"mask": torch.stack([MASK, ~torch.zeros_like(MASK)])[:, None]}),
    ("steps · resample must be <= 1000000", {"resample": 10**6}),
    ("resample must", {"resample": 0}), ("resample must", {"resample": 1.5}),
    ("resample must be 1", {"resample": 2, "sampler": UniPC()}), ("resample", {"resample": 2, "sampler": Heun()}),
    ("resample", {"resample": 2, "sampler": Ancestral(brownian=True)}),
    ("resample must be 1 .* learned", {"resample": 2, "model": small_ddpm(variance="learned")}),
    ("cond must", {"model": small_diffusevae()}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "changes"), WRONG)
def test_edits_that_are_rejected(message, changes):
    with pytest.raises(FastdiffError, match=message):
        edit(**({"model": small(num_classes=3), "images": X2, "steps": 2} | changes))


@pytest.mark.parametrize(("message", "changes"), [*WRONG, *WRONG_MASKS])
def test_masks_and_options_that_are_rejected(message, changes):
    with pytest.raises(FastdiffError, match=message):
        inpaint(**({"model": small(num_classes=3), "images": X2, "mask": MASK, "steps": 2} | changes))


def test_a_strength_of_numpy():
    assert torch.equal(edit(small(), X2, np.float32(0.5), 2), edit(small(), X2, 0.5, 2))


def test_requests_of_other_models_take_no_edit():
    request = Request(2, edit=Edit(X2))
    with pytest.raises(FastdiffError, match="no edit"):
        draw_images(small_vae(), request)
    assert replace(request, edit=None) == Request(2)


def test_the_last_noise_is_small_beside_a_level():
    """What the test of known pixels relies on."""
    alpha_0, sigma_0 = scales(torch.tensor(GAMMA_0 - 2.0, dtype=torch.float64))
    assert float(5 * sigma_0 / alpha_0) < 2 / 17
