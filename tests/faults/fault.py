"""What a fault is: declared once, with what is done, what must hold, how often it is tried, and the code that tries it.

    @fault("bit flips", "faults 1; ecosystem 5", tries=2000, quick=100,
           done="One random bit of one file of a checkpoint is flipped, and it is loaded",
           must_hold="the file is named in an error")
    def bit_flips(tries):
        for attempt in tries:
            yield ...            # None, or the evidence of a violation

An attempt is a function of the fault's name and its number alone, so that one that failed can be repeated.
"""

import random
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Outcome = str | None  # None, or the evidence of a violation


class NotTried(Exception):
    """This machine cannot try the fault; the message says why."""


class Attempt(NamedTuple):
    """One attempt: its number, its random numbers, and an empty folder of its own."""

    number: int
    random: random.Random
    folder: Path


@dataclass
class Tries:
    """The attempts at one fault, to be iterated over.

    name: of the fault. numbers: of the attempts. folder: for what they share. figures: to be shown beside the result.
    """

    name: str
    numbers: range
    folder: Path
    figures: dict[str, float] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Attempt]:
        for number in self.numbers:
            with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
                yield Attempt(number, random.Random(f"{self.name} {number}"), Path(folder))

    def largest(self, figure: str, value: float) -> None:
        """Keep the largest value of a figure."""
        self.figures[figure] = max(value, self.figures.get(figure, value))

    def count(self, figure: str, more: float = 1) -> None:
        """Add to a figure."""
        self.figures[figure] = self.figures.get(figure, 0) + more


@dataclass(frozen=True)
class Fault:
    """A fault: where it is described, what is done, what must hold, and how often it is tried, in all and in the suite.

    quick = 0: not in the suite. alone: nothing else runs meanwhile, since it measures time.
    """

    name: str
    source: str
    done: str
    must_hold: str
    tries: int
    quick: int
    run: Callable[[Tries], Iterator[Outcome]]
    alone: bool = False


@dataclass
class Result:
    """What became of a fault: how often it was tried, every violation with its evidence, figures, seconds.

    not_tried: why it was not tried at all, or None.
    """

    name: str
    tries: int = 0
    violations: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    not_tried: str | None = None
    seconds: float = 0.0


FAULTS: dict[str, Fault] = {}  # by name, in the order of the modules that declare them


def fault(
    name: str, source: str, *, done: str, must_hold: str, tries: int, quick: int, alone: bool = False
) -> Callable[[Callable[[Tries], Iterator[Outcome]]], Callable[[Tries], Iterator[Outcome]]]:
    """Declare the function below as the fault ``name``."""

    def declare(run: Callable[[Tries], Iterator[Outcome]]) -> Callable[[Tries], Iterator[Outcome]]:
        assert name not in FAULTS, name
        FAULTS[name] = Fault(name, source, done, must_hold, tries, quick, run, alone)
        return run

    return declare


def attempt_all(found: Fault, numbers: range, folder: Path, progress: Callable[[], None] = lambda: None) -> Result:
    """Try a fault. An exception that its code does not expect is a violation too, and ends it."""
    tries, result = Tries(found.name, numbers, folder), Result(found.name)
    try:
        for outcome in found.run(tries):
            result.tries += 1
            if outcome is not None:
                result.violations.append(outcome)
            progress()
    except NotTried as reason:
        result.not_tried = str(reason)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        result.tries += 1
        result.violations.append(
            f"try {numbers[min(result.tries, len(numbers)) - 1]}: {type(error).__name__}: {error} "
            f"({Path(place.filename).name}:{place.lineno})"
        )
    result.figures = tries.figures
    return result


@contextmanager
def only_errors_of_users(attempt: Attempt, what: str, found: list[str]) -> Iterator[None]:
    """Let a `FastdiffError` pass as the right answer; note any other exception in ``found``."""
    from fastdiff.kernels import FastdiffError

    try:
        yield
    except FastdiffError:
        pass
    except Exception as error:
        found.append(f"try {attempt.number}, {what}: {type(error).__name__}: {str(error)[:200]}")
