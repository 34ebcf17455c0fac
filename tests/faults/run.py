"""Try every fault of tests/faults, and write docs/faults.json and docs/faults.md: ``make faults``.

    python tests/faults/run.py [--only WORDS] [--first N] [--tries N] [--quick] [--jobs 2] [--again]

Each fault runs in a process of its own. Its result is kept under build/faults/, so that a command which was
interrupted goes on where it was; --again tries all again. The documents are written when every fault has a result
of its full number of tries.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:1] = [str(HERE.parent), str(ROOT), str(ROOT / "kernels")]  # in place of this folder
KEPT = ROOT / "build" / "faults"
LIMIT = 1800  # seconds for all tries of a fault
SHOWN = 5  # violations of a fault in the documents


def kept(name: str) -> Path:
    """Return the file of a fault's result."""
    return KEPT / f"{''.join(letter if letter.isalnum() else '-' for letter in name)}.json"


def try_here(name: str, first: int, tries: int, file: Path) -> None:
    """Try a fault in this process, and write its result to a file. A number on stdout for every try."""
    import torch
    from faults.catalogue import FAULTS
    from faults.fault import attempt_all

    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result = attempt_all(FAULTS[name], range(first, first + tries), Path(folder))
    result.seconds = round(time.perf_counter() - started, 1)
    file.write_text(json.dumps(asdict(result)))


def try_apart(name: str, first: int, tries: int, file: Path) -> dict:
    """Try a fault in a process of its own; its death, or no end, is a violation."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path[:3]), "OMP_NUM_THREADS": "1", "FASTDIFF_BACKEND": "torch",
    }  # fmt: skip
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--here", name, "--first", str(first), "--tries", str(tries), "--file", file]
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)
        try:
            code: int | str = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = f"none after {LIMIT} s"
        if file.exists():
            return json.loads(file.read_text())
        printed.seek(0)
        last = (printed.read().strip().splitlines() or [""])[-1]
    dead = {"name": name, "tries": 1, "violations": [f"the process ended with exit code {code}: {last}"],
            "figures": {}, "not_tried": None, "seconds": 0.0}  # fmt: skip
    file.write_text(json.dumps(dead))
    return dead


def document(faults: list, results: dict[str, dict]) -> dict:
    """Return the content of docs/faults.json."""
    rows = []
    for fault in faults:
        result = results[fault.name]
        about = {name: getattr(fault, name) for name in ("name", "source", "done", "must_hold")}
        counts = {"tries": result["tries"], "violations": len(result["violations"])}
        evidence = [text[:400] for text in result["violations"][:SHOWN]]
        rest = {name: result[name] for name in ("figures", "not_tried", "seconds")}
        rows.append({**about, **counts, "evidence": evidence, **rest})
    versions = {"Python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy", "pillow")}}
    return {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "versions": versions, "faults": rows}


def run_all(chosen: list, arguments: argparse.Namespace) -> dict[str, dict]:
    """Try faults, those that need a quiet machine last and alone; print a line for each, with what is left."""
    KEPT.mkdir(parents=True, exist_ok=True)
    known = (
        json.loads((ROOT / "docs/faults.json").read_text())["faults"] if (ROOT / "docs/faults.json").exists() else []
    )
    expected = {each["name"]: each["seconds"] for each in known}
    results: dict[str, dict] = {}
    waiting = []
    for fault in chosen:
        if not (arguments.again or arguments.partial) and kept(fault.name).exists():
            results[fault.name] = json.loads(kept(fault.name).read_text())
        else:
            waiting.append(fault)
    waiting.sort(key=lambda fault: -expected.get(fault.name, 30.0))
    left, total = (sum(expected.get(fault.name, 30.0) for fault in waiting),) * 2
    started = time.monotonic()
    print(f"{len(results)} faults have a result, {len(waiting)} to try, about {left / 60 / arguments.jobs:.0f} min")

    def job(fault) -> dict:
        tries = arguments.tries or (max(1, fault.quick) if arguments.quick else fault.tries)
        place = KEPT / f"partial-{kept(fault.name).name}" if arguments.partial else kept(fault.name)
        return try_apart(fault.name, arguments.first, tries, place)

    for jobs, group in ((arguments.jobs, [f for f in waiting if not f.alone]), (1, [f for f in waiting if f.alone])):
        with ThreadPoolExecutor(jobs) as pool:
            running = {pool.submit(job, fault): fault for fault in group}
            for number, done in enumerate(as_completed(running), 1):
                fault, result = running[done], done.result()
                results[fault.name] = result
                left -= expected.get(fault.name, 30.0)
                minutes = (time.monotonic() - started) / 60 * max(0.0, left) / max(1.0, total - left)
                good = result["tries"] - len(result["violations"])
                text = result["not_tried"] or f"{good:,} of {result['tries']:,} held, {result['seconds']:.0f} s"
                print(f"[{number}/{len(group)}] {fault.name}: {text}; about {minutes:.0f} min left")
                for evidence in result["violations"][:SHOWN]:
                    print(f"    {evidence[:400]}", flush=True)
    return results


def main() -> int:
    """Try the faults; exit with 1 if one is violated."""
    parser = argparse.ArgumentParser(description="Try every fault of tests/faults.")
    parser.add_argument("--only", help="faults whose name holds these words")
    parser.add_argument("--first", type=int, default=0, help="number of the first attempt")
    parser.add_argument("--tries", type=int, help="number of attempts, instead of each fault's own")
    parser.add_argument("--quick", action="store_true", help="a few attempts at each; the documents are not written")
    parser.add_argument("--jobs", type=int, default=2, help="faults that are tried at a time")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here is not None:
        try_here(arguments.here, arguments.first, arguments.tries, arguments.file)
        return 0
    from faults import report
    from faults.catalogue import FAULTS

    faults = list(FAULTS.values())
    chosen = [fault for fault in faults if arguments.only is None or arguments.only in fault.name]
    arguments.partial = arguments.quick or arguments.tries is not None or arguments.first > 0
    results = run_all(chosen, arguments)
    if not arguments.partial:
        have = {fault.name: json.loads(kept(fault.name).read_text()) for fault in faults if kept(fault.name).exists()}
        if len(have) == len(faults):
            report.write(document(faults, have))
            print(f"wrote {report.FIGURES} and {report.TABLE}")
    return int(any(result["violations"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
