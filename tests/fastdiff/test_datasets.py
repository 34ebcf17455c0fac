"""Data sets: what is embedded, and what a file may hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import small

from fastdiff.datasets import DataError, check_fit, digits, load_dataset


def test_the_embedded_digits():
    data = digits()
    assert data.train_images.shape == (1500, 1, 8, 8)
    assert data.test_images.shape == (297, 1, 8, 8)
    assert (data.levels, data.classes, data.shape) == (17, 10, (1, 8, 8))
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert labels is not None
        assert images.dtype == torch.uint8
        assert int(images.max()) == 16
        assert labels.dtype == torch.int64
        assert labels.unique().tolist() == list(range(10))
    both = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(both.unique(dim=0)) == 1797


def test_npz(tmp_path):
    path = str(tmp_path / "own.npz")
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    np.savez(path, train_images=images, test_images=images[:1], train_labels=[0, 2], test_labels=[1], levels=32)
    data = load_dataset(path)
    assert (data.name, data.shape, data.levels, data.classes) == ("own", (1, 4, 4), 32, 3)
    assert torch.equal(data.train_images[:, 0], torch.from_numpy(images))


GOOD = {"train_images": np.zeros((2, 3, 4, 4), np.uint8), "test_images": np.zeros((2, 3, 4, 4), np.uint8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None}, "no train_images among test_images; allowed"),
        ({"train_images": np.zeros((2, 3, 4, 4))}, "train_images is float64"),
        ({"train_images": np.zeros((2, 4), np.uint8)}, r"train_images is uint8 \(2, 4\); allowed"),
        ({"test_images": np.zeros((0, 3, 4, 4), np.uint8)}, "N > 0"),
        ({"test_images": np.zeros((2, 3, 4, 5), np.uint8)}, "differ in shape"),
        ({"test_images": np.full((2, 3, 4, 4), 9, np.uint8), "levels": 9}, "holds the value 9; allowed: 0 .. 8"),
        ({"levels": 300}, "levels is 300; allowed: one integer, 2 to 256"),
        ({"levels": [1, 2]}, r"levels is \[1, 2\]; allowed: one integer"),
        ({"levels": 17.9}, "levels is 17.9; allowed: one integer"),
        ({"train_labels": [0, 1]}, "both or neither"),
        ({"train_labels": [0, -1], "test_labels": [0, 1]}, "allowed: integers >= 0"),
        ({"train_labels": [0], "test_labels": [0, 1]}, r"shape \(2,\)"),
        ({"train_images": np.array([{}])}, "cannot be read"),
    ],
)
def test_wrong_npz(tmp_path, change, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **{name: value for name, value in (GOOD | change).items() if value is not None})
    with pytest.raises(DataError, match=message):
        load_dataset(str(path))


def test_files_that_are_no_data(tmp_path):
    (tmp_path / "text.npz").write_text("words")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "cut.npz", **GOOD)
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bent.npz").write_bytes(whole[:200] + b"x" + whole[201:])
    np.save(tmp_path / "array.npy", GOOD["train_images"])
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name in ("text", "empty", "cut", "bent", "array", "missing"):
        with pytest.raises(DataError, match=r"cannot be read|a single array"):
            load_dataset(str(tmp_path / f"{name}.npz"))
    with pytest.raises(DataError, match="unknown data set 'cifar'; allowed: digits"):
        load_dataset("cifar")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("cifar10", "the path of cifar-10-python.tar.gz"),
        ("imagenet32", "a folder of 32×32 images"),
        ("imagenet64", "a folder of 64×64 images"),
        ("celeba64", "a folder of 64×64 images"),
    ],
)
def test_data_that_is_known_but_not_shipped(tmp_path, monkeypatch, name, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"{name}' is not shipped; allowed: --data with {given}"):
        load_dataset(name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name} holds no folder train"):  # a folder of that name is a folder
        load_dataset(name)


def test_data_and_model_must_fit():
    data = digits()
    for model in (small(), small(classes=10)):
        check_fit(model, data)
    unlabelled = replace(data, classes=0, train_labels=None, test_labels=None)
    check_fit(small(classes=10), unlabelled)
    for model in (small(classes=9), small(classes=11), small(levels=16), small(shape=(1, 8, 16))):
        with pytest.raises(DataError, match=r"data set digits: .* allowed"):
            check_fit(model, data)
