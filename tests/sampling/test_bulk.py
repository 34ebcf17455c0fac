"""Samples in a folder: the images of one call bit for bit, resumed after kills, in shards, read back as a data set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import launch
from sources import ROOT
from tiny import small, small_restoration, small_vae

import fastdiff
from fastdiff.data import load_dataset
from fastdiff.diffusion import DDIM
from fastdiff.io.files import WriteError
from fastdiff.kernels import InvalidTypeError, InvalidValueError
from fastdiff.models import Guidance, Latents
from fastdiff.sampling import SampleFolderError, fit_mixture, sample_to_folder

ASKED = {"steps": 2, "seed": 3, "batch_size": 2}
KILLED = {"n": 10, "steps": 1, "seed": 4, "batch_size": 2, "piece": 4}


def pngs(path) -> dict[int, torch.Tensor]:
    """The images of a folder by index, [1, H, W]."""
    return {int(file.stem): torch.from_numpy(np.asarray(Image.open(file)).copy())[None] for file in path.glob("*.png")}


def arrays(path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The images [N, C, H, W] and labels of the pieces of a folder."""
    pieces = [np.load(file) for file in sorted(path.glob("*.npz"))]
    labels = [piece["arr_1"] for piece in pieces if "arr_1" in piece]
    images = np.concatenate([piece["arr_0"] for piece in pieces]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images), torch.from_numpy(np.concatenate(labels)) if labels else None


@pytest.fixture(scope="module")
def kept_model():
    return small()


@pytest.fixture(scope="module")
def seven() -> torch.Tensor:
    return fastdiff.sample(small(), 7, **ASKED)


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_the_images_are_those_of_one_call(tmp_path, seven, piece):
    """Bit for bit, since pieces consist of whole batches."""
    done = sample_to_folder(small(), tmp_path / "out", 7, piece=piece, **ASKED)
    assert (done.images, done.drawn, done.missing) == (7, 7, 0)
    found = pngs(tmp_path / "out")
    assert sorted(found) == list(range(7))
    assert torch.equal(torch.stack([found[i] for i in range(7)]), seven)
    assert (tmp_path / "out/000006.png").is_file()
    request = json.loads((tmp_path / "out/samples.json").read_text())["request"]
    assert request["piece"] == -(-piece // 2) * 2
    assert (request["first"], request["n"], request["seed"]) == (0, 7, 3)


def test_arrays_with_labels(tmp_path):
    model = small(num_classes=3)
    sample_to_folder(model, tmp_path / "out", 7, labels="all", piece=4, format="npz", guidance=2.0, **ASKED)
    images, labels = arrays(tmp_path / "out")
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(images, fastdiff.sample(model, 7, labels=labels, guidance=2.0, **ASKED))
    sample_to_folder(model, tmp_path / "one", 3, labels=2, format="npz", **ASKED)
    images, labels = arrays(tmp_path / "one")
    assert torch.equal(images, fastdiff.sample(model, 3, labels=2, **ASKED))
    sample_to_folder(model, tmp_path / "two", 3, first=4, labels=(2, 0, 1), format="npz", **ASKED)
    images, labels = arrays(tmp_path / "two")
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]  # of the images 4, 5, 6


def test_a_later_range_and_batch_invariance(tmp_path, seven):
    """first = 4 begins with a batch of the whole; any other range has the same bits if the engine is invariant."""
    sample_to_folder(small(), tmp_path / "later", 3, first=4, **ASKED)
    assert torch.equal(torch.stack([pngs(tmp_path / "later")[i] for i in (4, 5, 6)]), seven[4:])
    engine = fastdiff.Engine(small(), batch_invariant=3)
    whole = engine.sample(7, **ASKED)
    sample_to_folder(engine, tmp_path / "odd", 3, first=1, steps=2, seed=3, batch_size=5)
    assert torch.equal(torch.stack([pngs(tmp_path / "odd")[i] for i in (1, 2, 3)]), whole[1:4])


def test_shards_fill_one_folder(tmp_path, seven):
    """In any order; a call without a shard draws what is missing of them."""
    out = tmp_path / "out"
    done = [sample_to_folder(small(), out, 7, piece=2, shard=(k, 3), **ASKED) for k in (3, 1)]
    assert [(each.images, each.drawn, each.missing) for each in done] == [(2, 2, 5), (3, 3, 2)]
    assert sorted(pngs(out)) == [0, 1, 4, 5, 6]
    assert {file.name for file in out.glob("*.json")} == {"samples-3-of-3.json", "samples-1-of-3.json"}
    done = sample_to_folder(small(), out, 7, piece=2, **ASKED)
    assert (done.images, done.drawn, done.missing) == (7, 2, 0)
    assert torch.equal(torch.stack([pngs(out)[i] for i in range(7)]), seven)


def test_a_damaged_piece_is_drawn_again(tmp_path, seven):
    out = tmp_path / "out"
    sample_to_folder(small(), out, 7, piece=2, **ASKED)
    (out / "000002.png").unlink()
    (out / "000005.png").write_bytes(b"x")
    assert sample_to_folder(small(), out, 7, piece=2, **ASKED).drawn == 4
    assert torch.equal(torch.stack([pngs(out)[i] for i in range(7)]), seven)
    assert sample_to_folder(small(), out, 7, piece=2, **ASKED).drawn == 0


def test_a_lost_piece_of_another_shard_is_missing(tmp_path):
    out = tmp_path / "out"
    for k in (1, 2):
        sample_to_folder(small(), out, 7, piece=2, shard=(k, 2), **ASKED)
    (out / "000002.png").unlink()  # of the second shard
    assert sample_to_folder(small(), out, 7, piece=2, shard=(1, 2), **ASKED).missing == 2


def test_the_number_of_images_alone_differs(tmp_path):
    """Also where there are fewer than a batch."""
    sample_to_folder(small(), tmp_path / "out", 2, steps=2)
    with pytest.raises(SampleFolderError, match="another request: n is 2, expected 3; choose"):
        sample_to_folder(small(), tmp_path / "out", 3, steps=2)


def test_other_precision_is_another_request(tmp_path):
    sample_to_folder(small(), tmp_path / "out", 2, steps=2)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(SampleFolderError, match="autocast is None"):
        sample_to_folder(small(), tmp_path / "out", 2, steps=2)


@pytest.mark.parametrize("request_of_list", [[], 5, None])
def test_a_list_without_a_request(tmp_path, request_of_list):
    content = {"version": 1, "request": request_of_list, "pieces": []}
    (tmp_path / "samples.json").write_text(json.dumps(content))
    with pytest.raises(SampleFolderError, match=r"samples\.json is damaged; choose a new folder"):
        sample_to_folder(small(), tmp_path, 2, steps=2)


@pytest.mark.slow
def test_kills_lose_one_piece_at_most(tmp_path, kept_model):
    """Killed (SIGKILL) at a file operation: what is there is right, and the next call draws the rest.

    PNG files take 2 operations to begin, 6 for each piece of 4, and 4 for that of 2; ``.npz`` files 2, 4, 4 and 4.
    """
    operations, expected = (
        (0, 1, 2, 3, 5, 7, 8, 9, 13, 15, 17, 18),
        fastdiff.sample(small(), 10, steps=1, seed=4, batch_size=2),
    )
    path = os.pathsep.join(map(str, [ROOT, ROOT / "kernels", ROOT / "tests"]))
    script = [sys.executable, str(Path(__file__).parent / "kill_samples.py"), str(tmp_path), json.dumps(KILLED)]
    script += map(str, operations)
    subprocess.run(script, check=True, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    drawn = {"png": [], "npz": []}
    for at in operations:
        for format, numbers in drawn.items():
            out = tmp_path / str(at) / format
            for index, image in pngs(out).items():
                assert torch.equal(image, expected[index])
            numbers.append(sample_to_folder(kept_model, out, format=format, **KILLED).drawn)
            found = torch.stack([pngs(out)[i] for i in range(10)]) if format == "png" else arrays(out)[0]
            assert torch.equal(found, expected)
            kinds = {file.name for file in out.iterdir()} - {"samples.json"}
            assert len(kinds) == (10 if format == "png" else 3), kinds  # nothing is left behind
    assert drawn["png"] == [10, 10, 10, 10, 10, 10, 6, 6, 6, 2, 2, 0]
    assert drawn["npz"] == [10, 10, 10, 10, 10, 6, 6, 6, 2, 0, 0, 0]


def test_another_request_is_an_error_that_names_what_differs(tmp_path):
    model, out = small(num_classes=3), tmp_path / "out"
    sample_to_folder(model, out, 4, sampler=DDIM(eta=0.5), **ASKED)
    other = small(num_classes=3)
    with torch.no_grad():
        next(other.network.parameters()).view(-1)[0] += 1e-3
    for change, words in (
        ({"seed": 4}, "seed is 3, expected 4"),
        ({"steps": 3}, "steps is 2, expected 3"),
        ({"n": 5}, "n is 4, expected 5"),
        ({"model": other}, "model.crc32 is"),
        ({"sampler": DDIM(eta=0.4)}, "sampler.eta is 0.5, expected 0.4"),
        ({"sampler": "heun"}, "sampler.kind is DDIM, expected Heun"),
        ({"labels": "all"}, "labels is None, expected all"),
        ({"labels": 1, "guidance": Guidance(2.0, (0.2, 0.8))}, r"guidance is None, expected \[2.0, 0.2, 0.8\]"),
        ({"format": "npz"}, "format is png, expected npz"),
        ({"batch_size": 1}, "batch_size is 2, expected 1"),
        ({"model": fastdiff.Engine(model, batch_invariant=2)}, "batch_invariant is False, expected True"),
    ):
        settings = {"model": model, "n": 4, "sampler": DDIM(eta=0.5), **ASKED} | change
        with pytest.raises(SampleFolderError, match=words):
            sample_to_folder(settings.pop("model"), out, settings.pop("n"), **settings)
    assert sample_to_folder(model, out, 4, sampler=DDIM(eta=0.5), **ASKED).drawn == 0


@pytest.mark.parametrize("format", ["png", "npz"])
def test_a_full_disk(tmp_path, monkeypatch, seven, format):
    """An error that names the file; nothing is left behind, and the pieces before it stay."""
    out, replace = tmp_path / "out", os.replace

    def full(source, target):
        if Path(target).name in ("000003.png", "samples-000002-000003.npz"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match="No space left on device"):
        sample_to_folder(small(), out, 7, piece=2, format=format, **ASKED)
    assert not [file.name for file in out.iterdir() if file.name.startswith(".")]
    monkeypatch.setattr(os, "replace", replace)
    assert sample_to_folder(small(), out, 7, piece=2, format=format, **ASKED).drawn == 5
    found = arrays(out)[0] if format == "npz" else torch.stack([pngs(out)[i] for i in range(7)])
    assert torch.equal(found, seven)


def test_folders_that_hold_something_else(tmp_path):
    small().save(tmp_path / "model")
    with pytest.raises(SampleFolderError, match="new or empty folder"):
        sample_to_folder(small(), tmp_path / "model", 1, **ASKED)
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="file"):
        sample_to_folder(small(), tmp_path / "file", 1, **ASKED)
    out = tmp_path / "out"
    sample_to_folder(small(), out, 2, **ASKED)
    for content in (b"", b"{}", b"[]", (out / "samples.json").read_bytes().replace(b'"last": 1', b'"last": 2')):
        (out / "samples.json").write_bytes(content)
        with pytest.raises(SampleFolderError, match="is damaged"):
            sample_to_folder(small(), out, 2, **ASKED)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, "n must be"), ({"n": True}, "n must be"), ({"first": -1}, "first must be"),
        ({"piece": 0}, "piece must be"), ({"format": "jpg"}, "format must be one of png, npz"),
        ({"shard": (0, 2)}, "shard must be"), ({"shard": (3, 2)}, "shard must be"), ({"shard": 2}, "shard must be"),
        ({"labels": "all"}, "labels must be None for a vdm model"), ({"labels": 0}, "labels must be None"),
        ({"sampler": "rk4"}, "rk4"), ({"seed": -1}, "seed"), ({"model": small_restoration(), "steps": 2}, "cond"),
        ({"model": small(num_classes=3), "labels": 3}, "0 .. 2"),
        ({"model": small(num_classes=3), "labels": []}, "0 .. 2"),
        ({"model": small(num_classes=3), "labels": [0, "all"]}, "0 .. 2"), ({"labels": [0]}, "labels must be None"),
        ({"model": small(shape=(2, 8, 8))}, "1 or 3"),
    ],
)  # fmt: skip
def test_bad_arguments(tmp_path, options, words):
    settings = {"model": small(), "n": 2, "steps": 1} | options
    with pytest.raises((InvalidValueError, InvalidTypeError), match=words):
        sample_to_folder(settings.pop("model"), tmp_path / "out", settings.pop("n"), **settings)
    assert not (tmp_path / "out").exists()


def test_a_vae_with_a_mixture(tmp_path):
    pytest.importorskip("sklearn")
    model = small_vae(1)
    mixture = fit_mixture(model, torch.randint(17, (40, 1, 8, 8), dtype=torch.uint8), components=2)
    latents = Latents(temperature=0.7, mixture=mixture)
    sample_to_folder(model, tmp_path / "out", 5, latents=latents, batch_size=2, piece=2)
    expected = fastdiff.sample(model, 5, latents=latents, batch_size=2)
    assert torch.equal(torch.stack([pngs(tmp_path / "out")[i] for i in range(5)]), expected)
    other = Latents(temperature=0.8, mixture=mixture)
    with pytest.raises(SampleFolderError, match=r"latents.temperature is 0.7, expected 0.8"):
        sample_to_folder(model, tmp_path / "out", 5, latents=other, batch_size=2, piece=2)


def test_the_results_are_data_sets(tmp_path, seven):
    """A folder of PNG files; a folder of pieces, and a single .npz file, with their labels."""
    sample_to_folder(small(), tmp_path / "out", 7, piece=2, **ASKED)
    data = load_dataset(tmp_path / "out")
    images = torch.cat([data.train_images[:], data.test_images[:]])
    assert sorted(map(bytes, images.flatten(1).numpy())) == sorted(map(bytes, seven.flatten(1).numpy()))
    model = small(num_classes=3)
    sample_to_folder(model, tmp_path / "pieces", 7, labels="all", piece=2, format="npz", **ASKED)
    images, _ = arrays(tmp_path / "pieces")
    data = load_dataset(tmp_path / "pieces")
    assert (data.shape, data.levels, data.num_classes) == ((1, 8, 8), 256, 3)
    assert data.train_labels is not None and data.test_labels is not None  # noqa: PT018
    found = torch.cat([data.train_images[:], data.test_images[:]])
    labels = torch.cat([data.train_labels, data.test_labels])
    pairs = {(bytes(image.numpy()), i % 3) for i, image in enumerate(images)}
    assert {(bytes(image.numpy()), int(label)) for image, label in zip(found, labels, strict=True)} == pairs


@pytest.mark.slow
def test_two_processes_divide_the_pieces(tmp_path, monkeypatch, capsys, seven):
    monkeypatch.chdir(tmp_path)
    small().save("model")
    command = ["sample", "model", "-n", "7", "--steps", "2", "--seed", "3", "--batch-size", "2", "--piece", "2"]
    ended = launch(["-m", "fastdiff", *command, "--device", "cpu", "--out", "out/"], 2)
    assert [one.returncode for one in ended] == [0, 0], ended
    assert [one.stdout for one in ended] == ["wrote out/ (7 images)\n", ""]
    assert torch.equal(torch.stack([pngs(tmp_path / "out")[i] for i in range(7)]), seven)
    pieces = json.loads((tmp_path / "out/samples.json").read_text())["pieces"]
    assert [(piece["first"], piece["last"]) for piece in pieces] == [(0, 1), (2, 3), (4, 5), (6, 6)]
