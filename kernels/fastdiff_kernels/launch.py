"""What every kernel file shares: the probe for Triton, the choice of backend, and the registration of operations.

An operation has two implementations of one signature: the plain-PyTorch reference and the Triton launcher. Which of
them runs is decided here, from the device of the data and the backend, and nowhere else.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

if TYPE_CHECKING:  # neither Triton's language nor a kernel's body can be type-checked
    triton: Any
    tl: Any
    libdevice: Any
    from typing import Any as constexpr  # noqa: N813

    def jit(function: Callable) -> Any: ...  # noqa: D103

else:
    try:
        import triton
        import triton.language as tl
        from triton import jit
        from triton.language import constexpr
        from triton.language.extra import libdevice
    except ImportError:  # macOS, Windows: the reference path serves everything, no kernel is ever launched

        class constexpr:  # noqa: N801
            """Stands in for Triton's, so that kernel files can be imported."""

            def __init__(self, value: object) -> None:
                self.value = value

        triton = tl = libdevice = None

        def jit(function: Callable) -> Callable:
            """Leave a kernel as it is."""
            return function


BACKENDS = ("triton", "interpreter", "torch")
BLOCK = 1024  # elements of one program
WARPS = 2  # so 16 elements per thread: what a program does once costs little per element
PLAIN = (Tensor, torch.nn.Parameter)
_forced: list[str] = []


def backend() -> str:
    """Name what runs the operations in this process: ``"triton"``, ``"interpreter"`` or ``"torch"``.

    ``"triton"``: data on a GPU goes to the compiled kernels, data on a CPU to the reference. ``"interpreter"``: the
    kernels run in Triton's interpreter on any device, slowly, for debugging; chosen by ``TRITON_INTERPRET=1`` in the
    environment before the first import. ``"torch"``: the reference runs everywhere. ``FASTDIFF_BACKEND`` in the
    environment overrides the choice; it is read once, at the first use.

    Raises:
        BackendError: ``FASTDIFF_BACKEND`` names no backend, or one that this process cannot run.
    """
    return _forced[-1] if _forced else _chosen()


@functools.cache
def _chosen() -> str:
    wanted = os.environ.get("FASTDIFF_BACKEND", "auto")
    if wanted != "auto":
        _check_backend(wanted, "FASTDIFF_BACKEND")
        return wanted
    if _interpreting():
        return "interpreter"
    return "triton" if triton is not None and torch.cuda.is_available() else "torch"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the operations inside a ``with`` block on the backend ``name``, one of `BACKENDS`."""
    _check_backend(name, "use_backend")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


class BackendError(RuntimeError):
    """A backend that does not exist, or that this process cannot run."""


def _check_backend(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"{where}: unknown backend {name!r}; allowed: auto, {', '.join(BACKENDS)}")
    if name == "interpreter" and not _interpreting():
        raise BackendError(
            f"{where}: the interpreter needs triton and TRITON_INTERPRET=1, set before the first import of fastdiff"
        )
    if name == "triton" and (triton is None or _interpreting() or not torch.cuda.is_available()):
        raise BackendError(
            f"{where}: backend 'triton' needs a GPU, the triton package and TRITON_INTERPRET unset; "
            f"here: cuda {torch.cuda.is_available()}, triton {triton is not None}, interpreting {_interpreting()}"
        )


_LIBRARY = torch.library.Library("fastdiff", "DEF")


def register(
    schema: str,
    reference: Callable,
    launcher: Callable,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> Callable:
    """Register one operation with PyTorch and return it.

    Args:
        schema: the operation's name and signature, ``"name(Tensor x, ...) -> Tensor"``.
        reference: the plain-PyTorch implementation, for any device.
        launcher: the Triton implementation of the same signature.
        fake: shapes, dtypes and strides of the result, for ``torch.compile``.
        backward, setup_context: the gradient, as ``torch.library.register_autograd`` takes it.

    The first argument decides the device. What is returned goes straight to the implementation where nothing but eager
    PyTorch is at work, through an autograd function of its own: the dispatcher's way through Python costs twice as
    much, and more where the data has driven it out of the cache. Under ``torch.compile``, a dispatch mode, ``vmap``, a
    trace or with a subclass of Tensor it goes through the registered operation; a profiler and a function mode see only
    what an implementation calls. Derivatives are those of ``backward``, once: forward mode and the gradient transforms
    of ``torch.func`` raise, and so does a second derivative. ``Library`` and not ``custom_op``: a third of its cost.
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
        torch.library.register_autograd(f"fastdiff::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    return _entry(name, on_cpu, on_cuda, backward, setup_context)


def _entry(
    name: str, on_cpu: Callable, on_cuda: Callable, backward: Callable | None, setup_context: Callable | None
) -> Callable:
    """The way into an operation: see `register`."""
    operation = getattr(torch.ops.fastdiff, name).default

    def forward(ctx: Any, *args: Any) -> Any:
        output = on_cuda(*args) if args[0].is_cuda else on_cpu(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    methods: dict[str, Any] = {"forward": staticmethod(forward)}
    if backward is not None:
        methods["backward"] = staticmethod(_once(name, backward))
    function = type(f"{name}_function", (torch.autograd.Function,), methods)

    def call(*args: Any) -> Any:
        if _watched():
            _refuse_transforms(name)
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


def _watched() -> bool:
    """Whether somebody between us and eager PyTorch wants to see the operation as one."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def _refuse_transforms(name: str) -> None:
    """Raise where a derivative would come out as zero, without a word from PyTorch."""
    if torch.compiler.is_compiling():
        return
    transforms = get_interpreter_stack() or []
    kinds = {transform.key() for transform in transforms}
    if forward_ad._current_level >= 0 or kinds & {TransformType.Jvp, TransformType.Grad}:
        raise NotImplementedError(
            f"fastdiff::{name} under forward-mode differentiation or a gradient transform of torch.func; "
            "allowed: backward() and torch.autograd.grad, vmap"
        )


def _once(name: str, backward: Callable) -> Callable:
    """A backward that raises where its result is differentiated again, be it by way of a saved tensor only."""

    def wrapped(ctx: Any, *grads: Tensor | None) -> Any:
        recorded = torch.is_grad_enabled() and any(
            value is not None and value.requires_grad for value in (*grads, *ctx.saved_tensors)
        )
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not recorded:
            return results
        results = results if isinstance(results, tuple) else (results,)
        message = f"fastdiff::{name} can be differentiated once, not twice".encode()
        refuse = torch._C._functions.DelayedError(message, len(results))  # pyright: ignore[reportAttributeAccessIssue]
        return refuse(*(None if value is None else value.detach().requires_grad_() for value in results))

    return wrapped


@jit
def locate(blocks, BLOCK: constexpr):
    """(sample, first element) of this program. Both numbers are below 2**31: the unsigned division is the cheaper."""
    blocks = tl.cast(blocks, tl.uint32)
    program = tl.program_id(0).to(tl.uint32)
    sample = program // blocks
    return sample.to(tl.int32), (program - sample * blocks).to(tl.int32) * BLOCK


@functools.cache
def _interpreting() -> bool:
    """Whether kernels are interpreted: decided when they are decorated, once and for all."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def fast_math(x: Tensor) -> bool:
    """Whether kernels on x may use NVIDIA's approximate instructions: where the result is rounded to 16 bits anyway."""
    return x.element_size() == 2 and torch.version.cuda is not None and not _interpreting()


def grid_of(x: Tensor) -> tuple[int, int, int, int]:
    """Split samples into blocks: ``(programs, n, blocks, block)`` for x [B, ...] of n elements per sample.

    Program ``p`` works on block ``p % blocks`` of sample ``p // blocks``: a one-dimensional grid has no limit of
    65535, and the division is once per program. Small samples get small blocks.

    Raises:
        ValueError: one sample holds 2³¹ elements or more (offsets inside a sample are 32 bits).
    """
    return split(x.shape[0], sample_size(x))


def sample_size(x: Tensor) -> int:
    """Count the elements of one sample of x [B, ...].

    Raises:
        ValueError: one sample holds 2³¹ elements or more (offsets inside a sample are 32 bits).
    """
    n = x.numel() // x.shape[0] if x.shape[0] else 0
    if n >= 2**31 - BLOCK:
        raise ValueError(
            f"one sample of shape {tuple(x.shape[1:])} holds {n} elements; allowed: fewer than 2**31 - {BLOCK}"
        )
    return n


def split(rows: int, n: int) -> tuple[int, int, int, int]:
    """Split rows of n elements into blocks of a power of two, 16 to `BLOCK`: ``(programs, n, blocks, block)``.

    Raises:
        ValueError: more programs than a grid can have.
    """
    block = min(BLOCK, max(16, 1 << (n - 1).bit_length())) if n else 16
    blocks = -(-n // block)
    if rows * blocks >= 2**31:
        raise ValueError(f"{rows} samples of {n} elements make {rows * blocks} blocks; allowed: fewer than 2**31")
    return rows * blocks, n, blocks, block


def in_layout_of(result: Tensor, x: Tensor) -> Tensor:
    """Return ``result`` with the strides that ``torch.empty_like(x)`` has, which every fake implementation promises."""
    if result.is_contiguous() and x.is_contiguous():  # the usual case, without a second buffer
        return result
    out = torch.empty_like(x, dtype=result.dtype)
    return result if result.stride() == out.stride() else out.copy_(result)


def flat(x: Tensor) -> Tensor:
    """View x [B, ...] as [B, n]; x [B] as [B, 1]."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """View a per-sample tensor [B] so that it broadcasts against x [B, ...]."""
    return value.view(-1, *(1,) * (x.dim() - 1))
