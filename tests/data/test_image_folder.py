"""Folders of images: pixels, labels and their order; files that are rejected by name when they are used."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from images import SIZE, flat, pixels, random_image, save
from PIL import Image

from fastdiff.data import DataError, ImageOptions, ImageSource, load_dataset

CLASSES = ImageOptions(classes=True)


def read_all(path: str, options: ImageOptions | None = None):
    data = load_dataset(path, options)
    return [images[:] for images in (data.train_images, data.test_images)]


def test_images_without_labels(tmp_path):
    files = flat()
    root = tmp_path / "own"
    path = save(root, files)
    (root / "train/.hidden.png").write_text("no image")
    (root / "train/.folder").mkdir()
    (root / "train/notes.txt").write_text("no image either")
    (root / "readme.txt").write_text("beside train and test, anything may lie")
    data = load_dataset(path)
    assert isinstance(data.train_images, ImageSource)
    assert (data.name, data.shape, data.levels, data.num_classes) == ("own", (3, 4, 6), 256, 0)
    assert data.train_labels is data.test_labels is None
    images, labels = data.train_images.batch(torch.arange(3))
    assert (images.dtype, images.is_contiguous(), labels) == (torch.uint8, True, None)
    for image, name in zip(images, ("train/10.png", "train/a.png", "train/b.png"), strict=True):
        assert image.permute(1, 2, 0).tolist() == [[list(pixel) for pixel in row] for row in pixels(files[name])]
    assert data.test_images[:].shape == (1, 3, 4, 6)


def test_classes_are_folders_sorted_by_name(tmp_path):
    names = (
        "train/dog/1.png",
        "train/cat/2.png",
        "train/cat/1.png",
        "train/ant/deep/9.png",
        "test/dog/1.png",
        "test/ant/1.png",
    )
    files = {name: random_image(seed, "L") for seed, name in enumerate(names)}
    path = save(tmp_path, files)
    (tmp_path / "train/.cache").mkdir()
    data = load_dataset(path, CLASSES)
    assert (data.shape, data.num_classes) == ((1, 4, 6), 3)
    assert data.train_labels is not None
    assert data.test_labels is not None
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 1, 1, 2], [0, 2])
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    order = ("train/ant/deep/9.png", "train/cat/1.png", "train/cat/2.png", "train/dog/1.png")
    index = torch.tensor([3, 0, 1])
    images, labels = data.train_images.batch(index)
    assert images[:, 0].tolist() == [pixels(files[order[position]]) for position in index]
    assert labels.tolist() == [2, 0, 1]
    assert data.test_images[:][:, 0].tolist() == [pixels(files[name]) for name in ("test/ant/1.png", "test/dog/1.png")]
    unlabelled = load_dataset(path)
    assert (unlabelled.num_classes, unlabelled.train_labels, unlabelled.test_labels) == (0, None, None)
    assert unlabelled.train_images[:].equal(data.train_images[:])
    assert unlabelled.identity != data.identity


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "gif"])
def test_formats_without_loss(tmp_path, suffix):
    image = random_image(0).quantize(8).convert("RGB") if suffix == "gif" else random_image(0)
    options = {"lossless": True} if suffix == "webp" else {}
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        image.save(tmp_path / split / f"a.{suffix}", **options)
    train, _ = read_all(str(tmp_path))
    assert train[0].permute(1, 2, 0).tolist() == [[list(pixel) for pixel in row] for row in pixels(image)]


def test_jpeg(tmp_path):
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    train, _ = read_all(save(tmp_path, {"train/a.jpg": image, "test/a.jpeg": image}))
    difference = train[0].int() - torch.tensor([200, 100, 50])[:, None, None]
    assert difference.abs().max() <= 2  # one flat colour: what remains is the rounding of YCbCr


def test_alpha_is_dropped_and_palettes_become_rgb(tmp_path):
    clear, palette = random_image(0, "RGBA"), random_image(1).quantize(7)
    palette_clear = palette.copy()
    palette_clear.info["transparency"] = bytes(range(7))
    path = save(
        tmp_path, {"train/a.png": clear, "train/b.png": palette, "train/c.png": palette_clear, "test/d.png": clear}
    )
    train, _ = read_all(path)
    with Image.open(tmp_path / "train/c.png") as stored:
        assert (stored.mode, stored.info["transparency"]) == ("P", bytes(range(7)))
    assert train[0].permute(1, 2, 0).tolist() == [[list(p[:3]) for p in row] for row in pixels(clear)]
    table = np.array(palette.getpalette()).reshape(-1, 3)
    for image in train[1:]:
        assert image.permute(1, 2, 0).tolist() == table[np.array(pixels(palette))].tolist()
    grey = save(tmp_path / "grey", {"train/a.png": random_image(2, "LA"), "test/b.png": random_image(3, "L")})
    assert read_all(grey)[0][0, 0].tolist() == [[p[0] for p in row] for row in pixels(random_image(2, "LA"))]


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        ("train/c.png", random_image(0, size=(5, 4)), r"c\.png .*10\.png, 6×4 RGB, got 5×4 RGB.*--size"),
        ("test/z.png", random_image(0, size=(4, 6)), r"z\.png .* got 4×6 RGB"),
        ("test/a.png", random_image(0, "L"), r"a\.png .* got 6×4 L.*--color"),
        ("train/0.png", random_image(0, "L"), r"10\.png .*0\.png, 6×4 L, got 6×4 RGB"),
        ("train/c.png", random_image(0, "L").convert("1"), r"c\.png .* PNG of mode 1"),
        ("train/c.tif", random_image(0, "L").convert("I"), r"c\.tif .* TIFF of mode I"),
        ("train/c.png", random_image(0, "L").convert("I;16"), r"c\.png .* PNG of mode I;16"),
        ("train/c.tif", random_image(0, "L").convert("F"), r"c\.tif .* TIFF of mode F"),
        ("train/c.jpg", random_image(0, "CMYK"), r"c\.jpg .* JPEG of mode CMYK"),
        ("train/c.eps", random_image(0), r"c\.eps .*\(EPS, .* not read"),
    ],
)
def test_images_that_do_not_fit(tmp_path, name, image, words):
    path = save(tmp_path, flat() | {name: image})
    with pytest.raises(DataError, match=words):
        read_all(path)
    others = [each for each in range(3) if "train" not in name or each > 0]
    if name != "train/0.png":  # which the others must be like
        load_dataset(path).train_images[torch.tensor(others[:1])]


def test_size_is_compared_before_pixels_are_decoded(tmp_path):
    """A PNG whose header describes 7000² pixels and that holds none."""
    chunk = struct.pack(">4sIIBBBBB", b"IHDR", 7000, 7000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    for name in (b"IDAT", b"IEND"):
        content += struct.pack(">I4sI", 0, name, zlib.crc32(name))
    path = save(tmp_path, flat())
    (tmp_path / "train/c.png").write_bytes(content)
    with pytest.raises(DataError, match=r"c\.png .* got 7000×7000 RGB"):
        read_all(path)
    with pytest.raises(DataError, match=r"c\.png cannot be read"):
        read_all(path, ImageOptions(size=4))


@pytest.mark.parametrize("cut", [0, 8, 20, 60, -30])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_images_that_cannot_be_read(tmp_path, suffix, cut):
    path = save(tmp_path, flat() | {f"train/c.{suffix}": random_image(9)})
    file = tmp_path / f"train/c.{suffix}"
    file.write_bytes(file.read_bytes()[:cut])
    data = load_dataset(path)
    assert data.train_images[:2].shape == (2, 3, 4, 6)
    hint = r"--skip-damaged \(`ImageOptions\(skip_damaged=True\)`\) leaves them out"
    with pytest.raises(DataError, match=rf"train/c\.{suffix} cannot be read.*\. fastdiff check lists .*{hint}$"):
        data.train_images[3:]
    os.remove(tmp_path / "train/10.png")
    os.rename(file, tmp_path / f"train/10.{suffix}")
    with pytest.raises(DataError, match=hint):  # the header of the first image, or its pixels
        load_dataset(path).train_images[:]


def test_a_flipped_bit_of_a_png_is_an_error_or_changes_nothing(tmp_path):
    path = save(tmp_path, flat())
    file, whole = tmp_path / "train/b.png", (tmp_path / "train/b.png").read_bytes()
    expected, rejected = read_all(path)[0], 0
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            assert read_all(path)[0].equal(expected)
        except DataError:
            rejected += 1
    assert rejected > 0.95 * len(whole) / 3


def test_size_in_names(tmp_path):
    """The width is the last axis."""
    assert load_dataset(save(tmp_path, flat())).shape == (3, SIZE[1], SIZE[0])
