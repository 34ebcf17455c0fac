"""The document on the letters: what it says of the data is so, and its tables and pictures hold what was measured."""

import math
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import small

import fastdiff
from benchmarks.studies import letter_models
from benchmarks.studies.documents import image_text
from benchmarks.studies.letter_models_report import DATA, write_report
from fastdiff.data import LETTERS, letters
from fastdiff.evaluation import Frechet

ROW = {
    "parameters": 1234, "steps": 5, "bpd": 0.5, "se_groups": 0.02, "se": 0.01, "recon": 0.1, "prior": 0.15,
    "diffusion": 0.25, "fd": [3.14, 0.1],
}  # fmt: skip


def test_the_numbers_of_the_data_are_those_of_the_arrays():
    """A family has as many styles as images of its most frequent letter; what a letter lacks to it was left out."""
    with files("fastdiff.assets").joinpath("letters.npz").open("rb") as file, np.load(file) as data:
        styles = left_out = 0
        for part in ("train", "test"):
            labels, families = data[f"{part}_labels"], data[f"{part}_families"]
            counts = np.array([np.bincount(labels[families == each], minlength=26) for each in np.unique(families)])
            styles += counts.max(1).sum()
            left_out += (counts.max(1, keepdims=True) - counts).sum()
        total = len(data["families"])
    text = " ".join(" ".join(DATA).split())
    assert f"{styles:,} styles of {total} families" in text
    assert f"The {left_out} training letters that were nearer" in text
    found = letters()
    assert f"{len(found.train_images):,} training letters of 455 families, and {len(found.test_images):,}" in text


def test_models_are_in_the_order_of_the_presets():
    rows = {name: {} for name in ("own", "diffusevae-letters", "ddpm-letters", "vdm-letters")}
    assert list(letter_models.in_order(rows)) == ["vdm-letters", "ddpm-letters", "diffusevae-letters", "own"]


def test_the_document_holds_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    data = letters()
    held_out = sorted({data.group_name(number) for number in data.test_groups.tolist()})
    families = {name: [26, 0.1 + 0.01 * place] for place, name in enumerate(held_out)}
    shown = np.random.default_rng(0).integers(0, 16, (52, 784)).tolist()
    as_text = image_text(torch.tensor(shown, dtype=torch.uint8).view(-1, 1, 28, 28))
    read = [0.5, *[1.0] * 25]
    rows = {
        "one": {**ROW, "families": families, "read": read, "shown": as_text},
        "two": {**ROW, "steps": None, "families": families, "shown": as_text, "fd_mixture": [2.5, 0.1]},
    }
    write_report({"models": rows}, tmp_path)
    text = (tmp_path / "letters.md").read_text()
    assert "| one | 1,234 | 5 | 0.5000 | 0.0200 | 0.0100 | 0.1000 | 0.1500 | 0.2500 | 3.14 ± 0.10 |  | 98.1% |" in text
    assert "| two | 1,234 | not recorded | 0.5000 |" in text
    assert f"| {held_out[0]} | 26 | 0.100 |" in text
    assert f"| {held_out[-1]} | 26 | 0.560 |" in text
    assert "least often rightly: A 50%" in " ".join(text.split())
    with Image.open(tmp_path / "letters-one.png") as picture:
        assert picture.size == (26 * 28, 2 * 28)
        assert np.array_equal(np.asarray(picture)[:28, :28] // 17, np.reshape(shown[0], (28, 28)))


def test_a_model_is_measured(tmp_path, monkeypatch):
    """A tiny model with labels on a few images of two families; FD-letters is stood in for by the number of images."""
    data, chosen = letters(), torch.arange(30)
    few = replace(
        data, test_images=data.test_images[chosen], test_labels=data.test_labels[chosen],
        test_groups=data.test_groups[chosen],
    )  # fmt: skip
    monkeypatch.setattr("fastdiff.data.letters", lambda: few)
    monkeypatch.setattr("fastdiff.evaluation.fd_letters", lambda images: Frechet(len(images), 0.0, len(images), 0))
    for name, value in {"DRAWS": 1, "SAMPLES": 52, "STEPS": 1, "SHOWN_ROWS": 1}.items():
        monkeypatch.setattr(letter_models, name, value)
    model = small(shape=(1, 28, 28), levels=16, num_classes=26, class_names=LETTERS)
    model.save(tmp_path / "model")
    row = letter_models.measure(str(tmp_path / "model"))
    assert (row["kind"], row["steps"], row["fd"]) == ("vdm", None, [52, 0.0])
    assert row["bpd"] == pytest.approx(row["recon"] + row["prior"] + row["diffusion"], rel=1e-6)
    assert sum(n for n, _ in row["families"].values()) == 30
    assert math.fsum(n * mean for n, mean in row["families"].values()) / 30 == pytest.approx(row["bpd"], abs=1e-4)
    expected = fastdiff.sample(model, 52, 1, labels=list(LETTERS) * 2, output="levels")
    assert row["shown"] == image_text(expected[:26])
    assert len(row["read"]) == 26
