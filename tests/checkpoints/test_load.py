"""Saving and loading models: round trips of every kind, and every fault found and named."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load, save
from tiny import images, small, small_ddpm, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff.checkpoints import checkpoint_path, checkpoints, last_checkpoint
from fastdiff.io.folders import CARD, MANIFEST, CheckpointError, write_folder
from fastdiff.kernels import Noise
from fastdiff.models import AddNoise

EVERY_KIND = {
    "vdm": lambda: small("categorical", num_classes=2, augmented=True),
    "learned": lambda: small(schedule="learned"),
    "ddpm": lambda: small_ddpm(variance="learned", num_classes=2),
    "hvae": lambda: small_vae(3),
    "diffusevae": lambda: small_diffusevae(2, depth=2),
    "restoration": lambda: small_restoration(AddNoise(deviation=0.25), formulation=2),
}


@pytest.fixture
def saved(tmp_path):
    return small(num_classes=2).save(tmp_path / "model")


def rewrite(path, name, data: bytes):
    """Replace a file and bring the manifest up to date, as a program that edits checkpoints would."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    (path / MANIFEST).write_text(json.dumps(manifest))


def edit_tensors(path, change):
    tensors = load((path / "model.safetensors").read_bytes())
    change(tensors)
    rewrite(path, "model.safetensors", save(tensors))


def edit_config(path, change):
    config = json.loads((path / "config.json").read_text())
    change(config)
    rewrite(path, "config.json", json.dumps(config).encode())


# ------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_round_trip(tmp_path, kind):
    """Configuration, tensors and the bound are bit-identical, from a model in training as well."""
    model = EVERY_KIND[kind]().train()
    loaded = fastdiff.load(model.save(tmp_path / "model", record={"origin": "a test"}))
    assert type(loaded) is type(model)
    assert not any(part.training for part in loaded.modules())
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    x, T = images(3), None if model.T is None else model.T
    assert torch.equal(loaded.vlb(x, Noise(1), T).total, model.eval().vlb(x, Noise(1), T).total)
    assert sorted(os.listdir(tmp_path / "model")) == [CARD, "config.json", MANIFEST, "model.safetensors"]
    assert json.loads((tmp_path / "model" / "config.json").read_text())["record"] == {"origin": "a test"}


def test_saving_again_replaces(saved):
    other = small(seed=5, num_classes=2)
    other.save(saved)
    assert torch.equal(fastdiff.load(saved).state_dict()["network.conv_in.weight"], other.network.conv_in.weight)


def test_names_and_folders(tmp_path, monkeypatch):
    """An embedded name comes before a folder, ``./`` before the name; a run stands for its last checkpoint."""
    monkeypatch.chdir(tmp_path)
    first, last = small(seed=1), small(seed=2)
    first.save(tmp_path / "digits")
    for step, model in ((3, first), (12, last)):
        model.save(checkpoint_path(tmp_path / "runs" / "mine", step))
    (tmp_path / "runs" / "mine" / "step-00000099").mkdir()  # incomplete: it has no manifest
    assert last_checkpoint(tmp_path / "runs" / "mine") == tmp_path / "runs" / "mine" / "step-00000012"
    assert last_checkpoint(tmp_path) is None

    def weight(model) -> torch.Tensor:
        return model.state_dict()["network.conv_in.weight"]

    with pytest.warns(UserWarning, match="digits is the embedded model; the one in digits is ./digits"):
        assert fastdiff.load("digits").config.num_classes == 10
    for name in ("./digits", Path("digits"), tmp_path / "digits", tmp_path / "runs" / "mine" / "step-00000003"):
        assert torch.equal(weight(fastdiff.load(name)), weight(first))
    for name in ("mine", "runs/mine", tmp_path / "runs" / "mine"):
        assert torch.equal(weight(fastdiff.load(name)), weight(last))
    for name in ("digit", tmp_path / "runs", "runs/other", "x" * 300, "a\0b", ""):
        with pytest.raises(CheckpointError):
            fastdiff.load(name)


def test_an_interrupted_replacement_is_read_and_then_finished(saved):
    os.rename(saved, saved.with_name(".old-model"))
    model = fastdiff.load(saved)
    assert model.num_classes == 2
    assert os.listdir(saved.parent) == [".old-model"]  # a reader changes nothing
    model.save(saved)
    assert os.listdir(saved.parent) == ["model"]


TRAINER = """
import sys, time
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from tiny import small
from fastdiff.checkpoints import checkpoint_path
from fastdiff.training.run_folder import commit

model, out, step, limit = small(), Path(sys.argv[1]), 0, float("inf")
while time.monotonic() < limit:
    step += 1
    commit(out, step, model.save, model.save)
    print(step, flush=True)
    limit = min(limit, time.monotonic() + 1.5)  # from the first one on
"""


@pytest.mark.slow
def test_a_loader_beside_a_trainer(tmp_path):
    """A checkpoint a step, and only the newest is kept: every load finds one that is whole."""
    out, loads = tmp_path / "run", 0
    command = [sys.executable, "-c", TRAINER, str(out), str(Path(tiny.__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        while process.poll() is None:
            assert fastdiff.load(out).kind == "vdm"
            loads += 1
        steps = int(process.stdout.read().split()[-1])
    assert process.returncode == 0
    assert [path.name for path in checkpoints(out)] == [f"step-{steps:08d}"]
    assert loads > 1
    assert steps > 5


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    """Also beyond the eight digits that their names have room for; other names are none."""
    for step in (99_999_999, 100_000_000, 5):
        write_folder(checkpoint_path(tmp_path, step), {"n.json": {}})
    for name in ("step-x", "step-00000006", "step-7-copy"):
        (tmp_path / name).mkdir()
    assert [int(path.name.removeprefix("step-")) for path in checkpoints(tmp_path)] == [5, 99_999_999, 100_000_000]
    assert last_checkpoint(tmp_path / "nowhere") is None


# ------------------------------------------------------------------------------------------------ faults


def remove_file(path, name):
    """Remove a file from the folder and from the manifest."""
    (path / name).unlink()
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["files"][name]
    (path / MANIFEST).write_text(json.dumps(manifest))


def widths(value: int):
    return lambda p: edit_config(p, lambda c: c["config"]["network"].update(widths=[value, value]))


BIAS = "network.conv_in.bias"
FAULTS = {
    "model must be a checkpoint folder": lambda p: os.rename(p, p.with_name("gone")),
    "folder of diffusers, but it holds no manifest.json, no complete checkpoint step-": lambda p: (
        p / MANIFEST
    ).unlink(),
    "with model.safetensors": lambda p: remove_file(p, "model.safetensors"),
    "with config.json": lambda p: remove_file(p, "config.json"),
    "model.safetensors is missing": lambda p: (p / "model.safetensors").unlink(),
    "model.safetensors holds 100 bytes": lambda p: os.truncate(p / "model.safetensors", 100),
    "config.json is damaged": lambda p: (p / "config.json").write_bytes(
        (p / "config.json").read_bytes().replace(b"17", b"18")
    ),
    "config.json must hold an object": lambda p: rewrite(p, "config.json", b"[]"),
    "unknown keys color": lambda p: edit_config(p, lambda c: c["config"].update(color=1)),
    "unknown keys extra": lambda p: edit_config(p, lambda c: c.update(extra=1)),
    "lacks the keys levels": lambda p: edit_config(p, lambda c: c["config"].pop("levels")),
    "config must be an object": lambda p: edit_config(p, lambda c: c.update(config=[])),
    "model must be one of": lambda p: edit_config(p, lambda c: c.update(model="gan")),
    "model must be one of vdm": lambda p: edit_config(p, lambda c: c.update(model=["vdm"])),
    "levels must": lambda p: edit_config(p, lambda c: c["config"].update(levels=1)),
    "config.shape must": lambda p: edit_config(p, lambda c: c["config"].update(shape=[1, 8])),
    "gamma_0 must be < gamma_1": lambda p: edit_config(p, lambda c: c["config"].update(gamma_1=-20.0)),
    "lacks the keys gamma_1": lambda p: edit_config(p, lambda c: c["config"].pop("gamma_1")),
    "network lacks the keys heads": lambda p: edit_config(p, lambda c: c["config"]["network"].pop("heads")),
    "config.json describes a model that": widths(10**9),
    "config.json describes a model that cannot": widths(10**30),
    "too large for its file": widths(4096),
    "too large for its file: ": lambda p: edit_config(p, lambda c: c["config"]["network"].update(blocks=10**9)),
    "config.json cannot be read": lambda p: rewrite(p, "config.json", b'{"config":' * 100_000 + b"1" + b"}" * 100_000),
    "multiple": lambda p: edit_config(p, lambda c: c["config"].update(shape=[1, 8, 9])),
    f"missing tensor {BIAS}": lambda p: edit_tensors(p, lambda t: t.pop(BIAS)),
    "unknown tensor more": lambda p: edit_tensors(p, lambda t: t.update(more=torch.ones(1))),
    f"{BIAS} must have shape": lambda p: edit_tensors(p, lambda t: t.update({BIAS: torch.ones(3)})),
    f"{BIAS} must have dtype": lambda p: edit_tensors(p, lambda t: t.update({BIAS: torch.ones(8).half()})),
    f"{BIAS} must be finite": lambda p: edit_tensors(p, lambda t: t[BIAS].fill_(float("nan"))),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_found_and_named(saved, message):
    FAULTS[message](saved)
    with pytest.raises(CheckpointError, match=message) as error:
        fastdiff.load(saved)
    assert str(saved) in str(error.value)


def test_names_of_a_hub_say_how_to_download_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = r"a folder of diffusers, .* got 'google/ddpm-cifar10-32'; .*snapshot_download\('google/ddpm-cifar10-32'\)"
    with pytest.raises(CheckpointError, match=words):
        fastdiff.load("google/ddpm-cifar10-32")
    (tmp_path / "models").mkdir()
    for path in ("models/mine", "./models/mine", "../models/mine", "/models/mine", "mine", "a/b/c"):
        with pytest.raises(CheckpointError, match=f"got '{path}'$"):
            fastdiff.load(path)


@pytest.mark.parametrize("kind", ["hvae", "diffusevae", "restoration"])
def test_weights_that_load_would_reject_are_not_saved(tmp_path, kind):
    model = EVERY_KIND[kind]()
    name, parameter = next((name, p) for name, p in model.named_parameters() if p.dim() > 1)
    with torch.no_grad():
        parameter.view(-1)[0] = float("inf")
    with pytest.raises(CheckpointError, match=f"{name} must be finite"):
        model.save(tmp_path / "model")
    model = EVERY_KIND[kind]()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"unknown tensor extra\.weight"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
