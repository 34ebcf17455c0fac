"""Torch data sets: images of every allowed kind, labels, and items that are named in errors."""

import numpy as np
import pytest
import torch
from images import pixels, random_image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from fastdiff.data import DataError, ImageOptions, ImageSource, from_torch

RNG = np.random.default_rng(0)
COLOUR = [RNG.integers(0, 256, (3, 4, 6), dtype=np.uint8) for _ in range(5)]


class Items(Dataset):
    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_images_of_every_kind():
    picture = random_image(3)
    kinds = [COLOUR[0], torch.from_numpy(COLOUR[1]), (COLOUR[2], "a name"), [torch.from_numpy(COLOUR[3])], picture]
    data = from_torch(Items(kinds), Items(kinds[:2]), name="own")
    assert (data.name, data.shape, data.num_classes, data.train_labels) == ("own", (3, 4, 6), 0, None)
    assert isinstance(data.train_images, ImageSource)
    for image, expected in zip(data.train_images[:4], COLOUR, strict=False):
        assert image.tolist() == expected.tolist()
    assert data.train_images[4].permute(1, 2, 0).tolist() == [[list(p) for p in row] for row in pixels(picture)]
    flat = from_torch(TensorDataset(torch.from_numpy(np.stack(COLOUR)[:, 0])), Items([COLOUR[0][:1]]))
    assert (flat.name, flat.shape, flat.test_images[:].tolist()) == (
        "TensorDataset",
        (1, 4, 6),
        [COLOUR[0][:1].tolist()],
    )


def labelled(labels, **attributes):
    return Items([(image, label) for image, label in zip(COLOUR, labels, strict=True)], **attributes)


def test_labels():
    labels = [2, np.int64(0), torch.tensor(1), 0, np.uint8(2)]
    for attributes in ({}, {"targets": [2, 0, 1, 0, 2]}, {"targets": torch.tensor([2, 0, 1, 0, 2])}):
        data = from_torch(labelled(labels, **attributes), labelled(labels), num_classes=3)
        assert data.train_labels is not None
        assert (data.train_labels.dtype, data.train_labels.tolist()) == (torch.int64, [2, 0, 1, 0, 2])
        assert data.train_images.batch(torch.tensor([4, 1]))[1].tolist() == [2, 0]
    with pytest.raises(DataError, match=r"item 1 of train must have the label 1, as the attribute targets says, got 0"):
        from_torch(labelled(labels, targets=[2, 1, 1, 0, 2]), labelled(labels), num_classes=3).train_images[:]
    for wrong, words in (
        ([0, 3, 0, 0, 0], r"item 1 of train must have a label in \[0, 2\], got 3"),
        ([0, 0, -1, 0, 0], "item 2 .* got -1"),
        ([0, 0, 1.0, 0, 0], r"item 2 .* integer label, got \(ndarray uint8 \(3, 4, 6\), float\)"),
        ([0, torch.tensor([1, 2]), 1, 0, 0], "item 1 .* integer label"),
        ([0, torch.tensor(1.0), 1, 0, 0], "item 1 .* integer label"),
        ([0, None, 1, 0, 0], "item 1 .* integer label"),
    ):
        with pytest.raises(DataError, match=words):
            from_torch(labelled(wrong), labelled(labels), num_classes=3)
    with pytest.raises(DataError, match="item 0 of train must be a tuple"):
        from_torch(Items(COLOUR), Items(COLOUR), num_classes=3)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (torch.zeros(3, 4, 6), r"item 3 .* uint8 tensor or array .* got Tensor torch\.float32 \(3, 4, 6\)"),
        (np.zeros((4, 6, 3), np.uint8), r"item 3 .* shape of item 0 of train, \(3, 4, 6\), got \(4, 6, 3\)"),
        (np.zeros((8, 6, 3), np.uint8), "item 3 .* channels before the height"),
        (np.zeros((3, 4, 7), np.uint8), r"item 3 .* got \(3, 4, 7\)"),
        (np.zeros((4, 6), np.uint8), r"item 3 .* got \(1, 4, 6\)"),
        (np.zeros((1, 3, 4, 6), np.uint8), "item 3 .* got ndarray"),
        (np.zeros((3, 0, 6), np.uint8), "item 3 .* got ndarray"),
        (COLOUR[0].tolist(), "item 3 .* got list"),
        (None, "item 3 .* got NoneType"),
        (random_image(0, "CMYK"), "item 3 .* got Image of mode CMYK"),
        (np.full((3, 4, 6), 200, np.uint8), "item 3 .* values from 0 to 199, got 200"),
    ],
)
def test_items_that_do_not_fit(item, words):
    items = [np.minimum(image, 199) for image in COLOUR]
    items[3] = item
    data = from_torch(Items(items), Items(items[:1]), levels=200)
    assert data.train_images[:3].shape == (3, 3, 4, 6)
    with pytest.raises(DataError, match=words):
        data.train_images[3:4]


def test_options():
    mixed = Items([random_image(0), random_image(1, size=(9, 9)), COLOUR[0], random_image(2, "L", (30, 8))])
    data = from_torch(mixed, mixed, options=ImageOptions(size=4, color="grey", crop="random"))
    assert data.train_images[:].shape == (4, 1, 4, 4)
    assert data.train_images.random_crop
    assert not data.test_images.random_crop
    grey = np.asarray(random_image(0).convert("L"))[:, 1:5]
    assert data.train_images[0][0].tolist() == grey.tolist()
    with pytest.raises(DataError, match="item 3 of train"):
        from_torch(mixed, mixed, options=ImageOptions(size=4)).train_images[:]
    with pytest.raises(DataError, match="for folders"):
        from_torch(mixed, mixed, options=ImageOptions(held_out=1))


def test_what_is_no_map_style_data_set():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(COLOUR)

    for wrong in (Stream(), Items([]), 3, iter(COLOUR)):
        with pytest.raises(DataError, match="test must be a map-style"):
            from_torch(Items(COLOUR), wrong)
    for numbers in ({"levels": 1}, {"levels": 257}, {"num_classes": -1}):
        with pytest.raises(DataError, match="levels must lie"):
            from_torch(Items(COLOUR), Items(COLOUR), **numbers)


def test_identity():
    def identity(train, **arguments):
        return from_torch(train, Items(COLOUR), **arguments).identity

    first = identity(Items(COLOUR))
    assert first == identity(Items(COLOUR))
    assert len({first, identity(Items(COLOUR[1:])), identity(Items(COLOUR, identity="mine"))}) == 3
    assert identity(Items(COLOUR, identity="mine")) == identity(Items(COLOUR[1:], identity="mine"))
    assert first != identity(Items(COLOUR), options=ImageOptions(size=2))
