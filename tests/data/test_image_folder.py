"""Folders of images: pixels, labels and their order; files and layouts that are rejected by name."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import DataError, load_dataset

SIZE = (6, 4)  # width, height: not square, so that a mix-up shows


def random_image(seed: int, mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def pixels(image: Image.Image) -> list:
    """[H][W] of the values of getpixel, one by one."""
    return [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]


def save(root, files: dict[str, Image.Image]):
    for name, image in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return str(root)


def flat() -> dict[str, Image.Image]:
    names = ("train/b.png", "train/a.png", "train/10.png", "test/x.png")
    return {name: random_image(seed) for seed, name in enumerate(names)}


def test_images_without_labels(tmp_path):
    files = flat()
    root = tmp_path / "own"
    path = save(root, files)
    (root / "train/.hidden").write_text("no image")
    (root / "train/.folder").mkdir()
    (root / "readme.txt").write_text("beside train and test, anything may lie")
    data = load_dataset(path)
    assert (data.name, data.shape, data.levels, data.num_classes) == ("own", (3, 4, 6), 256, 0)
    assert data.train_labels is data.test_labels is None
    assert data.train_images.dtype == torch.uint8
    for image, name in zip(data.train_images, ("train/10.png", "train/a.png", "train/b.png"), strict=True):
        assert image.permute(1, 2, 0).tolist() == [[list(pixel) for pixel in row] for row in pixels(files[name])]
    assert data.test_images.shape == (1, 3, 4, 6)


def test_classes_are_folders_sorted_by_name(tmp_path):
    names = (
        "train/dog/1.png",
        "train/cat/2.png",
        "train/cat/1.png",
        "train/ant/9.png",
        "test/dog/1.png",
        "test/ant/1.png",
    )
    files = {name: random_image(seed, "L") for seed, name in enumerate(names)}
    path = save(tmp_path, files)
    (tmp_path / "train/.cache").mkdir()
    data = load_dataset(path)
    assert (data.shape, data.num_classes) == ((1, 4, 6), 3)
    assert data.train_labels is not None
    assert data.test_labels is not None
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 1, 1, 2], [0, 2])
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    order = ("train/ant/9.png", "train/cat/1.png", "train/cat/2.png", "train/dog/1.png")
    assert data.train_images[:, 0].tolist() == [pixels(files[name]) for name in order]
    assert data.test_images[:, 0].tolist() == [pixels(files[name]) for name in ("test/ant/1.png", "test/dog/1.png")]


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "gif"])
def test_formats_without_loss(tmp_path, suffix):
    image = random_image(0).quantize(8).convert("RGB") if suffix == "gif" else random_image(0)
    options = {"lossless": True} if suffix == "webp" else {}
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        image.save(tmp_path / split / f"a.{suffix}", **options)
    data = load_dataset(str(tmp_path))
    assert data.train_images[0].permute(1, 2, 0).tolist() == [[list(pixel) for pixel in row] for row in pixels(image)]


def test_jpeg(tmp_path):
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    data = load_dataset(save(tmp_path, {"train/a.jpg": image, "test/a.jpeg": image}))
    difference = data.train_images[0].int() - torch.tensor([200, 100, 50])[:, None, None]
    assert difference.abs().max() <= 2  # one flat colour: what remains is the rounding of YCbCr


def test_alpha_is_dropped_and_palettes_become_rgb(tmp_path):
    clear, palette = random_image(0, "RGBA"), random_image(1).quantize(7)
    palette_clear = palette.copy()
    palette_clear.info["transparency"] = bytes(range(7))
    path = save(
        tmp_path, {"train/a.png": clear, "train/b.png": palette, "train/c.png": palette_clear, "test/d.png": clear}
    )
    data = load_dataset(path)
    with Image.open(tmp_path / "train/c.png") as stored:
        assert (stored.mode, stored.info["transparency"]) == ("P", bytes(range(7)))
    assert data.train_images[0].permute(1, 2, 0).tolist() == [[list(p[:3]) for p in row] for row in pixels(clear)]
    table = np.array(palette.getpalette()).reshape(-1, 3)
    for image in data.train_images[1:]:
        assert image.permute(1, 2, 0).tolist() == table[np.array(pixels(palette))].tolist()
    grey = save(tmp_path / "grey", {"train/a.png": random_image(2, "LA"), "test/b.png": random_image(3, "L")})
    assert load_dataset(grey).train_images[0, 0].tolist() == [
        [p[0] for p in row] for row in pixels(random_image(2, "LA"))
    ]


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        ("train/c.png", random_image(0, size=(5, 4)), r"c\.png .*10\.png, 6×4 RGB, got 5×4 RGB"),
        ("test/z.png", random_image(0, size=(4, 6)), r"z\.png .* got 4×6 RGB"),
        ("test/a.png", random_image(0, "L"), r"a\.png .* got 6×4 L"),
        ("train/0.png", random_image(0, "L"), r"10\.png .*0\.png, 6×4 L, got 6×4 RGB"),
        ("train/c.png", random_image(0, "L").convert("1"), r"c\.png .* PNG of mode 1"),
        ("train/c.tif", random_image(0, "L").convert("I"), r"c\.tif .* TIFF of mode I"),
        ("train/c.png", random_image(0, "L").convert("I;16"), r"c\.png .* PNG of mode I;16"),
        ("train/c.tif", random_image(0, "L").convert("F"), r"c\.tif .* TIFF of mode F"),
        ("train/c.jpg", random_image(0, "CMYK"), r"c\.jpg .* JPEG of mode CMYK"),
        ("train/c.eps", random_image(0), r"c\.eps .* EPS of mode RGB"),
    ],
)
def test_images_that_do_not_fit(tmp_path, name, image, words):
    path = save(tmp_path, flat() | {name: image})
    with pytest.raises(DataError, match=words):
        load_dataset(path)


def test_size_is_compared_before_pixels_are_decoded(tmp_path):
    """A PNG whose header describes 9000² pixels and that holds none."""
    chunk = struct.pack(">4sIIBBBBB", b"IHDR", 9000, 9000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    content += struct.pack(">I4s", 1000, b"IDAT") + bytes(10)
    path = save(tmp_path, flat())
    (tmp_path / "train/c.png").write_bytes(content)
    with pytest.raises(DataError, match=r"c\.png .* got 9000×9000 RGB"):
        load_dataset(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipe_is_not_opened(tmp_path):
    path = save(tmp_path, flat())
    os.mkfifo(tmp_path / "train/c.png")
    with pytest.raises(DataError, match=r"c\.png must be a regular file"):
        load_dataset(path)


@pytest.mark.parametrize("cut", [0, 8, 20, 60, -30])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_images_that_cannot_be_read(tmp_path, suffix, cut):
    path = save(tmp_path, flat() | {f"train/c.{suffix}": random_image(9)})
    file = tmp_path / f"train/c.{suffix}"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(DataError, match=rf"train/c\.{suffix} cannot be read"):
        load_dataset(path)


def test_other_files_are_named(tmp_path):
    path = save(tmp_path, flat())
    (tmp_path / "train/notes.txt").write_text("words")
    with pytest.raises(DataError, match=r"train/notes\.txt cannot be read"):
        load_dataset(path)


@pytest.mark.parametrize(
    ("words", "names", "folders"),
    [
        ("root has no folder train", [], []),
        ("root has no folder train", ["a.png"], []),
        ("root has no folder test", ["train/a.png"], []),
        ("train is empty", ["test/a.png"], ["train"]),
        ("test is empty", ["train/a.png"], ["test/.hidden"]),
        ("train/cat is empty", ["train/ant/a.png", "test/ant/a.png"], ["train/cat"]),
        ("folder cat and the file a.png", ["train/cat/a.png", "train/a.png", "test/a.png"], []),
        ("both", ["train/cat/a.png", "test/a.png"], []),
        ("test .* dog", ["train/cat/a.png", "test/dog/a.png"], []),
        ("deep is a folder inside", ["train/cat/deep/a.png", "test/cat/a.png"], []),
    ],
)
def test_other_layouts(tmp_path, words, names, folders):
    root = tmp_path / "root"
    root.mkdir()
    save(root, {name: random_image(0) for name in names})
    for folder in folders:
        (root / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=words):
        load_dataset(str(root))


def test_many_files_show_a_bar(tmp_path, capsys):
    path = save(
        tmp_path / "many", {"train/0.png": random_image(0, size=(1, 1)), "test/0.png": random_image(0, size=(1, 1))}
    )
    content = (tmp_path / "many/train/0.png").read_bytes()
    for number in range(1, 999):
        (tmp_path / f"many/train/{number}.png").write_bytes(content)
    load_dataset(path)
    assert capsys.readouterr() == ("", "")
    (tmp_path / "many/train/999.png").write_bytes(content)
    data = load_dataset(path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading many" in err
    assert "1001/1001" in err
    assert len(data.train_images) == 1000
