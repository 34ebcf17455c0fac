"""Launches of compiled kernels: `launches.py` in a process of its own, since this one has Triton's interpreter."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "launches.py"
CHECKS = re.findall(r"^def (check_\w+)", PROGRAM.read_text(), re.MULTILINE)


@cache
def results() -> dict[str, str | None]:
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET",)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.xdist_group("launcher")
@pytest.mark.parametrize("name", CHECKS)
def test_launches(name):
    assert results()[name] is None, results()[name]
