"""Folders on disk: complete or absent after every interruption, and every fault found and named."""

import json
import os
import subprocess
import sys
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.io import folders
from fastdiff.io.folders import MANIFEST, CheckpointError, check_state, read_folder, recover, sweep, write_folder
from fastdiff.kernels import FastdiffError


def content(k: int = 0) -> dict:
    """Files of each kind: scalars, an empty tensor, another dtype, and a tensor whose memory is not contiguous."""
    tensors = {
        "a.weight": torch.arange(12.0).view(3, 4).T + k, "b": torch.tensor(float(k)), "c": torch.zeros(0, 2),
        "d": torch.arange(5, dtype=torch.uint8), "e": torch.full((2,), 1.5).bfloat16(),
    }  # fmt: skip
    return {"n.json": {"k": k, "list": [1, 2.5, None, "x"]}, "w.safetensors": tensors}


def same(found: dict, expected: dict) -> bool:
    ours, theirs = found["w.safetensors"], expected["w.safetensors"]
    return (
        found["n.json"] == expected["n.json"]
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    )


@pytest.fixture
def written(tmp_path):
    return write_folder(tmp_path / "folder", content())


def rewrite(path, name, data: bytes) -> None:
    """Replace a file and bring the manifest up to date, as a program that edits folders would."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    (path / MANIFEST).write_text(json.dumps(manifest))


# ------------------------------------------------------------------------------------------------ writing


def test_round_trip(written):
    assert same(read_folder(written), content())
    assert sorted(os.listdir(written)) == [MANIFEST, "n.json", "w.safetensors"]
    assert os.listdir(written.parent) == ["folder"]
    files = json.loads((written / MANIFEST).read_text())["files"]
    data = (written / "w.safetensors").read_bytes()
    assert files["w.safetensors"] == {"bytes": len(data), "crc32": zlib.crc32(data)}


def test_tensors_that_share_memory(tmp_path):
    whole = torch.arange(6.0)
    path = write_folder(tmp_path / "x", {"w.safetensors": {"whole": whole, "part": whole[2:4], "same": whole}})
    found = read_folder(path)["w.safetensors"]
    assert torch.equal(found["part"], whole[2:4])
    assert torch.equal(found["same"], found["whole"])


def test_writing_again_replaces(written):
    write_folder(written, content(3))
    assert same(read_folder(written), content(3))
    assert os.listdir(written.parent) == ["folder"]


def test_files_obey_the_umask(tmp_path):
    previous = os.umask(0o022)
    try:
        path = write_folder(tmp_path / "folder", content())
    finally:
        os.umask(previous)
    assert (path / "w.safetensors").stat().st_mode & 0o777 == 0o644


def test_something_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("words")
    (tmp_path / "file").write_text("words")
    for name in ("thesis", "file"):
        with pytest.raises(CheckpointError, match="something else is there"):
            write_folder(tmp_path / name, content())
    assert (tmp_path / "thesis" / "chapter").read_text() == (tmp_path / "file").read_text() == "words"


def test_a_full_disk_leaves_the_old_folder(written, monkeypatch):
    before = (written / "w.safetensors").read_bytes()

    def full(path, data):
        if path.name == "w.safetensors":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(folders, "_write_synced", full)
    with pytest.raises(CheckpointError, match=r"cannot write .* bytes\): .*No space left"):
        write_folder(written, content(3))
    assert (written / "w.safetensors").read_bytes() == before
    assert os.listdir(written.parent) == ["folder"]


def test_everything_is_synchronised_before_the_rename(tmp_path, monkeypatch):
    calls = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), real_sync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append("rename"), real_rename(a, b)))
    write_folder(tmp_path / "x", content())
    assert calls == ["sync"] * 4 + ["rename", "sync"]  # two files, manifest, folder; then the folder above


KILLED = """
import os, signal, sys, time, torch
from fastdiff.io.folders import write_folder

path = sys.argv[1]
tensors = {str(i): torch.full((50_000,), float(i)) for i in range(8)}
for attempt in range(6):
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        for k in range(10**9):
            write_folder(path, {"n.json": {"k": k}, "w.safetensors": {n: t + k for n, t in tensors.items()}})
            if k == 0:
                os.write(tell, b"x")
    os.close(tell)  # so that reading ends if the child fails
    os.read(ready, 1)
    os.close(ready)
    time.sleep(0.03 + 0.041 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_writing(tmp_path):
    """SIGKILL at various moments of replacing a folder: what is at the path is complete, and belongs together."""
    path = tmp_path / "folder"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(6):
            assert process.stdout.readline() == "killed\n"
            found = read_folder(path)
            assert float(found["w.safetensors"]["3"][0]) == 3.0 + found["n.json"]["k"]
            process.stdin.write("on\n")
            process.stdin.flush()
    assert process.returncode == 0
    sweep(tmp_path)
    assert path.name in os.listdir(tmp_path)
    assert set(os.listdir(tmp_path)) <= {"folder", ".old-folder"}


def test_killed_between_the_two_renames(written, monkeypatch):
    """The worst moment of a replacement: the old folder is moved aside and the new one is not yet in place."""
    real = os.rename

    def die(a, b):
        if str(a).rpartition("/")[2].startswith(".tmp-"):
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "rename", die)
    monkeypatch.setattr(folders, "recover", lambda path: None)  # a killed process does not recover
    with pytest.raises(KeyboardInterrupt):
        write_folder(written, content(3))
    monkeypatch.undo()
    assert not written.exists()
    assert same(read_folder(written), content())
    assert os.listdir(written.parent) == ["folder"]


def test_recover_prefers_what_is_in_place(written):
    os.rename(write_folder(written.parent / "other", content(3)), written.parent / ".old-folder")
    recover(written)
    assert same(read_folder(written), content())


# ------------------------------------------------------------------------------------------------ reading

FAULTS = {
    "there is no such folder": lambda p: os.rename(p, p.with_name("gone")),
    "it holds no manifest.json": lambda p: (p / MANIFEST).unlink(),
    "w.safetensors is missing": lambda p: (p / "w.safetensors").unlink(),
    "w.safetensors holds 100 bytes": lambda p: os.truncate(p / "w.safetensors", 100),
    "n.json holds 0 bytes": lambda p: (p / "n.json").write_bytes(b""),
    "n.json is damaged": lambda p: (p / "n.json").write_bytes((p / "n.json").read_bytes().replace(b"2.5", b"2.6")),
    "manifest.json cannot be read": lambda p: (p / MANIFEST).write_text("{"),
    "manifest of format 1": lambda p: (p / MANIFEST).write_text("[]"),
    "manifest of format 1,": lambda p: (p / MANIFEST).write_text('{"format": 2, "files": {}}'),
    "n.json cannot be read": lambda p: rewrite(p, "n.json", b"{"),
    "n.json cannot be read,": lambda p: rewrite(p, "n.json", b"\xff\xfe"),
    "w.safetensors cannot be read": lambda p: rewrite(p, "w.safetensors", b"\x80\x04K\x01."),  # a pickle
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_found_and_named(written, message):
    FAULTS[message](written)
    with pytest.raises(CheckpointError, match=message.removesuffix(",")) as error:
        read_folder(written)
    assert isinstance(error.value, FastdiffError)


@given(position=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_every_bit_flip_is_found(tmp_path_factory, position, bit):
    path = tmp_path_factory.getbasetemp() / "flips"
    if not path.exists():
        write_folder(path, content())
    files = sorted(path.iterdir())
    name = files[position % len(files)]
    original = name.read_bytes()
    damaged = bytearray(original)
    damaged[position // 3 % len(damaged)] ^= 1 << bit
    name.write_bytes(damaged)
    try:
        assert same(read_folder(path), content())  # a flip in the manifest's white space changes nothing
        assert name.name == MANIFEST
    except CheckpointError:
        pass
    finally:
        name.write_bytes(original)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, -1])
def test_truncated_tensors_with_a_manifest_that_agrees(written, length):
    data = (written / "w.safetensors").read_bytes()
    rewrite(written, "w.safetensors", data[:length])
    with pytest.raises(CheckpointError, match=r"w\.safetensors cannot be read"):
        read_folder(written)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/outside.json", "sub/outside.json"])
def test_a_manifest_cannot_reach_outside_its_folder(written, name):
    (written.parent / "outside.json").write_text("{}")
    manifest = json.loads((written / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 2, "crc32": zlib.crc32(b"{}")}
    (written / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="must list files of this folder"):
        read_folder(written)


def test_tensors_are_checked_against_what_is_expected():
    expected = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(2).long()}
    check_state("here", {name: value.clone() for name, value in expected.items()}, expected)
    state = {"a": torch.zeros(3, 2), "b": torch.full((4,), torch.nan), "c": torch.zeros(2), "more": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="here") as error:
        check_state("here", state, expected | {"d": torch.zeros(1)})
    problems = str(error.value).removeprefix("here: ").split("; ")
    assert len(problems) == 5  # all of them at once
    for name, problem in (("d", "missing"), ("more", "unknown"), ("a", "shape"), ("b", "finite"), ("c", "dtype")):
        assert any(name in text.split() and problem in text for text in problems), (name, problems)
