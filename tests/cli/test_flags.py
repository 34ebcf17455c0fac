"""Flags of all commands: what help shows, wrong usage, choices that are the library's, files that are there already."""

import dataclasses
import re
import sys
import typing
from pathlib import Path

import pytest
import torch
from tiny import small, small_vae

from fastdiff import diffusion, evaluation
from fastdiff.cli import choices, common_flags
from fastdiff.cli.main import COMMANDS, main
from fastdiff.cli.parsing import descriptions
from fastdiff.cli.sample import Sample
from fastdiff.data import decoding
from fastdiff.sampling import interpolation

COMPUTING = {
    "sample", "train", "evaluate", "interpolate", "reconstruct", "edit", "inpaint", "invert", "restore", "mixture",
    "fd", "demo",
}  # fmt: skip
SUBCOMMANDS = [*([name] for name in COMMANDS), ["convert", "vdm"], ["convert", "improved-diffusion"]]


def printed(capsys, *arguments: str) -> str:
    """What help or a wrong call prints, in one line and without boxes."""
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    assert raised.value.code == (0 if "--help" in arguments else 2)
    out, err = capsys.readouterr()
    return " ".join((out + err).replace("│", " ").split())


def test_choices_are_those_of_the_library():
    assert tuple(diffusion.SAMPLERS) == choices.SAMPLERS
    assert (*diffusion.SPACINGS, diffusion.samplers.MODEL_SPACING, *diffusion.spacings.CHAIN_SPACINGS) == (
        choices.SPACINGS
    )
    assert diffusion.VARIANCES == choices.VARIANCES
    assert evaluation.DEQUANTIZATIONS == choices.DEQUANTIZATIONS
    assert evaluation.DIVERGENCES == choices.DIVERGENCES
    assert tuple(interpolation.VARIED) == choices.VARIED
    assert set(choices.COLORS) == set(decoding.COLORS)


@pytest.mark.parametrize("command", SUBCOMMANDS, ids=" ".join)
def test_help_shows_no_noise(capsys, command):
    shown = printed(capsys, *command, "--help")
    assert "None" not in shown
    assert "(default: False)" not in shown or command[-1] == "improved-diffusion"  # whose flags have values
    assert "STR | " not in shown
    assert len(command) > 1 or f"usage: fastdiff {command[0]} " in shown
    switches = set(re.findall(r"--no-([a-z-]+)", shown)) - {"threads"}
    assert switches <= {
        "caption", "precision-recall", "pictures", "progress",  # on by default
        "stratified", "compile", "classes", "skip-damaged",  # as a preset or a run says
    }, switches  # fmt: skip
    assert ("--device" in shown, "--threads" in shown) == 2 * (command[0] in COMPUTING,)


def test_every_flag_is_described():
    for kind in COMMANDS.values():
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            helped = any(getattr(extra, "help", None) for extra in typing.get_args(hints[field.name])[1:])
            assert helped or descriptions(kind).get(field.name) or field.name == "source", (kind, field.name)


def test_help_of_all_commands(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert re.findall(r"^  (\w+) +\S", out, re.MULTILINE) == list(COMMANDS)
    assert all(len(line) <= 100 for line in out.splitlines())
    assert run("-h")[1] == out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sample --n many", ["--n", "'many'", "fastdiff sample --help"]),
        ("sample --sampler rk4", ["--sampler", "'rk4'", "'unipc'", "fastdiff sample --help"]),
        ("sample --spacing cosine", ["--spacing", "'karras'"]),
        ("sample --variance small", ["--variance", "'fixed_small'"]),
        ("sample --format gif", ["--format", "'png'"]),
        ("sample --nonsense", ["--nonsense", "fastdiff sample --help"]),
        ("sample --samplr ddim", ["--samplr", "Perhaps you meant", "--sampler"]),
        ("sample --no-brownian", ["--no-brownian"]),
        ("sample --betas 1", ["--betas", "2 values", "fastdiff sample --help"]),
        ("fd --betas 1 x", ["--betas", "'x'", "FIRST LAST"]),
        ("sample digits letters", ["letters", "fastdiff sample --help"]),
        ("evaluate --ode 1 --dequantization none", ["'truncated-normal'", "fastdiff evaluate --help"]),
        ("evaluate --ode 1 --divergence trace", ["'hutchinson'"]),
        ("fd --sampler ddim,rk4", ["ancestral, ddim", "'rk4'", "fastdiff fd --help"]),
        ("fd --color blue", ["'grey', 'rgb'"]),
        ("interpolate --vary style", ["'latent', 'noise', 'class'"]),
        ("convert vdm", ["FILE", "fastdiff convert vdm --help"]),
        ("check", ["DATA", "fastdiff check --help"]),
    ],
)
def test_wrong_usage_names_the_choices_and_the_help_of_the_command(capsys, arguments, words):
    shown = printed(capsys, *arguments.split())
    assert all(word in shown for word in words), shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("smaple digits", "there is no command 'smaple', did you mean sample?; see fastdiff --help"),
        ("quaternion", "there is no command 'quaternion'; see fastdiff --help"),
        ("", "a command must follow"),
        ("sample digts", "got 'digts', did you mean digits?"),
        ("sample my-rnu", "did you mean my-run?"),
        ("sample runs/my-rnu", "did you mean runs/my-run?"),
        (
            "sample vae --mixture dig",
            "got 'dig'; see fastdiff sample --help\n",
        ),  # no model's name, like vae
        ("interpolate digits --vary class", "--vary must be 'noise' for a vdm model, got 'class'; see"),
        ("evaluate leters", "did you mean letters?"),
        ("fd digist", "did you mean digits?"),
        ("train vae-digist", "did you mean vae-digits?"),
        ("info nothing-like-it", "got 'nothing-like-it'\n"),
        ("sample digits --steps 0", "--steps must be an integer >= 1, got 0; see fastdiff sample --help"),
        ("sample digits --sampler ddim --eta 2", "--eta must"),
        ("sample digits --threads 0", "--threads must be an integer >= 1, got 0; see fastdiff sample --help"),
        ("edit digits digits --device gpu", "--device must be"),
        ("fd digits --threads -1", "--threads must"),
    ],
)
def test_errors_name_what_may_be_meant(run, tmp_path, arguments, words):
    (tmp_path / "runs/my-run").mkdir(parents=True)
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("sample nothing", "samples.png"), ("sample nothing --out x.npz", "x.npz"),
        ("interpolate nothing", "strips.png"),
        ("reconstruct nothing", "reconstructions.png"), ("edit nothing in", "edited.png"),
        ("inpaint nothing in --mask m.png", "inpainted.png"), ("restore nothing in", "restored.png"),
        ("invert nothing in", "latents.safetensors"), ("invert nothing in --back", "images.png"),
        ("mixture nothing", "mixture/mixture.json"), ("export nothing out", "out/manifest.json"),
        ("export nothing out", "out/model_index.json"), ("convert vdm nothing.npz out", "out/manifest.json"),
        ("edit nothing in --out there/", "there/x.png"),
    ],
)  # fmt: skip
def test_nothing_is_replaced_unasked(run, tmp_path, command, path):
    """The error comes before the model, which does not exist, is looked for; with --overwrite that is the error."""
    pytest.importorskip("sklearn")
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text("precious")
    code, _, err = run(*command.split())
    assert code == 2
    assert file.read_text() == "precious"
    assert ("--overwrite" in err, "nothing" in err) == (True, False), err
    assert "--out" in err or "OUT" in err
    code, _, err = run(*command.split(), "--overwrite")
    assert code == 2
    assert "nothing" in err
    assert file.read_text() == "precious"


def test_a_picture_is_replaced_on_request(run):
    small().save("model")
    sample = ["sample", "model", "-n", "1", "--steps", "1", "--out", "x.png"]
    assert run(*sample)[0] == 0
    with open("x.png", "rb") as file:
        before = file.read()
    assert run(*sample, "--seed", "1")[0] == 2
    with open("x.png", "rb") as file:
        assert file.read() == before
    assert run(*sample, "--seed", "1", "--overwrite")[0] == 0
    with open("x.png", "rb") as file:
        assert file.read() != before


def test_what_appears_during_the_work_is_not_replaced(run, monkeypatch):
    """Another command has written to the same path in the meantime."""
    small().save("model")
    parts = Sample._parts

    def meanwhile(command, model):
        for name in ("x.png", "x-1.png"):
            Path(name).write_text("precious")
        return parts(command, model)

    monkeypatch.setattr(Sample, "_parts", meanwhile)
    code, out, err = run("sample", "model", "-n", "1", "--steps", "1", "--out", "x.png")
    assert code == 0, err
    assert out == "wrote x-2.png (1 image)\n"
    assert [Path(name).read_text() for name in ("x.png", "x-1.png")] == ["precious", "precious"]


def test_captions_say_what_is_shown(run, monkeypatch):
    written = []
    monkeypatch.setattr("fastdiff.io.captions.captioned", lambda image, *texts: written.append(texts) or image)
    small(num_classes=3, class_names=("A", "B", "Q")).save("model")
    small_vae(1).save("one")
    steps = ["--steps", "2", "--overwrite"]
    for command in (
        ["sample", "model", "-n", "3", "--label", "all", "--sampler", "ddim", "--seed", "5", *steps],
        ["sample", "model", "-n", "2", "--label", "Q", "--guidance", "1.5", *steps],
        ["sample", "one", "-n", "2", "--overwrite"],
        ["sample", "one", "-n", "2", "--overwrite", "--no-caption"],
        ["interpolate", "model", "--vary", "noise", "--rows", "1", "--count", "2", *steps],
        ["edit", "model", "digits", "--n", "2", *steps],
        ["reconstruct", "one", "--n", "2"],
    ):
        code, _, err = run(*command)
        assert code == 0, (command, err)
    assert written == [
        ("model · ddim, 2 steps · seed 5 · all classes", ("A", "B", "Q")),
        ("model · ancestral, 2 steps · seed 0 · class Q · guidance 1.5", ()),
        ("one · seed 0", ()),
        ("model · ddim, 2 steps · seed 0 · x_T varies in each row", ()),
        ("model · ancestral, 2 steps · seed 0 · strength 0.5 · rows: images, results", ()),
        ("one · seed 0 · rows: images, reconstructions", ()),
    ]


def test_threads_are_set(run, monkeypatch):
    small().save("model")
    found = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    for command in (["sample", "model", "-n", "1", "--steps", "1"], ["interpolate", "model", "--vary", "style"]):
        try:
            run(*command, "--threads", "3")
        except SystemExit:
            assert command[0] == "interpolate"
    assert found == [3]


@pytest.mark.parametrize("watched", [True, False])
def test_progress_is_shown_on_a_terminal(run, monkeypatch, watched):
    """Bars that wait for some seconds are shown at once."""
    pytest.importorskip("sklearn")
    for module in ("batches", "features", "precision_recall", "psnr"):
        monkeypatch.setattr(sys.modules[f"fastdiff.evaluation.{module}"], "BAR_DELAY", 0.0)
    for module in ("sample", "evaluate", "fd", "mixture", "reconstruct", "edit"):
        monkeypatch.setattr(f"fastdiff.cli.{module}.is_watched", lambda: watched)
    small().save("model")
    small_vae(1).save("one")
    for command, title in (
        ("sample model -n 2 --steps 2", "sampling 2 images"), ("sample model -n 2 --steps 2 --out x/", "sampling to x"),
        ("evaluate model --draws 1 --T 2", "bound at T = 2"), ("fd model --n 20 --steps 1", "neighbours"),
        ("mixture one --components 1", "fitting 1 components"), ("edit model digits --n 1 --steps 2", "sampling"),
    ):  # fmt: skip
        code, _, err = run(*command.split())
        assert code == 0, (command, err)
        assert (title in err) == watched, (command, err)
        assert watched or err == ""


def test_a_terminal_is_what_stderr_is(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda answer=answer: answer, raising=False)
        assert common_flags.is_watched() is answer


def test_what_a_model_is(run):
    small(num_classes=3, class_names=("A", "B", "Q")).save(
        "model", record={"train": {"data": "digits", "seed": 3, "decay": None}, "origin": "here"}
    )
    code, out, err = run("info", "model")
    assert code == 0, err
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    parameters = sum(parameter.numel() for parameter in small(num_classes=3).parameters())
    assert rows["model"] == "vdm"
    assert rows["images"] == "1×8×8 with 17 levels"
    assert rows["classes"] == "A, B, Q"
    assert rows["parameters"] == f"{parameters:,}"
    assert rows["training"] == "data digits, seed 3"
    assert rows["record"] == "origin here"
    out = run("info", "digits")[1]
    assert "bpd 1.6747" in out
    assert "max_steps 20000" in out
