"""Guards around kernels in Triton's interpreter, which does not check accesses itself.

`guarded` gives every tensor argument of a launch its own range of addresses, far from all others, and translates each
access back to memory. An address therefore shows which argument it was computed from, and an access outside the
elements of that argument is an error. Masked lanes are passed on as address 0, so that an access to one would crash.
Memory that is allocated under the guard starts as NaN, so that elements which are never written show in the results.

In record-only mode nothing is checked, read or written: loads return 0 and the offsets are recorded. In this way a
program of a launch far beyond the machine's memory can be examined.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

SHIFT = 52  # an argument has a range of 2⁵² addresses and starts in its middle
MARGIN = 64  # elements of NaN on either side of a surrounded tensor


@dataclass
class Region:
    """A tensor argument of one launch: its address, and how often each of its bytes was read and written."""

    name: str
    tensor: Tensor
    base: int
    owned: np.ndarray = field(init=False)  # whether a byte between the first and the last element belongs to one
    reads: np.ndarray = field(init=False)
    writes: np.ndarray = field(init=False)
    spared: int = 0  # masked lanes that pointed outside the tensor

    def __post_init__(self) -> None:
        width = self.tensor.element_size()
        starts = self.starts().ravel()
        self.owned = np.zeros(int(starts.max()) + width if starts.size else 0, dtype=bool)
        for byte in range(width):
            self.owned[starts + byte] = True
        self.reads, self.writes = np.zeros((2, self.owned.size), dtype=np.int64)

    def starts(self) -> np.ndarray:
        """Byte offset of every element, in the shape of the tensor."""
        starts = np.zeros((), dtype=np.int64)
        for size, stride in zip(self.tensor.shape, self.tensor.stride(), strict=True):
            starts = starts[..., None] + np.arange(size) * stride * self.tensor.element_size()
        return starts

    def outside(self, offsets: np.ndarray, width: int) -> np.ndarray:
        """Which accesses of ``width`` bytes at these byte offsets are outside the elements of the tensor."""
        bad = (offsets < 0) | (offsets + width > self.owned.size)
        inside = np.where(bad, 0, offsets)
        if self.owned.all():
            return bad
        for byte in range(width):
            bad |= ~self.owned[np.minimum(inside + byte, self.owned.size - 1)]
        return bad

    def __str__(self) -> str:
        return f"{self.name}, {self.tensor.dtype} {tuple(self.tensor.shape)} of bytes 0 to {self.owned.size}"


@dataclass
class Launch:
    """One launch of a kernel under the guard."""

    kernel: str  # module.function, the module without its package
    arguments: dict[str, Any]
    regions: dict[str, Region] = field(default_factory=dict)
    grid: tuple[int, ...] = ()
    offsets: list[tuple[str, str, np.ndarray]] = field(default_factory=list)  # argument, kind, elements; record-only

    def assert_written_once(self) -> None:
        """At least one argument was written, and every element of each written argument exactly once."""
        outputs = [region for region in self.regions.values() if region.writes.any()]
        assert outputs, f"{self.kernel} wrote nothing"
        for region in outputs:
            times = region.writes[region.starts()]
            wrong = np.argwhere(times != 1)
            assert not len(wrong), (
                f"{self.kernel}: element {wrong[0].tolist()} of {region} was written {times[tuple(wrong[0])]} times"
            )


class Guard:
    """The launches so far, and the first wrong access."""

    def __init__(self, record_only: bool = False) -> None:
        self.launches: list[Launch] = []
        self.record_only = record_only
        self.failure: AssertionError | None = None
        self._by_id: dict[int, Region] = {}  # the interpreter's copies of the arguments

    def begin(self, executor: Any, names: list[str], values: list[Any]) -> None:
        """Record a launch with its arguments as the interpreter passes them on."""
        kernel = f"{executor.fn.__module__.rpartition('.')[2]}.{executor.fn.__name__}"
        self.launches.append(Launch(kernel, dict(zip(names, values, strict=True))))
        self._by_id = {}
        for name, value in zip(names, values, strict=True):
            self._add(name, value)

    def _add(self, name: str, value: Any) -> None:
        if isinstance(value, tuple):
            for k, item in enumerate(value):
                self._add(f"{name}[{k}]", item)
        elif hasattr(value, "data_ptr"):
            regions = self.launches[-1].regions
            middle = ((len(regions) + 1) << SHIFT) + (1 << (SHIFT - 1))
            regions[name] = self._by_id[id(value)] = Region(name, value, middle + value.data_ptr() % 4096)
        elif hasattr(value, "block_shape"):  # a tensor descriptor
            self._add(name, value.base)

    def convert(self, original: Callable, value: Any) -> Any:
        """An argument as a value of the interpreter, with pointers replaced by ours."""
        converted = original(value)
        if hasattr(value, "data_ptr"):
            converted.handle.data = np.array([self._by_id[id(value)].base], dtype=np.uint64)
        return converted

    def access(self, kind: str, addresses: np.ndarray, mask: np.ndarray, width: int) -> np.ndarray:
        """Check an access lane by lane. Return the addresses in memory, 0 for masked lanes."""
        launch = self.launches[-1]
        mask = np.broadcast_to(mask, addresses.shape)
        real = np.zeros(addresses.shape, dtype=np.uint64)
        numbers = (addresses >> np.uint64(SHIFT)).astype(np.int64)
        regions = list(launch.regions.values())
        for number in np.unique(numbers):
            lanes = numbers == number
            if not 1 <= number <= len(regions):
                if (lanes & mask).any():
                    self._fail(f"{launch.kernel}: {kind} at an address that comes from no argument")
                continue
            region = regions[number - 1]
            offsets = addresses[lanes].astype(np.int64) - region.base
            self._account(launch, region, kind, offsets, mask[lanes], width)
            real[lanes] = np.where(mask[lanes], offsets + region.tensor.data_ptr(), 0).astype(np.uint64)
        return real

    def _account(self, launch: Launch, region: Region, kind: str, offsets: np.ndarray, mask: np.ndarray, width: int):
        if self.record_only:
            launch.offsets.append((region.name, kind, offsets[mask] // width))
            return
        bad = region.outside(offsets, width)
        region.spared += int((bad & ~mask).sum())
        if (bad & mask).any():
            at = int(offsets[bad & mask][0])
            program = interpreter.interpreter_builder.grid_idx
            self._fail(f"{launch.kernel}: {kind} of {width} bytes at byte {at} of {region}; program {program}")
        count = region.reads if kind == "read" else region.writes
        for byte in range(width):
            np.add.at(count, offsets[mask] + byte, 1)

    def _fail(self, message: str) -> None:
        self.failure = AssertionError(message)  # kept, since the interpreter wraps exceptions in its own
        raise self.failure


class _Memory:
    """Replaces the compiled part of the interpreter, which contains its four kinds of access to memory."""

    def __init__(self, guard: Guard, native: Any) -> None:
        self._guard, self._native = guard, native

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def load(self, addresses, mask, other, dtype):
        real = self._guard.access("read", addresses, mask, np.dtype(dtype).itemsize)
        if self._guard.record_only:
            return np.where(mask, np.zeros_like(other), other).astype(dtype)
        return self._native.load(real, mask, other, dtype)

    def store(self, addresses, value, mask):
        real = self._guard.access("write", addresses, mask, value.itemsize)
        return None if self._guard.record_only else self._native.store(real, value, mask)

    def atomic_rmw(self, operation, addresses, value, mask, order):
        real = self._guard.access("write", addresses, mask, value.itemsize)
        if self._guard.record_only:
            return np.zeros_like(value)
        return self._native.atomic_rmw(operation, real, value, mask, order)

    def atomic_cas(self, addresses, expected, value, order):
        real = self._guard.access("write", addresses, np.ones(addresses.shape, dtype=bool), value.itemsize)
        if self._guard.record_only:
            return np.zeros_like(value)
        return self._native.atomic_cas(real, expected, value, order)


def _int32(value: int) -> tl.tensor:
    return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.int32), tl.int32), tl.int32)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch allocates inside the block starts as NaN, or as the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling


@contextlib.contextmanager
def guarded(
    *, record_only: bool = False, program: Sequence[int] | None = None, programs: Sequence[int] = (1, 1, 1)
) -> Iterator[Guard]:
    """Guard every launch inside the block, and yield the `Guard` that records the launches.

    Args:
        record_only: only record the offsets of the accesses; check, read and write nothing.
        program: id of the one program that each launch runs, in a grid of ``programs``. The launch keeps its own grid.
    """
    guard, executor = Guard(record_only), interpreter.GridExecutor
    prepare, call, convert = executor._init_args_hst, executor.__call__, interpreter._implicit_cvt

    def guarded_prepare(self, args_dev, kwargs):
        args, named = prepare(self, args_dev, kwargs)
        guard.begin(self, [*self.arg_names[: len(args)], *named], [*args, *named.values()])
        return args, named

    def guarded_call(self, *args, **kwargs):
        grid = self.grid
        if program is not None:
            self.grid = (1,)
        try:
            call(self, *args, **kwargs)
        except Exception:
            if guard.failure is None:
                raise
            failure, guard.failure = guard.failure, None
            raise failure from None
        guard.launches[-1].grid = (*grid, *[1] * (3 - len(grid)))

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (executor, "_init_args_hst", guarded_prepare),
            (executor, "__call__", guarded_call),
            (interpreter, "_implicit_cvt", lambda value: guard.convert(convert, value)),
            (interpreter, "_interpreter", _Memory(guard, interpreter._interpreter)),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        if program is not None:
            for name, number in (("program_id", program), ("num_programs", programs)):
                stack.enter_context(mock.patch.object(TritonSemantic, name, lambda _, axis, n=number: _int32(n[axis])))
        stack.enter_context(poisoned())
        yield guard


def surrounded(x: Tensor, layout: str = "contiguous") -> Tensor:
    """The values of x in another layout, surrounded by memory that is NaN, or the largest integer."""
    rank, step, pad, shift = x.dim(), 1, 0, 0
    order = list(range(rank))  # dimensions from the outermost in memory to the innermost
    expanded: list[int] = []
    match layout:
        case "contiguous":
            pass
        case "misaligned":  # the first element is aligned to its own size only
            shift = 1
        case "padded":  # a gap between samples, as after slicing the channels
            pad, shift = 3, 3
        case "strided":  # every other element
            step, shift = 2, 1
        case "transposed":
            order[-2:] = order[:-3:-1]
        case "channels last":
            order = [*order[:1], *order[2:], *order[1:2]]
        case "expanded":  # all samples are the first one
            expanded = order[:1]
        case "constant":  # all elements are the first one
            expanded = order
        case _:
            raise ValueError(f"surrounded: unknown layout {layout!r}")
    held = x
    for dim in expanded:
        held = held[(slice(None),) * dim + (slice(1),)]
    strides, size = [0] * rank, step
    for place, dim in enumerate(reversed(order)):
        strides[dim] = size
        size = size * held.shape[dim] + (pad if place == rank - 2 else 0)
    fill = float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max
    memory = torch.full((size + 2 * MARGIN + shift,), fill, dtype=x.dtype)
    view = memory.as_strided(held.shape, strides, MARGIN + shift)
    view.copy_(held)
    return view.expand(x.shape)


LAYOUTS = ("contiguous", "misaligned", "padded", "strided", "transposed", "channels last", "expanded", "constant")
