"""Training from the shell: own data and presets, resuming, and the commands that are printed to be pasted."""

import json
import re
import shlex
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import small, small_vae

import fastdiff
from fastdiff.cli import training
from fastdiff.data import Dataset, digits, from_torch, load_dataset
from fastdiff.io.folders import read_folder
from fastdiff.models import HVAE, VDM
from fastdiff.presets import PRESETS, Preset
from fastdiff.training import TrainConfig, TrainingError, runs

pytestmark = pytest.mark.usefixtures("few_samples")
SMALL = ["--width", "4", "--blocks", "1", "--batch-size", "4", "--workers", "0", "--evaluations", "0", "--no-progress"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of 40 PNG files of 6×4 pixels, in two folders of classes; its name has a space."""
    root = tmp_path_factory.mktemp("data") / "my images"
    generator = np.random.default_rng(0)
    for number in range(40):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (4, 6, 3), np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def few(tmp_path) -> str:
    """The path of an .npz file of 20 training and 5 test digits."""
    data = digits()
    train, test = data.train_images[:20].numpy(), data.test_images[:5].numpy()
    np.savez(tmp_path / "few.npz", levels=17, train_images=train, test_images=test)
    return "few.npz"


@pytest.fixture
def tiny_preset(monkeypatch) -> None:
    training = TrainConfig(data="digits", max_steps=4, batch_size=8, warm_up=0)
    monkeypatch.setitem(PRESETS, "digits", Preset(attrs.evolve(small().config, num_classes=10), training))


def state(out: str | Path) -> dict:
    """The state.json of a run's last checkpoint."""
    return json.loads(max(Path(out).glob("step-*/state.json")).read_text())


def weights(out: str | Path) -> dict[str, torch.Tensor]:
    return read_folder(max(Path(out).glob("step-*")))["model.safetensors"]


def same_weights(one: str | Path, other: str | Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def pasted(out: str, before: str) -> list[str]:
    """The arguments of the command that is printed after some words."""
    (found,) = re.findall(rf"{before} with: (.+)", out)
    program, *arguments = shlex.split(found)
    assert program == "fastdiff"
    return arguments


def stop_after(monkeypatch, steps: int, error: BaseException) -> None:
    """End the next training by an error after some steps; the ones after it are whole."""
    whole = training.runs.RunKeeper._after_step

    def after_step(self, report, *arguments):
        whole(self, report, *arguments)
        if report.step == steps:
            monkeypatch.setattr(training.runs.RunKeeper, "_after_step", whole)
            raise error

    monkeypatch.setattr(training.runs.RunKeeper, "_after_step", after_step)


@pytest.mark.parametrize("model", ["vdm", "ddpm", "vae", "hvae", "diffusevae"])
def test_own_images_are_trained_on_and_sampled(run, pictures, model):
    options = [*SMALL, "--max-steps", "2", "--model", model]
    if model == "diffusevae":
        HVAE(attrs.evolve(small_vae(1).config, shape=(3, 4, 6), levels=256)).save("first")
        options += ["--first-stage", "first"]
    code, out, err = run("train", str(pictures), *options)
    assert code == 0, err
    folder = f"runs/{model}-my images"
    parameters = sum(p.numel() for p in fastdiff.load(folder).parameters())
    assert f"{parameters:,} parameters, 2 steps of 4 images" in out
    assert "38 training and 2 held-out images 3×4×6, 256 levels" in out
    assert fastdiff.sample(f"{model}-my images", 1, None if "vae" in model else 2).shape == (1, 3, 4, 6)


def test_the_last_line_is_a_command_that_draws_from_the_run(run, few, tiny_preset):
    """A run named like an embedded model, or like a folder in the working directory, is named by its path."""
    Path("mine").mkdir()
    for out, name in (
        (None, "runs/digits"),
        ("runs/mine", "runs/mine"),
        ("runs/other", "other"),
        ("letters", "./letters"),
    ):
        code, printed, err = run("train", "digits", "--data", few, *SMALL[4:], *(["--out", out] if out else []))
        assert code == 0, err
        label, words = printed.splitlines()[-1].split(": ")
        assert (label, words) == ("draw from it", f"fastdiff sample {name}")
        code, _, err = run(*shlex.split(words)[1:], "-n", "1", "--out", f"{Path(name).name}.png")
        assert code == 0, err
        assert fastdiff.load(name).config.shape == (1, 8, 8)


def test_options_of_images_and_training(run, pictures):
    """What is given is recorded; what is not has the values for own data, a warm-up of a tenth of so few steps."""
    options = ["--size", "8", "--resize", "10", "--crop", "random", "--color", "grey", "--classes", "--held-out", "5",
               "--clip-norm", "none", "--T", "none", "--no-stratified", "--flip", "0.5", "--shift", "0.1",
               "--loss", "simple"]  # fmt: skip
    code, out, err = run("train", str(pictures), *SMALL, "--max-steps", "20", *options, "--out", "run")
    assert code == 0, err
    assert "35 training and 5 held-out images 1×8×8, 256 levels, 2 classes" in out
    recorded = state("run")["train"]
    assert recorded["images"] == {"size": 8, "resize": 10, "crop": "random", "color": "grey", "classes": True,
                                  "held_out": 5, "skip_damaged": False}  # fmt: skip
    found = [recorded[name] for name in ("clip_norm", "T", "stratified", "flip", "loss", "warm_up")]
    assert found == [None, None, False, 0.5, "simple", 2]
    model = fastdiff.load("run")
    assert (model.num_classes, model.config.augmented) == (2, True)
    for name in ("run", "run/model"):  # both say how the images were read
        code, out, err = run("evaluate", name, "--draws", "1", "--conditional")
        assert (code, out.splitlines()[0]) == (0, f"{name}: 5 held-out images of my images, 1 draws each, seed 0"), err


@pytest.mark.usefixtures("tiny_preset")
@pytest.mark.parametrize("what", ["preset", "own"])
def test_what_is_printed_after_a_stop_continues_the_run(run, pictures, few, monkeypatch, what):
    """To the weights of a run that was not stopped; options that no checkpoint holds are part of the command."""
    options = ["digits", "--data", few] if what == "preset" else [str(pictures), *SMALL, "--max-steps", "4"]
    options += ["--save-every", "1", "--threads", "1", "--evaluations", "0"]
    assert run("train", *options, "--out", "whole")[0] == 0
    stop_after(monkeypatch, 2, KeyboardInterrupt())
    code, out, _ = run("train", *options, "--out", "a run")
    assert code == 130
    arguments = pasted(out, "continue")
    assert arguments[:2] == ["train", "--out"]
    assert {"--resume", "--save-every", "--threads"} <= set(arguments)
    assert "--max-steps" not in arguments
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "resumed after step 2" in out
    assert same_weights("a run", "whole")


def test_without_a_checkpoint_the_run_is_started_again(run, pictures, monkeypatch):
    """With all the options of the call."""
    options = [str(pictures), *SMALL, "--max-steps", "4", "--clip-norm", "none", "--out", "a run"]
    assert run("train", *options[:-1], "whole")[0] == 0
    stop_after(monkeypatch, 2, KeyboardInterrupt())
    code, out, _ = run("train", *options)
    assert code == 130
    assert "no checkpoint" in out
    arguments = pasted(out, "start again")
    assert sorted(arguments[1:]) == sorted(options)
    code, _, err = run(*arguments)
    assert code == 0, err
    assert same_weights("a run", "whole")


def test_a_run_that_diverged_is_one_line_and_advice(run, pictures, monkeypatch):
    stop_after(monkeypatch, 2, TrainingError("the training has diverged"))
    options = [*SMALL, "--max-steps", "4", "--save-every", "1", "--learning-rate", "3e-3"]
    code, out, err = run("train", str(pictures), *options, "--out", "run")
    assert code == 2
    (line,) = [line for line in err.splitlines() if "diverged" in line]
    assert line.startswith("fastdiff: error: the training has diverged. The last good checkpoint")
    code, out, err = run(*pasted(out, "with a lower learning rate"))
    assert code == 0, err
    assert "learning_rate 0.003 -> 0.001 from step 2" in out


def test_a_resumed_run_may_change_and_records_it(run, pictures):
    assert run("train", str(pictures), *SMALL, "--max-steps", "2", "--out", "run")[0] == 0
    more = ["--max-steps", "3", "--learning-rate", "1e-4", "--clip-norm", "none"]
    code, out, err = run("train", "run", "--resume", *SMALL[4:], *more)
    assert code == 0, err
    assert "max_steps 2 -> 3" in out
    assert "learning_rate 0.0005 -> 0.0001" in out
    assert "from step 2" in out
    (change,) = state("run")["changes"]
    assert change == {"step": 2, "max_steps": [2, 3], "learning_rate": [5e-4, 1e-4], "clip_norm": [1.0, None]}
    assert state("run")["step"] == 3
    assert "->" not in run("train", "--out", "run", "--resume", *SMALL[4:])[1]


def test_a_resumed_run_keeps_its_data_and_model(run, pictures, tmp_path):
    start = ["train", str(pictures), *SMALL, "--max-steps", "2"]
    assert run(*start, "--out", "run")[0] == 0
    for options, word in (
        (["--size", "8"], "size"),
        (["--width", "8"], "width 4"),
        (["--model", "vae"], "model vdm"),
        (["--seed", "1"], "seed"),
        (["--max-steps", "1"], "--max-steps"),
    ):
        code, _, err = run("train", str(pictures), "--resume", "--out", "run", *options)
        assert (code, word in err) == (2, True), err
    code, _, err = run(*start, "--out", "run")
    assert (code, "--resume" in err) == (2, True)
    code, _, err = run("train", "run")
    assert (code, "--resume" in err) == (2, True)
    assert run(*start, "--out", "run", "--resume")[0] == 0  # all of it as it was


def test_data_that_were_moved(run, pictures, tmp_path):
    """The files are the same as before in their new place; others are not."""
    moved = tmp_path / "elsewhere"
    moved.symlink_to(pictures)
    assert run("train", str(moved), *SMALL, "--max-steps", "2", "--out", "run")[0] == 0
    moved.rename(tmp_path / "here")
    resume = ["train", "--resume", "--out", "run", "--workers", "0"]
    code, _, err = run(*resume)
    assert (code, "--data" in err) == (2, True)
    code, out, err = run(*resume, "--data", "here", "--max-steps", "3")
    assert code == 0, err
    assert f"data {moved} -> here" in out
    assert state("run")["train"]["data"] == "here"
    code, _, err = run(*resume, "--data", "digits")
    assert code == 2


def python_config(data: str, **settings) -> TrainConfig:
    return TrainConfig(data=data, batch_size=4, warm_up=0, **settings)


def start_in_python(out: str, config: TrainConfig, data: Dataset, steps: int) -> None:
    """Train a run from Python for some steps; the checkpoint says that it is to have ``config.max_steps``."""

    def build() -> VDM:
        return VDM(attrs.evolve(small().config, shape=data.shape, levels=data.levels, prediction="epsilon"))

    options = runs.RunOptions(evaluations=0, progress=False, workers=0)
    begun = runs.start(Path(out), build, attrs.evolve(config, max_steps=steps), data)
    runs.run(Path(out), begun, data, options)


def test_a_run_of_python_is_resumed_from_the_shell(run, few):
    config, data = python_config(few, max_steps=4, decay="constant"), load_dataset(few)
    start_in_python("whole", config, data, 4)
    start_in_python("run", config, data, 2)
    code, out, err = run("train", "--resume", "--out", "run", "--max-steps", "4", "--evaluations", "0")
    assert code == 0, err
    assert "max_steps 2 -> 4 from step 2" in out
    assert same_weights("run", "whole")


def test_a_run_of_the_shell_is_resumed_in_python(run, pictures):
    options = ["train", str(pictures), *SMALL, "--decay", "constant", "--warm-up", "0"]
    assert run(*options, "--max-steps", "4", "--out", "whole")[0] == 0
    assert run(*options, "--max-steps", "2", "--out", "run")[0] == 0
    resumed = runs.resume(Path("run"), {"max_steps": 4})
    data = load_dataset(resumed.config.data, resumed.config.images)
    runs.run(Path("run"), resumed, data, runs.RunOptions(evaluations=0, progress=False, workers=0))
    assert same_weights("run", "whole")


def test_a_run_on_a_torch_dataset_is_resumed_in_python_only(run, tmp_path):
    items = [(torch.zeros(1, 8, 8, dtype=torch.uint8), 0)] * 8
    start_in_python("run", python_config("my items", max_steps=2), from_torch(items, items, levels=17), 2)
    code, _, err = run("train", "--resume", "--out", "run")
    assert code == 2
    assert all(words in err for words in ("my items", "--data", "Python"))


def test_torchrun_resumes_what_it_has_started_again(run, pictures, monkeypatch):
    """Only if there is a checkpoint."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    start = ["train", str(pictures), *SMALL, "--max-steps", "2", "--out", "run"]
    assert "resumed" not in run(*start)[1]
    code, out, err = run(*start)
    assert code == 0, err
    assert "resumed after step 2" in out
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert run(*start)[0] == 2


def test_images_that_need_a_size(run, tmp_path):
    for name, sides in {"large": [(200, 8), (200, 8)], "different": [(8, 8), (8, 9), (8, 8)]}.items():
        (tmp_path / name).mkdir()
        for number, side in enumerate(sides):
            Image.new("L", side).save(tmp_path / name / f"{number}.png")
        code, _, err = run("train", name, *SMALL)
        assert (code, "--size" in err) == (2, True), err
        assert not Path(f"runs/vdm-{name}").exists()
        assert run("train", name, *SMALL, "--size", "4", "--max-steps", "1")[0] == 0
