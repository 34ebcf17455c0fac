"""Model cards: read by huggingface_hub, with code that runs and the figures of the record; licenses; hub snapshots."""

import os
import re
import shutil
import socket

import pytest
import torch
from tiny import images, small, small_ddpm, small_diffusevae, small_restoration, small_vae
from torch import nn

import fastdiff
from fastdiff.io.folders import CARD
from fastdiff.kernels import InvalidTypeError, InvalidValueError, Noise
from fastdiff.models import VDM, Downsample
from fastdiff.models.card import model_card

KINDS = {
    "vdm": lambda: small("categorical", num_classes=3, augmented=True),
    "ddpm": lambda: small_ddpm(variance="learned"),
    "vae": lambda: small_vae(1),
    "hvae": lambda: small_vae(3),
    "diffusevae": lambda: small_diffusevae(2),
    "restoration": lambda: small_restoration(Downsample(), num_classes=2),
}
EVALUATION = {"T": None, "bpd": 1.67469, "se": 0.01512, "recon": 0.00008, "prior": 0.00025, "diffusion": 1.67436}
RECORD = {
    "train": {"data": "/home/someone/cats", "max_steps": 20000, "shift": 0.5, "images": {"size": 8}, "compile": None},
    "evaluation": EVALUATION,
    "origin": "a test",
}


def rows(card: str) -> dict[str, str]:
    """The entries of the tables with two columns."""
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", card, re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_of_every_kind(tmp_path, kind):
    """Its header as huggingface_hub reads it, its table against the model, and its code as it stands."""
    hub = pytest.importorskip("huggingface_hub")
    model = KINDS[kind]()
    path = model.save(tmp_path / "model", license="cc-by-nc-4.0")
    card = hub.ModelCard.load(path / CARD)
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "fastdiff"
    task = "image-to-image" if kind == "restoration" else "unconditional-image-generation"
    assert card.data.pipeline_tag == task
    assert {"fastdiff", model.kind} <= set(card.data.tags)
    assert ("class-conditional" in card.data.tags) == (model.num_classes > 0)
    assert ("diffusion" in card.data.tags) == hasattr(model, "gamma")
    found = rows(card.text)
    assert found["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert found["images"] == "1 × 8 × 8, 17 levels a pixel"
    assert found["classes"].startswith(str(model.num_classes) if model.num_classes else "none")
    assert found.get("T") == {"vdm": "infinite (continuous time)", "vae": None, "hvae": None}.get(kind, "12")
    assert found.get("prediction") == getattr(model.config, "prediction", None)
    assert "## Variational bound" not in card.text  # nothing was measured
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    before = os.getcwd()
    os.chdir(path)
    try:
        names = {}
        exec(code.replace("steps=50", "steps=3"), names)
    finally:
        os.chdir(before)
    assert names["images"].shape == (4, 1, 8, 8)
    assert names["images"].dtype == torch.uint8


def test_figures_and_settings_of_the_record():
    card = model_card(small(), RECORD)
    assert "| T | bits/dim | ± s.e. | recon | prior | diffusion |" in card
    assert "| infinite (continuous time) | 1.6747 | 0.0151 | 0.0001 | 0.0003 | 1.6744 |" in card
    assert "measures it on the held-out images of `cats`" in card
    assert "/home" not in card
    assert "- `max_steps`: 20000" in card
    assert "images`: {" not in card
    assert "compile" not in card
    assert "- origin: a test" in card
    assert "license" not in card
    best = model_card(small_ddpm(), {"step": 1200, "bpd": 3.25})
    assert "| bits/dim |\n| --- |\n| 3.2500 |" in best
    assert "at step 1200 of the training" in best
    assert "-log2 p(x | y)" in model_card(small_restoration(), {"bpd": 3.0})
    assert "| T |" not in model_card(small_vae(), {"evaluation": EVALUATION}).split("## Variational bound")[1]
    for broken in ({"bpd": float("nan")}, {"evaluation": 3}, {"train": "x"}, {"bpd": "low"}, {"evaluation": {}}):
        assert "## Variational bound" not in model_card(small(), broken)


def test_a_network_of_the_users_own():
    class Own(nn.Module):
        def forward(self, z, noise_level, labels=None):
            return z[:, :1]

    card = model_card(VDM(small().config, network=Own()))
    assert "fastdiff.load(folder, network=...)" in card
    assert "author's own" in card


# ------------------------------------------------------------------------------------------------ licenses and cards


@pytest.mark.parametrize("license", ["mit", "apache-2.0", "cc-by-nc-4.0", "gpl-3.0+", "openrail++", "bsd-3-clause"])
def test_licenses(license):
    assert model_card(small_vae(), license=license).startswith(f"---\nlicense: {license}\n")


@pytest.mark.parametrize("license", ["no", "on", "off", "yes", "true", "false", "null", "mit", "no-license"])
def test_licenses_that_are_words_of_yaml_stay_text(license):
    yaml = pytest.importorskip("yaml")
    header = model_card(small_vae(), license=license).split("---\n")[1]
    assert yaml.safe_load(header)["license"] == license


@pytest.mark.parametrize("record", [[1, 2], "origin", 3])
def test_a_record_is_a_dictionary(tmp_path, record):
    with pytest.raises(InvalidTypeError, match="record must be a dictionary of plain JSON types or None, got"):
        small_vae().save(tmp_path / "model", record=record)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "license", ["MIT", "", "m", "a b", "mit\nx: y", "mit: x", "-", "2.0", "ü", "x" * 70, 3, ["mit"]]
)
def test_what_is_no_license(tmp_path, license):
    with pytest.raises((InvalidValueError, InvalidTypeError), match="license must be an identifier such as 'mit'"):
        small_vae().save(tmp_path / "model", license=license)
    assert os.listdir(tmp_path) == []


def test_an_edited_card_stays_and_takes_no_license(tmp_path):
    model, other = small(seed=1), small(seed=2)
    path = model.save(tmp_path / "model", license="mit")
    assert "license: mit" in (path / CARD).read_text()
    model.save(path, license="apache-2.0")
    assert "license: apache-2.0" in (path / CARD).read_text()
    (path / CARD).write_text("# Mine\n")
    (path / "samples.png").write_bytes(b"png")
    other.save(path)
    assert (path / CARD).read_text() == "# Mine\n"
    assert (path / "samples.png").read_bytes() == b"png"
    with pytest.raises(InvalidValueError, match=r"license must be None where .*README\.md was edited"):
        model.save(path, license="mit")
    assert torch.equal(fastdiff.load(path).network.conv_in.weight, other.network.conv_in.weight)


def test_the_metadata_of_the_weights(tmp_path):
    """ "pt" is what other libraries ask for."""
    safetensors = pytest.importorskip("safetensors")
    path = small().save(tmp_path / "model")
    with safetensors.safe_open(path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "fastdiff": "1"}


# ------------------------------------------------------------------------------------------------ hub layouts


def test_a_downloaded_snapshot_loads(tmp_path):
    """As huggingface_hub keeps it in its cache, by links to blobs, and in a folder of the user's own with .cache."""
    model = small(num_classes=2)
    path = model.save(tmp_path / "model", license="mit")
    root = tmp_path / "hub" / "models--user--name"
    revision = root / "snapshots" / "0a1b2c"
    (root / "blobs").mkdir(parents=True)
    revision.mkdir(parents=True)
    for number, name in enumerate(os.listdir(path)):
        shutil.copy(path / name, root / "blobs" / str(number))
        (revision / name).symlink_to(f"../../blobs/{number}")
    (revision / ".gitattributes").symlink_to("../../blobs/missing")
    local = shutil.copytree(path, tmp_path / "local")
    (local / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (local / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    for folder in (revision, local):
        loaded = fastdiff.load(folder)
        x = images(2)
        assert torch.equal(loaded.vlb(x, Noise(1)).total, model.vlb(x, Noise(1)).total)


def test_no_network_is_used(tmp_path, monkeypatch):
    """To save, to load and to sample: a socket would be an error."""

    def no_socket(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(socket, "create_connection", no_socket)
    monkeypatch.setattr(socket, "getaddrinfo", no_socket)
    path = small().save(tmp_path / "model", license="mit")
    assert fastdiff.sample(path, 1, steps=1).shape == (1, 1, 8, 8)


def test_folders_of_earlier_versions_load(tmp_path):
    """Without a card, and without metadata: the embedded model is one."""
    source = os.path.join(os.path.dirname(fastdiff.__file__), "assets", "digits")
    assert CARD not in os.listdir(source)
    model = fastdiff.load("digits")
    again = fastdiff.load(model.save(tmp_path / "digits"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
