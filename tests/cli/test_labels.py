"""The flag ``--label``: names and numbers of classes, from a folder of classes to pictures of one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import small

import fastdiff
from fastdiff.cli.labels import parse_label, parse_labels
from fastdiff.kernels import InvalidValueError

LETTERS = small(num_classes=3, class_names=("A", "B", "Q")).config
PLAIN = small(num_classes=12).config
SORTED = small(num_classes=12, class_names=tuple(sorted(map(str, range(12))))).config  # 0, 1, 10, 11, 2, ...
COMMAS = small(num_classes=4, class_names=("A", "B", "A,B", "all")).config
ODD = small(num_classes=3, class_names=("all", "name:x", "x")).config


@pytest.mark.parametrize(
    ("config", "text", "number"),
    [
        (LETTERS, "Q", 2), (LETTERS, "A", 0), (LETTERS, "2", 2), (LETTERS, "name:B", 1), (LETTERS, "number:1", 1),
        (LETTERS, None, None), (PLAIN, "3", 3), (PLAIN, "11", 11), (PLAIN, "name:3", 3), (PLAIN, "number:3", 3),
        # a name that is the number of its own class, or of none, is not ambiguous
        (SORTED, "0", 0), (SORTED, "1", 1), (SORTED, "name:2", 4), (SORTED, "number:2", 2), (SORTED, "name:10", 2),
        (ODD, "name:x", 1), (ODD, "name:name:x", 1), (ODD, "x", 2), (ODD, "name:all", 0),
    ],
)  # fmt: skip
def test_a_class_by_its_name_or_its_number(config, text, number):
    assert parse_label(text, config) == number


@pytest.mark.parametrize(
    ("config", "text", "words"),
    [
        (LETTERS, "q", r"the name of a class \(A, B, Q\) or a number in 0 .. 2, got 'q'"), (LETTERS, "3", "got '3'"),
        (LETTERS, "-1", "got '-1'"), (LETTERS, "", "got ''"), (LETTERS, "name:2", "got 'name:2'"),
        (LETTERS, "number:A", "got 'number:A'"), (LETTERS, "number:", "got"), (PLAIN, "12", "a number in 0 .. 11"),
        (PLAIN, "9" * 5000, "a number in 0 .. 11"), (small().config, "1", "labels must be None for a model without"),
        (SORTED, "2", "class 4 has the name 2 and class 2 the name 10: write name:2 or number:2"),
    ],
)  # fmt: skip
def test_what_names_no_class_or_two(config, text, words):
    with pytest.raises(InvalidValueError, match=words):
        parse_label(text, config)


@pytest.mark.parametrize(
    ("config", "text", "labels"),
    [
        (LETTERS, "Q", 2), (LETTERS, None, None), (LETTERS, "all", "all"), (LETTERS, "Q,A", [2, 0]),
        (LETTERS, "name:Q,name:A", [2, 0]),
        (LETTERS, "B, 2 ,number:2,B", [1, 2, 2, 1]), (COMMAS, "A,B", 2), (COMMAS, "name:A,B", 2),
        (COMMAS, "B,A", [1, 0]), (COMMAS, "A,name:all", [0, 3]),
    ],
)  # fmt: skip
def test_several_classes(config, text, labels):
    assert parse_labels(text, config) == labels


@pytest.mark.parametrize(
    ("text", "got"), [("A,", "''"), (",", "''"), ("A,q", "'q'"), ("A,all", "'all'"), ("A;B", "A;B")]
)
def test_several_classes_of_which_one_is_none(text, got):
    with pytest.raises(InvalidValueError, match=f"got {got}|got '{got}'"):
        parse_labels(text, LETTERS)


def test_samples_of_several_classes(run):
    """The classes in turn; the second call of the folder finds its images, and another list is another request."""
    model = small(num_classes=3, class_names=("A", "B", "Q"))
    model.save("model")
    common = ["sample", "model", "-n", "5", "--steps", "2"]
    for label in ("Q,A", "2,number:0"):
        for out in ("x.npz", "x/"):
            replaces = ["--overwrite"] if out == "x.npz" else []
            code, _, err = run(*common, "--label", label, "--out", out, *replaces)
            assert code == 0, err
    expected = fastdiff.sample(model, 5, 2, labels=["Q", "A", "Q", "A", "Q"])
    with np.load("x.npz") as found:
        assert found["arr_1"].tolist() == [2, 0, 2, 0, 2]
        assert np.array_equal(found["arr_0"][..., 0], expected[:, 0])
    with Image.open("x/000003.png") as picture:
        assert np.array_equal(np.asarray(picture), expected[3, 0])
    code, _, err = run(*common, "--label", "Q,B", "--out", "x/")
    assert code == 2
    assert "labels is [2, 0], expected [2, 1]" in err


@pytest.mark.parametrize("command", ["picture", "arrays", "folder"])
def test_samples_of_a_named_class(run, command):
    model = small(num_classes=3, class_names=("A", "B", "Q"))
    model.save("model")
    out = {"picture": "x.png", "arrays": "x.npz", "folder": "x/"}[command]
    replaces = [] if command == "folder" else ["--overwrite"]
    for label in ("Q", "2"):  # the second call of the folder finds its images
        code, _, err = run("sample", "model", "-n", "3", "--steps", "2", "--out", out, "--label", label, *replaces)
        assert code == 0, err
    expected = fastdiff.sample(model, 3, 2, labels="Q")
    if command == "arrays":
        with np.load("x.npz") as found:
            assert found["arr_1"].tolist() == [2, 2, 2]
            assert np.array_equal(found["arr_0"][..., 0], expected[:, 0])
    if command == "folder":
        with Image.open("x/000001.png") as picture:
            assert np.array_equal(np.asarray(picture), expected[1, 0])
    code, _, err = run("sample", "model", "-n", "3", "--steps", "2", "--out", out, "--label", "C", *replaces)
    assert (code, "--label must be the name of a class (A, B, Q)" in err) == (2, True)


def test_editing_and_inversion_take_names(run):
    small(num_classes=3, class_names=("A", "B", "Q")).save("model")
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(image).save("image.png")
    found = {}
    for label in ("Q", "2", "A"):
        for command in ("edit", "invert"):
            out = "out.npz"
            code, _, err = run(
                command, "model", "image.png", "--steps", "2", "--label", label, "--out", out, "--overwrite"
            )
            assert code == 0, err
            with np.load(out) as arrays:
                (key,) = arrays.files
                found[command, label] = torch.from_numpy(arrays[key])
    for command in ("edit", "invert"):
        assert torch.equal(found[command, "Q"], found[command, "2"])
        assert not torch.equal(found[command, "Q"], found[command, "A"])


def test_a_folder_of_classes_gives_the_model_its_names(run, monkeypatch, tmp_path):
    """Train on own images, then sample a class by the name of its folder; without --classes there are no names."""
    monkeypatch.setattr("fastdiff.models.diffusion_sampling.DEFAULT_STEPS", 2)
    monkeypatch.setattr("fastdiff.training.keeping.NUM_SAMPLES", 2)
    generator = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "own" / ["cat", "wild dog"][number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (4, 4), np.uint8)).save(folder / f"{number}.png")
    few = ["--width", "4", "--blocks", "1", "--batch-size", "2", "--max-steps", "1", "--evaluations", "0"]
    common = [*few, "--workers", "0", "--no-progress"]
    code, out, err = run("train", "own", "--out", "named", "--classes", *common)
    assert code == 0, err
    assert "256 levels, 2 classes (cat, wild dog)" in out
    with open("named/model/config.json") as file:
        assert json.load(file)["config"]["class_names"] == ["cat", "wild dog"]
    code, _, err = run("sample", "named", "-n", "2", "--steps", "2", "--label", "wild dog", "--out", "x.npz")
    assert code == 0, err
    with np.load("x.npz") as found:
        assert found["arr_1"].tolist() == [1, 1]
    assert run("train", "own", "--out", "plain", *common)[0] == 0
    assert fastdiff.load("plain").config.class_names == ()


@pytest.mark.parametrize(
    ("label", "n", "columns"), [("all", 7, 3), ("all", 3, 3), ("all", 2, 1), ("Q", 9, 3), ("Q,A", 5, 2)]
)
def test_a_picture_of_several_classes_has_a_column_for_each(run, label, n, columns):
    """With fewer images than classes, and with one class, there are as many columns as rows."""
    small(num_classes=3, class_names=("A", "B", "Q")).save("model")
    code, _, err = run(
        "sample", "model", "-n", str(n), "--steps", "2", "--label", label, "--out", "x.png", "--no-caption"
    )
    assert code == 0, err
    with Image.open("x.png") as picture:
        assert picture.size == (68 * columns + 4, 68 * -(-n // columns) + 4)
