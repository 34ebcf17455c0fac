"""Argument checks of the operations: shape, dtype and device only, never values (that would wait for the GPU)."""

import operator

import torch
from torch import Tensor

DATA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def whole_number(where: str, name: str, value: object) -> int:
    """``value`` as an int: an int or an integer of NumPy, no bool.

    Raises:
        TypeError: anything else.
    """
    try:
        if not isinstance(value, (bool, Tensor)):
            return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        pass
    raise TypeError(f"{where}: {name} is {value!r}; allowed: an integer")


def check_data(where: str, name: str, x: object, min_dim: int = 1) -> None:
    """Check that x is a batch of data [B, ...] in one of the dtypes that the kernels compute on.

    Raises:
        TypeError: x is no tensor, or of another dtype.
        ValueError: x has fewer than ``min_dim`` dimensions.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{where}: {name} is a {type(x).__name__}; allowed: a tensor [B, ...]")
    if x.dtype not in DATA_DTYPES:
        raise TypeError(f"{where}: {name} has dtype {x.dtype}; allowed: {', '.join(map(str, DATA_DTYPES))}")
    if x.dim() < min_dim:
        raise ValueError(f"{where}: {name} has shape {tuple(x.shape)}; allowed: at least {min_dim} dimensions [B, ...]")


def check_like(where: str, name: str, value: object, x: Tensor, x_name: str) -> None:
    """Check that ``value`` is data of the shape and on the device of x.

    Raises:
        TypeError: not a tensor of an allowed dtype.
        ValueError: another shape or device.
    """
    check_data(where, name, value)
    assert isinstance(value, Tensor)
    if value.shape != x.shape:
        raise ValueError(
            f"{where}: {name} has shape {tuple(value.shape)}; allowed: the shape of {x_name}, {tuple(x.shape)}"
        )
    _check_device(where, name, value, x, x_name)


def check_vector(where: str, name: str, value: object, length: int, x: Tensor, x_name: str) -> None:
    """Check that ``value`` is a float32 vector [length] on the device of x.

    Raises:
        TypeError: not a float32 tensor.
        ValueError: another shape or device.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        given = f"dtype {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"{where}: {name} is {given}; allowed: a torch.float32 tensor of shape ({length},)")
    if value.shape != (length,):
        raise ValueError(
            f"{where}: {name} has shape {tuple(value.shape)}; allowed: ({length},), "
            f"which goes with {x_name} of shape {tuple(x.shape)}"
        )
    _check_device(where, name, value, x, x_name)


def _check_device(where: str, name: str, value: Tensor, x: Tensor, x_name: str) -> None:
    if value.device != x.device:
        raise ValueError(f"{where}: {name} is on {value.device}; allowed: the device of {x_name}, {x.device}")
