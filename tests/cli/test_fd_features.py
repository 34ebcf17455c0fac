"""Which features and which reference ``fd`` takes where they are not named: those of the embedded data set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import small

import fastdiff
from fastdiff.data import Dataset, ImageOptions, letters, load_dataset, loading
from fastdiff.evaluation import compare_features, fd, image_features, load_features
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


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Features of one's own, as the file strided.py has them."""
    return images.flatten(1)[:, ::40].double() / 255


def test_data_of_a_run_are_read_as_in_its_training(run, tmp_path):
    """Resized, converted and without the files that cannot be read; with the held-out images for comparison."""
    random = np.random.default_rng(0)
    Path("photos").mkdir()
    for number in range(30):
        shape = (9 + number % 3, 10) if number % 5 == 0 else (9, 9 + number % 2, 3)
        Image.fromarray(random.integers(256, size=shape, dtype=np.uint8)).save(f"photos/{number}.png")
    Path("photos/broken.png").write_bytes(Path("photos/1.png").read_bytes()[:90])
    (tmp_path / "strided.py").write_text("def pixels(images):\n    return images.flatten(1)[:, ::40].double() / 255\n")
    images = {"size": 8, "color": "rgb", "skip_damaged": True, "held_out": 20}
    small(shape=(3, 8, 8), levels=256).save("model", {"train": {"data": "photos", "images": images}})
    command = [
        "fd",
        "model",
        "--features",
        "strided:pixels",
        "--steps",
        "1",
        "--n",
        "12",
        "--no-precision-recall",
        "--json",
    ]
    with pytest.warns(UserWarning, match="1 of 31 image files are left out"):
        code, out, err = run(*command)
    assert code == 0, err
    held_out, row = map(json.loads, out.splitlines())
    with pytest.warns(UserWarning, match="broken"):
        data = load_dataset("photos", ImageOptions(**images))
    assert (held_out["n"], row["reference"]) == (len(data.test_images), len(data.train_images))
    assert row["fd"] == pytest.approx(fd(fastdiff.sample("model", 12, 1), data.train_images, pixels).value, rel=1e-9)
    # with the flags of one's own, all images of the folder
    with pytest.warns(UserWarning, match="1 of 31 image files are left out"):
        code, out, err = run(*command, "--size", "8", "--color", "rgb", "--skip-damaged")
    assert code == 0, err
    assert json.loads(out)["reference"] == 30
    code, _, err = run(*command, "--size", "8", "--color", "rgb")
    assert (code, "broken.png" in err) == (2, True)
