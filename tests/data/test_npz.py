"""``.npz`` files: what is read from them, and that damaged and hostile headers are errors of the file."""

import io
import tokenize
import zipfile

import numpy as np
import pytest
import torch

from fastdiff.data import DataError, ImageOptions, load_dataset, load_npz

RNG = np.random.default_rng(0)
GOOD = {name: RNG.integers(0, 9, (2, 3, 4, 5), dtype=np.uint8) for name in ("train_images", "test_images")}

LABELS = {"train_labels": [0, 1], "test_labels": [1, 1]}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_grey_images_with_labels(tmp_path, save):
    path = tmp_path / "own.npz"
    images = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    save(path, train_images=images, test_images=images[:1], train_labels=[0, 2], test_labels=[1], levels=32, other=[{}])
    for data in (load_dataset(str(path)), load_npz(path)):
        assert (data.name, data.shape, data.levels, data.num_classes) == ("own", (1, 4, 3), 32, 3)
        assert (data.train_images.dtype, data.test_images.dtype) == (torch.uint8, torch.uint8)
        assert data.train_images.tolist() == images[:, None].tolist()
        assert data.test_images.tolist() == images[:1, None].tolist()
        assert data.train_labels is not None
        assert data.test_labels is not None
        assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 2], [1])
        assert data.train_labels.dtype == data.test_labels.dtype == torch.int64


def test_names_of_classes_and_groups_of_test_images(tmp_path):
    """They reach the models and the errors over groups; a class without an image has a name too."""
    np.savez(
        tmp_path / "own.npz", **GOOD, **LABELS, class_names=["Ä", "b c", "d"], test_groups=np.array([7, 3], np.uint8)
    )
    for options in (ImageOptions(classes=True), ImageOptions(classes=True, size=4)):
        data = load_dataset(str(tmp_path / "own.npz"), options)
        assert (data.num_classes, data.class_names, data.group_kind) == (3, ("Ä", "b c", "d"), "groups")
        assert data.test_groups is not None
        assert (data.test_groups.tolist(), data.test_groups.dtype) == ([7, 3], torch.int64)
    plain = load_dataset(str(tmp_path / "own.npz"), ImageOptions(size=4))
    assert (plain.num_classes, plain.class_names) == (3, ("Ä", "b c", "d"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_colour_images_without_labels(tmp_path, order):
    np.savez(tmp_path / "own.npz", **{name: np.asarray(images, order=order) for name, images in GOOD.items()})
    data = load_npz(tmp_path / "own.npz")
    assert (data.shape, data.levels, data.num_classes) == ((3, 4, 5), 256, 0)
    assert data.train_labels is data.test_labels is None
    assert data.train_images.tolist() == GOOD["train_images"].tolist()
    assert data.test_images.tolist() == GOOD["test_images"].tolist()


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint64, ">i4"])
def test_labels_of_any_integer_type(tmp_path, dtype):
    labels = {name: np.array([1, 100], dtype) for name in ("train_labels", "test_labels")}
    np.savez(tmp_path / "own.npz", **GOOD, **labels)
    data = load_npz(tmp_path / "own.npz")
    assert data.num_classes == 101
    assert data.train_labels is not None
    assert data.train_labels.tolist() == [1, 100]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_images": None}, "train_images"),
        ({"train_images": np.zeros((2, 3, 4, 5))}, "train_images must be uint8"),
        ({"train_images": np.zeros((2, 4), np.uint8)}, r"train_images .*\(2, 4\)"),
        ({"train_images": np.zeros((2, 32, 32, 3), np.uint8)}, "train_images .* channels"),
        ({"train_images": np.array([{}])}, "object"),
        ({"train_images": np.full((2, 3, 4, 5), {})}, "object"),
        ({"train_images": np.zeros((2, 32, 32, 4), np.uint8)}, "train_images .* channels"),
        ({"test_images": np.zeros((0, 3, 4, 5), np.uint8)}, "test_images .* empty"),
        ({"test_images": np.zeros((2, 3, 4, 6), np.uint8)}, "test_images .* shape"),
        ({"test_images": np.full((2, 3, 4, 5), 9, np.uint8), "levels": 9}, "test_images .* got 9"),
        ({"levels": 300}, "levels"),
        ({"levels": 1}, "levels"),
        ({"levels": [2, 2]}, "levels"),
        ({"levels": 17.0}, "levels"),
        ({"levels": 2 + 0j}, "levels"),
        ({"train_labels": [0, 1]}, "both"),
        ({"train_labels": [0, -1], "test_labels": [0, 1]}, "train_labels .* -1"),
        ({"train_labels": [0, 1], "test_labels": [0]}, r"test_labels .*\(2,\)"),
        ({"train_labels": [0, 1], "test_labels": [0j, 1]}, "test_labels .* complex"),
        ({"train_labels": [0, 1], "test_labels": [0.0, 1]}, "test_labels .* float"),
        ({"train_labels": np.array([0, 2**64 - 1], np.uint64), "test_labels": [0, 1]}, "train_labels .* [0-9]{20}"),
        ({"train_labels": [0, 2**62], "test_labels": [0, 1]}, "train_labels"),
        ({"train_labels": [0, 65536], "test_labels": [0, 1]}, "train_labels"),
        ({"class_names": ["a", "b"]}, "class_names must be strings, one for each class of train_labels"),
        (LABELS | {"class_names": [1, 2]}, "class_names must be strings, .* int64"),
        (LABELS | {"class_names": "ab"}, r"class_names must be strings, .* \(\)"),
        (LABELS | {"class_names": ["a"]}, r"one for each label in 0 \.\. 1 or more, got 'a'"),
        (LABELS | {"class_names": ["a", "a"]}, "different names"),
        (LABELS | {"class_names": ["a", ""]}, "different names"),
        ({"test_groups": [0]}, r"test_groups must be integers of shape \(2,\)"),
        ({"test_groups": [0.0, 1.0]}, "test_groups must be integers"),
    ],
)
def test_wrong_arrays(tmp_path, change, words):
    path = tmp_path / "bad.npz"
    np.savez(path, **{name: value for name, value in (GOOD | change).items() if value is not None})
    with pytest.raises(DataError, match=words) as error:
        load_dataset(str(path))
    assert f"{path}" in str(error.value)


def test_files_of_other_formats(tmp_path):
    (tmp_path / "text.npz").write_text("words")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "cut.npz", **GOOD)
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "array.npy", GOOD["train_images"])
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name in ("text", "empty", "cut", "array", "missing", "x" * 300, "zero\0"):
        with pytest.raises(DataError, match=f"{name}.npz cannot be read"):
            load_dataset(str(tmp_path / f"{name}.npz"))


def npy(header: str, content: bytes) -> bytes:
    """A .npy file of format 1.0, by its description: magic, version, length of the header, header, content."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


PIXELS = GOOD["train_images"].tobytes()
HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 4, 5), }"


def write_npz(path, train_images: bytes):
    test_images = io.BytesIO()
    np.save(test_images, GOOD["test_images"])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", train_images)
        archive.writestr("test_images.npy", test_images.getvalue())


def test_header_by_hand_is_read(tmp_path):
    write_npz(tmp_path / "own.npz", npy(HEADER, PIXELS))
    assert load_npz(tmp_path / "own.npz").train_images.tolist() == GOOD["train_images"].tolist()


@pytest.mark.parametrize(
    ("header", "cause"),
    [
        (HEADER.replace("(2,", "(1000000000000,"), ValueError),
        (HEADER.replace("(2,", "(3,"), ValueError),  # more than the file holds
        (HEADER.replace("(2,", "(1,"), ValueError),  # less than the file holds
        (HEADER.replace("5)", "5i"), tokenize.TokenError),  # ")" and "i" differ in two bits
        (HEADER.replace("'", "`"), Exception),
        (HEADER.replace("|u1", "|u9"), ValueError),
        (HEADER.replace("(2,", "(-2,"), ValueError),
        ("(" * 5000, Exception),
        ("", Exception),
    ],
)
def test_wrong_header(tmp_path, header, cause):
    path = tmp_path / "bad.npz"
    write_npz(path, npy(header, PIXELS))
    with pytest.raises(DataError, match=r"bad\.npz") as error:
        load_dataset(str(path))
    assert isinstance(error.value.__cause__, cause)


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, **GOOD)
    whole = path.read_bytes()
    rejected = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            data = load_npz(path)
        except DataError:
            rejected += 1
        else:
            assert data.train_images.tolist() == GOOD["train_images"].tolist()
            assert data.test_images.tolist() == GOOD["test_images"].tolist()
    assert rejected > len(whole) // 6  # the others are dates and the like
