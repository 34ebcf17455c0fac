"""Draws samples to folders K/png and K/npz, each in a process that is killed at its file operation number K.

    python kill_samples.py FOLDER REQUEST K ...

A file operation is a write that is synchronised, or a rename. The processes are forked: torch is imported once.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from tiny import small

from fastdiff.io import files
from fastdiff.sampling import sample_to_folder

MODEL = small()


def draw_and_die(path: Path, format: str, at: int, request: dict) -> None:
    """Draw the samples in this process, and kill it at an operation."""
    done = 0

    def dying(operation):
        def call(*arguments):
            nonlocal done
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            operation(*arguments)

        return call

    files.write_synced, os.replace = dying(files.write_synced), dying(os.replace)
    sample_to_folder(MODEL, path, format=format, **request)


def main(folder: Path, request: dict, operations: list[int]) -> None:
    torch.set_num_threads(1)
    for at in operations:
        for format in ("png", "npz"):
            child = os.fork()
            if child == 0:
                draw_and_die(folder / str(at) / format, format, at, request)
                os._exit(0)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), list(map(int, sys.argv[3:])))
