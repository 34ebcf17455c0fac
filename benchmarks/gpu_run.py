"""Checks and benchmarks on a GPU that is at hand for some minutes.

    PYTHONPATH=.:kernels python benchmarks/gpu_run.py --minutes 9 --out DIR
    python benchmarks/gpu_run.py --out DIR --publish        only merge the results of DIR into benchmarks/results

Needs PyTorch, Triton, pytest and pytest-benchmark, and what fastdiff imports; nothing is installed. It compiles in
parallel what it is about to measure, and then runs the groups below in order, until the minutes are over. Run it again
with the same DIR to continue: what passed is not repeated, what failed is repeated once. If it is killed, the processes
that measure end with it.

DIR holds four files: ``journal.jsonl``, which says what was run; ``<gpu>.json`` with the rows that were measured, which
are merged after every comparison; ``log.txt`` with the output of pytest; and ``summary.txt``. At the end the rows are
merged into benchmarks/results, from which ``python benchmarks/readme.py`` writes README's tables. Compiled kernels are
kept in --cache, for the next run on the same machine.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).parent))

from gpu_batches import ROOT, Runner
from gpu_schedule import Batch, Group, Journal, Scheduler, assign

OPERATIONS = r"-(diffuse|eps_loss|fourier_features|sampler_step|group_norm_silu)-"
BENCHMARK = r"test_operations.*test_operation\["
GROUPS = (
    Group("every kernel once", r"test_every_kernel_once", 5.0, parallel=True),
    Group("compile the operations and the norm", BENCHMARK + ".*" + OPERATIONS, 15.0, parallel=True, phase="compile"),
    Group("speed of the operations and the norm, large", BENCHMARK + ".*large.*" + OPERATIONS, 5.0),
    Group("speed of the operations and the norm", BENCHMARK + ".*" + OPERATIONS, 5.0),
    Group("correctness", r"test_correctness(?!.*(2_to_the_31|graph|captured))", 10.0, parallel=True),
    Group("replayed graphs", r"test_correctness.*(graph|captured)", 5.0),
    Group("compile side by side", r"test_side_by_side", 60.0, parallel=True, phase="compile"),
    Group("side by side with diffusers", r"test_side_by_side", 30.0),
    Group("compile sampling and training", r"test_sampling_and_training", 15.0, parallel=True, phase="compile"),
    Group("sampling and training of digits and letters", r"test_sampling_and_training", 10.0),
    Group("more than 2^31 elements", r"test_correctness", 20.0),
    Group("compile the rest", r"test_operations|test_networks", 15.0, parallel=True, phase="compile"),
    Group("speed of the rest", r"test_operations.*test_operation\[", 5.0),
    Group("whole models", r"test_networks", 10.0),
    Group("time of the host", r"test_operations.*test_host_cost", 5.0),
    Group("what is in no other group", "", 10.0),
)


def scheduler_of(runner: Runner, tests: list[str], workers: int) -> Scheduler:
    """The scheduler of some tests, with the journals of a runner's folders."""
    groups = tuple(group for group in GROUPS if group.phase == "run" or runner.device == "cuda")
    # what is compiled is a matter of the machine, not of the results
    journals = {"run": Journal(runner.out / "journal.jsonl"), "compile": Journal(runner.cache / "compiled.jsonl")}

    def execute(batch: Batch, seconds: float) -> bool:
        return runner.run(batch, journals[batch.group.phase], seconds)

    return Scheduler(
        groups, assign(groups, tests), journals, execute, monotonic, workers, lambda line: print(line, flush=True)
    )


def publish(out: Path) -> list[Path]:
    """Merge the rows of a run into benchmarks/results; return the files."""
    from report import merge_into  # imports PyTorch

    written = []
    for path in sorted(out.glob("*.json")):
        merge_into(ROOT / "benchmarks/results" / path.name, json.loads(path.read_text()))
        written.append(ROOT / "benchmarks/results" / path.name)
    return written


def main() -> int:
    """Run; return 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=9.0, help="time to use, the start included (default: 9)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of results; continued if not empty"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", default=Path(tempfile.gettempdir()) / "fastdiff-gpu-cache")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="what to measure (default: cuda)")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only tests whose identifier matches")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that compile and check")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds")
    parser.add_argument("--plugin", action="append", default=[], metavar="NAME", help="a further plugin for pytest")
    parser.add_argument("--list", action="store_true", help="run nothing, only print the groups and their tests")
    parser.add_argument("--publish", action="store_true", help="run nothing, only merge into benchmarks/results")
    options = parser.parse_args()
    began = monotonic()
    if options.publish:
        print("\n".join(map(str, publish(options.out))))
        return 0
    out, cache = options.out.resolve(), options.cache.resolve()
    out.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    runner = Runner(out, cache, options.device, options.quick, tuple(options.plugin))
    runner.prepare()
    tests, there = runner.tests()
    tests = [test for test in tests if re.search(options.only, test)]
    scheduler = scheduler_of(runner, tests, options.workers)
    if options.list:
        for group in scheduler.groups:
            print("\n    ".join([group.name, *scheduler.tests[group.name]]))
        return 0
    if not there:  # its tests would be skipped, and count as done
        parser.error("torch.cuda.is_available() is False: there is no GPU to measure")
    scheduler.run(60.0 * options.minutes - (monotonic() - began))
    summary = [f"{(monotonic() - began) / 60.0:.1f} of {options.minutes:g} minutes", *scheduler.report()]
    (out / "summary.txt").write_text("\n".join(summary) + "\n")
    print("\n".join(summary))
    if options.device == "cuda" and not (options.quick or options.plugin):  # a plugin may change what is measured
        print("\n".join(f"wrote {path}" for path in publish(out)))
    return int(scheduler.failed)


if __name__ == "__main__":
    sys.exit(main())
