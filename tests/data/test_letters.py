"""The embedded letters: sizes, labels, a split by family without near copies, and where every font comes from."""

from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff.data import LETTERS, LETTERS_LEVELS, DataError, Dataset, letters, load_dataset

ASSETS = Path(str(files("fastdiff.assets")))
LICENCES = {  # each allows images of the letters
    "OFL-1.1": "SIL Open Font License 1.1",
    "Apache-2.0": "Apache License 2.0",
    "Bitstream-Vera": "Bitstream Vera licence",
    "CC0-1.0": "CC0 1.0",
    "Unlicense": "Unlicense",
}
NEAR = 0.02  # root mean square difference of pixels, black 0 and white 1


@pytest.fixture(scope="module")
def data() -> Dataset:
    return letters()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with ASSETS.joinpath("letters.npz").open("rb") as file, np.load(file, allow_pickle=False) as found:
        return dict(found)


@pytest.fixture(scope="module")
def table() -> list[list[str]]:
    """The cells of every row of letters-fonts.md: family, package, part, licence, copyright."""
    text = ASSETS.joinpath("letters-fonts.md").read_text(encoding="utf-8")
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["family", "package", "part", "licence", "copyright"]
    return rows[1:]


def test_sizes_levels_and_labels(data):
    """Both parts hold all letters and all levels; a family has a letter at most three times."""
    assert load_dataset("letters").identity == data.identity == "letters"
    assert (data.shape, data.levels, data.num_classes) == ((1, 28, 28), LETTERS_LEVELS, 26)
    assert data.class_names == LETTERS
    assert (len(data.train_images), len(data.test_images)) == (23_205, 2418)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.unique().tolist() == list(range(LETTERS_LEVELS))
        assert labels.unique().tolist() == list(range(26))
        assert len(labels) == len(images)
    assert data.test_labels.bincount().tolist() == [93] * 26
    _, counts = torch.stack([data.test_groups, data.test_labels]).unique(dim=1, return_counts=True)
    assert int(counts.max()) <= 3


def test_every_letter_lies_in_the_middle(data):
    """The middle of the box of all pixels that are not black is that of the image, up to half a pixel: the boxes are of
    whole pixels. At the border nothing is brighter than one level, the edge of a letter of 26 pixels."""
    for images in (data.train_images, data.test_images):
        assert int(images[:, :, [0, -1]].max()) <= 1
        assert int(images[:, :, :, [0, -1]].max()) <= 1
        for axis in (1, 2):
            inked = images[:, 0].any(axis).int()
            first, last = inked.argmax(1), 27 - inked.flip(1).argmax(1)
            assert int((first + last - 27).abs().max()) <= 1


def test_no_family_is_on_both_sides(data, arrays):
    """Nor are two families whose names begin with the same word."""
    train, test = (set(arrays[f"{part}_families"].tolist()) for part in ("train", "test"))
    assert (len(train), len(test), len(train & test)) == (455, 47, 0)
    assert train | test == set(range(len(arrays["families"])))
    assert data.test_groups.tolist() == arrays["test_families"].tolist()
    assert data.group_names == tuple(arrays["families"].tolist())
    words = [{data.group_names[number].split("-")[0] for number in part} for part in (train, test)]
    assert not words[0] & words[1]


def test_no_held_out_letter_is_near_a_training_letter(data):
    """The nearest training image of the same letter, by brute force; products of levels are exact in float32."""
    nearest = []
    for letter in range(26):
        train, test = (
            images[labels == letter].flatten(1).float()
            for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
        )
        squares = test.square().sum(1)[:, None] + train.square().sum(1) - 2.0 * test @ train.T
        nearest.append(squares.min(1).values)
    distances = (torch.cat(nearest) / 784).sqrt() / (LETTERS_LEVELS - 1)
    assert float(distances.min()) >= NEAR  # measured: 0.0201, and the median 0.0771
    assert float(distances.median()) > 0.07


def test_the_file_is_small():
    size = len(ASSETS.joinpath("letters.npz").read_bytes())
    assert size < 4 * 2**20  # measured: 2,358,210 bytes


def test_every_family_has_a_licence_and_an_author(arrays, table):
    """A row for each family, in their order, with its part, and a package with a version."""
    assert len(table) == len(arrays["families"]) == 502
    held_out = {arrays["families"][number] for number in arrays["test_families"]}
    for family, (title, package, part, licence, author) in zip(arrays["families"], table, strict=True):
        name, version = package.split("@")
        assert name == family
        assert version.count(".") == 2
        assert licence in LICENCES, title
        assert part == ("held out" if family in held_out else "training")
        assert title
        assert author
    assert sum(row[-1].startswith("not stated") for row in table) == 0
    assert sum(row[-1].startswith("Google Inc") for row in table) == 0  # who distributes most of the fonts


def test_the_attribution_names_the_licences_and_every_asset(table):
    text = ASSETS.joinpath("ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "letters-fonts.md" in text
    counts = Counter(licence for _, _, _, licence, _ in table)
    for licence, title in LICENCES.items():
        assert f"{title} ({counts[licence]}" in " ".join(text.split())
    titles = [line for line in text.splitlines() if line.startswith("# ")]
    for path in ASSETS.iterdir():
        if path.suffix in (".npz", ".safetensors") or (path / "model.safetensors").is_file():
            assert any(path.name in title for title in titles), path.name


def test_an_unknown_name_lists_the_embedded_data_sets():
    with pytest.raises(DataError, match="must be 'digits', 'letters', or the path"):
        load_dataset("letter")
