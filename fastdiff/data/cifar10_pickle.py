"""Batches of CIFAR-10's Python version, read without trusting the pickles that they are.

A batch is a pickle that Python 2 wrote: a dict of ``data``, uint8 [N, 3072] (one row is an image [3, 32, 32]), and
``labels``, a list of N integers. A pickle names the functions that build its objects, and `pickle.load` calls whatever
is named. The unpickler here knows only the names that an array needs. Each stands for a class of this file that keeps
its arguments and calls nothing.
"""

import io
import pickle
from reprlib import repr as short_repr  # bounded in length and depth, whatever a hostile pickle holds
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .errors import DataError

PIXELS = 3 * 32 * 32


class Batch(NamedTuple):
    """Images uint8 [N, 3072], which may be read-only, and labels int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


def read_pickle(where: str, content: bytes) -> Batch:
    """Read one pickled batch; ``where`` names it in errors.

    Raises:
        DataError: the pickle is damaged, asks for anything but arrays, lists, dicts and bytes, or does not hold images
            and labels of the format above.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise DataError(f"{where} must hold a dict of data and labels, got {type(batch).__name__}")
        entries = {_text(key): value for key, value in batch.items()}
        missing = [key for key in ("data", "labels") if key not in entries]
        if missing:
            raise DataError(f"{where} must hold data and labels, got {short_repr(list(entries))}")
        images = _images(where, entries["data"])
        return Batch(images, _labels(where, entries["labels"], len(images)))
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{where} cannot be read: {type(error).__name__}: {error}") from error


class _Array:
    """Stand-in for an array: keeps its state (version, shape, dtype, whether in Fortran order, bytes)."""

    state: Any = None

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype:
    """Stand-in for a dtype: keeps its code. Its state is dropped, since a byte has no byte order and no alignment."""

    code: Any = None

    def __init__(self, code: object = None, *_: object):
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


class _Bytes:
    """Stand-in for bytes in a pickle that Python 3 wrote for Python 2: ``encode(text, "latin1")``, or ``bytes()``.

    Calling it gives bytes. It takes text only: the real ``bytes(10**12)`` would allocate that many.
    """

    def __new__(cls, text: str = "", *_: object) -> bytes:
        return str.encode(text, "latin1")

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers, text, bytes and the stand-ins above, and imports nothing.

    Every value of the table is a string or has a ``__setstate__``, so that no pickle can set attributes on it.
    """

    known: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _Bytes,
        ("__builtin__", "bytes"): _Bytes,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in self.known:
            raise pickle.UnpicklingError(
                f"it must be made of arrays, lists, dicts and bytes, but asks for {module_name}.{global_name}"
            )
        return self.known[module_name, global_name]


def _images(where: str, data: object) -> np.ndarray:
    state = data.state if isinstance(data, _Array) else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise DataError(f"{where}: data must be an array uint8 [N, {PIXELS}], got {type(data).__name__}")
    _, shape, dtype, fortran, raw = state
    code = _text(dtype.code) if isinstance(dtype, _Dtype) else None
    count = len(raw) // PIXELS if isinstance(raw, bytes) else 0
    if code != "u1" or not count or shape != (count, PIXELS) or len(raw) != count * PIXELS:
        held = f"{len(raw)} bytes" if isinstance(raw, bytes) else type(raw).__name__
        raise DataError(
            f"{where}: data must be an array uint8 [N, {PIXELS}] with N >= 1, "
            f"got dtype {short_repr(code)} and shape {short_repr(shape)} in {held}"
        )
    return np.frombuffer(raw, np.uint8).reshape((count, PIXELS), order="F" if fortran else "C")


def _labels(where: str, labels: object, count: int) -> np.ndarray:
    if not isinstance(labels, list) or len(labels) != count:
        found = f"a list of {len(labels)}" if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{where}: labels must be a list of {count} integers, one for each image, got {found}")
    strange = [label for label in labels if not isinstance(label, int) or label.bit_length() > 63]
    if strange:
        raise DataError(f"{where}: labels must be integers, got {short_repr(strange[0])}")
    return np.array(labels, np.int64)


def _text(value: object) -> object:
    """Text that Python 2 pickled as bytes; any other value as it is."""
    return value.decode("latin1") if isinstance(value, bytes) else value
