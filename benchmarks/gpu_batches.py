"""Batches of tests in processes of their own, for `gpu_run`.

The processes are forked from a server that has imported PyTorch and has not touched the GPU. A process that hangs or
whose GPU context is broken takes no other batch with it, and a new one starts in a second or two.
"""

import contextlib
import json
import math
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from gpu_schedule import Batch, Journal

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = ["torch", "pytest", "triton", "fastdiff.kernels"]
PYTEST = ("-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "-q")
SHOWN = 300  # characters of a reason
BROKEN = ("CUDA error", "AcceleratorError", "CUDA_ERROR", "Triton Error [CUDA]")  # after one of these nothing runs


@dataclass(frozen=True)
class Runner:
    """How batches are run: the one place that knows about devices, backends and options of pytest.

    Args:
        out: folder for results and ``log.txt``.
        cache: folder for compiled kernels.
        device: ``"cuda"``, or ``"cpu"``, which has nothing to compile.
        quick: whether benchmarks use small sizes and few rounds.
        plugins: names of further pytest plugins, such as one that runs compiled kernels on CPU tensors.
    """

    out: Path
    cache: Path
    device: str
    quick: bool = False
    plugins: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Set the environment of all processes; before the first one starts."""
        for name in ("TRITON_INTERPRET", "FASTDIFF_BACKEND"):
            os.environ.pop(name, None)
        os.environ.setdefault("TRITON_CACHE_DIR", str(self.cache / "triton"))
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.cache / "inductor"))
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no compiler runs beside what is timed
        paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)

    def arguments(self, *more: str) -> list[str]:
        """Arguments of pytest that all batches have in common."""
        plugins = (argument for name in self.plugins for argument in ("-p", name))
        return [*PYTEST, *plugins, *(["--quick"] if self.quick else []), *more]

    def tests(self) -> tuple[list[str], bool]:
        """The identifiers of all benchmarks that run on the device, and whether the device is there."""
        with tempfile.TemporaryDirectory() as folder:
            path, log = Path(folder) / "tests.json", Path(folder) / "log.txt"
            arguments = self.arguments("--collect-only", "-W", "default", "benchmarks")
            run_processes([(arguments, log, Collector(path), False)], 300.0)
            if not path.exists():
                raise SystemExit(f"pytest could not collect the benchmarks:\n{log.read_text()}")
            found = json.loads(path.read_text())
        return [test for test in found["tests"] if self.has(test)], self.device == "cpu" or found["gpu"]

    def has(self, test: str) -> bool:
        """Whether a test runs on the device: its parameters name the device, or none."""
        parameters = set(test.partition("[")[2].removesuffix("]").split("-"))
        return self.device in parameters or not parameters & {"cpu", "cuda"}

    def run(self, batch: Batch, journal: Journal, seconds: float) -> bool:
        """Run a batch for at most so many seconds; return whether it was stopped, then or because it hangs."""
        more = ["--compile-only"] if batch.group.phase == "compile" else ["--results", str(self.out)]
        arguments = self.arguments(*more, *(["-W", "default"] if batch.lenient else []))
        with tempfile.TemporaryDirectory() as folder:
            shards = []
            for k in range(batch.workers):
                recorder, log = Recorder(journal, batch.group.name), Path(folder) / f"{k}.txt"
                tests = batch.tests[k :: batch.workers]
                shards.append(([*arguments, *tests], log, recorder, batch.workers > 1))
            stopped = run_processes(shards, seconds, batch.patience, journal)
            with (self.out / "log.txt").open("a") as whole:
                for _, log, _, _ in shards:
                    text = log.read_text(errors="replace") if log.exists() else ""
                    whole.write(f"==== {batch.group.name}\n{text}\n")
        if batch.group.phase == "compile":
            self.forget_tuning()
        return stopped

    def forget_tuning(self) -> None:
        """Delete what Inductor timed while other processes used the GPU: it chooses again, among compiled kernels."""
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        for path in folder.rglob("*.best_config") if folder.exists() else ():
            path.unlink(missing_ok=True)


Shard = tuple[list[str], Path, Any, bool]  # arguments of pytest, log, plugin, whether it is one of several


def run_processes(
    shards: list[Shard], seconds: float, patience: float = math.inf, journal: Journal | None = None
) -> bool:
    """Run pytest in a process per shard; return whether any was stopped.

    They are stopped after so many seconds, or where nothing was written to the journal for ``patience`` seconds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = [context.Process(target=run_pytest, args=shard) for shard in shards]
    began = monotonic()
    length, changed = 0, began
    try:
        for process in processes:
            process.start()
        while running := [process for process in processes if process.is_alive()]:
            now = monotonic()
            written = 0 if journal is None else journal.length
            length, changed = written, now if written != length else changed
            end = min(began + seconds, changed + patience)
            if now >= end:
                return True
            wait([process.sentinel for process in running], min(end - now, 1.0))
        return False
    finally:
        for process in processes:
            stop(process)


def stop(process: BaseProcess) -> None:
    """End a process and those that it has started."""
    if process.pid is None or not process.is_alive():
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # if it had no group of its own yet
    process.join()


def run_pytest(arguments: list[str], log: Path, plugin: object, one_of_several: bool) -> None:
    """The body of a process: run pytest in the project's folder, with its output in ``log``."""
    os.setpgid(0, 0)
    Thread(target=end_with_parent, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other plugins of the machine cost time and may warn
    import pytest
    import torch

    if one_of_several:  # each has a share of the cores
        torch.set_num_threads(1)
    code = pytest.main(arguments, plugins=[plugin])
    sys.stdout.flush()
    os._exit(int(code))  # without the clean-up of a GPU context that may be broken


def end_with_parent() -> None:
    """Wait until the process that started this one is gone, killed for example, and end this one's group with it."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


class Collector:
    """A plugin that writes the identifiers of all tests to a file, and whether there is a GPU."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_collection_finish(self, session: Any) -> None:
        """Write them."""
        import torch

        tests = [item.nodeid for item in session.items]
        self.path.write_text(json.dumps({"tests": tests, "gpu": torch.cuda.is_available()}))


class Recorder:
    """A plugin that writes to a journal when a test begins and ends. It ends the session if the GPU's context broke."""

    def __init__(self, journal: Journal, group: str) -> None:
        self.journal, self.group = journal, group
        self.session: Any = None
        self.reports: list[Any] = []

    def pytest_sessionstart(self, session: Any) -> None:
        """Keep the session, to be able to end it."""
        self.session = session

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self.reports = []
        self.journal.append("begun", test=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test's set-up, call or clean-up has ended."""
        self.reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test ends."""
        others = [report for report in self.reports if report.outcome != "passed"]
        worst = next((report for report in others if report.outcome == "failed"), others[0] if others else None)
        outcome, reason = ("passed", "") if worst is None else (worst.outcome, reason_of(worst))
        seconds = sum(report.duration for report in self.reports) if outcome != "skipped" else None
        self.journal.append(
            "ended", test=nodeid, group=self.group, outcome=outcome, seconds=seconds, reason=reason[:SHOWN]
        )
        if outcome == "failed" and any(sign in reason for sign in BROKEN):
            self.session.shouldstop = "the GPU's context is broken"


def reason_of(report: Any) -> str:
    """Why a test failed or was skipped, on one line."""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message if crash is not None else report.longrepr).split())
