"""A user's own images and masks, as a model takes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import DataError, digits
from fastdiff.data.user_images import read_mask, read_user_images
from fastdiff.io.pictures import to_uint8

GREY = (1, 8, 8)


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two grey pictures, the second in a folder of its own."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    Image.fromarray(pixels(0, 8, 8)).save(tmp_path / "in" / "a.png")
    Image.fromarray(pixels(1, 8, 8)).save(tmp_path / "in" / "more" / "b.png")
    return tmp_path / "in"


def test_a_picture_and_a_folder(folder):
    both = read_user_images(folder, GREY)
    assert torch.equal(both.images[:, 0], torch.from_numpy(np.stack([pixels(0, 8, 8), pixels(1, 8, 8)])))
    assert (both.names, both.levels, both.sizes) == (["a", "b"], 256, [(8, 8)] * 2)
    assert torch.equal(read_user_images(folder / "a.png", GREY).images, both.images[:1])
    assert torch.equal(read_user_images(folder, GREY, limit=1).images, both.images[:1])
    Image.fromarray(pixels(2, 8, 8)).save(folder / "more" / "a.png")
    assert read_user_images(folder, GREY).names == ["00000", "00001", "00002"]  # two files are called a


def test_arrays_and_data_sets(tmp_path):
    arrays = pixels(0, 3, 8, 8, 1)
    np.savez(tmp_path / "x.npz", arr_0=arrays)
    found = read_user_images(tmp_path / "x.npz", GREY)
    assert torch.equal(found.images, torch.from_numpy(arrays.transpose(0, 3, 1, 2)))
    (tmp_path / "pieces").mkdir()  # as a folder of samples: all images in order, none held out
    np.savez(tmp_path / "pieces" / "samples-000000-000002.npz", arr_0=arrays[:2])
    np.savez(tmp_path / "pieces" / "samples-000002-000003.npz", arr_0=arrays[2:])
    assert torch.equal(read_user_images(tmp_path / "pieces", GREY).images, found.images)
    held_out = read_user_images("digits", GREY, limit=4)
    assert torch.equal(held_out.images, digits().test_images[:4])
    assert held_out.levels == 17


def test_levels_go_to_the_nearest():
    """And come back: 256 levels hold 17 of them."""
    few = read_user_images("digits", GREY, limit=30)
    many = few.at_levels(256)
    assert torch.equal(many, to_uint8(few.images, 17))
    again = type(few)(many, 256, few.names, few.sizes)
    assert torch.equal(again.at_levels(17), few.images)


def test_fitted_images(tmp_path):
    """Colours are converted, the shorter side is resized and the centre is cropped: the middle 8 of 12 columns here."""
    wide = pixels(0, 16, 24, 3)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = read_user_images(tmp_path / "wide.png", GREY, fit=True)
    grey = Image.fromarray(wide).convert("L").resize((8, 8), Image.Resampling.LANCZOS, (4, 0, 20, 16), 3.0)
    assert torch.equal(found.images[0, 0], torch.from_numpy(np.asarray(grey).copy()))
    assert found.sizes == [(24, 16)]
    np.savez(tmp_path / "x.npz", arr_0=wide[None])
    assert torch.equal(read_user_images(tmp_path / "x.npz", GREY, fit=True).images, found.images)
    mask = np.zeros((16, 24), np.uint8)
    mask[:, :12] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert torch.equal(read_mask(tmp_path / "mask.png", found, fit=True)[0], torch.arange(8) < 4)
    with pytest.raises(DataError, match="mask of 8×8, as"):
        read_mask(tmp_path / "mask.png", found)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "LA", "P"])
def test_masks_of_every_mode(tmp_path, folder, mode):
    white = pixels(3, 8, 8) >= 128
    Image.fromarray(255 * white.astype(np.uint8)).convert(mode).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", read_user_images(folder, GREY))
    assert torch.equal(mask, torch.from_numpy(white))


@pytest.mark.parametrize(
    ("message", "name", "shape", "fit"),
    [
        ("a.png must be 4×4 grey for this model, got 8×8 grey. --fit", "in/a.png", (1, 4, 4), False),
        ("must be 8×8 RGB for this model, got 8×8 grey", "in", (3, 8, 8), False),
        ("an .npz file or a data set; there is no file nothing", "nothing", GREY, False),
        ("there is no file none.npz", "none.npz", GREY, False), ("must hold images", "empty", GREY, False),
        ("notes.txt cannot be read as an image", "notes.txt", GREY, False),
        ("images of shape .1, 4, 4. for this model", "x.npz", (1, 4, 4), False),
        ("only square", "in", (1, 8, 4), True), ("only square", "in", (2, 8, 8), True),
        ("held|shape", "digits", (3, 8, 8), False),
    ],
)  # fmt: skip
def test_images_that_are_rejected(tmp_path, monkeypatch, folder, message, name, shape, fit):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    np.savez(tmp_path / "x.npz", arr_0=pixels(0, 3, 8, 8, 1))
    assert folder.is_dir()
    with pytest.raises(DataError, match=message):
        read_user_images(name, shape, fit)
