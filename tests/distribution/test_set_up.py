"""`tools/set_up.py`: which commands of pip it runs, what it prints, and how it fails.

A script stands for Python and pip. The sentences of pip that it reads come from pip itself, which asks an index in a
folder and one at a closed port.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sources import ROOT

INDEX = "http://127.0.0.1:9/cpu"  # nothing listens at port 9
PIN = "2.13.0"
SILENT = f"Could not fetch URL {INDEX}/torch/: connection error: refused - skipping"
FOUND, OTHERS = (
    f"torch (2.14.1)\nAvailable versions: 2.14.1+cpu, {PIN}+cpu, 2.12.0+cpu",
    "Available versions: 2.14.1+cpu",
)
CPU_BUILD = f"install --no-deps --index-url {INDEX} torch=={PIN}+cpu"
ANY_BUILD = f"install torch=={PIN}"
FASTDIFF = f"install -c {ROOT}/constraints.txt -e ."

# Stands for VENV/bin/python: writes its arguments down, and answers from files beside it
PYTHON = """#!/bin/sh
cd "$(dirname "$0")"
case "$*" in
*--version) echo "pip 23.2.1"; exit;;
*importlib.metadata*) cat torch; exit;;
esac
echo "$*" | sed 's/.*--no-input //' >> commands
case "$*" in
*"index versions"*) if [ -f answer ]; then cat answer; else exec "$REAL" "$@"; fi;;
*) cat retries
   for word in $(cat failing); do case "$*" in *$word*) seq 100; echo "ERROR: no $word"; exit 1;; esac; done
   case "$*" in *torch==*) echo "${*##*==}" > torch;; esac;;
esac
"""


class Fake:
    """An environment whose Python is a script, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.venv, self.bin = folder / "venv", folder / "venv/bin"
        self.bin.mkdir(parents=True)
        self.write("python", PYTHON).chmod(0o755)
        for name in ("commands", "failing", "retries", "torch"):
            self.write(name, "")
        (folder / "tools").mkdir()
        # A PATH without nvidia-smi, wherever the tests run
        for name in ("sh", "dirname", "cat", "sed", "seq", "touch", "make", "python3"):
            if found := shutil.which(name):
                (folder / "tools" / name).symlink_to(found)
        self.environment = {
            "PATH": str(folder / "tools"),
            "REAL": sys.executable,
            "CPU_INDEX": INDEX,
            "HOME": "/nowhere",
        }
        self.environment |= {"PIP_CONFIG_FILE": os.devnull}

    def write(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        return path

    def gpu(self, text: str) -> None:
        """Put a script in the place of nvidia-smi."""
        path = self.bin.parents[1] / "tools/nvidia-smi"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        command = command or (sys.executable, str(ROOT / "tools/set_up.py"), str(self.venv))
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False)

    def commands(self) -> list[str]:
        """The commands of pip, without the question to the index, which is ``?``."""
        lines = (self.bin / "commands").read_text().splitlines()
        asked = f"index versions torch -vv --index-url {INDEX} --retries 0 --timeout 5"
        return ["?" if line == asked else line for line in lines]


@pytest.fixture
def fake(tmp_path) -> Fake:
    return Fake(tmp_path)


def shown(done: subprocess.CompletedProcess[str]) -> str:
    """What a run printed, with N for its seconds."""
    return re.sub(r"\d+ s\b", "N s", done.stdout)


CPU_LINE = f"installing torch {PIN} (CPU build) ..."
ANY_LINE = f"installing torch {PIN} (the build that pip finds) ... {PIN}, N s\n"
LAST_LINE = "installing fastdiff and what it needs ... N s\n"


@pytest.mark.parametrize(
    ("answer", "failing", "commands", "lines"),
    [
        (FOUND, "", ["?", CPU_BUILD], f"{CPU_LINE} N s\n"),
        (SILENT, "", ["?", ANY_BUILD], f"{CPU_LINE} PyTorch's index of CPU builds does not answer, N s\n{ANY_LINE}"),
        # pip finds the build in a folder of wheels, and would wait for the index again
        (
            f"{SILENT}\n{FOUND}", "", ["?", ANY_BUILD],
            f"{CPU_LINE} PyTorch's index of CPU builds does not answer, N s\n{ANY_LINE}",
        ),
        (OTHERS, "", ["?", ANY_BUILD], f"{CPU_LINE} there is none for this machine, N s\n{ANY_LINE}"),
        (FOUND, "+cpu", ["?", CPU_BUILD, ANY_BUILD], f"{CPU_LINE} it could not be downloaded, N s\n{ANY_LINE}"),
    ],
    ids=["answers", "silent", "silent, with a folder of wheels", "no build", "no download"],
)  # fmt: skip
def test_without_a_gpu(fake, answer, failing, commands, lines):
    """The index of CPU builds is asked once; then pip finds torch by its own configuration."""
    fake.write("answer", answer)
    fake.write("failing", failing)
    done = fake.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert fake.commands() == [*commands, FASTDIFF]
    assert shown(done) == lines + LAST_LINE


@pytest.mark.parametrize(
    ("script", "asked"), [("echo 'GPU 0: NVIDIA H200'", False), ("echo 'no driver'; exit 9", True)]
)
def test_beside_nvidia_smi(fake, script, asked):
    fake.write("answer", FOUND)
    fake.gpu(script)
    assert fake.run().returncode == 0
    assert fake.commands()[:-1] == (["?", CPU_BUILD] if asked else [ANY_BUILD])


def test_no_index_is_asked_if_none_is_named(fake):
    fake.environment["CPU_INDEX"] = ""
    assert fake.run().returncode == 0
    assert fake.commands() == [ANY_BUILD, FASTDIFF]


@pytest.mark.parametrize(("installed", "kept"), [(PIN, True), (f"{PIN}+cu130", True), ("2.14.1", False)])
def test_the_pinned_torch_is_kept(fake, installed, kept):
    fake.environment["CPU_INDEX"] = ""
    fake.write("torch", installed)
    assert fake.run().returncode == 0
    assert fake.commands() == ([] if kept else [ANY_BUILD]) + [FASTDIFF]


def test_a_failure_shows_the_end_of_what_pip_said(fake):
    fake.environment["CPU_INDEX"] = ""
    fake.write("failing", "torch")
    done = fake.run()
    assert done.returncode == 1
    assert shown(done) == f"installing torch {PIN} (the build that pip finds) ... failed after N s\n"
    log = fake.venv / "set-up.log"
    *lines, last = done.stderr.splitlines()
    assert lines == [*(f"  {number}" for number in range(87, 101)), "  ERROR: no torch"]
    assert last == f"All of the output is in {log}."
    assert log.read_text().splitlines()[1:] == [*map(str, range(1, 101)), "ERROR: no torch"]
    assert log.read_text().startswith("$ ")


def test_a_silent_package_index(fake):
    """Its retries are counted in one sentence, which says where pip's configuration is seen."""
    fake.environment["CPU_INDEX"] = ""
    fake.write("failing", "torch")
    fake.write("retries", "WARNING: Retrying (Retry(total=4, ...)) after connection broken by ...\n" * 5)
    error = fake.run().stderr
    assert "Retrying" not in error
    assert f"A package index did not answer: `{fake.bin}/python -m pip config list`\n" in error
    assert "WARNING: Retrying (" in (fake.venv / "set-up.log").read_text()


def test_extras(fake):
    fake.write("torch", PIN)
    done = fake.run(sys.executable, str(ROOT / "tools/set_up.py"), str(fake.venv), "--extras", "test,dev")
    assert fake.commands() == [f"install -c {ROOT}/constraints.txt -e .[test,dev]"]
    assert shown(done) == "installing what test, dev need ... N s\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_sets_up_once(fake):
    fake.write("answer", FOUND)
    fake.write("fastdiff", "#!/bin/sh\n").chmod(0o755)
    command = ("make", "--no-print-directory", "sample", f"VENV={fake.venv}", f"PYTHON={sys.executable}")
    first, second = fake.run(*command), fake.run(*command)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout.startswith(f"{fake.bin}/fastdiff sample ")
    assert shown(first) == f"{CPU_LINE} N s\n{LAST_LINE}{second.stdout}"


def test_pip_says_that_an_index_is_silent(fake):
    """With a folder of wheels that has the build, as on a machine without a network."""
    (fake.bin / f"torch-{PIN}+cpu-py3-none-any.whl").touch()
    fake.environment["PIP_FIND_LINKS"] = str(fake.bin)
    done = fake.run()
    assert fake.commands() == ["?", ANY_BUILD, FASTDIFF], done.stdout
    assert f"Available versions: {PIN}+cpu" in (fake.venv / "set-up.log").read_text()


def test_pip_says_that_an_index_has_the_build(fake, monkeypatch):
    page = fake.venv / "index/torch/index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<!DOCTYPE html><a href="torch-{PIN}%2Bcpu-py3-none-any.whl">torch-{PIN}+cpu-py3-none-any.whl</a>')
    monkeypatch.setattr(f"{__name__}.INDEX", index := page.parents[1].as_uri())
    fake.environment["CPU_INDEX"] = index
    done = fake.run()
    assert fake.commands() == ["?", CPU_BUILD.replace("http://127.0.0.1:9/cpu", index), FASTDIFF], done.stdout


def test_an_old_python():
    spec = importlib.util.spec_from_file_location("set_up", ROOT / "tools/set_up.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.check_python((3, 11, 0))
    with pytest.raises(module.SetUpError, match=r"fastdiff needs Python 3\.11 or newer, and .* is 3\.9: "):
        module.check_python((3, 9, 18))
