"""The command as a process: signals during imports and during the work, a closed pipe, and its exit codes."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from fastdiff import __version__
from fastdiff.cli import entry
from fastdiff.cli.main import main

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


def start(*arguments: str, module: tuple[str, ...] = ("-m", "fastdiff"), **options) -> subprocess.Popen:
    command = [sys.executable, *module, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# Runs the command line with modules of a folder before all others.
SLOW = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from fastdiff.cli.entry import main
main()
"""


@pytest.fixture(autouse=True)
def _hangup_is_not_ignored() -> Iterator[None]:
    """Children of a test run under nohup would ignore SIGHUP."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_imports(tmp_path, number):
    """One line and the exit code, at once."""
    (tmp_path / "tyro.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = start(str(tmp_path), "info", module=("-c", SLOW))
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=5)
    assert (process.returncode, out, err) == (128 + number, "", f"fastdiff: {WORDS[number]}\n")


def test_a_hangup_under_nohup_is_ignored(tmp_path):
    (tmp_path / "tyro.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(0.2)\nprint('on')\n1/0")
    process = start(
        str(tmp_path), "info", module=("-c", SLOW), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=5)
    assert out == "on\n"
    assert "ZeroDivisionError" in err


WORKING = """
import signal, sys, time
from fastdiff.cli import entry, main as module

def work(*_, **__):
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

module.Info.run = work
sys.argv[1:] = ["info"]
sys.exit(entry.main())
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_work(number):
    """The command cleans up first."""
    process = start(module=("-c", WORKING))
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=5)
    assert (process.returncode, out, err) == (128 + number, "cleaned up\n", f"fastdiff: {WORDS[number]}\n")


def has_handlers(pid: int) -> bool:
    """Return whether the command has set its handlers; Python itself has none for SIGTERM."""
    with open(f"/proc/{pid}/status") as status:
        (caught,) = [line.split()[1] for line in status if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_random_moments(tmp_path):
    """Of a real command, from its first line on; before that it is Python itself that ends."""
    moments = random.Random(0)
    for number in SIGNALS:
        process = start("sample", "digits", "--n", "1", cwd=tmp_path)
        while not has_handlers(process.pid):
            time.sleep(0.005)
        time.sleep(0.8 * moments.random())
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 128 + number, err
        assert re.sub(r".*\r", "", err).splitlines()[-1:] == [f"fastdiff: {WORDS[number]}"]
        assert "Traceback" not in err
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("arguments", [["info"], ["--help"], ["sample", "--help"]])
def test_nobody_reads_the_output(arguments):
    process = start(*arguments)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(20) == 141
    process.stderr.close()


def test_another_broken_pipe_is_an_error(monkeypatch):
    def fail(*_):
        raise BrokenPipeError("a worker's pipe")

    monkeypatch.setattr("fastdiff.cli.main.main", fail)
    former = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with pytest.raises(BrokenPipeError, match="a worker"):
            entry.main()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_the_version(run):
    assert run("--version") == (0, f"fastdiff {__version__}\n", "")


def started_by_torchrun(monkeypatch, rank: str) -> None:
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_a_rank_without_torchrun_silences_nothing(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    code, out, err = run("sample", "nothing")
    assert (code, out, len(err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_one_process_of_several_prints_the_error(run, monkeypatch, rank, lines):
    """A command that the processes cannot share is rejected by all of them."""
    started_by_torchrun(monkeypatch, rank)
    monkeypatch.setattr("fastdiff.cli.main.PATIENCE", 0.0)
    code, out, err = run("info")
    assert (code, out, len(err.splitlines())) == (2, "", lines)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_process_of_several_prints_the_usage(capsys, monkeypatch, rank):
    started_by_torchrun(monkeypatch, rank)
    with pytest.raises(SystemExit) as exit:
        main(["sample", "--n", "many"])
    assert exit.value.code == 2
    assert bool(capsys.readouterr().err) == (rank == "0")


@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_a_defect_keeps_its_traceback(monkeypatch, kind):
    def fail(*_):
        raise kind("a defect")

    monkeypatch.setattr("fastdiff.cli.main.Info.run", fail)
    with pytest.raises(kind, match="a defect"):
        main(["info"])
