"""Every command of the command line, in a small form, and the whole way from training to a picture."""

import json
import math
import re
import signal
import subprocess
import sys
import time

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SMALL_DDPM, small, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff.data import digits
from fastdiff.diffusion import DDIM, UniPC
from fastdiff.evaluation import evaluate, evaluate_ode, fd_digits, psnr, standard_error
from fastdiff.io.pictures import image_grid, to_uint8
from fastdiff.models import DiffuseVAEConfig, Downsample
from fastdiff.presets import PRESETS, Preset
from fastdiff.sampling import interpolate, reconstruct
from fastdiff.training import TrainConfig

FIGURE = re.compile(r"-?\d+\.\d+")


@pytest.fixture
def few_digits(tmp_path) -> str:
    """An .npz file of 20 training and 10 test digits."""
    data = digits()
    np.savez(
        tmp_path / "few.npz", levels=17,
        train_images=data.train_images[:20].numpy(), train_labels=np.arange(20) % 10,
        test_images=data.test_images[:10].numpy(), test_labels=np.arange(10),
    )  # fmt: skip
    return str(tmp_path / "few.npz")


@pytest.fixture
def tiny_presets(monkeypatch) -> None:
    """Small models under the names of three presets, and few steps for the samples at the end of a run."""
    monkeypatch.setattr("fastdiff.models.diffusion_sampling.DEFAULT_STEPS", 3)
    monkeypatch.setattr("fastdiff.training.keeping.NUM_SAMPLES", 4)
    training = TrainConfig(data="digits", max_steps=9, batch_size=8, warm_up=0)
    vdm, vae = attrs.evolve(small().config, num_classes=10, augmented=True), small_vae(1).config
    monkeypatch.setitem(PRESETS, "digits", Preset(vdm, attrs.evolve(training, shift=0.5)))
    monkeypatch.setitem(PRESETS, "vae-digits", Preset(vae, training))
    monkeypatch.setitem(PRESETS, "diffusevae-digits", Preset(DiffuseVAEConfig(**SMALL_DDPM, vae=vae), training))


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def pixels(path) -> torch.Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture).copy())


@pytest.mark.usefixtures("tiny_presets")
def test_from_training_to_a_picture(run, few_digits):
    options = ["--max-steps", "4", "--batch-size", "6", "--learning-rate", "1e-3", "--seed", "3", "--data", few_digits]
    code, out, err = run("train", "digits", *options, "--out", "run")
    assert code == 0, err
    parameters = sum(p.numel() for p in fastdiff.load("run").parameters())
    assert f"{parameters:,} parameters, 4 steps of 6 images" in out
    with open("run/model/config.json") as file:
        record = json.load(file)["record"]
    assert (record["train"]["learning_rate"], record["train"]["seed"]) == (1e-3, 3)
    assert f"{record['evaluation']['bpd']:.4f}" in out
    with open("run/model/README.md") as file:
        card = file.read()
    assert f"| {record['evaluation']['bpd']:.4f} |" in card
    assert "the held-out images of `few.npz`" in card

    few = ["--data", few_digits, "--draws", "2"]
    code, out, err = run("evaluate", "run", *few, "--T", "own,1,10", "--batch-size", "7")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["inf", "1", "10"]

    code, out, err = run("evaluate", "run", *few, "--json", "--conditional")
    assert code == 0, err
    data = digits()
    expected = evaluate(fastdiff.load("run"), data.test_images[:10], torch.arange(10), draws=2)
    about = {"bound": "VLB, continuous time", "importance": False, "draws": 2, "seed": 0, "exact": False}
    assert rows(out) == [{**expected.row(), **about}]

    code, out, err = run(
        "sample", "run", "--n", "5", "--steps", "2", "--label", "3", "--out", "five.png", "--no-caption"
    )
    assert code == 0, err
    assert "wrote five.png" in out
    assert pixels("five.png").shape == (3 * 68 + 4, 2 * 68 + 4)

    assert run("train", "digits", *options, "--out", "run")[0] == 2  # a run is there already
    code, out, err = run("train", "digits", "--out", "run", "--resume")
    assert code == 0, err
    assert f"{record['evaluation']['bpd']:.4f}" in out


@pytest.mark.usefixtures("tiny_presets")
def test_the_second_stage_is_trained_on_the_first(run, few_digits):
    """The first stage is a run's name here; its weights do not change."""
    first = ["train", "vae-digits", "--max-steps", "2", "--data", few_digits]
    assert run(*first)[0] == 0
    command = ["train", "diffusevae-digits", "--max-steps", "2", "--data", few_digits]
    code, _, err = run(*command)
    assert code == 2
    assert "first stage" in err
    code, _, err = run(*command, "--first-stage", "vae-digits")
    assert code == 0, err
    second = fastdiff.load("diffusevae-digits").state_dict()
    for name, value in fastdiff.load("runs/vae-digits").state_dict().items():
        assert torch.equal(second[f"vae.{name}"], value), name


def wait_for(path, seconds: float = 120.0) -> None:
    """Wait until a file holds something."""
    limit = time.monotonic() + seconds
    while not (path.is_file() and path.stat().st_size):
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint(tmp_path, run):
    """A real process, interrupted in the middle of training; what it leaves samples and can be resumed."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fastdiff", "train", "vae-digits", "--batch-size", "2", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path)
    wait_for(out / "metrics.jsonl")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    (checkpoint,) = out.glob("step-*")
    assert f"stopped after step {int(checkpoint.name.removeprefix('step-'))}" in printed
    assert f"continue with: {sys.executable} -m fastdiff train --out {out} --resume" in printed
    assert run("sample", str(out), "--n", "1", "--out", "one.png")[0] == 0
    assert run("train", "vae-digits", "--out", str(out), "--resume", "--batch-size", "3")[0] == 2


def test_sample_passes_every_option_on(run):
    two, vae = small_diffusevae(2), small_vae(1)
    two.save("two")
    vae.save("one")
    options = ["--n", "2", "--seed", "5", "--batch-size", "1", "--out", "two.png", "--overwrite"]
    sampler = ["--sampler", "ddim", "--steps", "4", "--eta", "0.5", "--spacing", "quadratic", "--temperature", "0.8"]
    code, _, err = run("sample", "two", *options, *sampler, "--clip-denoised", "--latents-temperature", "0.7")
    assert code == 0, err
    expected = fastdiff.sample(
        two, 2, 4, DDIM(eta=0.5, spacing="quadratic", temperature=0.8, clip_denoised=True), seed=5, batch_size=1,
        latents=fastdiff.Latents(temperature=0.7),
    )  # fmt: skip
    picture = pixels("two.png")
    for image, row in zip(expected, (4, 72), strict=True):
        assert torch.equal(picture[row : row + 64 : 8, 4:68:8], image[0])
    betas = ["sample", "two", *options, "--steps", "10", "--betas", "1e-6", "0.8", "--variance", "fixed_small"]
    code, _, err = run(*betas)
    assert code == 0, err
    assert not torch.equal(pixels("two.png"), picture)
    assert run("sample", "one", "--n", "2", "--latents-temperature", "0.7")[0] == 0


def test_the_bound_at_several_T_and_through_the_ODE(run, few_digits):
    """Every line of the table is one of the JSON lines, with the same figures."""
    small().save("model")
    command = ["evaluate", "model", "--data", few_digits, "--T", "3,inf", "--draws", "2", "--ode", "2"]
    code, out, _ = run(*command, "--json")
    assert code == 0
    found = rows(out)
    assert [row.get("T") for row in found] == [3, None, None]
    assert found[2]["ode_steps"] == 2
    code, table, _ = run(*command)
    assert code == 0
    for row, line in zip(found, table.splitlines()[2:], strict=True):
        assert [f"{row['bpd']:.4f}", f"{row['se']:.4f}"] == FIGURE.findall(line)[:2]
    code, out, _ = run("evaluate", "model", "--data", few_digits, "--T", "3", "--exact", "--json")
    assert code == 0
    exact = evaluate(small(), digits().test_images[:10], T=3, draws=64, exact=True)
    about = {"bound": "VLB, exact sum", "importance": False, "draws": 64, "seed": 0, "exact": True}
    assert rows(out) == [{**exact.row(), **about}]


def test_the_kinds_of_bounds(run, few_digits):
    """The options of the ODE's bound and importance reach the evaluation; every line says which bound it is."""
    small().save("model")
    options = ["--dequantization", "truncated-normal", "--samples", "2", "--probes", "2"]
    command = ["evaluate", "model", "--data", few_digits, "--importance", "--draws", "1", "--ode", "1", *options]
    code, out, err = run(*command, "--json")
    assert code == 0, err
    vlb, ode = rows(out)
    assert (vlb["bound"], vlb["importance"]) == ("VLB, continuous time, importance", True)
    kind = {"dequantization": "truncated-normal", "samples": 2, "divergence": "hutchinson", "probes": 2}
    x = digits().test_images[:10]
    expected = evaluate_ode(small(), x, steps=1, draws=1, **kind)
    about = {"bound": "ODE", "ode_steps": 1, "draws": 1, "seed": 0, "exact": False}
    assert ode == {**about, **kind, "bpd": float(expected.mean()), "se": standard_error(expected)}
    assert vlb["bpd"] == evaluate(small(), x, draws=1, importance=True).mean
    lines = run(*command)[1].splitlines()[2:]
    assert lines[0].endswith("  VLB, continuous time, importance")
    assert lines[1].endswith("  ODE, 1 step, truncated-normal, K = 2, 2 probes, draws = 1")


def test_a_vae_is_evaluated_with_its_latents(run, few_digits):
    small_vae(2).save("one")
    small_diffusevae().save("two")
    command = ["evaluate", "one", "--data", few_digits, "--draws", "1"]
    code, out, err = run(*command, "--json")
    assert code == 0, err
    (row,) = rows(out)
    assert (len(row["active_units"]), len(row["layer_nats"])) == (2, 2)
    assert sum(row["layer_nats"]) == pytest.approx((row["prior"] + row["diffusion"]) * 64 * math.log(2), rel=1e-5)
    out = run(*command)[1]
    for layer, nats in enumerate(row["layer_nats"], 1):
        assert re.search(rf"z_{layer}: \d of 5 units active, {nats:.2f} nats", out)
    assert run("evaluate", "two", "--data", few_digits, "--draws", "1", "--T", "5,own")[0] == 0


def test_distances_of_samples(run):
    small().save("model")
    code, out, _ = run("fd", "model", "--n", "40", "--steps", "1,2", "--sampler", "ddim,heun", "--json")
    assert code == 0
    held_out, *found = rows(out)
    assert (held_out["sampler"], held_out["n"]) == ("held-out", 297)
    assert [(row["sampler"], row["steps"]) for row in found] == [("ddim", 1), ("ddim", 2), ("heun", 1), ("heun", 2)]
    assert all(row["n"] == 40 and row["fd"] > 0 for row in found)


def test_distances_by_calls(run):
    """Heun takes half as many steps as calls; UniPC takes its options."""
    small().save("model")
    code, out, _ = run("fd", "model", "--n", "20", "--calls", "2,5", "--sampler", "ddim,heun", "--json")
    assert code == 0
    assert [(row["sampler"], row["steps"]) for row in rows(out)[1:]] == [
        ("ddim", 2), ("ddim", 5), ("heun", 1), ("heun", 2),
    ]  # fmt: skip
    options = ["--sampler", "unipc", "--order", "2", "--spacing", "karras", "--rho", "3"]
    code, out, _ = run("fd", "model", "--n", "20", "--calls", "3", *options, "--json")
    assert code == 0
    expected = fastdiff.sample(
        "model", 20, 3, UniPC(order=2, spacing="karras", rho=3.0), output="levels", batch_size=250
    )
    assert rows(out)[1]["fd"] == pytest.approx(fd_digits(expected).value, rel=1e-6)
    for wrong in (["--calls", "3", "--steps", "3"], ["--calls", "1", "--sampler", "heun"], ["--calls", "x"]):
        code, _, err = run("fd", "model", *wrong)
        assert code == 2
        assert "--calls" in err


def test_distances_of_a_vae(run):
    """It has neither sampler nor steps: one row."""
    small_vae(1).save("one")
    code, out, err = run("fd", "one", "--n", "40")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["held-out", "vae"]
    for option in (["--steps", "3"], ["--sampler", "heun"]):
        assert run("fd", "one", *option)[0] == 2


@pytest.mark.parametrize(("model", "vary"), [(small_diffusevae(1), "latent"), (small(), "noise")])
def test_what_varies_by_default_is_a_latent_that_the_model_has(run, model, vary):
    model.save("model")
    options = ["--rows", "1", "--count", "2", "--steps", "2", "--no-caption"]
    for flags, out in (([], "a.png"), (["--vary", vary], "b.png")):
        code, _, err = run("interpolate", "model", *options, *flags, "--out", out)
        assert code == 0, err
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


@pytest.mark.parametrize("vary", ["latent", "noise", "class"])
def test_strips(run, vary):
    small_diffusevae(2).save("two")
    options = ["--vary", vary, "--rows", "2", "--count", "3", "--steps", "2", "--out", "strip.png", "--no-caption"]
    code, out, err = run("interpolate", "two", *options)
    assert code == 0, err
    assert "2 strips of 3 images" in out
    assert pixels("strip.png").shape == (2 * 68 + 4, 3 * 68 + 4)


def test_strips_of_classes(run):
    model = small(num_classes=3, class_names=("A", "B", "Q"))
    model.save("model")
    options = ["--rows", "3", "--count", "2", "--steps", "2", "--no-caption"]
    for label, labels in (("Q,A", [2, 0, 2]), ("all", [0, 1, 2]), ("B", 1)):
        code, _, err = run("interpolate", "model", *options, "--label", label, "--out", f"{label}.png")
        assert code == 0, err
        expected = image_grid(to_uint8(interpolate(model, "noise", 3, 2, steps=2, labels=labels), 17), 2)
        with Image.open(f"{label}.png") as found:
            assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_reconstructions(run):
    images = digits().test_images[[0, 99, 198]]  # evenly spaced among the 297
    for name, model, options, degradation in (
        ("one", small_vae(1), [], None),
        ("two", small_diffusevae(1), ["--steps", "3"], None),
        ("two", small_diffusevae(1), ["--steps", "3", "--degradation", "down-2"], Downsample(factor=2)),
        ("small", small_restoration(), ["--steps", "3"], None),
    ):
        model.save(name)
        code, out, err = run("reconstruct", name, "--n", "3", "--overwrite", "--no-caption", *options)
        assert code == 0, err
        steps = None if name == "one" else 3
        result = reconstruct(model, images, degradation, steps)
        expected = [psnr(images, part, 17).mean() for part in (result.start, result.images) if part is not None]
        lines = out.splitlines()
        assert [line.split(": ")[1].split()[0] for line in lines[:-1]] == [f"{float(value):.2f}" for value in expected]
        assert pixels("reconstructions.png").shape == ((len(expected) + 1) * 68 + 4, 3 * 68 + 4)


def test_a_mixture_is_fitted_and_drawn_from(run):
    pytest.importorskip("sklearn")
    small_vae(1).save("one")
    code, out, err = run("mixture", "one", "--components", "3,1")
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["N(0,", "1", "3"]
    held_out = {int(line.split()[0]): float(line.split()[2]) for line in lines[3:5]}
    assert f"({max(held_out, key=lambda k: held_out[k])} components)" in lines[-1]
    assert run("sample", "one", "--n", "2", "--mixture", "mixture")[0] == 0
    assert run("sample", "digits", "--steps", "1", "--mixture", "mixture")[0] == 2  # a model without latents z


def test_info(run):
    code, out, _ = run("info")
    assert code == 0
    assert "backend torch" in out
    assert all(name in out for name in PRESETS)
