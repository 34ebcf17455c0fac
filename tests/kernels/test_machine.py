"""A part of the machine's tests, in a process of its own: `make machine` runs all of them."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[1] / "machine/run.py"


def test_compiled_kernels_run_on_the_machine():
    """One test, so that the kernels are compiled by one process of a parallel run."""
    command = [sys.executable, str(PROGRAM), "--brief", "-n", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert " passed" in done.stdout
