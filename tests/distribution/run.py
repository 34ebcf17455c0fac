"""Build the sdist and the wheel, install the wheel in a clean environment, and use both: ``make package``.

    python tests/distribution/run.py

The clean environment has fastdiff from the wheel alone. Everything else, torch first of all, it finds in the
environment that runs this file, so that nothing is downloaded; requirements are compared with the versions there.
Commands run in an empty folder, and without PYTHONPATH. The first check that fails ends the run with what it printed.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LINKS = {"homepage", "documentation", "source", "issues", "changelog"}  # labels that package indexes know
NOT_PACKED = (".ci/", ".pre-commit-config.yaml")  # what only a clone needs
TESTS = ["tests/test_imports.py", "tests/kernels/test_noise.py", "tests/data/test_npz.py"]  # some, of the sdist
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1"}

# Runs in the clean environment, with its folder as the argument
IMPORTS = """
import sys
from importlib.metadata import version
from importlib.resources import files
import fastdiff, fastdiff_kernels
assert not {"torch", "triton"} & set(sys.modules), "importing fastdiff must not import torch"
assert fastdiff.__version__ == version("fastdiff-triton"), fastdiff.__version__
for package in (fastdiff, fastdiff_kernels):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
    assert (files(package) / "py.typed").is_file(), package
from fastdiff.checkpoints import embedded_names
for name in embedded_names():
    fastdiff.load(name)
print(*embedded_names())
"""

WRONG = 'import fastdiff\n\nfastdiff.sample("digits", "many")\nfastdiff.sample("digits", 4, step=3)\n'


class CheckError(Exception):
    """A check failed."""


@contextmanager
def step(what: str) -> Iterator[list[str]]:
    """Print a line: what is checked, what the block appends to the list, and the seconds that it took."""
    remarks: list[str] = []
    started = time.monotonic()
    print(f"{what} ...", end="", flush=True)
    yield remarks
    print("", ", ".join([*remarks, f"{time.monotonic() - started:.0f} s"]), flush=True)


def run(command: Sequence[str | Path], folder: Path, code: int = 0) -> str:
    """Run a command in a folder; return what it printed. Another exit code than ``code`` is an error."""
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != code:
        raise CheckError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def require(condition: object, message: object) -> None:
    """Raise an error with a message unless a condition holds."""
    if not condition:
        raise CheckError(str(message))


def build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel out of the sdist; return both."""
    with step("building the sdist, and the wheel out of it") as remarks:
        run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], folder)
        (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
        remarks += [f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in (sdist, wheel)]
    return sdist, wheel


def check_metadata(wheel: Path) -> None:
    """Name, version, licence, long description and links; the requirements hold here."""
    with step("metadata") as remarks:
        metadata = metadata_of(wheel)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = {"Name": project["name"], "Requires-Python": project["requires-python"], "License-Expression": "MIT"}
        wanted |= {"Version": stated_version(), "Description-Content-Type": "text/markdown"}
        for field, value in wanted.items():
            require(metadata[field] == value, f"{field} must be {value!r}, got {metadata[field]!r}")
        require(metadata.get_payload() == (ROOT / "README.md").read_text(), "the long description must be README.md")
        for text in metadata.get_all("Requires-Dist", []):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                found = version(requirement.name)
                require(requirement.specifier.contains(found, prereleases=True), f"{text} does not allow {found}")
        links = {line.partition(",")[0].lower() for line in metadata.get_all("Project-URL", [])}
        if missing := sorted(LINKS - links):
            remarks.append(f"no link named {', '.join(missing)}")


def metadata_of(wheel: Path) -> Message:
    """Return the METADATA of a wheel."""
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        data = archive.read(name)
    message = message_from_bytes(data)
    message.set_payload(data.split(b"\n\n", 1)[1].decode())
    return message


def stated_version() -> str:
    """Return the version that fastdiff/__init__.py states."""
    (line,) = [
        line for line in (ROOT / "fastdiff/__init__.py").read_text().splitlines() if line.startswith("__version__ = ")
    ]
    return line.split('"')[1]


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel in a new environment; return the environment's Python."""
    with step("installing the wheel in a clean environment"):
        venv.create(folder, symlinks=True)
        python = folder / "bin/python"
        site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
        # The files of a folder that a .pth file names are found, and its own .pth files are not read: a fastdiff that
        # is installed there in place stays out of sight
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
        run([*pip, "install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel], folder)
    return python


def use(python: Path, folder: Path) -> None:
    """Import the packages, load every embedded model, and sample."""
    with step("importing, loading every embedded model, sampling") as remarks:
        remarks.append(f"models {run([python, '-c', IMPORTS, python.parents[1]], folder).strip()}")
        command = python.with_name("fastdiff")
        require(run([command, "--version"], folder) == f"fastdiff {stated_version()}\n", "fastdiff --version")
        run([command, "sample", "digits", "-n", "4", "--steps", "3", "--out", "four.png"], folder)
        require((folder / "four.png").read_bytes().startswith(b"\x89PNG"), "four.png must be a PNG file")


def check_types(python: Path, folder: Path) -> None:
    """A program of a user has no type errors, in pyright's strict mode, and a wrong one has."""
    with step("types of a user's program"):
        (folder / "user.py").write_text((ROOT / "tests/distribution/user.py").read_text())
        (folder / "wrong.py").write_text(WRONG)
        pyright = [sys.executable, "-m", "pyright", "--pythonpath", python]
        run([*pyright, "user.py"], folder)
        found = run([*pyright, "wrong.py"], folder, code=1)
        require("2 errors" in found, f"a wrong program must have 2 errors, got\n{found}")


def check_sdist(sdist: Path, python: Path, folder: Path) -> None:
    """The sdist holds every file of the repository, and its tests run."""
    with step("the sdist and its tests") as remarks:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = folder.iterdir()
        if (ROOT / ".git").exists():
            names = run(["git", "ls-files", "-co", "--exclude-standard"], ROOT).splitlines()
            lost = [
                name for name in names
                if not name.startswith(NOT_PACKED) and (ROOT / name).exists() and not (unpacked / name).exists()
            ]  # fmt: skip
            require(not lost, f"the sdist must hold {', '.join(lost)}")
        pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        remarks.append(run([*pytest, "--benchmark-disable", "--collect-only"], unpacked).strip().splitlines()[-1])
        remarks.append(run([*pytest, "--benchmark-disable", *TESTS], unpacked).strip().splitlines()[-1])


def main() -> int:
    """Run all checks; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name).resolve() / part for part in ("dist", "environment", "empty", "sdist")]
        dist, environment, empty, unpacked = folders
        for folder in folders:
            folder.mkdir()
        try:
            sdist, wheel = build(dist)
            check_metadata(wheel)
            python = install(wheel, environment)
            use(python, empty)
            check_types(python, empty)
            check_sdist(sdist, python, unpacked)
        except CheckError as error:
            print(f" failed\n{error}", file=sys.stderr)
            return 1
    print("The packages are as they should be.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
