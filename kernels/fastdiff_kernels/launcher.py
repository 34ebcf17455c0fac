"""Launches of compiled kernels with little work on the host.

Triton's ``JITFunction.run`` finds out at every launch how the arguments specialise a kernel, which takes 13 to 24 µs.
`CachedKernel` remembers the compiled kernel under what that depends on, and finds it again in 2 to 3 µs:

- the driver, the device, and Triton's settings ``debug`` and ``instrumentation_mode``;
- for a pointer, an argument whose name ends in ``_ptr``: None, or the dtype and the address modulo 16;
- for another argument the integer itself, of which Triton asks whether it is 1, a multiple of 16, or beyond 32 bits, or
  that it is a float, whose value does not specialise;
- every constant, and ``num_warps``.

Everything else takes Triton's own way: the first launch of each kind, other options such as ``enable_fp_fusion``,
arguments of other types, a grid that is no tuple, hooks that run before a launch or that inspect the compilation, and
targets other than NVIDIA's, where the size of a tensor specialises as well. Where a profiler listens to launches, the
compiled kernel is launched by ``compiled[grid](...)``, which calls it. Threads, streams and CUDA graphs need nothing:
the stream is asked for at each launch. Only the first launch of a kind checks that no number that a kernel reads from
its module has changed.

Private to Triton, and used in this file alone: the arguments of ``CompiledKernel.run`` (for versions that are known,
else ``compiled[grid]`` is used), and ``JITFunction.device_caches``, which is emptied when the active driver changes,
since Triton finds a compiled kernel there by its device alone.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

KNOWN = triton.__version__.startswith(("3.6.", "3.7."))  # versions whose `CompiledKernel.run` is called directly
LIMIT = 1 << 14  # kinds of launches that one kernel remembers
POINTERS = (torch.Tensor, torch.nn.Parameter, type(None))

# The launch of one kernel, with its parameters by name: no loop over arguments, and no dictionary of constants. Its own
# names begin with an underscore.
SOURCE = """
def launch(_grid, {parameters}, num_warps=None, **_options):
    _active = _driver.active
    _device = _active.get_current_device()
    try:
        _key = (_active, _device, _runtime.debug, {mode}, num_warps, {key})
    except AttributeError:  # a pointer that is no tensor
        _key = None
    _compiled = _known.get(_key)
    _usual = _compiled is not None and not _options and _grid.__class__ is tuple
    if not _usual or _kernel.pre_run_hooks or _runtime.add_stages_inspection_hook:
        return _kernel.launch_slowly(_grid, _key, ({arguments},), {{"num_warps": num_warps, **_options}})
    _x, _y, _z = _grid if len(_grid) == 3 else (*_grid, 1, 1)[:3]
    _stream = _active.get_current_stream(_device)
    if _public or getattr(_runtime.launch_enter_hook, "calls", 1) or getattr(_runtime.launch_exit_hook, "calls", 1):
        _compiled[_x, _y, _z]({arguments}, stream=_stream)
    else:
        _run, _packed = _compiled.run, _compiled.packed_metadata
        _run(_x, _y, _z, _stream, _compiled.function, _packed, None, None, None, {arguments})
    return _compiled
"""


class CachedKernel(triton.JITFunction):
    """A kernel that finds its compiled form without Triton's analysis of the arguments, see above."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        self._known: dict[tuple, CompiledKernel] = {}
        self._driver: Any = None
        self._launch: Callable | None = None

    def __getitem__(self, grid: Any) -> Callable:
        """Return what launches the kernel on the current device and stream, and returns the compiled kernel."""
        if self._launch is None:
            parameters = inspect.signature(self.fn).parameters.values()
            if any(param.name.startswith("_") or param.default is not param.empty for param in parameters):
                return super().__getitem__(grid)  # none of ours
            self._launch = self._generate()
        return partial(self._launch, grid)

    def _generate(self) -> Callable:
        parts = []
        for param in self.params:
            name = param.name
            if param.is_constexpr:
                parts.append(name)
            elif name.endswith("_ptr"):
                parts.append(f"None if {name} is None else ({name}.dtype, {name}.data_ptr() % 16)")
            else:
                parts.append(f"{name} if {name}.__class__ is int else {name}.__class__")
        names = ", ".join(self.arg_names)
        mode = "_compilation.instrumentation_mode" if hasattr(knobs.compilation, "instrumentation_mode") else "None"
        scope = {
            "_kernel": self, "_known": self._known, "_driver": driver, "_runtime": knobs.runtime,
            "_compilation": knobs.compilation, "_public": not KNOWN,
        }  # fmt: skip
        exec(SOURCE.format(parameters=names, arguments=names, mode=mode, key=", ".join(parts)), scope)
        return scope["launch"]

    def launch_slowly(self, programs: Any, key: tuple | None, args: tuple, options: dict[str, Any]) -> Any:
        """Launch in Triton's way, and remember what was launched."""
        if driver.active is not self._driver:
            getattr(self, "device_caches", {}).clear()
            self._known.clear()
            self._driver = driver.active
        given = {name: value for name, value in options.items() if value is not None or name != "num_warps"}
        compiled = self.run(*args, grid=programs, warmup=False, **given)
        if (
            key is not None
            and options.keys() == {"num_warps"}
            and isinstance(compiled, CompiledKernel)
            and compiled.metadata.target.backend == "cuda"
            and all(map(self._keyed, self.params, args))
        ):
            if len(self._known) >= LIMIT:
                self._known.clear()
            self._known[key] = compiled
        return compiled

    @staticmethod
    def _keyed(param: Any, value: Any) -> bool:
        """Whether the key says all of this argument that specialises a kernel."""
        types = POINTERS if param.name.endswith("_ptr") else (int, float)
        return param.is_constexpr or value.__class__ in types
