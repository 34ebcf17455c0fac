"""Names of classes and groups of test images: where data sets have them, and what keeps them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import images
from torch.utils.data import Dataset as TorchDataset

from fastdiff.data import DataError, Dataset, ImageOptions, digits, from_torch, letters, load_dataset
from fastdiff.data.cifar10 import NAMES


def test_embedded_data_sets():
    """Resizing keeps names and groups. The names of CIFAR-10's classes are those of its file batches.meta."""
    assert digits().class_names == tuple(map(str, range(10)))
    assert digits().test_groups is None
    data, smaller = letters(), load_dataset("letters", ImageOptions(size=14))
    assert smaller.shape == (1, 14, 14)
    for each in (data, smaller):
        assert each.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        assert each.group_kind == "font families"
        assert each.test_groups is data.test_groups or torch.equal(each.test_groups, data.test_groups)
        assert len({each.group_name(int(number)) for number in each.test_groups.unique()}) == 47
    assert " ".join(NAMES) == "airplane automobile bird cat deer dog frog horse ship truck"


@pytest.mark.parametrize(
    "names", [["cat", "dog"], ["10", "2"], ["a b", "Ä"], [b"\xff".decode("utf-8", "surrogateescape"), "z"]]
)
def test_folders_of_classes(tmp_path, names):
    """In the order of the labels; bytes that are no UTF-8 are written out, so that every name can be printed."""
    for number in range(6):
        folder = tmp_path / names[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(folder / f"{number}.png")
    data = load_dataset(tmp_path, ImageOptions(classes=True, held_out=1))
    shown = ["\\xff" if name == "\udcff" else name for name in names]
    assert data.class_names == tuple(shown[names.index(name)] for name in sorted(names))
    assert "".join(data.class_names).encode()
    assert data.train_labels is not None
    position = int(data.train_images[0].max())
    assert data.class_names[int(data.train_labels[0])] == shown[position % 2]
    assert load_dataset(tmp_path).class_names == ()


class Items(TorchDataset):
    """Four images with the attribute that torchvision's data sets have."""

    def __init__(self, classes: object) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        return torch.full((1, 4, 4), index, dtype=torch.uint8), index % 2


@pytest.mark.parametrize(
    ("classes", "names"),
    [(["x", "y"], ("x", "y")), (("x", "y"), ("x", "y")), (["x"], ()), (["x", "x"], ()), ([0, 1], ()), (None, ())],
)
def test_torch_data_sets(classes, names):
    assert from_torch(Items(classes), Items(None), num_classes=2).class_names == names
    assert from_torch(Items(classes), Items(None)).class_names == ()


def test_names_and_groups_that_do_not_fit():
    data = Dataset("own", 17, 2, images(4), torch.arange(4) % 2, images(3), torch.arange(3) % 2)
    groups = torch.tensor([5, 0, 5])
    assert replace(data, class_names=("a", "b"), test_groups=groups, group_names=("x",)).group_name(5) == "5"
    assert replace(data, test_groups=groups, group_names=("x",)).group_name(0) == "x"
    for changes, words in (
        ({"class_names": ("a",)}, "class_names must be 2 names or none, got 1"),
        ({"test_groups": groups[:2]}, r"test_groups must be .* \[3\]"),
        ({"test_groups": groups.float()}, "torch.int64"),
    ):
        with pytest.raises(DataError, match=words):
            replace(data, **changes)
