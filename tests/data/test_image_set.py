"""Sets of images that are compared: folders, files and training images of data sets; pairs by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import DataError, ImageOptions, digits, open_images
from fastdiff.data.image_set import paired

RANDOM = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)


def write(folder, names, images=RANDOM, suffix=".png"):
    for name, image in zip(names, images, strict=False):
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def test_a_folder_is_taken_whole_and_of_a_split_the_training_part(tmp_path):
    write(tmp_path / "flat", ["b/1", "a", "c"])
    found = open_images(tmp_path / "flat")
    assert (found.names, found.shape, found.levels) == (["a", "b/1", "c"], (1, 4, 5), 256)
    assert torch.equal(found.images[:], torch.from_numpy(RANDOM[[1, 0, 2]])[:, None])
    write(tmp_path / "split/train", ["x", "y"])
    write(tmp_path / "split/test", ["z"])
    assert open_images(tmp_path / "split").names == ["x", "y"]
    converted = open_images(tmp_path / "flat", ImageOptions(size=2, color="rgb"))
    assert converted.shape == converted.images[:].shape[1:] == (3, 2, 2)


def test_arrays_and_data_sets(tmp_path):
    np.savez(tmp_path / "x.npz", RANDOM[..., None])
    assert torch.equal(open_images(tmp_path / "x.npz").images[:], torch.from_numpy(RANDOM)[:, None])
    assert open_images(tmp_path / "x.npz", ImageOptions(size=2)).images[:].shape == (6, 1, 2, 2)
    np.savez(tmp_path / "data.npz", train_images=RANDOM, test_images=RANDOM[:1])
    assert len(open_images(tmp_path / "data.npz").images) == 6
    found = open_images("digits")
    assert (found.levels, found.name) == (17, "the training images of digits")
    assert torch.equal(found.images[:], digits().train_images[:])


def test_pairs_by_the_names_of_files(tmp_path):
    """In the order of the names without endings, which differ here."""
    one = open_images(write(tmp_path / "one", ["b", "a-1", "a"]))
    other = open_images(write(tmp_path / "other", ["a", "b", "a-1"], RANDOM[[2, 0, 1]], suffix=".bmp"))
    first, second = paired(one, other)
    assert first.names == second.names == ["a", "a-1", "b"]
    assert torch.equal(first.images[:], second.images[:])
    np.savez(tmp_path / "x.npz", RANDOM[:3][..., None])
    arrays = open_images(tmp_path / "x.npz")
    assert paired(one, arrays) == (one, arrays)
    write(tmp_path / "one", ["c"])
    with pytest.raises(DataError, match=r"other has no c"):
        paired(open_images(tmp_path / "one"), other)
    with pytest.raises(DataError, match="as many"):
        paired(open_images(tmp_path / "one"), arrays)
    write(tmp_path / "other", ["c"])
    write(tmp_path / "other", ["c"], suffix=".bmp")
    with pytest.raises(DataError, match="several endings"):
        paired(open_images(tmp_path / "one"), open_images(tmp_path / "other"))


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match="nothing"):
        open_images("nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="must hold images, got 1 files"):
        open_images(tmp_path)
    write(tmp_path, ["a", "b"])
    write(tmp_path, ["c"], np.zeros((1, 3, 3), np.uint8))
    with pytest.raises(DataError, match=r"c\.png must have the size and mode of"):
        _ = open_images(tmp_path).images[:]
    (tmp_path / "d.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"d\.png cannot be read.*--skip-damaged"):
        open_images(tmp_path)
