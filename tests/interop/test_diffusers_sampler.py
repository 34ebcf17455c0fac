"""The scheduler of a pipeline as a sampler: the same latents and images as diffusers for the same noise."""

import sys
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from diffusers_models import SMALL, diffusers, save, unet_of
from peers import in_float64

import fastdiff
from fastdiff.diffusion import BetaSchedule, linear_betas, make_plan, sample_latents
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.interop import FastdiffScheduler, diffusers_sampler
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import InvalidTypeError, InvalidValueError, Noise, Stream

SHAPE = (2, 3, 8, 8)
LEADING, TRAILING, LINSPACE = ({"timestep_spacing": name} for name in ("leading", "trailing", "linspace"))
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # NumPy 2 in its schedulers
DDPM, DDIM = diffusers.DDPMScheduler, diffusers.DDIMScheduler


def noises(seed: int, shape: tuple, steps: int) -> list[torch.Tensor]:
    """What our sampler draws: the initial latent, then the noise of every step."""
    drawn = [Noise(seed, step=k, stream=Stream.SAMPLER).normal(shape) for k in range(steps)]
    return [Noise(seed, stream=Stream.INITIAL).normal(shape), *drawn]


def drawing(tensors, *places):
    """Let the modules of these classes draw these tensors in their order."""
    left, stack = iter(tensors), ExitStack()
    for module in {sys.modules[place.__module__] for place in places}:
        stack.enter_context(mock.patch.object(module, "randn_tensor", create=True, side_effect=left))
    return stack


def exact_eps(z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """eps_hat, float64, of pixels from N(0, 1.5): every estimate is a multiple of z, and many are clipped at 1."""
    return z.double() * sigma(gamma) / (1.5 * alpha(gamma) ** 2 + sigma(gamma) ** 2)


def their_latents(scheduler, steps: int, seed: int, **call) -> torch.Tensor:
    """Their loop in float64 with `exact_eps` and our noise."""
    initial, *rest = (each.double() for each in noises(seed, SHAPE, steps))
    kept = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    gamma = -torch.log(kept / (1.0 - kept))
    scheduler.set_timesteps(steps)
    z = initial * scheduler.init_noise_sigma
    with drawing(rest, type(scheduler)):
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(z, t)
            eps_hat = exact_eps(seen, gamma[int(t)])
            out = torch.cat([eps_hat, torch.full_like(eps_hat, 0.3)], 1) if learned(scheduler) else eps_hat
            z = scheduler.step(out, t, z, **call).prev_sample
    return z


def learned(scheduler) -> bool:
    return scheduler.config.get("variance_type") == "learned_range"


def our_latents(sampler, steps: int, seed: int, variance: str) -> torch.Tensor:
    gamma = BetaSchedule(linear_betas())
    plan = make_plan(sampler, gamma, steps, variance, network_decoder=True)
    v = torch.full(SHAPE, 0.65) if variance == "learned" else None  # (0.3 + 1) / 2

    def predict(z, gamma_t):
        return exact_eps(z, gamma_t.double()[:, None, None, None]).float(), v

    return sample_latents(predict, noises(seed, SHAPE, 0)[0] * sampler.temperature, plan, Noise(seed))


IN_FLOAT64 = [
    (DDIM, LEADING, {}, (2, 7, 10, 333)),
    (DDIM, LEADING | {"clip_sample": False}, {}, (7, 10)),
    (DDIM, LEADING, {"use_clipped_model_output": True}, (7, 10)),
    (DDIM, LEADING, {"eta": 0.6}, (7, 10)),
    (DDIM, LEADING, {"eta": 1.0, "use_clipped_model_output": True}, (7, 10)),
    (DDIM, TRAILING, {}, (2, 10)),
    (DDPM, LEADING, {}, (2, 7, 10, 333)),
    (DDPM, LEADING | {"variance_type": "fixed_large"}, {}, (7, 10)),
    (DDPM, LEADING | {"variance_type": "fixed_small_log", "clip_sample": False}, {}, (7, 10)),
    (DDPM, LEADING | {"variance_type": "learned_range"}, {}, (7, 10)),
    (DDPM, LINSPACE | {"variance_type": "fixed_large"}, {}, (7, 10)),
    (DDPM, TRAILING, {}, (2, 7, 10)),
]


@pytest.mark.parametrize(("kind", "settings", "call", "counts"), IN_FLOAT64)
def test_the_steps_are_theirs(kind, settings, call, counts):
    """In float64. Measured at most 2.8e-6, where 1 / alpha is 157."""
    for steps in counts:
        scheduler = in_float64(kind(**settings))
        sampler = diffusers_sampler(scheduler, **call)
        variance = "learned" if learned(scheduler) else "fixed_small"
        found = our_latents(sampler, steps, 5, variance)
        assert (found - their_latents(scheduler, steps, 5, **call)).abs().max() < 6e-6


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EulerDiscreteScheduler", LEADING), ("EulerDiscreteScheduler", TRAILING),
        ("EulerAncestralDiscreteScheduler", LEADING), ("EulerAncestralDiscreteScheduler", TRAILING),
        ("DPMSolverMultistepScheduler", TRAILING), ("UniPCMultistepScheduler", TRAILING),
        ("UniPCMultistepScheduler", TRAILING | {"solver_order": 3}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("steps", [2, 7, 20])
def test_the_steps_of_others_are_theirs(name, settings, steps):
    """Their tables are float32. Measured at most 5.5e-6."""
    scheduler = getattr(diffusers, name)(**settings)
    found = our_latents(diffusers_sampler(scheduler), steps, 5, "fixed_small")
    assert (found - their_latents(scheduler, steps, 5)).abs().max() < 1e-5


# ------------------------------------------------------------------------------------------------ images of pipelines


PIPELINES = {
    "DDIM": (diffusers.DDIMPipeline, DDIM(prediction_type="sample"), {}),
    "DDIM, eta": (diffusers.DDIMPipeline, DDIM(prediction_type="v_prediction"), {"eta": 0.5}),
    "DDPM": (diffusers.DDPMPipeline, DDPM(prediction_type="sample", variance_type="fixed_large"), {}),
    "DDPM, cosine": (
        diffusers.DDPMPipeline, DDPM(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"), {},
    ),
    "DDPM, learned": (
        diffusers.DDPMPipeline, DDPM(prediction_type="sample", variance_type="learned_range", **LINSPACE), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("steps", [7, 10])
@pytest.mark.parametrize("name", PIPELINES)
def test_images_are_those_of_the_pipeline(tmp_path, name, steps):
    """All bytes are the same but those that round apart: measured at most 1 of 3072, by 1."""
    kind, scheduler, call = PIPELINES[name]
    network = unet_of(SMALL | {"out_channels": 6 if learned(scheduler) else 3})
    model = fastdiff.load(save(tmp_path, network, scheduler))
    pipeline = kind(unet=network, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    drawn = noises(3, (4, *model.shape), steps)
    with drawing(drawn, kind, type(pipeline.scheduler)):
        images = pipeline(batch_size=4, num_inference_steps=steps, output_type="np", **call).images
    expected = torch.tensor((images * 255).round()).byte().permute(0, 3, 1, 2)
    sampler = diffusers_sampler(tmp_path, **call)
    found = fastdiff.sample(model, 4, steps=steps, sampler=sampler, seed=3)
    difference = (found.int() - expected.int()).abs()
    assert expected.float().std() > 20
    assert difference.max() <= 1
    assert (difference > 0).sum() <= 3


def test_a_ddpm_scheduler_as_ddim(tmp_path):
    """As DDIMPipeline reads it."""
    folder = save(tmp_path, unet_of(SMALL), DDPM(variance_type="fixed_large", clip_sample=False))
    sampler = diffusers_sampler(folder, "DDIMScheduler")
    assert sampler == fastdiff.diffusion.DDIM(spacing="leading")
    assert diffusers_sampler(folder / "scheduler" / "scheduler_config.json", "DDIMScheduler") == sampler
    assert diffusers_sampler(folder / "scheduler", "DDIMScheduler") == sampler
    assert diffusers_sampler(folder).variance == "fixed_large"
    assert diffusers_sampler(FastdiffScheduler(method="ddim", clip_sample=False)) == sampler
    assert diffusers_sampler(FastdiffScheduler(variance_type="fixed_large")) == diffusers_sampler(
        DDPM(variance_type="fixed_large")
    )


# ------------------------------------------------------------------------------------------------ what is rejected


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("DDIMScheduler", {"steps_offset": 1}, "steps_offset must be 0, got 1"),
        ("DDIMScheduler", {"clip_sample_range": 2.0}, "clip_sample_range must be 1, got 2.0"),
        ("DDPMScheduler", {"thresholding": True}, "thresholding must be false, got true"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "gamma is infinite there"),
        ("DDIMScheduler", {"set_alpha_to_one": False}, "set_alpha_to_one must be true (otherwise the last step leaves"),
        ("DDIMScheduler", LINSPACE, "timestep_spacing must be 'leading' or 'trailing', got 'linspace'"),
        (
            "DDPMScheduler",
            TRAILING | {"variance_type": "fixed_large"},
            "variance_type must be 'fixed_small' with trail",
        ),
        ("DDPMScheduler", {"variance_type": "learned"}, "variance_type must be 'fixed_small', "),
        ("DPMSolverMultistepScheduler", {}, "timestep_spacing must be 'trailing', got 'linspace'"),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas must be false"),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped must be -inf, got -5.1"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type must be 'bh2'"),
        ("PNDMScheduler", {}, "scheduler must be 'DDPMScheduler', "),
    ],
)
def test_schedulers_that_no_sampler_is(kind, settings, words):
    with pytest.raises(ConfigError) as error:
        diffusers_sampler({"_class_name": kind, **settings})
    assert words in str(error.value)


def test_arguments_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"scheduler must be 'DDPMScheduler', .* got null"):
        diffusers_sampler(dict(DDIM().config))  # which does not say the class
    with pytest.raises(InvalidTypeError, match="source must be a path, a scheduler or its configuration, got a int"):
        diffusers_sampler(3)
    with pytest.raises(InvalidValueError, match=r"eta must lie in \[0.0, 1.0\], got 2"):
        diffusers_sampler(DDIM(), eta=2)
    with pytest.raises(InvalidValueError, match="eta must be 0 for a DDPMScheduler"):
        diffusers_sampler(DDPM(), eta=0.5)
