"""Runs the machine's tests, and the kernels' tests on the machine, in processes of their own: ``make machine``.

    python tests/machine/run.py                     all of it, in two processes
    python tests/machine/run.py --brief             the subset that the default suite runs
    python tests/machine/run.py -n 0 -k diffuse     further arguments go to pytest

Compiled kernels and TRITON_INTERPRET=1, which the other tests set, cannot share a process.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# Files of tests/kernels that do not run on the machine, and why.
ELSEWHERE = {
    "test_arguments": "bad arguments never reach a kernel",
    "test_backend": "is about the choice of a backend, in processes of its own",
    "test_bounds": "looks inside Triton's interpreter (guards.py); the machine checks every access itself",
    "test_compilation": "reads machine code, in a process of its own",
    "test_machine": "starts this program",
    "test_properties": "looks inside Triton's interpreter (guards.py)",
}


def environment() -> dict[str, str]:
    """The variables of the processes: nothing is interpreted, and one thread each."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_INTERPRET", "PYTEST_"))}
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "kernels", ROOT / "tests", ROOT / "benchmarks"))
    return {**kept, "PYTHONPATH": path, "FASTDIFF_BACKEND": "torch", "OMP_NUM_THREADS": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the kernels' PTX on the machine.")
    parser.add_argument("--brief", action="store_true", help="only the subset that the default suite runs")
    parser.add_argument("-n", default="2", help="processes")
    parser.add_argument("--only-machine", action="store_true", help="leave out the kernels' own test files")
    options, further = parser.parse_known_args()
    files = [str(HERE)]
    if not (options.brief or options.only_machine):
        files += sorted(str(path) for path in (ROOT / "tests/kernels").glob("test_*.py") if path.stem not in ELSEWHERE)
    command = [sys.executable, "-m", "pytest", "-p", "machine.plugin", f"--confcutdir={HERE}", "--benchmark-disable",
               "-q", "-p", "no:cacheprovider", "-n", options.n, "--dist", "worksteal", "-m", "", *files,
               *further]  # fmt: skip
    if options.brief:
        command.append("--brief")
    return subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
