"""Starting several processes of a run, as torchrun does, on this machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sources import ROOT


def launch(
    arguments: Sequence[str | Path], count: int, timeout: float = 240.0, env: dict[str, str] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run ``python ARGUMENTS`` in ``count`` processes that can join; return them by rank when all have ended.

    Args:
        arguments: a script and its arguments, or ``["-m", "fastdiff", ...]``.
        count: number of processes.
        timeout: seconds after which those that have not ended are killed.
        env: more settings.

    Raises:
        TimeoutError: they were killed; the message holds what all of them had printed.
    """
    path = os.pathsep.join(map(str, [ROOT, ROOT / "kernels", ROOT / "tests"]))
    common = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "FASTDIFF_BACKEND": "torch"} | torchrun(count)
    command, limit = [sys.executable, *map(str, arguments)], time.monotonic() + timeout

    def run(rank: int) -> tuple[subprocess.CompletedProcess[str], bool]:
        own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (env or {})
        with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=own) as process:
            try:
                late, printed = False, process.communicate(timeout=limit - time.monotonic())
            except subprocess.TimeoutExpired:
                process.kill()
                late, printed = True, process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, *printed), late

    with ThreadPoolExecutor(count) as threads:
        ended = list(threads.map(run, range(count)))
    if any(late for _, late in ended):
        printed = "\n".join(f"rank {k}: {one.returncode}\n{one.stdout}{one.stderr}" for k, (one, _) in enumerate(ended))
        raise TimeoutError(f"{count} processes had not ended after {timeout:g} s\n{printed}")
    return [one for one, _ in ended]


def torchrun(count: int) -> dict[str, str]:
    """Return the settings of torchrun that all processes share, with a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    size = str(count)
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
