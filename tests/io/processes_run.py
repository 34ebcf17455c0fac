"""What `test_processes` runs in several processes: every exchange once. It writes the results to FOLDER/RANK.json."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from fastdiff.io import processes
from fastdiff.io.processes import ProcessError
from fastdiff.io.shares import divide_work


def error_of(function) -> list:
    """The class and the message of the error that a call raises, and the process that a `PeerError` names."""
    try:
        function()
    except BaseException as error:
        return [type(error).__name__, str(error), getattr(error, "rank", None)]
    return []


def fails():
    raise KeyError("a full disk")


def exchanges() -> dict:
    rank, count = processes.rank(), processes.count()
    parts = {k: torch.arange(3 * k).view(k, 3).to(torch.uint8 if k % 3 else torch.float64) for k in range(7)}
    own = {k: parts[k] for k in range(rank, 7, count)} if rank != 1 else {}  # the second process has none
    own |= {k: parts[k] for k in range(1, 7, count)} if rank == 0 else {}
    found = processes.in_order(own)
    same = [torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, parts.values(), strict=True)]
    return {
        "rank": rank, "count": count, "first": processes.is_first(),
        "any": [processes.any_process(False), processes.any_process(rank == count - 1), processes.any_process(True)],
        "float sum": processes.total(torch.tensor([0.1 + rank, 1e-30], dtype=torch.float64)).tolist(),
        "int sum": processes.total(torch.tensor([2**53 + rank])).tolist(),
        "shared": processes.share({"of": rank, "text": "ü", "list": [1, None, 0.1]}),
        "from all": processes.from_all("x" * rank),
        "in order": same, "nothing": processes.in_order({}),
        "on first": processes.on_first(lambda: f"done by {rank}"),
        "failed on first": error_of(lambda: processes.on_first(fails)),
    }  # fmt: skip


def divided() -> dict:
    """Work that ends well, that fails in one process, and that a signal's handler interrupts in one process."""
    rank, count = processes.rank(), processes.count()
    done: dict[str, list] = {"plain": [], "failing": [], "stopped": []}

    def work(kind: str, number: int) -> torch.Tensor:
        done[kind].append(number)
        if kind == "failing" and number == count + 1:  # in the second round
            raise KeyError("batch")
        if kind == "stopped" and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5.0)  # the handler interrupts it
        return torch.tensor([number])

    def run(kind: str, n: int) -> list:
        return [int(part) for part in divide_work(n, lambda number: work(kind, number), sharded=True)]

    def stop(*_):
        raise InterruptedError("stopped by a signal")

    former = signal.signal(signal.SIGTERM, stop)
    found = {
        "plain": run("plain", 7), "fewer": run("plain", 1), "none": run("plain", 0),
        "alone": [int(part) for part in divide_work(3, lambda k: torch.tensor([k * rank]), sharded=False)],
        "failing": error_of(lambda: run("failing", 40)),
        "stopped": error_of(lambda: run("stopped", 40)),
        "done": done, "handler": signal.getsignal(signal.SIGTERM) is stop,
    }  # fmt: skip
    signal.signal(signal.SIGTERM, former)
    return found


def loses_a_peer(victim: int) -> dict:
    """What the others see of a process that is killed while they wait for it."""
    processes.barrier()
    if processes.rank() == victim:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    return {"lost": error_of(processes.barrier), "again": error_of(exchanges), "seconds": time.monotonic() - began}


if __name__ == "__main__":
    folder, victim = Path(sys.argv[1]), int(sys.argv[2])
    rank, found = int(os.environ["RANK"]), {}

    def save() -> None:
        (folder / f"{rank}.json").write_text(json.dumps(found))

    def body() -> None:
        with processes.joined("cpu") as device:
            found.update(device=str(device), backend=dist.get_backend())
            with processes.joined() as again:
                found.update(nested=str(again))
            found.update(group=dist.is_initialized(), exchanges=exchanges(), divided=divided())
            save()
            found.update(loses_a_peer(victim))

    try:
        body()
    except ProcessError as error:
        found.update(leaving=str(error), left=not dist.is_initialized())
    save()
