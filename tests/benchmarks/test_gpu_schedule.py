"""The order, the budget and the memory of `gpu_run`, with tests that only advance a clock."""

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu_schedule import ATTEMPTS, Batch, Group, History, Journal, Scheduler, assign

BEHAVIOURS = ("pass", "skip", "fail", "fail once", "hang", "crash", "break")
GROUPS = (
    Group("once", "^a", 4.0, parallel=True),
    Group("compile", "^b", 5.0, parallel=True, phase="compile"),
    Group("speed", "^b", 6.0),
    Group("rest", "", 3.0),
)


class KilledError(Exception):
    """Somebody ended the run."""


@dataclass
class World:
    """Tests that behave in some way and take some seconds, a clock, and what began.

    start: seconds before the first test of a batch begins. collects: whether tests can be collected at all: not at
    all, only where warnings are no errors, or always. kills: times at which somebody ends the run.
    """

    behaviour: dict[str, str]
    seconds: dict[str, float]
    start: float = 2.0
    collects: str = "always"
    kills: list[float] = field(default_factory=list)
    time: float = 0.0
    begun: list[tuple[str, str]] = field(default_factory=list)  # phase and test

    def clock(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        """Time passes, unless somebody ends the run before."""
        for kill in self.kills:
            if self.time < kill <= self.time + seconds:
                self.time = kill
                self.kills.remove(kill)
                raise KilledError
        self.time += seconds

    def scheduler(self, folder: Path, groups=GROUPS, workers=3, say=lambda line: None) -> Scheduler:
        journals = {phase: Journal(folder / f"{phase}.jsonl") for phase in ATTEMPTS}
        execute = lambda batch, seconds: self.execute(batch, seconds, journals[batch.group.phase])  # noqa: E731
        return Scheduler(groups, assign(groups, sorted(self.seconds)), journals, execute, self.clock, workers, say)

    def execute(self, batch: Batch, seconds: float, journal: Journal) -> bool:
        """Each of the processes of a batch runs its share, one after the other here; they end together."""
        began, took = self.time, []
        for k in range(batch.workers):
            self.time = began
            took.append(self.share(batch, k, began + seconds, journal))
        self.time = max(end for end, _ in took)
        return any(stopped for _, stopped in took)

    def share(self, batch: Batch, k: int, end: float, journal: Journal) -> tuple[float, bool]:
        """Return when one process ended, and whether it had to be stopped."""
        self.advance(min(self.start, end - self.time))
        if self.time >= end:
            return end, True
        if self.collects == "never" or (self.collects == "leniently" and not batch.lenient):
            return self.time, False
        for test in batch.tests[k :: batch.workers]:
            journal.append("begun", test=test)
            self.begun.append((batch.group.phase, test))
            behaviour, seconds = self.behaviour[test], self.seconds[test]
            until = min(
                end, self.time + (batch.patience if behaviour == "hang" or seconds > batch.patience else seconds)
            )
            if until < self.time + seconds or behaviour == "hang":
                self.advance(until - self.time)
                return self.time, True
            self.advance(seconds)
            if behaviour == "crash":
                return self.time, False
            first = self.begun.count((batch.group.phase, test)) == 1
            outcome = {"pass": "passed", "skip": "skipped", "fail once": "failed" if first else "passed"}
            told = outcome.get(behaviour, "failed")
            journal.append("ended", test=test, group=batch.group.name, outcome=told, seconds=seconds, reason="because")
            if behaviour == "break":  # the process ends, and leaves the rest of its share
                return self.time, False
        return self.time, False


@st.composite
def worlds(draw, behaviours=BEHAVIOURS):
    names = draw(st.lists(st.sampled_from([f"{a}{k}" for a in "abc" for k in range(6)]), unique=True, min_size=1))
    behaviour = {name: draw(st.sampled_from(behaviours)) for name in names}
    seconds = {name: draw(st.floats(0.1, 30.0)) for name in names}
    return World(
        behaviour, seconds, draw(st.floats(0.1, 15.0)), draw(st.sampled_from(["always", "leniently", "never"]))
    )


@given(worlds(), st.floats(1.0, 400.0))
def test_the_time_is_never_exceeded(tmp_path_factory, world, budget):
    """A batch is stopped where the time ends, and does not begin where its first test would not fit."""
    world.scheduler(tmp_path_factory.mktemp("run")).run(budget)
    assert world.time <= budget + 1e-6


@given(worlds(("pass", "skip", "fail", "fail once")), st.floats(1.0, 400.0))
def test_tests_begin_in_the_order_of_their_worth(tmp_path_factory, world, budget):
    """One after the other: those of a parallel batch begin together. Repetitions come after everything else."""
    world.collects = "always"
    scheduler = world.scheduler(tmp_path_factory.mktemp("run"), workers=1)
    scheduler.run(budget)
    order = [(group.phase, test) for group in GROUPS for test in scheduler.tests[group.name]]
    firsts = [order.index(each) for each in dict.fromkeys(world.begun)]
    assert firsts == sorted(firsts)
    counts = Counter(world.begun)
    repeated = [each for k, each in enumerate(world.begun) if each in world.begun[:k]]
    if repeated:
        assert max(map(world.begun.index, counts)) < len(world.begun) - len(repeated)


@given(worlds(), st.lists(st.floats(5.0, 100.0), max_size=4), st.lists(st.floats(1.0, 300.0), max_size=3))
def test_a_resumed_run_repeats_nothing_but_failures_and_those_once(tmp_path_factory, world, budgets, kills):
    """However often it was killed or its time was over: a test that has ended well is not run again."""
    folder, world.kills = tmp_path_factory.mktemp("run"), sorted(kills)
    done: set[tuple[str, str]] = set()
    for budget in [*budgets, *[20_000.0] * (len(kills) + 1)]:
        before, scheduler = len(world.begun), world.scheduler(folder)
        with contextlib.suppress(KilledError):
            scheduler.run(budget)
        assert not done & set(world.begun[before:])
        for phase in ATTEMPTS:
            history = scheduler.history(phase)
            done |= {(phase, test) for test in history.outcomes if history.settled(test)}
    history = scheduler.history("run")
    good = {"pass", "skip", "fail once"} if world.collects != "never" else set()
    for test, behaviour in world.behaviour.items():
        assert history.settled(test) or history.attempts[test] == ATTEMPTS["run"]
        assert history.attempts[test] <= ATTEMPTS["run"]
        if not kills:  # a kill counts as an attempt of the tests in progress
            assert history.settled(test) == (behaviour in good)


@given(worlds(("pass",)), st.floats(3.0, 200.0))
def test_a_killed_run_loses_no_more_than_the_tests_in_progress(tmp_path_factory, world, kill):
    world.collects, world.kills = "always", [kill]
    folder = tmp_path_factory.mktemp("run")
    scheduler = world.scheduler(folder)
    try:
        scheduler.run(1000.0)
    except KilledError:
        history = scheduler.history("run")
        lost = [test for phase, test in world.begun if phase == "run" and not history.settled(test)]
        assert len(lost) <= 1  # of the process in progress
        before = len(world.begun)
        world.scheduler(folder).run(1000.0)
        again = [each for each in world.begun[before:] if each in world.begun[:before] and each[0] == "run"]
        assert again == [("run", test) for test in lost]
    assert all(world.scheduler(folder).history("run").settled(test) for test in world.seconds)


def test_the_time_of_tests_is_learned_and_fills_what_is_left(tmp_path):
    """The estimate says 6 s, the tests take 0.5 s: with 30 s left after the start all of them are run."""
    world = World({f"b{k}": "pass" for k in range(20)}, {f"b{k}": 0.5 for k in range(20)})
    scheduler = world.scheduler(tmp_path, GROUPS[2:])
    scheduler.run(30.0)
    assert all(scheduler.history("run").settled(test) for test in world.seconds)
    assert scheduler.history("run").seconds_of(GROUPS[2]) == pytest.approx(0.5)
    assert scheduler.history("run").start_seconds == pytest.approx(2.0)


def test_a_test_that_the_end_of_the_time_stopped_has_not_failed(tmp_path):
    """It was thought to fit: 6 s, where 40 s were needed. It does not count as an attempt, and is run again."""
    world = World({"b0": "pass"}, {"b0": 40.0})
    scheduler = world.scheduler(tmp_path, GROUPS[2:])
    scheduler.run(20.0)
    assert world.begun == [("run", "b0")]
    assert scheduler.history("run").attempts["b0"] == 0
    assert not scheduler.failed
    scheduler.run(100.0)
    assert scheduler.history("run").settled("b0")


def test_what_is_left_is_reported_with_the_reason(tmp_path):
    behaviour = {"a0": "pass", "a1": "skip", "b0": "fail", "b1": "hang", "c0": "pass"}
    world = World(behaviour, {"a0": 1.0, "a1": 1.0, "b0": 1.0, "b1": 1.0, "c0": 500.0})
    scheduler = world.scheduler(tmp_path, (GROUPS[0], GROUPS[2], Group("rest", "", 500.0)))
    scheduler.run(400.0)
    text = "\n".join(scheduler.report())
    assert "once: 2 of 2 done" in text
    assert "1 skipped: because" in text
    assert "speed: 0 of 2 done, 2 failed" in text
    assert "failed: b0: because (2 of 2 attempts)" in text
    assert "failed: b1: it did not end, see log.txt (2 of 2 attempts)" in text
    assert "rest: 0 of 1 done" in text
    assert "1 left: one needs about" in text
    assert scheduler.failed


def test_warnings_are_no_errors_once_nothing_could_be_collected(tmp_path):
    """As where a version of PyTorch raises a warning at its import; and where that does not help, the tests failed."""
    for collects, attempts in (("leniently", 1), ("never", 2)):
        world = World({"c0": "pass", "c1": "pass"}, {"c0": 1.0, "c1": 1.0}, collects=collects)
        folder = tmp_path / collects
        folder.mkdir()
        scheduler = world.scheduler(folder)
        scheduler.run(500.0)
        assert all(scheduler.history("run").settled(test) == (collects == "leniently") for test in world.seconds)
        assert scheduler.failed == (collects == "never")
        assert all(scheduler.history("run").attempts[test] == attempts for test in world.seconds)


def test_a_torn_line_of_the_journal_is_lost_and_no_other(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("begun", test="a")
    with journal.path.open("a") as file:
        file.write('{"event": "ended", "te')
    journal.append("begun", test="b")
    assert [event["test"] for event in journal.events()] == ["a", "b"]
    assert History(journal.events()).open == {"a", "b"}


def test_every_test_has_one_group_and_may_be_compiled_before():
    assert assign(GROUPS, ["a1", "b1", "c1"]) == {"once": ["a1"], "compile": ["b1"], "speed": ["b1"], "rest": ["c1"]}
