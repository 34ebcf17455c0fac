"""Errors that the user causes are one line and exit code 2; anything else keeps its traceback."""

import os

import numpy as np
import pytest
from tiny import small, small_vae

import fastdiff
from fastdiff.cli.arguments import parse_degradation
from fastdiff.kernels import InvalidValueError
from fastdiff.models import AddNoise, Downsample
from fastdiff.sampling import engine

# The arguments, and a word of the message: the argument's name or what it was.
WRONG = {
    "sample nothing": "nothing",
    "sample MODEL --n 0": "--n",
    "sample MODEL --steps 0": "--steps must be",
    "sample MODEL --label 1": "labels",
    "sample MODEL --guidance 2": "guidance",
    "sample MODEL --out no/such/folder.png": "--out",
    "sample MODEL --out x.pig": "--out",
    "sample MODEL --sampler ddim --eta 2": "eta",
    "sample MODEL --eta 1": "--eta",
    "sample MODEL --variance learned": "variance",
    "sample MODEL --temperature 0": "temperature",
    "sample MODEL --betas 1e-6 0.8": "betas",
    "sample MODEL --mixture nothing": "latents",
    "sample VAE --steps 3": "steps",
    "sample VAE --latents-temperature 0": "temperature",
    "sample VAE --mixture nothing": "nothing",
    "train cifar": "cifar",
    "train digits --max-steps 0 --out x": "--max-steps",
    "train digits --seed -1 --out x": "seed",
    "train digits --save-every 0 --out x": "--save-every",
    "train digits --resume --out x": "x",
    "train digits --data faces --out x": "faces",
    "train digits --data BYTES --out x": "levels",
    "train digits --out MODEL": "MODEL",
    "train vdm-cifar10 --out x": "cifar10",
    "train diffusevae-digits --out x": "first stage",
    "train digits --first-stage VAE --out x": "--first-stage",
    "train diffusevae-digits --first-stage MODEL --out x": "--first-stage",
    "evaluate MODEL --data BYTES": "levels",
    "evaluate MODEL --data x.npz": "x.npz",
    "evaluate MODEL --T 1,x": "--T",
    "evaluate MODEL --T inf --exact": "exact",
    "evaluate MODEL --draws 0": "draws",
    "evaluate MODEL --batch-size 0": "--batch-size",
    "evaluate MODEL --draws 1 --ode 0": "steps",
    "evaluate MODEL --dequantization uniform": "--ode",
    "evaluate MODEL --samples 2": "--ode",
    "evaluate MODEL --ode 1 --samples 2": "probes must be >= 2",
    "evaluate MODEL --ode 1 --divergence exact --probes 4": "probes must be 1",
    "evaluate MODEL --T inf,3 --importance": "importance",
    "evaluate VAE --importance": "importance",
    "evaluate MODEL --conditional --draws 1": "labels",
    "evaluate VAE --draws 1 --exact": "exact",
    "evaluate VAE --draws 1 --ode 2": "ODE",
    "sample MODEL --sampler unipc --order 4": "order",
    "sample MODEL --sampler ddim --order 2": "--order",
    "sample MODEL --spacing karras --rho 0": "rho",
    "sample MODEL --sampler unipc --rho 3": "rho",
    "sample MODEL --sampler unipc --spacing model": "model",
    "fd MODEL -n 1": "--n",
    "fd MODEL --steps 1,inf": "--steps",
    "fd MODEL --batch-size 0": "--batch-size",
    "interpolate MODEL --vary latent": "vary",
    "interpolate VAE --count 1": "count",
    "interpolate VAE --out x.pig": "--out",
    "reconstruct MODEL": "vdm",
    "reconstruct VAE --steps 3": "steps",
    "reconstruct VAE -n 0": "--n",
    "reconstruct VAE --degradation blur": "--degradation",
    "reconstruct VAE --degradation down-3": "factor",
    "mixture MODEL": "vdm",
    "mixture VAE --components 0": "--components",
    "mixture VAE --components 2000": "--components",
    "mixture VAE --out MODEL": "--out",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, str]:
    """A VDM, a VAE, and images with another number of levels."""
    folder = tmp_path_factory.mktemp("inputs")
    small().save(folder / "MODEL")
    small_vae(1).save(folder / "VAE")
    zeros = np.zeros((2, 8, 8), np.uint8)
    np.savez(folder / "BYTES", train_images=zeros, test_images=zeros)
    return {"MODEL": str(folder / "MODEL"), "VAE": str(folder / "VAE"), "BYTES": str(folder / "BYTES.npz")}


@pytest.mark.parametrize(("arguments", "word"), WRONG.items())
def test_errors_are_one_line(run, inputs, arguments, word):
    """On stderr, before the work, with nothing written."""
    code, out, err = run(*(inputs.get(argument, argument) for argument in arguments.split()))
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("fastdiff: error: ")]
    assert word in line
    assert "Traceback" not in err
    assert os.listdir() == []


def test_an_unexpected_error_keeps_its_traceback(run, inputs, monkeypatch):
    """A TypeError is no error of the user, unless fastdiff raises it as one."""

    def fail(*_, **__):
        raise TypeError("a defect")

    monkeypatch.setattr(engine, "draw_images", fail)
    with pytest.raises(TypeError, match="a defect"):
        run("sample", inputs["MODEL"], "--steps", "1")
    with pytest.raises(TypeError):
        fastdiff.sample(3, 1)  # type: ignore[arg-type]


def test_ctrl_c_is_one_line(run, inputs, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "draw_images", interrupt)
    assert run("sample", inputs["MODEL"]) == (130, "", "fastdiff: interrupted\n")


def test_degradations_are_read():
    assert parse_degradation("down-4") == Downsample(factor=4)
    assert parse_degradation("noise-0.5") == AddNoise(deviation=0.5)
    for degradation in (Downsample(factor=16), AddNoise(deviation=0.1), AddNoise(deviation=1e-5)):
        assert parse_degradation(degradation.name) == degradation
    for text in ("blur", "down", "down-x", "down--2", "noise-", "-2", "down-1", "noise-0", "noise-nan", "noise-inf"):
        with pytest.raises(InvalidValueError, match=f"--degradation must be down-FACTOR .* got '{text}'"):
            parse_degradation(text)
