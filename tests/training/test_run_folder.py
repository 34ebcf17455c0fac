"""The checkpoints of a run: pruned after their successors, kept by the bound, and found again where one is damaged."""

import errno
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from tiny import small

import fastdiff
from fastdiff.checkpoints import CheckpointError, checkpoint_path, checkpoints, last_checkpoint
from fastdiff.io.folders import MANIFEST, read_folder, write_folder
from fastdiff.training import run_folder
from fastdiff.training.run_folder import best_bpd, commit, keep_best, newest_loadable, prune, sweep


def steps(out) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(out)]


def write(out, *at: int) -> None:
    for step in at:
        write_folder(checkpoint_path(out, step), {"n.json": {"step": step}})


def full(path):
    """A disk without room."""
    error = CheckpointError(f"cannot write {path} (700 bytes, 7 bytes are free): No space left on device")
    raise error from OSError(errno.ENOSPC, "No space left on device")


def saves(path) -> None:
    write_folder(path, {"n.json": {"saved": path.name}})


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# ------------------------------------------------------------------------------------------------ pruning, sweeping


def test_the_newest_are_kept(tmp_path):
    write(tmp_path, 5, 100, 20)
    (tmp_path / "step-00000200").mkdir()  # has no manifest: it is not one of those that are kept, and stays
    for keep, left in ((5, [5, 20, 100]), (2, [20, 100]), (1, [100]), (0, [100])):
        prune(tmp_path, keep)
        assert steps(tmp_path) == left
    assert sorted(os.listdir(tmp_path)) == ["step-00000100", "step-00000200"]


def test_leftovers_are_swept(tmp_path):
    write(tmp_path, 3, 5)
    (checkpoint_path(tmp_path, 5) / MANIFEST).unlink()
    os.rename(checkpoint_path(tmp_path, 3), tmp_path / ".old-step-00000003")  # killed in the middle of a replacement
    for name in (".tmp-step-00000007-0a1b2c3d", "step-more", "best"):
        (tmp_path / name).mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["best", "metrics.jsonl", "step-00000003", "step-more"]
    assert steps(tmp_path) == [3]


# ------------------------------------------------------------------------------------------------ commits


def test_a_commit_replaces_the_older_ones_once_it_is_complete(tmp_path):
    write(tmp_path, 1, 2)

    def save(path):
        assert steps(tmp_path) == [1, 2]
        saves(path)

    assert commit(tmp_path, 3, save, full, keep=2) == checkpoint_path(tmp_path, 3)
    assert steps(tmp_path) == [2, 3]


def test_on_a_full_disk_training_goes_on(tmp_path, capsys):
    write(tmp_path, 1)
    assert commit(tmp_path, 2, full, full) is None
    assert steps(tmp_path) == [1]
    err = capsys.readouterr().err
    assert "step-00000002 (700 bytes, 7 bytes are free)" in err
    assert "training goes on" in err


def test_on_a_full_disk_older_checkpoints_give_way(tmp_path, capsys):
    write(tmp_path, 1, 2, 3)

    def save(path):
        if len(checkpoints(tmp_path)) > 1:
            full(path)
        saves(path)

    assert commit(tmp_path, 4, save, full, keep=3) == checkpoint_path(tmp_path, 4)
    assert steps(tmp_path) == [3, 4]
    assert "make room" in capsys.readouterr().err


def test_another_error_removes_nothing(tmp_path, capsys):
    write(tmp_path, 1, 2)

    def save(path):
        raise CheckpointError("network.weight must be finite")

    assert commit(tmp_path, 3, save, full, keep=2) is None
    assert steps(tmp_path) == [1, 2]
    assert "must be finite" in capsys.readouterr().err


@pytest.mark.parametrize("earlier", [True, False])
def test_the_last_commit_saves_what_fits(tmp_path, earlier):
    """The averaged weights alone; the message names the path, the bytes, and what the run can be resumed from."""
    write(tmp_path, *([1] if earlier else []))
    with pytest.raises(CheckpointError, match="700 bytes, 7 bytes are free") as error:
        commit(tmp_path, 2, full, saves, last=True)
    assert read_folder(tmp_path / "rescue")["n.json"] == {"saved": "rescue"}
    assert str(tmp_path / "rescue") in str(error.value)
    assert ("step-00000001" in str(error.value)) == earlier
    with pytest.raises(CheckpointError, match="could not be saved either"):
        commit(tmp_path, 3, full, full, last=True)
    assert steps(tmp_path) == [1] * earlier


DISK = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import attrs
from tiny import SMALL, small
from fastdiff.training import TrainConfig, TrainState
from fastdiff.training.run_folder import commit
from fastdiff.training.state import save_training

out = Path(sys.argv[1])
state = TrainState(small(network=attrs.evolve(SMALL, widths=(24, 32))), TrainConfig(data="digits", max_steps=1))
for step, last in ((1, False), (2, False), (3, True)):
    try:
        print(commit(out, step, lambda path: save_training(path, state), state.averaged.save, last=last), flush=True)
    except Exception as error:
        print(type(error).__name__, error)
    if step == 1:
        (out / "ballast").write_bytes(bytes(int(sys.stdin.readline())))
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(small_disk):
    """The first checkpoint fits, the second does not, and for the third the averaged weights alone."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    process = subprocess.Popen(
        [sys.executable, "-c", DISK, str(small_disk), here],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == f"{small_disk / 'step-00000001'}\n"
    weights = (small_disk / "step-00000001" / "model.safetensors").stat().st_size
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    out, err = process.communicate(f"{free - 2 * weights}\n", timeout=60)
    assert out.startswith("None\nCheckpointError cannot write "), out + err
    assert "No space left on device" in err
    assert f"{small_disk / 'step-00000001'}" in out
    assert sorted(os.listdir(small_disk)) == ["ballast", "rescue", "step-00000001"]
    assert fastdiff.load(small_disk / "rescue").kind == "vdm"
    assert fastdiff.load(small_disk).kind == "vdm"


# ------------------------------------------------------------------------------------------------ the best


def test_the_best_by_the_bound(tmp_path, capsys):
    first, second = small(seed=1), small(seed=2)
    assert best_bpd(tmp_path) is None
    assert keep_best(tmp_path, first, 3.0, 10)
    for bpd in (3.0, 3.5, math.nan, math.inf, -math.inf):
        assert not keep_best(tmp_path, second, bpd, 20)
    assert json.loads((tmp_path / "best" / "config.json").read_text())["record"] == {"step": 10, "bpd": 3.0}
    assert keep_best(tmp_path, second, 2.5, 30)
    assert best_bpd(tmp_path) == 2.5
    found = fastdiff.load(tmp_path / "best").state_dict()
    assert all(torch.equal(found[name], value) for name, value in second.state_dict().items())
    flip(tmp_path / "best" / "model.safetensors")  # one that is damaged is none
    assert keep_best(tmp_path, first, 2.9, 40)
    with torch.no_grad():
        next(first.parameters()).fill_(math.nan)
    assert not keep_best(tmp_path, first, 1.0, 50)
    assert "must be finite" in capsys.readouterr().err
    assert best_bpd(tmp_path) == 2.9


@pytest.mark.parametrize("record", [None, [], {}, {"bpd": "low"}, {"bpd": None}, {"bpd": True}])
def test_a_best_without_its_bound_is_none(tmp_path, record):
    content = read_folder(small().save(tmp_path / "best"))
    write_folder(tmp_path / "best", content | {"config.json": content["config.json"] | {"record": record}})
    assert best_bpd(tmp_path) is None


# ------------------------------------------------------------------------------------------------ resuming


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    write(tmp_path, 1, 2, 3, 4)
    assert newest_loadable(tmp_path) == checkpoint_path(tmp_path, 4)
    assert capsys.readouterr().err == ""
    flip(checkpoint_path(tmp_path, 4) / "n.json")
    (checkpoint_path(tmp_path, 3) / "n.json").unlink()
    assert newest_loadable(tmp_path) == last_checkpoint(tmp_path) == checkpoint_path(tmp_path, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "step-00000004/n.json is damaged" in lines[0]
    assert "step-00000003/n.json is missing" in lines[1]
    assert all("resumed from" in line and "step-00000002" in line for line in lines)
    assert sorted(os.listdir(tmp_path))[:2] == ["damaged-step-00000003", "damaged-step-00000004"]
    commit(tmp_path, 4, saves, full)  # the run comes there again
    flip(checkpoint_path(tmp_path, 4) / "n.json")
    with pytest.raises(CheckpointError, match=r"step-00000004/n\.json is damaged"):
        newest_loadable(tmp_path)
    assert steps(tmp_path) == [4]  # the only one: nothing is renamed
    assert newest_loadable(tmp_path / "nowhere") is None


def test_loading_a_run_does_not_fall_back(tmp_path):
    for step in (1, 2):
        small(seed=step).save(checkpoint_path(tmp_path, step))
    flip(checkpoint_path(tmp_path, 2) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"step-00000002/model\.safetensors is damaged"):
        fastdiff.load(tmp_path)
    assert run_folder.newest_loadable(tmp_path) == checkpoint_path(tmp_path, 1)
