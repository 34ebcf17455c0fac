"""CIFAR-10's archive: read as published, and nothing run, built or believed that should not be."""

import gzip
import io
import os
import pickle
import pickletools
import tarfile
import warnings

import numpy as np
import pytest
import torch

from fastdiff import cifar
from fastdiff.datasets import DataError, load_dataset

COUNT = 20
FOLDER = "cifar-10-batches-py"
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def python2(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 and NumPy 1 wrote it: protocol 2, every string the opcode U or T, flags as integers."""
    pixels = images.tobytes()
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05("
        + numbers
        + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
        + b"K\x00\x85U\x01b\x87Rq\x09(K\x01K"
        + bytes([len(images)])
        + b"M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(pixels).to_bytes(4, "little")
        + pixels
        + b"tbU\x09filenamesq\x0c]q\x0dU\x05a.pngq\x0eau."
    )


def batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, COUNT, 3072), dtype=np.uint8)
    return {name: (images[i], rng.integers(0, 10, COUNT).tolist()) for i, name in enumerate(NAMES)}


def pickled() -> dict[str, bytes]:
    return {name: python2(*batch) for name, batch in batches().items()}


def write_folder(path, contents):
    path.mkdir()
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return path


def write_archive(path, contents, folder=f"{FOLDER}/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def check(data):
    given = batches()
    assert (data.name, data.shape, data.levels, data.classes) == ("cifar10", (3, 32, 32), 256, 10)
    for names, images, labels in (
        (NAMES[:5], data.train_images, data.train_labels),
        (NAMES[5:], data.test_images, data.test_labels),
    ):
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.shape == (COUNT * len(names), 3, 32, 32)
        assert labels.tolist() == [label for name in names for label in given[name][1]]
        for place, name in enumerate(names):
            # by the description of the format: 1024 reds, 1024 greens, 1024 blues, each row by row
            row = given[name][0][7]
            assert images[place * COUNT + 7, 1, 2, 3] == row[1024 + 2 * 32 + 3]
            assert images[place * COUNT + 7].flatten().tolist() == row.tolist()


def test_the_batches_of_these_tests_are_python_2_pickles():
    images, labels = batches()["test_batch"]
    content = python2(images, labels)
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    assert {"SHORT_BINSTRING", "BINSTRING"} <= opcodes
    assert not {name for name in opcodes if "UNICODE" in name or "BINBYTES" in name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy has deprecated names and flags of that time
        batch = pickle.loads(content, encoding="bytes")
    assert batch[b"labels"] == labels
    assert np.array_equal(batch[b"data"], images)


@pytest.mark.parametrize("prefix", [f"{FOLDER}/", f"./{FOLDER}/"])
@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "own.tgz"])
def test_the_archive(tmp_path, prefix, name):
    check(load_dataset(str(write_archive(tmp_path / name, pickled(), prefix))))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_folder(tmp_path):
    extra = {"batches.meta": b"no pickle", "readme.html": b""}
    check(load_dataset(str(write_folder(tmp_path / FOLDER, pickled() | extra))))


@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_that_python_3_wrote(tmp_path, order):
    contents = {
        name: pickle.dumps({b"data": np.asarray(images, order=order), b"labels": labels}, protocol=2)
        for name, (images, labels) in batches().items()
    }
    old = {name: content.replace(b"numpy._core.", b"numpy.core.") for name, content in contents.items()}
    text = {
        name: pickle.dumps({"data": np.asarray(images, order=order), "labels": labels}, protocol=4)
        for name, (images, labels) in batches().items()
    }
    for place, given in enumerate((contents, old, text)):
        check(load_dataset(str(write_folder(tmp_path / str(place), given))))


def test_strange_members_are_passed_over(tmp_path):
    path = tmp_path / "strange.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("/etc/data_batch_1", "../test_batch", f"{FOLDER}/../data_batch_1", f"{FOLDER}/batches.meta"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"wrong"))
        for name, content in pickled().items():
            info = tarfile.TarInfo(f"{FOLDER}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo(f"{FOLDER}/data_batch_2")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    check(load_dataset(str(path)))


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    command = f"touch {mark}"
    by_hand = b"\x80\x02cos\nsystem\nX" + len(command).to_bytes(4, "little") + command.encode() + b"\x85R."
    pickle.loads(by_hand)
    assert mark.exists(), "this pickle does nothing, so that refusing it shows nothing"
    mark.unlink()
    attacks = [
        (by_hand, "os.system"),
        (f"(V{command}\nios\nsystem\n.".encode(), "os.system"),
        (pickle.dumps(Calls(os.system, command), protocol=4), f"{os.name}.system"),
        (pickle.dumps(Calls(os.system, command), protocol=0), f"{os.name}.system"),
        (pickle.dumps(Calls(eval, f"open({str(mark)!r}, 'w')"), protocol=2), "__builtin__.eval"),
        (pickle.dumps(Calls(getattr, [], "append"), protocol=4), "builtins.getattr"),
        (pickle.dumps({"data": Calls(np.load, str(mark), None, True)}, protocol=2), "numpy.load"),
        # names with dots, by which a plain reader reaches the attributes of what it imports
        (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__base__\x93.", "numpy.ndarray.__base__"),
    ]
    path = write_folder(tmp_path / FOLDER, pickled())
    for attack, name in attacks:
        (path / "data_batch_3").write_bytes(attack)
        with pytest.raises(DataError, match=f"data_batch_3 cannot be read: .*asks for {name}.*; allowed: arrays"):
            load_dataset(str(path))
    assert not mark.exists()


def test_a_pickle_cannot_alter_the_reader():
    """Attributes to set on what a name stands for, in both forms that pickles have, leave it as it was."""
    for module, name in cifar._Unpickler.known:
        stand_in = b"\x80\x02c" + f"{module}\n{name}\n".encode()
        for state in (b"}U\x04codeU\x02u1s", b"N}U\x04codeU\x02u1s\x86"):
            with pytest.raises(DataError, match="here cannot be read"):
                cifar._batch("here", stand_in + state + b"b.")
    assert cifar._Dtype.code is cifar._Array.state is None
    assert not hasattr(cifar._Array, "code")


def remade(**change) -> bytes:
    images, labels = batches()["data_batch_2"]
    batch = {"data": images, "labels": labels} | change
    return pickle.dumps({name.encode(): value for name, value in batch.items() if value is not None}, protocol=2)


IMAGES, LABELS = batches()["data_batch_2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"holds no data_batch_2; allowed: the Python version"),
        (b"", "data_batch_2 cannot be read: EOFError"),
        (b"words", "data_batch_2 cannot be read: UnpicklingError"),
        (python2(IMAGES, LABELS)[:-5000], "data_batch_2 cannot be read: "),
        (pickle.dumps([1], protocol=2), "holds a list; allowed: a dict of data and labels"),
        (remade(labels=None, fine_labels=[1]), "holds data, fine_labels; allowed: data and labels"),
        (remade(data=None), "holds labels; allowed: data and labels"),
        (remade(data=[[0] * 3072]), r"data is no array; allowed: uint8 \[N, 3072\]"),
        (remade(data=IMAGES.astype(np.int16)), r"data is i2 \(20, 3072\) in 122880 bytes; allowed: uint8"),
        (remade(data=IMAGES.astype(np.int8)), r"data is i1 \(20, 3072\)"),
        (remade(data=IMAGES.astype(object)), r"data is O8 \(20, 3072\) in a list"),
        (remade(data=IMAGES.reshape(COUNT, 3, 32, 32)), r"data is u1 \(20, 3, 32, 32\)"),
        (remade(data=IMAGES[:, :3071]), r"data is u1 \(20, 3071\)"),
        (remade(data=IMAGES[:0], labels=[]), "N > 0"),
        (remade(labels=LABELS[:-1]), "19 labels; allowed: a list of 20"),
        (remade(labels=dict(enumerate(LABELS))), "labels as dict; allowed: a list of 20"),
        (remade(labels=[*LABELS[:-1], 10]), "label 19 is 10; allowed: an integer, 0 .. 9"),
        (remade(labels=[-1, *LABELS[1:]]), "label 0 is -1; allowed"),
        (remade(labels=[0.5, *LABELS[1:]]), "label 0 is 0.5; allowed"),
        (remade(data=IMAGES[:9], labels=LABELS[:9]), "different sizes, .*'data_batch_2': 9.*; allowed: one size"),
    ],
)
def test_wrong_batches(tmp_path, content, message):
    contents = pickled() | {"data_batch_2": content}
    contents = {name: content for name, content in contents.items() if content is not None}
    for path in (
        write_folder(tmp_path / FOLDER, contents),
        write_archive(tmp_path / "cifar-10-python.tar.gz", contents),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(str(path))


def test_archives_that_are_cut_or_bent(tmp_path):
    path = write_archive(tmp_path / "whole.tar.gz", pickled())
    whole = path.read_bytes()
    check(load_dataset(str(path)))
    for part in (0, 1, 15, 1000, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:part])
        with pytest.raises(DataError, match=r"cannot be read as CIFAR-10|holds no data_batch_1, .*test_batch"):
            load_dataset(str(path))
    path.write_bytes(whole[:1] + b"x" + whole[2:])
    with pytest.raises(DataError, match="cannot be read as CIFAR-10"):
        load_dataset(str(path))
    with pytest.raises(DataError, match="cannot be read as CIFAR-10"):
        load_dataset(str(tmp_path / "missing.tar.gz"))
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match=r"cannot be read as CIFAR-10|holds no data_batch_1"):
        load_dataset(str(path))


def test_a_bent_pixel_is_noticed_by_the_checksum(tmp_path):
    """In data that gzip stores as they are, a bent byte leaves the archive readable: only its checksum tells."""
    path = write_archive(tmp_path / "whole.tar.gz", pickled())
    plain = gzip.decompress(path.read_bytes())
    stored = bytearray(gzip.compress(plain, compresslevel=0))
    pixels = batches()["data_batch_1"][0].tobytes()[:50]
    stored[bytes(stored).index(pixels)] ^= 1
    path.write_bytes(stored)
    with pytest.raises(DataError, match="cannot be read as CIFAR-10: CRC check failed"):
        load_dataset(str(path))
