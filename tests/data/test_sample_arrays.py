"""Samples as arrays, channels last, in ``.npz`` files and folders of pieces: what is read and what is rejected."""

import numpy as np
import pytest
import torch

from fastdiff.data import DataError, ImageOptions, load_dataset, load_sample_arrays
from fastdiff.data.sample_arrays import read_sample_arrays

RANDOM = np.random.default_rng(0)


def pixels(n: int, channels: int = 3) -> np.ndarray:
    return RANDOM.integers(0, 256, (n, 4, 5, channels), dtype=np.uint8)


def test_a_file_as_other_programs_write_it(tmp_path):
    """numpy.savez(path, images, labels), as guided-diffusion calls it; one image in twenty is held out."""
    images, labels = pixels(60), np.arange(60) % 4
    np.savez(tmp_path / "samples.npz", images, labels)
    data = load_dataset(tmp_path / "samples.npz")
    assert (data.name, data.shape, data.levels, data.num_classes) == ("samples", (3, 4, 5), 256, 4)
    assert (len(data.train_images), len(data.test_images)) == (57, 3)
    assert data.train_labels is not None
    found = {
        bytes(image.numpy()): int(label) for image, label in zip(data.train_images, data.train_labels, strict=True)
    }
    for position in range(60):
        label = found.pop(bytes(np.ascontiguousarray(images[position].transpose(2, 0, 1))), None)
        assert label in (None, position % 4)
    assert not found
    assert load_dataset(tmp_path / "samples.npz", ImageOptions(color="grey", size=4)).shape == (1, 4, 4)


def test_pieces_in_the_order_of_their_names(tmp_path):
    images = pixels(5, channels=1)
    np.savez(tmp_path / "samples-000003-000004.npz", images[3:])
    np.savez(tmp_path / "samples-000000-000002.npz", images[:3])
    (tmp_path / "samples.json").write_text("{}")
    data = load_sample_arrays(tmp_path)
    assert data.num_classes == 0
    assert (len(data.train_images), len(data.test_images)) == (4, 1)
    found = torch.cat([data.train_images[:], data.test_images[:]])
    assert sorted(map(bytes, found.flatten(1).numpy())) == sorted(map(bytes, images.reshape(5, -1)))
    assert np.array_equal(read_sample_arrays(tmp_path)[0], images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([pixels(3).astype(np.float32)], "uint8"), ([pixels(3)[0]], r"\[N, H, W, C\]"),
        ([pixels(3).transpose(0, 3, 1, 2)], "C = 1 or 3"), ([pixels(0)], "not empty"), ([pixels(1)], "at least 2"),
        ([pixels(3), np.zeros(2, int)], "arr_1"), ([pixels(3), np.zeros(3)], "arr_1"),
        ([pixels(3), np.array([0, 1, -1])], "from -1 to 1"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", *arrays)
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path / "x.npz")


def test_pieces_that_differ(tmp_path):
    np.savez(tmp_path / "samples-000000-000001.npz", pixels(2))
    np.savez(tmp_path / "samples-000002-000003.npz", pixels(2, channels=1))
    with pytest.raises(DataError, match="samples-000002"):
        load_dataset(tmp_path)
    (tmp_path / "samples-000002-000003.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path)
