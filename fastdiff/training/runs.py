"""A training run on disk: its folder, metrics, checkpoints, and stopping without losing anything.

RUN/metrics.jsonl      one JSON object per line: training steps and evaluations
RUN/step-00001000/     the last checkpoint; the previous one is removed once this one is complete
RUN/model/             at the end: the averaged weights alone, with the configuration and the result of the run
RUN/samples.png        at the end: samples from them
"""

import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints import checkpoint_path, last_checkpoint
from ..checkpoints.load import PREFIX
from ..data import Dataset
from ..evaluation import Evaluation, evaluate, evaluate_latents
from ..io import folders
from ..io.configuration import differences, to_dict
from ..io.pictures import image_grid, to_uint8
from ..kernels import FastdiffError, Noise
from ..models import ImageConfig, Model, Request
from ..sampling import draw_images
from .batches import check_fit
from .config import TrainConfig
from .loop import TrainingError, train
from .metrics import MetricsLog, truncate_metrics
from .state import TrainState, load_training, save_training

LOG_EVERY = 50
NUM_SAMPLES = 64  # in samples.png


class RunError(FastdiffError, RuntimeError):
    """The folder of a run that cannot be started or resumed."""


@dataclass(frozen=True)
class RunResult:
    """The end of a run: the steps done, the signal that stopped it (None at its end), and its last evaluation."""

    step: int
    stopped_by: int | None
    evaluation: Evaluation | None


def start(
    out: Path, build: Callable[[], Model], config: TrainConfig, data: Dataset, device: torch.device | str = "cpu"
) -> TrainState:
    """Start a run in a new or empty folder. Nothing is written before all arguments are checked.

    Args:
        out: the folder of the run.
        build: builds the model, after torch was seeded with the run's seed.
        config, data: how and on what to train; the data must fit the model.
        device: where to train.

    Raises:
        RunError: the folder holds a run already, or cannot be written.
        DataError: data that do not fit the model.
    """
    if last_checkpoint(out) is not None:
        raise RunError(f"out must be a new or empty folder, but {out} holds a run already (--resume continues it)")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "metrics.jsonl").exists())):
        raise RunError(f"out must be a new or empty folder, but {out} holds something else")
    torch.manual_seed(config.seed)
    model = build().to(device)
    check_fit(model, data)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.jsonl").write_text("")  # a run that ended before its first checkpoint has nothing to keep
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error}") from error
    return TrainState(model, config)


def resume(
    out: Path,
    settings: Mapping[str, object],
    device: torch.device | str = "cpu",
    model_config: ImageConfig | None = None,
    network: nn.Module | None = None,
    schedule: Callable[[Tensor], Tensor] | None = None,
) -> TrainState:
    """Resume a run from its last checkpoint, with its own configuration.

    Args:
        out: the folder of the run.
        settings: fields of `TrainConfig` that the caller asks for; they must be those of the run.
        device: where to train.
        model_config: the configuration that the run's model must have, or None for any.
        network, schedule: parts of the user's own that the run was started with, see `fastdiff.load`.

    Raises:
        RunError: no checkpoint, another model, or a setting that differs.
        CheckpointError: a checkpoint that cannot be read.
    """
    path = last_checkpoint(out)
    if path is None:
        raise RunError(f"out must be the folder of a run with a checkpoint, but {out} holds none")
    folders.sweep(out)
    state = load_training(path, device, network, schedule)
    if model_config is not None and type(state.model.config) is not type(model_config):
        raise RunError(f"{out} holds a run of another model, a {state.model.kind} model")
    if model_config is not None and state.model.config != model_config:
        raise RunError(f"{out} holds a run of another model: {differences(state.model.config, model_config)}")
    recorded = to_dict(state.config)
    differing = [f"{name} {recorded[name]}, not {value}" for name, value in settings.items() if recorded[name] != value]
    if differing:
        raise RunError(f"{out} was started with {'; '.join(differing)}; a resumed run keeps its settings")
    truncate_metrics(out / "metrics.jsonl", state.step, finished=state.step == state.config.max_steps)
    return state


def run(
    out: Path,
    state: TrainState,
    data: Dataset,
    save_every: int = 500,
    evaluations: int = 8,
    progress: bool = True,
) -> RunResult:
    """Train to the end, or until SIGINT or SIGTERM, writing metrics and checkpoints into the folder of the run.

    The first signal ends the run after the current step, with a checkpoint; a second one ends it at once. The bound on
    the held-out images is evaluated ``evaluations`` times during training (2 draws) and at the end (64 draws).
    """
    config = state.config
    evaluate_every = max(1, config.max_steps // max(1, evaluations))
    log = MetricsLog(out / "metrics.jsonl")
    evaluation, title = None, f"training {data.name}"
    bar = tqdm(total=config.max_steps, initial=state.step, unit="step", desc=title, disable=not progress)
    with _signals() as caught, bar:
        try:
            for report in train(state, data):
                bar.update()
                log.add(report, config.batch_size)
                last = report.step == config.max_steps
                if report.step % LOG_EVERY == 0 or last or caught:
                    bar.set_postfix(log.flush(report))
                if report.step % evaluate_every == 0 and not last:
                    evaluation = _evaluate(state, data, log, draws=2)
                if report.step % save_every == 0 or last or caught:
                    _commit(out, state)
                if caught:
                    return RunResult(state.step, caught[0], evaluation)
        except TrainingError:
            _commit(out, state)  # the weights before the skipped steps
            raise
    return RunResult(state.step, None, _finish(out, state, data, log, progress))


def _evaluate(state: TrainState, data: Dataset, log: MetricsLog, draws: int, progress: bool = False) -> Evaluation:
    evaluation = evaluate(state.averaged, data.test_images, draws=draws, progress=progress)
    layers = evaluate_latents(state.averaged, data.test_images)
    log.write({"event": "evaluate", "step": state.step, "draws": draws, **evaluation.row(), **layers})
    return evaluation


def _commit(out: Path, state: TrainState) -> None:
    """Write the checkpoint of this step, then remove the older ones."""
    newest = save_training(checkpoint_path(out, state.step), state)
    for path in out.glob(f"{PREFIX}*"):
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


def _finish(out: Path, state: TrainState, data: Dataset, log: MetricsLog, progress: bool) -> Evaluation:
    evaluation, model = _evaluate(state, data, log, draws=64, progress=progress), state.averaged
    model.save(out / "model", record={"train": to_dict(state.config), "evaluation": evaluation.row()})
    images = data.test_images[:NUM_SAMPLES]
    cond = model.example_cond(images.to(model.device), Noise(state.config.seed))
    request = Request(NUM_SAMPLES if cond is None else len(images), cond=cond)
    samples = draw_images(model, request, progress=progress)
    image_grid(to_uint8(samples, model.levels)).save(out / "samples.png")
    return evaluation


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of ending the process; after the first, the former handlers are restored."""
    caught: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for each in handled:
            signal.signal(each, previous[each])

    try:
        previous = {each: signal.signal(each, note) for each in handled}
    except ValueError:  # not the main thread, which alone may set handlers
        yield caught
        return
    try:
        yield caught
    finally:
        for each in handled:
            signal.signal(each, previous[each])
