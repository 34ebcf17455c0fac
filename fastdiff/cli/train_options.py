"""The options of ``fastdiff train``. Those that are fields of configurations are written by `write_fields`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastdiff_kernels.errors import InvalidValueError
from tyro.conf import OmitArgPrefixes, Positional, arg

from .arguments import flag
from .choices import NONE, choice, hint
from .train_fields import MODELS, PRESETS, ImageFields, RunFields, TrainingFields

DEFAULT_MODEL = "vdm"
WHAT = """The name of a preset (the default is digits), or your own data: a folder of images, an .npz file, or
CIFAR-10's archive. With --resume also the folder of a run, or its name in runs/; it can be left out beside --out. The
presets, with their model, data and parameters:
""".replace("\n", " ").strip()
RESUME = """Continue the run in that folder from its last checkpoint, with its own settings except for those given here:
--max-steps may grow, and --learning-rate and others may change. What torchrun --max-restarts starts again resumes by
itself if there is a checkpoint.""".replace("\n", " ")


@dataclass
class TrainOptions:
    """What is trained, where, and how."""

    what: Annotated[
        Positional[str | None],
        arg(help="\n".join([WHAT, *(f"  {line}" for line in PRESETS)]), help_behavior_hint=""),
    ] = None
    out: Annotated[Path | None, hint("runs/PRESET, or runs/MODEL-DATA for own data")] = None
    """Folder of the run."""
    resume: Annotated[bool, arg(help=RESUME, help_behavior_hint="")] = False
    model: Annotated[str | None, choice(*MODELS), hint(DEFAULT_MODEL)] = None
    """Model of own data, with a small network. A diffusevae needs --first-stage."""
    width: Annotated[int | None, hint("32 up to 16×16 pixels, else 64")] = None
    """Channels of that network at full resolution."""
    blocks: Annotated[int | None, hint("2")] = None
    """Residual blocks of that network per resolution."""
    degradation: Annotated[str | None, hint("down-2")] = None
    """What a restoration model restores images from: down-FACTOR, fewer pixels (super-resolution), or noise-DEVIATION,
    noise of that standard deviation on pixels in [-1, 1] (denoising)."""
    device: Annotated[str, hint("auto")] = "auto"
    """Where to run: auto (the GPU if there is one), cpu, cuda, or cuda:1; under torchrun each process takes a GPU."""
    threads: Annotated[int | None, hint("PyTorch's own number")] = None
    """Threads of each process on a CPU."""
    training: OmitArgPrefixes[TrainingFields] = field(default_factory=TrainingFields)
    """The training. What is not given is the preset's, or for own data as in brackets."""
    images: OmitArgPrefixes[ImageFields] = field(default_factory=ImageFields)
    """How images are read. With --classes a model of own data is conditioned on the classes."""
    keeping: OmitArgPrefixes[RunFields] = field(default_factory=RunFields)
    """How the run is kept and shown; nothing here changes its numbers."""

    def check(self) -> None:
        """Check what no configuration checks.

        Raises:
            InvalidValueError: a number that is too small.
        """
        least = {"save_every": 1, "keep": 1, "evaluations": 0, "workers": 0, "log_every": 0}
        numbers = [(name, getattr(self.keeping, name), low) for name, low in least.items()]
        numbers += [(name, getattr(self, name), 1) for name in ("threads", "width", "blocks")]
        for name, value, low in numbers:
            if value is not None and value < low:
                raise InvalidValueError(f"{flag(name)} must be an integer >= {low}, got {value}")

    def settings(self) -> dict[str, object]:
        """Return the fields of the training's configuration that are given."""
        return _given(self.training)

    def image_settings(self) -> dict[str, object]:
        """Return the fields of the image options that are given."""
        return _given(self.images)

    def model_options(self) -> dict[str, object]:
        """Return the options of the model of own data that are given."""
        names = ("model", "width", "blocks", "degradation")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def _given(fields: TrainingFields | ImageFields) -> dict[str, object]:
    return {name: None if value == NONE else value for name, value in vars(fields).items() if value is not None}
