"""Pickles that run a program when they are read by `pickle.load`, in every file that fastdiff reads."""

import builtins
import io
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastdiff
from fastdiff.data import load_dataset

from .fault import Attempt, Tries, fault, only_errors_of_users
from .rewriting import rewrite
from .subjects import small_model


class Payload:
    """Pickles to a call of a function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def payloads(mark: Path) -> list[Payload]:
    """Return objects whose unpickling would write the file ``mark``."""
    command = f"echo executed > {mark}"
    return [
        Payload(os.system, command), Payload(subprocess.call, ["touch", str(mark)]), Payload(os.mkdir, str(mark)),
        Payload(builtins.exec, f"open({str(mark)!r}, 'w')"), Payload(builtins.eval, f"open({str(mark)!r}, 'w')"),
        Payload(np.save, str(mark), np.zeros(1)), Payload(np.load, str(mark), None, True),
        Payload(shutil.copy, "/etc/hostname", str(mark)), Payload(io.open, str(mark), "w"),
        Payload(os.mkfifo, str(mark)),
    ]  # fmt: skip


def as_checkpoint(folder: Path, payload: object) -> object:
    path = small_model().save(folder / "model")
    rewrite(path / "model.safetensors", pickle.dumps(payload))
    return fastdiff.load(path)


def as_npz(folder: Path, payload: object) -> object:
    images = np.zeros((2, 8, 8), np.uint8)
    arrays = {"train_images": images, "test_images": images, "train_labels": np.array([payload, 1], object)}
    np.savez(folder / "data.npz", **arrays, test_labels=np.array([0, 1]))
    return load_dataset(str(folder / "data.npz"))


def as_cifar(folder: Path, payload: object) -> object:
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    for name in names:
        (folder / name).write_bytes(pickle.dumps({b"data": payload, b"labels": [1]}, protocol=2))
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        for name in names:
            archive.add(folder / name, f"cifar-10-batches-py/{name}")
    return load_dataset(str(folder / "cifar.tar.gz"))


def as_cifar_folder(folder: Path, payload: object) -> object:
    (folder / "data_batch_1").write_bytes(pickle.dumps(payload))
    return load_dataset(str(folder))


@fault(
    "malicious pickles", "faults 1; ecosystem 8", tries=40, quick=40,
    done="A pickle that calls os.system, exec, open and others is read as a checkpoint, an .npz file and CIFAR-10",
    must_hold="a FastdiffError; nothing is executed and nothing is written",
)  # fmt: skip
def malicious_pickles(tries: Tries):
    kinds = [as_checkpoint, as_npz, as_cifar, as_cifar_folder]
    for attempt in tries:
        mark = tries.folder / f"executed-{attempt.number}"
        yield read(attempt, kinds[attempt.number % 4], mark)


def read(attempt: Attempt, kind: Callable[[Path, object], object], mark: Path) -> str | None:
    wrong: list[str] = []
    chosen = payloads(mark)
    with only_errors_of_users(attempt, kind.__name__, wrong):
        kind(attempt.folder, chosen[attempt.number // 4 % len(chosen)])
        wrong.append(f"try {attempt.number}: {kind.__name__} was read without an error")
    if os.path.lexists(mark) or os.path.lexists(f"{mark}.npy"):
        wrong.append(f"try {attempt.number}: {kind.__name__} was executed")
    return "; ".join(wrong) or None
