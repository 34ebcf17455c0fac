"""The command line among others: pipes that close, defects, time to start."""

import os
import subprocess
import sys
import time

from .fault import Tries, fault
from .signals import ROOT, command


@fault(
    "a reader that leaves", "faults 2.17", tries=6, quick=0,
    done="`fastdiff info`, `--help` and `evaluate --json` write into a pipe whose reader closes it after five bytes",
    must_hold="the command ends without a word",
)  # fmt: skip
def closed_pipes(tries: Tries):
    commands = ["info", "--help", "evaluate digits --draws 1 --json"]
    for attempt in tries:
        words = commands[attempt.number % 3].split()
        errors = attempt.folder / "errors"
        process = subprocess.Popen(
            command_line(words), stdout=subprocess.PIPE, stderr=errors.open("wb"), env=environment()
        )
        assert process.stdout is not None
        process.stdout.read(5)
        process.stdout.close()
        code, text = process.wait(120), errors.read_text()
        wrong = "Traceback" in text or "BrokenPipe" in text or code not in (0, 141)
        yield f"try {attempt.number}: exit code {code}: {text[-300:]}" if wrong else None


def command_line(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "fastdiff", *words]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}


@fault(
    "time to start", "ecosystem 21", tries=8, quick=0,
    done="`import torch` and `import fastdiff; fastdiff.load` are timed in new processes, by their processor time",
    must_hold="fastdiff takes less than 0.3 s more than torch (the fastest of eight)",
)  # fmt: skip
def time_to_start(tries: Tries):
    times: dict[str, list[float]] = {"import torch": [], "import fastdiff; fastdiff.load; fastdiff.sample": []}
    for number in tries.numbers:
        for code, found in times.items():
            timed = f"import time; {code}; print(time.process_time())"
            done = subprocess.run(
                [sys.executable, "-c", timed], capture_output=True, text=True, check=True, env=environment()
            )
            found.append(float(done.stdout))
        torch, ours = (min(found) for found in times.values())
        tries.figures["more than torch, s"] = round(ours - torch, 3)
        last = number == tries.numbers[-1]
        yield f"{ours - torch:.2f} s" if last and ours - torch > 0.3 else None


@fault(
    "commands that find nothing", "faults 2.12", tries=6, quick=0,
    done="`train --resume`, `sample` and `evaluate` are asked for a run, model or data set that is not there",
    must_hold="one line on stderr and exit code 2, within the time of an import",
)  # fmt: skip
def nothing_there(tries: Tries):
    commands = ["train --resume --out gone", "sample gone", "evaluate digits --data gone"]
    for attempt in tries:
        log = attempt.folder / "printed"
        started = time.monotonic()
        code = command(*commands[attempt.number % 3].split(), log=log).wait(120)
        tries.largest("slowest, s", round(time.monotonic() - started, 1))
        text = log.read_text()
        good = code == 2 and text.startswith("fastdiff: error: ") and text.count("\n") == 1
        yield None if good else f"try {attempt.number}: exit code {code}: {text[-300:]}"
