"""Options, the comparison that every benchmark makes, and the summary at the end.

A benchmark compares fastdiff with what a user would pick instead, in one run and in turns, and reports a ratio. It
never fails on a time; it fails where the two do not compute the same.

    pytest benchmarks/ --benchmark-only                                     everything that this machine can run
    pytest benchmarks/ --benchmark-only --quick                             seconds: small sizes, few rounds
    pytest benchmarks/ --benchmark-only -k cuda --results auto              to benchmarks/results/<the GPU's name>.json

Rows of a measurement that is in the file already are replaced, the others stay: remove the file to start afresh.
`gpu_run` runs all of them in order of worth where the time of a GPU is short; `make bench-gpu` uses it.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import torch

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # before CUDA starts: both sides of a comparison multiply in float32
sys.path.insert(0, str(Path(__file__).parent))  # for the sibling modules: pytest's importlib mode adds no folder

from clocks import Call, Watch
from fastdiff_kernels._triton import INTERPRETED
from report import LEGEND, Row, device_name, machine, quantiles, table, write_json

from fastdiff.kernels import backend

QUICK_SECONDS, FULL_SECONDS = 0.25, 2.0  # per comparison, all of its calls together
MIN_ROUNDS, MAX_ROUNDS = 5, 200
RESULTS = Path(__file__).parent / "results"
ROWS = pytest.StashKey[list[Row]]()


_measured = 0.0


def measured_seconds() -> float:
    """Seconds that fastdiff was timed for so far: the clock that pytest-benchmark reads before and after a round."""
    return _measured


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --quick, --compile-only and --results."""
    parser.addoption("--quick", action="store_true", help="benchmarks: small sizes and few rounds")
    what = "benchmarks: run every call once, which compiles what it needs, and time nothing"
    parser.addoption("--compile-only", action="store_true", help=what)
    what = "benchmarks: merge the table into a JSON file, or into <device>.json in a folder; auto: benchmarks/results"
    parser.addoption("--results", type=Path, metavar="PATH", help=what)


def pytest_configure(config: pytest.Config) -> None:
    """Start with an empty table."""
    config.stash[ROWS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pytest-benchmark report the time that this folder's clocks measured, not its own."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.benchmark(timer=measured_seconds))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Skip what the GPU's memory cannot hold."""
    try:
        return (yield)
    except torch.OutOfMemoryError as error:
        pytest.skip(f"not enough memory on this GPU: {str(error).partition('. ')[0]}")


@pytest.fixture
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether small sizes were asked for."""
    return pytestconfig.getoption("quick")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device that a benchmark names in its parameters, or a skip where this machine lacks it."""
    if INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set: the speed of the interpreter means nothing")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    if request.param == "cuda" and backend() != "triton":
        pytest.skip(f"the backend is {backend()!r}: no Triton kernels to measure")
    torch.manual_seed(0)
    yield torch.device(request.param)
    if "torch._dynamo" in sys.modules:  # its import takes seconds, and without it nothing was compiled
        torch.compiler.reset()
    if request.param == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def compare(pytestconfig: pytest.Config, quick: bool, benchmark: Any) -> Callable[..., None]:
    """Time the call ``"fastdiff"`` in turns with the others, and add a `Row` for each of these but ``"copy"``."""

    def run(
        what: tuple[str, str, torch.device, torch.dtype, tuple[int, ...]],
        calls: dict[str, Call],
        clock: Callable[[Call], Watch],
        timing: str,
        moved: int | None = None,
    ) -> None:
        if pytestconfig.getoption("compile_only"):
            benchmark.pedantic(lambda: [call() for call in calls.values()], rounds=1)
            return
        watches = {name: clock(call) for name, call in calls.items()}
        samples = _in_turns(watches, QUICK_SECONDS if quick else FULL_SECONDS, benchmark)
        ours, copy = samples.pop("fastdiff"), samples.pop("copy", None)
        share = None if copy is None else median(copy) / median(ours)
        operation, case, device, dtype, shape = what
        where = operation, case, device.type, str(dtype).removeprefix("torch."), shape
        for against, theirs in samples.items():
            ratio = quantiles([their / our for our, their in zip(ours, theirs, strict=True)])
            times = timing, len(ours), quantiles(ours), against, quantiles(theirs), ratio
            row = Row(*where, *times, None if copy is None else moved, share)
            pytestconfig.stash[ROWS].append(row)
            benchmark.extra_info[against] = asdict(row)
        save(pytestconfig)  # what is measured stays, whatever happens to the rest

    return run


def _in_turns(watches: dict[str, Watch], seconds: float, benchmark: Any) -> dict[str, list[float]]:
    """Read every watch once per round, for about ``seconds``; return the readings of each, round by round."""
    samples: dict[str, list[float]] = {name: [] for name in watches}

    def read_others() -> None:
        for name, watch in watches.items():
            if name != "fastdiff":
                samples[name].append(watch())

    def read_fastdiff() -> None:
        global _measured
        samples["fastdiff"].append(watches["fastdiff"]())
        _measured += samples["fastdiff"][-1]

    start = perf_counter()
    for watch in watches.values():
        watch()
    rounds = int(seconds / (perf_counter() - start))
    benchmark.pedantic(read_fastdiff, setup=read_others, rounds=min(max(rounds, MIN_ROUNDS), MAX_ROUNDS))
    return samples


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table and the reasons of what was skipped; write the results where asked for."""
    rows, write = config.stash[ROWS], terminalreporter.write_line
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    if rows:
        terminalreporter.section("fastdiff against what one would use instead")
        for line in [", ".join(f"{key} {value}" for key, value in machine().items()), *LEGEND, "", *table(rows)]:
            write(line)
    for reason, count in reasons.items():
        write(f"{count} not run: {reason.removeprefix('Skipped: ')}")
    path = save(config)
    if path is not None:
        write(f"wrote {path}")


def save(config: pytest.Config) -> Path | None:
    """Merge the rows so far where --results asks for them, and return that path."""
    path, rows = config.getoption("results"), config.stash[ROWS]
    if path is None or not rows:
        return None
    path = RESULTS if path == Path("auto") else path
    path = path / f"{device_name()}.json" if path.is_dir() else path
    write_json(path, rows, config.getoption("quick"))
    return path
