"""The command that trains a preset: ``train``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from .. import runs
from ..checkpoint import RUNS
from ..datasets import check_fit, load_dataset
from ..evaluation import TABLE_HEAD, format_row
from ..presets import preset
from .arguments import default_device, with_first_stage

Name = tyro.conf.Positional


@dataclass
class Train:
    """Train a preset; Ctrl-C leaves a checkpoint, --resume goes on from it to the same weights."""

    preset: Name[str] = "digits"
    """Name of the preset."""
    out: Path | None = None
    """Folder of the run; by default runs/PRESET."""
    resume: bool = False
    """Go on with the run in that folder, with its own settings."""
    steps: int | None = None
    """Optimiser steps, instead of the preset's."""
    batch_size: int | None = None
    """Images per step, instead of the preset's."""
    learning_rate: float | None = None
    """Peak learning rate, instead of the preset's."""
    seed: int | None = None
    """Seed of everything, instead of the preset's."""
    data: str | None = None
    """Data set (digits, an .npz file, the CIFAR-10 archive, a folder of images), instead of the preset's."""
    first_stage: str | None = None
    """Trained VAE under a DiffuseVAE: its run's folder or checkpoint."""
    save_every: int = 500
    """Steps between checkpoints."""

    def run(self) -> int:
        """Start or resume the run, and print its result."""
        chosen = preset(self.preset)
        names = ("steps", "batch_size", "learning_rate", "seed", "data", "first_stage")
        wanted = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.save_every < 1:
            raise ValueError(f"train: save-every is {self.save_every}; allowed: an integer >= 1")
        out, device = self.out or RUNS / self.preset, default_device()
        if self.resume:
            state = runs.resume(out, wanted, device, chosen.model)
            data = load_dataset(state.config.data)
            check_fit(state.model, data)
        else:
            config = replace(chosen.train, **wanted)
            data = load_dataset(config.data)
            state = runs.start(out, lambda: with_first_stage(chosen.build(), config.first_stage), config, data, device)
        model: Any = state.model
        parameters, config = sum(p.numel() for p in model.parameters()), state.config
        print(f"{self.preset}: {parameters:,} parameters, {config.steps} steps of {config.batch_size} images, in {out}")
        go_on = f"fastdiff train {self.preset} --out {out} --resume"
        try:
            outcome = runs.run(out, state, data, save_every=self.save_every)
        except KeyboardInterrupt:
            print(f"interrupted after step {state.step}; go on with: {go_on}")
            raise
        if outcome.stopped_by is not None:
            print(f"stopped after step {outcome.step}; go on with: {go_on}")
            return 128 + outcome.stopped_by
        if outcome.evaluation is not None:
            print(f"held-out bits/dim of the averaged weights, in {out}:")
            print(TABLE_HEAD, format_row(outcome.evaluation), sep="\n")
        return 0
