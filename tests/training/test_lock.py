"""The lock of a run's folder: one holder, in other processes and in this one, and none after the holder's death."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from fastdiff.training.errors import RunError
from fastdiff.training.lock import LOCK, locked

# Holds the lock, and has a child that lives on after it.
HOLDER = """
import os, sys, time
from pathlib import Path
from fastdiff.training.lock import locked

with locked(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_named_the_first(tmp_path):
    with locked(tmp_path):
        found = json.loads((tmp_path / LOCK).read_text())
        assert found == {"pid": os.getpid(), "host": socket.gethostname()}
        with (
            pytest.raises(RunError, match=rf"in use by another training \(process {os.getpid()} on host"),
            locked(tmp_path),
        ):
            pass
        with pytest.raises(RunError), locked(tmp_path):  # the attempt has not taken the first one's lock away
            pass
    for _ in range(2):
        with locked(tmp_path):
            pass
    assert (tmp_path / LOCK).read_text() == ""


def test_the_lock_ends_with_its_block(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_ends_with_its_process(tmp_path):
    """By kill -9, although a forked worker outlives it; until then it holds, although the worker closed its copy."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(RunError, match=f"process {process.pid} on host"), locked(tmp_path):
                pass
            process.kill()
            process.wait()
            os.kill(child, 0)  # it lives
            assert (tmp_path / LOCK).read_text()  # nobody was there to clear it
            with locked(tmp_path):
                pass
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_end_of_a_forked_process_does_not_release_the_lock(tmp_path):
    with locked(tmp_path):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(RunError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass


def test_reading_the_file_does_not_release_the_lock(tmp_path):
    with locked(tmp_path):
        (tmp_path / LOCK).read_bytes()
        with pytest.raises(RunError), locked(tmp_path):
            pass


def test_a_folder_without_locks_or_without_rights(tmp_path, monkeypatch, capsys):
    with pytest.raises(RunError, match="gone cannot be written"), locked(tmp_path / "gone"):
        pass

    def unsupported(descriptor: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fastdiff.training.lock._lock", unsupported)
    with locked(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked" in capsys.readouterr().err
