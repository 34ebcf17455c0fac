"""Images that are read when they are used: batches, indices, crops, resizing, copies in other processes."""

import pickle

import numpy as np
import pytest
import torch
from images import random_image, save
from PIL import Image

from fastdiff.data import DataError, ImageOptions, ImageSource, digits, load_dataset
from fastdiff.data.in_memory import with_options
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import InvalidTypeError, InvalidValueError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """24 images of several sizes and modes."""
    sizes = ((20, 20), (30, 22), (21, 40), (64, 20))
    files = {f"{k:02}.png": random_image(k, "L" if k % 3 else "RGB", sizes[k % 4]) for k in range(24)}
    return save(tmp_path_factory.mktemp("sizes"), files)


def source(path: str, **options) -> ImageSource:
    images = load_dataset(path, ImageOptions(color="rgb", **options)).train_images
    assert isinstance(images, ImageSource)
    return images


@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_batch_is_its_images_read_alone(folder, crop):
    images = source(folder, size=12, resize=14, crop=crop)
    index = torch.tensor([5, 0, 22, 5, 17])
    u = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    for uniforms in (None, u):
        batch, labels = images.batch(index, uniforms)
        assert (batch.shape, batch.dtype, batch.is_contiguous(), labels) == ((5, 3, 12, 12), torch.uint8, True, None)
        for row, position in enumerate(index):
            one = images.batch(position[None], None if uniforms is None else uniforms[row : row + 1])[0]
            assert batch[row].equal(one[0])
    same = images.batch(index, u)[0].equal(images.batch(index)[0])
    assert same == (crop == "center") == (not images.random_crop)


def test_indices_are_those_of_a_tensor(folder):
    images = source(folder, size=8)
    whole = images[:]
    mask = torch.arange(len(images)) % 3 == 1
    for index in (slice(3), slice(2, None, 5), torch.tensor([4, -1]), mask, 3, torch.tensor(3)):
        assert images[index].equal(whole[index])
    assert images[:0].shape == (0, 3, 8, 8)
    with pytest.raises(IndexError):
        images[torch.tensor([len(images)])]
    for wrong in ([-1], [len(images)]):
        with pytest.raises(InvalidValueError, match="index must lie in 0"):
            images.batch(torch.tensor(wrong))
    for wrong in (torch.tensor([0.0]), torch.tensor(0)):
        with pytest.raises(InvalidTypeError, match="index must be"):
            images.batch(wrong)
    with pytest.raises(InvalidValueError, match="crop must have shape"):
        source(folder, size=8, crop="random").batch(torch.arange(2), torch.ones(3, 2))


def ramp(width: int, height: int) -> Image.Image:
    """Red = 10 + 2 x, green = 10 + 3 y: a pixel says where it is."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([10 + 2 * x, 10 + 3 * y, 0 * x], 2).astype(np.uint8))


def test_crops_are_placed_by_the_uniforms(tmp_path):
    """Without resizing: the corner is floor(u (room + 1)), each of the corners that there are."""
    images = source(save(tmp_path, {"a.png": ramp(20, 16), "b.png": ramp(20, 16)}), size=14, resize=16, crop="random")
    u = torch.tensor([[1e-9, 1e-9], [1.0, 1.0], [0.34, 0.15], [0.5, 0.999], [0.3333, 1 / 7 + 1e-6]])
    batch, _ = images.batch(torch.zeros(5, dtype=torch.int64), u)
    corners = [((int(red) - 10) // 2, (int(green) - 10) // 3) for red, green in batch[:, :2, 0, 0]]
    assert corners == [(0, 0), (6, 2), (1, 1), (6, 1), (1, 0)]  # x of 0 .. 6, y of 0 .. 2
    assert ((int(images[0][0, 0, 0]) - 10) // 2, (int(images[0][1, 0, 0]) - 10) // 3) == (3, 1)  # the centre
    held_out = load_dataset(str(tmp_path), ImageOptions(size=14, resize=16, crop="random")).test_images
    assert not held_out.random_crop
    assert held_out.batch(torch.tensor([0]), u[:1])[0].equal(held_out[:])


@pytest.mark.parametrize(
    ("width", "height", "size", "resize"), [(100, 80, 16, 16), (80, 60, 20, 30), (30, 24, 36, 36), (90, 80, 8, 8)]
)
def test_resizing_keeps_a_ramp(tmp_path, width, height, size, resize):
    """A filter that is symmetric and sums to one leaves a linear function as it is, away from the borders."""
    path = save(tmp_path, {"a.png": ramp(width, height), "b.png": ramp(width, height)})
    scale = min(width, height) / resize
    room = [round(length / scale) - size for length in (width, height)]
    for u, left, top in ((None, room[0] // 2, room[1] // 2), ((0.5, 1.0), room[0], (room[1] + 1) // 2)):
        image = source(path, size=size, resize=resize, crop="random").batch(
            torch.tensor([0]), None if u is None else torch.tensor([u])
        )[0][0]
        inner = torch.arange(4, size - 4) if size > 8 else torch.arange(3, 5)
        x, y = ((inner + 0.5 + corner) * scale - 0.5 for corner in (left, top))
        assert (image[0][inner][:, inner] - (10 + 2 * x)).abs().max() <= 0.62  # 0.5 of it by rounding
        assert (image[1][inner][:, inner] - (10 + 3 * y)[:, None]).abs().max() <= 0.62


def test_resizing_averages_what_it_removes(tmp_path):
    """Antialiasing: columns in turn black and white become grey, for PNG and for JPEG, decoded at a reduced size."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (256, 128)))
    path = save(tmp_path, {"train/a.png": stripes, "train/b.jpg": stripes, "test/c.png": stripes})
    inner = load_dataset(path, ImageOptions(size=16)).train_images[:][:, :, :, 1:-1].float()
    assert (inner - 127.5).abs().max() <= 4


def test_a_long_image_takes_no_memory(tmp_path):
    """Only the crop is resized: the shorter side of this one would become 64 of 1, the longer one four millions."""
    path = save(tmp_path, {name: Image.new("L", (60000, 1), 7) for name in ("a.png", "b.png")})
    assert load_dataset(path, ImageOptions(size=64)).train_images[:].unique().tolist() == [7]


def test_a_copy_is_small(tmp_path):
    from fastdiff.data.decoding import Form
    from fastdiff.data.folder_source import FolderSource
    from fastdiff.data.paths import PathList

    names = [f"folder/{k:07}.png".encode() for k in range(5000)]
    form = Form("RGB", 64, 64, "first", ImageOptions())
    images = FolderSource("root", PathList.of(names), torch.zeros(5000, dtype=torch.int64), form, False)
    held = len(pickle.dumps(images)) - sum(map(len, names))
    assert held < 20 * 5000
    again = pickle.loads(pickle.dumps(images))
    assert [again.paths[k] for k in (0, 77, 4999)] == [names[k].decode() for k in (0, 77, 4999)]


def test_a_source_in_worker_processes(folder):
    images = source(folder, size=8)
    loader = torch.utils.data.DataLoader(Steps(images), batch_size=None, num_workers=2)
    assert torch.cat([batch for batch, _ in loader]).equal(images[:20])


class Steps(torch.utils.data.Dataset):
    def __init__(self, images: ImageSource):
        self.images = images

    def __len__(self):
        return 5

    def __getitem__(self, step):
        return self.images.batch(torch.arange(4) + 4 * step)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size must be >= 1"),
        ({"resize": 8}, "resize must be None without size"),
        ({"crop": "random"}, "crop must be 'center' without size"),
        ({"size": 8, "resize": 7}, "resize must be >= size, 8, got 7"),
        ({"size": 8, "crop": "left"}, "crop must be one of"),
        ({"color": "blue"}, "color must be one of"),
        ({"held_out": 0}, "held_out must be >= 1"),
        ({"size": 8.0}, "size must be an integer"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ConfigError, match=words):
        ImageOptions(**options)


def test_options_of_data_in_memory():
    data = digits()
    for same in ({}, {"size": 8}, {"color": "grey"}, {"size": 8, "resize": 8, "crop": "random", "classes": True}):
        assert with_options(data, ImageOptions(**same)) is data
    large = with_options(data, ImageOptions(size=16, resize=20, color="rgb", crop="random"))
    assert (large.shape, large.levels, len(large.train_images)) == ((3, 16, 16), 17, 1500)
    assert large.identity not in ("digits", with_options(data, ImageOptions(size=16)).identity)
    assert isinstance(large.train_images, ImageSource)
    images, labels = large.train_images.batch(torch.arange(200))
    assert data.train_labels is not None
    assert labels is not None
    assert labels.equal(data.train_labels[:200])
    assert int(images.max()) == 16  # the filter overshoots
    assert images[:, 0].equal(images[:, 2])
    assert large.train_images.random_crop
    assert not large.test_images.random_crop
    cut = with_options(data, ImageOptions(size=6, resize=8, crop="random")).train_images
    u = torch.tensor([[0.1, 0.9]])
    assert cut.batch(torch.tensor([9]), u)[0].equal(data.train_images[9:10, :, 0:6, 2:8])
    assert cut[:5].equal(data.train_images[:5, :, 1:7, 1:7])


@pytest.mark.parametrize(
    ("options", "words"), [({"held_out": 3}, "held_out must be None"), ({"classes": True}, "classes")]
)
def test_options_of_folders_do_not_fit_data_in_memory(tmp_path, options, words):
    images = np.zeros((2, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", train_images=images, test_images=images)
    with pytest.raises(DataError, match=words):
        load_dataset(str(tmp_path / "own.npz"), ImageOptions(**options))


def test_images_of_two_channels_are_not_resized(tmp_path):
    images = np.zeros((2, 2, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", train_images=images, test_images=images)
    with pytest.raises(DataError, match="2 channels"):
        load_dataset(str(tmp_path / "own.npz"), ImageOptions(size=4))


def test_identity_of_arrays(tmp_path):
    images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8)

    def identity(**arrays):
        np.savez(tmp_path / "own.npz", **({"train_images": images, "test_images": images} | arrays))
        return load_dataset(str(tmp_path / "own.npz")).identity

    first, changed = identity(), images.copy()
    changed[1, 7, 7] ^= 1
    assert identity() == first
    labels = {"train_labels": [0, 1], "test_labels": [0, 1]}
    found = {
        first,
        identity(test_images=changed),
        identity(train_images=changed),
        identity(**labels),
        identity(levels=255),
    }
    assert len(found) == 5
    assert digits().identity == "digits"
