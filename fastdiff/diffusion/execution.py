"""How the calls of a model are made: eagerly, compiled, as a captured graph, and on how many samples at a time."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..kernels import InvalidTypeError, InvalidValueError, Noise
from .graph import GraphCache, Graphs
from .loop import Callback, Denoiser, sample_latents
from .plan import Plan

MICRO_BATCH = 16  # samples per call of the network where images must not depend on the batch size


class Execution:
    """How a model is called, and what is compiled and captured for it. One object serves one model.

    Args:
        compile: call functions of the model through ``torch.compile``.
        graph: run the sampling loop as a captured CUDA graph. None: where the model is on a GPU.
        batch_invariant: call the network on this many samples at a time, whatever the batch size, with padding, so
            that images are bit-identical for every batch size. True stands for 16, False for the batch size.
        graphs: what records graphs in place of CUDA, for tests (`fastdiff.diffusion.graph.Graphs`).

    Raises:
        InvalidTypeError, InvalidValueError: a value that is not allowed.
    """

    compile_options: ClassVar[dict[str, Any]] = {}  # further arguments of torch.compile

    def __init__(
        self,
        compile: bool = False,
        graph: bool | None = None,
        batch_invariant: bool | int = False,
        graphs: Graphs | None = None,
    ) -> None:
        for name, value in (("compile", compile), ("graph", graph)):
            if not isinstance(value, bool) and not (name == "graph" and value is None):
                wanted = "True, False or None" if name == "graph" else "True or False"
                raise InvalidTypeError(f"{name} must be {wanted}, got {value!r}")
        if not isinstance(batch_invariant, int):
            raise InvalidTypeError(f"batch_invariant must be True, False or an integer >= 1, got {batch_invariant!r}")
        if batch_invariant < 0 or (batch_invariant == 0 and not isinstance(batch_invariant, bool)):
            raise InvalidValueError(f"batch_invariant must be True, False or an integer >= 1, got {batch_invariant}")
        self.compile, self.graph = compile, graph
        self.micro_batch = MICRO_BATCH if batch_invariant is True else int(batch_invariant)
        self.largest_batch: int | None = None  # what the memory of the device was large enough for, once it was not
        self._stand_in = graphs is not None
        self._graphs = GraphCache(graphs)
        self._compiled: dict[object, Callable[..., Any]] = {}

    def check_device(self, device: torch.device) -> None:
        """Check that the options are possible on a device.

        Raises:
            InvalidValueError: a graph on a CPU, or compilation without a compiler.
        """
        if self.graph and device.type != "cuda" and not self._stand_in:
            raise InvalidValueError(f"graph must be False or None on {device.type}: only a GPU captures graphs")
        if self.compile:
            check_compiler(device)

    def captures(self, device: torch.device) -> bool:
        """Whether the sampling loop is captured on a device."""
        return self._stand_in or (self.graph is not False and device.type == "cuda")

    def is_fixed(self, device: torch.device) -> bool:
        """Whether all batches should have one size, with padding: each size is compiled or captured anew."""
        return self.compile or self.captures(device)

    def clear(self) -> None:
        """Forget what was captured and what failed, and free the memory."""
        self._graphs.clear()

    def call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of the model, compiled if the options say so."""
        if not self.compile:
            return function
        key = getattr(function, "__func__", function)  # a bound method is a new object at every access
        if key not in self._compiled:
            self._compiled[key] = torch.compile(function, dynamic=False, **self.compile_options)
        return self._compiled[key]

    def sample_latents(
        self,
        model: nn.Module,
        denoiser: Denoiser,
        initial: Tensor,
        plan: Plan,
        noise: Noise,
        shared_noise: bool = False,
        callback: Callback | None = None,
    ) -> Tensor:
        """Run the sampling loop as the options say; arguments as in `fastdiff.diffusion.sample_latents`.

        The denoiser's ``predict`` is a function of ``model``.
        """
        device = initial.device
        denoiser = replace(denoiser, predict=self.call(denoiser.predict))
        if not self.captures(device):
            return sample_latents(denoiser, initial, plan, noise, shared_noise, callback)
        enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        context = enabled, dtype, torch.is_inference_mode_enabled(), addresses(model), model.training
        # without the cache of cast weights, which is freed at the end of the caller's autocast
        with torch.autocast(device.type, dtype, enabled, cache_enabled=False):
            return self._graphs.sample_latents(denoiser, initial, plan, noise, shared_noise, callback, context)


def addresses(model: nn.Module) -> int:
    """Return a number that changes when parameters or buffers are moved or replaced, and not with their values."""
    return hash(tuple((each.data_ptr(), each.dtype, each.stride()) for each in (*model.parameters(), *model.buffers())))


def check_compiler(device: torch.device) -> None:
    """Check that what ``torch.compile`` needs is there: a C++ compiler on a CPU, Triton on a GPU.

    Raises:
        InvalidValueError: it is missing.
    """
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise InvalidValueError("compile must be False where triton is not installed (pip install triton)")
        return
    names = [os.environ.get("CXX", "g++"), "g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names):
        raise InvalidValueError(
            "compile must be False where there is no C++ compiler (g++ or clang++ on the PATH, or the variable CXX)"
        )
