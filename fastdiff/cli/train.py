"""The command ``train``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import default_device
from .tables import TABLE_HEAD, format_row

if TYPE_CHECKING:
    from ..models import Model
    from ..presets import Preset


@dataclass
class Train:
    """Train a preset; Ctrl-C leaves a checkpoint, and --resume continues from it to the same weights."""

    preset: tyro.conf.Positional[str] = "digits"
    """Name of the preset (`fastdiff info` lists them)."""
    out: Path | None = None
    """Folder of the run; runs/PRESET by default."""
    resume: bool = False
    """Continue the run in that folder, with its own settings."""
    max_steps: int | None = None
    """Optimiser steps, instead of the preset's."""
    batch_size: int | None = None
    """Images per step, instead of the preset's."""
    learning_rate: float | None = None
    """Peak learning rate, instead of the preset's."""
    seed: int | None = None
    """Seed of everything, instead of the preset's."""
    data: str | None = None
    """Data set (digits, an .npz file, a CIFAR-10 archive, a folder of images), instead of the preset's."""
    first_stage: str | None = None
    """Trained VAE of a DiffuseVAE: the folder of its run or checkpoint."""
    save_every: int = 500
    """Steps between checkpoints."""

    def run(self) -> int:
        """Start or resume the run, and print its result."""
        if self.save_every < 1:
            raise InvalidValueError(f"--save-every must be an integer >= 1, got {self.save_every}")

        import attrs

        from ..checkpoints import RUNS
        from ..data import load_dataset
        from ..presets import preset
        from ..training import runs
        from ..training.batches import check_fit

        chosen = preset(self.preset)
        names = ("max_steps", "batch_size", "learning_rate", "seed", "data", "first_stage")
        settings = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        out, device = self.out or RUNS / self.preset, default_device()
        if self.resume:
            state = runs.resume(out, settings, device, chosen.model)
            data = load_dataset(state.config.data)
            check_fit(state.model, data)
        else:
            config = attrs.evolve(chosen.train, **settings)
            data = load_dataset(config.data)
            state = runs.start(out, lambda: _build(chosen, config.first_stage), config, data, device)
        parameters, config = sum(p.numel() for p in state.model.parameters()), state.config
        steps = f"{config.max_steps} steps of {config.batch_size} images"
        print(f"{self.preset}: {parameters:,} parameters, {steps}, in {out}")
        command = f"fastdiff train {self.preset} --out {out} --resume"
        try:
            result = runs.run(out, state, data, save_every=self.save_every)
        except KeyboardInterrupt:
            print(f"interrupted after step {state.step}; continue with: {command}")
            raise
        if result.stopped_by is not None:
            print(f"stopped after step {result.step}; continue with: {command}")
            return 128 + result.stopped_by
        if result.evaluation is not None:
            print(f"held-out bits/dim of the averaged weights, in {out}:")
            print(TABLE_HEAD, format_row(result.evaluation), sep="\n")
        return 0


def _build(chosen: "Preset", first_stage: str | None) -> "Model":
    """Build the model of a preset, with its trained first stage if there is one."""
    from ..checkpoints import load

    model = chosen.build()
    if first_stage is not None:
        model.take_first_stage(load(first_stage))
    model.check_trainable()
    return model
