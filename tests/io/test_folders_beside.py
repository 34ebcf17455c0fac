"""What lies in a folder beside its files: the card, files of a repository, a hub's snapshot of links; versions."""

import json
import os
import shutil
import stat
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from fastdiff.io import files
from fastdiff.io.folders import (
    CARD,
    FORMAT,
    MANIFEST,
    CheckpointError,
    check_folder,
    has_edited_card,
    read_folder,
    write_folder,
)

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 143023784\n"


def content(k: int = 0):
    return {"n.json": {"k": k}, "w.safetensors": {"a": torch.full((3,), float(k))}}


def same(path, k: int) -> bool:
    found = read_folder(path)
    return (
        found.keys() == content().keys() and found["n.json"] == {"k": k} and float(found["w.safetensors"]["a"][0]) == k
    )


def listed(path) -> list[str]:
    return sorted(os.listdir(path))


# ------------------------------------------------------------------------------------------------ the card


def test_the_card_has_no_checksum(tmp_path):
    path = write_folder(tmp_path / "x", content(), "words")
    text, comment = (path / CARD).read_text().split("<!--")
    assert text == "words"
    assert comment == f" fastdiff {zlib.crc32(b'words'):08x} -->\n"
    assert CARD not in json.loads((path / MANIFEST).read_text())["files"]
    for change in (lambda: (path / CARD).write_text("others"), (path / CARD).unlink):
        change()
        assert same(path, 0)
        check_folder(path)


def test_a_card_that_was_not_edited_is_replaced(tmp_path):
    path = tmp_path / "x"
    for k in range(3):
        write_folder(path, content(k), f"card {k}")
        assert (path / CARD).read_text().startswith(f"card {k}<!--")
        assert not has_edited_card(path)
    write_folder(path, content(3))  # without a card: the one of other weights goes
    assert listed(path) == [MANIFEST, "n.json", "w.safetensors"]
    (path / CARD).write_text("by hand")  # beside a folder that was written without one
    assert has_edited_card(path)
    write_folder(path, content(4), "card 4")
    assert (path / CARD).read_text() == "by hand"
    assert not has_edited_card(tmp_path / "nowhere")


def test_an_edited_card_stays(tmp_path):
    """For as long as it is there, whatever is written, through a link as well."""
    path = write_folder(tmp_path / "x", content(), "card")
    (path / CARD).write_text(text := (path / CARD).read_text().replace("card", "edited"))
    (tmp_path / "link").symlink_to("x")
    for k, target in ((1, path), (2, path), (3, tmp_path / "link")):
        write_folder(target, content(k), "card")
        assert has_edited_card(target)
        assert (path / CARD).read_text() == text
        assert same(path, k)
    (path / CARD).unlink()
    write_folder(path, content(4), "card 4")
    assert (path / CARD).read_text().startswith("card 4<!--")


# ------------------------------------------------------------------------------------------------ other files


def test_other_files_stay(tmp_path):
    """Of a clone of a repository the folder .git, a picture that the card shows, and links stay; ours are replaced."""
    path = write_folder(tmp_path / "x", {**content(), "old.json": {}}, "card")
    (path / ".git" / "objects").mkdir(parents=True)
    (path / ".git" / "objects" / "one").write_bytes(b"1")
    (path / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (path / "samples.png").write_bytes(b"png")
    (path / "empty").mkdir()
    (path / "dangling").symlink_to("nothing")
    os.chmod(path / "samples.png", 0o640)
    for k in (1, 2):
        write_folder(path, content(k), "card")
        assert same(path, k)
        names = [
            ".git",
            ".gitattributes",
            CARD,
            "dangling",
            "empty",
            MANIFEST,
            "n.json",
            "samples.png",
            "w.safetensors",
        ]
        assert listed(path) == sorted(names)
        assert (path / ".git" / "objects" / "one").read_bytes() == b"1"
        assert os.readlink(path / "dangling") == "nothing"
        assert stat.S_IMODE((path / "samples.png").stat().st_mode) == 0o640
        assert listed(tmp_path) == ["x"]


def test_other_files_stay_where_links_are_impossible(tmp_path, monkeypatch):
    def no_links(*arguments, **options):
        raise OSError("no links here")

    path = write_folder(tmp_path / "x", content())
    (path / "more").mkdir()
    (path / "more" / "notes").write_text("words")
    (path / "link").symlink_to("more")
    monkeypatch.setattr(files.os, "link", no_links)
    write_folder(path, content(1))
    assert (path / "more" / "notes").read_text() == "words"
    assert (path / "link").is_symlink()


def test_other_files_stay_when_writing_fails(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "x", content(), "card")
    (path / "notes").write_text("words")

    def full(source, target):
        raise OSError("the disk is full")

    monkeypatch.setattr(files, "link", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        write_folder(path, content(1), "card")
    assert same(path, 0)
    assert (path / "notes").read_text() == "words"
    assert listed(tmp_path) == ["x"]


@pytest.mark.parametrize("manifest", ["{", '{"format": 1}', '{"files": [[]]}'])
def test_a_damaged_manifest_costs_no_other_file(tmp_path, manifest):
    """Only names that fastdiff gives to its files are removed, also where the others end as these do."""
    path = write_folder(tmp_path / "x", {**content(), "state.json": {}}, "card")
    others = {"notes": "words", "labels.json": "[]", "lora.safetensors": "weights"}
    for name, text in others.items():
        (path / name).write_text(text)
    (path / MANIFEST).write_text(manifest)
    write_folder(path, content(1), "new card")
    assert same(path, 1)
    assert listed(path) == sorted([CARD, MANIFEST, "n.json", "w.safetensors", *others])
    assert {name: (path / name).read_text() for name in others} == others
    assert (path / CARD).read_text().startswith("new card")


@pytest.mark.parametrize("readme", [None, "---\nlicense: mit\n---\n"])
def test_a_new_clone_of_a_hub_is_written_to(tmp_path, readme):
    """And an empty folder. What is there stays, so that git commits it."""
    path = tmp_path / "clone"
    (path / ".git" / "objects").mkdir(parents=True)
    (path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (path / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    if readme is not None:
        (path / CARD).write_text(readme)
    for k in range(2):
        assert write_folder(path, content(k), "card") == path
        assert same(path, k)
        assert listed(path) == sorted([".git", ".gitattributes", CARD, MANIFEST, "n.json", "w.safetensors"])
        assert (path / ".git" / "HEAD").read_text() == "ref: refs/heads/main\n"
        assert (path / ".gitattributes").read_text() == "*.safetensors filter=lfs\n"
        assert (path / CARD).read_text().startswith(readme or "card")
    (tmp_path / "empty").mkdir()
    assert same(write_folder(tmp_path / "empty", content(), "card"), 0)
    assert listed(tmp_path) == ["clone", "empty"]


@pytest.mark.parametrize("name", ["config.json", "thesis.tex", "src"])
def test_a_clone_with_more_in_it_is_left_alone(tmp_path, name):
    (tmp_path / "x" / ".git").mkdir(parents=True)
    (tmp_path / "x" / name).write_text("words")
    with pytest.raises(CheckpointError, match=r"must be a new path, an empty folder, .* but something else is there"):
        write_folder(tmp_path / "x", content(), "card")
    assert listed(tmp_path / "x") == sorted([".git", name])


@pytest.mark.parametrize("name", ["n.json", "w.safetensors", MANIFEST])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    path = write_folder(tmp_path / "x", content())
    (path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS, .*: run git lfs pull in {path}"):
        read_folder(path)


# ------------------------------------------------------------------------------------------------ a hub's snapshot


def snapshot(path, root):
    """Lay a folder out as the cache of huggingface_hub: blobs by their checksum, and a snapshot of relative links."""
    blobs, revision = root / "blobs", root / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    revision.mkdir(parents=True)
    for entry in path.iterdir():
        name = f"{zlib.crc32(entry.read_bytes()):08x}"
        shutil.move(entry, blobs / name)
        (revision / entry.name).symlink_to(os.path.join("..", "..", "blobs", name))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123abcd")
    (revision / ".gitattributes").write_text("")
    return revision


def test_a_snapshot_of_links_is_read(tmp_path):
    revision = snapshot(write_folder(tmp_path / "x", content(5), "card"), tmp_path / "models--user--name")
    assert (revision / "w.safetensors").is_symlink()
    assert same(revision, 5)
    (tmp_path / "models--user--name" / "blobs" / os.path.basename(os.readlink(revision / "n.json"))).unlink()
    with pytest.raises(CheckpointError, match=r"n\.json is missing"):
        read_folder(revision)


def test_writing_to_a_snapshot_leaves_the_blobs_alone(tmp_path):
    root = tmp_path / "models--user--name"
    revision = snapshot(write_folder(tmp_path / "x", content(5), "card"), root)
    before = {entry.name: entry.read_bytes() for entry in (root / "blobs").iterdir()}
    write_folder(revision, content(6), "card")
    assert same(revision, 6)
    assert {entry.name: entry.read_bytes() for entry in (root / "blobs").iterdir()} == before


# ------------------------------------------------------------------------------------------------ versions


def test_tensors_say_their_format(tmp_path):
    """Other libraries look for "pt"; files of earlier versions have no metadata, and those of others other metadata."""
    path = write_folder(tmp_path / "x", content())
    with safe_open(path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "fastdiff": str(FORMAT)}
    tensors = {f"{i}": torch.full((i,), i, dtype=torch.uint8) for i in range(6)}
    both = [write_folder(tmp_path / name, {"w.safetensors": tensors}) / "w.safetensors" for name in "ab"]
    assert both[0].read_bytes() == both[1].read_bytes()
    assert int.from_bytes(both[0].read_bytes()[:8], "little") % 8 == 0
    found = read_folder(tmp_path / "a")["w.safetensors"]
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert read_folder(write_folder(tmp_path / "c", {"w.safetensors": {}})) == {"w.safetensors": {}}
    for metadata in (None, {}, {"format": "pt"}, {"fastdiff": "1"}):
        rewrite(path, save({"a": torch.zeros(3)}, metadata))
        assert same(path, 0)


@pytest.mark.parametrize("version", ["2", "10", "new", "", "-1", "1.5"])
def test_a_later_format_is_named(tmp_path, version):
    path = write_folder(tmp_path / "x", content())
    rewrite(path, save({"a": torch.zeros(3)}, {"fastdiff": version}))
    with pytest.raises(
        CheckpointError, match=rf"w\.safetensors must be of a format up to 1, got .*'{version}'.*update"
    ):
        read_folder(path)


def rewrite(path, data: bytes) -> None:
    (path / "w.safetensors").write_bytes(data)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"]["w.safetensors"] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    (path / MANIFEST).write_text(json.dumps(manifest))
