"""Restoration models of own images: trained from the shell, and what the other commands make of such a run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff.data import load_dataset
from fastdiff.models import AddNoise, Downsample, Restoration

pytestmark = pytest.mark.usefixtures("few_samples")
SMALL = ["--width", "4", "--blocks", "1", "--batch-size", "4", "--workers", "0", "--evaluations", "0", "--no-progress"]
TWO_STEPS = [*SMALL, "--max-steps", "2", "--model", "restoration"]
FEW = ["--steps", "2", "--no-caption"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """A folder of 40 coloured PNG files of 9×6 pixels, in two folders of classes."""
    root = tmp_path_factory.mktemp("data") / "photos"
    generator = np.random.default_rng(0)
    for number in range(40):
        folder = root / ("circles" if number % 2 else "squares")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (6, 9, 3), np.uint8)).save(folder / f"{number}.png")
    return str(root)


def model_of_run(name: str) -> Restoration:
    model = fastdiff.load(name)
    assert isinstance(model, Restoration)
    return model


def mean_psnr(one: np.ndarray, other: np.ndarray) -> float:
    """The mean over images [N, C, H, W] of 10 log10 (255² / mean square), in levels of bytes."""
    return float(np.mean(10 * np.log10(255**2 / ((one - other) ** 2).mean((1, 2, 3)))))


def test_what_is_printed_reconstructs_held_out_images(run, photos):
    """By default at half the resolution. Fewer images are held out than a picture has columns."""
    code, out, err = run("train", photos, *TWO_STEPS, "--size", "8")
    assert code == 0, err
    model = model_of_run("restoration-photos")
    assert (model.config.degradation, model.shape, model.cond_shape) == (Downsample(factor=2), (3, 8, 8), (3, 4, 4))
    assert "38 training and 2 held-out images 3×8×8" in out
    label, words = out.splitlines()[-1].split(": ")
    assert (label, words) == ("draw from it", "fastdiff reconstruct restoration-photos")
    code, out, err = run(*shlex.split(words)[1:], *FEW)
    assert code == 0, err
    x = load_dataset(photos, fastdiff.data.ImageOptions(size=8)).test_images[:2].numpy().astype(np.float64)
    means = x.reshape(2, 3, 4, 2, 4, 2).mean((3, 5), keepdims=True)  # of blocks, in float64
    degraded = np.broadcast_to(means, (2, 3, 4, 2, 4, 2)).reshape(x.shape)
    (found,) = re.findall(r"PSNR of the degraded images: (\S+)", out)
    assert float(found) == pytest.approx(mean_psnr(x, degraded), abs=0.006)
    assert "(2 columns; rows: images, degraded images, reconstructions)" in out
    assert run("evaluate", "restoration-photos", "--draws", "1")[0] == 0


def test_small_pictures_are_restored(run, photos):
    """The first row of the picture is what it was given, with every pixel twice as wide; `sample` restores the same."""
    assert run("train", photos, *TWO_STEPS, "--size", "8", "--out", "run")[0] == 0
    small = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3), np.uint8)
    Path("small").mkdir()
    for number, pixels in enumerate(small):
        Image.fromarray(pixels).save(f"small/{number}.png")
    code, _, err = run("restore", "run", "small", *FEW)
    assert code == 0, err
    shown = np.array(Image.open("restored.png"))
    cells = [shown[4 : 4 + 64, 4 + 68 * k : 68 + 68 * k] for k in range(2)]  # eight pixels for one of the image
    for cell, pixels in zip(cells, small, strict=True):
        assert np.array_equal(cell, pixels.repeat(16, 0).repeat(16, 1))
    code, _, err = run("restore", "run", "small", *FEW, "--out", "large/")
    assert code == 0, err
    files = np.stack([np.array(Image.open(f"large/{number}.png")) for number in range(2)])
    cond = torch.from_numpy(small).permute(0, 3, 1, 2)
    drawn = fastdiff.sample("run", 2, 2, cond=cond)
    assert np.array_equal(files, drawn.permute(0, 2, 3, 1).numpy())
    code, _, err = run("restore", "run", photos, *FEW[:2], "--out", "other.png")
    assert (code, "--fit" in err) == (2, True)
    assert run("restore", "run", photos, *FEW, "--fit", "-n", "2", "--out", "other.png")[0] == 0


def test_noise_classes_and_augmentation(run, photos):
    """All that a DDPM of own images can be conditioned on."""
    options = ["--degradation", "noise-0.30", "--classes", "--shift", "0.1", "--out", "run"]
    code, _, err = run("train", photos, *TWO_STEPS, *options)
    assert code == 0, err
    model = model_of_run("run")
    assert (model.config.degradation, model.shape) == (AddNoise(deviation=0.3), (3, 6, 9))
    assert (model.num_classes, model.config.augmented) == (2, True)
    noisy = 1.5 * torch.ones(1, 3, 6, 9)  # noise goes beyond the range of pixels
    drawn = fastdiff.sample(model, 1, 2, cond=noisy, labels="circles", guidance=2.0)
    assert drawn.shape == (1, 3, 6, 9)
    assert run("evaluate", "run", "--draws", "1", "--conditional")[0] == 0


def test_a_resumed_run_keeps_its_degradation(run, photos):
    start = ["train", photos, *TWO_STEPS, "--degradation", "noise-0.5", "--out", "run"]
    assert run(*start)[0] == 0
    for text, before in (("noise-0.4", "noise-0.5, not noise-0.4"), ("blur", "--degradation must be")):
        code, _, err = run("train", "--resume", "--out", "run", "--degradation", text)
        assert (code, before in err) == (2, True), err
    code, out, err = run(*start, "--resume", "--degradation", "noise-0.50", "--max-steps", "3")
    assert code == 0, err
    assert "resumed after step 2" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "divides 6 and 9, the height and width of the images (3), or --size must be given, such as --size 6; got"),
        (["--degradation", "down-7"], "(3), or --size must be given, such as --size 7; got down-7"),
        (["--size", "7"], "divides 7 and 7, the height and width of the images (7), or --size must be given"),
        (["--size", "1"], "(none does), or --size must be given, such as --size 2; got down-2"),
    ],
)
def test_sides_that_the_factor_does_not_divide(run, photos, options, words):
    code, _, err = run("train", photos, *TWO_STEPS, *options)
    assert (code, words in err) == (2, True), err
    assert not Path("runs").exists()
