"""Peak memory of one side of `side_by_side`, beyond what was in use before it was made.

On a GPU that is what PyTorch allocates, on a CPU the resident memory of a process in which the side runs alone.
Weights are in use before.
"""

import gc
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from side_by_side import Case

CALLS = 2  # the first allocates gradients and moments


def peak_memory(make: Callable[[], Callable[[], object]], device: torch.device) -> int:
    """Bytes of a GPU that making and calling a side needs, with its compilation and captured graphs."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call = make()
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def in_process(case: "Case", side: str) -> int:
    """Bytes of resident memory that a side needs on a CPU, measured in a new process."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(case, side, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _measure(case: "Case", side: str, sender: "Connection") -> None:
    """The body of that process. The peak of building the models is reset; pages that their check left count as held."""
    from side_by_side import sides_of

    sides, *_ = sides_of(case, ())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call = sides[side]()
    for _ in range(CALLS):
        call()
    sender.send(_status("VmHWM") - before)


def _status(name: str) -> int:
    """A size of this process in bytes: resident now (VmRSS), or at most since the peak was reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
