"""Processes of `gpu_run`: what a hang, a crash and a broken GPU context leave in the journal."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu_batches import PYTEST, Collector, Recorder, run_processes
from benchmarks.gpu_schedule import History, Journal

pytestmark = pytest.mark.slow  # it waits for a process that hangs

TESTS = """
import os, signal, subprocess, sys, time, warnings
import pytest

def test_good(): print("printed")
def test_skipped(): pytest.skip("no such thing")
def test_bad(): raise ValueError("seven is\\nwrong")
def test_hanging(): subprocess.run([sys.executable, "-c", "import time; time.sleep(600)", __file__])
def test_crashing(): os.kill(os.getpid(), signal.SIGSEGV)
def test_broken(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_lost(): raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
def test_after(): pass
def test_warning(): warnings.warn("old", FutureWarning)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Five processes at once, then one that hangs; return the history of their tests, the folder, and what stopped."""
    folder = tmp_path_factory.mktemp("batches")
    (folder / "test_these.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    journal = Journal(folder / "journal.jsonl")

    def shard(share, *more):
        tests = [f"{folder / 'test_these.py'}::test_{name}" for name in share.split()]
        return [*PYTEST, *more, *tests], folder / f"{share}.txt", Recorder(journal, "group"), True

    shards = [
        *map(shard, ("good skipped bad", "crashing", "broken after", "lost after")),
        shard("warning", "-W", "default"),
    ]
    stopped = run_processes(shards, 120.0), run_processes([shard("hanging")], 600.0, 6.0, journal)
    return History(journal.events()), folder, stopped


def names(tests):
    return {test.rpartition("::test_")[2] for test in tests}


def test_the_journal_has_what_happened(ran):
    history, folder, _ = ran
    outcomes = {test.rpartition("_")[2]: event for test, event in history.outcomes.items()}
    found = {name: (event["outcome"], event["reason"]) for name, event in outcomes.items()}
    assert found == {
        "good": ("passed", ""),
        "skipped": ("skipped", "no such thing"),
        "bad": ("failed", "ValueError: seven is wrong"),
        "broken": ("failed", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        "lost": ("failed", "RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered"),
        "warning": ("passed", ""),
    }
    assert names(history.open) - {"hanging"} == {"crashing"}
    assert "after" not in names(history.attempts)  # the context was broken: a new process takes it
    assert "ValueError" in (folder / "good skipped bad.txt").read_text()


def test_a_process_that_hangs_is_stopped_with_what_it_started(ran):
    """Its child has the folder's name in its command line: no process with that name is left."""
    _, folder, stopped = ran
    assert stopped == (False, True)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
    assert not [command for command in commands if str(folder).encode() in command and b"sleep" in command]


def readable(path):
    try:
        return path.read_bytes() is not None
    except OSError:
        return False


def test_the_identifiers_of_tests_are_collected(tmp_path):
    (tmp_path / "test_these.py").write_text(TESTS)
    path = tmp_path / "found.json"
    stopped = run_processes(
        [([*PYTEST, "--collect-only", str(tmp_path)], tmp_path / "log.txt", Collector(path), False)], 60.0
    )
    assert not stopped
    assert len(json.loads(path.read_text())["tests"]) == TESTS.count("def test")
