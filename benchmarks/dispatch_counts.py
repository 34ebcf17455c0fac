"""Counts of what a piece of PyTorch code launches and moves, on a CPU, by a dispatch mode.

**Operations.** Every operation that reaches PyTorch's dispatcher below autograd counts once, except those that run no
kernel on a GPU. These are the operations whose schema says that a result is a view of an argument (``view``, ``t``,
``expand``, ``unbind``, ``detach``, ...: a returned alias that is not written to), `WITHOUT_KERNEL`, and marks for a
profiler. In-place operations count. Sizes and strides never reach a dispatch mode.

**Element-wise bytes.** The bytes of all tensors that an operation takes and returns, for operations that are no
convolution, matrix product or attention (`PRODUCTS` and their gradients): element-wise operations, norms,
concatenations, copies, reductions. A tensor counts with its logical size, also where it is expanded.

**Launches.** An operation of PyTorch is one launch, a convolution with a bias two (on CUDA the bias is added by a
kernel of its own), and the gradient of a convolution one for each tensor that it differentiates by. Some operations of
PyTorch launch more, so that this is a lower bound for them. An operation of fastdiff counts with what its launcher
launches: its Triton kernels, which are replaced by stand-ins that count, and the operations of PyTorch around them.
"""

import contextlib
import pkgutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import fastdiff_kernels
from fastdiff_kernels import use_backend
from fastdiff_kernels.registration import LAUNCHERS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# allocations, a reshape that its schema does not call a view, and a read of one number by the host
WITHOUT_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_local_scalar_dense",
}  # fmt: skip
PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "_scaled_dot_product")


@dataclass
class Count:
    """What an operation, or all of them, cost.

    calls: operations. launches: kernels on a GPU, at least. bytes: element-wise bytes.
    """

    calls: int = 0
    launches: int = 0
    bytes: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.calls + other.calls, self.launches + other.launches, self.bytes + other.bytes)


class DispatchCounts(TorchDispatchMode):
    """Counts the operations that run inside ``with`` by name, in ``counts``; values are computed as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Count] = defaultdict(Count)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        if not without_kernel(function):
            moved = 0 if is_product(function) else tensor_bytes((args, kwargs, results))
            name = str(function).removesuffix(".default").removeprefix("aten.")
            self.counts[name] += Count(1, launches(function, args, kwargs), moved)
        return results

    @property
    def total(self) -> Count:
        """The sum over all operations."""
        return sum(self.counts.values(), Count())


def without_kernel(function: Any) -> bool:
    """Whether an operation runs no kernel on a GPU, by the rule at the top of this file."""
    returned = function._schema.returns
    is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returned)
    return is_view or function.namespace == "profiler" or operation_name(function) in WITHOUT_KERNEL


def is_product(function: Any) -> bool:
    """Whether an operation is a convolution, a matrix product or attention, or the gradient of one."""
    name = operation_name(function)
    return name.removesuffix("_backward") in PRODUCTS or name.startswith("_scaled_dot_product")


def operation_name(function: Any) -> str:
    """The name of an operation without namespace and overload, such as ``"add"`` for ``aten.add.Tensor``."""
    return function._schema.name.partition("::")[2]


def tensor_bytes(values: Any) -> int:
    """Bytes of all tensors in nested containers."""
    return sum(value.numel() * value.element_size() for value in tree_leaves(values) if isinstance(value, Tensor))


def launches(function: Any, args: tuple, kwargs: dict[str, Any]) -> int:
    """The number of kernels that an operation launches on a GPU, at least; see the top of this file."""
    name = operation_name(function)
    if function.namespace == "fastdiff":
        return launches_of(LAUNCHERS[name], all_arguments(function, args, kwargs))
    if name == "convolution":
        return 1 + (all_arguments(function, args, kwargs)[2] is not None)
    if name == "convolution_backward":
        return sum(all_arguments(function, args, kwargs)[-1])
    return 1


def all_arguments(function: Any, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of an operation by position, with the defaults of those that the call leaves out."""
    rest = function._schema.arguments[len(args) :]
    return [*args, *(kwargs.get(argument.name, argument.default_value) for argument in rest)]


def launches_of(launcher: Callable, args: list[Any]) -> int:
    """Run a launcher on CPU tensors with kernels that do nothing, and count them with the operations around them."""
    with counting_kernels() as kernels, DispatchCounts() as around:
        launcher(*args)
    return len(kernels) + around.total.launches


@contextlib.contextmanager
def counting_kernels() -> Iterator[list[str]]:
    """Replace every kernel of the package: ``kernel[grid](...)`` appends the kernel's name to the list and returns."""
    launched: list[str] = []
    replaced = []
    for module in kernel_modules():
        for name, value in vars(module).items():
            if hasattr(value, "fn") and hasattr(
                type(value), "__getitem__"
            ):  # a kernel, before or after Triton is loaded
                replaced.append((module, name, value))
    try:
        for module, name, _ in replaced:
            setattr(module, name, CountingKernel(name, launched))
        yield launched
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


class CountingKernel:
    """Replaces a kernel, see `counting_kernels`."""

    def __init__(self, name: str, launched: list[str]) -> None:
        self.name, self.launched = name, launched

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launched.append(self.name)


def kernel_modules() -> list[Any]:
    """The modules of the kernels' package."""
    names = sorted(info.name for info in pkgutil.iter_modules(fastdiff_kernels.__path__))
    return [import_module(f"fastdiff_kernels.{name}") for name in names]


def counted(call: Callable[[], object]) -> dict[str, Count]:
    """Run a call on the reference implementations, and return its counts by operation, the largest in bytes first."""
    with use_backend("torch"), DispatchCounts() as mode:
        call()
    return dict(sorted(mode.counts.items(), key=lambda item: (-item[1].bytes, -item[1].calls)))
