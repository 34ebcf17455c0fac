"""The callback of `fastdiff.sample`: what it is called with, and how often."""

import pytest
import torch
from tiny import small, small_ddpm, small_diffusevae, small_vae

from fastdiff import sample
from fastdiff.diffusion import DDIM, Ancestral, DPMSolver, Heun, make_plan
from fastdiff.kernels import Noise, Stream, to_unit_range

A, B = 2, 3  # columns of a plan's table


def calls_of(model, n: int, **request) -> tuple[list[tuple], torch.Tensor]:
    """The arguments of all calls, and the images."""
    seen = []
    result = sample(model, n, output="levels", callback=lambda *arguments: seen.append(arguments), **request)
    return seen, result


def predicted(model, z_t, gamma, labels=None, guidance=None, cond=None, clip=False) -> torch.Tensor:
    """x_hat in float64 from the model's eps_hat, u + w (c - u) where it is guided."""
    gamma = gamma.expand(len(z_t))
    with torch.no_grad():
        eps_hat = model.predict(z_t, gamma.float(), labels, cond)[0].double()
        if guidance is not None:
            free = model.predict(z_t, gamma.float(), None, cond)[0].double()
            eps_hat = free + guidance * (eps_hat - free)
    g = gamma.double()[:, None, None, None]
    x_hat = (z_t.double() - torch.sigmoid(g).sqrt() * eps_hat) / torch.sigmoid(-g).sqrt()
    return x_hat.clamp(-1.0, 1.0) if clip else x_hat


@pytest.mark.parametrize(("guidance", "factor"), [(None, 1), (1.0, 1), (2.5, 2), (0.0, 2)])
@pytest.mark.parametrize(
    ("kind", "sampler", "expected"),
    [
        ("vdm", Ancestral(), [0, 1, 2, 3]), ("vdm", DPMSolver(), [0, 1, 2, 3]),
        ("vdm", Heun(), [0, 0, 1, 1, 2, 2, 3, 3]),
        ("ddpm", DDIM(), [0, 1, 2, 3]), ("ddpm", Heun(), [0, 0, 1, 1, 2, 2, 3]),  # the decoder takes the last step
    ],
)  # fmt: skip
def test_steps_and_function_evaluations(kind, sampler, expected, guidance, factor):
    """nfe is how often the network has seen each image of the batch, as a hook counts them: twice in a guided call."""
    model = small(num_classes=3) if kind == "vdm" else small_ddpm(num_classes=3)
    counted, seen = [0], []
    model.network.register_forward_hook(lambda _, inputs, *rest: counted.append(len(inputs[0])))

    def report(step, nfe, z_t, x_hat):
        seen.append((step, nfe, sum(counted), z_t.shape, x_hat.shape))

    sample(model, 5, 4, sampler, labels=1, guidance=guidance, batch_size=2, callback=report)
    total = len(expected) * factor
    for batch, count in enumerate((2, 2, 1)):
        for k, step in enumerate(expected):
            nfe, shape = (k + 1) * factor, (count, 1, 8, 8)
            images = 2 * batch * total + count * nfe
            assert seen[batch * len(expected) + k] == (step, nfe, images, shape, shape)
    assert len(seen) == 3 * len(expected)


@pytest.mark.parametrize(
    ("labels", "guidance", "clip"), [(None, None, False), (1, None, True), (1, 3.0, False), (1, 3.0, True)]
)
@pytest.mark.parametrize("kind", ["vdm", "ddpm"])
@pytest.mark.parametrize("sampler", [Ancestral, Heun])
def test_the_estimate_is_the_prediction_from_the_latent_before(sampler, kind, labels, guidance, clip):
    """x_hat of every call, and the result of the last one; at e^{gamma / 2} = 148 rounding is amplified the most."""
    model = small(num_classes=3, fourier=None) if kind == "vdm" else small_ddpm(num_classes=3)
    sampler = sampler(clip_denoised=clip)
    seen, result = calls_of(model, 2, steps=4, sampler=sampler, seed=6, labels=labels, guidance=guidance)
    gamma = make_plan(sampler, model.gamma, 4, model.variance, kind == "ddpm").gamma
    z = Noise(6, stream=Stream.INITIAL).normal((2, 1, 8, 8))
    labels = None if labels is None else torch.tensor([labels, labels])
    for gamma_t, (_, _, z_t, x_hat) in zip(gamma, seen, strict=True):
        expected = predicted(model, z, gamma_t, labels, guidance, clip=clip)
        torch.testing.assert_close(x_hat.double(), expected, rtol=1e-4, atol=2e-6 * float(torch.exp(0.5 * gamma_t)))
        z = z_t
    assert torch.equal(model.most_likely(z), result)
    if kind == "ddpm":
        assert torch.equal(z, seen[-1][3])  # the last row maps z_1 to x_hat


@pytest.mark.parametrize("formulation", [1, 2])
def test_a_conditional_model_shows_x_t(formulation):
    """In formulation 2 the chain runs in y_t = x_t - cond; the callback is called with x_t, and at the end with x_0."""
    model = small_diffusevae(formulation)
    cond = to_unit_range(torch.arange(17).repeat(8)[:128].view(2, 1, 8, 8), 17)
    seen, result = calls_of(model, 2, steps=4, sampler="ddim", seed=6, cond=cond)
    plan = make_plan(DDIM(), model.gamma, 4, model.variance, network_decoder=True)
    shift = cond if formulation == 2 else torch.zeros_like(cond)
    y = Noise(6, stream=Stream.INITIAL).normal((2, 1, 8, 8))
    for row, (_, _, x_t, x_hat) in enumerate(seen):
        expected = predicted(model, y, plan.gamma[row], cond=cond)
        torch.testing.assert_close(x_hat.double(), expected, rtol=1e-4, atol=1e-3)
        last = row == len(seen) - 1
        y_s = plan.table[row, A] * y + plan.table[row, B] * x_hat
        y = x_t if last else x_t - shift
        torch.testing.assert_close(y, y_s.float(), rtol=1e-5, atol=1e-5)
    assert len(seen) == 4
    assert torch.equal(model.nearest_level(seen[-1][2]), result)


def test_the_callback_changes_nothing():
    model = small("categorical")
    for sampler in ("ancestral", "dpm-solver"):
        _, result = calls_of(model, 3, steps=4, sampler=sampler)
        assert torch.equal(result, sample(model, 3, 4, sampler, output="levels"))


def test_a_vae_does_not_call_it():
    assert calls_of(small_vae(), 3)[0] == []


@pytest.mark.parametrize(("build", "rows"), [(small_vae, 1), (small_ddpm, 4)])
def test_the_progress_bar_counts_every_row_of_every_batch(capsys, build, rows):
    model = build()
    steps = None if build is small_vae else 4
    expected = sample(model, 5, steps=steps, batch_size=2)
    assert capsys.readouterr().err == ""
    seen = []
    result = sample(model, 5, steps=steps, batch_size=2, progress=True, callback=lambda step, *rest: seen.append(step))
    bar = capsys.readouterr().err
    assert "sampling 5 images" in bar
    assert f"{3 * rows}/{3 * rows} " in bar
    assert seen == ([] if build is small_vae else [0, 1, 2, 3] * 3)
    assert torch.equal(result, expected)
