"""Trains in one of several processes, for test_several_processes.py: ``STEPS OUT.npz``, or ``run FOLDER MAX_STEPS``."""

import sys
from pathlib import Path
from unittest.mock import patch

import attrs
import numpy as np
import torch
from tiny import DATA, SMALL, images

from fastdiff.data import Dataset
from fastdiff.io import processes
from fastdiff.models import VDM, VDMConfig, diffusion_sampling
from fastdiff.training import TrainConfig, TrainState, keeping, runs, train

CONFIG = TrainConfig(
    data="digits", max_steps=200, batch_size=16, warm_up=5, shift=0.5, flip=0.2, ema=0.9, accumulate=2, decay="constant"
)


def model() -> VDM:
    """Whatever is drawn takes part: dropout, labels, augmentation; the endpoints of the schedule are learned."""
    network = attrs.evolve(SMALL, dropout=0.3, max_groups=4)
    return VDM(VDMConfig(**DATA, num_classes=10, augmented=True, gamma_0=-8.0, network=network))


def data() -> Dataset:
    return Dataset("images", 17, 10, images(50), torch.arange(50) % 10, images(21, seed=2), torch.arange(21) % 10)


def weights(state: TrainState) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in state.model.named_parameters()}


def train_some(steps: int, out: Path) -> None:
    """Write the loss of every step, and the weights and averaged weights after the steps at which they are compared."""
    torch.manual_seed(0)
    state, losses, kept = TrainState(model(), CONFIG), [], {}
    for report in train(state, data()):
        losses.append(float(processes.total(report.loss.double()) / processes.count()))
        if report.step in (3, 20, 60, 200):
            kept |= {f"{report.step}/{name}": value.copy() for name, value in weights(state).items()}
            averaged = state.averaged.named_parameters()
            kept |= {f"{report.step}/ema/{name}": value.numpy().copy() for name, value in averaged}
        if report.step == steps:
            break
    if processes.is_first():
        np.savez(out, losses=np.array(losses), **kept)


def train_run(folder: Path, max_steps: int) -> None:
    config = attrs.evolve(CONFIG, max_steps=max_steps)
    if folder.exists():
        state = runs.resume(folder, {"max_steps": max_steps})
    else:
        state = runs.start(folder, model, config, data())
    options = runs.RunOptions(save_every=5, evaluations=1, pictures=False, progress=False)
    with patch.object(keeping, "NUM_SAMPLES", 4), patch.object(diffusion_sampling, "DEFAULT_STEPS", 3):
        runs.run(folder, state, data(), options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined("cpu"):
        if sys.argv[1] == "run":
            train_run(Path(sys.argv[2]), int(sys.argv[3]))
        else:
            train_some(int(sys.argv[1]), Path(sys.argv[2]))
