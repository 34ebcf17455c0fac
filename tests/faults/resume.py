"""Runs that are interrupted and resumed: the same bits, other settings, other data, other folders."""

import json
import os
import signal
from dataclasses import replace

import attrs
import torch

import fastdiff
from fastdiff.data import DataError, ImageOptions, load_dataset
from fastdiff.io.folders import CheckpointError
from fastdiff.training import RunError, TrainConfig, runs
from fastdiff.training.metrics import MetricsLog

from .fault import Tries, fault
from .rewriting import rewrite
from .signals import command as start_command
from .signals import few_digits
from .subjects import (
    CONFIG,
    QUIET,
    data,
    differences,
    left_behind,
    run,
    short_ends,
    small_model,
    state_at,
    whole_lines,
)

CHANGES = {
    "data": "other", "max_steps": 20, "batch_size": 8, "accumulate": 2, "loss": "simple", "T": 7, "stratified": False,
    "learning_rate": 1e-4, "schedule_learning_rate": 1e-4, "warm_up": 3, "decay": "constant", "weight_decay": 0.1,
    "beta_1": 0.8, "beta_2": 0.9, "clip_norm": 2.0, "ema": 0.5, "flip": 0.5, "label_dropout": 0.1, "seed": 5,
    "first_stage": "vae", "images": ImageOptions(size=8), "precision": "bf16",
}  # fmt: skip
FIXED = {"data", "batch_size", "seed", "first_stage", "images"}


@fault(
    "an interruption at every step", "ecosystem 13", tries=11, quick=1,
    done="A training of 12 steps is stopped after step 1, 2, … 11 by a signal, and resumed",
    must_hold="weights, averages and moments have the bits of an uninterrupted run, and metrics.jsonl has its lines",
)  # fmt: skip
def every_step(tries: Tries):
    run(tries.folder / "straight")
    straight, lines = state_at(tries.folder / "straight", 12), whole_lines(tries.folder / "straight" / "metrics.jsonl")
    real = MetricsLog.add
    for attempt in tries:
        out, at = attempt.folder / "run", 1 + (attempt.number * 5) % 11

        def interrupt(log, report, batch_size, at=at):
            real(log, report, batch_size)
            if report.step == at:
                signal.raise_signal(signal.SIGTERM)

        MetricsLog.add = interrupt
        try:
            stopped = run(out).step
        finally:
            MetricsLog.add = real
        run(out, runs.resume(out, {}))
        wrong = differences(straight, state_at(out, 12))
        found = whole_lines(out / "metrics.jsonl")
        same = [row for row in found if row["event"] == "evaluate"] == [
            row for row in lines if row["event"] == "evaluate"
        ]
        good = stopped == at and not wrong and same
        yield None if good else f"try {attempt.number}: stopped at {stopped} of {at}, {wrong[:3]}, same lines {same}"


@fault(
    "another configuration on resume", "faults 2.11; ecosystem 14", tries=len(CHANGES), quick=6,
    done="A run is resumed with one field of its configuration changed",
    must_hold="an error that names both values, or the change is recorded in state.json and holds from there on",
)  # fmt: skip
def other_configuration(tries: Tries):
    assert set(CHANGES) | {"compile", "shift"} == {field.name for field in attrs.fields(TrainConfig)}
    run(tries.folder / "run")
    for attempt in tries:
        name = list(CHANGES)[attempt.number % len(CHANGES)]
        try:
            state = runs.resume(tries.folder / "run", {name: CHANGES[name]})
        except RunError as error:
            good = name in FIXED and f"{name} " in str(error)
            yield None if good else f"try {attempt.number}: {name}: {error}"
            continue
        recorded = [change for change in state.changes if name in change]
        good = name not in FIXED and len(recorded) == 1 and getattr(state.config, name) == CHANGES[name]
        yield None if good else f"try {attempt.number}: {name} was taken in silence: {state.changes}"


@fault(
    "another model or other data on resume", "ecosystem 14", tries=20, quick=6,
    done="A run is resumed with another model, with data of another content, number or shape, or on changed files",
    must_hold="an error that says what differs; the run is left as it is",
)  # fmt: skip
def other_data(tries: Tries):
    out = tries.folder / "run"
    run(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    known = data()
    others = [
        replace(known, identity="others"), replace(known, train_images=known.train_images[:10]),
        replace(known, levels=16), replace(known, train_images=known.train_images[..., :4]),
    ]  # fmt: skip
    config = small_model().config
    models = [attrs.evolve(config, gamma_0=-7.0), attrs.evolve(config, levels=16), attrs.evolve(config, fourier=None)]
    for attempt in tries:
        try:
            if attempt.number % 2:
                runs.resume(out, {}, model_config=models[attempt.number // 2 % 3])
            else:
                state = runs.resume(out, {"max_steps": 14})
                run_with(out, state, others[attempt.number // 2 % 4])
            outcome = "it was taken"
        except (RunError, DataError):
            outcome = None
        changed = [str(path) for path, content in before.items() if path.name != "metrics.jsonl"
                   and path.name != ".lock" and path.read_bytes() != content]  # fmt: skip
        yield f"try {attempt.number}: {outcome}, changed {changed}" if outcome or changed else None


def run_with(out, state, others) -> None:
    runs.run(out, state, others, runs.RunOptions(**QUIET))


@fault(
    "files of another version", "ecosystem 14", tries=12, quick=3,
    done="The format of the manifest, or a key of config.json or state.json, is one that this version does not know",
    must_hold="a CheckpointError that names the file",
)  # fmt: skip
def other_version(tries: Tries):
    run(tries.folder / "run")
    step = tries.folder / "run" / "step-00000012"
    for attempt in tries:
        name = ["manifest.json", "config.json", "state.json"][attempt.number % 3]
        before = {path: path.read_bytes() for path in step.iterdir()}
        content = json.loads((step / name).read_text())
        if name == "manifest.json":
            content["format"] = attempt.random.choice([2, 0, "1", None])
            (step / name).write_text(json.dumps(content))
        else:
            (content["config"] if name == "config.json" else content["train"])["from_the_future"] = attempt.number
            rewrite(step / name, json.dumps(content).encode())
        try:
            runs.resume(tries.folder / "run", {})
            yield f"try {attempt.number}: {name} was taken"
        except CheckpointError as error:
            yield None if name in str(error) else f"try {attempt.number}: {error}"
        finally:
            for path, data_before in before.items():
                path.write_bytes(data_before)


@fault(
    "a finished run is extended", "faults 2.11", tries=6, quick=1,
    done="A finished run is resumed with more steps, another learning rate, or fewer steps than it has done",
    must_hold="it trains on to the new end; fewer steps are an error",
)  # fmt: skip
def extended(tries: Tries):
    for attempt in tries:
        out = attempt.folder / "run"
        run(out)
        if attempt.number % 3 == 2:
            try:
                runs.resume(out, {"max_steps": 5})
                yield f"try {attempt.number}: fewer steps were taken"
            except RunError as error:
                yield None if "max_steps" in str(error) else f"try {attempt.number}: {error}"
            continue
        more = {"max_steps": 15} | ({"learning_rate": 1e-4} if attempt.number % 3 else {})
        step = run(out, runs.resume(out, more)).step
        fastdiff.load(out / "model")
        yield None if step == 15 and not left_behind(out) else f"try {attempt.number}: ended at {step}"


@fault(
    "a run made in Python is resumed from the shell", "faults 2.11, 2.12", tries=3, quick=0,
    done="A run is started by fastdiff.training.runs, and continued by `fastdiff train --resume` from another folder",
    must_hold="it trains to the end that the command asks for, with exit code 0",
)  # fmt: skip
def from_the_shell(tries: Tries):
    images = few_digits(tries.folder)
    for attempt in tries:
        out, log = attempt.folder / "a run of mine", attempt.folder / "printed"
        loaded = load_dataset(str(images))
        config = attrs.evolve(CONFIG, data=str(images), max_steps=4)
        run_on(out, config, loaded)
        process = start_command("train", "--out", out, "--resume", "--max-steps", 6, "--evaluations", 0, log=log)
        code = process.wait(120)
        good = code == 0 and os.path.isdir(out / "step-00000006")
        yield None if good else f"try {attempt.number}: exit code {code}: {log.read_text()[-300:]}"


def run_on(out, config, loaded) -> None:
    state = runs.start(out, small_model, config, loaded)
    with short_ends():
        runs.run(out, state, loaded, runs.RunOptions(**QUIET))


@fault(
    "the caller's random numbers", "faults 2.10", tries=12, quick=3,
    done="A model is trained, loaded and sampled between two draws of the caller's own",
    must_hold="torch's global generator is where it was",
)  # fmt: skip
def generator(tries: Tries):
    for attempt in tries:
        torch.manual_seed(attempt.number)
        before = torch.get_rng_state()
        kind = attempt.number % 3
        if kind == 0:
            run(attempt.folder / "run")
        elif kind == 1:
            fastdiff.load("digits")
        else:
            fastdiff.sample("digits", 1, steps=2)
        yield None if torch.equal(before, torch.get_rng_state()) else f"try {attempt.number}: {kind}: it has moved"
