"""What the faults happen to: a small model, data for it, runs of it, and processes that are forked to be killed."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import torch
from tiny import DATA, SMALL, filled, images

from fastdiff.data import Dataset
from fastdiff.io.folders import MANIFEST
from fastdiff.models import VDM, ConvVAEConfig, HVAEConfig, VDMConfig, build
from fastdiff.training import TrainConfig, TrainState, keeping, runs, train
from fastdiff.training.state import load_training, save_training

CONFIG = TrainConfig(data="images", max_steps=12, batch_size=4, warm_up=2, ema=0.9)
NETWORK = attrs.evolve(SMALL, widths=(4,), embedding=8, heads=1, dropout=0.3, max_groups=2)
QUIET = {"evaluations": 0, "pictures": False, "progress": False}


def small_model() -> VDM:
    """Return a VDM of about two thousand weights for the images of `data`."""
    model = VDM(VDMConfig(**DATA, gamma_0=-8.0, fourier=(3, 4), network=NETWORK))
    return filled(model, model.network)


def small_vae():
    """Return a VAE for the same images."""
    network = ConvVAEConfig(widths=(4,), max_groups=2, dropout=0.0)
    return filled(build("hvae", attrs.asdict(HVAEConfig(**DATA, latent=2, hidden=4, depth=1, network=network)), "VAE"))


def data() -> Dataset:
    """Return 20 training images and 6 held-out ones, without labels."""
    return Dataset("images", 17, 0, images(20), None, images(6, seed=2), None, "20 images")


def trained(steps: int = 1, config: TrainConfig = CONFIG) -> TrainState:
    """Return a training after some steps."""
    torch.manual_seed(0)
    state = TrainState(small_model(), config)
    for report in train(state, data()):
        if report.step == steps:
            break
    return state


def checkpoint(path: Path, steps: int = 1) -> Path:
    """Write the checkpoint of a training after some steps."""
    return save_training(path, trained(steps))


@contextmanager
def short_ends() -> Iterator[None]:
    """Make the evaluation and the pictures at the end of a run short."""
    from fastdiff.models import diffusion_sampling

    evaluate, samples, steps = keeping.evaluate, keeping.NUM_SAMPLES, diffusion_sampling.DEFAULT_STEPS
    keeping.NUM_SAMPLES, diffusion_sampling.DEFAULT_STEPS = 2, 2
    keeping.evaluate = lambda *args, draws, **options: evaluate(*args, draws=1, **options)  # pyright: ignore
    try:
        yield
    finally:
        keeping.evaluate, keeping.NUM_SAMPLES, diffusion_sampling.DEFAULT_STEPS = evaluate, samples, steps


def run(out: Path, state: TrainState | None = None, config: TrainConfig = CONFIG, **options) -> runs.RunResult:
    """Start a run, or go on with one, to its end; the evaluation and the samples at the end are few."""
    state = runs.start(out, small_model, config, data()) if state is None else state
    with short_ends():
        return runs.run(out, state, data(), runs.RunOptions(**(QUIET | options)))


def differences(one: TrainState, other: TrainState) -> list[str]:
    """Return the tensors, of weights, averages and moments, in which two trainings differ in any bit."""
    ours, theirs = one.tensors(), other.tensors()
    return [
        f"{part}: {name}" for part in ours for name, value in ours[part].items()
        if not torch.equal(value, theirs[part][name])
    ]  # fmt: skip


def state_at(run_folder: Path, step: int) -> TrainState:
    """Load the checkpoint of a run at a step."""
    return load_training(run_folder / f"step-{step:08d}")


def left_behind(folder: Path) -> list[str]:
    """Return the names of temporary files and folders, and of checkpoints without a manifest."""
    return sorted(
        path.name for path in folder.rglob("*")
        if path.name.startswith(".tmp-")
        or (path.name.startswith("step-") and path.is_dir() and not (path / MANIFEST).is_file())
    )  # fmt: skip


def whole_lines(path: Path) -> list[dict]:
    """Parse a file of JSON lines.

    Raises:
        ValueError: a line is no JSON, or the last one has no end.
    """
    text = path.read_text()
    if text and not text.endswith("\n"):
        raise ValueError(f"{path} does not end with a line")
    return [json.loads(line) for line in text.splitlines()]


def forked(work: Callable[[], object], output: Path | None = None) -> int:
    """Start a forked process that does some work and exits with 0, or with 1 and a line in ``output`` if it raised."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(output or os.devnull, "w", buffering=1) as stream:
            sys.stdout = sys.stderr = stream
            try:
                work()
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def kill(child: int) -> None:
    """Kill a forked process, and wait for its end."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def ended(child: int, seconds: float = 60.0) -> int | None:
    """Wait for the end of a forked process, and return its exit code; kill one that takes too long, and return None."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    kill(child)
    return None
