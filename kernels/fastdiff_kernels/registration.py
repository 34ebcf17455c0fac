"""Registration of operations with PyTorch.

An operation has two implementations of one signature: the plain-PyTorch reference and the Triton launcher. The device
of the data and `backend` decide which of them runs; this module is the only place where that is decided.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._torch_private import functorch_transforms, in_forward_mode, plain_eager
from .backend import backend
from .errors import UnsupportedTransformError

PLAIN = (Tensor, torch.nn.Parameter)
_LIBRARY = torch.library.Library("fastdiff", "DEF")


def register(
    schema: str,
    reference: Callable,
    launcher: Callable,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> Callable:
    """Register one operation with PyTorch and return the function that calls it.

    Args:
        schema: the operation's name and signature, ``"name(Tensor x, ...) -> Tensor"``.
        reference: the plain-PyTorch implementation, for any device.
        launcher: the Triton implementation with the same signature.
        fake: shapes, dtypes and strides of the result, for ``torch.compile``.
        backward, setup_context: the gradient, as ``torch.library.register_autograd`` takes it.

    The device of the first argument decides where the operation runs. In plain eager mode the returned function calls
    the implementation directly, through an autograd function of its own. The dispatcher's way through Python costs
    twice as much, or more if the data has evicted it from the cache. Under ``torch.compile``, a dispatch mode,
    ``vmap``, a trace, or with a subclass of Tensor, the function calls the registered operation. In plain eager mode a
    profiler and a function mode see only the PyTorch calls of the implementation.

    Only ``backward`` defines derivatives, and they can be taken once: forward mode, the gradient transforms of
    ``torch.func`` and second derivatives raise `UnsupportedTransformError`. A call of an operation that is registered
    with `Library` costs a third of one that is registered with ``custom_op``.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def on_cpu(*args: Any) -> Any:
        return (launcher if backend() == "interpreter" else reference)(*args)

    def on_cuda(*args: Any) -> Any:
        if backend() == "torch":
            return reference(*args)
        device = args[0].get_device()
        if device == torch.cuda.current_device():  # the usual case, without a context manager
            return launcher(*args)
        with torch.cuda.device(device):
            return launcher(*args)

    _LIBRARY.impl(name, on_cpu, "CPU")
    _LIBRARY.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        backward = _once(name, backward)
        torch.library.register_autograd(f"fastdiff::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    return _entry(name, on_cpu, on_cuda, backward, setup_context)


def _entry(
    name: str, on_cpu: Callable, on_cuda: Callable, backward: Callable | None, setup_context: Callable | None
) -> Callable:
    """The function that calls an operation, directly or through the dispatcher: see `register`."""
    operation = getattr(torch.ops.fastdiff, name).default

    def forward(ctx: Any, *args: Any) -> Any:
        output = on_cuda(*args) if args[0].is_cuda else on_cpu(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    methods: dict[str, Any] = {"forward": staticmethod(forward)}
    if backward is not None:
        methods["backward"] = staticmethod(backward)
    function = type(f"{name}_function", (torch.autograd.Function,), methods)

    def call(*args: Any) -> Any:
        if not plain_eager():
            if not torch.compiler.is_compiling():
                _reject_transforms(name, args)
            return operation(*args)
        recorded = False
        for value in args:
            if isinstance(value, Tensor):
                if type(value) not in PLAIN or not (value.is_cpu or value.is_cuda) or value.is_neg():
                    return operation(*args)
                recorded = recorded or value.requires_grad
        if recorded and backward is not None and torch.is_grad_enabled():
            return function.apply(*args)
        return on_cuda(*args) if args[0].is_cuda else on_cpu(*args)

    return call


def values_visible(x: Tensor) -> bool:
    """Whether values of x can be checked without waiting for a device: a CPU tensor in plain eager mode."""
    return x.is_cpu and type(x) in PLAIN and plain_eager()


def _reject_transforms(name: str, args: tuple[Any, ...]) -> None:
    """Raise where PyTorch would return a derivative of zero, or the same noise for every sample, without an error."""
    transforms = functorch_transforms()
    tensors = [value for value in args if isinstance(value, Tensor)]
    if transforms & {"Jvp", "Grad"} or in_forward_mode(tensors):
        raise UnsupportedTransformError(
            f"fastdiff::{name} does not support forward-mode differentiation or the gradient transforms of torch.func; "
            "use backward() or torch.autograd.grad"
        )
    keys = [value for value in tensors if value.dtype == torch.int64 and value.shape == (4,)]
    if "Vmap" in transforms and any(torch.func.debug_unwrap(key, recurse=False) is key for key in keys):
        raise UnsupportedTransformError(
            f"fastdiff::{name} under torch.func.vmap would draw the same noise for every sample; pass the noise as a "
            "tensor, or call the operation on the whole batch"
        )


class _Undifferentiable(torch.autograd.Function):
    """Returns its tensors; their derivative raises."""

    @staticmethod
    def forward(ctx: Any, name: str, *results: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.name = name
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise UnsupportedTransformError(f"fastdiff::{ctx.name} can be differentiated once, not twice")


def _once(name: str, backward: Callable) -> Callable:
    """A backward whose result raises where it is differentiated again, even by way of a saved tensor only."""

    def wrapped(ctx: Any, *grads: Tensor | None) -> Any:
        recorded = torch.is_grad_enabled() and any(
            value is not None and value.requires_grad for value in (*grads, *ctx.saved_tensors)
        )
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not recorded:
            return results
        results = results if isinstance(results, tuple) else (results,)
        detached = (None if value is None else value.detach().requires_grad_() for value in results)
        return _Undifferentiable.apply(name, *detached)

    return wrapped
