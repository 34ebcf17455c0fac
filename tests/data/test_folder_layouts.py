"""Which files of a folder are images, in which order, which are held out, and what changes the data set's identity."""

import inspect
import os
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from images import flat, pixels, random_image, save

from fastdiff.data import DataError, ImageOptions, load_dataset
from fastdiff.data import listing as listing_module
from fastdiff.data.image_folder import open_folder


def numbered(count: int, folders: int = 3) -> dict:
    """Images of one pixel row whose values are their number, in nested folders."""
    names = [f"{'abc'[k % folders]}/{'deep/' if k % 2 else ''}{k}.png" for k in range(count)]
    return {name: random_image(k, "L", (4, 4)) for k, name in enumerate(names)}


def names(part) -> list[str]:
    return [part.paths[position] for position in range(len(part.paths))]


def test_images_at_any_depth_are_found_and_some_held_out(tmp_path):
    files = numbered(40)
    data = load_dataset(save(tmp_path, files))
    assert (len(data.train_images), len(data.test_images), data.num_classes) == (38, 2, 0)
    folder = open_folder(tmp_path, ImageOptions())
    assert sorted(names(folder.train) + names(folder.test)) == sorted(files)
    assert names(folder.train) == sorted(names(folder.train), key=lambda name: name.split("/"))
    for part, images in ((folder.train, data.train_images), (folder.test, data.test_images)):
        assert images[:][:, 0].tolist() == [pixels(files[name]) for name in names(part)]


def test_labels_of_a_folder_without_train_and_test(tmp_path):
    data = load_dataset(save(tmp_path, numbered(40)), ImageOptions(classes=True, held_out=10))
    folder = open_folder(tmp_path, ImageOptions(classes=True, held_out=10))
    assert (data.num_classes, len(data.test_images)) == (3, 10)
    for part, labels in ((folder.train, data.train_labels), (folder.test, data.test_labels)):
        assert labels is not None
        assert labels.tolist() == ["abc".index(name[0]) for name in names(part)]


def test_what_is_held_out_depends_on_the_paths_only(tmp_path, monkeypatch):
    """Not on the order in which the file system lists them; and most of it stays when files are added."""
    save(tmp_path, numbered(300))
    options = ImageOptions(held_out=30)
    first = open_folder(tmp_path, options)
    assert len(set(names(first.test)) & {f"a/{k}.png" for k in range(0, 60, 6)}) < 10  # not simply the first
    scandir = os.scandir

    class Shuffled:
        def __init__(self, folder):
            with scandir(folder) as entries:
                self.entries = random.Random(1).sample(found := list(entries), len(found))

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(listing_module, "os", SimpleNamespace(**vars(os) | {"scandir": Shuffled}))
    second = open_folder(tmp_path, options)
    assert (names(second.train), names(second.test)) == (names(first.train), names(first.test))
    monkeypatch.undo()
    save(tmp_path, {f"d/{k}.png": random_image(k, "L", (4, 4)) for k in range(30)})
    third = set(names(open_folder(tmp_path, options).test))
    assert len(third & set(names(first.test))) >= 22  # expected: 30 · 10 / 11


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (39, 1), (60, 3)])
def test_one_in_twenty_is_held_out(tmp_path, count, expected):
    assert len(load_dataset(save(tmp_path, numbered(count))).test_images) == expected


def identity(path, **options) -> str:
    return load_dataset(str(path), ImageOptions(**options)).identity


def test_identity(tmp_path):
    path = save(tmp_path / "one", numbered(6))
    first = identity(path)
    assert len(first) == 16
    assert identity(path) == first
    assert len({first, identity(path, size=2), identity(path, size=2, resize=3), identity(path, held_out=2)}) == 4
    assert (
        len({first, identity(path, color="rgb"), identity(path, classes=True), identity(path, skip_damaged=True)}) == 4
    )
    os.renames(tmp_path / "one", tmp_path / "two")  # the name of the folder itself does not count
    assert identity(tmp_path / "two") == first
    file = tmp_path / "two/a/0.png"
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert identity(tmp_path / "two") != first
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identity(tmp_path / "two") == first
    file.write_bytes(file.read_bytes() + b"0")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identity(tmp_path / "two") != first
    os.truncate(file, status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    file.rename(file.with_name("00.png"))
    assert identity(tmp_path / "two") != first


@pytest.mark.parametrize(
    ("words", "files", "folders", "options"),
    [
        ("must have at least 2 images, got 0", [], [], {}),
        ("must have at least 2 images, got 1", ["a.png"], [], {}),
        ("folder train and no folder test", ["train/a.png"], [], {}),
        ("folder test and no folder train", ["test/a.png"], [], {}),
        ("train must have at least 1 images, got 0", ["test/a.png"], ["train"], {}),
        ("test must have at least 1 images, got 0", ["train/a.png"], ["test/.hidden"], {}),
        ("train/cat must hold images", ["train/ant/a.png", "test/ant/a.png"], ["train/cat"], {"classes": True}),
        ("train/a.png must be in the folder", ["train/cat/a.png", "train/a.png", "test/a.png"], [], {"classes": True}),
        ("test/a.png must be in the folder", ["train/cat/a.png", "test/a.png"], [], {"classes": True}),
        ("classes of train, cat, got dog", ["train/cat/a.png", "test/dog/a.png"], [], {"classes": True}),
        ("held_out must be None", ["train/a.png", "test/a.png"], [], {"held_out": 1}),
        ("held_out must be less", ["a.png", "b.png"], [], {"held_out": 2}),
    ],
)
def test_other_layouts(tmp_path, words, files, folders, options):
    root = tmp_path / "root"
    root.mkdir()
    save(root, {name: random_image(0) for name in files})
    for folder in folders:
        (root / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=words):
        load_dataset(str(root), ImageOptions(**options))


def test_files_of_other_kinds_are_counted_where_there_are_no_images(tmp_path):
    for name in ("a.txt", "b.pdf", "c.h5", "d"):
        (tmp_path / name).write_text("words")
    with pytest.raises(DataError, match="got 0, and 4 files without an image's extension"):
        load_dataset(str(tmp_path))


def test_links_are_followed_and_loops_named(tmp_path):
    files = numbered(4)
    save(tmp_path / "store", files)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/link").symlink_to(tmp_path / "store")
    assert len(open_folder(tmp_path / "own", ImageOptions()).train.paths) == 3
    (tmp_path / "store/loop").symlink_to(tmp_path / "own")
    with pytest.raises(DataError, match="loop must not be a link to a folder that holds it"):
        load_dataset(str(tmp_path / "own"))
    (tmp_path / "store/loop").unlink()
    (tmp_path / "store/none.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"none\.png cannot be read.*--skip-damaged"):
        load_dataset(str(tmp_path / "own"))
    (tmp_path / "store/self").symlink_to("self")  # has no image's extension
    (tmp_path / "store/none.png").unlink()
    assert len(load_dataset(str(tmp_path / "own")).train_images) == 3


def test_names_of_any_bytes(tmp_path):
    files = {b"\xff\xfe.png": 1, "ü\n.PNG".encode(): 2, b"a b.png": 3}
    save(tmp_path, {"x.png": random_image(0, "L")})
    content = (tmp_path / "x.png").read_bytes()
    try:
        for name in files:
            with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
                file.write(content)
    except OSError:
        pytest.skip("this file system has names of text only")
    data = load_dataset(str(tmp_path))
    assert len(data.train_images[:]) + len(data.test_images[:]) == 4


def test_folders_deeper_than_recursion(tmp_path):
    (tmp_path / "/".join("d" * 150)).mkdir(parents=True)
    save(tmp_path, {"/".join("d" * 150) + "/a.png": random_image(0)})
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 70)
    try:
        assert len(listing_module.list_images(str(tmp_path))) == 1
    finally:
        sys.setrecursionlimit(limit)


def test_skipped_files_are_counted(tmp_path):
    path = save(tmp_path, flat())
    (tmp_path / "train/0.png").write_text("no image")
    (tmp_path / "train/none.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"none\.png"):
        load_dataset(path)
    with pytest.warns(UserWarning, match=r"2 of 6 image files are left out, since .*none\.png") as warned:
        data = load_dataset(path, ImageOptions(skip_damaged=True))
    assert len(warned) == 1
    assert len(data.train_images) == len(data.train_images[:]) == 3
    (tmp_path / "test/x.png").write_text("no image")
    with pytest.raises(DataError, match="test must have an image that can be read"):
        load_dataset(path, ImageOptions(skip_damaged=True))


def test_many_files_are_inspected_in_processes(tmp_path, monkeypatch):
    from fastdiff.data import inspection

    monkeypatch.setattr(inspection, "FEW", 10)
    path = save(tmp_path, numbered(200))
    (tmp_path / "c/deep/77.png").write_text("no image")
    with pytest.warns(UserWarning, match="1 of 200 .*77"):
        data = load_dataset(path, ImageOptions(skip_damaged=True, held_out=1))
    assert len(data.train_images) == 198
    assert data.train_images[torch.tensor([0, 197])].shape == (2, 1, 4, 4)
