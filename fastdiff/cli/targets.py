"""What ``fastdiff train`` is asked to train: a preset, data of the user's own, or a run that is there."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import RUNS, last_checkpoint
from ..data.loading import NOT_SHIPPED
from ..kernels import InvalidValueError
from ..presets import PRESETS, Preset

ENDINGS = (".npz", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Target:
    """What is trained, and where.

    name: of the run. out: its folder. preset: the preset, or None. data: name or path of the user's own data, or None.
    """

    name: str
    out: Path
    preset: Preset | None = None
    data: str | None = None


def find_target(what: str | None, out: Path | None, resume: bool, model: str) -> Target:
    """Return what a word means: the name of a preset, which takes precedence, the folder or the name of a run, or data.

    Args:
        what: the word; None is the preset digits, or with ``resume`` the run in ``out``.
        out: the folder of the run; None chooses ``runs/NAME``.
        resume: whether a run is resumed.
        model: the model for own data.

    Raises:
        InvalidValueError: the word means none of these, or a run that is not to be resumed.
    """
    if what is None and resume and out is not None:
        return Target(_stem(out), out)
    what = "digits" if what is None else what
    if what in PRESETS:
        return Target(what, out or RUNS / what, preset=PRESETS[what])
    for folder in (Path(what), RUNS / what):
        if last_checkpoint(folder) is not None and (resume or folder == Path(what)):
            if not resume:
                raise InvalidValueError(f"{what} is the folder of a run, which --resume continues, and no data")
            return Target(_stem(folder), out or folder)
    if os.path.lexists(what) or what in NOT_SHIPPED:
        name = f"{model}-{_stem(Path(what))}"
        return Target(name, out or RUNS / name, data=what)
    raise InvalidValueError(
        f"there is no preset, file or folder {what!r}; the presets are {', '.join(PRESETS)}"
        + (f", and {RUNS}/ holds no run of this name with a checkpoint" if resume else "")
    )


def _stem(path: Path) -> str:
    """Return the name of a file or folder without the ending of a data set."""
    name = Path(os.path.abspath(path)).name or "root"
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)


def same_data(one: str, other: str) -> bool:
    """Whether two names of data sets are the same, or two paths of the same file or folder."""
    try:
        return one == other or os.path.samefile(one, other)
    except OSError:
        return False
