"""A driver for Triton without a GPU: kernels are compiled and "launched", and nothing runs.

    driver.set_active(NoDevice())

Everything up to the launch is Triton's own, so that the host's part of a launch can be measured and tested. The
arguments may be CPU tensors.
"""

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class Launcher:
    """Stands for what passes the arguments of a launch to a GPU."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.source, self.metadata = source, metadata

    def __call__(self, x: int, y: int, z: int, *others: Any) -> None:
        """Do nothing. The other arguments are those of ``CompiledKernel.run``."""


class Utilities:
    """What Triton asks of a driver when it loads machine code."""

    def load_binary(self, *args: Any) -> tuple[Any, ...]:
        """A module, a function, registers, spills and the largest number of threads."""
        return 1, 1, 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Properties of an H200, as far as they are asked for."""
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}


class NoDevice(DriverBase):
    """A driver that compiles for an architecture, 90 for Hopper, and launches with ``launcher_cls``."""

    def __init__(self, architecture: int = 90, launcher_cls: Any = Launcher) -> None:
        self.target, self.device = GPUTarget("cuda", architecture, 32), 0
        self.utils, self.launcher_cls = Utilities(), launcher_cls

    @classmethod
    def is_active(cls) -> bool:
        """Triton must not choose this driver by itself."""
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Types of a launcher in C, which is not needed."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """What kernels are compiled for."""
        return self.target

    def get_active_torch_device(self) -> torch.device:
        """Where the arguments are."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """Nothing runs, so nothing can be timed."""
        raise NotImplementedError

    def get_current_device(self) -> int:
        """The number of the device; a test changes it."""
        return self.device

    def get_current_stream(self, device: int) -> int:
        """A stream of the device."""
        return 100 + device
