"""Every private name of PyTorch that this package uses, each with a fallback for a version that lacks it.

The names answer three questions. Is anything but plain eager PyTorch at work, so that a call has to go through the
dispatcher (`plain_eager`)? Which transforms of ``torch.func`` are active, so that a call which would return a wrong
derivative can be rejected (`functorch_transforms`, `in_forward_mode`)? Does a ``vmap`` give every sample the same key
of a noise (`vmap_levels`, `batched_levels`)?

Without one of the names behind `plain_eager` the answer is always no: every call goes through the dispatcher, which is
right and costs 10 to 30 µs more, and values of arguments are not checked. Without the names behind
`functorch_transforms`, PyTorch itself rejects ``torch.func.grad``, with a less helpful message, and under ``vmap``
`Noise.normal` and `Noise.uniform` are not rejected (every other operation still is, by its rule for ``vmap``). Forward
mode is then found by ``unpack_dual``, which is public.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Constant = TypeVar("Constant", bound=Callable[..., Any])

try:
    from torch._C import _are_functorch_transforms_active, _get_tracing_state, _len_torch_dispatch_stack
    from torch.autograd.forward_ad import _current_level  # noqa: F401  # read from its module at every call
except ImportError:

    def plain_eager() -> bool:
        """Whether nothing but eager PyTorch is at work. That is unknown here, so the answer is no."""
        return False

else:

    def plain_eager() -> bool:
        """Whether nothing but eager PyTorch is at work: no compiler, dispatch mode, function transform or trace."""
        return not (
            torch.compiler.is_compiling()
            or _len_torch_dispatch_stack()
            or _are_functorch_transforms_active()
            or forward_ad._current_level >= 0
            or _get_tracing_state() is not None
        )


try:
    from torch._C._functorch import (
        TransformType,
        get_interpreter_stack,
        get_unwrapped,
        is_batchedtensor,
        is_functorch_wrapped_tensor,
        maybe_get_level,
    )
except ImportError:
    TransformType = get_interpreter_stack = None
    get_unwrapped = is_batchedtensor = is_functorch_wrapped_tensor = maybe_get_level = None


def functorch_transforms() -> set[str]:
    """Names of the active transforms of ``torch.func``, such as "Grad", "Jvp" and "Vmap"; empty where unknown."""
    if TransformType is None or get_interpreter_stack is None:
        return set()
    return {transform.key().name for transform in get_interpreter_stack() or []}


def constant_result(function: Constant) -> Constant:
    """Mark a function whose result a compiler reads while it traces, as ``torch.compiler.assume_constant_result``.

    That would import the compiler and Triton where the function is defined.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


@constant_result
def vmap_levels() -> tuple[int, ...]:
    """Levels of the active ``vmap``s; empty where unknown. A compiler reads them while it traces."""
    if TransformType is None or get_interpreter_stack is None:
        return ()
    return tuple(layer.level() for layer in get_interpreter_stack() or [] if layer.key().name == "Vmap")


def batched_levels(tensor: Tensor) -> set[int]:
    """Levels of the ``vmap``s over which the tensor varies. Call it only where `vmap_levels` is not empty."""
    assert is_functorch_wrapped_tensor and is_batchedtensor and maybe_get_level and get_unwrapped  # noqa: PT018
    levels = set()
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            levels.add(maybe_get_level(tensor))
        tensor = get_unwrapped(tensor)
    return levels


def in_forward_mode(tensors: list[Tensor]) -> bool:
    """Whether one of the tensors carries a tangent of forward-mode differentiation."""
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
