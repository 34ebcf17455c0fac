"""Which features and which reference ``fd`` takes where they are not named: those of the embedded data set."""

import json

import numpy as np
import pytest
from tiny import small

import fastdiff
from fastdiff.data import Dataset, letters, loading
from fastdiff.evaluation import compare_features, image_features, load_features
from fastdiff.io.pictures import to_uint8

SHAPE = (1, 28, 28)


@pytest.fixture(autouse=True)
def few_letters(monkeypatch):
    """Sixty training and forty held-out letters in place of all."""
    data = letters()
    parts = data.train_images[::387], data.train_labels[::387], data.test_images[:40], data.test_labels[:40]
    few = Dataset("letters", data.levels, data.num_classes, *parts)
    monkeypatch.setitem(loading.EMBEDDED, "letters", lambda: few)
    return few


def letter_model(data: str) -> None:
    """Save an untrained model of letters whose record says what it was trained on."""
    small(shape=SHAPE, levels=16).save("model", {"train": {"data": data}})


def arrays(path: str, images, levels: int = 16) -> None:
    np.savez(path, to_uint8(images, levels).permute(0, 2, 3, 1).numpy())


def test_a_model_of_letters(run, few_letters):
    """Against the training letters, as its record says; the figures are those of the API."""
    letter_model("letters")
    code, out, err = run("fd", "model", "--n", "12", "--steps", "1", "--json")
    assert code == 0, err
    held_out, row = map(json.loads, out.splitlines())
    assert (held_out["sampler"], held_out["n"], row["features"], row["reference"]) == ("held-out", 40, "letters", 60)
    network = load_features("letters")
    reference = image_features(few_letters.train_images, network, levels=16)
    samples = image_features(fastdiff.sample("model", 12, 1), network)
    assert row["fd"] == pytest.approx(compare_features(samples, reference).value, rel=1e-5)
    of_held_out = image_features(few_letters.test_images, network, levels=16)
    assert held_out["fd"] == pytest.approx(compare_features(of_held_out, reference).value, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        ("x.npz", "FD-letters against the training images of letters, n = 60"),
        ("x.npz letters", "FD-letters against the training images of letters, n = 60"),
        ("x.npz --features letters", "FD-letters against the training images of letters, n = 60"),
        ("x.npz y.npz", "FD-letters against y.npz, n = 10"),
        ("x.npz --reference y.npz --features letters", "FD-letters against y.npz, n = 10"),
        ("small.npz", "FD-digits against the training images of digits, n = 1500"),
        ("small.npz digits", "FD-digits against the training images of digits, n = 1500"),
        ("small.npz --size 28", "FD-letters against the training images of letters, n = 60"),
    ],
)
def test_images_on_disk(run, few_letters, arguments, title):
    arrays("x.npz", few_letters.test_images[:20])
    arrays("y.npz", few_letters.test_images[20:30])
    arrays("small.npz", few_letters.test_images[:20, :, 10:18, 10:18])
    code, out, err = run("fd", *arguments.split(), "--no-precision-recall")
    assert code == 0, err
    assert f": {title}; compare only equal n" in out


WRONG = {
    "fd model": "--features must be set for images of the shape [1, 28, 28] of a model that was trained on own.npz: "
    "digits, letters, inception",
    "fd model x.npz": "--features must be set for images of the shape [1, 28, 28] of a model that was trained on",
    "fd model --features digits": "model and the training images of digits must have images of one shape",
    "fd odd.npz": "--features must be set for images of the shape [1, 28, 27]: digits, letters, inception",
    "fd odd.npz odd.npz": "or none with --paired",
    "fd odd.npz letters": "odd.npz and the training images of letters must have images of one shape",
    "fd odd.npz odd.npz --features letters": "features letters are for grey images of 28×28, got (1, 28, 27)",
}


@pytest.mark.parametrize("command", WRONG)
def test_features_that_must_be_chosen(run, few_letters, command):
    letter_model("own.npz")
    arrays("x.npz", few_letters.test_images)
    arrays("odd.npz", few_letters.test_images[..., :27].contiguous())
    code, _, err = run(*command.split(), "--steps", "1", "--n", "4")
    assert code == 2
    assert WRONG[command] in err
    assert len(err.splitlines()) == 1


def test_a_model_of_other_data_with_features_that_are_chosen(run):
    letter_model("own.npz")
    code, out, err = run("fd", "model", "--features", "letters", "--steps", "1", "--n", "6", "--no-precision-recall")
    assert code == 0, err
    assert out.startswith("model: FD-letters against the training images of letters")
