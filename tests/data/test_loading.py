"""`load_dataset` by name, and the embedded digits."""

import hashlib

import pytest
import torch

from fastdiff.data import DIGITS_LEVELS, DataError, digits, load_dataset
from fastdiff.kernels import FastdiffError


def test_digits():
    data = digits()
    assert data.train_images.shape == (1500, 1, 8, 8)
    assert data.test_images.shape == (297, 1, 8, 8)
    assert (data.name, data.levels, data.num_classes, data.shape) == ("digits", 17, 10, (1, 8, 8))
    assert DIGITS_LEVELS == 17
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert labels is not None
        assert images.dtype == torch.uint8
        assert int(images.max()) == 16
        assert labels.dtype == torch.int64
        assert labels.unique().tolist() == list(range(10))
    both = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(both.unique(dim=0)) == 1797


def test_the_split_of_the_digits_is_fixed():
    """Published numbers of bits per dimension hold for this split."""
    data = load_dataset("digits")
    assert data.train_labels is not None
    assert data.test_labels is not None
    parts = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    assert digest == "fc4c001b8e9cb7be6b9c4c5895652a522237901a099b26f4057603ef38e51566"


@pytest.mark.parametrize("name", ["cifar", "", "x" * 300, "zero\0", "folder/x.tar"])
def test_unknown_name(name):
    with pytest.raises(DataError, match=r"^there is no file or folder '.*; data set must be") as error:
        load_dataset(name)
    assert isinstance(error.value, FastdiffError)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10", "cifar-10-binary.tar.gz"),
        ("imagenet32", "32×32"),
        ("imagenet64", "64×64"),
        ("celeba64", "64×64"),
    ],
)
def test_known_name_that_is_not_embedded(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"{name}.* not part of fastdiff.*{words}"):
        load_dataset(name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="train"):  # a folder of that name is read as a folder of images
        load_dataset(name)
