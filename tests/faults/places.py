"""Where things are saved: links, folders without rights, names that cannot be, other people's files."""

import os
import stat
from pathlib import Path

import fastdiff
from fastdiff.io.files import ASIDE
from fastdiff.training import run_folder, runs

from .fault import Attempt, NotTried, Tries, fault
from .subjects import CONFIG, checkpoint, data, ended, forked, left_behind, run, small_model

NOBODY = 65534


@fault(
    "saving over symbolic links", "faults 2.7", tries=24, quick=2,
    done="A model is saved, several times, through a link to a checkpoint, a link to a link, or a link to nothing",
    must_hold="links stay links, each load gives the last weights, and after the checkpoint is removed nothing loads",
)  # fmt: skip
def links(tries: Tries):
    for attempt in tries:
        target, link, wrong = attempt.folder / "target", attempt.folder / "apart" / "link", []
        link.parent.mkdir()
        link.symlink_to(os.path.relpath(target, link.parent) if attempt.number % 2 else target)
        path = link
        if attempt.number % 3 == 0:
            path = attempt.folder / "second"
            path.symlink_to(link)
        if attempt.number % 4 < 2:
            small_model().save(target)
        for number in range(3):
            model = small_model()
            with_number(model, number)
            model.save(path)
            if not (link.is_symlink() and path.is_symlink()) or value_of(path) != number or value_of(target) != number:
                wrong.append(f"save {number}")
        for file in target.iterdir():
            file.unlink()
        target.rmdir()
        try:
            fastdiff.load(path)
            wrong.append("something was loaded after all")
        except fastdiff.FastdiffError:
            pass
        yield f"try {attempt.number}: {wrong}" if wrong or left_behind(attempt.folder) else None


def with_number(model, number: int) -> None:
    for parameter in model.parameters():
        parameter.data.fill_(number)


def value_of(path: Path) -> float:
    return float(next(iter(fastdiff.load(path).parameters())).detach().flatten()[0])


def as_nobody(attempt: Attempt) -> None:
    """Start a run, resume one and save a model in a folder where this user may not write."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    found = []
    closed = attempt.folder / "closed"
    for work in (
        lambda: runs.start(closed / "new", small_model, CONFIG, data()),
        lambda: runs.start(closed, small_model, CONFIG, data()),
        lambda: runs.resume(attempt.folder / "old", {}),
        lambda: small_model().save(closed / "model"),
    ):
        try:
            work()
            found.append("it was written")
        except fastdiff.FastdiffError as error:
            if str(attempt.folder) not in str(error):
                found.append(f"the path is not named: {error}")
    if found:
        raise AssertionError(found)


@fault(
    "folders without the right to write", "ecosystem 24", tries=10, quick=2,
    done="A run is started and resumed, and a model is saved, by a user who may not write in the folder",
    must_hold="an error that names the path, at the start, before any step",
)  # fmt: skip
def read_only(tries: Tries):
    if os.geteuid():
        raise NotTried("only root may become another user")
    for folder in (tries.folder, *tries.folder.parents):  # so that the other user reaches it
        if stat.S_IMODE(folder.stat().st_mode) & 0o055 != 0o055:
            folder.chmod(0o755)
    for attempt in tries:
        attempt.folder.chmod(0o755)
        run(attempt.folder / "old")
        (attempt.folder / "closed").mkdir()
        printed = attempt.folder / "printed"
        code = ended(forked(lambda attempt=attempt: as_nobody(attempt), printed))
        yield None if code == 0 else f"try {attempt.number}: {code} {printed.read_text()}"


@fault(
    "rights of what is saved", "ecosystem 24", tries=12, quick=1,
    done="A checkpoint, a run and a picture are written under a umask of 022, 002 or 077",
    must_hold="files and folders have the rights that the umask leaves, 0644 and 0755 under 022",
)  # fmt: skip
def rights(tries: Tries):
    for attempt in tries:
        mask = [0o022, 0o002, 0o077][attempt.number % 3]
        former = os.umask(mask)
        try:
            checkpoint(attempt.folder / "step")
            run(attempt.folder / "run")
        finally:
            os.umask(former)
        paths = [path for path in attempt.folder.rglob("*") if path.name != ".lock"]
        wrong = [
            f"{path.name} {stat.S_IMODE(path.stat().st_mode):o}" for path in paths
            if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~mask
        ]  # fmt: skip
        yield f"try {attempt.number}: {wrong}" if wrong else None


def start(path: Path) -> None:
    runs.start(path / "run", small_model, CONFIG, data())


@fault(
    "names that cannot be", "faults 2.14", tries=24, quick=8,
    done="Models are saved to and loaded from, and runs started in, names of 256 to 5000 characters, with null "
    "characters, below files and devices",
    must_hold="a FastdiffError; nothing is left",
)  # fmt: skip
def names(tries: Tries):
    for attempt in tries:
        (attempt.folder / "file").write_text("")
        choices = ["x" * attempt.random.randint(256, 5000), "a\0b", "file/x", "file", "x" * 250, "/dev/null/x", "\0"]
        path = attempt.folder / choices[attempt.number % len(choices)]
        wrong = []
        for work in (lambda path: small_model().save(path), fastdiff.load, start):
            try:
                work(path)
                if len(path.name) != 250:  # a name that is only too long with something before it
                    wrong.append("it was taken")
            except fastdiff.FastdiffError:
                pass
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
        yield f"try {attempt.number}: {wrong}" if wrong or left_behind(attempt.folder) else None


@fault(
    "what killed saves have left", "faults 2.17; ecosystem 3", tries=20, quick=1,
    done="A run's folder holds what killed saves leave, beside files of the user's with similar names, and is resumed",
    must_hold="the first are gone, the second are as they were",
)  # fmt: skip
def leftovers(tries: Tries):
    theirs = [".tmp-notes", ".old-thesis", "tmp-x-01234567", ".tmp-a-0123456z", "step-notes", "notes.txt"]
    for attempt in tries:
        out = attempt.folder / "run"
        run(out)
        for name in theirs:
            (out / name).write_text("mine")
        for _ in range(attempt.random.randint(1, 5)):
            kind = attempt.random.choice(["step-00000007", "samples.png", "model", "best"])
            (out / f".tmp-{kind}-{attempt.random.getrandbits(32):08x}").mkdir()
        (out / "step-00000003").mkdir()
        checkpoint(out / "other")
        os.rename(out / "other", out / f"{ASIDE}best")
        run_folder.sweep(out)
        state = runs.resume(out, {})
        kept = all((out / name).read_text() == "mine" for name in theirs)
        good = kept and not left_behind(out / "x") and state.step == 12 and not (out / "step-00000003").exists()
        left = [name for name in left_behind(out) if name not in theirs]
        yield None if good and not left else f"try {attempt.number}: kept {kept}, left {left}"
