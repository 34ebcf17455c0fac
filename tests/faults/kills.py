"""kill -9 while a checkpoint or a model is written, and in the middle of training."""

import os
import time
from pathlib import Path

import torch

from fastdiff.checkpoints import last_checkpoint, load
from fastdiff.training import TrainState, run_folder, runs
from fastdiff.training.state import load_training, save_training

from .fault import Tries, fault
from .subjects import checkpoint, differences, forked, kill, left_behind, run, small_model, state_at, trained


def filled_with(state: TrainState, step: int) -> TrainState:
    """Give every weight the number of the step, so that a mixture of two checkpoints shows."""
    with torch.no_grad():
        for parameter in (*state.model.parameters(), *state.averaged.parameters()):
            parameter.fill_(step)
    state.step = step
    return state


def commit_for_ever(out: Path, state: TrainState, ready: int) -> None:
    for step in range(2, 1_000_000):
        filled_with(state, step)
        run_folder.commit(out, step, lambda path: save_training(path, state), state.averaged.save)
        if step == 2:
            os.write(ready, b"x")


def wait_for(descriptor: int) -> None:
    os.read(descriptor, 1)
    os.close(descriptor)


@fault(
    "kill -9 while a checkpoint is saved", "faults 1, 2.17; ecosystem 1, 3", tries=100, quick=4,
    done="A process that does nothing but commit checkpoints of a run is killed at a random moment",
    must_hold="the newest checkpoint loads and is of one step; the next training leaves no temporary files",
)  # fmt: skip
def kills_while_saving(tries: Tries):
    state = trained()
    started = time.perf_counter()
    save_training(tries.folder / "measured", state)
    duration = time.perf_counter() - started
    for attempt in tries:
        out, (ready, tell) = attempt.folder, os.pipe()
        save_training(out / "step-00000001", filled_with(state, 1))
        child = forked(lambda out=out, tell=tell: commit_for_ever(out, state, tell))
        os.close(tell)
        wait_for(ready)
        time.sleep(attempt.random.uniform(0.0, 2.0 * duration))
        kill(child)
        tries.count("temporary folders left by the killed processes", len(left_behind(out)))
        found = load_training(run_folder.newest_loadable(out) or out)
        wrong = [name for name, value in found.model.named_parameters() if not bool((value == found.step).all())]
        run_folder.sweep(out)
        left = left_behind(out)
        yield f"try {attempt.number}: mixed {wrong}, left {left}" if wrong or left else None


@fault(
    "kill -9 while a model is saved", "faults 1; ecosystem 1", tries=30, quick=3,
    done="A process that saves a model over and over to one path is killed at a random moment",
    must_hold="the model loads, and its weights are those of one save",
)  # fmt: skip
def kills_of_model_saves(tries: Tries):
    model = small_model()

    def save_for_ever(path: Path, tell: int) -> None:
        for number in range(1_000_000):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(number)
            model.save(path)
            if number == 0:
                os.write(tell, b"x")

    for attempt in tries:
        path, (ready, tell) = attempt.folder / "model", os.pipe()
        child = forked(lambda path=path, tell=tell: save_for_ever(path, tell))
        os.close(tell)
        wait_for(ready)
        time.sleep(attempt.random.uniform(0.0, 0.1))
        kill(child)
        values = {value for parameter in load(path).parameters() for value in parameter.detach().unique().tolist()}
        yield None if len(values) == 1 else f"try {attempt.number}: weights of the saves {values}"


@fault(
    "kill -9 of training", "faults 1, 2.17; ecosystem 1, 3, 13", tries=50, quick=1,
    done="A training of 12 steps with a checkpoint every step is killed at a random moment, and resumed",
    must_hold="the newest checkpoint loads; the resumed run ends with the bits of an uninterrupted one; no temporary "
    "files are left",
)  # fmt: skip
def kills_of_training(tries: Tries):
    started = time.perf_counter()
    run(tries.folder / "straight", save_every=1)
    duration = time.perf_counter() - started
    straight = state_at(tries.folder / "straight", 12)
    for attempt in tries:
        out = attempt.folder / "run"
        child = forked(lambda out=out: run(out, save_every=1))
        time.sleep(attempt.random.uniform(0.0, duration))
        kill(child)
        if last_checkpoint(out) is None:
            tries.count("killed before the first checkpoint, and started again")
            run(out)
        else:
            state = runs.resume(out, {})
            tries.count("steps done when they were killed", state.step)
            run(out, state)
        wrong, left = differences(straight, state_at(out, 12)), left_behind(out)
        yield f"try {attempt.number}: different {wrong[:3]}, left {left}" if wrong or left else None


@fault(
    "power loss", "ecosystem 2", tries=20, quick=2,
    done="The system calls of writing a checkpoint are recorded",
    must_hold="every file, then the folder, is synchronised before it gets its name, and the folder above after that",
)  # fmt: skip
def power_loss(tries: Tries):
    real = {name: getattr(os, name) for name in ("fsync", "rename")}
    for attempt in tries:
        calls: list[str] = []

        def fsync(descriptor: int, calls: list[str] = calls) -> None:
            place = os.readlink(f"/proc/self/fd/{descriptor}")
            calls.append(f"sync {os.path.basename(place).partition('-')[0] if os.path.isdir(place) else 'file'}")
            real["fsync"](descriptor)

        def rename(source: Path, target: Path, calls: list[str] = calls) -> None:
            calls.append("rename")
            real["rename"](source, target)

        os.fsync, os.rename = fsync, rename  # type: ignore[assignment]
        try:
            checkpoint(attempt.folder / "step", steps=1)
        finally:
            os.fsync, os.rename = real["fsync"], real["rename"]
        files = len(os.listdir(attempt.folder / "step"))
        wanted = ["sync file"] * files + ["sync .tmp", "rename", f"sync {attempt.folder.name.partition('-')[0]}"]
        yield None if calls == wanted else f"try {attempt.number}: {calls}"
