"""What the page of `fastdiff demo` computes: the models, the pictures, and the calls that draw them again."""

import base64
import io
import math
import re
import shlex
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sources import ROOT
from tiny import small, small_ddpm, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff.cli.labels import parse_label
from fastdiff.cli.main import main
from fastdiff.demo.calls import _flag_of_label, python_call, shell_call
from fastdiff.demo.drawing import ALL, Choice, _spread, draw
from fastdiff.demo.markup import sheet, strip
from fastdiff.demo.models import SLIDERS, Subject, kept, model_names, ordered_axes
from fastdiff.io.pictures import image_grid
from fastdiff.kernels import FastdiffError, InvalidValueError

DIGITS = {"train": {"data": "digits"}}
NAMES = ("two", "0", "all", "-x", "4 of", "5")
MODELS = {
    "vdm": lambda: small(num_classes=6, class_names=NAMES),
    "chain": small_ddpm,
    "shallow": lambda: small_vae(depth=1),
    "deep": small_vae,
    "refined": small_diffusevae,
    "restorer": small_restoration,
}
CHOICES = {
    "labelled": Choice("vdm", 6, calls=4, seed=3, label=4, guidance=2.5),
    "all classes": Choice("vdm", 7, "ancestral", "karras", calls=3, label=ALL),
    "two calls a step": Choice("vdm", 2, "heun", "gamma", calls=5, seed=2**63),
    "ddpm": Choice("chain", 3, "ddim", calls=4),
    "vae": Choice("shallow", 5, seed=1),
    "shifted vae": Choice("shallow", 5, seed=1, shifts=((3, 1.5), (0, -0.3), (1, 0.0))),
    "shifted hvae": Choice("deep", 2, shifts=((2, 0.7),)),
    "shifted diffusevae": Choice("refined", 3, calls=3, seed=4, shifts=((1, -2.0),)),
    "mixture": Choice("diffusevae-letters", 2, calls=2, seed=3, mixture="diffusevae-letters"),
    "shifted mixture": Choice("diffusevae-letters", 2, calls=2, shifts=((5, 1.0),), mixture="diffusevae-letters"),
    "the model's spacing": Choice("digits", 2, "unipc", "model", calls=5),
    "restoration": Choice("restorer", 3, "ddim", "quadratic", calls=3, seed=5),
}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Save a small model in the working directory, and load it as the page does."""
    monkeypatch.chdir(tmp_path)

    def subject(name: str) -> Subject:
        if name in MODELS:
            MODELS[name]().save(tmp_path / name, DIGITS)
        return Subject(name, "cpu")

    return subject


def program(shell: str) -> str:
    """The Python program of a shell command."""
    found = re.fullmatch(r"python - <<'EOF'\n(.*)EOF\n", shell, re.DOTALL)
    assert found, shell
    return found[1]


@pytest.mark.parametrize("name", CHOICES)
def test_the_copied_calls_draw_the_same_images(saved, name):
    """Bit for bit: the Python call, and the shell command as the command line or the program runs it."""
    choice = CHOICES[name]
    subject = saved(choice.model)
    images, values = draw(subject, choice).images, {}
    exec(python_call(subject, choice), values)
    assert values["images"].dtype == torch.uint8
    assert torch.equal(values["images"], images)
    shell = shell_call(subject, choice)
    if name.startswith(("shifted", "restoration")):
        exec(program(shell), {})
        assert np.array_equal(np.asarray(Image.open("samples.png")), np.asarray(image_grid(images)))
    else:
        words = shlex.split(shell.replace("samples.png", "samples.npz"))
        assert words.pop(0) == "fastdiff"
        assert main(words) == 0
        assert np.array_equal(np.load("samples.npz")["arr_0"].transpose(0, 3, 1, 2), images.numpy())


def test_mixtures_and_spacings_that_are_offered(saved):
    assert saved("diffusevae-letters").mixtures == ["diffusevae-letters"]
    assert saved("shallow").mixtures == saved("vdm").mixtures == []
    assert "model" in saved("digits").spacings
    assert "model" not in saved("vdm").spacings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labelled", "shifted vae"])
def test_a_shell_runs_the_command(saved, tmp_path, name):
    choice = CHOICES[name]
    subject = saved(choice.model)
    script = f'fastdiff() {{ python -m fastdiff "$@"; }}\npython() {{ {sys.executable} "$@"; }}\n'
    subprocess.run(["bash", "-ec", script + shell_call(subject, choice)], check=True, cwd=tmp_path, timeout=120)
    assert (tmp_path / "samples.png").exists()


def test_the_frames_are_those_of_the_sampler(saved):
    """z_t and x_hat of `fastdiff.sample`'s callback, and the calls that it counts."""
    subject, seen = saved("vdm"), {}
    choice = Choice("vdm", 3, "ddim", calls=12, seed=7, label=1, guidance=2.0)
    drawn = draw(subject, choice)

    def see(step, nfe, z_t, x_hat):
        seen[nfe] = [((each + 1) * 8.5 - 0.5).clamp(0, 16).round() * (255 / 16) for each in (z_t, x_hat)]

    fastdiff.sample("vdm", 3, steps=12, sampler="ddim", seed=7, labels=1, guidance=2.0, callback=see)
    assert drawn.calls == 24
    assert [frame.calls for frame in drawn.frames][:: len(drawn.frames) - 1] == [2, 24]
    for frame in drawn.frames:
        for found, expected in zip((frame.z_t, frame.x_hat), seen[frame.calls], strict=True):
            assert torch.equal(found, expected.round().to(torch.uint8))


def test_frames_are_spread_over_the_calls():
    for count in range(40):
        calls = list(range(1, count + 1))
        kept_calls = _spread(calls)
        assert len(kept_calls) == min(count, 10)
        assert kept_calls == sorted(set(kept_calls))
        assert kept_calls[:1] + kept_calls[-1:] == calls[:1] + calls[-1:]


def test_what_can_be_chosen_of_a_model(saved):
    vdm, vae, restoration = saved("vdm"), saved("shallow"), saved("restorer")
    assert (vdm.classes, vdm.has_latent, vdm.axes, vdm.needs_cond) == (NAMES, False, [], False)
    assert (vae.classes, vae.samplers, vae.has_latent, vae.needs_cond) == ((), [], True, False)
    assert (restoration.has_latent, restoration.needs_cond) == (False, True)
    assert vdm.spacings == ["time", "gamma", "quadratic", "karras"]
    assert sorted(axis.coordinate for axis in vae.axes) == [0, 1, 2, 3, 4]


def test_axes_are_ordered_by_their_information():
    """Against ½ ln(1 + Var mu / E s²) in plain Python; a coordinate whose means are constant is last."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(200, 8, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 1.5, 8)
    mean[:, 5] = 0.3
    logvar = torch.randn(200, 8, generator=generator, dtype=torch.float64) * 0.2 - 2.0
    axes = ordered_axes(mean, logvar)

    def moments(k):
        values = mean[:, k].tolist()
        middle = sum(values) / 200
        return sum((value - middle) ** 2 for value in values) / 200, sum(map(math.exp, logvar[:, k].tolist())) / 200

    nats = [0.5 * math.log1p(spread / own) for spread, own in map(moments, range(8))]
    assert [axis.coordinate for axis in axes] == sorted(range(8), key=lambda k: -nats[k])[:SLIDERS]
    for axis in axes:
        assert axis.limit == round(3 * math.sqrt(sum(moments(axis.coordinate))), 1)


def test_axes_without_data_are_the_first_coordinates(tmp_path):
    small_vae(depth=1).save(tmp_path / "vae", {"train": {"data": str(tmp_path / "gone")}})
    axes = Subject(str(tmp_path / "vae"), "cpu").axes
    assert [axis.coordinate for axis in axes] == [0, 1, 2, 3, 4]


def test_models_that_are_offered(tmp_path, monkeypatch):
    """The embedded ones, complete runs, and what the command line names, each once."""
    monkeypatch.chdir(tmp_path)
    assert {"digits", "letters"} <= set(model_names())
    small_vae().save(tmp_path / "runs" / "done")
    small_vae().save(tmp_path / "runs" / "halfway" / "step-00000010")
    (tmp_path / "runs" / "empty").mkdir()
    assert model_names()[-2:] == ["runs/done", "runs/halfway"]
    names = model_names("runs/halfway")
    assert names[0] == "runs/halfway"
    assert len(names) == len(set(names)) == len(model_names())
    assert set(model_names("elsewhere")) - set(names) == {"elsewhere"}


def test_the_last_models_are_kept():
    loads = []
    subject_of = kept(lambda name: loads.append(name) or name, most=2)
    assert [subject_of(name) for name in "aabacab"] == list("aabacab")
    assert loads == list("abcb")


def test_every_class_has_a_flag(saved):
    """Also those whose name is a number, an option or `all`."""
    subject = saved("vdm")
    for label in range(len(NAMES)):
        text = _flag_of_label(subject, label)
        assert text != ALL
        assert not text.startswith("-")
        assert parse_label(text, subject.model.config) == label


def test_wrong_choices_are_errors(saved):
    subject = saved("vdm")
    for choice in (Choice("vdm", 65), Choice("vdm", 0), Choice("vdm", label=6), Choice("vdm", seed=-1)):
        with pytest.raises(FastdiffError):
            draw(subject, choice)
    with pytest.raises(InvalidValueError, match=r"n must be in 1 \.\. 64, got 65"):
        draw(subject, Choice("vdm", 65))


def decoded(markup: str) -> list[np.ndarray]:
    """The images of an HTML text."""
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', markup)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]


def test_the_pictures_in_the_page_are_the_pixels(saved):
    """Not enlarged: the browser does it, at a whole factor."""
    subject = saved("restorer")
    drawn = draw(subject, Choice("restorer", 4, calls=3))
    text = sheet(drawn, 2)
    assert np.array_equal(np.stack(decoded(text)), drawn.images[:, 0].numpy())
    assert re.findall(r'data-index="(\d)"( class="chosen")?', text) == [
        ("0", ""), ("1", ""), ("2", ' class="chosen"'), ("3", ""),
    ]  # fmt: skip
    assert set(re.findall(r'width="(\d+)" height="(\d+)"', text)) == {("240", "240")}
    images = decoded(strip(drawn, 2))
    assert len(images) == 1 + 2 * 3
    assert np.array_equal(images[0], drawn.cond[2, 0].numpy())
    assert np.array_equal(images[1], drawn.frames[0].z_t[2, 0].numpy())
    assert np.array_equal(images[-1], drawn.frames[-1].x_hat[2, 0].numpy())


def test_a_vae_has_no_strip(saved):
    assert strip(draw(saved("shallow"), Choice("shallow", 2)), 0) == ""


# ------------------------------------------------------------------------------------------------ the command


def test_without_nicegui_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    monkeypatch.delitem(sys.modules, "fastdiff.demo.page", raising=False)
    assert main(["demo", "--port", "0"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "fastdiff: error: nicegui must be installed for the page: pip install 'fastdiff-triton[demo]'"
    )
    assert err.count("\n") == 1


def test_a_port_that_is_in_use_or_none(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    assert f"--port must be free on 127.0.0.1, got {port}: Address already in use" in capsys.readouterr().err
    assert main(["demo", "--port", "65536"]) == 2
    assert "--port must be in 0 .. 65535, got 65536" in capsys.readouterr().err


def test_only_the_page_imports_nicegui():
    found = {path.name for path in (ROOT / "fastdiff").rglob("*.py") if "nicegui import" in path.read_text()}
    assert found == {"page.py"}
