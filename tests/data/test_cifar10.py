"""CIFAR-10 from archives and folders that are written here byte by byte; damaged and hostile files are rejected."""

import gzip
import io
import os
import pickle
import pickletools
import tarfile
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

from fastdiff.data import DataError, load_cifar10, load_dataset
from fastdiff.data import cifar10_pickle as reader

COUNT = 20
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
MIB = 1 << 20

BATCHES = {
    name: (
        np.random.default_rng(seed).integers(0, 256, (COUNT, 3072), dtype=np.uint8),
        np.random.default_rng(seed + 10).integers(0, 10, COUNT).tolist(),
    )
    for seed, name in enumerate(NAMES)
}
IMAGES, LABELS = BATCHES["data_batch_2"]


# ------------------------------------------------------------------------------------------------ writing the formats


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


def records(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch of the binary version: a label byte, then 3072 pixel bytes, for each image."""
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def python_files() -> dict[str, bytes]:
    return {name: python2(*batch) for name, batch in BATCHES.items()}


def binary_files() -> dict[str, bytes]:
    return {f"{name}.bin": records(*batch) for name, batch in BATCHES.items()}


def write_folder(path, contents):
    path.mkdir()
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return path


def add(archive, name, content, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.size, member.type = len(content), kind
    archive.addfile(member, io.BytesIO(content))


def write_archive(path, contents, folder=f"{PYTHON}/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            add(archive, folder + name, content)
    return path


def check(data):
    """Every pixel and label, against the arrays that were written."""
    assert (data.name, data.shape, data.levels, data.num_classes) == ("cifar10", (3, 32, 32), 256, 10)
    for names, images, labels in (
        (NAMES[:5], data.train_images, data.train_labels),
        (NAMES[5:], data.test_images, data.test_labels),
    ):
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.shape == (COUNT * len(names), 3, 32, 32)
        assert labels.tolist() == [label for name in names for label in BATCHES[name][1]]
        for place, name in enumerate(names):
            # by the description of the format: 1024 reds, 1024 greens, 1024 blues, each row by row
            rows = BATCHES[name][0]
            assert images[place * COUNT + 7, 1, 2, 3] == rows[7, 1024 + 2 * 32 + 3]
            assert images[place * COUNT : (place + 1) * COUNT].flatten(1).tolist() == rows.tolist()


def no_bytes(value):
    """The id of a parameter, without the bytes of a file."""
    return "" if isinstance(value, bytes) else None


# ------------------------------------------------------------------------------------------------ the published formats


def test_the_pickles_of_these_tests_are_those_of_python_2():
    content = python2(IMAGES, LABELS)
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    assert {"SHORT_BINSTRING", "BINSTRING"} <= opcodes
    assert not {name for name in opcodes if "UNICODE" in name or "BINBYTES" in name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy has deprecated names and flags of that time
        batch = pickle.loads(content, encoding="bytes")
    assert batch[b"labels"] == LABELS
    assert np.array_equal(batch[b"data"], IMAGES)


@pytest.mark.parametrize(("files", "folder"), [(python_files, PYTHON), (binary_files, BINARY)])
@pytest.mark.parametrize(("prefix", "name"), [("", "cifar-10.tar.gz"), ("./", "own.tgz")])
def test_archive(tmp_path, files, folder, prefix, name):
    check(load_dataset(str(write_archive(tmp_path / name, files(), f"{prefix}{folder}/"))))
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing is unpacked to the disk


@pytest.mark.parametrize(("files", "meta"), [(python_files, "batches.meta"), (binary_files, "batches.meta.txt")])
def test_folder(tmp_path, files, meta):
    path = write_folder(tmp_path / "renamed", files() | {meta: b"airplane\n", "readme.html": b""})
    check(load_dataset(str(path)))
    check(load_cifar10(path))


def test_binary_archive_is_read_without_unpickling(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(reader._Unpickler, "load", None)
    check(load_cifar10(write_archive(tmp_path / "cifar-10-binary.tar.gz", binary_files(), f"{BINARY}/")))


@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_pickled_by_python_3(tmp_path, order):
    contents = {
        name: pickle.dumps({b"data": np.asarray(images, order=order), b"labels": labels}, protocol=2)
        for name, (images, labels) in BATCHES.items()
    }
    old = {name: content.replace(b"numpy._core.", b"numpy.core.") for name, content in contents.items()}
    text = {
        name: pickle.dumps({"data": np.asarray(images, order=order), "labels": labels}, protocol=4)
        for name, (images, labels) in BATCHES.items()
    }
    for place, files in enumerate((contents, old, text)):
        check(load_dataset(str(write_folder(tmp_path / str(place), files))))


def test_other_members_are_ignored(tmp_path):
    path = tmp_path / "strange.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("/etc/data_batch_1", "../test_batch", f"{PYTHON}/../data_batch_1", f"{PYTHON}/batches.meta"):
            add(archive, name, b"wrong")
        for name, content in python_files().items():
            add(archive, f"{PYTHON}/{name}", content)
        link = tarfile.TarInfo(f"{PYTHON}/data_batch_2")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    check(load_dataset(str(path)))


# ------------------------------------------------------------------------------------------------ hostile pickles


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_hostile_pickle_is_rejected_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    command = f"touch {mark}"
    by_hand = b"\x80\x02cos\nsystem\nX" + len(command).to_bytes(4, "little") + command.encode() + b"\x85R."
    pickle.loads(by_hand)
    assert mark.exists(), "this pickle does nothing, so that rejecting it shows nothing"
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
    path = write_folder(tmp_path / PYTHON, python_files())
    for attack, name in attacks:
        (path / "data_batch_3").write_bytes(attack)
        with pytest.raises(DataError, match=f"data_batch_3.* asks for {name}"):
            load_dataset(str(path))
    assert not mark.exists()


def test_pickle_cannot_alter_the_reader():
    """Neither form of setting attributes changes the values that the names stand for."""
    for module, name in reader._Unpickler.known:
        stand_in = b"\x80\x02c" + f"{module}\n{name}\n".encode()
        for state in (b"}U\x04codeU\x02u1s", b"N}U\x04codeU\x02u1s\x86"):
            with pytest.raises(DataError, match="here"):
                reader.read_pickle("here", stand_in + state + b"b.")
    assert reader._Dtype.code is reader._Array.state is None
    assert not hasattr(reader._Array, "code")
    assert not hasattr(reader._Bytes, "code")


def test_pickle_cannot_allocate_by_a_number(tmp_path):
    """``bytes(n)`` of the real class would be n zeros."""
    tracemalloc.start()
    with pytest.raises(DataError, match="cannot be read"):
        reader.read_pickle("here", b"\x80\x02c__builtin__\nbytes\nJ\x00\x00\x00\x20\x85R.")
    assert tracemalloc.get_traced_memory()[1] < MIB
    tracemalloc.stop()


def test_message_about_a_huge_value_is_short():
    nested = [0]
    for _ in range(60):
        nested = [nested, nested]  # 2**60 zeros if printed
    for value in (nested, 1 << 100_000, "x" * 10_000):
        batch = pickle.dumps({"data": IMAGES, "labels": [value, *LABELS[1:]]}, protocol=2)
        with pytest.raises(DataError, match="here") as error:
            reader.read_pickle("here", batch)
        assert len(str(error.value)) < 2000


# ------------------------------------------------------------------------------------------------ damaged batches


def changed(**change) -> bytes:
    batch = {"data": IMAGES, "labels": LABELS} | change
    return pickle.dumps({name.encode(): value for name, value in batch.items() if value is not None}, protocol=2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "data_batch_2 is missing"),
        (b"", "EOFError"),
        (b"words", "UnpicklingError"),
        (python2(IMAGES, LABELS)[:-5000], "cannot be read"),
        (pickle.dumps([1], protocol=2), "dict"),
        (changed(labels=None, fine_labels=[1]), "labels"),
        (changed(data=None), "data"),
        (changed(data=[[0] * 3072]), "data must be an array"),
        (changed(data=IMAGES.astype(np.int16)), "data must .*i2"),
        (changed(data=IMAGES.astype(np.int8)), "data must .*i1"),
        (changed(data=IMAGES.astype(object)), "data must .*O8"),
        (changed(data=IMAGES.reshape(COUNT, 3, 32, 32)), r"data must .*\(20, 3, 32, 32\)"),
        (changed(data=IMAGES[:, :3071]), r"data must .*\(20, 3071\)"),
        (changed(data=IMAGES[:0], labels=[]), "data must .* N >= 1"),
        (changed(labels=LABELS[:-1]), "labels must .* list of 19"),
        (changed(labels=dict(enumerate(LABELS))), "labels must .* dict"),
        (changed(labels=[*LABELS[:-1], 10]), "labels must .* got 10 at 19"),
        (changed(labels=[-1, *LABELS[1:]]), "labels must .* got -1 at 0"),
        (changed(labels=[0.5, *LABELS[1:]]), "labels must .* 0.5"),
        (changed(data=IMAGES[:9], labels=LABELS[:9]), "size"),
    ],
    ids=no_bytes,
)
def test_wrong_batch_of_the_python_version(tmp_path, content, words):
    contents = python_files() | {"data_batch_2": content}
    path = write_folder(tmp_path / PYTHON, {name: content for name, content in contents.items() if content is not None})
    with pytest.raises(DataError, match=words) as error:
        load_dataset(str(path))
    assert f"{path}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "data_batch_2.bin is missing"),
        (b"", "3073"),
        (records(IMAGES, LABELS)[:-1], "3073"),  # truncated inside a record
        (records(IMAGES, LABELS)[:-3073], "size"),  # truncated between two records
        (records(IMAGES, [*LABELS[:-1], 10]), "labels must .* got 10 at 19"),
        (records(IMAGES, [255, *LABELS[1:]]), "labels must .* got 255 at 0"),
    ],
    ids=no_bytes,
)
def test_wrong_batch_of_the_binary_version(tmp_path, content, words):
    contents = binary_files() | {"data_batch_2.bin": content}
    contents = {name: content for name, content in contents.items() if content is not None}
    for path in (
        write_folder(tmp_path / BINARY, contents),
        write_archive(tmp_path / "cifar-10-binary.tar.gz", contents, f"{BINARY}/"),
    ):
        with pytest.raises(DataError, match=words) as error:
            load_dataset(str(path))
        assert f"{path}" in str(error.value)


# ------------------------------------------------------------------------------------------------ damaged archives


@pytest.mark.parametrize(("files", "folder"), [(python_files, PYTHON), (binary_files, BINARY)])
def test_truncated_and_damaged_archives(tmp_path, files, folder):
    path = write_archive(tmp_path / "whole.tar.gz", files(), f"{folder}/")
    whole = path.read_bytes()
    damaged = [whole[:length] for length in (0, 1, 15, 1000, len(whole) // 2, len(whole) - 9, len(whole) - 1)]
    for content in (*damaged, whole[:1] + b"x" + whole[2:], gzip.compress(b""), gzip.compress(b"words" * 1000)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="CIFAR-10"):
            load_dataset(str(path))
    path.unlink()
    with pytest.raises(DataError, match="whole"):
        load_dataset(str(path))


@pytest.mark.parametrize(("files", "folder"), [(python_files, PYTHON), (binary_files, BINARY)])
def test_changed_pixel_is_noticed_by_the_checksum(tmp_path, files, folder):
    """In data that gzip stores uncompressed, a changed byte leaves the archive readable."""
    path = write_archive(tmp_path / "whole.tar.gz", files(), f"{folder}/")
    stored = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    pixels = BATCHES["data_batch_1"][0].tobytes()[:50]
    stored[bytes(stored).index(pixels)] ^= 1
    path.write_bytes(stored)
    with pytest.raises(DataError, match="CRC"):
        load_dataset(str(path))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("start", "memory"),
    [
        (header(f"{PYTHON}/data_batch_1", 10**10), 4),  # a batch that is too large
        (header(f"{BINARY}/data_batch_1.bin", 64 * MIB + 1), 4),
        (header("other", 10**10), 4),  # a file that is skipped
        (header("other", 0), 4),  # zeros behind the last file
        (header("other", 10**10, tarfile.XHDTYPE), 150),  # extended headers, which tarfile reads into memory
        (header("other", 10**10, tarfile.GNUTYPE_LONGNAME), 150),
        (header("other", 0) + header("other", 10**10, tarfile.XHDTYPE), 150),
    ],
    ids=no_bytes,
)
def test_gzip_bomb(tmp_path, start, memory):
    """1 GiB of zeros in 1 MB: an error after at most 65 MiB of them, and no more memory than ``memory`` MiB."""
    path = tmp_path / "bomb.tar.gz"
    with path.open("wb") as file:
        file.write(gzip.compress(start))
        zeros = gzip.compress(bytes(64 * MIB), compresslevel=9)
        for _ in range(16):
            file.write(zeros)
    tracemalloc.start()
    with pytest.raises(DataError, match="at most"):
        load_dataset(str(path))
    assert tracemalloc.get_traced_memory()[1] < memory * MIB
    tracemalloc.stop()


def test_archive_of_many_files(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(header("other", 0) * 1001))
    with pytest.raises(DataError, match="at most 1000 files"):
        load_dataset(str(path))


def test_archive_of_many_large_files(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    content = gzip.compress(header("other", 64 * MIB) + bytes(64 * MIB), compresslevel=1)
    path.write_bytes(content * 9)  # each file within its bound, all of them beyond that of the archive
    with pytest.raises(DataError, match="at most"):
        load_dataset(str(path))


def test_sparse_file_is_ignored(tmp_path):
    """512 bytes of an archive that describe 60 MiB of zeros."""
    sparse = bytearray(header(f"{PYTHON}/data_batch_1", 0, tarfile.GNUTYPE_SPARSE))
    sparse[386:410] = b"00000000000\0" * 2  # one piece of data: offset 0, 0 bytes
    sparse[483:495] = b"%011o\0" % (60 * MIB)  # the size of the file
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)  # checksum of the header
    with tarfile.open(fileobj=io.BytesIO(bytes(sparse) + bytes(1024))) as archive:
        assert (archive.members[0].issparse(), archive.members[0].size) == (True, 60 * MIB)
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(sparse) + bytes(1024)))
    with pytest.raises(DataError, match=r"data_batch_1.* missing"):
        load_dataset(str(path))


def test_large_file_in_a_folder(tmp_path):
    path = write_folder(tmp_path / PYTHON, python_files())
    with (path / "data_batch_4").open("r+b") as file:
        file.truncate(64 * MIB + 1)  # sparse on the disk
    with pytest.raises(DataError, match="data_batch_4 must have at most"):
        load_dataset(str(path))
