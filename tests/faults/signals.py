"""Signals at random moments of the command line's life, in all its phases."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastdiff
from fastdiff.checkpoints import checkpoints
from fastdiff.data import digits
from fastdiff.training import keeping, runs
from fastdiff.training.state import load_training

from .fault import Attempt, Outcome, Tries, fault
from .subjects import CONFIG, data, ended, forked, left_behind, run, short_ends, small_model, trained, whole_lines

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
BAR = 5.0  # seconds from the signal to the end, on a machine with a processor for each process
LONG = 120.0  # seconds after which a process is killed that does not end


def few_digits(folder: Path) -> Path:
    """Write 40 training and 20 held-out digits, so that the evaluation at the end is short."""
    data, path = digits(), folder / "few.npz"
    if not path.exists():
        labels = {"train_labels": np.arange(40) % 10, "test_labels": np.arange(20) % 10}
        np.savez(path, levels=17, train_images=data.train_images[:40].numpy(),
                 test_images=data.test_images[:20].numpy(), **labels)  # fmt: skip
    return path


def command(*arguments: object, ignoring: signal.Signals | None = None, log: Path) -> subprocess.Popen:
    """Start the command line in a process of its own; what it prints goes to a file."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}

    def before() -> None:
        if ignoring is not None:
            signal.signal(ignoring, signal.SIG_IGN)

    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "fastdiff", *map(str, arguments)], stdout=output, stderr=output, env=environment,
            cwd=log.parent, preexec_fn=before,
        )  # fmt: skip


def wait_until(process: subprocess.Popen, happened: Callable[[], object]) -> None:
    """Wait until something has happened or the process has ended."""
    limit = time.monotonic() + LONG
    while not happened() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)


def bar() -> float:
    """Return the seconds that a process may take to end, with the share of the machine that it gets."""
    return BAR * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def send(tries: Tries, process: subprocess.Popen, number: int) -> list[str]:
    """Send a signal, wait for the end, and return what is wrong with the exit code and the time."""
    sent = time.monotonic()
    process.send_signal(number)
    try:
        code = process.wait(LONG)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return [f"it had not ended {LONG:g} s after the signal"]
    seconds = time.monotonic() - sent
    tries.largest("slowest end, s", round(seconds, 1))
    wrong = [] if code in (128 + number, 0) else [f"exit code {code}"]
    return wrong + ([f"it took {seconds:.1f} s"] if seconds > bar() else [])


def of_run(out: Path, log: Path) -> list[str]:
    """Return what is wrong with what a training has printed and left."""
    text = log.read_text(errors="replace")
    wrong = [text[-500:]] if "Traceback" in text else []
    for path in checkpoints(out):
        load_training(path)
    if (out / "metrics.jsonl").exists():
        whole_lines(out / "metrics.jsonl")
    return wrong + ([f"left {left_behind(out)}"] if left_behind(out) else [])


def phases(out: Path) -> list[Callable[[], object]]:
    """Return what happens as a training goes on, from its start to its end."""
    return [
        lambda: True, out.exists, (out / "metrics.jsonl").exists, (out / "step-00000004" / "manifest.json").exists,
        (out / "best").exists, (out / "samples").exists, (out / "step-00000012" / "manifest.json").exists,
        (out / "model").exists,
    ]  # fmt: skip


@fault(
    "signals during `fastdiff train`", "faults 2.5, 2.12; ecosystem 15, 16", tries=32, quick=1,
    done="SIGINT, SIGTERM or SIGHUP is sent at a random moment: imports, data, training, saving, evaluation, pictures, "
    "sampling at the end",
    must_hold="the exit code is 128 + the signal, or 0; it comes within 5 s on a quiet machine; no traceback; "
    "checkpoints and metrics are whole and nothing else is left",
)  # fmt: skip
def signals_of_training(tries: Tries):
    images = few_digits(tries.folder)
    for attempt in tries:
        out, log = attempt.folder / "run", attempt.folder / "printed"
        process = command("train", "digits", "--data", images, "--max-steps", 12, "--batch-size", 8, "--save-every", 4,
                          "--evaluations", 3, "--out", out, log=log)  # fmt: skip
        wait_until(process, phases(out)[attempt.number % 8])
        time.sleep(attempt.random.uniform(0.02, 2.0))
        number = NUMBERS[attempt.number % 3]
        if process.poll() is None and attempt.number % 8 == 0:
            time.sleep(0.2)  # the start of Python itself is out of reach
        wrong = send(tries, process, number) + of_run(out, log)
        yield f"try {attempt.number}, {number.name}: {'; '.join(wrong)}" if wrong else None


@fault(
    "signals during `fastdiff sample` and `evaluate`", "ecosystem 15", tries=12, quick=0,
    done="SIGINT, SIGTERM or SIGHUP is sent at a random moment while images are sampled or a bound is evaluated",
    must_hold="the exit code is 128 + the signal; it comes within 5 s on a quiet machine; no traceback, no picture",
)  # fmt: skip
def signals_of_sampling(tries: Tries):
    for attempt in tries:
        log = attempt.folder / "printed"
        long = [["sample", "digits", "--n", 5000, "--out", "x.png"], ["evaluate", "digits", "--draws", 1000]]
        process = command(*long[attempt.number % 2], log=log)
        time.sleep(attempt.random.uniform(0.3, 8.0))
        number = NUMBERS[attempt.number % 3]
        wrong = send(tries, process, number)
        if process.returncode != 128 + number or "Traceback" in log.read_text(errors="replace"):
            wrong.append(log.read_text(errors="replace")[-300:])
        if os.listdir(attempt.folder) != ["printed"]:
            wrong.append(f"left {os.listdir(attempt.folder)}")
        yield f"try {attempt.number}, {number.name}: {'; '.join(wrong)}" if wrong else None


@fault(
    "nohup", "faults 2.5", tries=3, quick=0,
    done="SIGHUP is sent to a training that was started with it ignored, as nohup does, and SIGTERM later",
    must_hold="it goes on after the first, and ends with 143 and a whole checkpoint after the second",
)  # fmt: skip
def nohup(tries: Tries):
    images = few_digits(tries.folder)
    for attempt in tries:
        out, log = attempt.folder / "run", attempt.folder / "printed"
        process = command("train", "digits", "--data", images, "--max-steps", 5000, "--batch-size", 8,
                          "--save-every", 2, "--evaluations", 0, "--out", out,
                          ignoring=signal.SIGHUP, log=log)  # fmt: skip
        wait_until(process, lambda out=out: checkpoints(out))
        process.send_signal(signal.SIGHUP)
        before = [path.name for path in checkpoints(out)]
        wait_until(process, lambda out=out, before=before: [path.name for path in checkpoints(out)] > before)
        wrong = [] if process.poll() is None else [f"SIGHUP ended it: {process.returncode}"]
        wrong += send(tries, process, signal.SIGTERM) + of_run(out, log)
        yield f"try {attempt.number}: {'; '.join(wrong)}" if wrong else None


def slow_training(out: Path) -> None:
    """Train with steps of four seconds from the fourth on."""
    state = trained(steps=1)
    forward = state.model.forward

    def slowly(*args, **options):
        if state.step >= 3:
            (out.parent / "slow").touch()
            time.sleep(4.0)
        return forward(*args, **options)

    state.model.forward = slowly
    out.mkdir()
    (out / "metrics.jsonl").touch()
    run(out, state, save_every=1)


@fault(
    "Ctrl-C twice", "ecosystem 16", tries=6, quick=0,
    done="SIGINT is sent twice, 2.2 s apart, within a step that takes four seconds",
    must_hold="the second one ends the training at once; the checkpoint of the step before is whole",
)  # fmt: skip
def ctrl_c_twice(tries: Tries):
    for attempt in tries:
        out, printed = attempt.folder / "run", attempt.folder / "printed"
        child = forked(lambda out=out: slow_training(out), printed)
        while not (attempt.folder / "slow").exists():
            time.sleep(0.01)
        started = time.monotonic()
        os.kill(child, signal.SIGINT)
        time.sleep(2.2)
        os.kill(child, signal.SIGINT)
        code = ended(child, 30)
        seconds, text = time.monotonic() - started, printed.read_text()
        whole = load_training(out / "step-00000003").step == 3 and not left_behind(out)
        good = code == 1 and text.startswith("KeyboardInterrupt") and seconds < 3.5 and whole
        yield None if good else f"try {attempt.number}: exit code {code}, {seconds:.1f} s, {text}"


@fault(
    "SIGTERM in the evaluation of a run", "faults 2.5; ecosystem 15", tries=20, quick=2,
    done="SIGTERM comes while a run evaluates its bound or draws its samples",
    must_hold="the evaluation is abandoned at once; the checkpoint of the step was written before it; the run resumes",
)  # fmt: skip
def sigterm_in_evaluation(tries: Tries):
    for attempt in tries:
        yield abandoned(attempt)


def abandoned(attempt: Attempt) -> Outcome:
    out, kind = attempt.folder / "run", ["evaluate", "draw_images"][attempt.number % 2]
    real = getattr(keeping, kind)

    def interrupted(*args, **options):
        signal.raise_signal(attempt.random.choice(NUMBERS))
        return real(*args, **options)

    state = runs.start(out, small_model, CONFIG, data())
    with short_ends():
        before = getattr(keeping, kind)
        setattr(keeping, kind, interrupted)
        try:
            result = runs.run(out, state, data(), runs.RunOptions(evaluations=2, pictures=True, progress=False))
        finally:
            setattr(keeping, kind, before)
    good = result.stopped_by is not None and result.step == 6 and not left_behind(out)
    resumed = runs.resume(out, {}).step
    fastdiff.load(out)
    return None if good and resumed == 6 else f"try {attempt.number}: {kind}: {result}, resumed at {resumed}"
