"""The embedded classifiers, and FD-digits and FD-letters of images that are held out, or that have gone wrong."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastdiff
from fastdiff.checkpoints import CheckpointError, embedded_names
from fastdiff.data import load_dataset
from fastdiff.evaluation import (
    CLASSIFIERS,
    Frechet,
    ImageClassifier,
    fd,
    fd_digits,
    fd_embedded,
    fd_letters,
    load_classifier,
)
from fastdiff.kernels import InvalidTypeError, InvalidValueError

load_once = cache(load_dataset)
both = pytest.mark.parametrize("data", CLASSIFIERS)


def shipped(data: str) -> Path:
    return Path(fastdiff.__file__).parent / "assets" / f"{data}-classifier.safetensors"


def held_out(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All held-out digits, or one held-out letter in three, which are of all families."""
    every = 1 if data == "digits" else 3
    return load_once(data).test_images[::every], load_once(data).test_labels[::every]


def noisy(images, sigma, levels, seed=0):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + sigma * noise).round().clamp(0, levels - 1).to(torch.uint8)


def blurred(images, size):
    return nn.functional.avg_pool2d(images.float(), size, stride=1, padding=size // 2).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("data", "parameters", "features", "least"), [("digits", 33178, 32, 0.993), ("letters", 123034, 64, 0.99)]
)
def test_the_shipped_classifiers(data, parameters, features, least):
    model, (images, labels) = load_classifier(data), held_out(data)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert shipped(data).stat().st_size < 4 * parameters + 4096
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model(images).shape == (len(images), features)
    assert float((model.logits(images).argmax(1) == labels).float().mean()) >= least
    train = load_once(data).train_images[:1500]
    assert (model.logits(train).argmax(1) == load_once(data).train_labels[:1500]).float().mean() >= least
    assert not any("classifier" in name for name in embedded_names())


@both
def test_held_out_images_and_images_gone_wrong(data):
    (images, labels), levels = held_out(data), load_once(data).levels
    generator = torch.Generator().manual_seed(1)
    good = fd_embedded(images, data)
    assert (good.images, good.reference) == (len(images), len(load_once(data).train_images))
    one = images[labels == 3]
    wrong = {
        "uniform": torch.randint(levels, images.shape, generator=generator, dtype=torch.uint8),
        "blurred": blurred(images, 3 if data == "digits" else 7),
        "shuffled pixels": images.flatten(2)[..., torch.randperm(images[0].numel(), generator=generator)].reshape(
            images.shape
        ),
        "upside down": images.flip(2),
        "one class": one.repeat(-(-len(images) // len(one)), 1, 1, 1)[: len(images)],
    }
    values = {name: fd_embedded(bad, data).value for name, bad in wrong.items()}
    assert min(values.values()) > 10 * good.value, (good, values)  # upside down, 12 and 33 times; the others 30 times


@both
def test_it_grows_with_noise(data):
    images, scale = held_out(data)[0], 1 if data == "digits" else 0.75
    levels = load_once(data).levels
    results = [fd_embedded(noisy(images, scale * sigma, levels), data) for sigma in (0, 1, 2, 3, 4, 6, 8)]
    values = [result.value for result in results]
    assert values == sorted(values)
    assert values[2] > values[0] + results[0].standard_error


def test_it_grows_with_blur_and_with_wrong_letters():
    images, labels = held_out("letters")
    values = [fd_letters(blurred(images, size)).value for size in (1, 3, 5, 7)]
    assert values == sorted(values)
    one = images[labels == 16].repeat(40, 1, 1, 1)
    mixed = [torch.cat([one[:count], images[count:]]) for count in (0, 40, 160, 640)]
    values = [fd_letters(each).value for each in mixed]
    assert values == sorted(values)
    without = fd_letters(images[labels < 18]).value  # S to Z are missing
    assert without > 2 * fd_letters(images[: int((labels < 18).sum())]).value


@both
def test_few_images_are_biased_upwards(data):
    """The same images, whole and in parts: the mean of the parts lies above."""
    images = held_out(data)[0]
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    parts = [fd_embedded(part, data).value for part in images.split(99)[: len(images) // 99]]
    assert sum(parts) / len(parts) > 1.5 * fd_embedded(images, data).value


def test_the_same_by_each_name():
    digits, letters = load_once("digits").test_images, load_once("letters").test_images[::9]
    assert fd_embedded(digits) == fd_digits(digits) == fd_digits(digits, load_once("digits").train_images)
    assert fd_letters(letters) == fd_embedded(letters, "letters")
    own = load_once("letters").train_images[::50]
    assert fd_letters(letters, own) == fd(letters, own, load_classifier("letters"))
    assert fd_letters(letters).reference == 23205


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "cannot be read"),
        (lambda data: b"", "cannot be read"),
        (lambda data: b"\xff" * 8 + data[8:], "cannot be read"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
        (lambda data: data.replace(b"crc32", b"crc33"), "checksum"),
        (lambda data: data.replace(b"__metadata__", b"__metadatb__"), "cannot be read"),
    ],
)
@both
def test_damaged_weights(tmp_path, data, change, message):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(change(shipped(data).read_bytes()))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_classifier(data, path)
    assert str(path) in str(caught.value)


def test_other_weights(tmp_path):
    state = ImageClassifier(CLASSIFIERS["digits"]).state_dict() | {"head.weight": torch.zeros(9, 32)}
    del state["head.bias"]
    save_file(state, tmp_path / "nine.safetensors", metadata={"about": "{}"})
    with pytest.raises(CheckpointError, match=r"head\.bias.*head\.weight must have shape \(10, 32\)"):
        load_classifier("digits", tmp_path / "nine.safetensors")
    with pytest.raises(CheckpointError, match=r"digits-classifier\.safetensors.* must have shape"):
        load_classifier("letters", shipped("digits"))
    save_file({"w": torch.zeros(3)}, tmp_path / "bare.safetensors")
    for name in ("bare.safetensors", "absent.safetensors", "."):
        with pytest.raises(CheckpointError, match="cannot be read as a classifier of letters"):
            load_classifier("letters", tmp_path / name)


SMALL, LARGE = (torch.zeros(4, 1, side, side, dtype=torch.uint8) for side in (8, 28))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fd_digits(SMALL + 17), InvalidValueError, "fd_digits: images must lie in 0 .. 16"),
        (lambda: fd_letters(LARGE + 16), InvalidValueError, "fd_letters: images must lie in 0 .. 15"),
        (lambda: fd_digits(SMALL, SMALL + 255), InvalidValueError, "reference"),
        (lambda: fd_digits(SMALL.long()), InvalidTypeError, "images"),
        (lambda: fd_digits(SMALL[:, 0]), InvalidValueError, "images"),
        (lambda: fd_digits(SMALL[:1]), InvalidValueError, "images"),
        (lambda: fd_digits(SMALL[:0]), InvalidValueError, "images"),
        (lambda: fd_letters(SMALL), InvalidValueError, r"images must have shape \[N, 1, 28, 28\]"),
        (lambda: fd_letters(LARGE, SMALL), InvalidValueError, r"reference must have shape \[N, 1, 28, 28\]"),
        (lambda: fd_embedded(SMALL, "cifar10"), InvalidValueError, "data must be one of digits, letters"),
        (lambda: load_classifier("cifar10"), InvalidValueError, "data must be one of digits, letters"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_constant_images_have_a_distance():
    result = fd_digits(SMALL)
    assert result == Frechet(pytest.approx(result.value), 0.0, 4, 1500)
    assert result.value > 100
