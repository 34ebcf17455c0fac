"""Folders in another library's layout: complete or not there, whatever happens while they are written."""

import json
import os

import pytest
import torch
from safetensors import safe_open

from fastdiff.io import files
from fastdiff.io.folders import CheckpointError, located, sweep
from fastdiff.io.trees import write_tree

SHARED = torch.arange(6.0)
CONTENTS = {
    "index.json": {"a": [1, "two"]},
    "part/deep/config.json": {},
    "part/weights.safetensors": {"x": SHARED.view(2, 3).t(), "y": SHARED[:2]},
}


def test_files_are_written_into_subfolders(tmp_path):
    assert write_tree(str(tmp_path / "new" / "tree"), CONTENTS) == tmp_path / "new" / "tree"
    assert json.loads((tmp_path / "new/tree/index.json").read_text()) == {"a": [1, "two"]}
    with safe_open(tmp_path / "new/tree/part/weights.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"  # which other libraries ask for
        assert torch.equal(file.get_tensor("x"), SHARED.view(2, 3).t())
        assert torch.equal(file.get_tensor("y"), SHARED[:2])
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["tree"]


def test_a_symbolic_link_keeps_pointing_to_the_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_tree(tmp_path / "link", CONTENTS)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "index.json").is_file()


@pytest.mark.parametrize("broken", ["write_synced", "sync_directory"])
def test_a_failure_leaves_the_old_folder(tmp_path, monkeypatch, broken):
    write_tree(tmp_path / "tree", CONTENTS)

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(files, broken, fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*tree \(\d+ bytes, .*no space left"):
        write_tree(tmp_path / "tree", CONTENTS | {"index.json": {"b": 2}})
    assert json.loads((tmp_path / "tree/index.json").read_text()) == {"a": [1, "two"]}
    assert os.listdir(tmp_path) == ["tree"]


def test_a_swap_that_fails_is_undone(tmp_path, monkeypatch):
    write_tree(tmp_path / "tree", CONTENTS)
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("interrupted")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(CheckpointError, match="interrupted"):
        write_tree(tmp_path / "tree", CONTENTS | {"index.json": {"b": 2}})
    assert json.loads((tmp_path / "tree/index.json").read_text()) == {"a": [1, "two"]}
    assert os.listdir(tmp_path) == ["tree"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path, monkeypatch):
    """The old folder is found beside its place, survives a sweep, and is replaced by the next writer."""
    write_tree(tmp_path / "tree", CONTENTS)
    rename, calls = os.rename, []

    def killed(source, target):
        calls.append(target)
        if len(calls) > 1:  # neither the second rename nor the way back
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write_tree(tmp_path / "tree", CONTENTS | {"index.json": {"b": 2}})
    assert not (tmp_path / "tree").exists()
    sweep(tmp_path)
    assert json.loads((located(tmp_path / "tree") / "index.json").read_text()) == {"a": [1, "two"]}
    write_tree(tmp_path / "tree", CONTENTS | {"index.json": {"b": 3}})
    assert json.loads((tmp_path / "tree/index.json").read_text()) == {"b": 3}
    assert os.listdir(tmp_path) == ["tree"]


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"got a folder with mine\.txt"):
        write_tree(tmp_path / "tree", CONTENTS)
    with pytest.raises(CheckpointError, match="got a file"):
        write_tree(tmp_path / "tree" / "mine.txt", CONTENTS)
    assert (tmp_path / "tree" / "mine.txt").read_text() == "mine"
