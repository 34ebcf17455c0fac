"""The operations of fastdiff_kernels on the machine: compiled kernels on CPU tensors.

Inside `on_machine` the operations run their Triton launchers on CPU tensors, as they do in Triton's interpreter, but on
the machine, and with approximate instructions for 16-bit data as on an NVIDIA GPU. The process must not set
TRITON_INTERPRET.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from unittest import mock

import fastdiff_kernels
from fastdiff_kernels import _triton, launch, use_backend
from machine.driver import MachineDriver, machine
from torch import Tensor


def modules() -> list[ModuleType]:
    """Every module of fastdiff_kernels."""
    names = (info.name for info in pkgutil.iter_modules(fastdiff_kernels.__path__))
    return [importlib.import_module(f"fastdiff_kernels.{name}") for name in names]


def nvidia_fast_math(x: Tensor) -> bool:
    """`launch.fast_math` where torch is built for NVIDIA."""
    return x.element_size() == 2


@contextlib.contextmanager
def on_machine(arch: int = 90) -> Iterator[MachineDriver]:
    """Run operations on CPU tensors on the machine; ``use_backend("interpreter")`` inside the block means it too.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so that kernels cannot be compiled.
    """
    if _triton.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET must not be set, since interpreted kernels cannot be compiled")
    real = launch.fast_math
    with contextlib.ExitStack() as stack:
        for module in modules():
            if vars(module).get("fast_math") is real:
                stack.enter_context(mock.patch.object(module, "fast_math", nvidia_fast_math))
        choice = importlib.import_module("fastdiff_kernels.backend")  # the package's attribute is the function
        stack.enter_context(mock.patch.object(choice, "INTERPRETED", True))
        driver = stack.enter_context(machine(arch))
        stack.enter_context(use_backend("interpreter"))
        yield driver
