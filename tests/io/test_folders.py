"""Folders on disk: complete or absent after every interruption, and every fault found and named."""

import json
import os
import re
import subprocess
import sys
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.io import files, folders
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


def test_everything_is_on_the_disk_before_its_name(written, monkeypatch):
    """In order: the files, the manifest last, the folder, the new name, the folder above; then the old one goes."""
    calls = []
    real = {name: getattr(os, name) for name in ("fsync", "rename")}
    write, discard = files.write_synced, files.discard

    def fsync(descriptor):
        calls.append("sync a folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync a file")
        real["fsync"](descriptor)

    def rename(a, b):
        calls.append(re.sub(r"-[0-9a-f]{8}\b", "", f"{a.name} becomes {b.name}"))
        real["rename"](a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(files, "write_synced", lambda path, data: (calls.append(path.name), write(path, data)))
    monkeypatch.setattr(files, "discard", lambda path: (calls.append("discard"), discard(path)))
    write_folder(written, content(3))
    assert calls == [
        "n.json", "sync a file", "w.safetensors", "sync a file", MANIFEST, "sync a file", "sync a folder",
        "folder becomes .old-folder", ".tmp-folder becomes folder", "sync a folder",
        ".old-folder becomes .tmp-.old-folder", "discard", "discard",
    ]  # fmt: skip


FULL = """
import os, resource, sys, torch
from fastdiff.io.files import write_atomically
from fastdiff.io.folders import write_folder

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
for write in (
    lambda: write_folder(sys.argv[1] + "/folder", {"w.safetensors": {"a": torch.zeros(20_000)}}),
    lambda: write_atomically(sys.argv[1] + "/file", bytes(60_000)),
):
    try:
        write()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_full_disk_leaves_the_old_ones(written):
    """A limit of the kernel in place of a full disk: no partial file stays, and the message says what did not fit."""
    (written.parent / "file").write_bytes(b"old")
    command = [sys.executable, "-c", FULL, str(written.parent)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for line, kind, path, least in zip(
        lines, ("CheckpointError", "WriteError"), (written, written.parent / "file"), (80_000, 60_000), strict=True
    ):
        found = re.fullmatch(
            rf"{kind} cannot write {path} \((\d+) bytes, \d+ bytes are free\): .*File too large.*", line
        )
        assert found, line
        assert least <= int(found[1]) < least + 1000
    assert same(read_folder(written), content())
    assert (written.parent / "file").read_bytes() == b"old"
    assert sorted(os.listdir(written.parent)) == ["file", "folder"]


def test_a_symbolic_link_stays_one(written, tmp_path):
    """Saving through it replaces what it points to, again and again; without that there is nothing to load."""
    (tmp_path / "apart").mkdir()
    link = tmp_path / "apart" / "link"
    link.symlink_to(os.path.relpath(written, link.parent))
    for k in (3, 4):
        assert write_folder(link, content(k)) == link
        assert link.is_symlink()
        assert same(read_folder(link), content(k))
        assert same(read_folder(written), content(k))
    files.write_atomically(tmp_path / "apart" / "picture", b"new")
    assert sorted(os.listdir(tmp_path / "apart")) == ["link", "picture"]
    assert sorted(os.listdir(tmp_path)) == ["apart", "folder"]
    files.remove(written)
    with pytest.raises(CheckpointError, match="no such folder"):
        read_folder(link)
    write_folder(link, content(5))  # a dangling link: the target is made
    assert same(read_folder(written), content(5))
    assert link.is_symlink()


def test_a_file_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to("file")
    for data in (b"one", b"two"):
        files.write_atomically(tmp_path / "link", data)
        assert (tmp_path / "file").read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    with pytest.raises(files.WriteError, match="no/such"):
        files.write_atomically(tmp_path / "no" / "such", b"")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "a\0b", "file/x"])
def test_names_that_cannot_be(tmp_path, name):
    (tmp_path / "file").write_text("")
    for call in (lambda: write_folder(tmp_path / name, content()), lambda: read_folder(tmp_path / name)):
        with pytest.raises(CheckpointError):
            call()
    assert not folders.exists(tmp_path / name)
    with pytest.raises(files.WriteError):
        files.write_atomically(tmp_path / name, b"")
    assert os.listdir(tmp_path) == ["file"]


def test_only_what_killed_writers_left_is_swept(written):
    """Temporary files and folders, and old folders whose replacement is complete; nothing that merely looks like it."""
    parent = written.parent
    theirs = [".tmp-notes", ".tmp-a-0123456", ".tmp-a-0123456z", ".old-thesis", "tmp-x-01234567"]
    for name in (*theirs, ".tmp-folder-01234567", ".old-folder", ".old-other"):
        (parent / name).mkdir()
    (parent / ".tmp-samples.png-89abcdef").write_text("x")
    for name, k in ((".old-folder", 1), (".old-other", 2)):
        (parent / name).rmdir()
        os.rename(write_folder(parent / "new", content(k)), parent / name)
    sweep(parent)
    assert sorted(os.listdir(parent)) == sorted([*theirs, "folder", "other"])
    assert same(read_folder(written), content())
    assert same(read_folder(parent / "other"), content(2))
    sweep(parent / "nowhere")


def test_what_an_earlier_save_of_the_same_path_left_is_removed(written):
    """After an hour: another process may be writing it now."""
    names = [".tmp-folder-01234567", ".tmp-folder-89abcdef", ".tmp-folder2-01234567"]
    for name in names:
        (written.parent / name).mkdir()
    for name in names[1:]:
        os.utime(written.parent / name, (0, 0))
    write_folder(written, content(1))
    assert sorted(os.listdir(written.parent)) == [names[0], names[2], "folder"]


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
    for _ in range(2):  # a reader changes nothing, since a writer may be at work
        assert same(read_folder(written), content())
        assert os.listdir(written.parent) == [".old-folder"]
    assert folders.exists(written)
    write_folder(written, content(4))
    assert same(read_folder(written), content(4))
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
    "format up to 1, got format 2": lambda p: (p / MANIFEST).write_text('{"format": 2, "files": {}}'),
    "n.json cannot be read": lambda p: rewrite(p, "n.json", b"{"),
    "n.json cannot be read,": lambda p: rewrite(p, "n.json", b"\xff\xfe"),
    "n.json cannot be read: more": lambda p: rewrite(p, "n.json", b"[" * 80 + b"]" * 80),
    "n.json cannot be read: maximum": lambda p: rewrite(p, "n.json", b"[" * 100_000 + b"]" * 100_000),
    "manifest.json cannot be read: m": lambda p: (p / MANIFEST).write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
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


def test_nesting_has_a_limit(tmp_path):
    deep = {"k": 1}
    for _ in range(folders.MAX_DEPTH - 1):
        deep = {"k": deep}
    assert read_folder(write_folder(tmp_path / "x", {"n.json": deep})) == {"n.json": deep}
    with pytest.raises(CheckpointError, match="nested"):
        read_folder(write_folder(tmp_path / "x", {"n.json": {"k": deep}}))


READERS = """
import os, sys, time, torch
from fastdiff.io.folders import write_folder

path, tensors = sys.argv[1], {str(i): torch.full((2000,), float(i)) for i in range(8)}
print("go", flush=True)
limit = time.monotonic() + 1.5
k = 0
while time.monotonic() < limit:
    k += 1
    write_folder(path, {"n.json": {"k": k}, "w.safetensors": {n: t + k for n, t in tensors.items()}})
print(k)
"""


def test_a_reader_beside_a_writer(tmp_path):
    """Neither disturbs the other: every reading is one whole version, and every writing succeeds."""
    path = write_folder(tmp_path / "folder", {"n.json": {"k": 0}, "w.safetensors": {"3": torch.full((2,), 3.0)}})
    found = []
    with subprocess.Popen([sys.executable, "-c", READERS, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        while process.poll() is None:
            both = read_folder(path)
            assert float(both["w.safetensors"]["3"][0]) == 3.0 + both["n.json"]["k"]
            found.append(both["n.json"]["k"])
        assert process.returncode == 0
        assert int(process.stdout.readline()) == read_folder(path)["n.json"]["k"]
    assert found == sorted(found)
    assert len(set(found)) > 3


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
