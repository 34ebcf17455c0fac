"""What to run in the minutes that are left: groups of tests in order of worth, and a journal of what has happened.

A `Group` is a set of tests that are worth the same. The `Scheduler` takes the groups in order and runs their tests in
batches, each as large as the time allows. A batch is not begun if the time that its first test needs is not left, and
it is stopped where the time ends. How long tests take is learned from those that were run.

The journal is the only state. It has a line for every test that begins and one for every test that ends, written as it
happens, so that a run that is killed loses the tests in progress and nothing else, and the next run continues: tests
that passed or were skipped are not repeated. Tests that failed, or did not end, are repeated once, after everything
else, and then reported.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]
ATTEMPTS = {"run": 2, "compile": 1}
BATCH_SECONDS = 60.0  # of a batch, unless its first test takes longer: what is known is brought up to date after each
START_SECONDS = 12.0  # of the processes of a batch, before any was measured
PATIENCE_FACTOR, PATIENCE_MORE = 3.0, 30.0  # of the estimate of one test, plus these seconds: then a batch hangs


@dataclass(frozen=True)
class Group:
    """Tests that are worth the same.

    Args:
        name: the name, for the journal and for people.
        pattern: a regular expression that matches the identifiers of the tests.
        seconds: estimate of the time of one test, before any of the group was run.
        parallel: whether several tests may run at once. Tests that measure a time may not.
        phase: ``"run"``, or ``"compile"`` to run every call of a benchmark once without timing it.
    """

    name: str
    pattern: str
    seconds: float
    parallel: bool = False
    phase: str = "run"


@dataclass(frozen=True)
class Batch:
    """Tests of one group that are run together, in ``workers`` processes, in about ``estimate`` seconds.

    patience: seconds without a test that begins or ends after which the batch is stopped, since it hangs. lenient:
    whether warnings are no errors, as they may be raised by a version of a library that was never tried.
    """

    group: Group
    tests: tuple[str, ...]
    workers: int
    lenient: bool
    estimate: float
    patience: float


class Journal:
    """Events as lines of JSON in a file that is only ever appended to, also by several processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **more: Any) -> None:
        """Write an event. It begins with a new line, in case that the line before it was torn off."""
        line = "\n" + json.dumps({"event": event, **more}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line.encode())  # one call, so that lines of several processes do not mix
        finally:
            os.close(file)

    @property
    def length(self) -> int:
        """Bytes that were written."""
        return self.path.stat().st_size if self.path.exists() else 0

    def events(self) -> Iterator[Event]:
        """Yield the events in order, without those whose line was torn off."""
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                if line:
                    yield json.loads(line)
            except json.JSONDecodeError:
                continue


class History:
    """What the events of a journal say: attempts and outcomes of tests, and how long they took."""

    def __init__(self, events: Iterator[Event]) -> None:
        self.attempts: Counter[str] = Counter()
        self.outcomes: dict[str, Event] = {}  # the last one of each test
        self.open: set[str] = set()  # begun and not ended
        self.lenient = False
        self._seconds: dict[str, list[float]] = {}
        self._starts: list[float] = []
        for event in events:
            self._read(event)

    def _read(self, event: Event) -> None:
        test, kind = event.get("test", ""), event["event"]
        if kind == "begun":
            self.attempts[test] += 1
            self.open.add(test)
        elif kind == "ended":
            self.open.discard(test)
            self.outcomes[test] = event
            if event["seconds"] is not None:
                self._seconds.setdefault(event["group"], []).append(event["seconds"])
        elif kind == "interrupted":  # not the test's fault
            self.attempts[test] -= 1
            self.open.discard(test)
        elif kind == "lenient":
            self.lenient = True
        elif kind == "batch":
            self._starts.append(event["start"])

    def settled(self, test: str) -> bool:
        """Whether a test passed, or was skipped for a reason that will not go away."""
        return test in self.outcomes and self.outcomes[test]["outcome"] in ("passed", "skipped")

    def seconds_of(self, group: Group) -> float:
        """Mean seconds of a test of a group."""
        known = self._seconds.get(group.name)
        return max(1e-3, sum(known) / len(known)) if known else group.seconds

    @property
    def start_seconds(self) -> float:
        """Mean seconds of a batch that are not its tests': the start of its processes."""
        return sum(self._starts) / len(self._starts) if self._starts else START_SECONDS


class Scheduler:
    """Runs tests in order of worth until the time is over.

    Args:
        groups: the groups, the most valuable first.
        tests: the tests of each group by its name, see `assign`.
        journals: the journal of each phase.
        execute: runs a batch for at most so many seconds, while events "begun" and "ended" go to its phase's journal.
            Returns whether it had to stop the batch, at the end of these seconds or of its patience.
        clock: returns the time in seconds.
        workers: processes at most.
        say: prints a line.
    """

    def __init__(
        self,
        groups: tuple[Group, ...],
        tests: dict[str, list[str]],
        journals: dict[str, Journal],
        execute: Callable[[Batch, float], bool],
        clock: Callable[[], float],
        workers: int,
        say: Callable[[str], None] = print,
    ) -> None:
        self.groups, self.tests, self.journals = groups, tests, journals
        self.execute, self.clock, self.workers, self.say = execute, clock, workers, say
        self.end = -math.inf

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - self.clock()

    def run(self, seconds: float) -> None:
        """Run what fits in so many seconds: all groups in order, then once more what failed."""
        self.end = self.clock() + seconds
        for attempt in range(max(ATTEMPTS.values())):
            for group in self.groups:
                if attempt < ATTEMPTS[group.phase]:
                    while batch := self.next_batch(group, attempt):
                        self._run(batch)

    def waiting(self, group: Group, attempt: int) -> list[str]:
        """The tests of a group that are not settled and were tried so many times."""
        history = self.history(group.phase)
        return [
            test for test in self.tests[group.name] if not history.settled(test) and history.attempts[test] == attempt
        ]

    def next_batch(self, group: Group, attempt: int) -> Batch | None:
        """The next tests of a group, as many as the time allows; None if there are none or none fits."""
        history, tests = self.history(group.phase), self.waiting(group, attempt)
        if not tests:
            return None
        start, each = history.start_seconds, history.seconds_of(group)
        if start + each > self.left:
            return None
        rounds = max(1, int((min(BATCH_SECONDS, self.left) - start) / each))
        at_once = self.workers if group.parallel else 1
        tests = tests[: rounds * at_once]
        workers = min(at_once, len(tests))
        estimate = start + each * -(-len(tests) // workers)
        patience = PATIENCE_FACTOR * (start + each) + PATIENCE_MORE
        return Batch(group, tuple(tests), workers, history.lenient or attempt > 0, estimate, patience)

    def _run(self, batch: Batch) -> None:
        """Run a batch, and write down what the tests' own events do not say."""
        group, journal = batch.group, self.journals[batch.group.phase]
        before = self.history(group.phase)
        allowed, began = self.left, self.clock()
        self.say(f"{self.left:6.0f} s left: {group.name}, {len(batch.tests)} tests, about {batch.estimate:.0f} s")
        stopped = self.execute(batch, allowed)
        elapsed, after = self.clock() - began, self.history(group.phase)
        begun = [test for test in batch.tests if after.attempts[test] > before.attempts[test]]
        ended = [test for test in begun if test not in after.open]
        if stopped and elapsed >= allowed:  # where the time ended
            for test in begun:
                if test in after.open:
                    journal.append("interrupted", test=test)
        elif not begun and not batch.lenient:
            self.say("         no test began: from now on warnings are no errors")
            journal.append("lenient")
        elif not begun:
            for test in batch.tests:
                journal.append("begun", test=test)
        if ended and not stopped:
            own = sum(after.outcomes[test]["seconds"] or 0.0 for test in ended) / batch.workers
            journal.append("batch", group=group.name, start=max(1.0, elapsed - own))
        outcomes = Counter(after.outcomes[test]["outcome"] for test in ended)
        outcomes["stopped"] = len(begun) - len(ended)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
        self.say(f"         {elapsed:.0f} s: {counts or 'nothing'}")

    def history(self, phase: str) -> History:
        """What is known now."""
        return History(self.journals[phase].events())

    def report(self) -> list[str]:
        """What was done, and what is left with the reason, as lines."""
        lines = []
        for group in self.groups:
            history, tests = self.history(group.phase), self.tests[group.name]
            done = sum(history.settled(test) for test in tests)
            failed = [test for test in tests if not history.settled(test) and history.attempts[test]]
            lines.append(f"{group.name}: {done} of {len(tests)} done{f', {len(failed)} failed' if failed else ''}")
            skipped = Counter(
                history.outcomes[test]["reason"] for test in tests
                if history.settled(test) and history.outcomes[test]["outcome"] == "skipped"
            )  # fmt: skip
            lines += [f"    {count} skipped: {reason}" for reason, count in skipped.items()]
            if group.phase == "run":
                reasons: dict[str, list[str]] = {}
                for test in failed:
                    reasons.setdefault(self._reason(history, test), []).append(test.rpartition("::")[2])
                lines += [f"    failed: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
            waiting = len(tests) - done - len(failed)
            if waiting:
                need = history.start_seconds + history.seconds_of(group)
                lines.append(
                    f"    {waiting} left: one needs about {need:.0f} s, and {max(0.0, self.left):.0f} s were left"
                )
        return lines

    @staticmethod
    def _reason(history: History, test: str) -> str:
        times = f"{history.attempts[test]} of {ATTEMPTS['run']} attempts"
        if test in history.outcomes and test not in history.open:
            return f"{history.outcomes[test]['reason']} ({times})"
        return f"it did not end, see log.txt ({times})"

    @property
    def failed(self) -> bool:
        """Whether a test has failed, in phase "run"."""
        history = self.history("run")
        tests = (test for group in self.groups if group.phase == "run" for test in self.tests[group.name])
        return any(history.attempts[test] and not history.settled(test) for test in tests)


def assign(groups: tuple[Group, ...], tests: list[str]) -> dict[str, list[str]]:
    """Give every test to the first group of phase "run" that matches it, and to every one of phase "compile"."""
    found: dict[str, list[str]] = {group.name: [] for group in groups}
    for test in tests:
        matching = [group for group in groups if re.search(group.pattern, test)]
        first = next((group for group in matching if group.phase == "run"), None)
        for group in matching:
            if group is first or group.phase == "compile":
                found[group.name].append(test)
    return found
