"""`fastdiff.sample`: one seed, one image; samplers by hand; options, outputs, labels and guidance."""

import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
import torch
from lengths import usually
from tiny import DATA, SMALL_DDPM, small, small_ddpm, small_diffusevae, small_vae
from torch import nn

from fastdiff import Latents, sample
from fastdiff.diffusion import (
    DDIM,
    DEIS,
    SAMPLERS,
    Ancestral,
    DPMSolver,
    Heun,
    SamplingError,
    UniPC,
    gamma_table,
    make_plan,
    sample_latents,
)
from fastdiff.diffusion.rows import ddim
from fastdiff.kernels import Noise, Stream, use_backend
from fastdiff.models import DDPM, VDM, DDPMConfig, VDMConfig

EVERY_SAMPLER = [
    Ancestral(), Ancestral(variance="fixed_large", spacing="quadratic"), DDIM(), DDIM(eta=0.5), DPMSolver(), Heun(),
    UniPC(spacing="karras"), DEIS(), DDIM(clip_denoised=True, keep_eps_hat=True),
]  # fmt: skip


def path(model, n: int, **request) -> list[torch.Tensor]:
    """The latents after each call of the network, [n, C, H, W] each."""
    seen = defaultdict(list)
    sample(model, n, callback=lambda step, nfe, z_t, x_hat: seen[nfe].append(z_t.clone()), **request)
    return [torch.cat(seen[nfe]) for nfe in sorted(seen)]


class Recorder(nn.Module):
    """A network that predicts zeros and records its arguments."""

    def __init__(self, channels_out: int = 1) -> None:
        super().__init__()
        self.channels_out, self.seen = channels_out, []
        self.anchor = nn.Parameter(torch.zeros(()))  # a model's device is that of its parameters

    def forward(self, z_t, noise_level, labels=None):
        self.seen.append((z_t.clone(), noise_level.clone(), labels))
        return z_t.new_zeros(len(z_t), self.channels_out, *z_t.shape[2:])


def without_rounding(kind: str) -> VDM | DDPM:
    """A model whose network calls nothing that rounds differently in another batch size."""
    if kind == "vdm":
        return VDM(VDMConfig(**DATA, gamma_0=-8.0, fourier=None), network=Recorder())
    return DDPM(DDPMConfig(**(SMALL_DDPM | {"variance": "learned"})), network=Recorder(2))


# ------------------------------------------------------------------------------------------------ one seed, one image


@pytest.mark.parametrize(("n", "batch_size"), [(12, 1), (12, 5), (12, 64), (30, 64), (30, 7)])
@pytest.mark.parametrize("kind", ["vdm", "ddpm"])
def test_noise_is_bit_identical_for_every_batch_size_and_number_of_images(kind, n, batch_size):
    """The initial latents by the contract of the noise, and every latent after them."""
    model = without_rounding(kind)
    whole = path(model, 12, steps=4, seed=3, batch_size=12)
    initial = model.network.seen[0][0]
    assert torch.equal(initial, Noise(3, stream=Stream.INITIAL).normal((12, 1, 8, 8)))
    model.network.seen.clear()
    for z, expected in zip(path(model, n, steps=4, seed=3, batch_size=batch_size), whole, strict=True):
        assert torch.equal(z[:12], expected)
    assert torch.equal(torch.cat([z_t for z_t, _, _ in model.network.seen[::4]])[:12], initial)
    assert len(whole[0].unique(dim=0)) == 12


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
@pytest.mark.parametrize("kind", ["vdm", "ddpm"])
def test_images_depend_on_the_batch_size_by_rounding_only(kind, sampler):
    model, seen = small("categorical") if kind == "vdm" else small_ddpm(20, prediction="v"), []

    def report(step, nfe, z_t, x_hat):
        seen[-1].append(z_t)

    results = []
    for batch_size in (9, 1, 4):
        seen.append([])
        request = {"steps": 4, "sampler": sampler, "batch_size": batch_size, "output": "levels"}
        results.append(sample(model, 9, callback=report, **request))
    rows = len(seen[0])
    for other, batches in ((1, 9), (2, 3)):
        for k in range(rows):
            parts = torch.cat([seen[other][k + rows * i] for i in range(batches)])
            torch.testing.assert_close(parts, seen[0][k], rtol=1e-4, atol=1e-4)
        assert (results[other] != results[0]).float().mean() < 0.01
    assert results[0].float().std() > 1


def test_seeds_repeat_and_differ():
    model = small()
    first = sample(model, 2, steps=3, seed=1)
    assert torch.equal(sample(model, 2, steps=3, seed=1), first)
    assert not torch.equal(sample(model, 2, steps=3, seed=2), first)


# ------------------------------------------------------------------------------------------------ samplers


def test_ancestral_sampling_of_a_vdm_by_hand():
    """Ancestral sampling written out from the posterior of q, with the same noise."""
    model, steps = small("categorical"), 5
    gamma = gamma_table(model.gamma, steps)
    noise = Noise(3)
    z = noise.at(stream=Stream.INITIAL).normal((2, 1, 8, 8)).double()
    for step in range(steps):
        g_t, g_s = gamma[steps - step], gamma[steps - step - 1]
        alpha_t, alpha_s = (torch.sigmoid(-g).sqrt() for g in (g_t, g_s))
        var_t, var_s = torch.sigmoid(g_t), torch.sigmoid(g_s)
        with torch.no_grad():
            eps_hat = model.eps_hat(z.float(), g_t.float().expand(2)).double()
        x_hat = (z - var_t.sqrt() * eps_hat) / alpha_t
        ratio = alpha_t / alpha_s
        var_ts = var_t - ratio**2 * var_s
        mean = ratio * var_s / var_t * z + alpha_s * var_ts / var_t * x_hat
        eps = noise.at(step=step, stream=Stream.SAMPLER).normal((2, 1, 8, 8)).double()
        z = mean + (var_ts * var_s / var_t).sqrt() * eps
    torch.testing.assert_close(path(model, 2, steps=5, seed=3)[-1].double(), z, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_ancestral_sampling_of_a_ddpm_by_hand(variance):
    """Ho et al. 2020, algorithm 2, and Nichol and Dhariwal 2021, eq. 15, from the betas themselves.

    19 steps from z_20 to z_1, with variance beta_t, the posterior's, or between the two, and x_hat of z_1.
    """
    model = small_ddpm(20, prediction="v", variance=variance, beta_count=20, beta_last=0.5)
    betas = torch.linspace(1e-4, 0.5, 20, dtype=torch.float64)
    product = (1 - betas).cumprod(0)
    gamma = torch.log((1 - product) / product).float()
    z = Noise(3).at(stream=Stream.INITIAL).normal((2, 1, 8, 8)).double()
    for k, t in enumerate(range(19, -1, -1)):
        with torch.no_grad():
            eps_hat, v = model.predict(z.float(), gamma[t].expand(2))
        if t == 0:
            z = (z - (1 - product[t]).sqrt() * eps_hat) / product[t].sqrt()
            break
        mean = (z - betas[t] / (1 - product[t]).sqrt() * eps_hat) / (1 - betas[t]).sqrt()
        posterior = (1 - product[t - 1]) / (1 - product[t]) * betas[t]
        v = {"fixed_small": 0.0, "fixed_large": 1.0}.get(variance, v)
        eps = Noise(3).at(step=k, stream=Stream.SAMPLER).normal(z.shape)
        z = mean + betas[t] ** (0.5 * v) * posterior ** (0.5 * (1 - v)) * eps
    torch.testing.assert_close(path(model, 2, steps=20, seed=3)[-1].double(), z, rtol=1e-6, atol=5e-6)
    centers = (2 * torch.arange(17, dtype=torch.float64) + 1) / 17 - 1
    nearest = (z.unsqueeze(-1) - centers).abs().argmin(-1)
    assert torch.equal(sample(model, 2, steps=20, seed=3, output="levels"), nearest)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variance", ["fixed_small", "learned"])
def test_every_sampler_on_a_ddpm(variance, sampler):
    """The images depend on the weights, and on the variance that is asked for."""
    model, other_weights = (small_ddpm(20, seed, prediction="v", variance=variance) for seed in (0, 1))
    request = {"steps": 6, "output": "levels", "sampler": SAMPLERS[sampler](clip_denoised=True)}
    result = sample(model, 4, **request)
    assert result.shape == (4, 1, 8, 8)
    assert result.max() <= 16
    assert result.float().std() > 1
    assert not torch.equal(sample(other_weights, 4, **request), result)
    if sampler == "ancestral":
        for other in ("fixed_small", "fixed_large"):
            sampler_ = Ancestral(variance=other, clip_denoised=True)
            asked = sample(model, 4, **(request | {"sampler": sampler_}))
            assert torch.equal(asked, result) == (other == variance)


def test_a_name_and_a_function_stand_for_a_sampler():
    model = small("categorical")
    for name, sampler in SAMPLERS.items():
        assert torch.equal(sample(model, 2, 3, name), sample(model, 2, 3, sampler()))
    assert torch.equal(sample(model, 2, 3, lambda gamma: ddim(gamma, 0.5)), sample(model, 2, 3, DDIM(eta=0.5)))


@pytest.mark.parametrize(
    ("kind", "sampler"), usually([("vdm", "heun")], [("vdm", "heun"), ("ddpm", "ancestral")], True)
)
def test_the_kernel_runs_the_same_loop(kind, sampler):
    """Every latent to 5e-5 (measured 1.4e-5), for networks without Fourier features, which amplify rounding."""
    model = small(fourier=None) if kind == "vdm" else small_ddpm(20, prediction="v", variance="learned")
    expected = path(model, 2, steps=3, sampler=sampler)
    with use_backend("interpreter"):
        result = path(model, 2, steps=3, sampler=sampler)
    for z, other in zip(result, expected, strict=True):
        torch.testing.assert_close(z, other, rtol=0, atol=5e-5)


def test_options_of_the_sampler_reach_the_loop():
    """Temperature, clipping, eta and spacing against `sample_latents` with a plan and a scaled initial latent."""
    model = small_ddpm(20, prediction="v")  # its x_hat leaves [-1, 1], so that clipping matters
    options = {"eta": 0.3, "spacing": "gamma", "temperature": 3.0, "clip_denoised": True}
    plan = make_plan(DDIM(**options), model.gamma, 4, network_decoder=True)
    assert torch.equal(plan.gamma, gamma_table(model.gamma, 3, "gamma").flip(0))
    initial = 3.0 * Noise(5, stream=Stream.INITIAL).normal((2, 1, 8, 8))
    z_0 = sample_latents(model.predict, initial, plan, Noise(5))
    result = sample(model, 2, 4, DDIM(**options), seed=5, output="levels")
    assert torch.equal(result, model.most_likely(z_0))
    for name, value in {"eta": 0.0, "spacing": "time", "temperature": 1.0, "clip_denoised": False}.items():
        other = sample(model, 2, 4, DDIM(**(options | {name: value})), seed=5, output="levels")
        assert not torch.equal(other, result), name


@pytest.mark.parametrize("spacing", ["time", "quadratic", "gamma"])
def test_the_network_is_called_at_the_noise_levels_of_the_spacing(spacing):
    model = without_rounding("vdm")  # gamma is linear from -8 to 5, and the network sees (gamma + 8) / 13
    sample(model, 2, steps=4, sampler=Ancestral(spacing=spacing))
    levels = torch.stack([level for _, level, _ in model.network.seen])
    expected = torch.tensor([1.0, 0.75, 0.5, 0.25]) ** (2 if spacing == "quadratic" else 1)
    torch.testing.assert_close(levels, expected[:, None].expand(4, 2))


# ------------------------------------------------------------------------------------------------ outputs and options


def test_outputs():
    model = small()
    levels = sample(model, 3, steps=2, output="levels")
    assert levels.dtype == torch.uint8
    assert levels.shape == (3, 1, 8, 8)
    bytes_ = sample(model, 3, steps=2)
    assert torch.equal(bytes_, torch.round(levels.double() * 255 / 16).byte())
    torch.testing.assert_close(sample(model, 3, steps=2, output="float"), levels / 8.0 - 1.0)
    assert np.array_equal(np.asarray(sample(model, 3, steps=2, output="pil")[2]), bytes_[2, 0].numpy())
    assert sample(model, 0, steps=2).shape == (0, 1, 8, 8)
    assert sample(model, 0, steps=2, output="pil") == []
    assert sample(small(num_classes=3), 0, steps=2, labels=[]).shape == (0, 1, 8, 8)


def test_labels_and_guidance():
    """w = 1 is the conditional model and calls the network once, w = 0 is the unconditional one, to the rounding of a
    call on twice the batch (6.5e-5 measured)."""
    model, calls = small(num_classes=3), []
    two = torch.full((2,), 2)
    conditional = path(model, 2, steps=4, labels=two)[-1]
    model.network.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(path(model, 2, steps=4, labels=two, guidance=1.0)[-1], conditional)
    assert len(calls) == 4
    free = path(model, 2, steps=4, labels=two, guidance=0.0)[-1]
    torch.testing.assert_close(free, path(model, 2, steps=4)[-1], rtol=0, atol=2e-4)
    assert not torch.allclose(free, conditional, atol=1e-2)
    assert not torch.allclose(path(model, 2, steps=4, labels=two, guidance=3.0)[-1], conditional, atol=1e-2)
    result = sample(model, 2, steps=2, labels=[2, 0])
    for labels in (torch.tensor([2, 0], dtype=torch.uint64), torch.tensor([2, 0]).byte(), np.array([2, 0])):
        assert torch.equal(sample(model, 2, steps=2, labels=labels), result)
    five = {"steps": 2, "labels": [2, 0, 1, 0, 2], "guidance": 3.0}
    whole, parts = path(model, 5, **five)[-1], path(model, 5, batch_size=2, **five)[-1]
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3)  # every image keeps its label in every batch size
    assert torch.equal(sample(model, 2, steps=2, labels=2), sample(model, 2, steps=2, labels=[2, 2]))
    assert not torch.equal(sample(model, 2, steps=2, labels=2), result)


@pytest.mark.parametrize("build", [small_vae, small_diffusevae])
def test_latents_that_are_handed_over(build):
    """`latents.z` gives what decode gives; a second stage is conditioned on E[x | z]."""
    model, z = build(depth=2), torch.randn(5, 5)
    request = {} if build is small_vae else {"steps": 3, "seed": 4}
    result = sample(model, 5, latents=Latents(z=z), output="levels", **request)
    if build is small_vae:
        expected = model.decode(z)
    else:
        expected = sample(model, 5, cond=model.cond_from_latents(z), output="levels", **request)
        assert not torch.equal(result, sample(model, 5, output="levels", **request))
    assert torch.equal(result, expected)
    parts = sample(model, 5, latents=Latents(z=z), output="levels", batch_size=2, **request)
    assert (parts != expected).float().mean() < 0.02  # rounding may move a pixel by a level


def test_modes_of_the_modules_are_restored():
    """A frozen part in eval mode inside a model in training stays so, also where a call fails."""
    model = small().train()
    model.network.attention.eval()

    def fail(step, nfe, z_t, x_hat):
        assert not any(part.training for part in model.modules())
        raise KeyError

    sample(model, 1, steps=2)
    with pytest.raises(KeyError):
        sample(model, 1, steps=2, callback=fail)
    assert model.training
    assert not model.network.attention.training
    assert model.network.down.training


def test_a_sample_that_is_not_finite_is_an_error():
    model = small()
    with torch.no_grad():
        model.network.conv_out.bias.fill_(float("inf"))
    with pytest.raises(SamplingError, match="not finite after 3 calls"):
        sample(model, 1, steps=3)


def test_as_a_library_from_another_folder(tmp_path):
    """A saved model in a process that starts in its folder gives the pixels that it gives here."""
    small("categorical").save(tmp_path / "model")
    code = (
        "import fastdiff\n"
        "images = fastdiff.sample('model', 3, steps=2, seed=1)\n"
        "print(images.dtype, *images.shape, *images.flatten().tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kind, *numbers = done.stdout.split()
    assert kind == "torch.uint8"
    assert [int(number) for number in numbers[:4]] == [3, 1, 8, 8]
    here = sample(tmp_path / "model", 3, steps=2, seed=1).flatten()
    there = torch.tensor([int(number) for number in numbers[4:]])
    assert (there != here).float().mean() < 0.02  # the rounding of the network may move a pixel by a level


class Flat(nn.Module):
    """A network that views its input as rows, which channels-last memory does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 3 * 8 * 8)

    def forward(self, x, noise_level, labels=None):
        return self.linear(x.view(len(x), -1)).view(x.shape)


@pytest.mark.parametrize("sampler", [Ancestral(), DPMSolver(), Heun()])
def test_latents_have_the_layout_of_the_network(sampler):
    """Channels-last for ours, so that no step copies them; contiguous for the user's own, and for callbacks."""
    settings = {**SMALL_DDPM, "shape": (3, 8, 8)}
    seen, shown = [], []
    for model in (DDPM(DDPMConfig(**settings)), DDPM(DDPMConfig(**settings), network=Flat())):
        model.eval().network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].stride()))
        images = sample(
            model, 2, 3, sampler, output="levels", callback=lambda step, nfe, z, x_hat: shown.append((z, x_hat))
        )
        assert images.is_contiguous()
        assert all(value.is_contiguous() for values in shown for value in values)
        expected = (192, 1, 24, 3) if model.custom == () else (192, 64, 8, 1)
        assert set(seen) == {expected}
        seen.clear()
