"""Registration of operations with PyTorch.

An operation has two implementations of one signature: the plain-PyTorch reference and the Triton launcher. The device
of the data and `backend` decide which of them runs; this module is the only place where that is decided.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._torch_private import batched_levels, functorch_transforms, in_forward_mode, plain_eager, vmap_levels
from .backend import backend
from .errors import UnsupportedTransformError

PLAIN = (Tensor, torch.nn.Parameter)
LAUNCHERS: dict[str, Callable] = {}  # the Triton implementation of every operation, by its name
ONE_NOISE = ("draw", "noise_sum")  # operations whose only data is noise
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

    Under ``vmap`` the operation is called sample by sample. One `Noise` for all samples would be the same noise for
    each of them, so that it raises `UnsupportedTransformError`; a key per sample and noise as a tensor are accepted.

    Only ``backward`` defines derivatives, and they can be taken once: forward mode, the gradient transforms of
    ``torch.func`` and second derivatives raise `UnsupportedTransformError`. A call of an operation that is registered
    with `Library` costs a third of one that is registered with ``custom_op``.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LAUNCHERS[name] = launcher

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
    torch.library.register_vmap(f"fastdiff::{name}", partial(_sample_by_sample, name), lib=_LIBRARY)
    return _entry(name, on_cpu, on_cuda, backward, setup_context)


def _sample_by_sample(name: str, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """The rule for one level of ``vmap``: call the operation for every sample, and stack the results."""
    operation = getattr(torch.ops.fastdiff, name).default
    batched = [isinstance(value, Tensor) and dim is not None for value, dim in zip(args, in_dims, strict=True)]
    if any(_is_key(value) and not own for value, own in zip(args, batched, strict=True)):
        raise _same_noise(name)
    results = [
        operation(
            *(value.select(dim, k) if own else value for value, dim, own in zip(args, in_dims, batched, strict=True))
        )
        for k in range(info.batch_size)
    ]
    if isinstance(results[0], (tuple, list)):
        kind = type(results[0])
        return kind(map(torch.stack, zip(*results, strict=True))), kind([0] * len(results[0]))
    return torch.stack(results), 0


def _is_key(value: Any) -> bool:
    """Whether an argument is the key of a `Noise`."""
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.shape == (4,)


def _same_noise(name: str) -> UnsupportedTransformError:
    return UnsupportedTransformError(
        f"fastdiff::{name} under torch.func.vmap would draw the same noise for every sample; pass the noise as a "
        "tensor, or call the operation on the whole batch"
    )


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
            elif name in ONE_NOISE and vmap_levels():  # without batched data no rule for vmap is asked
                raise _same_noise(name)
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
    levels = vmap_levels()
    if levels and any(not batched_levels(value).issuperset(levels) for value in tensors if _is_key(value)):
        raise _same_noise(name)


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
