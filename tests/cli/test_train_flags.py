"""The flags of ``fastdiff train``: every field of its configurations is one, with its type, choices and description."""

import dataclasses

import attrs
import pytest

from fastdiff.cli import write_fields
from fastdiff.cli.advice import words_of
from fastdiff.cli.main import main
from fastdiff.cli.parsing import parse
from fastdiff.cli.train import Train
from fastdiff.cli.train_options import TrainOptions
from fastdiff.data import ImageOptions
from fastdiff.models.small import SMALL_MODELS
from fastdiff.presets import PRESETS
from fastdiff.training import TrainConfig
from fastdiff.training.keeping import RunOptions

FIELDS = {
    *(field.name for field in attrs.fields(TrainConfig) if field.name != "images"),
    *(field.name for field in attrs.fields(ImageOptions)),
    *(field.name for field in dataclasses.fields(RunOptions)),
}


def parsed(*arguments: str) -> Train:
    command = parse("train", Train, list(arguments))
    assert isinstance(command, Train)
    return command


def error_of(capsys, *arguments: str) -> str:
    """What a wrong call prints to stderr, in one line and without the box."""
    with pytest.raises(SystemExit) as raised:
        main(["train", *arguments])
    assert raised.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_file_of_the_fields_is_up_to_date():
    """A field that is added to a configuration is a flag when `python -m fastdiff.cli.write_fields` has been called."""
    assert write_fields.FILE.read_text() == write_fields.source(), "call python -m fastdiff.cli.write_fields"


def test_every_field_is_a_flag_with_a_description(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in FIELDS:
        assert f"--{name.replace('_', '-')}" in shown
    for name in (*PRESETS, *SMALL_MODELS):
        assert name in shown
    descriptions = write_fields._descriptions(TrainConfig) | write_fields._descriptions(ImageOptions)
    for name, description in descriptions.items():
        assert name == "images" or " ".join(description.split()) in shown, name
    assert "default: None" not in shown


def test_nothing_is_given_by_default():
    options = parsed()
    assert (options.settings(), options.image_settings(), options.model_options()) == ({}, {}, {})
    assert dataclasses.asdict(options.keeping) == dataclasses.asdict(RunOptions())
    assert words_of(options) == []


def test_values_are_those_of_the_fields():
    """As words, as values, and as the words that `words_of` gives for them."""
    words = ["--T", "none", "--clip-norm", "2", "--no-stratified", "--compile", "--precision", "bf16", "--seed", "7",
             "--learning-rate", "1e-3", "--first-stage", "a b", "--color", "none", "--size", "8", "--classes",
             "--no-pictures", "--keep", "3", "--out=-x", "--model", "restoration",
             "--degradation", "noise-0.1"]  # fmt: skip
    options = parsed(*words)
    assert options.settings() == {
        "T": None, "clip_norm": 2.0, "stratified": False, "compile": True, "precision": "bf16", "seed": 7,
        "learning_rate": 1e-3, "first_stage": "a b",
    }  # fmt: skip
    assert options.image_settings() == {"color": None, "size": 8, "classes": True}
    assert options.model_options() == {"model": "restoration", "degradation": "noise-0.1"}
    assert (options.keeping.pictures, options.keeping.keep) == (False, 3)
    assert parsed(*words_of(options)) == options
    attrs.evolve(TrainConfig(data="", max_steps=1), **options.settings())
    ImageOptions(**options.image_settings())


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        (["--model", "gan"], SMALL_MODELS),
        (["--loss", "l2"], ["elbo", "simple"]),
        (["--decay", "step"], ["cosine", "constant"]),
        (["--crop", "corner"], ["center", "random"]),
        (["--color", "blue"], ["grey", "rgb", "none"]),
        (["--clip-norm", "x"], ["none"]),
        (["--max-steps", "many"], ["INT"]),
    ],
)
def test_wrong_values_name_the_flag_and_the_choices(capsys, arguments, choices):
    shown = error_of(capsys, *arguments)
    assert all(word in shown for word in (*arguments, *choices))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("digits --max-steps 0", "--max-steps must be >= 1"),
        ("digits --clip-norm 0", "--clip-norm must"),
        ("digits --beta-1 1", "--beta-1 must"),
        ("digits --size 0", "--size must"),
        ("digits --resize 9", "--resize must"),
        ("digits --keep 0", "--keep must"),
        ("digits --threads 0", "--threads must"),
        ("digits --width 8", "--width is for data of your own"),
        ("digits --degradation down-2", "--degradation is for data of your own"),
        (". --degradation down-2", "--degradation is for --model restoration, got --model vdm"),
        (". --model restoration --degradation blur", "--degradation must be down-FACTOR"),
        (". --model restoration --degradation noise-0", "--degradation must be down-FACTOR"),
        ("digits --device gpu", "device must be"),
        (". --width 0", "--width must"),
        (". --model diffusevae --data x", "--data must not"),
        ("no-such-thing", "no preset, file or folder 'no-such-thing'; the presets are digits, "),
        ("no-such-thing --resume", "runs/ holds no run"),
    ],
)
def test_values_out_of_range_name_the_flag(run, arguments, words):
    code, out, err = run("train", *arguments.split())
    assert (code, out) == (2, "")
    assert words in err


def test_options_of_the_command_have_no_field_twice():
    groups = [TrainOptions, *(type(getattr(TrainOptions(), name)) for name in ("training", "images", "keeping"))]
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))
    assert set(names) >= FIELDS
