"""The command line: the whole way from training to a picture, and errors that fit on one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import small, small_diffusevae, small_vae

from fastdiff.checkpoint import load
from fastdiff.cli import main
from fastdiff.commands.arguments import parse_steps, with_first_stage
from fastdiff.storage import CheckpointError


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_from_training_to_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "train", "digits", "--steps", "4", "--batch-size", "8", "--out", "run")
    assert code == 0, err
    assert re.search(r"digits: [\d,]+ parameters, 4 steps of 8 images", out)
    assert re.search(r"inf +\d\.\d{4}", out)
    assert "training digits" in err

    code, out, err = run(capsys, "evaluate", "run", "--steps", "1,10,inf", "--draws", "1")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["1", "10", "inf"]

    code, out, err = run(capsys, "evaluate", "run", "--draws", "1", "--json", "--conditional")
    assert code == 0, err
    assert set(json.loads(out)) == {
        "steps", "bpd", "se", "recon", "prior", "diffusion", "draws", "seed", "exact"
    }  # fmt: skip

    code, out, err = run(capsys, "sample", "run", "--n", "5", "--steps", "2", "--label", "3", "--out", "five.png")
    assert code == 0, err
    assert out == "wrote five.png (5 images)\n"
    assert "sampling 5 images: 100%" in err
    assert np.asarray(Image.open("five.png")).shape == (3 * 68 + 4, 2 * 68 + 4)

    code, _, err = run(capsys, "train", "digits", "--out", "run")
    assert code == 2
    assert "holds a run already; allowed: another --out, or --resume" in err


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "backend torch" in out
    assert "presets: digits" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "nothing"], "no model 'nothing'; allowed: a checkpoint folder"),
        (["sample", "MODEL", "--n", "0"], "n is 0; allowed: an integer >= 1"),
        (["sample", "MODEL", "--sampler", "euler"], "unknown sampler 'euler'; allowed: ancestral"),
        (["sample", "MODEL", "--steps", "0"], "steps is 0; allowed"),
        (["sample", "MODEL", "--label", "1"], "labels for a model that is unconditional; allowed: None"),
        (
            ["sample", "MODEL", "--steps", "1", "--out", "no/such/folder.png"],
            "no folder no/such; allowed: a path in an existing folder",
        ),
        (["sample", "MODEL", "--out", "x.pig"], "unknown ending '.pig'; allowed: .png"),
        (["train", "digits", "--seed", "-1", "--out", "x"], "seed is -1; allowed: 0 <= seed"),
        (["evaluate", "MODEL", "--data", "FOUR"], "4 levels, 0 classes; allowed: (1, 8, 8), 17 levels"),
        (["train", "cifar"], "unknown preset 'cifar'; allowed: digits"),
        (["train", "digits", "--steps", "0", "--out", "x"], "steps is 0; allowed: a number > 0"),
        (["train", "digits", "--resume", "--out", "x"], "x holds no checkpoint"),
        (["train", "digits", "--data", "faces", "--out", "x"], "unknown data set 'faces'; allowed: digits"),
        (["evaluate", "MODEL", "--steps", "1,x"], "steps holds 'x'; allowed: integers >= 1, inf and own"),
        (["evaluate", "MODEL", "--draws", "0"], "draws is 0; allowed: an integer >= 1"),
        (["evaluate", "MODEL", "--data", "x.npz"], "x.npz cannot be read"),
        (["evaluate", "MODEL", "--steps", "inf", "--exact"], "exact at T = infinity; allowed: exact with a finite"),
        (["evaluate", "MODEL", "--draws", "1", "--ode", "0"], "steps is 0; allowed: an integer >= 1"),
        (["sample", "MODEL", "--sampler", "ddim", "--eta", "2"], "eta is 2.0; allowed: 0 <= eta <= 1"),
        (["sample", "MODEL", "--eta", "1"], "eta is 1.0 for the sampler 'ancestral'; allowed: eta with ddim"),
        (["sample", "MODEL", "--grid", "karras"], "unknown grid 'karras'; allowed: time, gamma, quadratic"),
        (["sample", "MODEL", "--variance", "learned"], "a model that has not learned it; allowed: small, large"),
        (["sample", "MODEL", "--guidance", "2"], "guidance for a model that is unconditional; allowed: None"),
        (["sample", "MODEL", "--temperature", "0"], "temperature is 0.0; allowed: a finite number > 0"),
        (["evaluate", "MODEL", "--batch-size", "0"], "batch_size is 0; allowed: an integer >= 1"),
        (["fd", "MODEL", "--batch-size", "0"], "batch_size is 0; allowed: an integer >= 1"),
        (["train", "digits", "--out", "MODEL"], "MODEL holds something that is no run; allowed: a new or empty"),
        (["fd", "MODEL", "--n", "1"], "n is 1; allowed: an integer >= 2"),
        (["fd", "MODEL", "--steps", "1,inf"], "steps are '1,inf'; allowed: integers >= 1, separated by commas"),
        (["reproduce", "everything"], "unknown study 'everything'; allowed: schedules, latent-steps"),
        (["reproduce", "schedules", "--workers", "0"], "workers is 0; allowed: at least 1"),
        (["train", "vdm-cifar10", "--out", "x"], "cifar10"),
        (["train", "diffusevae-digits", "--out", "x"], "without a first stage; allowed: --first-stage FOLDER"),
        (["train", "digits", "--first-stage", "MODEL", "--out", "x"], "for a vdm; allowed: for a DiffuseVAE"),
        (
            ["train", "diffusevae-digits", "--first-stage", "MODEL", "--out", "x"],
            "the first stage is a VDM; allowed: a VAE",
        ),
    ],
)
def test_errors_are_one_line(tmp_path, tmp_path_factory, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    small().save("MODEL")
    four = tmp_path_factory.mktemp("data") / "four.npz"
    np.savez(four, train_images=np.zeros((2, 8, 8), np.uint8), test_images=np.zeros((2, 8, 8), np.uint8), levels=4)
    code, out, err = run(capsys, *(str(four) if argument == "FOUR" else argument for argument in arguments))
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("fastdiff: error: ")]
    assert message in line
    assert os.listdir(tmp_path) == ["MODEL"]  # nothing half-begun


def test_a_data_set_that_does_not_fit_the_model(tmp_path, capsys):
    zeros = np.zeros((2, 8, 8), np.uint8)
    np.savez(tmp_path / "bytes.npz", train_images=zeros, test_images=zeros)
    code, _, err = run(capsys, "train", "--data", str(tmp_path / "bytes.npz"), "--out", str(tmp_path / "run"))
    assert code == 2
    assert "256 levels, 0 classes; allowed: (1, 8, 8), 17 levels, 10 classes" in err
    assert not (tmp_path / "run").exists()


def test_steps_are_read():
    assert [parse_steps("evaluate", text) for text in ("inf", "1", " 250 ")] == [None, 1, 250]
    for text in ("0", "-1", "1.5", "", "one"):
        with pytest.raises(ValueError, match="allowed: integers >= 1, inf and own"):
            parse_steps("evaluate", text)


def wait_for(path, seconds: float = 120.0) -> None:
    """Wait until a file holds something."""
    limit = time.monotonic() + seconds
    while not (path.is_file() and path.stat().st_size):
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_resume_goes_on(tmp_path, capsys, number, code):
    """A real process, interrupted in the middle of training; what it leaves samples, and goes on."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fastdiff", "train", "digits", "--batch-size", "2", "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--steps", "400"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
    )
    wait_for(out / "metrics.jsonl")
    process.send_signal(number)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == code
    assert re.search(r"stopped after step \d+; go on with: fastdiff train digits --out .* --resume", printed)
    assert len(list(out.glob("step-*"))) == 1
    assert run(capsys, "sample", str(out), "--n", "1", "--steps", "1", "--out", str(tmp_path / "one.png"))[0] == 0
    assert run(capsys, "train", "digits", "--out", str(out), "--resume", "--steps", "300")[0] == 2


def test_second_opinions_and_exact_sums(tmp_path, capsys):
    """Every line of the table is one of the JSON lines, with the same figures."""
    small().save(tmp_path / "model")
    wanted = ["evaluate", str(tmp_path / "model"), "--steps", "3,inf", "--draws", "2"]
    code, out, _ = run(capsys, *wanted, "--ode", "2", "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row.get("steps") for row in rows] == [3, None, None]
    assert rows[2]["ode_steps"] == 2
    code, table, _ = run(capsys, *wanted, "--ode", "2")
    assert code == 0
    for row, line in zip(rows, table.splitlines()[2:], strict=True):
        assert f"{row['bpd']:9.4f}  {row['se']:7.4f}" in line
    code, exact, _ = run(capsys, "evaluate", str(tmp_path / "model"), "--steps", "3", "--draws", "2", "--exact")
    assert code == 0
    assert "the sum over all steps" in exact


def test_distances_of_samples(tmp_path, capsys):
    small().save(tmp_path / "model")
    code, out, _ = run(capsys, "fd", str(tmp_path / "model"), "--n", "40", "--steps", "1,2", "--sampler", "ddim,heun")
    assert code == 0
    held_out, *rows = [line.split() for line in out.splitlines()[2:]]
    assert held_out[:2] == ["held-out", "297"]
    assert [row[:2] for row in rows] == [["ddim", "1"], ["ddim", "2"], ["heun", "1"], ["heun", "2"]]
    assert all(row[2] == "40" and float(row[3]) > 0 for row in rows)
    assert (
        run(capsys, "fd", str(tmp_path / "model"), "--sampler", "ddim,euler")[2].count("unknown sampler 'euler'") == 1
    )


def test_distances_of_a_vae(tmp_path, capsys):
    small_vae(2).save(tmp_path / "vae")
    code, out, err = run(capsys, "fd", str(tmp_path / "vae"), "--n", "40", "--json")
    assert code == 0, err
    assert [json.loads(line)["sampler"] for line in out.splitlines()] == ["held-out", "vae"]
    for option, message in (
        (["--steps", "3"], "steps are '3' for a VAE"),
        (["--sampler", "heun"], "sampler is 'heun' for"),
    ):
        code, _, err = run(capsys, "fd", str(tmp_path / "vae"), *option)
        assert code == 2
        assert message in err


def test_two_stages_from_the_command_line(tmp_path, capsys, monkeypatch):
    """Sample, walk and evaluate both stages, and refuse what they have not."""
    monkeypatch.chdir(tmp_path)
    small_vae(1).save("vae")
    small_diffusevae(2).save("two")
    assert run(capsys, "sample", "two", "--n", "2", "--steps", "3", "--out", "two.png")[0] == 0
    assert run(capsys, "sample", "vae", "--n", "2", "--out", "one.png")[0] == 0
    for vary in ("latent", "noise", "class"):
        strip = ["interpolate", "two", "--vary", vary, "--rows", "2", "--count", "3", "--steps", "2"]
        assert run(capsys, *strip, "--out", f"{vary}.png")[0] == 0
        with Image.open(f"{vary}.png") as picture:
            assert picture.width > picture.height
    code, _, err = run(capsys, "sample", "vae", "--steps", "3")
    assert code == 2
    assert "steps is 3 for a VAE" in err
    code, out, err = run(capsys, "evaluate", "vae", "--draws", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["diffusion"] == 0
    assert len(json.loads(out)["level_nats"]) == 1
    code, out, err = run(capsys, "evaluate", "vae", "--draws", "1")
    assert "z_1: " in out
    assert "of 5 units active, " in out
    assert run(capsys, "evaluate", "two", "--draws", "1", "--steps", "5,own")[0] == 0
    for option, message in ((["--exact"], "exact for a hvae"), (["--ode", "2"], "ode for a hvae; allowed: for a diff")):
        code, _, err = run(capsys, "evaluate", "vae", "--draws", "1", *option)
        assert code == 2
        assert message in err


def test_reconstruction_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_vae(1).save("vae")
    small_diffusevae(1).save("two")
    code, out, err = run(capsys, "reconstruct", "vae", "--n", "3")
    assert code == 0, err
    assert out.startswith("PSNR of what the model made of them: ")
    assert "(3 columns; rows: the images, what the model made of them)" in out
    with Image.open("reconstructions.png") as picture:
        assert picture.width > picture.height
    few = ["reconstruct", "two", "--n", "3", "--steps", "3", "--degradation", "down-2", "--out", "down.png"]
    code, out, err = run(capsys, *few)
    assert code == 0, err
    assert [line.split(":")[0] for line in out.splitlines()[:2]] == [
        "PSNR of the degraded images", "PSNR of what the model made of them",
    ]  # fmt: skip
    for text, message in {
        "down-3": "factor 3 for images (1, 8, 8); allowed: a divisor of the height and the width",
        "down-x": "degradation is 'down-x'; allowed: down-FACTOR or noise-DEVIATION",
        "noise-0": "degradation is 'noise-0'; allowed: down-FACTOR or noise-DEVIATION, numbers > 0",
        "blur": "degradation is 'blur'; allowed: down-FACTOR or noise-DEVIATION, numbers > 0",
    }.items():
        code, _, err = run(capsys, "reconstruct", "two", "--degradation", text)
        assert code == 2, text
        assert message in err
    assert "the VAE's pictures" in run(capsys, "reconstruct", "two", "--n", "1", "--steps", "2")[1]
    code, _, err = run(capsys, "reconstruct", "vae", "--steps", "3")
    assert code == 2
    assert "steps for a VAE, which refines nothing" in err
    code, _, err = run(capsys, "reconstruct", "digits")
    assert code == 2
    assert "model is a VDM; allowed: a VAE, a DiffuseVAE or a restorer" in err


def test_a_mixture_from_the_command_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    small_vae(1).save("vae")
    code, out, err = run(capsys, "mixture", "vae", "--components", "3,1")
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["N(0,", "1", "3"]
    held_out = {int(line.split()[0]): float(line.split()[2]) for line in lines[3:5]}
    assert lines[-1] == f"wrote mixture ({max(held_out, key=lambda k: held_out[k])} components)"
    assert run(capsys, "sample", "vae", "--n", "2", "--mixture", "mixture", "--out", "one.png")[0] == 0
    for arguments, message in (
        (["mixture", "vae", "--components", "0"], "components are '0'; allowed: integers >= 1"),
        (["mixture", "digits"], "model is a vdm; allowed: a VAE or a DiffuseVAE"),
        (["sample", "digits", "--mixture", "mixture"], "mixture is PosixPath('mixture') for a model without a VAE"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert message in err


def test_few_betas_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_diffusevae(2).save("two")
    code, _, err = run(capsys, "sample", "two", "--n", "2", "--steps", "10", "--betas", "1e-6", "0.8")
    assert code == 0, err
    code, _, err = run(capsys, "sample", "digits", "--steps", "10", "--betas", "1e-6", "0.8")
    assert code == 2
    assert "betas is (1e-06, 0.8) for a vdm, with grid None; allowed: for a DDPM" in err


def test_a_name_stands_for_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = small_vae(1), small_vae(1, seed=4)
    one.save("runs/vae-digits")
    first = next(iter(load("vae-digits").state_dict().values()))
    assert torch.equal(first, next(iter(one.state_dict().values())))
    two.save("vae-digits")  # a folder of that name comes first
    assert torch.equal(next(iter(load("vae-digits").state_dict().values())), next(iter(two.state_dict().values())))
    with pytest.raises(CheckpointError, match=r"no model 'hvae-digits'; allowed: .*or its name in runs"):
        load("hvae-digits")


def test_the_first_stage_is_put_under_the_second(tmp_path):
    trained, fresh = small_vae(1, seed=3), small_diffusevae(1)
    trained.save(tmp_path / "vae")
    model = with_first_stage(fresh, str(tmp_path / "vae"))
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
