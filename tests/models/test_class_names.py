"""Names of classes: checked in the configuration, taken as labels, kept in files, and nothing computed from them."""

import json

import attrs
import numpy as np
import pytest
import torch
from tiny import small, small_ddpm, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import FastdiffError
from fastdiff.models import VDMConfig
from fastdiff.models.card import model_card
from fastdiff.models.small import small_config
from fastdiff.presets import preset
from fastdiff.sampling import sample_to_folder
from fastdiff.sampling.bulk import model_crc32

NAMED = {"num_classes": 3, "class_names": ("Q", "2", "a b")}
STEPS = {"steps": 2, "output": "levels"}


@pytest.mark.parametrize(
    ("num_classes", "names"), [(3, ("a", "b")), (3, ("a", "b", "a")), (0, ("a",)), (2, ("a", "")), (2, "ab"), (1, (3,))]
)
def test_names_are_as_many_as_the_classes_and_differ(num_classes, names):
    with pytest.raises(ConfigError, match="class_names"):
        VDMConfig(shape=(1, 8, 8), levels=17, num_classes=num_classes, class_names=names)


def test_a_name_is_the_number_of_its_class():
    model = small(**NAMED)
    assert model.config.names == ("Q", "2", "a b")
    for labels, numbers in (
        ("Q", 0), ("2", 1), (["a b", "Q"], [2, 0]), (("2", 2), [1, 2]), (np.array(["Q", "2"]), [0, 1]),
        (np.array(["Q", 2], object), [0, 2]),
    ):  # fmt: skip
        images = fastdiff.sample(model, 2, labels=labels, **STEPS)
        assert torch.equal(images, fastdiff.sample(model, 2, labels=numbers, **STEPS)), labels
    assert not torch.equal(
        fastdiff.sample(model, 2, labels="Q", **STEPS), fastdiff.sample(model, 2, labels="2", **STEPS)
    )


def test_without_names_the_numbers_are_names():
    model = small(num_classes=3)
    assert model.config.names == ("0", "1", "2")
    assert torch.equal(fastdiff.sample(model, 2, labels="2", **STEPS), fastdiff.sample(model, 2, labels=2, **STEPS))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("q", "name of a class, Q, 2, a b, got 'q'"), (["Q", "x"], "got 'x'"), ("1", "got '1'"), ("all", "got 'all'"),
        (3, r"0 .. 2 or a name \(Q, 2, a b\)"), (["Q"], "each of the n = 2 images"), ([["Q", "2"]], "labels must be"),
    ],
)  # fmt: skip
def test_other_names_are_rejected(labels, words):
    with pytest.raises(FastdiffError, match=words):
        fastdiff.sample(small(**NAMED), 2, labels=labels, **STEPS)


def test_models_without_classes():
    with pytest.raises(FastdiffError, match="takes no labels"):
        fastdiff.sample(small(), 2, labels="Q", **STEPS)
    with pytest.raises(FastdiffError, match="without classes"):
        small().config.class_number("Q")


def test_many_names_are_not_all_listed():
    names = tuple(f"n{k}" for k in range(1000))
    with pytest.raises(FastdiffError, match=r"n0, n1, .*n38, \.\.\., n999 \(1000 in all\), got 'x'") as error:
        small_config("ddpm", (1, 8, 8), 17, 1000, 4, 1, class_names=names).class_number("x")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("build", [small, small_ddpm, small_vae, small_diffusevae, small_restoration])
def test_they_are_saved_and_files_without_them_are_read(tmp_path, build):
    """Of every model. A file from before has no such key, in the configuration of a first stage neither."""
    has_classes = build in (small, small_ddpm)
    model = build(**NAMED) if has_classes else build()
    model.save(tmp_path / "model")
    assert fastdiff.load(tmp_path / "model").config.class_names == (NAMED["class_names"] if has_classes else ())
    description = json.loads((tmp_path / "model/config.json").read_text())["config"]
    for config in (description, description.get("vae", {})):
        config.pop("class_names", None)
    read = type(model).config_class
    from fastdiff.io.configuration import from_dict

    before = from_dict(read, description, "config.json", complete=True)
    assert before.class_names == ()
    assert before == model.config  # so that a run from before is resumed, and a study's models are found


def test_a_folder_of_samples_goes_on_with_names(tmp_path):
    """Its request holds the number, and the checksum of the model no names."""
    model = small(**NAMED)
    without = small(num_classes=3)
    assert model_crc32(model) == model_crc32(without)
    sample_to_folder(without, tmp_path / "out", 2, steps=2, labels=1)
    done = sample_to_folder(model, tmp_path / "out", 2, steps=2, labels="2")
    assert (done.images, done.drawn) == (2, 0)
    assert json.loads((tmp_path / "out/samples.json").read_text())["request"]["labels"] == 1
    with pytest.raises(FastdiffError, match="name of a class, Q, 2, a b, got 'x'"):
        sample_to_folder(model, tmp_path / "new", 2, steps=2, labels="x")


def test_the_card_names_the_classes():
    """And samples the last one by its name; a bar and a line break do not break the table."""
    card = model_card(small(num_classes=3, class_names=("a|b", "c\nd", "e")))
    assert "3 (a\\|b, c d, e); images may be drawn without one" in card
    assert "labels='e'" in card
    assert "labels=2" in model_card(small(num_classes=3))


def test_the_presets_of_the_letters_have_names():
    for name in ("letters", "vdm-letters", "ddpm-letters"):
        config = preset(name).model
        assert (config.class_number("A"), config.class_number("Q"), config.class_number("Z")) == (0, 16, 25)
    assert preset("letters").model == attrs.evolve(preset("letters").model, class_names=())
