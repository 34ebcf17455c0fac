"""The small embedded models of every kind, on the digits: what they are, their bounds, samples and restorations."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

import fastdiff
from fastdiff import Latents
from fastdiff.checkpoints import embedded_names, record_of
from fastdiff.data import digits
from fastdiff.evaluation import evaluate, fd_digits, load_classifier, psnr
from fastdiff.models import DiffuseVAE
from fastdiff.presets import preset
from fastdiff.sampling import reconstruct

PRESETS = {
    "ddpm": "ddpm-digits", "vae": "vae-digits", "hvae": "hvae-digits", "diffusevae": "diffusevae-digits",
    "restoration": "superresolution2-digits",
}  # fmt: skip
LIMIT = 16_000_000  # bytes of all models and mixtures


def test_they_are_one_of_every_kind_and_small():
    assert embedded_names() == sorted([*PRESETS, "digits", "letters", "diffusevae-letters"])
    assert {fastdiff.load(name).title for name in embedded_names()} == {
        "vdm", "ddpm", "vae", "hvae", "diffusevae", "restoration"
    }  # fmt: skip
    assets = Path(str(files("fastdiff.assets")))
    paths = [path for name in (*embedded_names(), "mixtures") for path in (assets / name).rglob("*.*")]
    assert sum(path.stat().st_size for path in paths) < LIMIT


@pytest.mark.parametrize("name", PRESETS)
def test_they_are_what_their_presets_train(name):
    expected, record = preset(PRESETS[name]), record_of(name)["train"]
    assert fastdiff.load(name).config == expected.model
    assert isinstance(record, dict)
    trained = {key: record[key] for key in ("data", "max_steps", "batch_size", "loss", "learning_rate")}
    assert trained == {key: getattr(expected.train, key) for key in trained}


@pytest.mark.parametrize("name", ["vae", "hvae"])
def test_bounds_of_the_vaes_are_those_of_their_records(name):
    """16 draws for each image against the recorded 64. Measured differences: 0.0004 and 0.0017 bits/dim."""
    record = record_of(name)["evaluation"]
    assert isinstance(record, dict)
    assert evaluate(fastdiff.load(name), digits().test_images, draws=16).mean == pytest.approx(record["bpd"], abs=0.004)


def test_the_diffusevae_refines_the_embedded_vae():
    vae, second = fastdiff.load("vae"), fastdiff.load("diffusevae")
    assert isinstance(second, DiffuseVAE)
    first = second.vae.state_dict()
    assert all(torch.equal(first[name], value) for name, value in vae.state_dict().items())


@pytest.mark.parametrize(("name", "options"), [("vae", {}), ("diffusevae", {"steps": 5, "sampler": "ddim"})])
def test_the_mixture_improves_the_samples(name, options):
    """FD-digits of 297 samples, which is 6.5 for the held-out images. Measured: 4.6 against 23.1 with z from the prior
    of the VAE, and 5.5 against 25.2 of the DiffuseVAE.
    """
    of_prior, of_mixture = (
        fd_digits(fastdiff.sample(name, 297, output="levels", latents=latents, **options)).value
        for latents in (None, Latents(mixture="diffusevae"))
    )
    assert of_mixture < 8.0 < 18.0 < of_prior


def test_the_restoration_model_doubles_the_resolution():
    """PSNR of 60 held-out digits; measured: 13.5 dB at half the resolution, and 21.6 dB restored by 10 steps of DDIM.
    The study of restoration has 20.8 dB for all of them and 50 steps."""
    images = digits().test_images[:60]
    result = reconstruct(fastdiff.load("restoration"), images, steps=10, sampler="ddim")
    assert result.start is not None
    assert float(psnr(images, result.start, 17).mean()) < 14.0
    assert float(psnr(images, result.images, 17).mean()) > 21.0


def test_samples_of_the_ddpm_are_of_the_class_that_was_asked_for():
    """As the classifier of FD-digits reads them; measured: 97 of 100."""
    labels = torch.arange(10).repeat(10)
    images = fastdiff.sample("ddpm", 100, 12, "unipc", labels=labels, output="levels")
    with torch.no_grad():
        read = load_classifier("digits").logits(images).argmax(1)
    assert int((read == labels).sum()) >= 95
