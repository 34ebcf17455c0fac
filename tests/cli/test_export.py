"""The command export: a run's averaged weights with what is known of them, as a folder to publish."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import images, small, small_ddpm, small_vae

import fastdiff
from fastdiff.checkpoints import last_checkpoint, record_of
from fastdiff.data import Dataset, digits
from fastdiff.kernels import Noise
from fastdiff.networks import ConcatUNetConfig
from fastdiff.training import TrainConfig, runs


def few_digits() -> Dataset:
    data = digits()
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return replace(data, **{part: getattr(data, part)[:10] for part in parts})


def trained(out: Path, monkeypatch, steps: int = 4):
    """A run of a VAE, and of its checkpoint alone what an interrupted run leaves."""
    monkeypatch.setattr("fastdiff.training.keeping.NUM_SAMPLES", 4)
    config = TrainConfig(data="digits", max_steps=steps, batch_size=4, warm_up=0, ema=0.9)
    data = few_digits()
    state = runs.start(out, lambda: small_vae(1), config, data)
    options = runs.RunOptions(evaluations=0, pictures=False, progress=False)
    return runs.run(out, state, data, options), state


def read(path: Path) -> dict:
    return json.loads((path / "config.json").read_text())


def test_a_run_is_exported_with_its_figures(run, monkeypatch, tmp_path):
    result, state = trained(tmp_path / "runs" / "mine", monkeypatch)
    for name, out in (("runs/mine", "a"), ("mine", "b"), (str(last_checkpoint(Path("runs/mine"))), "c")):
        code, printed, err = run("export", name, out, "--license", "mit")
        assert code == 0, err
        assert printed == f"wrote {out}: vae model, {sum(p.numel() for p in state.model.parameters()):,} parameters\n"
        assert sorted(os.listdir(out)) == ["README.md", "config.json", "manifest.json", "model.safetensors"]
        record = read(Path(out))["record"]
        assert record["evaluation"] == result.evaluation.row()
        assert record["train"]["max_steps"] == 4
        card = Path(out, "README.md").read_text()
        assert card.startswith("---\nlicense: mit\n")
        assert f"| {result.evaluation.mean:.4f} |" in card
        found, averaged = fastdiff.load(out).state_dict(), state.averaged.state_dict()
        assert all(torch.equal(found[key], value) for key, value in averaged.items())


def test_figures_of_other_weights_are_not_taken(run, monkeypatch, tmp_path):
    """A run that went on after its end, or that has not come to it: the settings and the step are all that is known."""
    trained(tmp_path / "run", monkeypatch)
    small_vae(1, seed=3).save("run/model", record={"evaluation": {"bpd": 0.1}})
    assert run("export", "run", "out")[0] == 0
    record = read(Path("out"))["record"]
    assert sorted(record) == ["step", "train"]
    assert record["step"] == 4
    card = Path("out", "README.md").read_text()
    assert "## Variational bound" not in card
    assert "- step: 4" in card


def test_saved_and_embedded_models(run):
    model = small(num_classes=2)
    x = images(2)
    model.save("plain")
    model.save("noted", record={"origin": "a test"}, license="mit")
    for name in ("plain", "noted"):
        assert run("export", name, f"{name}-out", "--license", "apache-2.0")[0] == 0
        assert read(Path(f"{name}-out")).get("record") == read(Path(name)).get("record")
        assert torch.equal(fastdiff.load(f"{name}-out").vlb(x, Noise(1)).total, model.vlb(x, Noise(1)).total)
    assert record_of("plain") == {}
    assert run("export", "digits", "digits-out")[0] == 0
    card = Path("digits-out", "README.md").read_text()
    assert "| 1.6747 | 0.0152 |" in card
    assert "license" not in card.split("---")[1]
    assert read(Path("digits-out"))["spacings"] == fastdiff.load("digits").description()["spacings"]


def test_paths_of_a_record_are_exported_as_names(run):
    """As the embedded models have it: folders of the machine that trained a model stay there; the rest is kept."""
    train = {"data": "/home/me/photos", "first_stage": "runs/vae-mine/", "max_steps": 7}
    small().save("mine", record={"train": train, "step": 7})
    assert run("export", "mine", "out")[0] == 0
    expected = {"data": "photos", "first_stage": "vae-mine", "max_steps": 7}
    assert read(Path("out"))["record"] == {"train": expected, "step": 7}
    assert "/home" not in Path("out", "README.md").read_text()
    assert record_of("mine")["train"] == train


def test_the_format_of_diffusers(run):
    """As `Model.save_diffusers`, whose errors are those of the command."""
    network = ConcatUNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), max_groups=4, timesteps=1000)
    model = small_ddpm(T=1000, network=network, pixels="ends")
    model.save("model")
    code, _, err = run("export", "model", "out", "--format", "diffusers")
    assert code == 0, err
    assert sorted(os.listdir("out")) == ["model_index.json", "scheduler", "unet"]
    found = fastdiff.load("out").state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    small().save("other")
    code, _, err = run("export", "other", "none", "--format", "diffusers")
    assert code == 2
    assert "got a vdm model" in err
    assert not os.path.exists("none")


def test_errors(run):
    small_vae(1).save("model")
    os.mkdir("taken")
    Path("taken", "thesis").write_text("words")
    Path("w.pt").write_bytes(b"\x80\x02}q\x00.")
    for arguments, words in (
        (["model", "out", "--license", "MIT"], "license must be an identifier"),
        (["model", "out", "--format", "diffusers", "--license", "mit"], "--license must be absent"),
        (["nothing", "out"], "model must be a checkpoint folder"),
        (["w.pt", "out"], "it is a pickle"),
        (["model", "taken"], "something else is there"),
    ):
        code, _, err = run("export", *arguments)
        assert code == 2, arguments
        assert words in err
    with pytest.raises(SystemExit):
        run("export", "model", "out", "--format", "onnx")
    assert not os.path.exists("out")
