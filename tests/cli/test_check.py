"""`fastdiff check`: every file that cannot be used is named once, with the exit code."""

import os

import numpy as np
import pytest
from images import SIZE, flat, random_image, save
from PIL import Image


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
    assert "train/b.png" not in out
    assert "--skip-damaged (`ImageOptions(skip_damaged=True)`) trains without the 2 files that cannot be read" in out
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


def test_one_image_unlike_the_others_is_named_whichever_comes_first(run, tmp_path):
    """Images are compared with the most frequent size and mode."""
    images = {f"{k}.png": random_image(k, size=(7, 4) if k == 0 else SIZE) for k in range(3)}
    path = save(tmp_path / "own", images)
    code, out, _ = run("check", path)
    assert (code, lines_of(out)["usable"]) == (1, "2")
    (line,) = [line for line in out.splitlines() if ".png" in line]
    assert line.startswith(f"{path}/0.png must have the size and mode of {path}/")
    assert line.endswith(".png, 6×4 RGB, got 7×4 RGB")
    assert "--size resizes" in out


def test_many_sizes_are_summed_up(run, tmp_path):
    """20 sizes and two modes: no line for each file."""
    images = {f"{k:02}.png": random_image(k, "L" if k % 4 == 0 else "RGB", (8 + k, 30 - k)) for k in range(20)}
    images |= {f"more/{k}.png": random_image(k, size=(11, 27)) for k in range(3)}
    path = save(tmp_path / "own", images)
    code, out, _ = run("check", path)
    lines = out.splitlines()
    areas = {(8 + k) * (30 - k): k for k in reversed(range(20))}
    small, large = areas[min(areas)], areas[max(areas)]
    assert code == 1
    assert lines[0] == "the images must have one size, but they have 20:"
    for line, name, k in ((lines[1], "smallest", small), (lines[2], "largest", large)):
        assert line.split() == [name, f"{8 + k}×{30 - k},", "1", "image:", f"{path}/{k:02}.png"]
    usual = [f"{path}/03.png", f"{path}/more/0.png", f"{path}/more/1.png"]
    assert lines[3] == f"  most frequent  11×27, 4 images: {', '.join(usual)}, …"
    assert lines[4] == "the images must have one mode, but they have 2:"
    assert [line.split()[:3] for line in lines[5:7]] == [["RGB", "18", "images:"], ["L", "5", "images:"]]
    assert "--size resizes" in lines[7]
    assert lines_of(out)["usable"] == "4"
    code, out, _ = run("check", path, "--size", "4")
    assert (code, "the images must" in out) == (1, False)
    assert len([line for line in out.splitlines() if "must have the mode of" in line]) == 5
    assert run("check", path, "--size", "4", "--color", "rgb")[0] == 0


def test_alpha_is_counted(run, tmp_path):
    """By its channel, by a transparent color, and by a palette's; opaque alpha is no reason to look further."""
    opaque = random_image(0).convert("RGBA")
    clear = opaque.copy()
    clear.putpixel((2, 1), (1, 2, 3, 0))
    palette = random_image(1).quantize(8)
    path = save(tmp_path / "own", {f"{k}.png": random_image(k) for k in range(5)} | {"opaque.png": opaque})
    code, out, _ = run("check", path)
    assert (code, out.splitlines()[0]) == (0, "1 image has alpha, which is dropped, and all pixels are opaque")
    save(tmp_path / "own", {"clear.png": clear})
    palette.save(f"{path}/palette.png", transparency=3)
    random_image(2).save(f"{path}/key.png", transparency=(9, 9, 9))
    with Image.open(f"{path}/palette.png") as image:
        assert image.convert("RGBA").getchannel("A").getextrema() == (0, 255)
    code, out, _ = run("check", path)
    assert (code, lines_of(out)["usable"]) == (0, "9")
    assert out.splitlines()[0] == (
        "4 images have alpha, which is dropped, and the color that is stored in a transparent pixel is trained on, "
        "in 3 of them"
    )


def test_a_path_that_is_not_there(run):
    code, out, _ = run("check", "shape")
    assert (code, out.startswith("there is no file or folder 'shape'; data set must be 'digits'")) == (1, True)
