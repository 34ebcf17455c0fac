"""Triton, imported at the first launch of a kernel.

Importing Triton takes longer than importing this package, and on a CPU no kernel is ever launched. Kernel files
therefore use the stand-ins `jit`, `constexpr`, `constant`, `tl` and `libdevice` of this module. The first launch calls
`load`, which imports Triton, decorates every kernel that is waiting, and replaces the stand-ins in the globals of the
kernels' modules. From then on these modules are as if they had imported Triton at their top: a launch costs nothing
more, and the compiler and the interpreter find real modules, kernels and constants when they read the globals. Compiled
kernels are launched by `launcher`.

Without Triton (macOS, Windows) the kernel files can be imported all the same; `load` then raises a `BackendError`.
"""

import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import BackendError

ENABLED = ("1", "true", "yes", "on", "y")  # what Triton takes for a yes in an environment variable


def installed() -> bool:
    """Whether the triton package can be found. Does not import it."""
    return importlib.util.find_spec("triton") is not None


def _interpreter_wanted() -> bool:
    triton = sys.modules.get("triton")
    if triton is not None:
        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "").lower() in ENABLED and installed()


# Whether kernels run in Triton's interpreter. Read once, since Triton decides when a kernel is decorated, for good.
INTERPRETED = _interpreter_wanted()


class Kernel:
    """A function that becomes a Triton kernel, or a device function, once Triton is loaded."""

    def __init__(self, function: Callable) -> None:
        self.fn = function
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self.decorated: Any = None

    def __getitem__(self, grid: tuple[int, ...]) -> Callable:
        load()
        return self.decorated[grid]


class StandIn:
    """Stands for a module of Triton in the globals of a kernel file."""


_waiting: list[Kernel] = []
_decorate: Any = None  # makes a kernel of a function, once Triton is loaded
_lock = threading.RLock()

if TYPE_CHECKING:  # neither Triton's language nor a kernel's body can be type-checked
    from typing import Any as constexpr  # noqa: N813

    tl: Any
    libdevice: Any

    def jit(function: Callable) -> Any:
        """Mark a function as a kernel or a device function."""

    def constant(value: float) -> Any:
        """Make a number that kernels may read from their module."""

else:

    class constexpr:  # noqa: N801
        """Stands for ``triton.language.constexpr``, as an annotation and as a value."""

        def __init__(self, value: float) -> None:
            self.value = value

    tl, libdevice = StandIn(), StandIn()

    def jit(function: Callable) -> Any:
        """Mark a function as a kernel or a device function."""
        if _decorate is not None:
            return _decorate(function)
        _waiting.append(Kernel(function))
        return _waiting[-1]

    def constant(value: float) -> Any:
        """Make a number that kernels may read from their module. The host finds it in ``.value``."""
        return constexpr(value)


def load() -> None:
    """Import Triton, decorate the kernels that are waiting, and replace the stand-ins in their modules.

    Raises:
        BackendError: Triton cannot be imported, or ``TRITON_INTERPRET`` changed after this package was imported.
    """
    global _decorate
    with _lock:
        if _decorate is not None:
            return
        try:
            import triton
            import triton.language
            from triton import knobs
            from triton.language.extra import libdevice as device_library
        except ImportError as error:
            raise BackendError(
                f"The Triton kernels need the triton package, which cannot be imported: {error}"
            ) from error
        if bool(knobs.runtime.interpret) != INTERPRETED:
            raise BackendError(
                "TRITON_INTERPRET must be set before the first import of fastdiff, but it changed since."
            )
        decorate = triton.jit
        if not INTERPRETED:
            from .launcher import CachedKernel

            decorate = CachedKernel
        real = {tl: triton.language, libdevice: device_library, constexpr: triton.language.constexpr}
        for kernel in _waiting:
            annotations = kernel.fn.__annotations__
            annotations.update({name: _replaced(value, real) for name, value in annotations.items()})
            kernel.decorated = decorate(kernel.fn)
        for scope in {id(kernel.fn.__globals__): kernel.fn.__globals__ for kernel in _waiting}.values():
            scope.update({name: _replaced(value, real) for name, value in scope.items()})
        globals().update(tl=triton.language, libdevice=device_library, constexpr=triton.language.constexpr)
        _waiting.clear()
        _decorate = decorate


def _replaced(value: Any, real: dict[Any, Any]) -> Any:
    """The object of Triton for a stand-in; any other value as it is."""
    if isinstance(value, Kernel):
        return value.decorated
    if value.__class__ is constexpr:
        return real[constexpr](value.value)
    return real[value] if value is constexpr or isinstance(value, StandIn) else value
