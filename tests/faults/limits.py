"""Limits on what reading a hostile file may take: time, memory, and nothing else on the disk."""

import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .fault import Attempt, Tries

SECONDS, MEGABYTES = 1.0, 200.0
GUARD = 3 << 30  # bytes of address space beyond what is there, so that a bomb does not take the machine down


def peak_megabytes() -> float:
    """Return the largest memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return sizes and times of everything below a folder, by path."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@contextmanager
def guarded() -> Iterator[None]:
    """Bound the address space of this process."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GUARD, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def bounded(tries: Tries, attempt: Attempt, found: list[str]) -> Iterator[None]:
    """Note in ``found`` where the body takes longer, takes more memory, or writes something. Warnings are not shown."""
    before, peak = contents(tries.folder), peak_megabytes()
    started, computed = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    # the processor's time: others may use the machine as well; but no waiting, which takes none
    seconds, waited = time.process_time() - computed, time.perf_counter() - started
    grown = peak_megabytes() - peak
    tries.largest("slowest, s", round(seconds, 3))
    tries.largest("most memory, MB", round(grown, 1))
    if seconds > SECONDS or waited > 10 * SECONDS:
        found.append(f"try {attempt.number}: it took {seconds:.1f} s ({waited:.1f} s with waiting)")
    if grown > MEGABYTES:
        found.append(f"try {attempt.number}: it took {grown:.0f} MB")
    if contents(tries.folder) != before:
        found.append(f"try {attempt.number}: something was written")
