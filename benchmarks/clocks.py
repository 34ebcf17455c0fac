"""Clocks: seconds of one call on a CPU, on a GPU, and of the host that queues it.

A clock warms a call up and returns a function that runs the call again and returns its seconds. The benchmarks call
these functions in turn, once per round, so that a change of the machine's speed affects all of them alike.
"""

import math
from collections.abc import Callable
from time import perf_counter

import torch

Call = Callable[[], object]
Watch = Callable[[], float]

# Calls per reading of `host_clock`: enough for the timer's resolution, few enough for a queue of 1024 launches
HOST_CALLS = 20
BACK_TO_BACK = 20  # calls per reading of a kernel that is too short for one pair of events
MAX_FLUSHES = 200  # at most, of the readings of a buffer that keep a GPU busy
FLUSH_ROWS = 4096  # sums that one flush writes: 16 KB


def wall_clock(device: torch.device) -> Callable[[Call], Watch]:
    """Time a call from an idle device to an idle device."""

    def clock(call: Call) -> Watch:
        def watch() -> float:
            synchronize(device)
            start = perf_counter()
            call()
            synchronize(device)
            return perf_counter() - start

        warm_up(call, device)
        return watch

    return clock


def host_clock(device: torch.device) -> Callable[[Call], Watch]:
    """Time the host per call. On a GPU the work is queued and not awaited."""

    def clock(call: Call) -> Watch:
        def watch() -> float:
            synchronize(device)
            start = perf_counter()
            for _ in range(HOST_CALLS):
                call()
            seconds = (perf_counter() - start) / HOST_CALLS
            synchronize(device)
            return seconds

        warm_up(call, device)
        return watch

    return clock


def gpu_clock(device: torch.device, cold: bool) -> Callable[[Call], Watch]:
    """Time the GPU per call, between two events.

    Before the first event a buffer larger than the L2 cache is read, see `flush_of`. This empties the cache, and keeps
    the GPU busy until the host has queued the call, so that launches are not timed; the buffer is read as often as
    necessary. (If a call has more launches than the queue can hold, the time of the host cannot be hidden.)

    Args:
        device: the GPU.
        cold: if True, one call per reading, whose inputs are in memory. Otherwise up to `BACK_TO_BACK` calls, whose
            inputs are in the cache after the first, as between two layers of a network.
    """
    flush = flush_of(max(4 * torch.cuda.get_device_properties(device).L2_cache_size, 1 << 28), device)
    warm_up(flush, device)
    flush_seconds = _between_events(flush, 20)

    def clock(call: Call) -> Watch:
        warm_up(call, device)
        queued = min(host_clock_once(call, device) for _ in range(3))
        whole = min(wall_clock(device)(call)() for _ in range(3))
        calls = 1 if cold else max(1, min(BACK_TO_BACK, int(2e-3 / whole)))
        flushes = min(MAX_FLUSHES, 1 + math.ceil(2.0 * calls * queued / flush_seconds))

        def watch() -> float:
            for _ in range(flushes):
                flush()
            return _between_events(call, calls)

        return watch

    return clock


def flush_of(size: int, device: torch.device) -> Call:
    """Return a call that fills the cache with clean lines, by reading a buffer of ``size`` bytes.

    Writing the buffer would empty the cache of the inputs as well, but leave it full of lines that differ from memory.
    The call that is timed would then wait until they are written back, and pay for that traffic. A sum over rows only
    writes `FLUSH_ROWS` numbers; what any earlier call has left to write back is written back while the buffer is read.
    """
    buffer = torch.zeros(FLUSH_ROWS, size // (4 * FLUSH_ROWS), device=device)
    sums = torch.empty(FLUSH_ROWS, device=device)

    def flush() -> None:
        torch.sum(buffer, dim=1, out=sums)

    return flush


def host_clock_once(call: Call, device: torch.device) -> float:
    """Seconds until one call on an idle device is queued."""
    synchronize(device)
    start = perf_counter()
    call()
    seconds = perf_counter() - start
    synchronize(device)
    return seconds


def graph_of(call: Call) -> torch.cuda.CUDAGraph:
    """Capture a call after it has run on a side stream, as PyTorch requires."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def warm_up(call: Call, device: torch.device) -> None:
    """Run a call until compilation, allocation and lazy initialisation are done."""
    for _ in range(3):
        call()
    synchronize(device)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _between_events(call: Call, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end) / calls
