"""`fastdiff check`: every file that cannot be used is named once, with the exit code."""

import os

import numpy as np
import pytest
from images import flat, random_image, save


def lines_of(out: str) -> dict[str, str]:
    """The last word of every line, by the first words."""
    return {line.rsplit(maxsplit=1)[0].strip(): line.rsplit(maxsplit=1)[1] for line in out.splitlines()}


@pytest.mark.parametrize("workers", [0, 2])
def test_folder(run, tmp_path, workers):
    path = save(tmp_path / "own", flat() | {"test/large.png": random_image(0, size=(7, 4))})
    (tmp_path / "own/train/bad.png").write_text("no image")
    (tmp_path / "own/train/readme.txt").write_text("words")
    os.mkfifo(tmp_path / "own/test/pipe.png")
    code, out, err = run("check", path, "--workers", str(workers))
    assert (code, err) == (1, "")
    table = lines_of(out)
    assert (table["image files"], table["usable"], table["other files, ignored"]) == ("7", "4", "1")
    assert (table["6×4 RGB"], table["7×4 RGB"]) == ("4", "1")
    for name in ("train/bad.png", "test/large.png", "test/pipe.png"):
        assert out.count(f"{path}/{name}") == 1
    assert "train/a.png" not in out
    os.remove(tmp_path / "own/train/bad.png")
    os.remove(tmp_path / "own/test/pipe.png")
    assert run("check", path)[0] == 1
    code, out, _ = run("check", path, "--size", "4")
    assert (code, lines_of(out)["usable"]) == (0, "5")


def test_other_data(run, tmp_path):
    images = np.zeros((2, 8, 8), np.uint8)
    np.savez("own.npz", train_images=images, test_images=images)
    assert run("check", "own.npz")[:2] == (0, "own.npz: 2 training and 2 held-out images 1×8×8\n")
    with open("own.npz", "r+b") as file:
        file.truncate(100)
    code, out, err = run("check", "own.npz")
    assert (code, err) == (1, "")
    assert "own.npz cannot be read" in out
    os.mkdir("empty")
    code, out, _ = run("check", "empty")
    assert code == 1
    assert "must have at least 2 images" in out
    assert run("check", "empty", "--workers", "-1")[0] == 2
