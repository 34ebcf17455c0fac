"""Sampling: one seed, one image; what comes out; what is refused. And the pictures made of it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SMALL, images, small

import fastdiff
from fastdiff import sample as sample_package_attribute
from fastdiff.kernels import Noise, Stream, use_backend
from fastdiff.models import DDPM, DDPMConfig
from fastdiff.plots import grid, to_pil, to_uint8
from fastdiff.sample import SamplingError, sample, sample_latents, sampling_plan
from fastdiff.samplers import SAMPLERS
from fastdiff.schedules import gamma_table


def latents(model, count, first, steps=4, seed=3, labels=None, guidance=None, **choices):
    walk = sampling_plan(model, steps, **choices)
    return sample_latents(model, count, walk, Noise(seed, first_sample=first), labels, guidance)


def small_ddpm(seed: int = 0, **changes) -> DDPM:
    """A small DDPM with weights that are not zero where they start at zero; its x_hat stays near the data."""
    torch.manual_seed(seed)
    settings = {"shape": (1, 8, 8), "levels": 17, "steps": 20, "head": "v", "network": SMALL}
    model = DDPM(DDPMConfig(**(settings | changes)))
    for parameter in model.network.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


class Recorder(torch.nn.Module):
    """A network that predicts nothing and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, features, number, labels=None):
        self.seen.append((features.clone(), number.clone(), labels))
        return torch.zeros_like(features[:, :1])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_initial_and_step_noise_are_bit_identical_in_any_batch(batch_size):
    """A network without rounding of its own: z along the whole path is bit-identical to one batch of 20."""

    def path(size):
        model = small(fourier=None)
        model.network = recorder = Recorder()
        parts = []
        for first in range(0, 20, size):
            parts.append(latents(model, min(size, 20 - first), first))
        per_call = [features for features, _, _ in recorder.seen]
        steps = [torch.cat(per_call[k::4]) for k in range(4)]
        return [*steps, torch.cat(parts)]

    for given, whole in zip(path(batch_size), path(20), strict=True):
        assert torch.equal(given, whole)


REQUESTS = {name: {"sampler": name} for name in SAMPLERS} | {
    "ddim, eta ½": {"sampler": "ddim", "eta": 0.5},
    "ancestral, large, quadratic": {"variance": "large", "grid": "quadratic"},
}


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("build", [lambda: small("levels"), small_ddpm], ids=["vdm", "ddpm"])
def test_images_do_not_depend_on_the_batch_size(build, request_):
    """Equal up to the rounding of the network: latents to 1e-4, images almost everywhere."""
    model, choices = build(), REQUESTS[request_]
    whole = latents(model, 20, 0, **choices)
    for size in (1, 7):
        parts = [latents(model, min(size, 20 - first), first, **choices) for first in range(0, 20, size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)
    pictures = [sample(model, 20, steps=4, batch_size=size, output="levels", **choices) for size in (1, 7, 64)]
    assert pictures[0].float().std() > 1
    for other in pictures[1:]:
        assert (other != pictures[0]).float().mean() < 0.01


def test_the_loop_by_hand():
    """Ancestral sampling written out from the posterior of q, with the same noise."""
    model, steps = small("levels"), 5
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
    torch.testing.assert_close(latents(model, 2, 0, steps=5).double(), z, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_a_ddpm_by_hand(variance):
    """Ho et al. 2020, algorithm 2, and Nichol and Dhariwal 2021, eq. 15, from the betas themselves.

    19 steps from z_20 to z_1, with variance beta_t, the posterior's, or between the two, and x_hat of z_1.
    """
    model = small_ddpm(variance=variance, beta_count=20, beta_last=0.5)
    betas = torch.linspace(1e-4, 0.5, 20, dtype=torch.float64)
    product = (1 - betas).cumprod(0)
    gamma = torch.log((1 - product) / product).float()
    z = Noise(3).at(stream=Stream.INITIAL).normal((2, 1, 8, 8)).double()
    for k, t in enumerate(range(19, -1, -1)):
        with torch.no_grad():
            eps_hat, fraction = model.predict(z.float(), gamma[t].expand(2))
        if t == 0:
            z = (z - (1 - product[t]).sqrt() * eps_hat) / product[t].sqrt()
            break
        mean = (z - betas[t] / (1 - product[t]).sqrt() * eps_hat) / (1 - betas[t]).sqrt()
        posterior = (1 - product[t - 1]) / (1 - product[t]) * betas[t]
        own = {"small": 0.0, "large": 1.0}.get(variance, fraction)
        eps = Noise(3).at(step=k, stream=Stream.SAMPLER).normal(z.shape)
        z = mean + betas[t] ** (0.5 * own) * posterior ** (0.5 * (1 - own)) * eps
    torch.testing.assert_close(latents(model, 2, 0, steps=20).double(), z, rtol=1e-6, atol=5e-6)
    centres = (2 * torch.arange(17, dtype=torch.float64) + 1) / 17 - 1
    nearest = (z.unsqueeze(-1) - centres).abs().argmin(-1)
    assert torch.equal(sample(model, 2, steps=20, seed=3, output="levels"), nearest)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variance", ["small", "learned"])
def test_every_sampler_on_a_ddpm(variance, sampler):
    """Images that the network has a say in, with its own variance or another that is asked for."""
    model, other_weights = (small_ddpm(variance=variance, seed=seed) for seed in (0, 1))
    given = sample(model, 4, steps=6, sampler=sampler, output="levels", clip=True)
    assert given.shape == (4, 1, 8, 8)
    assert given.max() <= 16
    assert given.float().std() > 1
    assert not torch.equal(sample(other_weights, 4, steps=6, sampler=sampler, output="levels", clip=True), given)
    if sampler == "ancestral":
        for other in ("small", "large"):
            asked = sample(model, 4, steps=6, variance=other, output="levels", clip=True)
            assert torch.equal(asked, given) == (other == variance)


@pytest.mark.parametrize(("kind", "sampler"), [("vdm", "dpm-solver"), ("vdm", "heun"), ("ddpm", "ancestral")])
def test_the_kernel_runs_the_same_loop(kind, sampler):
    model = small("levels") if kind == "vdm" else small_ddpm(variance="learned")
    expected = latents(model, 2, 0, sampler=sampler)
    with use_backend("interpreter"):
        given = latents(model, 2, 0, sampler=sampler)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_options_reach_the_loop():
    """Temperature, clip, eta and the grid of a request are those of `sample_latents` and `sampling_plan`."""
    model = small_ddpm()  # its x_hat leaves [-1, 1], so that clip does something
    walk = sampling_plan(model, 4, "ddim", eta=0.3, grid="gamma")
    z_0 = sample_latents(model, 2, walk, Noise(5), temperature=3.0, clip=1.0)
    request = {"steps": 4, "sampler": "ddim", "seed": 5, "eta": 0.3, "grid": "gamma", "output": "levels"}
    given = sample(model, 2, temperature=3.0, clip=True, **request)
    assert torch.equal(given, model.decode(z_0))
    assert not torch.equal(sample(model, 2, temperature=3.0, **request), given)
    assert not torch.equal(sample(model, 2, clip=True, **request), given)
    for grid_ in ("time", "quadratic", "gamma"):
        gamma = gamma_table(small_ddpm().gamma, 4, grid_)
        assert torch.equal(sampling_plan(small_ddpm(), 5, grid=grid_).gamma, gamma.flip(0))


def test_outputs():
    model = small()
    levels = sample(model, 3, steps=2, output="levels")
    assert levels.dtype == torch.uint8
    assert levels.shape == (3, 1, 8, 8)
    bytes_ = sample(model, 3, steps=2)
    assert torch.equal(bytes_, torch.round(levels.double() * 255 / 16).byte())
    floats = sample(model, 3, steps=2, output="float")
    torch.testing.assert_close(floats, levels / 8.0 - 1.0)
    pictures = sample(model, 3, steps=2, output="pil")
    assert np.array_equal(np.asarray(pictures[2]), bytes_[2, 0].numpy())
    assert sample(model, 0, steps=2).shape == (0, 1, 8, 8)
    assert sample(model, 0, steps=2, output="pil") == []
    assert sample(small(classes=3), 0, steps=2, labels=[]).shape == (0, 1, 8, 8)


def test_seeds_matter_and_repeat():
    model = small()
    first = sample(model, 2, steps=3, seed=1, output="levels")
    assert torch.equal(sample(model, 2, steps=3, seed=1, output="levels"), first)
    assert not torch.equal(sample(model, 2, steps=3, seed=2, output="levels"), first)
    assert sample(model.train(), 1, steps=1).shape == (1, 1, 8, 8)
    assert model.training


def test_labels_and_guidance():
    """w = 1 is the conditional model, w = 0 the unconditional one; one label stands for all images."""
    model = small(classes=3)
    two = torch.full((2,), 2)
    conditional = latents(model, 2, 0, labels=two)
    torch.testing.assert_close(latents(model, 2, 0, labels=two, guidance=1.0), conditional, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        latents(model, 2, 0, labels=two, guidance=0.0), latents(model, 2, 0), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(latents(model, 2, 0, labels=two, guidance=3.0), conditional, atol=1e-2)
    assert torch.equal(sample(model, 2, steps=2, labels=2), sample(model, 2, steps=2, labels=[2, 2]))
    assert not torch.equal(sample(model, 2, steps=2, labels=2), sample(model, 2, steps=2, labels=[2, 0]))


WRONG = {
    "n is -1; allowed: an integer >= 0": {"n": -1},
    "n is 2.0; allowed: an integer": {"n": 2.0},
    "steps is 0; allowed: an integer >= 1": {"steps": 0},
    "batch_size is 0; allowed": {"batch_size": 0},
    "unknown sampler 'euler'; allowed: ancestral, ddim, dpm-solver, heun": {"sampler": "euler"},
    "unknown output 'png'; allowed: uint8, levels, float, pil": {"output": "png"},
    "seed is -1; allowed: 0 <= seed": {"seed": -1},
    "labels lie in 3 .. 3; allowed: 0 .. 2": {"labels": 3},
    "labels lie in -1 .. 1; allowed": {"labels": [-1, 1]},
    r"labels have shape \(3,\); allowed: one integer, or n = 2": {"labels": [0, 1, 2]},
    "labels have dtype torch.float32; allowed: integers": {"labels": 0.5},
    "guidance is 2.0 without labels": {"guidance": 2.0},
    "guidance is nan; allowed: a finite number": {"labels": 0, "guidance": float("nan")},
    "labels are 'seven'; allowed: one integer": {"labels": "seven"},
    "eta is -0.5; allowed: 0 <= eta <= 1": {"sampler": "ddim", "eta": -0.5},
    "eta is 1.5; allowed: 0 <= eta <= 1": {"sampler": "ddim", "eta": 1.5},
    "eta is nan; allowed: 0 <= eta <= 1": {"sampler": "ddim", "eta": float("nan")},
    "eta is 0.5 for the sampler 'ancestral'; allowed: eta with ddim": {"eta": 0.5},
    "unknown grid 'cosine'; allowed: time, gamma, quadratic": {"grid": "cosine"},
    "unknown variance 'beta'; allowed: small, large, learned": {"variance": "beta"},
    "variance is 'large' for the sampler 'ddim'; allowed: with ancestral": {"sampler": "ddim", "variance": "large"},
    "'learned' for a model that has not learned it; allowed: small, large": {"variance": "learned"},
    "temperature is 0; allowed: a finite number > 0": {"temperature": 0},
    "temperature is nan; allowed: a finite number > 0": {"temperature": float("nan")},
    "temperature is True; allowed: a finite number > 0": {"temperature": True},
    "clip is 1.0; allowed: True or False": {"clip": 1.0},
    "steps is 1; allowed: an integer >= 2": {"model": small_ddpm(), "steps": 1},
    "guidance for a model that is unconditional; allowed: None": {"model": small(), "guidance": 2.0},
    "labels for a model that is unconditional; allowed: None": {"model": small(), "labels": 0},
    "model is a Linear; allowed: a model of fastdiff.models": {"model": torch.nn.Linear(1, 1)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_requests(message):
    with pytest.raises((TypeError, ValueError), match=message):
        sample(**({"model": small(classes=3), "n": 2, "steps": 2} | WRONG[message]))


def test_a_sample_that_is_not_finite_is_an_error():
    model = small()
    with torch.no_grad():
        model.network.conv_out.bias.fill_(float("inf"))
    with pytest.raises(SamplingError, match="not finite after 3 calls"):
        sample(model, 1, steps=3)


def test_as_a_library_from_another_folder(tmp_path):
    """The five lines of the README, with a model of one's own, in a process that starts elsewhere."""
    small("levels").save(tmp_path / "model")
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
    assert sample_package_attribute is fastdiff.sample


def test_grid_pixel_by_pixel():
    pictures = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    pictures[0, 0, 0, 1], pictures[2, 0] = 200, 50
    sheet = np.asarray(grid(pictures, columns=2, side=4, gap=1, background=7))
    assert sheet.shape == (1 + 2 * 5, 1 + 2 * 5)
    assert (sheet[0] == 7).all()
    assert (sheet[:, 0] == 7).all()
    assert (sheet[1:3, 3:5] == 200).all()
    assert (sheet[6:10, 1:5] == 50).all()
    assert (sheet[6:10, 6:10] == 7).all()  # the place of the missing fourth
    assert sheet[5, 1:].tolist() == [7] * 10


def test_colour_pictures_and_wrong_ones():
    colour = images(2, shape=(3, 8, 8), levels=256)
    assert to_pil(colour[0]).mode == "RGB"
    assert isinstance(grid(colour), Image.Image)
    with pytest.raises(ValueError, match=r"torch.uint8 \(2, 8, 8\); allowed: torch.uint8 \[1 or 3, H, W\]"):
        to_pil(colour[0, :2])
    with pytest.raises(ValueError, match="0 images"):
        grid(colour[:0])
    assert to_uint8(torch.tensor([0, 8, 16]), 17).tolist() == [0, 128, 255]


def test_frozen_parts_stay_as_they_were():
    """A part in eval mode inside a model in training comes back so; guidance 1 costs no second call."""
    model = small(classes=3).train()
    model.network.attention.eval()
    calls: list[int] = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    sample(model, 1, steps=2, labels=0, guidance=1.0)
    assert len(calls) == 2
    assert model.training
    assert not model.network.attention.training


def test_options_that_would_be_dropped_are_refused():
    with pytest.raises(ValueError, match=r"latent_temperature is 0.5; allowed: 1.0 but for a DiffuseVAE"):
        sample(small(), 1, latent_temperature=0.5)
    with pytest.raises(ValueError, match="unknown sampler ''; allowed: ancestral"):
        sample(small(), 1, sampler="")
