"""Several processes on one folder: trainings, and readers beside a writer."""

import os
import time
from functools import partial
from pathlib import Path

import fastdiff
from fastdiff.io.folders import read_folder, write_folder
from fastdiff.training import RunError, run_folder, runs
from fastdiff.training.state import load_training, save_training

from .fault import Tries, fault
from .kills import filled_with, wait_for
from .subjects import CONFIG, data, ended, forked, kill, left_behind, run, small_model, trained, whole_lines


def train_together(out: Path, go: int) -> None:
    """Wait for the start, then train; the exit code is 0 for the one that trains."""
    os.read(go, 1)
    run(out, save_every=2)


@fault(
    "two to four trainings in one folder", "faults 2.2; ecosystem 23", tries=20, quick=2,
    done="Two to four processes start a training in one folder at the same moment",
    must_hold="one trains to the end, every other stops with a message; metrics and checkpoints are of one training",
)  # fmt: skip
def two_writers(tries: Tries):
    for attempt in tries:
        out, count, (ready, tell) = attempt.folder / "run", 2 + attempt.number % 3, os.pipe()
        printed = [attempt.folder / f"printed-{number}" for number in range(count)]
        children = [forked(lambda out=out, ready=ready: train_together(out, ready), path) for path in printed]
        os.write(tell, b"x" * count)
        codes = [ended(child) for child in children]
        os.close(ready)
        os.close(tell)
        messages = [path.read_text() for path, code in zip(printed, codes, strict=True) if code]
        strange = [text for text in messages if not text.startswith("RunError")]
        rows = whole_lines(out / "metrics.jsonl")
        steps = [row["step"] for row in rows]
        whole = load_training(out / "step-00000012").step == 12 and steps == sorted(steps) and len(rows) == 2
        good = codes.count(0) == 1 and not strange and whole and not left_behind(out)
        yield None if good else f"try {attempt.number}: exit codes {codes}, {messages}, {len(rows)} lines"


@fault(
    "a training that is resumed beside another", "faults 2.2; ecosystem 23", tries=10, quick=1,
    done="A training is started or resumed in the folder of one that is under way",
    must_hold="a RunError names the process that trains, which goes on undisturbed",
)  # fmt: skip
def resumed_beside(tries: Tries):
    for attempt in tries:
        out = attempt.folder / "run"
        child = forked(lambda out=out: run(out, save_every=1))
        while not list(out.glob("step-*/manifest.json")):
            time.sleep(0.005)
        wrong = []
        for number in range(2):
            try:
                state = runs.resume(out, {}) if number else runs.start(out, small_model, CONFIG, data())
                wrong.append("started" if number == 0 else f"resumed at {state.step}")
            except RunError as error:
                if number and f"process {child}" not in str(error):
                    wrong.append(str(error))
        finished = os.waitpid(child, os.WNOHANG)[0]  # then the resumption was right
        code = 0 if finished else ended(child)
        good = (not wrong or finished) and code == 0 and not left_behind(out)
        yield None if good else f"try {attempt.number}: {wrong}, exit code {code}"


@fault(
    "a reader beside a writer", "faults 2.14", tries=1000, quick=100,
    done="A checkpoint is read while another process replaces it without a pause",
    must_hold="what is read is whole and of one writing",
)  # fmt: skip
def reader_beside_writer(tries: Tries):
    path, state = tries.folder / "step", trained()

    def write_for_ever(tell: int) -> None:
        for number in range(1, 1_000_000):
            filled = filled_with(state, number)
            write_folder(path, {"n.json": {"step": number}, "w.safetensors": filled.tensors()["model"]})
            if number == 1:
                os.write(tell, b"x")

    ready, tell = os.pipe()
    child = forked(lambda: write_for_ever(tell))
    os.close(tell)
    wait_for(ready)
    try:
        for number in tries.numbers:
            found = read_folder(path)
            step = found["n.json"]["step"]
            wrong = [name for name, value in found["w.safetensors"].items()
                     if value.is_floating_point() and "weight" in name and not bool((value == step).all())]  # fmt: skip
            tries.largest("writings", step)
            yield f"try {number}: mixed {wrong}" if wrong else None
    finally:
        kill(child)


@fault(
    "a loader beside a trainer", "faults 2.14", tries=300, quick=20,
    done="A run's newest checkpoint is loaded while another process commits one after the other and removes the older",
    must_hold="what is loaded is whole and of one step",
)  # fmt: skip
def loader_beside_trainer(tries: Tries):
    out, state = tries.folder / "run", trained()
    save_training(out / "step-00000001", filled_with(state, 1))

    def commit_for_ever() -> None:
        for step in range(2, 1_000_000):
            filled = filled_with(state, step)
            run_folder.commit(out, step, partial(save_training, state=filled), state.averaged.save, keep=1)

    child = forked(commit_for_ever)
    try:
        for number in tries.numbers:
            model = fastdiff.load(out)
            values = {value for parameter in model.parameters() for value in parameter.detach().unique().tolist()}
            tries.largest("commits", max(values))
            yield None if len(values) == 1 else f"try {number}: weights of the steps {sorted(values)[:3]}"
    finally:
        kill(child)
