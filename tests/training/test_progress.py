"""The lines that a run prints where no progress bars are shown."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny import small

from fastdiff.data import Dataset, digits
from fastdiff.evaluation import evaluate
from fastdiff.training import TrainConfig, keeping, progress, runs

AVERAGES = {"loss": "812.3", "bits/dim": "4.321", "lr": "1.0e-03"}
LINE = re.compile(r"step ([\d,]+) of 10,000: loss 812.3, 4.321 bits/dim, (\S+) steps/s, (\S+) left")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, in a list of one number."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def printed(capsys, clock, lines: progress.ProgressLines, seconds: float, first: int = 0) -> list[tuple[str, ...]]:
    """Step, speed and time left of each line over 1000 steps of some seconds each."""
    for step in range(first + 1, first + 1001):
        clock[0] += seconds
        if step % 50 == 0:
            lines.steps(step, AVERAGES)
    found = [LINE.fullmatch(line) for line in capsys.readouterr().err.splitlines()]
    return [match.groups() for match in found if match is not None]


def test_a_line_a_minute(capsys, clock):
    """Averages come every 25 s: a line with the first, then with every third. 9950 steps of 0.5 s are 1:22:55."""
    found = printed(capsys, clock, progress.ProgressLines(10_000), 0.5)
    assert [step for step, *_ in found] == ["50", "200", "350", "500", "650", "800", "950"]
    assert found[0] == ("50", "2", "1:22:55")
    assert found[-1] == ("950", "2", "1:15:25")


def test_a_line_every_so_many_steps(capsys, clock):
    """Also of a resumed run, whose speed and time left are those since then; rounded up to the next averages."""
    found = printed(capsys, clock, progress.ProgressLines(10_000, 7000, 320), 0.125, first=7000)
    assert found == [("7,050", "8", "06:09"), ("7,400", "8", "05:25"), ("7,700", "8", "04:48"), ("8,000", "8", "04:10")]
    assert printed(capsys, clock, progress.ProgressLines(10_000, every=0), 1.0) == []
    assert printed(capsys, clock, progress.ProgressLines(10_000, shown=False), 1.0) == []


def test_evaluations_take_time_but_slow_no_step(capsys, clock):
    """100 steps of a second, and 100 s of evaluation in between: 9900 more steps take twice as many seconds."""
    lines = progress.ProgressLines(10_000, every=100)
    clock[0] += 150.0
    lines.exclude(100.0)
    clock[0] += 50.0
    lines.steps(100, AVERAGES)
    found = LINE.fullmatch(capsys.readouterr().err.strip())
    assert found is not None
    assert found.groups() == ("100", "1", "5:30:00")


def few_digits() -> Dataset:
    """The first images of the digits."""
    data = digits()
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return replace(data, **{part: getattr(data, part)[:8] for part in parts})


def train(out, **options) -> runs.RunResult:
    config = TrainConfig(data="digits", max_steps=4, batch_size=4, warm_up=0)
    state = runs.start(out, small, config, few_digits())
    return runs.run(out, state, few_digits(), runs.RunOptions(evaluations=2, pictures=False, **options))


@pytest.fixture
def _few_samples(monkeypatch):
    monkeypatch.setattr(keeping, "evaluate", lambda *values, **options: evaluate(*values, **options | {"draws": 2}))
    monkeypatch.setattr(keeping, "NUM_SAMPLES", 2)
    monkeypatch.setattr("fastdiff.models.diffusion_sampling.DEFAULT_STEPS", 2)


@pytest.mark.usefixtures("_few_samples")
def test_a_run_prints_lines_in_place_of_bars(tmp_path, capsys):
    result = train(tmp_path / "a", progress=False)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert (out, len(lines)) == ("", 4)
    assert result.evaluation is not None
    assert re.fullmatch(r"step 2 of 4: held-out images \d\.\d{3} ± \d\.\d{3} bits/dim, 2 draws each", lines[0])
    assert re.fullmatch(r"step 4 of 4: loss [\d.]+, [\d.]+ bits/dim, \S+ steps/s, 00:00 left", lines[1])
    assert lines[2] == "evaluating 8 held-out images, 64 draws each, and drawing samples"
    assert lines[3].startswith(f"step 4 of 4: held-out images {result.evaluation.mean:.3f} ± ")
    train(tmp_path / "b", progress=True)
    err = capsys.readouterr().err
    assert ("training digits" in err, "held-out" in err, "left\n" in err) == (True, False, False)


def test_the_first_process_alone_prints(tmp_path, monkeypatch):
    state = runs.start(tmp_path, small, TrainConfig(data="digits", max_steps=4, batch_size=4), few_digits())
    shown = {}
    for first in (True, False):
        monkeypatch.setattr("fastdiff.io.processes.is_first", lambda first=first: first)
        shown[first] = keeping.RunKeeper(tmp_path, state, few_digits(), runs.RunOptions(progress=False)).lines.shown
    assert shown == {True: True, False: False}
