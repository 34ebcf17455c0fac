"""Damaged files of checkpoints: flipped bits, files that are cut, gone or something else, files that change."""

import os
import pickle
import time
from pathlib import Path

import torch

import fastdiff
from fastdiff.checkpoints import CheckpointError
from fastdiff.io.folders import CARD, MANIFEST
from fastdiff.training import runs
from fastdiff.training.state import load_training, save_training

from .fault import Attempt, Outcome, Tries, fault
from .rewriting import rewritten_tensors
from .subjects import checkpoint, differences, forked, run, small_model, trained

PARTS = ("model", "ema", "optimizer")


def flipped(data: bytes, position: int) -> bytes:
    """Return data with one bit flipped, the bit ``position`` from the start."""
    changed = bytearray(data)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def named(attempt: Attempt, path: Path, file: str, load=fastdiff.load) -> Outcome:
    """Load what has a damaged file; return what is wrong with the error."""
    try:
        load(path)
    except CheckpointError as error:
        return None if file in str(error) else f"try {attempt.number}: {file} is not named: {error}"
    except Exception as error:
        return f"try {attempt.number}: {file}: {type(error).__name__}: {error}"
    return f"try {attempt.number}: {file} was loaded"


@fault(
    "bit flips", "faults 1; ecosystem 5", tries=2000, quick=200,
    done="One random bit of one file of a training's checkpoint or of a saved model is flipped, and it is loaded",
    must_hold="a CheckpointError names the file",
)  # fmt: skip
def bit_flips(tries: Tries):
    folders = [checkpoint(tries.folder / "training"), small_model().save(tries.folder / "model")]
    for attempt in tries:
        path = attempt.random.choice(folders)
        file = attempt.random.choice(
            sorted(file for file in path.iterdir() if file.name != CARD)
        )  # which may be edited
        data = file.read_bytes()
        file.write_bytes(flipped(data, attempt.random.randrange(8 * len(data))))
        yield named(attempt, path, file.name, load_training if path.name == "training" else fastdiff.load)
        file.write_bytes(data)


def cut(path: Path, attempt: Attempt) -> None:
    os.truncate(path, attempt.random.randrange(path.stat().st_size))


def gone(path: Path, attempt: Attempt) -> None:
    path.unlink()


def a_folder(path: Path, attempt: Attempt) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path, attempt: Attempt) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_itself(path: Path, attempt: Attempt) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_pickle(path: Path, attempt: Attempt) -> None:
    path.write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))


def empty(path: Path, attempt: Attempt) -> None:
    path.write_bytes(b"")


@fault(
    "files that are cut, empty, gone or something else", "faults 1; ecosystem 6", tries=84, quick=42,
    done="A file of a training's checkpoint is cut, emptied, removed, or replaced by a folder, a named pipe, a link to "
    "itself or a pickle",
    must_hold="a CheckpointError names the file, at once",
)  # fmt: skip
def replaced_files(tries: Tries):
    state = trained()
    changes = [cut, empty, gone, a_folder, a_pipe, a_link_to_itself, a_pickle]
    for attempt in tries:
        path = save_training(attempt.folder / "step", state)
        files = sorted(path.iterdir())
        change, file = changes[attempt.number % 7], files[attempt.number // 7 % len(files)]
        change(file, attempt)
        started = time.perf_counter()
        outcome = named(attempt, path, file.name, load_training)
        tries.largest("slowest, s", round(time.perf_counter() - started, 3))
        yield outcome and f"{outcome} ({change.__name__})"


@fault(
    "a damaged newest checkpoint", "ecosystem 5", tries=40, quick=1,
    done="A bit of the newer of a run's two checkpoints is flipped, and the run is resumed",
    must_hold="it goes on from the older one, says so, keeps the damaged one apart, and ends with the same bits",
)  # fmt: skip
def damaged_newest(tries: Tries):
    run(tries.folder / "straight", save_every=6)
    straight = load_training(tries.folder / "straight" / "step-00000012")
    for attempt in tries:
        out = attempt.folder / "run"
        run(out, save_every=6)
        newest = out / "step-00000012"
        file = attempt.random.choice(sorted(path for path in newest.iterdir() if path.name != MANIFEST))
        file.write_bytes(flipped(file.read_bytes(), attempt.random.randrange(8 * file.stat().st_size)))
        state = runs.resume(out, {})
        found, apart = state.step, (out / "damaged-step-00000012").is_dir()
        run(out, state)
        wrong = differences(straight, load_training(newest))
        good = found == 6 and apart and not wrong
        yield None if good else f"try {attempt.number}: resumed at {found}, kept apart {apart}, different {wrong[:3]}"


@fault(
    "a file is cut while it is read", "ecosystem 7", tries=40, quick=4,
    done="A process loads a checkpoint again and again while its largest file is cut and restored in place",
    must_hold="the process is not killed by SIGBUS and meets nothing but CheckpointErrors",
)  # fmt: skip
def cut_while_read(tries: Tries):
    path = checkpoint(tries.folder / "step")
    file = max(path.iterdir(), key=lambda each: each.stat().st_size)
    data = file.read_bytes()

    def load_often() -> None:
        for _ in range(20):
            try:
                load_training(path)
            except CheckpointError:
                tries.count("errors")

    for attempt in tries:
        child, code = forked(load_often, attempt.folder / "printed"), None
        while code is None:
            os.truncate(file, attempt.random.randrange(len(data)))
            time.sleep(0.002)
            file.write_bytes(data)
            time.sleep(0.002)
            found, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if found else None
        yield None if code == 0 else f"try {attempt.number}: {code} {(attempt.folder / 'printed').read_text()}"


@fault(
    "weights that are not finite", "faults 2.4, 2.8; ecosystem 10", tries=60, quick=10,
    done="A random weight of a model becomes NaN or infinite; it is saved, and a file that holds it is loaded",
    must_hold="both are CheckpointErrors that name the tensor",
)  # fmt: skip
def weights_not_finite(tries: Tries):
    for attempt in tries:
        model = small_model()
        name, parameter = attempt.random.choice(list(model.named_parameters()))
        with torch.no_grad():
            path = model.save(attempt.folder / "model")
            flat = parameter.detach().flatten().clone()
            flat[attempt.random.randrange(parameter.numel())] = attempt.random.choice(
                [float("nan"), float("inf"), -float("inf")]
            )
            parameter.copy_(flat.view(parameter.shape))
        rewritten_tensors(path / "model.safetensors", model.state_dict())
        wrong = [named(attempt, path, name), named(attempt, attempt.folder / "other", name, model.save)]
        yield next(filter(None, wrong), None)
