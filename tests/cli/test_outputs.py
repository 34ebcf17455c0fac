"""What ``sample`` writes, and how ``fd`` compares it: folders, arrays, pictures, pairs, features; and wrong flags."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import small, small_vae

import fastdiff
from fastdiff.cli.outputs import Output, output_of
from fastdiff.data import digits
from fastdiff.evaluation import compare_features, fd, image_features, load_features, precision_recall
from fastdiff.io.pictures import to_pil, to_uint8
from fastdiff.kernels import InvalidValueError
from fastdiff.sampling import sample_to_folder


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("out", "format", "kind"),
    [
        (None, None, "picture"), ("x.png", None, "picture"), ("x.JPG", None, "picture"), ("x.npz", None, "npz"),
        ("x/", None, "folder"), ("there", None, "folder"), ("x", "png", "folder"), ("x.png/", None, "folder"),
        (None, "npz", "folder"), ("new/deep/", "npz", "folder"),
    ],
)  # fmt: skip
def test_what_a_path_means(tmp_path, monkeypatch, out, format, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    found = output_of(out, format, None, None)
    assert (found.kind, found.format) == (kind, format or "png")
    assert str(found.path) == (out or ("samples" if format else "samples.png")).rstrip("/")


def test_pieces_and_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = output_of(None, None, 20, "2/8")
    assert found == Output("folder", found.path, "png", 20, (2, 8))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x", None, None, None), "--out must be a picture"), (("x.txt", None, None, None), "--out must be a picture"),
        (("x.txt", "png", None, None), "--out must be a picture"), (("x.png", "png", None, None), "--format is for a"),
        (("x.npz", None, 10, None), "--piece is for a folder"),
        (("x.png", None, None, "1/2"), "--shard is for a folder"),
        (("x/", None, 0, None), "--piece must be"), (("x/", None, None, "0/2"), "--shard must be k/K"),
        (("x/", None, None, "2"), "--shard must be k/K"), (("no/x.npz", None, None, None), "folder that exists"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match=words):
        output_of(*arguments)


def test_a_folder_that_goes_on(run, tmp_path):
    small(num_classes=3).save("model")
    command = ["sample", "model", "-n", "6", "--steps", "2", "--label", "all", "--batch-size", "2", "--out", "out/"]
    code, out, err = run(*command, "--piece", "2", "--shard", "2/2")
    assert code == 0, err
    assert out == "wrote out/ (2 images of shard 2/2; 4 of 6 are missing)\n"
    code, out, err = run(*command, "--piece", "2")
    assert code == 0, err
    assert out == "wrote out/ (4 images; 2 were there)\n"
    expected = fastdiff.sample("model", 6, 2, labels=[0, 1, 2, 0, 1, 2], batch_size=2)
    for i, image in enumerate(expected):
        with Image.open(tmp_path / f"out/{i:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture), image[0])
    code, _, err = run(*command, "--piece", "2", "--seed", "1")
    assert code == 2
    assert "seed is 0, expected 1" in err


def test_one_file_of_arrays(run, tmp_path):
    small(num_classes=3).save("model")
    for label, expected in (("all", [0, 1, 2, 0]), ("2", [2] * 4), (None, None)):
        flags = [] if label is None else ["--label", label]
        code, out, err = run("sample", "model", "-n", "4", "--steps", "2", "--out", "x.npz", "--overwrite", *flags)
        assert code == 0, err
        assert out == "wrote x.npz (4 images)\n"
        with np.load(tmp_path / "x.npz") as found:
            images = fastdiff.sample("model", 4, 2, labels=expected)
            assert np.array_equal(found["arr_0"], images.permute(0, 2, 3, 1))
            assert (found["arr_1"].tolist() if "arr_1" in found else None) == expected


def test_folders_and_arrays_are_compared(run):
    """A folder of PNG with a folder of pieces and a file; the figures are those of the API."""
    model = small()
    one, two = (fastdiff.sample(model, 12, 2, seed=seed) for seed in (0, 1))
    sample_to_folder(model, "one", 12, steps=2)
    sample_to_folder(model, "two", 12, steps=2, seed=1, format="npz", piece=5, batch_size=5)
    np.savez("two.npz", two.permute(0, 2, 3, 1).numpy())
    network = load_features("digits")
    features = [image_features(images, network) for images in (one, two)]
    expected, shares = compare_features(*features), precision_recall(*features)
    for arguments in (("one", "two"), ("one/", "two.npz"), ("one", "--reference", "two.npz")):
        code, out, err = run("fd", *arguments, "--json")
        assert code == 0, err
        (row,) = rows(out)
        assert (row["n"], row["reference"], row["k"]) == (12, 12, 3)
        assert (row["fd"], row["se"]) == pytest.approx((expected.value, expected.standard_error), rel=1e-4)
        assert (row["precision"], row["recall"]) == (shares.precision, shares.recall)
    code, out, err = run("fd", "one", "two", "--no-precision-recall")
    assert code == 0, err
    title, head, line = out.splitlines()
    assert title == "one: FD-digits against two, n = 12; compare only equal n"
    assert "precision" not in head
    assert line.split() == ["one", "12", f"{expected.value:.3f}", f"{expected.standard_error:.3f}"]


def test_a_model_against_a_folder_with_features_of_ones_own(run, tmp_path):
    small_vae(1).save("one")
    (tmp_path / "own.py").write_text("def pixels(images):\n    return images.flatten(1)[:, 20:28].double() / 255\n")
    reference = to_uint8(digits().test_images[:40], 17)
    np.savez("digits.npz", reference.permute(0, 2, 3, 1).numpy())
    code, out, err = run("fd", "one", "digits.npz", "--features", "own:pixels", "--n", "30", "--json")
    assert code == 0, err
    (row,) = rows(out)
    expected = fd(fastdiff.sample("one", 30), reference, lambda images: images.flatten(1)[:, 20:28].double() / 255)
    assert (row["sampler"], row["steps"], row["n"]) == ("vae", None, 30)
    assert row["fd"] == pytest.approx(expected.value, rel=1e-9)
    code, out, err = run("fd", "one", "digits.npz", "--features", "own:pixels", "--n", "30", "--size", "12")
    assert code == 0, err
    assert out.startswith("one: FD against digits.npz, n = 40")
    code, out, err = run("fd", "one", "--features", "own:pixels", "--n", "10")  # against what it was trained on
    assert code == 0, err
    assert "FD against the training images of digits, n = 1500" in out


def test_pairs(run, tmp_path):
    images = torch.randint(250, (3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for folder, shift in (("one", 0), ("two", 5)):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image + np.uint8(shift)).save(tmp_path / folder / f"{i}.png")
    code, out, err = run("fd", "one", "two", "--paired", "--features", "none")
    assert code == 0, err
    assert out == f"PSNR {20 * np.log10(255 / 5):.2f} ± 0.00 dB, the mean over 3 pairs\n"
    code, out, err = run("fd", "one", "one", "--paired", "--features", "none", "--json")
    assert code == 0, err
    (row,) = rows(out)
    assert (row["pairs"], row["equal"]) == (3, 3)
    data = digits()  # 17 levels: scaled to those of the file
    np.savez("digits.npz", to_uint8(data.train_images, 17).permute(0, 2, 3, 1).numpy())
    code, out, err = run("fd", "digits.npz", "digits", "--paired", "--features", "none", "--json")
    assert code == 0, err
    assert rows(out)[0]["equal"] == rows(out)[0]["pairs"] == len(data.train_images)


def test_photographs_of_a_class_called_model(run, tmp_path):
    for name in ("model", "unet"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k, image in enumerate(to_uint8(digits().test_images[:12], 17)):
            to_pil(image).save(f"photos/{name}/{k}.png")
    code, out, err = run("fd", "photos", "photos", "--k", "24", "--json")
    assert code == 0, err
    (row,) = rows(out)
    assert row["n"] == 24
    assert "precision" not in row
    assert "precision and recall are left out: --k 24 needs more than 24 images in both sets, got 24 and 24" in err
    assert run("fd", "photos", "photos", "--k", "23")[1].split().count("precision") == 1


WRONG = {
    "fd digits --features none": "--features none needs --paired",
    "fd digits --paired --features none": "--paired needs two folders",
    "fd a.npz b.npz --reference c": "--reference must be absent",
    "fd a.npz --k 0": "--k",
    "fd a.npz": "there is no file a.npz",
    "fd nothing": "images must be a model",
    "fd x.npz nothing": "there is no file nothing",
    "fd x.npz x.npz --features math:sin": "features math:sin failed on a batch uint8 (4, 1, 5, 5)",
    "fd x.npz --features own:f": "needs a second set",
    "fd x.npz y.npz": "--size and --color convert both",
    "fd x.npz x.npz": "--features must be set for images of the shape [1, 5, 5]",
    "fd x.npz x.npz --features digits": "grey images of 8×8",
    "fd x.npz model": "model holds a model",
    "fd x.npz x.npz --features inception --weights nowhere.pth": "nowhere.pth",
    "fd x.npz x.npz --features vgg": "features must be digits",
    "fd digits x.npz --n 4 --steps 1": "one shape",
    "sample digits --overwrite --out x/": "--overwrite is for a picture or an .npz file",
    "sample digits --out x": "--out must be a picture",
    "sample digits --out x.npz --shard 1/2": "--shard is for a folder",
    "sample model --label all -n 2 --steps 1": "labels must be None",
}


@pytest.mark.parametrize("command", WRONG)
def test_errors_are_one_line(run, command):
    small().save("model")
    np.savez("x.npz", np.zeros((4, 5, 5, 1), np.uint8))
    np.savez("y.npz", np.zeros((4, 5, 5, 3), np.uint8))
    code, _, err = run(*command.split())
    assert code == 2
    assert WRONG[command] in err
    assert len(err.splitlines()) == 1
