"""What a run keeps while it trains: metrics, checkpoints, evaluations, pictures."""

import sys
import time
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, get_type_hints

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoints import last_checkpoint
from ..data import DataError, Dataset, ImageSource
from ..diffusion import DPMSolver
from ..evaluation import Evaluation, evaluate, evaluate_latents
from ..io import processes
from ..io.configuration import ConfigError, convert, to_dict
from ..io.files import WriteError
from ..io.folders import Json
from ..io.pictures import image_grid, to_uint8, write_picture
from ..kernels import Noise
from ..models import Request
from ..sampling import draw_images
from . import run_folder
from .divergence import verdict
from .errors import TrainingError
from .lock import locked
from .loop import train
from .metrics import METRICS, MetricsLog, early_bpd, truncate_metrics
from .progress import ProgressLines
from .signals import Stop
from .state import TrainState, save_training
from .step import Report
from .tensorboard import TensorBoard

if TYPE_CHECKING:
    from PIL.Image import Image

LOG_EVERY = 50
LONG_ENOUGH = 200  # steps from which on the bound at the end says something about the learning rate
KEEP_IN_DOUBT = 1000  # checkpoints: none from before a divergence is removed while one may be under way
NUM_SAMPLES = 64  # in a picture
IN_MEMORY = 256 << 20  # bytes of held-out images that are decoded once


@dataclass(frozen=True)
class RunOptions:
    """How a run is kept and shown. Nothing here changes the numbers of the training on the same data.

    Args:
        save_every: steps between checkpoints.
        keep: number of checkpoints that are kept.
        evaluations: how many times the bound is evaluated during training.
        pictures: draw a picture of samples after each evaluation, always from the same noise.
        tensorboard: write the metrics for TensorBoard too.
        progress: show progress bars on stderr; without them a run prints lines, for a log.
        log_every: steps between these lines, rounded up to a multiple of 50; 0 prints none. By default one a minute.
            Every evaluation has a line too.
        workers: processes that read images ahead, see `fastdiff.training.feed`.
        allow_changed_data: resume although files of the data set have changed, or are left out now; the change is
            recorded, and the order of the images is another one from there on.

    Raises:
        ConfigError: a value of the wrong type, or out of range.
    """

    save_every: int = 500
    keep: int = 2
    evaluations: int = 8
    pictures: bool = True
    tensorboard: bool = False
    progress: bool = True
    log_every: int | None = None
    workers: int | None = None
    allow_changed_data: bool = False

    def __post_init__(self) -> None:
        least = {"save_every": 1, "keep": 1, "evaluations": 0, "log_every": 0, "workers": 0}
        for name, hint in get_type_hints(RunOptions).items():
            value = convert(hint, getattr(self, name), f"RunOptions: {name}")
            if name in least and value is not None and value < least[name]:
                raise ConfigError(f"RunOptions: {name} must be an integer >= {least[name]}, got {value}")


@dataclass(frozen=True)
class RunResult:
    """The end of a run: the steps done, the signal that stopped it (None at its end), and its last evaluation."""

    step: int
    stopped_by: int | None
    evaluation: Evaluation | None


class RunKeeper:
    """Trains a state, and keeps its run. It is a context, which holds the lock of the folder."""

    def __init__(self, out: Path, state: TrainState, data: Dataset, options: RunOptions) -> None:
        self.out, self.state, self.data, self.options = out, state, data, options
        self.evaluation: Evaluation | None = None
        self.stopping = False  # whether a signal has ended the training, with a checkpoint: the same in all processes
        self.progress = options.progress and processes.is_first()
        shown = not options.progress and processes.is_first()
        self.lines = ProgressLines(state.config.max_steps, state.step, options.log_every, shown)
        self.board: TensorBoard | None = None
        self.log = MetricsLog(
            out / METRICS if processes.is_first() else None, state.model.dims, state.config.learning_rate,
            processes.total, self._to_board,
        )  # fmt: skip
        self.stack = ExitStack()

    def __enter__(self) -> "RunKeeper":
        try:
            processes.on_first(self._take_folder)
            self.test_images = held_out(self.data)
        except BaseException:
            self.stack.close()  # __exit__ is not called: the folder would stay locked as long as the error is kept
            raise
        return self

    def _take_folder(self) -> None:
        self.stack.enter_context(locked(self.out))
        finished = self.state.step == self.state.config.max_steps
        truncate_metrics(self.out / METRICS, self.state.step, finished)  # a resumed run writes later lines again
        if self.options.tensorboard:
            self.board = TensorBoard(self.out, self.state.step)
            self.stack.callback(self.board.close)

    def _to_board(self, row: Json) -> None:
        if self.board is not None:
            self.board.write(row)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stack.close()

    def result(self, stopped_by: int | None) -> RunResult:
        """Return the result of the run."""
        return RunResult(self.state.step, stopped_by, self.evaluation)

    # -------------------------------------------------------------------------------------------- training

    def train(self, stop: Stop) -> None:
        """Train to the last step, or to the step in which a signal comes."""
        config, title = self.state.config, f"training {self.data.name}"
        bar = tqdm(total=config.max_steps, initial=self.state.step, unit="step", desc=title, disable=not self.progress)
        with bar, ExitStack() as stack:  # closing the steps ends the processes that read images
            try:
                reports = stack.enter_context(closing(train(self.state, self.data, self.options.workers)))
                # The first step may take long, and there is nothing to save before it. But a process that left it
                # alone would leave the others in the exchange of gradients.
                with stop.abandonable() if processes.count() == 1 else nullcontext():
                    first = list(islice(reports, 1))
                for report in chain(first, reports):
                    bar.update()
                    self._after_step(report, stop, bar)
                    if self.stopping:  # not stop.number: a signal that came since then ends the next step
                        return
            except TrainingError as error:
                raise TrainingError(f"{error}. {self._last_good()}") from error
            except DataError:  # an image that cannot be read, after so many that could
                if self.state.step and processes.count() == 1:
                    self.commit(last=True)
                raise

    def _after_step(self, report: Report, stop: Stop, bar: tqdm) -> None:
        options, step = self.options, report.step
        last = step == self.state.config.max_steps
        self.log.add(report, self.state.config.batch_size // processes.count())
        self._agree_to_stop(stop)
        self.stopping = stopping = stop.number is not None
        if step % LOG_EVERY == 0 or last or stopping:
            averages = self.log.flush(report)
            bar.set_postfix(averages)
            self.lines.steps(step, averages)
        began = time.monotonic()
        every = max(1, self.state.config.max_steps // max(1, options.evaluations))
        evaluating = options.evaluations > 0 and step % every == 0 and not last
        if step % options.save_every == 0 or last or stopping or evaluating:
            self.commit(last or stopping)
        if evaluating and not stopping:
            self._share_average(stop)
            with stop.abandonable():
                self.evaluate(draws=2)
                if options.pictures:
                    self.draw_picture(step)
        seconds = time.monotonic() - began
        self.log.exclude(seconds)
        self.lines.exclude(seconds)

    def _agree_to_stop(self, stop: Stop) -> None:
        """Stop all processes in the same step, whichever of them has met a signal."""
        if not processes.any_process(stop.number is not None):
            return
        met = [number for number in processes.from_all(stop.number) if number is not None]
        if met:
            stop.set(met[0])

    def _share_average(self, stop: Stop) -> None:
        """Give all processes the averaged weights, which the first one alone has, before work that can be abandoned.

        They agree whether to stop, so that all of them begin that work or none does.
        """
        processes.same_as_first(self.state.average.tensors())
        self._agree_to_stop(stop)

    def commit(self, last: bool) -> None:
        """Write the checkpoint of this step; then remove the older ones."""
        state, out = self.state, self.out
        keep = KEEP_IN_DOUBT if state.monitor.in_doubt else self.options.keep
        processes.on_first(
            lambda: run_folder.commit(
                out, state.step, lambda path: save_training(path, state), state.averaged.save, keep, last
            )
        )

    def _last_good(self) -> str:
        path = last_checkpoint(self.out)
        return "There is no checkpoint yet" if path is None else f"The last good checkpoint, {path}, is left as it is"

    # -------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, draws: int) -> Evaluation:
        """Evaluate the bound of the averaged weights on the held-out images, and keep them if they are the best."""
        state, images = self.state, self.test_images
        evaluation = evaluate(
            state.averaged, images, draws=draws, groups=self.data.test_groups, progress=self.progress, sharded=True
        )
        layers = evaluate_latents(state.averaged, images, progress=self.progress, sharded=True)
        self.log.write({"event": "evaluate", "step": state.step, "draws": draws, **evaluation.row(), **layers})
        processes.on_first(lambda: run_folder.keep_best(self.out, state.averaged, evaluation.mean, state.step))
        self.evaluation = evaluation
        self.lines.evaluation(state.step, evaluation, draws)
        return evaluation

    def draw_picture(self, step: int) -> None:
        """Draw a grid of samples in few steps, from the same noise each time, into ``samples/``."""
        model = self.state.averaged
        picture = self._samples({"steps": 20, "sampler": DPMSolver()} if "steps" in model.sampling_options else {})
        if self.board is not None:
            pixels = torch.from_numpy(np.array(picture))
            self.board.picture(pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1), step)
        processes.on_first(lambda: self._write(picture, self.out / "samples" / f"{step:08d}.png"))

    def _write(self, image: "Image", path: Path) -> None:
        """Write a picture; a disk that is full does not end the run."""
        try:
            path.parent.mkdir(exist_ok=True)
            write_picture(image, path)
        except (OSError, WriteError) as error:
            warn(str(error))

    def _samples(self, options: Json) -> "Image":
        model, images = self.state.averaged, self.test_images[:NUM_SAMPLES]
        cond = model.example_cond(images.to(model.device), Noise(self.state.config.seed))
        request = Request(NUM_SAMPLES if cond is None else len(images), cond=cond, **options)
        samples = draw_images(model, request, progress=self.progress, sharded=True)
        return image_grid(to_uint8(samples, model.levels))

    def finish(self, stop: Stop) -> None:
        """Evaluate the averaged weights with many draws, write them as a model, and draw samples."""
        self._share_average(stop)
        self.lines.say(f"evaluating {len(self.test_images):,} held-out images, 64 draws each, and drawing samples")
        with stop.abandonable():
            evaluation = self.evaluate(draws=64)
            picture = self._samples({})
        model = self.state.averaged
        record = {"train": to_dict(self.state.config), "evaluation": evaluation.row()}
        processes.on_first(lambda: model.save(self.out / "model", record=record))
        processes.on_first(lambda: self._write(picture, self.out / "samples.png"))
        processes.on_first(lambda: self._say_if_useless(evaluation))

    def _say_if_useless(self, evaluation: Evaluation) -> None:
        state = self.state
        if state.step < LONG_ENOUGH:
            return
        early = early_bpd(self.out / METRICS)
        warning = verdict(evaluation.mean, early, state.model.levels, state.config.learning_rate)
        if warning is not None:
            self.log.write({"event": "warning", "step": state.step, "message": warning})
            warn(warning)


def warn(message: str) -> None:
    """Print a warning on stderr, above a progress bar."""
    tqdm.write(f"fastdiff: warning: {message}", file=sys.stderr)


def held_out(data: Dataset) -> Tensor | ImageSource:
    """Return the held-out images of a data set, decoded once if they are few."""
    images = data.test_images
    if isinstance(images, Tensor) or len(images) * torch.Size(images.shape).numel() > IN_MEMORY:
        return images
    return images[:]
