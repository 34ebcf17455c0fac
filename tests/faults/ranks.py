"""Several processes under torchrun, of which one is killed or meets a signal."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from fastdiff.checkpoints import checkpoints

from .fault import Tries, fault
from .signals import LONG, ROOT, few_digits
from .subjects import left_behind, whole_lines

SAVE_EVERY = 4


def torchrun(data: Path, out: Path, log: Path, *more: object) -> subprocess.Popen:
    """Start a training by two processes, on the loopback interface alone."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    flags = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "3", "-m", "fastdiff", "train", "digits"]
    options = ["--data", data, "--batch-size", 8, "--save-every", SAVE_EVERY, "--evaluations", 0, "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, *options, "--out", out, *more]
    with log.open("wb") as output:
        return subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, env=environment, cwd=log.parent)


def workers(launcher: int) -> list[int]:
    """Return the processes that torchrun has started and that train, by their numbers."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"fastdiff" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    return sorted(found)


def last_step(out: Path) -> int:
    found = checkpoints(out)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    limit = time.monotonic() + LONG
    while last_step(out) < step and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)


@fault(
    "kill -9 of one of two processes", "ecosystem 17", tries=3, quick=0,
    done="torchrun --max-restarts 3 trains with two processes; one is killed at a random moment after the first "
    "checkpoint",
    must_hold="both start again from the last checkpoint, which is at most the interval old, and train to the end",
)  # fmt: skip
def rank_dies(tries: Tries):
    images = few_digits(tries.folder)
    for attempt in tries:
        out, log = attempt.folder / "run", attempt.folder / "printed"
        process = torchrun(images, out, log, "--max-steps", 24)
        wait_for_step(process, out, SAVE_EVERY)
        time.sleep(attempt.random.uniform(0.0, 0.5))
        done, started = last_step(out), time.monotonic()
        running = workers(process.pid)
        if len(running) == 2:
            os.kill(attempt.random.choice(running), signal.SIGKILL)
        code = process.wait(2 * LONG)
        tries.largest("slowest to the end, s", round(time.monotonic() - started, 1))
        text = log.read_text(errors="replace")
        resumed = [int(number) for number in re.findall(r"resumed after step (\d+)", text)]
        whole = [row["step"] for row in whole_lines(out / "metrics.jsonl")]
        good = code == 0 and last_step(out) == 24 and len(running) == 2 and resumed and resumed[0] >= done
        good = good and whole == sorted(whole) and not left_behind(out)
        yield (
            None
            if good
            else (
                f"try {attempt.number}: exit code {code}, at {done} of {last_step(out)}, {len(running)} processes, "
                f"resumed after {resumed}: {text[-300:]}"
            )
        )


@fault(
    "SIGTERM to one of two processes", "ecosystem 18", tries=2, quick=0,
    done="One of the two processes of a training meets SIGTERM",
    must_hold="both stop in the same step, whose checkpoint is whole",
)  # fmt: skip
def one_is_terminated(tries: Tries):
    images = few_digits(tries.folder)
    for attempt in tries:
        out, log = attempt.folder / "run", attempt.folder / "printed"
        process = torchrun(images, out, log, "--max-steps", 5000)
        wait_for_step(process, out, SAVE_EVERY)
        running = workers(process.pid)
        if running:
            os.kill(running[attempt.number % len(running)], signal.SIGTERM)
        stopped = time.monotonic() + LONG
        while time.monotonic() < stopped and "stopped after step" not in log.read_text(errors="replace"):
            time.sleep(0.05)
        text = log.read_text(errors="replace")
        steps = [int(step) for step in re.findall(r"stopped after step (\d+)", text)]
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        good = bool(steps) and (out / f"step-{steps[0]:08d}" / "manifest.json").exists() and not left_behind(out)
        yield None if good else f"try {attempt.number}: stopped after {steps}, last {last_step(out)}: {text[-300:]}"
