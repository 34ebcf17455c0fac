"""Compare the numbers that two versions of fastdiff compute, case by case and bit by bit.

    python benchmarks/same_numbers.py BASE              # any commit, such as HEAD~1; about 3 minutes on one core
    python benchmarks/same_numbers.py BASE --only ddpm  # the cases whose names match an expression
    python benchmarks/same_numbers.py BASE --rounding 1e-4    # after a change of the order of operations

The code of BASE runs from a git worktree in a temporary folder, the code of this checkout from where it stands; each
runs the cases of `number_cases/` in a process of its own, on one CPU thread and with the operations in plain PyTorch.
`number_cases/old_api.py` and `number_cases/new_api.py` translate the cases into the calls of a version. BASE runs
first. It writes the weights of the models and checkpoints, which both versions load.

The result of a case is a list of arrays. Its hash covers their dtypes, shapes and bytes. Equal hashes mean that all
bits agree. Where they differ, the largest difference is printed, relative to the largest value where that is above 1. A
case with an allowance may differ by that much; every other case must not differ at all, or by no more than --rounding.
The exit status is 1 if a case differs by more, or fails.
"""

import argparse
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
KEPT = 4096  # elements of the largest array that is stored; larger ones are hashed only
HASHES, ARRAYS = "hashes.json", "arrays.npz"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "FASTDIFF_BACKEND": "torch", "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> int:
    """Run both versions, print the table and the summary; return the exit status."""
    arguments = _arguments()
    if arguments.compute:
        return compute(*map(Path, arguments.compute), re.compile(arguments.only))
    selection = f"--only={arguments.only}"
    with tempfile.TemporaryDirectory(prefix="same-numbers-") as name:
        folder, tree = Path(name), Path(name, "base")
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), arguments.base], check=True)
        try:
            for root, out in ((tree, folder / "before"), (REPOSITORY, folder / "after")):
                _start(root, out, folder / "checkpoints", selection)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
        return report(Side.read(folder / "before"), Side.read(folder / "after"), arguments.rounding)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the numbers that two versions of fastdiff compute.")
    parser.add_argument("base", nargs="?", help="commit to compare this checkout with")
    parser.add_argument("--only", default="", metavar="PATTERN", help="run the cases whose names match this expression")
    parser.add_argument("--rounding", type=float, default=0.0, metavar="X", help="difference that every case may have")
    parser.add_argument("--compute", nargs=3, metavar=("ROOT", "OUT", "CHECKPOINTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.base and not arguments.compute:
        parser.error("the commit BASE is missing")
    return arguments


def _start(root: Path, out: Path, checkpoints: Path, selection: str) -> None:
    """Run `compute` with the code of one version in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--compute", str(root), str(out), str(checkpoints)]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")])}
    out.mkdir()
    checkpoints.mkdir(exist_ok=True)
    subprocess.run([*command, selection], env=environment, cwd=out, check=True)


# ------------------------------------------------------------------------------------------------ one version


def compute(root: Path, out: Path, checkpoints: Path, only: re.Pattern[str]) -> int:
    """Run the cases with the code in ``root``; write their hashes and arrays to ``out``."""
    import torch

    import fastdiff

    if not Path(str(fastdiff.__file__)).resolve().is_relative_to(root.resolve()):
        raise RuntimeError(f"fastdiff was imported from {fastdiff.__file__}, not from {root}")
    torch.set_num_threads(1)
    from number_cases import bounds, families, operations, sampling, training

    families.WEIGHTS[0] = checkpoints / "weights"
    families.WEIGHTS[0].mkdir(exist_ok=True)
    old = (root / "fastdiff/models/hvae.py").exists()
    api: Any = importlib.import_module("number_cases.old_api" if old else "number_cases.new_api")
    cases = [*operations.cases(), *sampling.cases(), *bounds.cases(), *training.cases(checkpoints)]
    cases = [case for case in cases if only.search(case.name)]
    records, kept = {}, {}
    for number, case in enumerate(cases, 1):
        start = time.monotonic()
        record: dict[str, Any] = {"allowance": case.allowance, "error": None, "hash": ""}
        try:
            arrays = _arrays(case.run(api))
        except Exception as error:  # reported as the case's result; the other cases still run
            arrays, record["error"] = [], f"{type(error).__name__}: {error}"
        record["hash"] = _hash(arrays)
        kept |= {f"{case.name}|{i}": array for i, array in enumerate(arrays) if array.size <= KEPT}
        records[case.name] = record | {"seconds": time.monotonic() - start}
        _show(f"{out.name}: {number} of {len(cases)} cases, {case.name}", last=number == len(cases))
    if len(records) != len(cases):
        raise RuntimeError("two cases have the same name")
    (out / HASHES).write_text(json.dumps(records))
    np.savez(out / ARRAYS, **kept)
    return 0


def _arrays(value: Any) -> list[np.ndarray]:
    """Flatten nested lists and dictionaries of tensors, numbers and strings into arrays."""
    if isinstance(value, dict):
        return _arrays(list(value.values()))
    if isinstance(value, (list, tuple)):
        return [array for entry in value for array in _arrays(entry)]
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # which NumPy does not have
        return [np.ascontiguousarray(value.detach().float().numpy()), np.asarray("bfloat16")]
    if hasattr(value, "detach"):
        return [np.ascontiguousarray(value.detach().numpy())]
    return [np.asarray("None" if value is None else value)]


def _hash(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:12] if arrays else "-"


def _show(line: str, last: bool) -> None:
    """Show progress on stderr, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(line, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ two versions


@dataclass(frozen=True)
class Side:
    """The results of one version: a record per case, and the arrays that are not too large, as "case|index"."""

    records: dict[str, dict[str, Any]]
    arrays: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> "Side":
        """Read what `compute` wrote."""
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            return cls(json.loads((folder / HASHES).read_text()), {name: arrays[name] for name in arrays.files})

    def of(self, name: str) -> dict[int, np.ndarray]:
        """The stored arrays of a case, by their place in its result."""
        keys = [key.rpartition("|") for key in self.arrays]
        return {int(place): self.arrays[f"{name}|{place}"] for case, _, place in keys if case == name}


def report(before: Side, after: Side, rounding: float) -> int:
    """Print the table and the summary; return the exit status. Every case may differ by ``rounding``."""
    width = max(map(len, before.records), default=4)
    print(f"{'case':{width}}  {'before':12}  {'after':12}  result")
    equal = within = 0
    for name, record in before.records.items():
        result, fits = _compare(name, before, after, rounding)
        equal, within = equal + (result == "equal"), within + (fits and result != "equal")
        print(f"{name:{width}}  {record['hash']:12}  {after.records[name]['hash']:12}  {result}")
    total, others = len(before.records), len(before.records) - equal - within
    allowed = sum(max(record["allowance"], rounding) > 0 for record in before.records.values())
    seconds = [sum(record["seconds"] for record in side.records.values()) for side in (before, after)]
    print(
        f"{equal} of {total} cases bit-identical, {within} within their allowance (of the {allowed} that have one), "
        f"{others} different or failed; {seconds[0]:.0f} s before, {seconds[1]:.0f} s after"
    )
    return 1 if others else 0


def _compare(name: str, before: Side, after: Side, rounding: float) -> tuple[str, bool]:
    """Describe how the results of a case differ, and say whether they may."""
    one, two = before.records[name], after.records[name]
    errors = [f"{side} {record['error']}" for side, record in (("before", one), ("after", two)) if record["error"]]
    if errors:
        return "; ".join(errors), False
    if one["hash"] == two["hash"]:
        return "equal", True
    old, new, allowance = before.of(name), after.of(name), max(one["allowance"], rounding)
    if {i: array.shape for i, array in old.items()} != {i: array.shape for i, array in new.items()}:
        return "differs in shape", False
    distances = {i: _distance(old[i], new[i]) for i in old if _hash([old[i]]) != _hash([new[i]])}
    if not distances:
        return f"differs in an array of more than {KEPT} elements", False
    place = max(distances, key=lambda i: distances[i])
    worst, others = distances[place], f" and {len(distances) - 1} more" if len(distances) > 1 else ""
    return f"differs by {worst:.2g} in array {place}{others}, allowed {allowance:g}", 0 < allowance >= worst


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the largest value of ``a`` if that is above 1.

    Infinite for text that differs and for NaN in one of the two.
    """
    if a.dtype.kind not in "biuf" or b.dtype.kind not in "biuf":
        return 0.0 if a.tobytes() == b.tobytes() else np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    apart = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
    scale = max(1.0, float(np.abs(np.nan_to_num(a)).max(initial=0.0)))
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0)) / scale


if __name__ == "__main__":
    sys.exit(main())
