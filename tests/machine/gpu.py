"""The machine in the place of a GPU, so that `benchmarks/gpu_run.py` and the benchmarks run without one.

    PYTHONPATH=tests python benchmarks/gpu_run.py --plugin machine.gpu --workers 1 --out DIR --only PATTERN

A pytest plugin. ``"cuda"`` names the CPU, whose data go to the compiled kernels on the machine; streams and events do
nothing, a captured graph calls what it captured, and ``torch.compile`` returns its function. A clock advances by `TICK`
at each reading: what is measured means nothing, and `gpu_run` does not publish it. Data are small: operations get
`SHAPES`, and networks two images of 16×16.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from fastdiff_kernels import registration
from machine.backend import on_machine
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
TICK = 1e-3  # seconds from one reading of the clock to the next, and between two events
SHAPES = {"cifar": (2, 3, 32, 32), "large": (2, 4, 64, 64)}  # in place of those that fill a GPU
FLUSH = 1 << 20  # bytes, in place of four times the L2 cache
PROPERTIES = SimpleNamespace(name="PTX machine", total_memory=1 << 30, L2_cache_size=1 << 20, major=9, minor=0)


class CudaIsCpu(TorchFunctionMode):
    """Functions of PyTorch that are given a CUDA device get the CPU. ``torch.device("cuda")`` stays what it is."""

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        named = {name: on_cpu(value) for name, value in (kwargs or {}).items()}
        return function(*map(on_cpu, args), **named)


def on_cpu(value: Any) -> Any:
    """The CPU for a CUDA device or its name; any other value as it is."""
    device = torch.device(value) if isinstance(value, str) and value.startswith("cuda") else value
    return CPU if isinstance(device, torch.device) and device.type == "cuda" else value


class Idle:
    """A stream, or an event: everything has happened when it is asked."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing

    def wait_stream(self, other: Idle) -> None:
        """Nothing is left to wait for."""

    def record(self) -> None:
        """Nothing is measured."""

    def synchronize(self) -> None:
        """Nothing is left to wait for."""

    def elapsed_time(self, end: Idle) -> float:
        """Milliseconds, of two events that can measure them."""
        assert self.enable_timing
        assert end.enable_timing
        return 1e3 * TICK


class Graph:
    """A captured graph, which calls what was captured; see `replayable`."""

    replay: Callable[[], object]


def replayable(graph_of: Callable[..., Any]) -> Callable[..., Any]:
    """`clocks.graph_of`, whose graphs know their call. Here the call runs while it is captured."""

    def captured(call: Callable[[], object]) -> Any:
        graph = graph_of(call)
        graph.replay = call
        return graph

    return captured


def smaller(images: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`test_networks.images`, two of them with every other row and column."""
    last = torch.channels_last
    return lambda batch, *where: images(2, *where)[..., ::2, ::2].contiguous(memory_format=last)


def chosen(backend: Callable[[], str]) -> Callable[[], str]:
    """What runs data on a CPU: where a GPU would take them, the machine."""
    return lambda: "interpreter" if backend() == "triton" else backend()


STAND_INS: dict[str, Any] = {
    "is_available": lambda: True,
    "is_bf16_supported": lambda including_emulation=True: True,
    "current_device": lambda: 0,
    "get_device_name": lambda device=None: PROPERTIES.name,
    "get_device_properties": lambda device=None: PROPERTIES,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "Event": Idle,
    "Stream": Idle,
    "CUDAGraph": Graph,
    "current_stream": Idle,
    "stream": lambda stream: contextlib.nullcontext(),
    "graph": lambda graph: contextlib.nullcontext(),
}


def pytest_configure(config: pytest.Config) -> None:
    """Put the machine in the GPU's place until pytest ends. The benchmarks' conftest.py is loaded, their tests not."""
    stack = contextlib.ExitStack()
    config.add_cleanup(stack.close)
    clocks = importlib.import_module("clocks")
    backends = importlib.import_module("fastdiff_kernels.backend")  # the package's attribute is the function
    stack.enter_context(on_machine())
    backends._forced.append("triton")
    stack.callback(backends._forced.pop)
    readings = itertools.count()
    flush_of = clocks.flush_of
    changes: list[tuple[Any, str, Any]] = [
        (registration, "backend", chosen(registration.backend)),
        (torch, "compile", lambda function, **options: function),
        (clocks, "graph_of", replayable(clocks.graph_of)),
        (clocks, "flush_of", lambda size, device: flush_of(FLUSH, device)),
        (clocks, "perf_counter", lambda: TICK * next(readings)),
        *((torch.cuda, name, value) for name, value in STAND_INS.items()),
    ]
    for owner, name, value in changes:
        stack.enter_context(mock.patch.object(owner, name, value))


@pytest.fixture(autouse=True)
def _in_the_place_of_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA devices are the CPU, and sizes are small."""
    if hasattr(request.module, "GPU_SHAPES"):
        monkeypatch.setattr(request.module, "GPU_SHAPES", SHAPES)
    if hasattr(request.module, "images"):
        monkeypatch.setattr(request.module, "images", smaller(request.module.images))
    with CudaIsCpu():
        yield
