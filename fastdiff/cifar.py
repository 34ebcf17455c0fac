"""CIFAR-10 (Krizhevsky 2009) in its Python version, read without trusting the pickles that it is made of.

The archive ``cifar-10-python.tar.gz`` holds one folder, ``cifar-10-batches-py``, of six batches of 10,000 images. Each
is a pickle that Python 2 wrote: a dict of ``data``, uint8 [N, 3072] (one row is an image [3, 32, 32]), and ``labels``,
a list of N integers. A pickle names the functions that build it, and a plain reader calls whatever is named. The reader
here knows the few names that an array needs and gives a stand-in for each, which keeps what it is told, no more.
"""

import gzip
import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from .data import DataError, Dataset

FOLDER = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
SHAPE = (3, 32, 32)
ROW = 3 * 32 * 32
CLASSES = 10


def load_cifar10(path: str | Path) -> Dataset:
    """Load CIFAR-10 from ``cifar-10-python.tar.gz``, or from the folder ``cifar-10-batches-py`` that it unpacks to.

    The published files give 50,000 / 10,000 images uint8 [N, 3, 32, 32] of 256 levels, labels int64 [N] in [0, 10). The
    six batches may be of any one size. Nothing is unpacked to the disk; other members of the archive are passed over.

    Raises:
        DataError: a file that is missing or damaged, a pickle that asks for anything but arrays, a batch that is
            missing, of another size than the rest, or of another shape, dtype or range than above.
    """
    path = Path(path)
    try:
        contents = _from_folder(path) if path.is_dir() else _from_archive(path)
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read as CIFAR-10: {error}") from error
    missing = [name for name in (*TRAIN_BATCHES, TEST_BATCH) if name not in contents]
    if missing:
        raise DataError(
            f"{path} holds no {', '.join(missing)}; allowed: the Python version of CIFAR-10, cifar-10-python.tar.gz or "
            f"the folder {FOLDER}, whole"
        )
    batches = {name: _batch(f"{path}: {name}", contents.pop(name)) for name in (*TRAIN_BATCHES, TEST_BATCH)}
    sizes = {name: len(labels) for name, (_, labels) in batches.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{path}: batches of different sizes, {sizes}; allowed: one size (10000 as published)")
    train, test = [batches[name] for name in TRAIN_BATCHES], [batches[TEST_BATCH]]
    return Dataset("cifar10", 256, CLASSES, *_joined(train), *_joined(test))


def _from_folder(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in (*TRAIN_BATCHES, TEST_BATCH) if (path / name).is_file()}


def _from_archive(path: Path) -> dict[str, bytes]:
    wanted = {f"{FOLDER}/{name}": name for name in (*TRAIN_BATCHES, TEST_BATCH)}
    contents = {}
    with gzip.open(path) as file:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                opened = archive.extractfile(member) if name and member.isreg() else None
                if name and opened:
                    contents[name] = opened.read()
        while file.read(1 << 20):  # gzip compares its checksum at the very end, which tarfile need not reach
            pass
    return contents


class _Array:
    """Stand-in for an array: keeps (version, shape, dtype, in Fortran's order, bytes)."""

    state: Any = None

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype:
    """Stand-in for a dtype: keeps its code. The state is dropped: a byte has neither order nor alignment."""

    code: Any = None

    def __init__(self, code: Any = None, *_: Any):
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers, bytes, text and the stand-ins above; any other name is refused before it is imported.

    Every value of the table is immutable or has a ``__setstate__``, so that no pickle can alter it for the next one.
    """

    known: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): _Dtype,
        # how Python 3 spells bytes in a pickle that Python 2 can read: encode(text, "latin1"), or bytes() if empty
        ("_codecs", "encode"): bytes,
        ("__builtin__", "bytes"): bytes,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in self.known:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}; allowed: arrays, lists, dicts, bytes"
            )
        return self.known[module_name, global_name]


def _batch(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 32, 32], read-only, and labels int64 [N] of one pickled batch."""
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{where} holds a {type(batch).__name__}; allowed: a dict of data and labels")
    named = {_text(key): value for key, value in batch.items()}
    for key in ("data", "labels"):
        if key not in named:
            raise DataError(f"{where} holds {', '.join(map(str, named))}; allowed: data and labels")
    images = _images(where, named["data"])
    return images, _labels(where, named["labels"], len(images))


def _images(where: str, data: Any) -> np.ndarray:
    state = data.state if isinstance(data, _Array) else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise DataError(f"{where}: data is no array; allowed: uint8 [N, {ROW}]")
    _, shape, dtype, fortran, raw = state
    code = _text(dtype.code) if isinstance(dtype, _Dtype) else None
    count = len(raw) // ROW if isinstance(raw, bytes) else 0
    if code != "u1" or not count or shape != (count, ROW) or len(raw) != count * ROW:
        held = f"{len(raw)} bytes" if isinstance(raw, bytes) else f"a {type(raw).__name__}"
        raise DataError(f"{where}: data is {code} {shape} in {held}; allowed: uint8 [N, {ROW}], N > 0")
    rows = np.frombuffer(raw, np.uint8).reshape((count, ROW), order="F" if fortran else "C")
    return rows.reshape(count, *SHAPE)


def _labels(where: str, labels: Any, count: int) -> np.ndarray:
    if not isinstance(labels, list) or len(labels) != count:
        given = f"{len(labels)} labels" if isinstance(labels, list) else f"labels as {type(labels).__name__}"
        raise DataError(f"{where}: {given}; allowed: a list of {count}, one for each image")
    for place, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < CLASSES:
            raise DataError(f"{where}: label {place} is {label!r}; allowed: an integer, 0 .. {CLASSES - 1}")
    return np.array(labels, np.int64)


def _text(value: Any) -> Any:
    """Text as such, which Python 2 pickled as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _joined(batches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))
