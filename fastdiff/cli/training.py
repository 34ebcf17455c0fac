"""What ``fastdiff train`` does: it starts or resumes a run, and says how to go on."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import attrs
import torch

from ..checkpoints import RUNS, embedded_names, last_checkpoint, load
from ..data import DataError, Dataset, ImageOptions, ImageSource, load_dataset
from ..io import processes
from ..io.configuration import ConfigError
from ..io.folders import Json
from ..kernels import FastdiffError, InvalidTypeError, InvalidValueError
from ..models import AddNoise, Downsample, ImageConfig, Model, model_of
from ..models.image_data import listed
from ..models.small import small_config, small_options
from ..presets import own_training
from ..training import RunError, TrainConfig, TrainingError, TrainState, runs
from ..training.batches import check_fit
from .advice import command, words_of
from .arguments import flag, parse_degradation
from .tables import TABLE_HEAD, format_groups, format_row
from .targets import find_target, same_data
from .train_options import DEFAULT_MODEL, TrainOptions

LARGEST_SIDE = 128  # pixels, unless --size asks for more
SHOWN_CLASSES = 10  # names that are printed
LOOKED_AT = 32  # images of each part that are read before the training, so that most errors come early


class Training:
    """One call of ``fastdiff train`` in one process.

    Args:
        options: those of the command.
        device: where to train.
    """

    def __init__(self, options: TrainOptions, device: torch.device) -> None:
        self.options, self.device = options, device
        self.model = options.model or DEFAULT_MODEL
        with naming_flags():
            self.target = find_target(options.what, options.out, options.resume, self.model)

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return self.target.out

    def run(self) -> int:
        """Start or resume the run, train, and print the result; return the exit code."""
        with naming_flags():
            state, data = self._resume() if self._is_resumed() else self._start()
        self._describe(state, data)
        try:
            with processes.lost_peers():
                result = runs.run(self.out, state, data, runs.RunOptions(**vars(self.options.keeping)))
        except RunError:  # nothing was trained
            raise
        except (FastdiffError, KeyboardInterrupt, SystemExit) as error:  # SystemExit: SIGTERM, twice
            self._print(f"ended after step {state.step}; {self._advice(state, error)}")
            raise
        if result.stopped_by is not None:
            self._print(f"stopped after step {result.step}; {self._advice(state)}")
            return 128 + result.stopped_by
        if result.evaluation is not None:
            self._print(f"held-out bits/dim of the averaged weights, in {self.out}:")
            self._print(f"{TABLE_HEAD}\n{format_row(result.evaluation)}")
            error = result.evaluation.group_standard_error
            if error is not None:
                means = [each.mean for each in result.evaluation.by_group()]
                self._print(format_groups(error, means, data.group_kind or "groups"))
        verb = "reconstruct" if state.model.kind == "restoration" else "sample"
        self._print(f"draw from it: {command(verb, self._loaded_as())}")
        return 0

    def _loaded_as(self) -> str:
        """Return what `load` takes for the run: its name if it stands for it, or its path."""
        name = self.out.name if self.out.parent == RUNS else str(self.out)
        taken = name in embedded_names() or (self.out.parent == RUNS and os.path.exists(name))
        if not taken:
            return name
        return str(self.out) if self.out.parent == RUNS else f"./{name}"

    def _is_resumed(self) -> bool:
        """Whether the run is resumed: on request, or since torchrun has started its processes again."""
        if self.options.resume:
            return True
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return again and processes.share(last_checkpoint(self.out) is not None)

    # -------------------------------------------------------------------------------------------- starting

    def _start(self) -> tuple[TrainState, Dataset]:
        preset = self.target.preset
        settings, images = self.options.settings(), self.options.image_settings()
        if preset is not None:
            for name in self.options.model_options():
                raise InvalidValueError(f"{flag(name)} is for data of your own; the preset {self.target.name} is whole")
            config = attrs.evolve(preset.train, **settings, images=attrs.evolve(preset.train.images, **images))
            data, model_config = load_dataset(config.data, config.images), preset.model
        else:
            path, degradation = self._own_path(settings), self._degradation()
            read = ImageOptions(**images)  # pyright: ignore[reportArgumentType]
            data = load_dataset(path, read)
            check_size(data, read)
            config = own_training(self.model, path, **settings, images=read)
            model_config = self._own_model(data, config, degradation)
        return runs.start(self.out, lambda: _build(model_config, config.first_stage), config, data, self.device), data

    def _own_path(self, settings: dict[str, object]) -> str:
        path, data = self.target.data, settings.pop("data", None)
        assert path is not None  # the target is no preset, and without --resume no run
        if data not in (None, path):
            raise InvalidValueError(f"--data must not be given beside data of your own, {path}, got {data}")
        return path

    def _degradation(self) -> Downsample | AddNoise | None:
        """Return the degradation of a restoration model of own data; None for other models."""
        text = self.options.degradation
        if self.model == "restoration":
            return Downsample() if text is None else parse_degradation(text)
        if text is not None:
            raise InvalidValueError(f"--degradation is for --model restoration, got --model {self.model}")
        return None

    def _own_model(self, data: Dataset, config: TrainConfig, degradation: Downsample | AddNoise | None) -> ImageConfig:
        """Return the configuration of the small model of the user's own data."""
        options = self.options
        num_classes = data.num_classes if config.images.classes else 0
        if self.model in ("vae", "hvae") and (num_classes or config.shift):
            name = "--classes" if num_classes else "--shift"
            raise InvalidValueError(f"{name} is for diffusion models, got --model {self.model}")
        if degradation is not None:
            check_sides(degradation, data.shape)
        vae = None
        if self.model == "diffusevae":
            if config.first_stage is None:
                raise InvalidValueError("--first-stage must be the folder of a trained VAE for --model diffusevae")
            first = load(config.first_stage)
            if first.kind != "hvae":
                raise InvalidTypeError(f"--first-stage must be a VAE, got a {first.kind} model")
            vae = first.config
        elif config.first_stage is not None:
            raise InvalidValueError(f"--first-stage is for --model diffusevae, got --model {self.model}")
        return small_config(
            self.model, data.shape, data.levels, num_classes, options.width, options.blocks or 2, vae,
            augmented=config.shift > 0, class_names=data.class_names if num_classes else (),
            degradation=degradation,
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------- resuming

    def _resume(self) -> tuple[TrainState, Dataset]:
        target, settings = self.target, self.options.settings()
        asked = settings.pop("data", target.data)
        settings["images"] = self.options.image_settings()
        state = runs.resume(self.out, settings, self.device, target.preset and target.preset.model)
        if isinstance(asked, str) and not same_data(asked, state.config.data):
            self._move_data(state, asked)
        data = self._load_again(state.config)
        check_fit(state.model, data)
        has = small_options(state.model.config)
        options = self.options.model_options()
        if self.options.degradation is not None:
            options["degradation"] = parse_degradation(self.options.degradation).name  # noise-0.50 is noise-0.5
        for name, value in options.items():
            if value != has[name]:
                raise RunError(
                    f"{self.out} was started with {name} {has[name]}, not {value}, which a resumed run keeps"
                )
        return state, data

    def _move_data(self, state: TrainState, data: str) -> None:
        """Take the data from another place. `runs.run` checks that they are the same."""
        before = state.config.data
        if not state.data.get("identity"):
            raise RunError(f"{self.out} was started with data {before}, not {data}, which a resumed run keeps")
        state.config = attrs.evolve(state.config, data=data)
        state.changes.append({"step": state.step, "data": [before, data]})

    def _load_again(self, config: TrainConfig) -> Dataset:
        try:
            return load_dataset(config.data, config.images)
        except DataError as error:
            if os.path.lexists(config.data):
                raise
            raise RunError(
                f"the data of {self.out}, {config.data!r}, cannot be found: give their place by --data, or resume in "
                f"Python (fastdiff.training.runs) if they were a torch Dataset there; {error}"
            ) from error

    # -------------------------------------------------------------------------------------------- printing

    def _print(self, text: str) -> None:
        if processes.is_first():
            print(text, flush=True)

    def _describe(self, state: TrainState, data: Dataset) -> None:
        model, config = state.model, state.config
        parameters = sum(parameter.numel() for parameter in model.parameters())
        count = f", {processes.count()} processes" if processes.count() > 1 else ""
        steps = f"{config.max_steps} steps of {config.batch_size} images"
        self._print(
            f"{self.target.name}: {model.title} model, {parameters:,} parameters, {steps}, on {self.device}{count}, "
            f"in {self.out}"
        )
        sides = "×".join(map(str, data.shape))
        classes = f", {data.num_classes} classes" if data.num_classes and model.num_classes else ""
        classes += f" ({listed(data.class_names, SHOWN_CLASSES)})" if classes and data.class_names else ""
        self._print(
            f"data {data.name}: {len(data.train_images)} training and {len(data.test_images)} held-out images {sides}, "
            f"{data.levels} levels{classes}"
        )
        if state.step:
            self._print(f"resumed after step {state.step}")
        for change in state.changes:
            if change["step"] == state.step:
                self._print(changed(change))

    def _advice(self, state: TrainState, error: BaseException | None = None) -> str:
        """Return how to go on: a command that works when it is pasted."""
        options, rate = self.options, state.config.learning_rate
        lower, words = "", []
        if isinstance(error, TrainingError):
            lower, words = " with a lower learning rate", ["--learning-rate", f"{rate / 3:.2g}"]
            options = replace(options, training=replace(options.training, learning_rate=None))
        if isinstance(error, DataError) and os.path.isdir(state.config.data) and "a process" not in str(error):
            lower, words = " without damaged files", ["--skip-damaged", "--allow-changed-data"]
            options = replace(options, images=replace(options.images, skip_damaged=None))
            options = replace(options, keeping=replace(options.keeping, allow_changed_data=False))
        if last_checkpoint(self.out) is not None:
            kept = TrainOptions(out=self.out, resume=True, device=options.device, threads=options.threads,
                                keeping=options.keeping)  # fmt: skip
            return f"continue{lower} with: {command('train', *words_of(kept), *words)}"
        what = [] if options.what is None else [options.what]
        again = replace(options, what=None, resume=False)
        return f"there is no checkpoint; start again{lower} with: {command('train', *what, *words_of(again), *words)}"


def _build(config: ImageConfig, first_stage: str | None) -> Model:
    """Build a model with fresh weights, with its trained first stage if there is one."""
    model = model_of(config)
    if first_stage is not None:
        model.take_first_stage(load(first_stage))
    model.check_trainable()
    return model


def check_size(data: Dataset, options: ImageOptions) -> None:
    """Check that own images are not too large, and that some of them have one size and mode.

    Raises:
        InvalidValueError, DataError: they have not; the message names ``--size``.
    """
    _, height, width = data.shape
    if max(height, width) > LARGEST_SIDE and options.size is None:
        raise InvalidValueError(
            f"--size must be given for images of more than {LARGEST_SIDE}×{LARGEST_SIDE} pixels, such as --size 64, "
            f"got {height}×{width}"
        )
    for images in (data.train_images, data.test_images):
        if isinstance(images, ImageSource):
            _ = images[torch.arange(0, len(images), -(-len(images) // LOOKED_AT))]


def check_sides(degradation: Downsample | AddNoise, shape: tuple[int, int, int]) -> None:
    """Check that images (C, H, W) can be degraded: that a factor of down-sampling divides their sides.

    Raises:
        InvalidValueError: it does not; the message lists the factors that do, and a ``--size``.
    """
    (_, height, width), factor = shape, degradation.reduction
    if height % factor == width % factor == 0:
        return
    factors = [str(k) for k in range(2, min(height, width) + 1) if height % k == width % k == 0]
    least = min(height, width)
    raise InvalidValueError(
        f"--degradation must be down-FACTOR with a factor that divides {height} and {width}, the height and width of "
        f"the images ({listed(factors, SHOWN_CLASSES) or 'none does'}), or --size must be given, such as --size "
        f"{max(least - least % factor, factor)}; got {degradation.name}"
    )


def changed(change: Json) -> str:
    """Describe a change of a run's settings, such as ``learning_rate 0.002 -> 0.001 from step 500``."""
    parts = []
    for name, (old, new) in ((name, value) for name, value in change.items() if name != "step"):
        if isinstance(old, dict):
            parts += [f"{key} {old[key]} -> {new[key]}" for key in old if old[key] != new[key]]
        else:
            parts.append(f"{name} {old} -> {new}")
    return f"{', '.join(parts)} from step {change['step']}"


@contextmanager
def naming_flags() -> Iterator[None]:
    """Name the flag in place of the field in the errors of the training's configuration."""
    try:
        yield
    except ConfigError as error:
        found = re.match(r"(?:TrainConfig|ImageOptions): (\w+)(?= must)", str(error))
        if found is None:
            raise
        raise ConfigError(flag(found[1]) + str(error)[found.end() :]) from error
