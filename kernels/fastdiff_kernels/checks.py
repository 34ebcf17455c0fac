"""Checks of the operations' arguments: type, dtype, shape and device. No check here reads values from a device."""

import operator

import torch
from torch import Tensor

from .errors import InvalidTypeError, InvalidValueError

DATA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DATA_NAMES = "float32, bfloat16 or float16"


def described(value: object) -> str:
    """Describe an argument for an error message: dtype, shape and device of a tensor, else value and type."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{value!r} ({type(value).__name__})"


def whole_number(where: str, name: str, value: object) -> int:
    """Return ``value`` as an int. Python and NumPy integers are accepted, bool is not.

    Raises:
        InvalidTypeError: ``value`` is anything else.
    """
    try:
        if not isinstance(value, (bool, Tensor)):
            return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        pass
    raise InvalidTypeError(f"{where}: {name} must be an integer, got {described(value)}")


def real_number(where: str, name: str, value: object) -> float:
    """Return ``value`` as a float. Python and NumPy numbers are accepted, bool, str and tensors are not.

    Raises:
        InvalidTypeError: ``value`` is anything else.
    """
    try:
        if not isinstance(value, (bool, str, bytes, Tensor)):
            return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        pass
    raise InvalidTypeError(f"{where}: {name} must be a number, got {described(value)}")


def check_data(where: str, name: str, x: object, min_dim: int = 1) -> None:
    """Check that x is a batch of data [B, ...] in one of the dtypes that the kernels accept.

    Raises:
        InvalidTypeError: x is not a tensor, or has another dtype.
        InvalidValueError: x has fewer than ``min_dim`` dimensions.
    """
    if not isinstance(x, Tensor) or x.dtype not in DATA_DTYPES:
        raise InvalidTypeError(f"{where}: {name} must be a {DATA_NAMES} tensor [B, ...], got {described(x)}")
    if x.dim() < min_dim:
        raise InvalidValueError(f"{where}: {name} must have at least {min_dim} dimensions, got shape {tuple(x.shape)}")


def check_like(where: str, name: str, value: object, x: Tensor, x_name: str) -> None:
    """Check that ``value`` is data with the shape and the device of x.

    Raises:
        InvalidTypeError: ``value`` is not a tensor of an accepted dtype.
        InvalidValueError: the shape or the device differs.
    """
    check_data(where, name, value)
    assert isinstance(value, Tensor)
    if value.shape != x.shape:
        wanted = f"the shape of {x_name}, {tuple(x.shape)}"
        raise InvalidValueError(f"{where}: {name} must have {wanted}, got {tuple(value.shape)}")
    _check_device(where, name, value, x, x_name)


def check_vector(where: str, name: str, value: object, length: int, x: Tensor, x_name: str) -> None:
    """Check that ``value`` is a float32 vector [length] on the device of x.

    Raises:
        InvalidTypeError: ``value`` is not a float32 tensor.
        InvalidValueError: the shape or the device differs.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        wanted = f"a torch.float32 tensor of shape ({length},)"
        raise InvalidTypeError(f"{where}: {name} must be {wanted}, got {described(value)}")
    if value.shape != (length,):
        raise InvalidValueError(
            f"{where}: {name} must have shape ({length},), got {tuple(value.shape)} "
            f"({x_name} has shape {tuple(x.shape)})"
        )
    _check_device(where, name, value, x, x_name)


def _check_device(where: str, name: str, value: Tensor, x: Tensor, x_name: str) -> None:
    if value.device != x.device:
        raise InvalidValueError(f"{where}: {name} must be on the device of {x_name}, {x.device}, got {value.device}")
