"""A Triton driver without a GPU: compiles for one, and executes the PTX of the compiled kernels on CPU tensors.

Everything before the launch is Triton's own: binding and specialisation of the arguments, the compiler up to PTX, and
its cache. The stage that makes machine code (ptxas) is replaced by one that hands on the PTX, which halves the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton
from machine.approximate import Approximation
from machine.faults import BadLaunch
from machine.launch import flattened, run
from machine.observer import Observer
from machine.program import decode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

STAGE = "machine: PTX in place of a cubin"  # part of the keys of Triton's cache
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes of shared memory that a block may have


@dataclass(frozen=True)
class Settings:
    """How kernels run.

    Args:
        mode: what approximate instructions return, one of `approximate.MODES`.
        seed: of the mode "random".
        winner: which thread of a warp, "first" or "last", stores where several store different values to one word of
            shared memory.
        transform: called with the name and the PTX of a kernel before it is decoded; returns the PTX to run.
        observer: counts instructions and accesses to memory.
    """

    mode: str = "exact"
    seed: int = 0
    winner: str = "last"
    transform: Callable[[str, str], str] | None = None
    observer: Observer | None = None
    approximation: Approximation = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "approximation", Approximation(self.mode, self.seed))


@dataclass(frozen=True)
class Loaded:
    """A compiled kernel on the machine, what a module's function is on a GPU."""

    name: str
    text: str
    shared: int


class Utilities:
    """What Triton asks of a device."""

    def __init__(self, driver: MachineDriver) -> None:
        self._driver = driver

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Loaded, int, int, int]:
        """(module, function, registers, spills, threads at most): registers and spills are not known here."""
        text = binary.decode() if isinstance(binary, bytes) else binary
        if ".entry" not in text:
            raise BadLaunch(f"{name} was not compiled under this driver: its binary is not PTX")
        loaded = Loaded(name, text, shared)
        return loaded, loaded, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_LIMIT[self._driver.arch], "max_num_regs": 65536, "multiprocessor_count": 132,
            "warpSize": 32, "sm_clock_rate": 1, "mem_clock_rate": 1, "mem_bus_width": 1,
        }  # fmt: skip


class Launcher:
    """Launches one compiled kernel; Triton makes it from the source's signature and the compiler's metadata."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.names, self.kinds = list(source.signature), list(source.signature.values())
        self.threads = metadata.num_warps * 32
        for name in ("global_scratch_size", "profile_scratch_size"):
            if getattr(metadata, name, 0):
                raise BadLaunch(f"{metadata.name} needs scratch memory, which the machine does not have")
        if getattr(metadata, "num_ctas", 1) != 1:
            raise BadLaunch(f"{metadata.name} runs in clusters, which the machine does not have")

    def __call__(
        self, x: int, y: int, z: int, stream: Any, function: Loaded, packed_metadata: Any, launch_metadata: Any,
        enter_hook: Callable | None, exit_hook: Callable | None, *values: Any,
    ) -> None:  # fmt: skip
        driver = active()
        settings = driver.settings
        if f".target sm_{driver.arch}" not in function.text:
            raise BadLaunch(f"{function.name} was compiled for another target than sm_{driver.arch}")
        if enter_hook is not None:
            enter_hook(launch_metadata)
        text = function.text if settings.transform is None else settings.transform(function.name, function.text)
        arguments = list(flattened(self.names, self.kinds, list(values)))
        run(
            decode(text), (x, y, z), arguments, self.threads, function.shared, settings.approximation,
            settings.observer, settings.winner,
        )  # fmt: skip
        if exit_hook is not None:
            exit_hook(launch_metadata)


class Device:
    """What Triton asks of ``torch.cuda``. Everything has happened when a launch returns."""

    Event = torch.Event

    @staticmethod
    def synchronize(device: Any = None) -> None:
        """Nothing is left to wait for."""

    @staticmethod
    def current_device() -> int:
        return 0


class MachineDriver(DriverBase):
    """The driver of one target: 80, 90 or 100."""

    def __init__(self, arch: int = 90) -> None:
        super().__init__()
        if arch not in SHARED_LIMIT:
            raise ValueError(f"arch must be one of {', '.join(map(str, SHARED_LIMIT))}, got {arch}")
        self.arch, self.settings = arch, Settings()
        self.utils, self.launcher_cls = Utilities(self), Launcher

    @classmethod
    def is_active(cls) -> bool:
        """Never chosen by Triton itself."""
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # Triton keeps the compiled kernels of each device apart

    def set_current_device(self, device: int) -> None:
        """There is one."""

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(self.arch, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> type[Device]:
        return Device

    def get_benchmarker(self) -> Callable:
        raise NotImplementedError("the machine measures no times")


_active: list[MachineDriver] = []
_drivers: dict[int, MachineDriver] = {}


def active() -> MachineDriver:
    """The driver that runs the kernels."""
    if not _active:
        raise BadLaunch("no machine is active: use machine.driver.machine()")
    return _active[-1]


def _without_ptxas(backend: Any = None, stages: dict | None = None, *others: Any) -> tuple[str, str] | None:
    """Replace the last stage of the compiler; without arguments, the part of the cache's key for that."""
    if stages is None:
        return STAGE, STAGE
    stages["cubin"] = lambda source, metadata: source.encode()
    return None


@contextlib.contextmanager
def machine(arch: int = 90) -> Iterator[MachineDriver]:
    """Kernels that are launched inside the block are compiled for sm_``arch`` and run on the machine."""
    driver = _drivers.setdefault(arch, MachineDriver(arch))
    changes = (
        (triton.runtime.driver, "_active", driver),  # what set_active sets; there is no getter that makes no driver
        (knobs.runtime, "add_stages_inspection_hook", _without_ptxas),
        (knobs.compilation, "store_binary_only", True),  # keep the PTX, not the stages before it
        (knobs.compilation, "disable_line_info", True),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, value in changes:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        _active.append(driver)
        stack.callback(_active.pop)
        yield driver


@contextlib.contextmanager
def settings(**changes: Any) -> Iterator[Settings]:
    """Change `Settings` of the active machine inside the block, for example ``settings(mode="up")``."""
    driver = active()
    before = driver.settings
    driver.settings = replace(before, **changes)
    try:
        yield driver.settings
    finally:
        driver.settings = before
