"""The choice of what runs the operations: compiled kernels, Triton's interpreter, or plain PyTorch."""

import contextlib
import functools
import os
from collections.abc import Iterator

import torch

from ._triton import INTERPRETED, installed
from .errors import BackendError

BACKENDS = ("triton", "interpreter", "torch")
_forced: list[str] = []


def backend() -> str:
    """Return what runs the operations in this process: ``"triton"``, ``"interpreter"`` or ``"torch"``.

    ``"triton"``: data on a GPU goes to the compiled kernels, data on a CPU to the PyTorch reference. ``"interpreter"``:
    the kernels run in Triton's interpreter on any device, slowly, for debugging; it is chosen by ``TRITON_INTERPRET=1``
    in the environment before the first import. ``"torch"``: the reference runs everywhere. The environment variable
    ``FASTDIFF_BACKEND`` overrides the choice; it is read once, at the first use. Triton is not imported.

    Raises:
        BackendError: ``FASTDIFF_BACKEND`` names no backend, or one that this process cannot run.
    """
    return _forced[-1] if _forced else _chosen()


@functools.cache
def _chosen() -> str:
    wanted = os.environ.get("FASTDIFF_BACKEND", "auto")
    if wanted != "auto":
        _check_backend(wanted, "FASTDIFF_BACKEND")
        return wanted
    if INTERPRETED:
        return "interpreter"
    return "triton" if torch.cuda.is_available() and installed() else "torch"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the operations inside a ``with`` block on the backend ``name``, one of `BACKENDS`.

    Raises:
        BackendError: ``name`` is not a backend, or this process cannot run it.
    """
    _check_backend(name, "use_backend")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def _check_backend(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"{where}: the backend must be one of auto, {', '.join(BACKENDS)}, got {name!r}")
    if name == "interpreter" and not INTERPRETED:
        raise BackendError(
            f"{where}: the interpreter needs the triton package, and TRITON_INTERPRET=1 in the environment before the "
            "first import of fastdiff"
        )
    if name == "triton" and (INTERPRETED or not torch.cuda.is_available() or not installed()):
        raise BackendError(
            f"{where}: the backend 'triton' needs a GPU, the triton package and TRITON_INTERPRET unset; here "
            f"torch.cuda.is_available() is {torch.cuda.is_available()}, triton is {'' if installed() else 'not '}"
            f"installed, and TRITON_INTERPRET is {'set' if INTERPRETED else 'unset'}"
        )
