"""Apply the patches of this folder one by one, and check that the tests fail for each: ``make mutants``.

    python tests/mutants/run.py [NAME ...] [--jobs 2]

A mutant is a patch with a fault of one kind: a wrong sign or factor, another stream of noise, an index off by one, a
dropped term, a wrong dtype. Its first lines say what it breaks (``Mutant:``) and which tests to run (``Tests:``, paths
separated by spaces). The patches are applied to copies of the tree, which git does not see. The command prints the
test that fails first for each mutant, and exits with 1 if no test fails for one, or if a patch does not apply.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 600  # seconds for the tests of one mutant
KILLED, SURVIVED, BROKEN = "killed", "SURVIVED", "BROKEN"


@dataclass(frozen=True)
class Mutant:
    """A patch, what it breaks, and the tests that should fail."""

    path: Path
    fault: str
    tests: list[str]


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


def try_mutant(mutant: Mutant) -> tuple[str, str]:
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
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *mutant.tests]
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


def main() -> int:
    """Run the mutants and print a line for each."""
    parser = argparse.ArgumentParser(description="Check that the tests fail for every patch of tests/mutants.")
    parser.add_argument("names", nargs="*", help="names of patches without .patch; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that run at a time")
    arguments = parser.parse_args()
    paths = [HERE / f"{name}.patch" for name in arguments.names] or sorted(HERE.glob("*.patch"))
    mutants = [read_mutant(path) for path in paths]
    if not mutants:
        print(f"no patches in {HERE}", file=sys.stderr)
        return 1
    width, outcomes = max(len(mutant.path.stem) for mutant in mutants), []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, (outcome, detail) in zip(mutants, pool.map(try_mutant, mutants), strict=True):
            outcomes.append(outcome)
            print(f"{mutant.path.stem:<{width}}  {outcome:<8}  {mutant.fault}\n{'':<{width}}  {detail}", flush=True)
    killed = outcomes.count(KILLED)
    print(f"{killed} of {len(mutants)} mutants killed, {len(mutants) - killed} not")
    return int(killed != len(mutants))


if __name__ == "__main__":
    sys.exit(main())
