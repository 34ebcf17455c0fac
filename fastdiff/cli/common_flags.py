"""Flags that commands share: where they run, what they may replace, and the captions of pictures."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastdiff_kernels.errors import InvalidValueError

from .choices import hint

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from PIL import Image

    from ..models import Model

MODEL_FILES = ("manifest.json", "model_index.json")  # of a checkpoint folder, and of a pipeline of diffusers


@dataclass(kw_only=True)
class Computing:
    """Where a command runs."""

    device: str = "auto"
    """Where to run: auto (the GPU if there is one), cpu, cuda, or cuda:1."""
    threads: Annotated[int | None, hint("PyTorch's own number")] = None
    """Threads on a CPU."""

    def check_threads(self) -> None:
        """Check --threads.

        Raises:
            InvalidValueError: not an integer >= 1.
        """
        if self.threads is not None and self.threads < 1:
            raise InvalidValueError(f"--threads must be an integer >= 1, got {self.threads}")

    def set_threads(self) -> None:
        """Set the number of threads that --threads says."""
        import torch

        self.check_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def chosen_device(self) -> "torch.device":
        """Set the threads, and return the device, of a command that runs in one process.

        Raises:
            InvalidValueError: a device that this machine does not have.
        """
        from ..io.processes import check_device

        self.set_threads()
        return check_device(self.device)


@dataclass(kw_only=True)
class Writing:
    """What a command may replace."""

    overwrite: bool = False
    """Replace what is already there."""

    def check_free(self, path: Path) -> None:
        """Check that nothing is at a path, or that it may be replaced.

        Raises:
            InvalidValueError: something is there.
        """
        if os.path.lexists(path) and not self.overwrite:
            raise InvalidValueError(f"--out must be new, but {path} exists, which --overwrite replaces")

    def free_path(self, path: Path) -> Path:
        """Return where to write at the end: the path, or one with a number if something has been written there since.

        Two commands may have begun with the same --out; neither result is lost.
        """
        number, found = 0, path
        while os.path.lexists(found) and not self.overwrite:
            number += 1
            found = path.with_stem(f"{path.stem}-{number}")
        return found

    def check_no_model(self, path: Path) -> None:
        """Check that a folder holds no model, or that it may be replaced.

        Raises:
            InvalidValueError: it holds one.
        """
        if any((path / name).is_file() for name in MODEL_FILES) and not self.overwrite:
            raise InvalidValueError(f"OUT must be new, but {path} holds a model, which --overwrite replaces")


@dataclass(kw_only=True)
class Drawing(Writing):
    """How a picture is written."""

    caption: bool = True
    """Say below the picture what it shows."""

    def write(self, image: "Image.Image", path: Path, parts: "Sequence[str]", columns: "Sequence[str]" = ()) -> Path:
        """Write a picture atomically, with a caption of these parts and the names of its columns; return its path.

        Raises:
            WriteError: the file cannot be written.
        """
        from ..io.captions import captioned
        from ..io.pictures import write_picture

        text = " · ".join(part for part in parts if part)
        return write_picture(captioned(image, text, columns) if self.caption else image, self.free_path(path))


def is_watched() -> bool:
    """Return whether progress bars are shown: where stderr is a terminal."""
    return sys.stderr.isatty()


def drawn_by(
    name: str, model: "Model", sampler: str, steps: int | None, seed: int | None, default: int | None = None
) -> list[str]:
    """Return the parts of a caption that say how images were drawn.

    Args:
        name: name or path of the model.
        model: the model.
        sampler, steps: of the diffusion, which a VAE does not have.
        seed: of the noise; None where there is none.
        default: the steps that None stands for, if they are not those of `fastdiff.sample`.
    """
    from ..models import diffusion_sampling

    parts = [os.path.basename(os.path.abspath(name))]
    if "steps" in model.sampling_options:
        count = steps or default or diffusion_sampling.DEFAULT_STEPS
        parts.append(f"{sampler}, {count} step{'s' * (count != 1)}")
    return parts if seed is None else [*parts, f"seed {seed}"]
