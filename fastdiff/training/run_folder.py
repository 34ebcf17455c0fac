"""The checkpoints in the folder of a run: commits that keep what is good, the best by the bound, and what resume reads.

All of it is for the one process that holds the lock of the folder (`lock.py`). ``step-00001000/`` are the checkpoints,
``best/`` is the model with the lowest bound, ``rescue/`` holds averaged weights where a whole checkpoint did not fit on
the disk, and ``damaged-step-00001000/`` is a checkpoint that could not be read.
"""

import errno
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..checkpoints import CheckpointError, checkpoint_path, checkpoints
from ..io import files, folders
from ..models import Model

BEST, RESCUE, DAMAGED = "best", "rescue", "damaged-"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prune(out: Path, keep: int) -> None:
    """Remove the complete checkpoints of a run but the newest ``keep`` >= 1. One without a manifest does not count."""
    for path in checkpoints(out)[: -max(1, keep)]:
        files.remove(path)


def sweep(out: Path) -> None:
    """Remove what killed saves have left in the folder of a run: temporary folders, and checkpoints without a manifest.

    Replacements that were interrupted are finished.
    """
    folders.sweep(out)
    complete = set(checkpoints(out))
    for path in out.glob("step-*"):
        if path.name.removeprefix("step-").isdigit() and path.is_dir() and path not in complete:
            files.remove(path)


def commit(
    out: Path,
    step: int,
    save: Callable[[Path], object],
    rescue: Callable[[Path], object],
    keep: int = 1,
    last: bool = False,
) -> Path | None:
    """Write the checkpoint of a step, and remove the older ones but ``keep`` once it is complete.

    On a full disk older checkpoints give way to it, the newest of them excepted. Where it still does not fit, training
    goes on, with a warning. The last checkpoint of a process is replaced by the averaged weights if they fit.

    Args:
        out: the folder of the run.
        step: number of steps done.
        save: writes the whole checkpoint to a path.
        rescue: writes the averaged weights alone, as a model, to a path.
        keep: number of checkpoints to keep, >= 1.
        last: no later commit will follow.

    Returns:
        The checkpoint; None if it could not be written and another commit will follow.

    Raises:
        CheckpointError: the last checkpoint could not be written. The message names the path, the bytes needed and
            free, and what was saved instead.
    """
    path = checkpoint_path(out, step)
    try:
        _save(out, path, save)
    except CheckpointError as error:
        if not last:
            _warn(f"{error}; training goes on, and the next checkpoint is tried at its time")
            return None
        raise CheckpointError(f"{error}; {_rescued(out, step, rescue)}") from error
    prune(out, keep)
    return path


def _save(out: Path, path: Path, save: Callable[[Path], object]) -> None:
    try:
        save(path)
    except CheckpointError as error:
        full = isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
        if not full or len(checkpoints(out)) < 2:
            raise
        _warn(f"{error}; older checkpoints are removed to make room")
        prune(out, 1)
        save(path)


def _rescued(out: Path, step: int, rescue: Callable[[Path], object]) -> str:
    """Save the averaged weights if they fit; say what there is now."""
    earlier = checkpoints(out)
    resume = f"the run can be resumed from {earlier[-1]}" if earlier else "there is no checkpoint to resume from"
    try:
        rescue(out / RESCUE)
    except CheckpointError as error:
        return f"the averaged weights alone could not be saved either ({error}); {resume}"
    return f"the averaged weights of step {step} alone are in {out / RESCUE}, for fastdiff.load; {resume}"


def keep_best(out: Path, model: Model, bpd: float, step: int) -> bool:
    """Write the model to ``best/`` if its bound is finite and lower than that of the one there; return whether it was.

    One that cannot be written is a warning: the one before stays.
    """
    best = best_bpd(out)
    if not math.isfinite(bpd) or (best is not None and bpd >= best):
        return False
    try:
        model.save(out / BEST, record={"step": step, "bpd": bpd})
    except CheckpointError as error:
        _warn(str(error))
        return False
    return True


def best_bpd(out: Path) -> float | None:
    """Return the bound of the best model so far; None if there is none that can be read."""
    try:
        folders.check_folder(out / BEST)
        bpd = json.loads((out / BEST / "config.json").read_bytes())["record"]["bpd"]
    except (CheckpointError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return bpd if isinstance(bpd, float) and math.isfinite(bpd) else None


def newest_loadable(out: Path) -> Path | None:
    """Return the newest checkpoint of a run whose files are whole; None if there is no checkpoint.

    Damaged ones before it are reported on stderr and renamed to ``damaged-step-...``, so that they are not the newest
    for others. This is for resuming alone: `fastdiff.load` of a run reports a damaged checkpoint as an error.

    Raises:
        CheckpointError: all are damaged. The message names the file of the newest one; nothing is renamed.
    """
    damaged: list[tuple[Path, CheckpointError]] = []
    for path in reversed(checkpoints(out)):
        try:
            folders.check_folder(path)
        except CheckpointError as error:
            damaged.append((path, error))
            continue
        for other, error in damaged:
            _set_aside(other)
            _warn(f"{error}; the run is resumed from {path} instead, and {other.name} is now {DAMAGED}{other.name}")
        return path
    if damaged:
        raise damaged[0][1]
    return None


def _set_aside(path: Path) -> None:
    target = path.with_name(f"{DAMAGED}{path.name}")
    if os.path.lexists(target):
        files.remove(target)
    try:
        os.rename(path, target)
    except OSError as error:
        raise CheckpointError(f"{path} is damaged and cannot be renamed: {error}") from error


def _warn(message: str) -> None:
    print(f"fastdiff: warning: {message}", file=sys.stderr)
