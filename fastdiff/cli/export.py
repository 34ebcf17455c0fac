"""The command ``export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .common_flags import Writing

if TYPE_CHECKING:
    from ..io.folders import Json

PATHS = ("data", "first_stage")  # of a training's settings, may be paths


@dataclass
class Export(Writing):
    """Write a model as a folder that can be published as it is: the averaged weights of a run, and a model card.

    What is recorded of the training goes with it, with the names of data and first stage instead of their paths.
    """

    model: tyro.conf.Positional[str]
    """Checkpoint folder, run folder, or embedded model."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""
    format: Literal["fastdiff", "diffusers"] = "fastdiff"
    """diffusers: a DDPMPipeline, for a DDPM whose network embeds the timesteps of its chain."""
    license: str | None = None
    """License of the weights, for the card: an identifier in lower case such as mit, apache-2.0 or cc-by-4.0."""

    def run(self) -> int:
        """Load the model and write the folder."""
        self.check_no_model(self.out)

        from ..checkpoints import load, record_of
        from ..models.card import check_license

        check_license(self.license)
        if self.format == "diffusers" and self.license is not None:
            raise InvalidValueError(
                f"--license must be absent with --format diffusers, which writes no model card, got {self.license}"
            )
        model = load(self.model)
        if self.format == "diffusers":
            model.save_diffusers(self.out)
        else:
            model.save(self.out, _without_folders(record_of(self.model)) or None, self.license)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"wrote {self.out}: {model.title} model, {count:,} parameters")
        return 0


def _without_folders(record: "Json") -> "Json":
    """Return a record whose paths are names alone: the folders of the machine that trained the model tell no reader."""
    train = record.get("train")
    if not isinstance(train, dict):
        return record
    names = {key: Path(value).name for key in PATHS if isinstance(value := train.get(key), str)}
    return {**record, "train": {**train, **names}}
