"""What starting costs: medians of fresh processes, in seconds of the clock and of the processor.

    python benchmarks/startup.py [--processes 5]

The last two columns are what a process takes beyond the one that it builds on: a bare interpreter, or ``import torch``.
On a busy machine look at the processor's time. One run of each command, which does not count, writes the bytecode to a
temporary folder. A first use includes a full collection of garbage, which walks all objects of torch; it falls into
the imports since torch's own leave the collector close to its threshold.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
BARE, TORCH = "python -c pass", "import torch"
COMMANDS: dict[str, tuple[list[str], str]] = {  # the arguments of python, and what the process builds on
    BARE: (["-c", "pass"], BARE),
    TORCH: (["-c", "import torch"], BARE),
    "import fastdiff": (["-c", "import fastdiff"], BARE),
    "first use: imports": (["-c", "import torch\nimport fastdiff.sampling, fastdiff.training"], TORCH),
    'first use: fastdiff.load("digits")': (["-c", "import torch, fastdiff\nfastdiff.load('digits')"], TORCH),
    "fastdiff --help": (["-m", "fastdiff", "--help"], BARE),
    "fastdiff sample --help": (["-m", "fastdiff", "sample", "--help"], BARE),
    "fastdiff sample --n 0": (["-m", "fastdiff", "sample", "--n", "0"], BARE),
    "fastdiff nonsense": (["-m", "fastdiff", "nonsense"], BARE),
}


def seconds(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return what a fresh process takes on the clock and of the processor."""
    start = perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    _, _, usage = os.wait4(process.pid, 0)
    return perf_counter() - start, usage.ru_utime + usage.ru_stime


def measure(processes: int) -> dict[str, tuple[float, float]]:
    """Return the medians of every command. The commands take turns, so that a busy moment does not hit one alone."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as bytecode:
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": bytecode, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for turn in range(processes + 1):
            for name, (arguments, _) in COMMANDS.items():
                taken = seconds(arguments, environment)
                if turn:
                    times[name].append(taken)
    return {name: (median(c for c, _ in values), median(p for _, p in values)) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="processes per command")
    medians = measure(parser.parse_args().processes)
    print(f"{'':>36}  {'clock':>6}  {'processor':>9}  {'beyond':>6}  {'processor':>9}")
    for name, (_, base) in COMMANDS.items():
        (clock, processor), (base_clock, base_processor) = medians[name], medians[base]
        beyond = f"  {clock - base_clock:6.2f}  {processor - base_processor:9.2f}  {base}" if name != base else ""
        print(f"{name:>36}  {clock:6.2f}  {processor:9.2f}{beyond}")


if __name__ == "__main__":
    main()
