"""Set up a virtual environment with the pinned packages of constraints.txt; `make` runs it.

    python3 tools/set_up.py .venv                   what fastdiff needs
    python3 tools/set_up.py .venv --extras test,dev     some of its extras too

Each step that does something prints one line: what it does, and how long it took. What pip says is kept in
VENV/set-up.log, and its end is printed if a step fails.

PyPI's Linux wheels of torch are for CUDA and need gigabytes. On Linux without an NVIDIA GPU PyTorch's own index of CPU
builds is therefore asked first: once, for at most TIMEOUT seconds. If it does not answer, or has no build for this
machine, pip finds torch by its own configuration, as it does on a machine with a GPU: mirrors, folders of wheels and
proxies stay in force. An environment that has the pinned torch already keeps it. The environment variable CPU_INDEX
names another index of CPU builds; if it is empty, none is asked.

Only the standard library is used, and only what an old Python can parse: this file tells it that it is too old.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TIMEOUT = 5  # seconds
SHOWN = 15  # lines of the log after a failure
RETRYING = "WARNING: Retrying ("  # how pip begins to say that an index does not answer
NEWER = [f"python3.{minor}" for minor in range(11, 20)]


class SetUpError(Exception):
    """A step has failed; the message says why, for a person."""


def main(arguments=None):
    """Run the steps that are left to do; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("venv", type=Path, help="folder of the environment, which is created if there is none")
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, divided by commas")
    options = parser.parse_args(arguments)
    try:
        environment = Environment(options.venv)
        environment.create()
        environment.install_torch(pinned("torch"))
        environment.install_fastdiff(options.extras)
    except SetUpError as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def pinned(name):
    """Return the version of a package in constraints.txt."""
    found = re.search(f"^{name}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if found is None:
        raise SetUpError(f"constraints.txt must pin {name}")
    return found.group(1).strip()


def check_python(version):
    """Raise an error if a version of Python, as a tuple, is older than pyproject.toml requires."""
    text = (ROOT / "pyproject.toml").read_text()
    required = tuple(map(int, re.findall(r'^requires-python = ">=(\d+)\.(\d+)"', text, re.MULTILINE)[0]))
    if tuple(version[:2]) < required:
        newer = [name for name in NEWER if shutil.which(name)]
        advice = f"name a newer one, for example PYTHON={newer[0]}" if newer else "install a newer one"
        raise SetUpError(
            f"fastdiff needs Python {required[0]}.{required[1]} or newer, and {sys.executable} is "
            f"{version[0]}.{version[1]}: {advice}"
        )


def has_nvidia_gpu():
    """Return whether ``nvidia-smi`` is there and lists a GPU."""
    if not shutil.which("nvidia-smi"):
        return False
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout


class Environment:
    """A virtual environment, and the log of what was done to it."""

    def __init__(self, folder):
        self.folder = folder
        self.python = (folder / "bin" / "python").absolute()
        self.log = folder / "set-up.log"

    def create(self):
        """Create the environment if it is not there, or has no pip."""
        if self.python.exists() and self.ask("-m", "pip", "--version"):
            return
        check_python(sys.version_info)
        version = ".".join(map(str, sys.version_info[:3]))
        with Step(self, f"creating {self.folder} (Python {version})") as step:
            # A Python that was moved or upgraded leaves links to nowhere behind, which venv does not replace
            clear = ["--clear"] if (self.folder / "pyvenv.cfg").exists() and not self.python.exists() else []
            step.run([sys.executable, "-m", "venv", *clear, str(self.folder.absolute())])

    def ask(self, *arguments):
        """Return what the environment's Python prints, or an empty text if it fails."""
        command = [str(self.python), *arguments]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=str(self.folder), check=False
            )
        except OSError:
            return ""
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""

    def version(self, package):
        """Return the version of an installed package, or an empty text."""
        return self.ask("-c", f"from importlib.metadata import version; print(version({package!r}))")

    def pip(self, *arguments):
        """Return a command of pip in this environment."""
        return [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]

    def install_torch(self, version):
        """Install a version of torch unless it is there: the CPU build where that is enough and at hand."""
        if self.version("torch").partition("+")[0] == version:
            return
        index = os.environ.get("CPU_INDEX", CPU_INDEX)
        if index and sys.platform == "linux" and not has_nvidia_gpu() and self.install_cpu_build(version, index):
            return
        with Step(self, f"installing torch {version} (the build that pip finds)") as step:
            # Without constraints: pip would blame them where it finds no torch at all
            step.run(self.pip("install", f"torch=={version}"))
            step.remark = self.version("torch")

    def install_cpu_build(self, version, index):
        """Install the CPU build of an index; return whether that index answers, has it, and delivers it.

        What torch itself needs is left to pip's own configuration. The index counts as silent also where pip finds a
        CPU build elsewhere, say in a folder of wheels: it will find it there again, without waiting for the index.
        """
        with Step(self, f"installing torch {version} (CPU build)") as step:
            wanted = f"{version}+cpu"
            asked = self.pip("index", "versions", "torch", "-vv", "--index-url", index)
            step.attempt([*asked, "--retries", "0", "--timeout", str(TIMEOUT)])
            if f"Could not fetch URL {index}" in step.output:
                step.remark = "PyTorch's index of CPU builds does not answer"
            elif not re.search(r"versions:.*\b" + re.escape(wanted) + r"(,|\s|$)", step.output):
                step.remark = "there is none for this machine"
            elif not step.attempt(self.pip("install", "--no-deps", "--index-url", index, f"torch=={wanted}")):
                step.remark = "it could not be downloaded"
            else:
                return True
        return False

    def install_fastdiff(self, extras):
        """Install fastdiff from this folder, in place, with what it and some of its extras need."""
        need = "need" if "," in extras else "needs"
        what = f"what {extras.replace(',', ', ')} {need}" if extras else "fastdiff and what it needs"
        target = f".[{extras}]" if extras else "."
        with Step(self, f"installing {what}") as step:
            step.run(self.pip("install", "-c", str(ROOT / "constraints.txt"), "-e", target))


class Step:
    """A step that prints one line: what it does, then how long it took."""

    def __init__(self, environment, what):
        self.environment = environment
        self.what = what
        self.remark = ""  # printed at the end of the line
        self.output = ""  # of the last command
        self.started = time.monotonic()

    def __enter__(self):
        print(f"{self.what} ...", end="", flush=True)
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.end_line(", ".join(filter(None, [self.remark, self.seconds()])) + "\n")

    def seconds(self):
        return f"{time.monotonic() - self.started:.0f} s"

    def end_line(self, end):
        """Write the rest of the line; on a terminal it replaces the seconds that stand there."""
        print(f"\r\033[K{self.what} ... {end}" if sys.stdout.isatty() else f" {end}", end="", flush=True)

    def run(self, command):
        """Run a command.

        Raises:
            SetUpError: it fails. The message holds the last lines that it printed.
        """
        if not self.attempt(command):
            self.end_line(f"failed after {self.seconds()}\n")
            lines = [line for line in self.output.splitlines() if line.strip()]
            telling = [line for line in lines if RETRYING not in line]
            message = [f"  {line}" for line in telling[-SHOWN:]]
            if len(telling) < len(lines):
                message.append(f"A package index did not answer: `{self.environment.python} -m pip config list`")
                message.append("prints where pip looks, besides its own default.")
            if self.environment.log.exists():
                message.append(f"All of the output is in {self.environment.log}.")
            raise SetUpError("\n".join(message))

    def attempt(self, command):
        """Run a command, and append what it prints to the log; return whether it succeeds."""
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(ROOT)
        )
        try:
            self.output = self.wait(process).decode(errors="replace")
        except BaseException:  # Ctrl-C too
            process.kill()
            process.wait()
            raise
        log = self.environment.log
        if log.parent.is_dir():
            with log.open("a", encoding="utf-8") as file:
                file.write(f"$ {' '.join(command)}\n{self.output}")
        return process.returncode == 0

    def wait(self, process):
        """Wait for a process; return its output. On a terminal the seconds are counted meanwhile."""
        while True:
            try:
                return process.communicate(timeout=1 if sys.stdout.isatty() else None)[0]
            except subprocess.TimeoutExpired:
                self.end_line(self.seconds())


if __name__ == "__main__":
    sys.exit(main())
