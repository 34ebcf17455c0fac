"""The numbers of `FastdiffScheduler` against diffusers' DDPMScheduler and DDIMScheduler as they are, in float32.

Errors are norms of differences relative to the norm of the result, of each sample. Two kinds of samples are compared:
z_t and a prediction that fit each other, so that x_hat is of order 1, and two that are independent, so that it is not.
"""

import itertools

import pytest
import torch
from peers import diffusers

from fastdiff.interop import FastdiffScheduler
from fastdiff.kernels import use_backend

# raised by NumPy 2 inside diffusers' set_timesteps, which hands it tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DDPM, DDIM = diffusers.DDPMScheduler, diffusers.DDIMScheduler
BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2"]
SPACINGS = ["leading", "trailing", "linspace"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SHAPE = (3, 4, 5)
STEPS = (1, 2, 7, 333, 1000)
TOLERANCE = 1e-5


def pair(kind, **options):
    """A scheduler of diffusers, and ours from its configuration."""
    its = kind(**options)
    return its, FastdiffScheduler.from_config(its.config)


def set_steps(schedulers, steps: int) -> list[int]:
    """Set the steps of both schedulers; return four or fewer of their timesteps."""
    for scheduler in schedulers:
        scheduler.set_timesteps(steps)
    timesteps = schedulers[1].timesteps.tolist()
    assert timesteps == schedulers[0].timesteps.tolist()
    return [timesteps[i] for i in sorted({0, steps // 2, steps - 2, steps - 1} & set(range(steps)))]


def sample_and_prediction(scheduler, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of two: a sample whose prediction fits it, and one whose prediction does not."""
    kept = scheduler.alphas_cumprod[t].double()
    alpha, sigma = kept.sqrt(), (1.0 - kept).sqrt()
    x, eps = 2.4 * torch.rand(SHAPE, dtype=torch.float64) - 1.2, torch.randn(SHAPE, dtype=torch.float64)
    prediction = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x, "sample": x}
    fitting = prediction[scheduler.config.prediction_type].float()
    unrelated = torch.randn(2, *SHAPE)
    return torch.stack([(alpha * x + sigma * eps).float(), unrelated[0]]), torch.stack([fitting, unrelated[1]])


def error(ours: torch.Tensor, its: torch.Tensor) -> float:
    """The largest relative error of a sample."""
    ours, its = ours.double().flatten(1), its.double().flatten(1)
    return float(((ours - its).norm(dim=1) / its.norm(dim=1)).max())


def step_error(schedulers, t: int, **options) -> float:
    """The error of one step, of both its results, with the noise of one generator's seed."""
    z_t, prediction = sample_and_prediction(schedulers[0], t)
    its, ours = (
        scheduler.step(prediction, t, z_t, generator=torch.Generator().manual_seed(t), **options)
        for scheduler in schedulers
    )
    return max(error(ours.prev_sample, its.prev_sample), error(ours.pred_original_sample, its.pred_original_sample))


# ------------------------------------------------------------------------------------------------ timesteps


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("count", "offset"), [(1000, 0), (50, 1)])
def test_timesteps(spacing, count, offset):
    """Of all numbers of steps. An intended difference: the trailing spacing of diffusers may add a timestep -1."""
    its, ours = pair(DDIM, num_train_timesteps=count, timestep_spacing=spacing, steps_offset=offset)
    assert ours.timesteps.tolist() == its.timesteps.tolist()
    added = 0
    for steps in range(1, count + 1):
        its.set_timesteps(steps)
        ours.set_timesteps(steps)
        expected = its.timesteps.tolist()
        if expected[-1] < 0:
            added += 1
            expected.pop()
        assert ours.timesteps.tolist() == expected
        assert len(expected) == steps == ours.num_inference_steps
    assert added == ({1000: 62, 50: 2}[count] if spacing == "trailing" else 0)
    assert ours.timesteps.dtype == torch.int64
    assert len(ours) == count


@pytest.mark.parametrize("kind", [*BETAS, "sigmoid"])
def test_tables_have_the_same_bits(kind):
    for count, first, last in [(1000, 1e-4, 0.02), (1000, 0.00085, 0.012), (77, 1e-3, 0.2)]:
        its, ours = pair(DDPM, num_train_timesteps=count, beta_start=first, beta_end=last, beta_schedule=kind)
        for name in ("betas", "alphas", "alphas_cumprod"):
            torch.testing.assert_close(getattr(ours, name), getattr(its, name), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------ single steps


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("betas", BETAS)
def test_steps_of_ddpm(betas, spacing):
    worst = 0.0
    for prediction, clip, variance in itertools.product(PREDICTIONS, (None, 1.0, 0.5), ("fixed_small", "fixed_large")):
        schedulers = pair(
            DDPM, beta_schedule=betas, timestep_spacing=spacing, prediction_type=prediction, variance_type=variance,
            clip_sample=clip is not None, clip_sample_range=clip or 1.0,
        )  # fmt: skip
        for steps in STEPS:
            worst = max([worst, *(step_error(schedulers, t) for t in set_steps(schedulers, steps))])
    assert worst < TOLERANCE / 5  # measured: 7e-7


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("betas", BETAS)
def test_steps_of_ddim(betas, spacing):
    worst = 0.0
    for prediction, clip, to_one in itertools.product(PREDICTIONS, (None, 1.0, 0.5), (True, False)):
        schedulers = pair(
            DDIM, beta_schedule=betas, timestep_spacing=spacing, prediction_type=prediction, set_alpha_to_one=to_one,
            clip_sample=clip is not None, clip_sample_range=clip or 1.0,
        )  # fmt: skip
        for steps in STEPS:
            for t in set_steps(schedulers, steps):
                for eta, again in [(0.0, steps == 7), (1.0, False)] if steps > 2 else [(0.5, False), (1.0, True)]:
                    worst = max(worst, step_error(schedulers, t, eta=eta, use_clipped_model_output=again))
    assert worst < TOLERANCE  # measured: 7.3e-6, of cosine betas with eta = 1, where diffusers subtracts variances


def test_every_timestep_of_a_chain():
    """Before set_timesteps DDPM goes from t to t - 1, and DDIM steps from any timestep."""
    for kind, options in ((DDPM, {}), (DDIM, {"eta": 0.3})):
        schedulers = pair(kind, beta_schedule="scaled_linear")
        if kind is DDIM:
            set_steps(schedulers, 20)
        worst = max(step_error(schedulers, t, **options) for t in range(1000))
        assert worst < TOLERANCE  # measured: 4.2e-6, where 1 / alpha_t is just below `LARGEST_SCALE`


def test_custom_timesteps_of_ddpm():
    schedulers, timesteps = pair(DDPM), [980, 700, 250, 100, 3]
    for scheduler in schedulers:
        scheduler.set_timesteps(timesteps=timesteps)
    assert schedulers[1].timesteps.tolist() == timesteps
    assert max(step_error(schedulers, t) for t in timesteps) < TOLERANCE
    previous = [schedulers[1].previous_timestep(t) for t in torch.tensor(timesteps)]
    assert previous == [schedulers[0].previous_timestep(t) for t in timesteps] == [700, 250, 100, 3, -1]


def test_custom_timesteps_of_ddim():
    """Each step goes to the next in the list, the last to x_hat."""
    scheduler, even = FastdiffScheduler(method="ddim"), FastdiffScheduler(method="ddim")
    scheduler.set_timesteps(timesteps=[800, 600, 500, 0])
    even.set_timesteps(5)  # 800, 600, 400, 200, 0
    z_t, prediction = sample_and_prediction(scheduler, 800)
    for t in (800, 0):
        found, expected = (each.step(prediction, t, z_t).prev_sample for each in (scheduler, even))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    even.set_timesteps(10)  # 600 to 500
    found, expected = (each.step(prediction, 600, z_t).prev_sample for each in (scheduler, even))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert scheduler.num_inference_steps == 4


@pytest.mark.parametrize("variance", ["fixed_small_log", "learned_range", "learned"])
def test_other_variances(variance):
    its, ours = pair(DDPM, variance_type=variance)
    for t in set_steps((its, ours), 50):
        z_t, prediction = sample_and_prediction(its, t)
        if variance.startswith("learned"):
            prediction = torch.cat([prediction, torch.rand(2, *SHAPE)], dim=1)
        expected, found = (
            scheduler.step(prediction, t, z_t, generator=torch.Generator().manual_seed(0), return_dict=False)
            for scheduler in (its, ours)
        )
        assert error(found[0], expected[0]) < TOLERANCE
        assert error(found[1], expected[1]) < TOLERANCE


def test_the_logarithm_of_the_large_variance_is_the_large_one():
    """An intended difference: diffusers takes the root of the logarithm, which is NaN."""
    its, log = pair(DDPM, variance_type="fixed_large_log")
    large = FastdiffScheduler(variance_type="fixed_large")
    z_t, prediction = sample_and_prediction(its, 500)
    results = [
        scheduler.step(prediction, 500, z_t, generator=torch.Generator().manual_seed(0)).prev_sample
        for scheduler in (its, log, large)
    ]
    assert results[0].isnan().all()
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=0)


def test_ddim_ignores_the_channels_of_a_learned_variance():
    its, ours = pair(DDIM)
    learned = FastdiffScheduler.from_config(its.config, variance_type="learned_range")
    for scheduler in (ours, learned):
        scheduler.set_timesteps(10)
    z_t, prediction = sample_and_prediction(its, 500)
    both = torch.cat([prediction, torch.randn(2, *SHAPE)], dim=1)
    assert torch.equal(learned.step(both, 500, z_t).prev_sample, ours.step(prediction, 500, z_t).prev_sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [DDPM, DDIM])
def test_half_precision(kind, dtype):
    """Arithmetic is float32: the error is that of rounding the result, at most eps / 2 of an element."""
    its, ours = pair(kind)
    for t in set_steps((its, ours), 50):
        z_t, prediction = (each.to(dtype) for each in sample_and_prediction(its, t))
        found = ours.step(prediction, t, z_t, generator=torch.Generator().manual_seed(t))
        noise = torch.randn(z_t.shape, generator=torch.Generator().manual_seed(t), dtype=dtype).float()
        options = {"variance_noise": noise} if kind is DDPM else {}
        expected = ours.step(prediction.float(), t, z_t.float(), **options)
        for half, single in zip(found.values(), expected.values(), strict=True):
            assert half.dtype == dtype
            torch.testing.assert_close(half, single.to(dtype), rtol=0, atol=0)


def test_the_dtype_of_the_result_is_the_wider_one():
    """A network under autocast gives 16 bits for a float32 sample."""
    its, ours = pair(DDIM)
    set_steps((its, ours), 10)
    z_t, prediction = sample_and_prediction(its, 500)
    for z, p in [(z_t, prediction.bfloat16()), (z_t.bfloat16(), prediction), (z_t.half(), prediction.bfloat16())]:
        assert ours.step(p, 500, z).prev_sample.dtype == torch.float32
    expected = its.step(prediction.bfloat16().float(), 500, z_t).prev_sample
    assert error(ours.step(prediction.bfloat16(), 500, z_t).prev_sample, expected) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_triton_kernel(dtype):
    """In Triton's interpreter: rows with and without a residual, with eps_hat kept, and with a learned variance."""
    for kind, options in ((DDIM, {"eta": 1.0}), (DDPM, {}), (DDPM, {"variance_type": "learned_range"})):
        learned = {key: options.pop(key) for key in ("variance_type",) if key in options}
        scheduler = FastdiffScheduler.from_config(kind().config, seed=3, **learned)
        scheduler.set_timesteps(10)
        for t in (900, 400, 0):
            z_t, prediction = (each.to(dtype) for each in sample_and_prediction(scheduler, t))
            if learned:
                prediction = torch.cat([prediction, 0.5 * prediction], dim=1)
            expected = scheduler.step(prediction, t, z_t, **options)
            with use_backend("interpreter"):
                found = scheduler.step(prediction, t, z_t, **options)
            for ours, reference in zip(found.values(), expected.values(), strict=True):
                # the interpreter truncates to bfloat16, so a result may differ by one unit in the last place
                torch.testing.assert_close(ours, reference, rtol=2e-6 if dtype == torch.float32 else 2**-7, atol=4e-6)


# ------------------------------------------------------------------------------------------------ the forward process


@pytest.mark.parametrize("betas", BETAS)
def test_add_noise_and_get_velocity(betas):
    its, ours = pair(DDPM, beta_schedule=betas)
    timesteps = torch.arange(1000)
    x, noise = torch.randn(2, 1000, *SHAPE)
    assert error(ours.add_noise(x, noise, timesteps), its.add_noise(x, noise, timesteps)) < 3e-7  # measured: 1.2e-7
    found, expected = ours.get_velocity(x, noise, timesteps), its.get_velocity(x, noise, timesteps)
    assert error(found, expected) < 3e-7  # measured: 1.2e-7
    one = torch.tensor([300])
    assert error(ours.add_noise(x, noise, one), its.add_noise(x, noise, one)) < 3e-7
    assert error(ours.get_velocity(x, noise, one[0]), its.get_velocity(x, noise, one[0])) < 3e-7
    half = ours.get_velocity(x.half(), noise.half(), timesteps)
    torch.testing.assert_close(half, ours.get_velocity(x.half().float(), noise.half().float(), timesteps).half())


# ------------------------------------------------------------------------------------------------ whole loops


def ramp(backwards: bool = False) -> torch.Tensor:
    """[4, 3, 8, 8], from 0 to 1 with the batch as the fastest index: the sample that diffusers' tests start from."""
    values = torch.arange(768) / 768
    return (values.flip(0) if backwards else values).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)


def loop(scheduler, sample: torch.Tensor, timesteps) -> float:
    """Sum of absolute values after the steps with a network that returns z_t t / (t + 1)."""
    generator = torch.Generator().manual_seed(0)
    for t in timesteps:
        sample = scheduler.step(sample * t / (t + 1), t, sample, generator=generator).prev_sample
    return float(sample.abs().sum())


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({}, 172.0067),
        ({"prediction_type": "v_prediction"}, 52.5302),
        ({"beta_start": 0.01, "set_alpha_to_one": True}, 149.8295),
        ({"beta_start": 0.01, "set_alpha_to_one": False}, 149.0784),
    ],
)
def test_sums_of_diffusers_own_tests_of_ddim(options, total):
    """The sums stand in its tests to four digits. Ten steps, eta = 0."""
    its, ours = pair(DDIM, **options)
    set_steps((its, ours), 10)
    assert abs(loop(ours, ramp(), ours.timesteps) - total) < 2e-4
    assert abs(loop(its, ramp(), its.timesteps) - total) < 2e-4


def test_sum_of_diffusers_own_test_of_ddim_with_noise():
    """The last two of ten steps, from a noisy sample."""
    its, ours = pair(DDIM)
    set_steps((its, ours), 10)
    timesteps = ours.timesteps[8:]
    z_t = ours.add_noise(ramp(), ramp(backwards=True), timesteps[:1])
    assert abs(loop(ours, z_t, timesteps) - 354.5418) < 2e-4


@pytest.mark.parametrize(("options", "total"), [({}, 258.9606), ({"prediction_type": "v_prediction"}, 202.0296)])
def test_sums_of_diffusers_own_tests_of_ddpm(options, total):
    """1000 steps without set_timesteps."""
    its, ours = pair(DDPM, **options)
    assert abs(loop(ours, ramp(), range(999, -1, -1)) - total) < 1e-3
    assert abs(loop(its, ramp(), range(999, -1, -1)) - total) < 1e-3
