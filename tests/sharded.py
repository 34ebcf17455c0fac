"""The results of `sharded_run` in two, three and four processes, for the tests of sampling and of evaluation."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from lengths import usually
from processes import launch
from tiny import images, small

COUNTS = usually([2], [2, 3, 4])  # of processes
SCRIPT = Path(__file__).with_name("sharded_run.py")


def write_inputs(folder: Path) -> None:
    """Write what the commands read: a model, and images."""
    small().save(folder / "model")
    np.savez(folder / "few.npz", levels=17, train_images=images(2).numpy(), test_images=images(7).numpy())


@cache
def results(count: int) -> list[dict]:
    """Return the results of all cases by rank."""
    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name))
        ended = launch([SCRIPT, name], count)
        assert [one.returncode for one in ended] == [0] * count, [one.stderr for one in ended]
        return [torch.load(Path(name) / f"{rank}.pt") for rank in range(count)]
