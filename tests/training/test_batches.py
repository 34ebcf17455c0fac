"""Training batches: the order of the data, label dropout, shifts and flips, all functions of (seed, step)."""

import attrs
import numpy as np
import pytest
import torch
from tiny import images, small, small_ddpm

from fastdiff.data import DataError, Dataset, ImageOptions, ImageSource, digits
from fastdiff.kernels import Noise
from fastdiff.training import TrainConfig
from fastdiff.training.batches import (
    Part,
    StepBatches,
    augmentation_uniforms,
    batch_indices,
    check_fit,
    drop_labels,
    flip_images,
    segments,
    shift_images,
    step_batches,
)
from fastdiff.training.feed import feed

CONFIG = TrainConfig(data="digits", max_steps=100, batch_size=12)


def uniforms(count: int, seed: int = 1) -> torch.Tensor:
    return Noise(seed).uniform((count, 6))


def data_of(images: torch.Tensor, labels: torch.Tensor | None = None) -> Dataset:
    return Dataset("test", 17, 0 if labels is None else 10, images, labels, images[:1], None)


def test_each_epoch_shows_every_image_once():
    seen = torch.cat([batch_indices(3, step, 7, 20) for step in range(20)])  # 140 = 7 epochs of 20
    for epoch in seen.split(20):
        assert epoch.sort().values.tolist() == list(range(20))
    assert seen[:20].tolist() != seen[20:40].tolist()
    assert seen[:20].tolist() != torch.cat([batch_indices(4, step, 7, 20) for step in range(3)])[:20].tolist()
    assert batch_indices(3, 0, 50, 20).tolist() == seen[:50].tolist()  # a batch may hold several epochs


def test_labels_are_dropped_with_their_probability():
    labels = torch.arange(4000) % 10
    kept = drop_labels(labels, 10, 0.3, Noise(0))
    assert abs(float((kept == 10).float().mean()) - 0.3) < 4 * (0.21 / 4000) ** 0.5
    assert (kept[kept != 10] == labels[kept != 10]).all()
    assert torch.equal(drop_labels(labels, 10, 0.0, Noise(0)), labels)
    assert (drop_labels(labels, 10, 1.0, Noise(0)) == 10).all()


def test_shifts_are_shifts():
    """Every image equals the original moved by one of nine offsets, and the mask says which ones moved."""
    x = torch.randint(1, 17, (600, 2, 8, 8), dtype=torch.uint8)
    shifted, moved = shift_images(x, 0.6, uniforms(600))
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    candidates = torch.stack([padded[:, :, dy : dy + 8, dx : dx + 8] for dy in range(3) for dx in range(3)])
    same = (candidates == shifted).flatten(2).all(2)  # [9, 600]
    assert (same.sum(0) == 1).all()
    offset = same.int().argmax(0)
    assert torch.equal(offset != 4, moved)
    counts = offset.bincount(minlength=9).double()
    expected = torch.full((9,), 600 * 0.6 / 9, dtype=torch.float64)
    expected[4] += 600 * 0.4
    assert ((counts - expected).abs() < 4 * expected.sqrt()).all()
    assert torch.equal(shift_images(x, 0.0, uniforms(600))[0], x)


def test_flips_mirror_whole_images_with_their_probability():
    x = images(2000)
    flipped = flip_images(x, 0.3, uniforms(2000)[:, 3])
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) | mirrored).all()
    assert abs(float(mirrored.float().mean()) - 0.3) < 4 * (0.21 / 2000) ** 0.5
    assert torch.equal(flip_images(x, 0.0, uniforms(2000)[:, 3]), x)
    assert torch.equal(flip_images(x, 1.0, uniforms(2000)[:, 3]), x.flip(3))


def test_shifted_images_have_the_label_of_augmented_ones():
    """Whatever else is drawn: an image that is not moved keeps its label, or loses it."""
    config = attrs.evolve(CONFIG, batch_size=400, shift=0.8, label_dropout=0.3)
    x, labels = images(400), torch.arange(400) % 10
    model = small(num_classes=10, augmented=True)
    found, y = step_batches(model, data_of(x, labels), config, Part(0, 400))[0]
    index = batch_indices(0, 0, 400, 400)
    moved = shift_images(x[index], 0.8, augmentation_uniforms(0, segments(0, 400, 400)))[1]
    assert torch.equal(y == 11, moved)
    dropped = drop_labels(labels[index], 10, 0.3, Noise(0, 0))
    assert torch.equal(y[~moved], dropped[~moved])
    assert torch.equal(found[~moved], x[index][~moved])
    _, y = step_batches(small(augmented=True), data_of(x, labels), config, Part(0, 400))[0]
    assert torch.equal(y == 1, moved)  # without classes: 0 is no label
    assert (y[~moved] == 0).all()
    same, y = step_batches(small_ddpm(), data_of(x), attrs.evolve(CONFIG, batch_size=400), Part(0, 400))[0]
    assert y is None
    assert torch.equal(same, x[index])


@pytest.mark.parametrize("size", [12, 50])  # less and more than an epoch
def test_a_part_of_a_batch_is_that_part(size):
    """Whatever is drawn for a sample depends on its number in the batch, not on the part that it is in."""
    config = attrs.evolve(CONFIG, batch_size=size, shift=0.5, flip=0.5)
    model, x, labels = small(num_classes=10, augmented=True), images(20), torch.arange(20) % 10
    for step in (0, 3, 7):
        whole = step_batches(model, data_of(x, labels), config, Part(0, size))[step]
        for part in (Part(0, 5), Part(5, 3), Part(8, size - 8)):
            found = step_batches(model, data_of(x, labels), config, part)[step]
            for a, b in zip(whole, found, strict=True):
                assert torch.equal(a[part.first : part.first + part.size], b)


def test_augmentations_do_not_depend_on_the_batch_size():
    """They are functions of (seed, epoch, position in the epoch)."""
    model, x = small(augmented=True), images(20)
    streams = []
    for size in (4, 6, 25):
        config = attrs.evolve(CONFIG, batch_size=size, shift=0.5, flip=0.5)
        batches = step_batches(model, data_of(x), config, Part(0, size))
        streams.append(torch.cat([batches[step][0] for step in range(60 // size)]))
    for stream in streams[1:]:
        assert torch.equal(stream[:50], streams[0][:50])
    assert not torch.equal(streams[0][:20].flatten(1).sum(1).sort().values, x.flatten(1).sum(1).sort().values)


class Numbers(ImageSource):
    """Image i is the number i; a random crop writes its place into it."""

    def __len__(self):
        return 40

    def read(self, position, place=None):
        image = np.full(self.shape, position, np.uint8)
        if place is not None:
            image[0, 0, :2] = [round(100 * u) for u in place]
        return image


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_are_read_when_used(workers):
    """The same batches as of a tensor, in any number of worker processes; crops by uniforms of their own."""
    source = Numbers((1, 8, 8), 256, torch.arange(40) % 10, random_crop=True)
    config = attrs.evolve(CONFIG, images=ImageOptions(size=8, crop="random"), label_dropout=0.0, flip=0.5)
    model = small(levels=256, num_classes=10, fourier=None)
    data = Dataset("numbers", 256, 10, source, None, source, None)
    part = Part(6, 6)
    state = torch.get_rng_state()
    batches = list(feed(step_batches(model, data, config, part), range(2, 6), torch.device("cpu"), workers))
    assert torch.equal(torch.get_rng_state(), state)
    for step, (x, y) in zip(range(2, 6), batches, strict=True):
        index = batch_indices(0, step, 12, 40, part)
        u = augmentation_uniforms(0, segments(12 * step + 6, 6, 40))
        expected, labels = source.batch(index, u[:, 4:6])
        assert torch.equal(x, flip_images(expected, 0.5, u[:, 3]))
        assert torch.equal(y, labels)
    assert len({tuple(x[0, 0, 0, :2].tolist()) for x, _ in batches}) == 4


def test_images_on_another_device_have_no_workers(monkeypatch):
    """A forked worker cannot use a GPU; the device meta stands for one."""
    monkeypatch.delattr("fastdiff.training.feed.DataLoader")
    batches = StepBatches(torch.zeros(40, 1, 8, 8, device="meta"), None, CONFIG, Part(0, 12), 0, 0)
    found = list(feed(batches, range(2), torch.device("meta"), workers=2))
    assert [x.device.type for x, _ in found] == ["meta"] * 2


def test_an_error_in_a_worker_is_the_error_itself():
    class Damaged(Numbers):
        def read(self, position, place=None):
            raise DataError(f"image {position} is damaged")

    batches = StepBatches(Damaged((1, 8, 8), 256), None, CONFIG, Part(0, 12), 0, 0)
    with pytest.raises(DataError, match=r"^image \d+ is damaged$"):
        list(feed(batches, range(2), torch.device("cpu"), workers=1))


@pytest.mark.parametrize("changes", [{"levels": 16}, {"shape": (1, 4, 4)}, {"num_classes": 9}])
def test_data_that_do_not_fit_the_model(changes):
    with pytest.raises(DataError, match="digits"):
        check_fit(small(**changes), digits())
    check_fit(small(), digits())  # labels may go unused
    check_fit(small(num_classes=10), digits())
