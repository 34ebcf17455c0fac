"""`FastdiffScheduler` in use: pipelines of diffusers, configurations, files, the counter noise, errors."""

import json
import sys

import pytest
import torch
from peers import diffusers
from tiny import small_ddpm

import fastdiff
from fastdiff.diffusion import DDIM as OurDDIM
from fastdiff.diffusion import Ancestral
from fastdiff.interop import FastdiffScheduler
from fastdiff.kernels import FastdiffError, InvalidTypeError, InvalidValueError, Noise, Stream

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DDPM, DDIM = diffusers.DDPMScheduler, diffusers.DDIMScheduler
SHAPE = (4, 3, 8, 8)


def network(t):
    """A network of a closed form, with a prediction of order 1."""
    return lambda z_t: torch.tanh(z_t) * (1.0 - 0.3 * float(t) / 1000) + 0.1


def images(scheduler, steps: int, z_t: torch.Tensor, **options) -> torch.Tensor:
    """Run a loop as a pipeline does."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(z_t, t)
        z_t = scheduler.step(network(t)(scaled), t, z_t, **options).prev_sample
    return z_t


# ------------------------------------------------------------------------------------------------ pipelines


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8),
        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def drawn(pipe, generator, **options) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    result = pipe(batch_size=2, generator=generator, output_type="pt", **options)
    return result.images


PIPELINES = {
    "ddpm": (diffusers.DDPMPipeline, DDPM, {"variance_type": "fixed_large"}, {"num_inference_steps": 12}),
    "ddim": (diffusers.DDIMPipeline, DDIM, {}, {"num_inference_steps": 7}),
    "ddim, eta": (
        diffusers.DDIMPipeline, DDIM, {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"},
        {"num_inference_steps": 7, "eta": 0.7, "use_clipped_model_output": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_gives_the_same_images(unet, name, several):
    """With one generator, and with one for each image. Images are in [0, 1]."""
    kind, scheduler, options, call = PIPELINES[name]
    pipe = kind(unet, scheduler(**options))

    def generator():
        seeded = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        return seeded if several else seeded[0]

    expected = drawn(pipe, generator(), **call)
    pipe.scheduler = FastdiffScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config.method == name[:4]
    found = drawn(pipe, generator(), **call)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # measured: 5.4e-6


def test_a_pipeline_is_saved_and_loaded_with_the_scheduler(unet, tmp_path):
    """model_index.json names our module; a pipeline of any class of scheduler loads our configuration too."""
    pipe = diffusers.DDPMPipeline(unet, FastdiffScheduler(method="ddim", beta_schedule="scaled_linear", seed=5))
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["fastdiff.interop.scheduler", "FastdiffScheduler"]
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.scheduler, FastdiffScheduler)
    options = {"num_inference_steps": 5}
    seeded = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(drawn(loaded, seeded[0], **options), drawn(pipe, seeded[1], **options))
    back = DDIM.from_pretrained(tmp_path, subfolder="scheduler")
    assert back.config.beta_schedule == "scaled_linear"


# ------------------------------------------------------------------------------------------------ configurations


def test_the_method_is_that_of_the_class_of_the_configuration(tmp_path):
    """Whether the configuration was saved or not, and by whichever classes it went before."""
    chains = {
        "ddpm": [[DDPM], [DDIM, DDPM], [DDPM, DDIM, DDPM]],
        "ddim": [[DDIM], [DDPM, DDIM], [DDIM, DDPM, DDIM], [FastdiffScheduler, DDIM]],
    }
    options = {DDPM: {"variance_type": "fixed_large"}, DDIM: {"set_alpha_to_one": False}, FastdiffScheduler: {}}
    for method, kinds in chains.items():
        for first, *others in kinds:
            for values in ({}, options[first]):
                scheduler = first(**values)
                for kind in others:
                    scheduler = kind.from_config(scheduler.config)
                assert FastdiffScheduler.from_config(scheduler.config).config.method == method, (first, others)
                scheduler.save_pretrained(tmp_path)
                assert FastdiffScheduler.from_pretrained(tmp_path).config.method == method, (first, others)
    assert FastdiffScheduler.from_config({"num_train_timesteps": 10, "method": "ddim"}).config.method == "ddim"
    assert FastdiffScheduler.from_config(DDIM().config, method="ddpm").config.method == "ddpm"


def test_another_class_needs_the_method(tmp_path):
    diffusers.PNDMScheduler(skip_prk_steps=True).save_pretrained(tmp_path)
    with pytest.raises(InvalidValueError, match="method must be given for a configuration of PNDMScheduler: one of"):
        FastdiffScheduler.from_pretrained(tmp_path)
    scheduler = FastdiffScheduler.from_pretrained(tmp_path, method="ddim")
    assert scheduler.config.skip_prk_steps  # kept for the way back, as diffusers does
    assert scheduler.config.set_alpha_to_one is False


def every_class():
    """Yield the schedulers of diffusers that have a default configuration."""
    for name in sorted(name for name in dir(diffusers) if name.endswith("Scheduler")):
        kind = getattr(diffusers, name)
        try:
            scheduler = kind()
        except (ImportError, TypeError):  # needs a library that is not installed, or arguments
            continue
        if isinstance(getattr(scheduler, "config", None), dict) and hasattr(scheduler, "step"):
            yield name, scheduler


@pytest.mark.filterwarnings("ignore")  # of classes that diffusers will remove
def test_no_other_class_becomes_one_of_the_two():
    """A configuration that was never saved has no class name; also one with what is kept of a DDPM or DDIM."""
    ours = {"DDPMScheduler": "ddpm", "DDPMParallelScheduler": "ddpm"}
    ours |= {"DDIMScheduler": "ddim", "DDIMParallelScheduler": "ddim"}
    seen = set()
    for name, scheduler in every_class():
        seen.add(name)
        for first in (scheduler, DDPM(), DDIM()):
            config = first.config if first is scheduler else type(scheduler).from_config(first.config).config
            if name in ours:
                assert FastdiffScheduler.from_config(config).config.method == ours[name], name
                continue
            with pytest.raises(InvalidValueError, match="method must be given for a configuration without _class_name"):
                FastdiffScheduler.from_config(config)
            there_and_back = DDIM.from_config(config)
            assert (
                FastdiffScheduler.from_config(
                    there_and_back.config, rescale_betas_zero_snr=False, trained_betas=None, num_train_timesteps=10
                ).config.method
                == "ddim"
            ), name
    assert seen > {*ours, "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "PNDMScheduler", "TCDScheduler"}
    with pytest.raises(InvalidValueError, match="Got a configuration of num_train_timesteps"):
        FastdiffScheduler.from_config({"num_train_timesteps": 10})


def test_a_scheduler_is_saved_and_loaded(tmp_path):
    betas = torch.linspace(0.01, 0.2, 20).tolist()
    scheduler = FastdiffScheduler(
        20, trained_betas=betas, method="ddim", clip_sample_range=0.8, prediction_type="sample", seed=2**63,
        set_alpha_to_one=False, timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.save_pretrained(tmp_path)
    loaded = FastdiffScheduler.from_pretrained(tmp_path)
    kept, again = dict(scheduler.config), dict(loaded.config)
    for hidden in ("_use_default_values", "_class_name", "_diffusers_version"):
        kept.pop(hidden, None), again.pop(hidden, None)
    assert kept == again
    z_t = torch.randn(SHAPE)
    assert torch.equal(images(scheduler, 6, z_t, eta=0.5), images(loaded, 6, z_t, eta=0.5))


# ------------------------------------------------------------------------------------------------ the counter noise


@pytest.mark.parametrize(("method", "options"), [("ddpm", {}), ("ddim", {"eta": 0.8})])
def test_an_image_is_the_same_in_any_split(method, options):
    scheduler = FastdiffScheduler(method=method, seed=11)
    whole = images(scheduler, 8, scheduler.initial_sample(SHAPE), **options)
    parts = []
    for first, count in ((0, 1), (1, 3)):
        scheduler.first_sample = first
        z_t = scheduler.initial_sample((count, *SHAPE[1:]))
        parts.append(images(scheduler, 8, z_t, generator=torch.Generator(), **options))  # which is not used
    assert torch.equal(torch.cat(parts), whole)
    other = FastdiffScheduler(method=method, seed=12)
    assert not torch.allclose(images(other, 8, scheduler.initial_sample(SHAPE), **options), whole)


def test_the_noise_of_a_step_is_that_of_the_contract():
    """Philox with (seed, sample, step, stream SAMPLER), in a step of DDPM from known betas, and no noise from t = 0."""
    scheduler = FastdiffScheduler(4, trained_betas=[0.1, 0.2, 0.3, 0.4], clip_sample=False, seed=3)
    scheduler.first_sample = 9
    z_t, eps_hat = torch.randn(2, *SHAPE, dtype=torch.float64)
    kept = torch.cumprod(1 - torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), 0)
    for i, t in enumerate((3, 2, 1, 0)):
        beta = 1.0 - kept[t] / (kept[t - 1] if t else 1.0)
        mean = (z_t - beta / (1 - kept[t]).sqrt() * eps_hat) / (1 - beta).sqrt()  # Ho et al. 2020, eq. 11
        noise = Noise(3, step=i, first_sample=9, stream=Stream.SAMPLER).normal(SHAPE).double()
        variance = (1 - kept[t - 1]) / (1 - kept[t]) * beta if t else 0.0
        found = scheduler.step(eps_hat.float(), t, z_t.float()).prev_sample
        assert (found - (mean + variance**0.5 * noise)).abs().max() < 1e-6  # measured: 6.1e-7


@pytest.mark.parametrize(("method", "sampler"), [("ddpm", Ancestral()), ("ddim", OurDDIM(eta=0.6))])
def test_images_are_those_of_fastdiff_sample(method, sampler):
    """A seed gives the same images in the loop of a pipeline and in `fastdiff.sample`."""
    model = small_ddpm(T=12, beta_count=12, beta_first=0.01, beta_last=0.3, variance="fixed_small")
    latents = []
    fastdiff.sample(model, 3, steps=12, sampler=sampler, seed=21, callback=lambda *args: latents.append(args[2]))
    scheduler = FastdiffScheduler(12, beta_start=0.01, beta_end=0.3, method=method, clip_sample=False, seed=21)
    scheduler.set_timesteps(12)
    z_t = scheduler.initial_sample((3, *model.shape))
    with torch.no_grad():
        for t in scheduler.timesteps:
            gamma = model.gamma((t / 11).reshape(1)).expand(3)
            eps_hat = model.eps_hat(z_t, gamma)
            z_t = scheduler.step(eps_hat, t, z_t, eta=0.6).prev_sample
    torch.testing.assert_close(z_t, latents[-1], rtol=0, atol=1.5e-5)  # measured: 7.7e-6, of betas in float32


def test_noise_of_add_noise_may_be_a_counter():
    scheduler, x, timesteps = FastdiffScheduler(), torch.randn(SHAPE), torch.tensor([0, 10, 500, 999])
    noise = Noise(4, first_sample=2)
    expected = scheduler.add_noise(x, noise.normal(SHAPE), timesteps)
    torch.testing.assert_close(scheduler.add_noise(x, noise, timesteps), expected)


def test_given_noise():
    """variance_noise is used as it is, before a seed."""
    for options in ({}, {"seed": 1}):
        scheduler = FastdiffScheduler(method="ddim", **options)
        scheduler.set_timesteps(10)
        z_t, eps_hat, noise = torch.randn(3, *SHAPE)
        its = DDIM()
        its.set_timesteps(10)
        found, expected = (
            each.step(eps_hat, 500, z_t, eta=1.0, variance_noise=noise).prev_sample for each in (scheduler, its)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr must be False .at zero terminal SNR"),
        ({"thresholding": True}, "thresholding must be False .it clips"),
        ({"trained_betas": [0.5, 1.0], "num_train_timesteps": 2}, "betas must be in .0, 1.*zero terminal SNR"),
        ({"trained_betas": [0.5, 0.5]}, "trained_betas must be num_train_timesteps = 1000 numbers, got shape .2,"),
        ({"trained_betas": [0.1, 0.2, "a"], "num_train_timesteps": 3}, "trained_betas must be 3 numbers, got"),
        ({"beta_end": 2.0}, "beta_end must be a number in .0, 1., got 2.0"),
        ({"beta_start": 0.0}, "beta_start must be a number in"),
        ({"beta_schedule": "laplace"}, "beta_schedule must be one of 'linear', .* got 'laplace'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type must be one of 'epsilon', 'v_prediction', 'sample'"),
        ({"variance_type": "large"}, "variance_type must be one of"),
        ({"timestep_spacing": "karras"}, "timestep_spacing must be one of"),
        ({"method": "pndm"}, "method must be one of 'ddpm', 'ddim', got 'pndm'"),
        ({"clip_sample_range": 0.0}, "clip_sample_range must be a finite number > 0, got 0.0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be an integer >= 1, got 0"),
        ({"steps_offset": 0.5}, "steps_offset must be an integer >= 0, got 0.5"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_options_that_are_not_allowed(options, message):
    with pytest.raises(FastdiffError, match=message):
        FastdiffScheduler(**options)
    with pytest.raises(FastdiffError, match=message):
        FastdiffScheduler.from_config({"method": "ddpm"} | options)


def test_steps_that_are_not_allowed():
    scheduler, ddim = FastdiffScheduler(), FastdiffScheduler(method="ddim")
    for options, message in [
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer >= 1, got 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be <= 1000"),
        ({}, "num_inference_steps or timesteps must be given, and not both"),
        ({"num_inference_steps": 2, "timesteps": [1, 0]}, "and not both"),
        ({"timesteps": [1, 2]}, "timesteps must decrease"),
        ({"timesteps": [1000, 2]}, "timesteps must decrease and lie in"),
        ({"timesteps": []}, "timesteps must decrease"),
        ({"timesteps": [900.5, 5]}, "timesteps must be an integer >= 0, got 900.5"),
        ({"timesteps": 5}, "timesteps must be a sequence of integers, got 5"),
        ({"timesteps": torch.tensor(5)}, "timesteps must be a sequence of integers"),
    ]:
        with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
            scheduler.set_timesteps(**options)
    x = torch.randn(SHAPE)
    with pytest.raises(InvalidValueError, match="set_timesteps must be called before step"):
        ddim.step(x, 5, x)
    scheduler.set_timesteps(10)
    ddim.set_timesteps(10)
    for call, message in [
        (lambda: scheduler.step(x, 5, x), "timestep must be one of self.timesteps"),
        (lambda: ddim.step(x, 1000, x), "timestep must be in .0, 1000., got 1000"),
        (lambda: ddim.step(x, torch.tensor([1, 2]), x), "timestep must be one timestep"),
        (lambda: ddim.step(x, 500, x, eta=1.5), "eta must be in .0, 1., got 1.5"),
        (lambda: ddim.step(x, 500, x, torch.Generator()), "eta must be a number"),
        (lambda: ddim.step(x[:2], 500, x), "model_output must have shape .4, 3, 8, 8."),
        (lambda: ddim.step(x.double(), 500, x.double()), "float32, bfloat16 or float16"),
        (
            lambda: ddim.step(x, 500, x, eta=1.0, generator=torch.Generator(), variance_noise=x),
            "generator and variance_noise must not both be given",
        ),
        (lambda: ddim.initial_sample(SHAPE), "seed must be given"),
        (lambda: ddim.add_noise(x, x, torch.tensor([1, 2])), "timesteps must be 4 integers, or one"),
        (lambda: ddim.get_velocity(x, x, torch.tensor([1000])), "timesteps must lie in"),
    ]:
        with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
            call()


def test_a_timestep_that_the_offset_puts_outside_the_chain():
    """diffusers fails there with an IndexError; the timesteps after it are usable, as in a run from an image."""
    scheduler = FastdiffScheduler(10, steps_offset=1)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == list(range(10, 0, -1))
    x = torch.randn(SHAPE)
    with pytest.raises(InvalidValueError, match=r"timestep must be in .0, 10.*got 10"):
        scheduler.step(x, 10, x)
    assert [scheduler.previous_timestep(t) for t in (9, 2, 1)] == [8, 1, -1]


def test_without_diffusers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", None)
    monkeypatch.delitem(sys.modules, "fastdiff.interop.scheduler")
    with pytest.raises(FastdiffError, match=r"diffusers must be installed .* pip install 'fastdiff-triton\[interop\]'"):
        fastdiff.interop.FastdiffScheduler  # noqa: B018
