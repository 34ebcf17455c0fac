"""Several processes of one run, as torchrun starts them: joining, and what they tell each other.

Every function is right in a single process without a process group as well, so callers need not distinguish. All
exchanges are of CPU tensors (gloo), so they neither wait for a GPU nor use it; nothing is pickled.

**When a process dies** (measured on one machine with gloo, kill -9 of one of two and of four processes): the operating
system closes its connections. Processes that exchange something with it, or begin to, get an error within 0.1 s, which
`lost_peers` turns into a `ProcessError`; as they leave, so do those that wait for them. A process that is busy notices
at its next exchange; `fastdiff.io.shares` has one after every batch.

torchrun looks after its processes ten times a second. It sends the others SIGTERM 0.1 s after one has died, which ends
a process without a handler at once, and SIGKILL 30 s later (``--shutdown-timeout`` changes that). A handler in Python
is not called while the process waits for a GPU, and NCCL does not notice on one machine that a process is gone: there
SIGKILL is what ends the others, after 31 s, so that GPU runs are best started with ``--shutdown-timeout 15``.

`TIMEOUT` is for a process that is alive and does not answer. It bounds how long one process may work alone while the
others wait, as at a checkpoint, so it is long.
"""

import gc
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from fastdiff_kernels.errors import FastdiffError, InvalidValueError
from torch import Tensor

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
DEVICES = ("cpu", "cuda", "mps", "xpu")
# Errors of a connection that broke or of a process that does not answer; not those of a wrong call.
LOST = re.compile(
    r"gloo[/\\](transport|rendezvous)|[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out.*gloo"
)


class ProcessError(FastdiffError, RuntimeError):
    """Another process of this run has ended or cannot be reached."""


class PeerError(ProcessError):
    """Another process of this run raised an error.

    ``rank`` is the process, ``kind`` the name of the class of the error, ``message`` its text.
    """

    def __init__(self, rank: int, kind: str, message: str) -> None:
        super().__init__(f"rank {rank} of {count()} failed: {message or kind}")
        self.rank, self.kind, self.message = rank, kind, message


# ------------------------------------------------------------------------------------------------ the group


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _has_group() else 0


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _has_group() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def check_device(device: torch.device | str | None) -> torch.device:
    """Return a device, checked; None or ``"auto"`` is the GPU if there is one, else the CPU.

    Raises:
        InvalidValueError: no device, or one that this machine does not have.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type not in DEVICES:
            raise InvalidValueError(f"device must be auto, cpu, cuda or cuda:N, got {str(device)!r}")
        torch.empty(0, device=chosen)
    # an AssertionError where PyTorch was built without CUDA, a TypeError for what is neither a name nor a device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidValueError(f"device must be one of this machine, got {str(device)!r}: {reason}") from error
    return chosen


def _own_device(device: torch.device | str | None) -> torch.device:
    """Return the device of this process among several: its own GPU, or the CPU."""
    chosen = check_device(device)
    if chosen.type != "cuda":
        return chosen
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if chosen.index is not None and count_started() > 1:
        raise InvalidValueError(
            f"device must be auto, cpu or cuda under torchrun, which numbers the GPUs, got {chosen}"
        )
    if local >= gpus:
        raise InvalidValueError(
            f"torchrun's --nproc-per-node must be <= {gpus}, the number of GPUs here, or device cpu"
        )
    chosen = torch.device("cuda", local if chosen.index is None else chosen.index)
    torch.cuda.set_device(chosen)
    return chosen


def count_started() -> int:
    """Return the number of processes that torchrun has started; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in STARTED) else 1


@contextmanager
def joined(device: torch.device | str | None = None) -> Iterator[torch.device]:
    """Join the other processes of this run where torchrun has started it, and leave them at the end.

    Without torchrun nothing is joined. A process group that exists already is used, and left as it is. A process whose
    body ends well waits for the others; if one of them has failed it raises a `ProcessError`.

    Args:
        device: None or ``"auto"``, or what the user asked for. Each of several processes gets a GPU of its own.

    Yields:
        The device to run on.

    Raises:
        InvalidValueError: a device that does not exist, or more processes than GPUs.
        ProcessError: the others cannot be reached, or one of them has ended.
    """
    if _has_group():
        yield _own_device(device)
        return
    if not all(name in os.environ for name in STARTED):
        yield check_device(device)
        return
    own = _own_device(device)
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    with lost_peers():
        found = dist.rendezvous("env://", timeout=TIMEOUT)  # pyright: ignore[reportPrivateImportUsage]
        store, own_rank, total_count = next(found)
        # torchrun --max-restarts keeps its store, where the addresses of the processes that died would be found
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"restart {restart}", store)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=own_rank, world_size=total_count)
        try:
            yield own
            barrier()
        finally:
            # DistributedDataParallel holds the group, in reference cycles. The group's threads must have ended before
            # Python ends: one that releases a Python object then is stopped in C++, which aborts the process.
            gc.collect()
            dist.destroy_process_group()
            gc.collect()


_broken: WeakKeyDictionary[object, str] = WeakKeyDictionary()  # groups that are broken, and the message


@contextmanager
def lost_peers() -> Iterator[None]:
    """Turn the errors of PyTorch about a broken group into a `ProcessError`; other errors pass.

    A group that was broken once stays so: the next exchange is not begun but raises the same error. A process that went
    on would wait for those which have not noticed yet, and they for it.
    """
    group, where = (dist.group.WORLD if _has_group() else None), f"rank {rank()} of {count()}"
    if group is not None and group in _broken:
        raise ProcessError(_broken[group])
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, FastdiffError) or not (isinstance(error, dist.DistError) or LOST.search(text)):
            raise
        reason = re.sub(r"^\[[^]]*\]\s*", "", text.splitlines()[0]).partition(". This is typically")[0]
        message = f"another process of this run has ended or does not answer ({where}): {reason}"
        if group is not None:
            _broken[group] = message
        raise ProcessError(message) from error


# ------------------------------------------------------------------------------------------------ exchanges


def _exchanged() -> torch.device:
    """Return where tensors are exchanged: the CPU, unless a group of the user's own can only exchange on GPUs."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    moved = values.detach().to(_exchanged(), copy=True)
    with lost_peers():
        dist.all_reduce(moved, operation)
    return moved.cpu()


def any_process(flag: bool) -> bool:
    """Return whether a flag is set in any process."""
    return bool(_reduced(torch.tensor([int(flag)]), dist.ReduceOp.MAX)) if count() > 1 else bool(flag)


def barrier() -> None:
    """Wait until all processes are here."""
    any_process(False)


def total(values: Tensor) -> Tensor:
    """Return the sum over the processes of a float64 or int64 tensor of one shape, on the CPU, in every process."""
    return _reduced(values, dist.ReduceOp.SUM) if count() > 1 else values.detach().cpu()


def _broadcast(data: Tensor | None, size: int, source: int) -> Tensor:
    """Return the bytes of a process, uint8 [size], in every process."""
    buffer = torch.empty(size, dtype=torch.uint8) if data is None else data
    moved = buffer.to(_exchanged())
    if size:
        with lost_peers():
            dist.broadcast(moved, source)
    return moved.cpu()


def _to_bytes(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_all(value: T) -> list[T]:
    """Return the values of all processes, which must be plain JSON types, by rank, in every process."""
    if count() == 1:
        return [value]
    data = _to_bytes(value)
    sizes = torch.zeros(count(), dtype=torch.int64)
    sizes[rank()] = len(data)
    parts = [
        _broadcast(data if source == rank() else None, size, source)
        for source, size in enumerate(total(sizes).tolist())
    ]
    return [json.loads(bytes(part.numpy())) for part in parts]


def share(value: T) -> T:
    """Return the first process's value, of plain JSON types, in every process."""
    return from_all(value if is_first() else None)[0]  # pyright: ignore[reportReturnType]


def in_order(parts: dict[int, Tensor]) -> list[Tensor]:
    """Return numbered CPU tensors, of which every process holds some, as a list in the order of their numbers.

    Every process gets all of them. Each is sent once, as it is: they may differ in shape and dtype.
    """
    if count() == 1:
        return [parts[number] for number in sorted(parts)]
    own = {number: parts[number].detach().cpu().contiguous() for number in sorted(parts)}
    held = from_all([[number, list(part.shape), str(part.dtype)] for number, part in own.items()])
    found: dict[int, Tensor] = {}
    for source, described in enumerate(held):
        for number, shape, dtype in described:
            kind = getattr(torch, dtype.removeprefix("torch."))
            data = own[number].flatten().view(torch.uint8) if source == rank() else None
            size = torch.Size(shape).numel() * kind.itemsize
            found[number] = _broadcast(data, size, source).view(kind).view(shape)
    return [found[number] for number in sorted(found)]


def same_as_first(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors, on any device, with those of the first process, which have the same shapes and dtypes."""
    if count() == 1:
        return
    with torch.no_grad():
        for tensor in tensors:
            data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            shared = _broadcast(data if is_first() else None, data.numel(), 0)
            if not is_first():
                tensor.copy_(shared.view(tensor.dtype).view(tensor.shape))


# ------------------------------------------------------------------------------------------------ errors of one process


def agree(error: BaseException | None) -> None:
    """Raise in every process if any of them has an error: its own, or a `PeerError` that names the first.

    All processes call it at the same place, with the error that the work before it raised, or None.
    """
    try:
        if not any_process(error is not None):
            return
        errors = from_all(None if error is None else [type(error).__name__, str(error)])
    except ProcessError:
        if error is None:
            raise
        errors = []
    if error is not None:
        raise error
    for number, found in enumerate(errors):
        if found is not None:
            raise PeerError(number, *found)


def on_first(function: Callable[[], T]) -> T | None:
    """Run a function in the first process while the others wait; return its result there, and None elsewhere.

    Raises:
        PeerError: in the others, if the function raised an error in the first process, where it is raised as it is.
    """
    result, error = None, None
    if is_first():
        try:
            result = function()
        except BaseException as raised:
            error = raised
    agree(error)
    return result
