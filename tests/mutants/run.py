"""Check that the tests find faults, one at a time: ``make mutants``.

    python tests/mutants/run.py [NAME ...] [--jobs 2]

A mutant is a patch in this folder with a fault of one kind: a wrong sign or factor, another stream of noise, an index
off by one, a dropped term, a wrong dtype. Its first lines say what it breaks (``Mutant:``) and which tests to run
(``Tests:``, paths separated by spaces). The patches are applied to copies of the tree, which git does not see.

Or it is a mutation of a compiled kernel's PTX (`mutations.py`). These run on the machine of tests/machine, all in one
process, and each must be found by the check that it names.

The command prints what finds each mutant first: a test, or a check of the machine. It exits with 1 if nothing finds
one, if a patch does not apply, or if a mutation finds no place.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from machine.run import environment  # noqa: E402
from mutants.mutations import MUTATIONS  # noqa: E402

LIMIT = 600  # seconds for the tests of one mutant
KILLED, SURVIVED, BROKEN = "killed", "SURVIVED", "BROKEN"


@dataclass(frozen=True)
class Mutant:
    """A patch, what it breaks, and the tests that should fail."""

    path: Path
    fault: str
    tests: list[str]


@dataclass(frozen=True)
class Result:
    """What became of a mutant: killed, SURVIVED or BROKEN, and what found it."""

    name: str
    fault: str
    outcome: str
    detail: str


def read_mutant(path: Path) -> Mutant:
    """Read the first lines of a patch."""
    head = dict(re.findall(r"^(Mutant|Tests): (.*)$", path.read_text(), re.MULTILINE))
    if set(head) != {"Mutant", "Tests"}:
        raise SystemExit(f"{path} must begin with the lines 'Mutant: ...' and 'Tests: ...'")
    return Mutant(path, head["Mutant"], head["Tests"].split())


def copy_tree(to: Path) -> None:
    """Copy the tracked and the new files of the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name)


def try_patch(path: Path) -> list[Result]:
    mutant = read_mutant(path)
    return [Result(path.stem, mutant.fault, *tests_of(mutant))]


def tests_of(mutant: Mutant) -> tuple[str, str]:
    """Apply a patch to a copy of the tree and run its tests; return the outcome and the first test that failed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        applied = subprocess.run(
            ["git", "apply", "--unsafe-paths", f"--directory={tree}", str(mutant.path)],
            cwd=tree, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if applied.returncode:
            return BROKEN, f"the patch does not apply: {applied.stderr.strip().splitlines()[0]}"
        environment = {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'kernels'}", "OMP_NUM_THREADS": "1"}
        options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-m", ""]  # slow tests too
        command = [sys.executable, "-m", "pytest", *options, *mutant.tests]
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return KILLED, f"(no result within {LIMIT} s)"
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return SURVIVED, f"no failure in {' '.join(mutant.tests)}"
    if done.returncode == 1 and failed:
        return KILLED, failed[0]
    return BROKEN, (done.stdout + done.stderr).strip().splitlines()[-1]


def try_mutations(names: list[str]) -> list[Result]:
    """Run mutations of PTX in one process, in which nothing is interpreted."""
    command = [sys.executable, str(HERE / "run_mutations.py"), *names]
    limit = LIMIT * len(names)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=limit
        )
        output, error = done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        output, error = late.stdout or "", f"no result within {limit} s"
        output = output.decode() if isinstance(output, bytes) else output
    found = {line.split("\t")[0]: line.split("\t")[1:] for line in output.splitlines() if line.count("\t") == 2}
    lost = [BROKEN, (error.strip().splitlines() or ["no result"])[-1]]
    return [Result(name, f"PTX: {MUTATIONS[name].fault}", *found.get(name, lost)) for name in names]


def results(names: list[str], jobs: int) -> Iterator[Result]:
    """Run the named mutants, or all. The mutations of PTX, in one process, are the longest job and begin first."""
    mutations = [name for name in names if name in MUTATIONS] if names else list(MUTATIONS)
    paths = (
        [HERE / f"{name}.patch" for name in names if name not in MUTATIONS] if names else sorted(HERE.glob("*.patch"))
    )
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(try_mutations, mutations)] if mutations else []
        waiting += [pool.submit(try_patch, path) for path in paths]
        for job in waiting:
            yield from job.result()


def main() -> int:
    """Run the mutants and print a line for each."""
    parser = argparse.ArgumentParser(description="Check that the tests fail for every fault of tests/mutants.")
    parser.add_argument("names", nargs="*", help="names of patches without .patch, and of mutations; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that run at a time")
    arguments = parser.parse_args()
    known = [*MUTATIONS, *(path.stem for path in HERE.glob("*.patch"))]
    if unknown := sorted(set(arguments.names) - set(known)):
        parser.error(f"no mutant is called {', '.join(unknown)}")
    width, outcomes = max(map(len, arguments.names or known)), []
    for result in results(arguments.names, arguments.jobs):
        outcomes.append(result.outcome)
        print(
            f"{result.name:<{width}}  {result.outcome:<8}  {result.fault}\n{'':<{width}}  {result.detail}", flush=True
        )
    killed = outcomes.count(KILLED)
    print(f"{killed} of {len(outcomes)} mutants killed, {len(outcomes) - killed} not")
    return int(killed != len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
