"""Training batches: the order of the data, label dropout, shifts and flips, all functions of (seed, step)."""

import attrs
import pytest
import torch
from tiny import images, small, small_ddpm

from fastdiff.data import DataError, digits
from fastdiff.kernels import Noise
from fastdiff.training import TrainConfig
from fastdiff.training.batches import (
    augmented_batch,
    batch_indices,
    check_fit,
    drop_labels,
    flip_images,
    shift_images,
)

CONFIG = TrainConfig(data="digits", max_steps=1)


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
    shifted, moved = shift_images(x, 0.6, Noise(1))
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
    assert torch.equal(shift_images(x, 0.0, Noise(1))[0], x)


def test_flips_mirror_whole_images_with_their_probability():
    x = images(2000)
    flipped = flip_images(x, 0.3, Noise(1, 2))
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) | mirrored).all()
    assert abs(float(mirrored.float().mean()) - 0.3) < 4 * (0.21 / 2000) ** 0.5
    assert torch.equal(flip_images(x, 0.0, Noise(1)), x)
    assert torch.equal(flip_images(x, 1.0, Noise(1)), x.flip(3))


def test_shifted_images_have_the_label_of_augmented_ones():
    config = attrs.evolve(CONFIG, shift=0.8, label_dropout=0.3)
    x, labels = images(400), torch.arange(400) % 10
    model = small(num_classes=10, augmented=True)
    shifted, y = augmented_batch(model, x, labels, config, Noise(5))
    moved = shift_images(x, 0.8, Noise(5))[1]
    assert torch.equal(y == 11, moved)
    dropped = drop_labels(labels, 10, 0.3, Noise(5))
    assert torch.equal(y[~moved], dropped[~moved])
    assert torch.equal(shifted[~moved], x[~moved])
    _, y = augmented_batch(small(augmented=True), x, None, config, Noise(5))
    assert torch.equal(y == 1, moved)  # without classes: 0 is no label
    assert (y[~moved] == 0).all()
    same, y = augmented_batch(small_ddpm(), x, None, CONFIG, Noise(5))
    assert y is None
    assert torch.equal(same, x)


def test_a_part_of_a_batch_is_that_part():
    """Whatever is drawn for a sample depends on its number, not on the batch that it is in."""
    config = attrs.evolve(CONFIG, shift=0.5, flip=0.5)
    model, x, labels = small(num_classes=10, augmented=True), images(12), torch.arange(12) % 10
    whole = augmented_batch(model, x, labels, config, Noise(2, 7))
    part = augmented_batch(model, x[5:], labels[5:], config, Noise(2, 7, first_sample=5))
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[5:], b)


@pytest.mark.parametrize("changes", [{"levels": 16}, {"shape": (1, 4, 4)}, {"num_classes": 9}])
def test_data_that_do_not_fit_the_model(changes):
    with pytest.raises(DataError, match="digits"):
        check_fit(small(**changes), digits())
    check_fit(small(), digits())  # labels may go unused
    check_fit(small(num_classes=10), digits())
