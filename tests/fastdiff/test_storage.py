"""Checkpoint folders: whole or not at all, every fault found and named."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import small

import fastdiff
from fastdiff import storage
from fastdiff.checkpoint import embedded_names
from fastdiff.config import differences
from fastdiff.models import AddNoise, ConvVAEConfig, Downsample, HVAEConfig
from fastdiff.storage import CheckpointError, read_folder, write_folder


@pytest.fixture
def saved(tmp_path):
    return small(classes=2).save(tmp_path / "model")


def rewrite(path, name, data: bytes):
    """Replace a file and bring the manifest up to date, as a program that edits checkpoints would."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / storage.MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(data), "crc32": storage.zlib.crc32(data)}
    (path / storage.MANIFEST).write_text(json.dumps(manifest))


def edit_tensors(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "edited")
    rewrite(path, "model.safetensors", (path / "edited").read_bytes())


def edit_config(path, change):
    config = json.loads((path / "config.json").read_text())
    change(config)
    rewrite(path, "config.json", json.dumps(config).encode())


def test_round_trip(saved):
    model, loaded = small(classes=2), fastdiff.load(saved)
    assert not loaded.training
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert sorted(os.listdir(saved)) == ["config.json", "manifest.json", "model.safetensors"]


def test_files_obey_the_umask_and_nothing_is_left_behind(tmp_path):
    previous = os.umask(0o022)
    try:
        path = small().save(tmp_path / "model")
    finally:
        os.umask(previous)
    assert (path / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["model"]


def test_saving_again_replaces(saved):
    other = small(seed=5, classes=2)
    other.save(saved)
    assert torch.equal(fastdiff.load(saved).state_dict()["network.conv_in.weight"], other.network.conv_in.weight)
    assert os.listdir(saved.parent) == ["model"]


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("words")
    with pytest.raises(CheckpointError, match="exists and is no checkpoint folder"):
        small().save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter").read_text() == "words"


FAULTS = {
    "no model .*allowed: a checkpoint folder": lambda p: os.rename(p, p.with_name("gone")),
    r"holds no manifest.json|is missing": lambda p: (p / storage.MANIFEST).unlink(),
    r"model.safetensors is missing": lambda p: (p / "model.safetensors").unlink(),
    r"model.safetensors holds 100 bytes": lambda p: os.truncate(p / "model.safetensors", 100),
    r"config.json is damaged": lambda p: (p / "config.json").write_bytes(
        (p / "config.json").read_bytes().replace(b"17", b"18")
    ),
    r"manifest.json cannot be read": lambda p: (p / storage.MANIFEST).write_text("{"),
    r"not a manifest of format 1": lambda p: (p / storage.MANIFEST).write_text("[]"),
    r"config.json cannot be read": lambda p: rewrite(p, "config.json", b"{"),
    r"model.safetensors cannot be read": lambda p: rewrite(p, "model.safetensors", b"\x80\x04K\x01."),
    "unknown keys colour; allowed": lambda p: edit_config(p, lambda c: c["config"].update(colour=1)),
    "unknown keys extra; allowed": lambda p: edit_config(p, lambda c: c.update(extra=1)),
    "unknown model 'gan'": lambda p: edit_config(p, lambda c: c.update(model="gan")),
    "levels 1,": lambda p: edit_config(p, lambda c: c["config"].update(levels=1)),
    "missing tensor network.conv_in.bias": lambda p: edit_tensors(p, lambda t: t.pop("network.conv_in.bias")),
    "unknown tensor more": lambda p: edit_tensors(p, lambda t: t.update(more=torch.ones(1))),
    r"conv_in.bias has shape \(3,\), allowed: \(8,\)": lambda p: edit_tensors(
        p, lambda t: t.update({"network.conv_in.bias": torch.ones(3)})
    ),
    "conv_in.bias has dtype torch.float16": lambda p: edit_tensors(
        p, lambda t: t.update({"network.conv_in.bias": torch.ones(8).half()})
    ),
    "conv_in.bias holds values that are not finite": lambda p: edit_tensors(
        p, lambda t: t["network.conv_in.bias"].fill_(float("nan"))
    ),
    "gamma goes from|gamma_1": lambda p: edit_config(p, lambda c: c["config"].update(gamma_1=-20.0)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_found_and_named(saved, message):
    FAULTS[message](saved)
    with pytest.raises(CheckpointError, match=message):
        fastdiff.load(saved)


@given(position=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_every_bit_flip_is_found(tmp_path_factory, position, bit):
    path = tmp_path_factory.getbasetemp() / "flips"
    if not path.exists():
        small().save(path)
    files = sorted(path.iterdir())
    name = files[position % len(files)]
    original = name.read_bytes()
    damaged = bytearray(original)
    damaged[position // 3 % len(damaged)] ^= 1 << bit
    name.write_bytes(damaged)
    try:
        if read_back(path) is not None:  # a flip in the manifest's white space or its format changes nothing
            assert name.name == storage.MANIFEST
    finally:
        name.write_bytes(original)


def read_back(path):
    try:
        return fastdiff.load(path)
    except CheckpointError:
        return None


def test_a_full_disk_leaves_the_old_checkpoint(saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def full(path, data):
        if path.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(storage, "_write_synced", full)
    with pytest.raises(CheckpointError, match=r"cannot write .* bytes\): .*No space left"):
        small(seed=3, classes=2).save(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert os.listdir(saved.parent) == ["model"]


def test_everything_is_synchronised_before_the_rename(tmp_path, monkeypatch):
    calls = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), real_sync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append("rename"), real_rename(a, b)))
    write_folder(tmp_path / "x", {"a.json": {"k": 1}, "b.safetensors": {"w": torch.ones(2)}})
    assert calls == ["sync"] * 4 + ["rename", "sync"]  # two files, manifest, folder; then the folder above


KILLED = """
import sys, torch
from fastdiff.storage import write_folder
tensors = {str(i): torch.full((50_000,), float(i)) for i in range(8)}
for k in range(10**9):
    write_folder(sys.argv[1], {"n.json": {"k": k}, "w.safetensors": {n: t + k for n, t in tensors.items()}})
    if k == 0:
        print("ready", flush=True)
"""


def test_killed_while_saving(tmp_path):
    """SIGKILL at random moments of replacing a folder: what stands at the path is whole, and belongs together."""
    path = tmp_path / "model"
    for attempt in range(5):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03 + 0.041 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = read_folder(path)
        assert float(content["w.safetensors"]["3"][0]) == 3.0 + content["n.json"]["k"]
    storage.sweep(tmp_path)
    assert path.name in os.listdir(tmp_path)
    assert set(os.listdir(tmp_path)) <= {"model", ".old-model"}


def test_killed_between_the_two_renames(saved, monkeypatch):
    """The worst moment of a replacement: the old folder is aside and the new one not yet in place."""
    real = os.rename

    def die(a, b):
        if str(a).rpartition("/")[2].startswith(".tmp-"):
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "rename", die)
    monkeypatch.setattr(storage, "recover", lambda path: None)  # nor does anybody tidy up
    with pytest.raises(KeyboardInterrupt):
        small(seed=3, classes=2).save(saved)
    monkeypatch.undo()
    assert not saved.exists()
    expected = small(classes=2).state_dict()["network.conv_in.weight"]
    assert torch.equal(fastdiff.load(saved).state_dict()["network.conv_in.weight"], expected)


def test_a_manifest_cannot_reach_outside_its_folder(saved):
    outside = saved.parent / "outside.json"
    outside.write_text("{}")
    manifest = json.loads((saved / storage.MANIFEST).read_text())
    manifest["files"]["../outside.json"] = {"bytes": 2, "crc32": storage.zlib.crc32(b"{}")}
    (saved / storage.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"lists '../outside.json'; allowed: files of this folder"):
        fastdiff.load(saved)


def test_embedded_models_are_listed_and_unknown_names_are_errors():
    with pytest.raises(CheckpointError, match="no model 'digit'; allowed: .*one of: " + ", ".join(embedded_names())):
        fastdiff.load("digit")


def test_differences_of_configurations():
    one = HVAEConfig((1, 8, 8), 17, network=ConvVAEConfig(widths=(8,)))
    other = HVAEConfig((1, 8, 8), 17, depth=2, network=ConvVAEConfig(widths=(8, 16)))
    assert differences(one, other) == "depth 1, network.widths (8,); allowed: depth 2, network.widths (8, 16)"
    kinds = differences(AddNoise(), Downsample())
    assert kinds == "deviation 0.5, kind noise; allowed: kind downsample, factor 2"
