"""Clocks: seconds of one call, on a CPU, on a GPU, and what a call costs the host that queues it.

A clock warms a call up and returns a function that runs the call again and gives its seconds. That function is called
once per round, in turn with the calls it is compared with, so that a machine that slows down slows down all of them.
"""

import math
from collections.abc import Callable
from time import perf_counter

import torch

Call = Callable[[], object]
Watch = Callable[[], float]

HOST_CALLS = (
    20  # per reading of `host_clock`: above the timer's resolution; 40 launches each fill a queue's 1024 places
)
BACK_TO_BACK = 20  # calls per reading of a kernel that is too short for one pair of events
MAX_FILLS = 200


def wall_clock(device: torch.device) -> Callable[[Call], Watch]:
    """Time a call from an idle device to an idle device, as a user with a stop watch would."""

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
    """Time what the host spends per call; on a GPU the work is queued and not waited for."""

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
    """Time what a GPU spends per call, between two events.

    Before the first event a buffer larger than the L2 cache is filled. That empties the cache, and keeps the GPU busy
    until the host has queued the call, so that no launch is timed: the buffer is filled as often as that takes (for a
    call of more launches than the queue holds it cannot be hidden, and the host's time is timed as it is).
    ``cold``: one call per reading, its inputs in memory. Otherwise up to `BACK_TO_BACK` calls, their inputs in the
    cache but for the first, as they are between two layers of a network: for kernels of a few microseconds.
    """
    properties = torch.cuda.get_device_properties(device)
    buffer = torch.empty(max(4 * properties.L2_cache_size, 1 << 28), dtype=torch.uint8, device=device)
    warm_up(buffer.zero_, device)
    fill_seconds = _between_events(buffer.zero_, 20)

    def clock(call: Call) -> Watch:
        warm_up(call, device)
        queued = min(host_clock_once(call, device) for _ in range(3))
        whole = min(wall_clock(device)(call)() for _ in range(3))
        calls = 1 if cold else max(1, min(BACK_TO_BACK, int(2e-3 / whole)))
        fills = min(MAX_FILLS, 1 + math.ceil(2.0 * calls * queued / fill_seconds))

        def watch() -> float:
            for _ in range(fills):
                buffer.zero_()
            return _between_events(call, calls)

        return watch

    return clock


def host_clock_once(call: Call, device: torch.device) -> float:
    """Seconds until one call on an idle device is queued."""
    synchronize(device)
    start = perf_counter()
    call()
    seconds = perf_counter() - start
    synchronize(device)
    return seconds


def graph_of(call: Call) -> torch.cuda.CUDAGraph:
    """Capture a call after it has run on a side stream, as capture asks for."""
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
    """Run a call often enough that compilation, allocation and lazy set-up are over."""
    for _ in range(3):
        call()
    synchronize(device)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU is idle; a CPU always is."""
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
