"""Weights of other libraries in single files, ``.safetensors`` or ``.npz``: shapes, then values, and no pickle."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..io.folders import CheckpointError, check_no_pointer, check_state
from ..io.npz import Header, NpzError, NpzFile
from ..io.random_state import seeded
from ..models import ImageConfig, Model, model_of
from .pickles import check_no_pickle
from .plausible import check_plausible

Tensors = Mapping[str, Tensor]
NUMBERS = "fiub"  # kinds of NumPy dtypes: floats, integers, bool
# safetensors' names of the types that weights have
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def describe_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without values, on the meta device: only headers are read.

    Args:
        path: a ``.safetensors`` or ``.npz`` file.

    Raises:
        CheckpointError: the file is missing, a pickle, damaged or of another kind, or an array of it holds no numbers.
    """
    path = _checked(path)
    if path.suffix.lower() == ".npz":
        try:
            with NpzFile(path) as file:
                return {name: _described(path, name, header) for name, header in file.headers.items()}
        except NpzError as error:
            raise CheckpointError(str(error)) from error
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _empty(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a safetensors file: {error}") from error


def read_weights(path: str | Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Return tensors of a file with their values.

    Args:
        path: a file that `describe_weights` has described.
        names: the names of the tensors.

    Raises:
        CheckpointError: the file cannot be read, or has changed since.
    """
    path = _checked(path)
    try:
        if path.suffix.lower() == ".npz":
            with NpzFile(path) as file:
                return {name: _native(file.read(name)) for name in names}
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (NpzError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def model_from_weights(
    config: ImageConfig,
    where: str,
    described: Tensors,
    values: Callable[[], Tensors],
    state_of: Callable[[Model, Tensors], dict[str, Tensor]],
) -> Model:
    """Return the model of a configuration with the weights of another library's file, in eval mode.

    All shapes are checked on the meta device before memory is taken for the model or for the values of the file.

    Args:
        config: the configuration of the model.
        where: the file, for messages.
        described: its tensors without values, see `describe_weights`.
        values: reads them.
        state_of: makes the state of a model of ``config`` from the tensors of the file, with or without values.

    Raises:
        CheckpointError: the weights do not fit the configuration or are not finite; all problems are listed.
        ScheduleError: the noise schedule of the weights does not increase.
    """
    check_plausible(config, described, where)
    with torch.device("meta"):
        state_of(model_of(config), described)
    with seeded(None):  # the fresh weights are drawn from the caller's generator, which is restored
        model = model_of(config)
    state = state_of(model, values())
    check_state(where, state, model.state_dict())
    model.load_state_dict(state)
    model.check_schedule()
    return model.eval()


def _checked(path: str | Path) -> Path:
    path = Path(path)
    check_no_pickle(path)
    if path.suffix.lower() not in (".safetensors", ".npz") or not path.is_file():
        raise CheckpointError(f"weights must be a .safetensors or .npz file that exists, got {path}")
    with suppress(OSError), open(path, "rb") as file:  # a file that cannot be read is named by what reads it
        check_no_pointer(path, file.read(64))
    return path


def _described(path: Path, name: str, header: Header) -> Tensor:
    if header.dtype.hasobject:
        raise CheckpointError(
            f"{path}: {name} must be an array of numbers, got one of Python objects, which is a pickle and can run any "
            "program when it is read; save a flat dictionary of arrays"
        )
    if header.dtype.kind not in NUMBERS or header.dtype.itemsize > 8:
        raise CheckpointError(
            f"{path}: {name} must be an array of numbers of at most 8 bytes, such as float32, got {header}"
        )
    return torch.from_numpy(np.empty(0, header.dtype.newbyteorder("="))).new_empty(header.shape, device="meta")


def _native(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _empty(piece: object) -> Tensor:
    """Return a tensor of safetensors without its values."""
    shape, name = piece.get_shape(), piece.get_dtype()  # pyright: ignore[reportAttributeAccessIssue]
    if name not in DTYPES:
        raise ValueError(f"tensors must have one of the types {', '.join(DTYPES)}, got {name}")
    return torch.empty(tuple(shape), dtype=DTYPES[name], device="meta")
