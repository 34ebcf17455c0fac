"""Features by name, of images in memory and of images that are read when they are used; PSNR of pairs."""

import math
import sys
import types
import warnings

import pytest
import torch
from PIL import Image
from torch import nn

from fastdiff.data import load_dataset, open_images
from fastdiff.evaluation import (
    FeaturesError,
    compare_features,
    fd,
    fd_embedded,
    image_features,
    load_features,
    paired_psnr,
    psnr,
)
from fastdiff.io.pictures import to_uint8
from fastdiff.kernels import InvalidTypeError, InvalidValueError

RANDOM = torch.randint(256, (11, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def means(images: torch.Tensor) -> torch.Tensor:
    return images.double().mean((2, 3))


@pytest.fixture
def folder(tmp_path):
    """RANDOM as PNG files whose names are in another order than their numbers as text: 0, 1, 10, 2, ..."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(RANDOM):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"images/{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_images_of_a_folder_are_read_batch_by_batch(folder, batch_size):
    sizes = []

    def features(images):
        sizes.append(len(images))
        return means(images)

    opened = open_images(folder)
    found = image_features(opened.images, features, batch_size)
    order = sorted(range(11), key=lambda i: f"{i}.png")
    assert torch.equal(found, means(RANDOM[order]))
    assert max(sizes) == min(batch_size, 11)
    assert sum(sizes) == 11
    result = fd(opened.images, RANDOM.flip(2) // 2, means)
    assert result == compare_features(found, means(RANDOM.flip(2) // 2))


@pytest.mark.parametrize(("name", "every", "size"), [("digits", 1, "8×8"), ("letters", 60, "28×28")])
def test_the_features_of_images_of_256_levels(name, every, size):
    """Scaled to 0 .. 255 and back, a level is itself: the distance is FD-digits or FD-letters."""
    data = load_dataset(name)
    images, reference, network = data.test_images[::every], data.train_images[::every], load_features(name)
    scaled = to_uint8(images, data.levels)
    found = compare_features(
        image_features(scaled, network, 100), image_features(reference, network, 100, levels=data.levels)
    )
    expected = fd_embedded(images, name, reference)
    assert (found.value, found.standard_error) == pytest.approx((expected.value, expected.standard_error), rel=1e-5)
    with pytest.raises(InvalidValueError, match=f"features {name} are for grey images of {size}"):
        network(RANDOM)


def test_a_function_of_the_users_own(tmp_path, monkeypatch):
    """Found in the working directory; the path of imports is what it was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_features.py").write_text(
        "def mean(images):\n    return images.float().mean((2, 3))\n\nnumber = 3\n"
    )
    before = list(sys.path)
    network = load_features("own_features:mean")
    assert torch.equal(network(RANDOM), RANDOM.float().mean((2, 3)))
    for name, words in (("own_features:no", "no"), ("own_features:number", "callable"), ("not_there:f", "not_there")):
        with pytest.raises(FeaturesError, match=words):
            load_features(name)
    for name, words in (
        ("math:sin", r"features math:sin failed on a batch uint8 \(11, 3, 6, 5\): "),
        ("builtins:repr", "features must return a tensor"),
    ):
        with pytest.raises((FeaturesError, InvalidTypeError), match=words):
            image_features(RANDOM, load_features(name))
    assert sys.path == before
    del sys.modules["own_features"]


class Mean(nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = images.float().mean([2, 3])
        return means if return_features else means.sum(1, keepdim=True)


def test_a_torchscript_file(tmp_path):
    """One with ``return_features``, as StyleGAN's file of Inception has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Mean()).save(tmp_path / "mean.pt")
    network = load_features(str(tmp_path / "mean.pt"))
    assert torch.equal(image_features(RANDOM, network), RANDOM.float().mean((2, 3)))
    (tmp_path / "bad.pt").write_bytes(b"no")
    for name in ("bad.pt", "missing.pt"):
        with pytest.raises(FeaturesError, match=name):
            load_features(str(tmp_path / name))


def test_inception_from_torchmetrics(tmp_path, monkeypatch):
    """A stand-in takes the place of torchmetrics' network, which needs weights: what it is given, and channels."""
    made = []

    class StandIn(nn.Module):
        def __init__(self, name, features, path, antialias):
            super().__init__()
            made.append((name, features, path, antialias))

        def forward(self, images):
            assert images.dtype == torch.uint8
            return images.double().mean((2, 3)).repeat(1, 2)

    stand_in = types.ModuleType("torchmetrics.image.fid")
    stand_in.NoTrainInceptionV3 = StandIn  # pyright: ignore
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", stand_in)
    (tmp_path / "weights.pth").write_bytes(b"")
    network = load_features("inception", tmp_path / "weights.pth")
    assert made == [("inception-v3-compat", ["2048"], str(tmp_path / "weights.pth"), False)]
    grey = RANDOM[:, :1]
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))
    assert network(RANDOM).dtype == torch.float32
    with pytest.raises(InvalidValueError, match="channels"):
        network(RANDOM[:, :2])


def test_inception_that_is_not_there(tmp_path, monkeypatch):
    """Nothing is downloaded; the message says where the weights belong."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(
        FeaturesError, match=r"hub/checkpoints/weights-inception-2015-12-05-6726825d\.pth, and there is"
    ):
        load_features("inception")
    with pytest.raises(FeaturesError, match=r"nothing\.pth"):
        load_features("inception", "nothing.pth")
    (tmp_path / "weights.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(FeaturesError, match="torch-fidelity"):
        load_features("inception", tmp_path / "weights.pth")


def test_psnr_of_pairs(folder):
    """In closed form: a difference of d everywhere gives 20 log10(255 / d)."""
    other = RANDOM // 2
    found = paired_psnr(RANDOM, other, batch_size=4)
    values = psnr(RANDOM, other, 256)
    assert found.value == pytest.approx(float(values.mean()), rel=1e-14)
    assert found.standard_error == pytest.approx(float(values.std()) / math.sqrt(11), rel=1e-14)
    assert paired_psnr(other, other + 3).value == pytest.approx(20 * math.log10(255 / 3), rel=1e-12)
    equal = paired_psnr(RANDOM, torch.cat([RANDOM[:2], other[2:]]))
    assert (equal.value, equal.images, equal.equal) == (math.inf, 11, 2)
    names = open_images(folder).names
    assert names is not None
    assert paired_psnr(open_images(folder).images, RANDOM[[int(name) for name in names]]).equal == 11


def test_psnr_of_pairs_with_other_levels():
    """17 levels in memory are those of their file with 256; in closed form where all pixels differ by the same."""
    few = RANDOM % 17
    many = torch.round(few.double() * 255 / 16).to(torch.uint8)
    assert paired_psnr(few, many, 17, other_levels=256).equal == len(few)
    assert paired_psnr(many, few, 256, 4, other_levels=17).equal == len(few)
    shifted = torch.where(many > 127, many - 3, many + 3)
    for found in (paired_psnr(few, shifted, 17, 4, 256), paired_psnr(shifted, few, other_levels=17)):
        assert found.value == pytest.approx(20 * math.log10(255 / 3), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: paired_psnr(RANDOM, RANDOM, 17, other_levels=1), InvalidValueError, "other_levels"),
        (lambda: paired_psnr(RANDOM, RANDOM.float(), 17, other_levels=256), InvalidTypeError, "uint8"),
        (lambda: load_features("vgg"), InvalidValueError, "digits, letters, inception, module:function"),
        (lambda: load_features("digits", "x"), InvalidValueError, "weights must be None"),
        (lambda: image_features(RANDOM[:1], means), InvalidValueError, "N >= 2"),
        (lambda: image_features(RANDOM.float(), means), InvalidTypeError, "uint8"),
        (lambda: image_features(RANDOM, means, 0), InvalidValueError, "batch_size"),
        (lambda: image_features(RANDOM, lambda x: x), InvalidValueError, "features must return shape"),
        (lambda: image_features(RANDOM, lambda x: x.flatten(1)), InvalidTypeError, "floating-point"),
        (lambda: paired_psnr(RANDOM, RANDOM[:3]), InvalidValueError, "paired_psnr"),
        (lambda: paired_psnr(RANDOM[:0], RANDOM[:0]), InvalidValueError, "N >= 1"),
    ],
)
def test_wrong_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_images_are_not_kept(folder):
    """A source reads every image once, and no batch is held after its features."""
    opened, read = open_images(folder).images, []
    original = type(opened).read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(opened), "read", lambda self, i, place=None: read.append(i) or original(self, i, place))
        image_features(opened, means, 3)
    assert read == list(range(11))
