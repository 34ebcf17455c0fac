"""Exchanges among two and four processes, the death of one, and the same functions without a group."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lengths import usually
from processes import launch

from fastdiff.io import processes
from fastdiff.io.processes import PeerError, ProcessError, check_device, joined, lost_peers
from fastdiff.io.shares import deferred_signals, divide_work
from fastdiff.kernels import InvalidValueError

SCRIPT = Path(__file__).with_name("processes_run.py")
VICTIMS = {2: 0, 4: 1}  # of so many processes; the first one holds the store through which they found each other


@pytest.fixture(scope="module", params=usually([2], [2, 4]))
def found(request, tmp_path_factory) -> list[dict]:
    """The results by rank. One process is killed at the end."""
    folder, count = tmp_path_factory.mktemp("processes"), request.param
    ended = launch([SCRIPT, folder, str(VICTIMS[count])], count)
    codes = [one.returncode for one in ended]
    assert codes == [-signal.SIGKILL if k == VICTIMS[count] else 0 for k in range(count)], [one.stderr for one in ended]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


def test_exchanges(found):
    count = len(found)
    for rank, process in enumerate(found):
        assert [process[name] for name in ("device", "nested", "backend", "group")] == ["cpu", "cpu", "gloo", True]
        of = process["exchanges"]
        assert (of["rank"], of["count"], of["first"]) == (rank, count, rank == 0)
        assert of["any"] == [False, True, True]
        assert of["float sum"] == pytest.approx([0.1 * count + count * (count - 1) / 2, count * 1e-30], rel=1e-15)
        assert of["int sum"] == [count * 2**53 + count * (count - 1) // 2]
        assert of["shared"] == {"of": 0, "text": "ü", "list": [1, None, 0.1]}
        assert of["from all"] == ["x" * k for k in range(count)]
        assert of["in order"] == [True] * 7
        assert of["nothing"] == []
        assert of["on first"] == (None if rank else "done by 0")
        error = (
            ["PeerError", f"rank 0 of {count} failed: 'a full disk'", 0]
            if rank
            else ["KeyError", "'a full disk'", None]
        )
        assert of["failed on first"] == error


def test_divided_work(found):
    """Part k is done by process k % count alone, and all have all results; errors and signals reach the others."""
    count = len(found)
    for rank, process in enumerate(found):
        of = process["divided"]
        assert of["plain"] == list(range(7))
        assert (of["fewer"], of["none"]) == ([0], [])
        assert of["done"]["plain"] == [*range(rank, 7, count), *([0] if rank == 0 else [])]
        assert of["failing"][:2] == (
            ["KeyError", "'batch'"] if rank == 1 else ["PeerError", f"rank 1 of {count} failed: 'batch'"]
        )
        assert of["done"]["failing"] == [rank, rank + count]  # and no more
        text = "stopped by a signal"
        expected = ["InterruptedError", text] if rank == 1 else ["PeerError", f"rank 1 of {count} failed: {text}"]
        assert of["stopped"][:2] == expected
        assert of["done"]["stopped"] == [rank]
        assert of["handler"]
        assert of["alone"] == [0, rank, 2 * rank]


def test_a_process_that_dies_ends_the_others(found):
    """Measured: 0.5 s, which is the time until it is killed."""
    victim = VICTIMS[len(found)]
    assert "lost" not in found[victim]
    for process in (one for rank, one in enumerate(found) if rank != victim):
        for name in ("lost", "again"):
            kind, message, _ = process[name]
            assert kind == "ProcessError"
            assert "has ended or does not answer" in message
            assert f"of {len(found)}" in message
        assert 0.3 < process["seconds"] < 5.0
        assert "has ended" in process["leaving"]
        assert process["left"]


# ------------------------------------------------------------------------------------------------ one process


def test_without_a_group():
    values = torch.tensor([1.5, 2.0], dtype=torch.float64)
    assert (processes.rank(), processes.count(), processes.is_first()) == (0, 1, True)
    assert processes.any_process(True) is True
    assert processes.any_process(False) is False
    assert torch.equal(processes.total(values), values)
    assert (processes.share([1]), processes.from_all("a"), processes.on_first(lambda: 3)) == ([1], ["a"], 3)
    assert [int(part) for part in processes.in_order({2: torch.tensor(5), 0: torch.tensor(4)})] == [4, 5]
    processes.barrier()
    with pytest.raises(KeyError, match="own"):
        processes.on_first(lambda: {}["own"])
    assert [int(part) for part in divide_work(3, torch.tensor, sharded=True)] == [0, 1, 2]


def test_joined_without_torchrun_gives_the_device():
    with joined("cpu") as device:
        assert device == torch.device("cpu")
        assert not dist.is_initialized()
    with joined("auto") as device, joined() as same:
        assert device == same == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99", "meta", "cpu:0:0", ""])
def test_devices_that_are_not_there(device):
    with pytest.raises(InvalidValueError, match="device must"):
        check_device(device)


def test_a_process_started_by_torchrun_has_a_gpu_of_its_own(monkeypatch):
    """On a machine that seems to have two GPUs: the third process, and a GPU that the user chose for all of them."""
    environment = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "check_device", lambda device: torch.device(device or "cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert processes._own_device(None) == torch.device("cuda:1")
    assert processes._own_device("cpu") == torch.device("cpu")
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(InvalidValueError, match="numbers the GPUs"), joined("cuda:0"):
        pass
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InvalidValueError, match="nproc-per-node must be <= 2"), joined():
        pass


GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:7357. "
    "This is typically caused by a remote worker crashing."
)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(GLOO), True),
        (RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"), True),
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA out of memory"), False),
        (PeerError(1, "KeyError", "x"), False),
        (ValueError(GLOO), False),
    ],
)
def test_errors_of_a_broken_group_are_told_from_others(error, lost):
    with pytest.raises(ProcessError if lost else type(error)) as raised, lost_peers():
        raise error
    if lost:
        assert raised.value.__cause__ is error
        assert "third_party" not in str(raised.value)
        assert "typically" not in str(raised.value)
    else:
        assert raised.value is error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_are_held_and_delivered(number):
    """Also a handler that restores the one before it, and in a thread, which cannot change handlers."""
    calls: list[str] = []
    before = signal.getsignal(number)

    def once(*_):
        calls.append("once")
        signal.signal(number, lambda *_: calls.append("later"))

    signal.signal(number, once)
    try:
        with deferred_signals() as delivered:
            os.kill(os.getpid(), number)
            assert calls == []
            with delivered():
                assert calls == ["once"]
                os.kill(os.getpid(), number)
                assert calls == ["once", "later"]
            os.kill(os.getpid(), number)
            assert len(calls) == 2
        assert calls == ["once", "later", "later"]
    finally:
        signal.signal(number, before)

    def in_thread():
        with deferred_signals() as delivered, delivered():
            calls.append("thread")

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert calls[-1] == "thread"
