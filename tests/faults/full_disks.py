"""Full disks: small file systems in memory, filled at random, where checkpoints, metrics and pictures are written."""

import io
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from PIL import Image

import fastdiff
from fastdiff.checkpoints import checkpoints
from fastdiff.cli.main import main
from fastdiff.training import keeping, runs
from fastdiff.training.state import load_training

from .fault import Attempt, NotTried, Outcome, Tries, fault
from .subjects import CONFIG, data, left_behind, run, small_model, whole_lines

ROOM = re.compile(r"\d+ bytes(, \d+ bytes are free)?")


@contextmanager
def disk(folder: Path, kib: int) -> Iterator[Path]:
    """Mount a file system of some KiB at a new folder."""
    place = folder / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        raise NotTried(f"this user may not mount a file system: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=False)


def fill(place: Path, left: int = 0) -> Path:
    """Fill a disk, but for some bytes."""
    file = place / "filling"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize - left
    file.write_bytes(bytes(max(0, free)))
    return file


def command(*arguments: object) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what it prints on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(map(str, arguments)))
    return code, err.getvalue()


def of_a_full_disk(message: str, place: Path) -> list[str]:
    """Return what the message of a full disk lacks: the path, the bytes."""
    return [what for what, is_there in (("the path", str(place) in message), ("the bytes", ROOM.search(message)))
            if not is_there]  # fmt: skip


def training(attempt: Attempt, place: Path) -> list[str]:
    """A run with a checkpoint every other step, on a disk that is full at some time."""
    out, wrong = place / "run", []
    fill(place, attempt.random.choice([10_000, 60_000, 150_000, 250_000, 400_000, 10**9]))
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            run(out, save_every=2, evaluations=3, pictures=True)
    except fastdiff.FastdiffError as error:
        wrong += of_a_full_disk(str(error), place)
    if left_behind(place):
        wrong.append(f"left {left_behind(place)}")
    for path in checkpoints(out):
        load_training(path)
    for name in ("best", "model", "rescue"):
        if (out / name).exists():
            fastdiff.load(out / name)
    for picture in out.rglob("*.png"):
        with Image.open(picture) as image:
            image.load()
    whole_lines(out / "metrics.jsonl")
    return wrong


def metrics(attempt: Attempt, place: Path) -> list[str]:
    """A run whose disk is full for some steps: its lines wait."""
    full, free = sorted(attempt.random.sample(range(1, 11), 2))
    flush, every = keeping.MetricsLog.flush, keeping.LOG_EVERY

    def with_a_full_disk(log, report):
        if report.step == full:
            fill(place)
        if report.step == free:
            (place / "filling").unlink()
        return flush(log, report)

    keeping.MetricsLog.flush, keeping.LOG_EVERY = with_a_full_disk, 1
    try:
        with redirect_stderr(io.StringIO()):
            run(place / "run", save_every=12)
    finally:
        keeping.MetricsLog.flush, keeping.LOG_EVERY = flush, every
    steps = [row["step"] for row in whole_lines(place / "run" / "metrics.jsonl") if row["event"] == "train"]
    return [] if steps == list(range(1, 13)) else [f"lines of the steps {steps}"]


def model_save(attempt: Attempt, place: Path) -> list[str]:
    """A model that is saved over an older one."""
    model, path = small_model(), place / "model"
    model.save(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    fill(place, attempt.random.randrange(sum(map(len, before.values())) - 5000))
    try:
        model.save(path, record={"second": True})
        return ["it was saved"]
    except fastdiff.FastdiffError as error:
        wrong = of_a_full_disk(str(error), place)
    fastdiff.load(path)
    if {file.name: file.read_bytes() for file in path.iterdir()} != before or left_behind(place):
        wrong.append("the older one has changed, or something is left")
    return wrong


def sample_out(attempt: Attempt, place: Path) -> list[str]:
    """``fastdiff sample --out`` over an older picture."""
    path, model = place / "samples.png", small_model().save(attempt.folder / "model")
    arguments = ("sample", model, "--n", 2, "--steps", 2, "--out", path)
    assert command(*arguments)[0] == 0
    before = path.read_bytes()
    fill(place)
    code, message = command(*arguments, "--overwrite")
    wrong = of_a_full_disk(message, place) + ([f"exit code {code}"] if code != 2 else [])
    if path.read_bytes() != before or left_behind(place):
        wrong.append("the older picture has changed, or something is left")
    return wrong


def check(attempt: Attempt, place: Path) -> list[str]:
    """``fastdiff check``, which writes nothing."""
    for name in "ab":
        Image.new("L", (8, 8)).save(place / f"{name}.png")
    fill(place)
    code, message = command("check", place)
    return [] if code == 0 else [f"exit code {code}: {message}"]


def start(attempt: Attempt, place: Path) -> list[str]:
    """A run that is started, and one that is resumed, on a disk without a byte: an error, or it goes on."""
    run(place / "old", save_every=6)
    fill(place)
    wrong = []
    try:
        runs.start(place / "new", small_model, CONFIG, data())
    except fastdiff.FastdiffError as error:
        wrong += [] if str(place) in str(error) else ["the path"]
    try:
        runs.resume(place / "old", {})
    except fastdiff.FastdiffError as error:
        wrong += of_a_full_disk(str(error), place)
    load_training(place / "old" / "step-00000012")
    whole_lines(place / "old" / "metrics.jsonl")
    return wrong


@fault(
    "full disks", "faults 2.6; ecosystem 4", tries=24, quick=6,
    done="A file system of 64 KiB to 2 MiB is full while checkpoints, metrics, pictures and models are written, a run "
    "starts or is resumed, and data are checked",
    must_hold="the message names the path and the bytes; older files stay whole; nothing partial is left; metrics wait",
)  # fmt: skip
def full_disks(tries: Tries) -> Iterator[Outcome]:
    stages = [training, metrics, model_save, sample_out, check, start]
    for attempt in tries:
        stage = stages[attempt.number % 6]
        kib = attempt.random.choice([64, 128, 256, 512, 1024, 2048]) if stage in (training, check) else 2048
        with disk(attempt.folder, kib) as place:
            wrong = stage(attempt, place)
        yield f"try {attempt.number}, {stage.__name__}, {kib} KiB: {'; '.join(wrong)}" if wrong else None
