"""Values of another library's configuration: read by type, with everything that does not fit collected in one error."""

import math
from collections.abc import Collection, Mapping
from typing import TypeVar

from ...io.configuration import ConfigError

Settings = Mapping[str, object]
T = TypeVar("T")
LONGEST = 60  # characters of a value in a message


class SettingsReader:
    """Reads a configuration that came from a file, which may hold anything.

    A value that does not fit is noted in ``problems`` and replaced by one that does, so that the others are looked at
    too; `check` raises what was noted.

    Args:
        values: the configuration, with its defaults.
        problems: a list that several readers share.
    """

    def __init__(self, values: Settings, problems: list[str] | None = None) -> None:
        self.values = values
        self.problems: list[str] = [] if problems is None else problems

    def reject(self, name: str, wanted: str) -> None:
        """Note that a value must be something else; ``wanted`` begins with a verb, such as "be 1"."""
        self.problems.append(f"{name} must {wanted}, got {shown(self.values.get(name))}")

    def integer(self, name: str, least: int = 1, most: int | None = None) -> int:
        """Return an integer >= ``least`` and <= ``most``."""
        value = self.values.get(name)
        if type(value) is int and value >= least and (most is None or value <= most):
            return value
        self.reject(name, f"be an integer >= {least}" + (f" and <= {most}" if most is not None else ""))
        return least

    def number(self, name: str, low: float, high: float = math.inf) -> float:
        """Return a number in the open interval from ``low`` to ``high``."""
        value = self.values.get(name)
        if type(value) in (int, float) and low < value < high:  # pyright: ignore[reportOperatorIssue]
            return float(value)  # pyright: ignore[reportArgumentType]
        self.reject(name, f"be a number > {low:g}" + (f" and < {high:g}" if high < math.inf else ""))
        return 0.5 * (low + min(high, low + 1.0))

    def flag(self, name: str) -> bool:
        """Return True or False."""
        value = self.values.get(name)
        if type(value) is not bool:
            self.reject(name, "be true or false")
        return value is True

    def sequence(self, name: str, kind: type[T]) -> list[T]:
        """Return a list of values of one type, not empty; an empty one where it does not fit."""
        value = self.values.get(name)
        if isinstance(value, (list, tuple)) and value and all(type(each) is kind for each in value):
            return list(value)
        self.reject(name, f"be a list of {'integers' if kind is int else 'strings'}")
        return []

    def one_of(self, name: str, known: Mapping[str, T], default: T, why: str = "") -> T:
        """Return what a word stands for."""
        value = self.values.get(name)
        if isinstance(value, str) and value in known:
            return known[value]
        self.reject(name, f"be {among(known)}{why}")
        return default

    def fixed(self, name: str, allowed: Collection[object], why: str = "") -> None:
        """Note a value that is none of ``allowed``; numbers are compared as numbers, and False is no 0."""
        value = self.values.get(name)
        if not any(type(value) in _like(each) and value == each for each in allowed):
            self.reject(name, f"be {among(allowed)}{why}")

    def check(self, where: str, what: str) -> None:
        """Raise what was noted.

        Raises:
            ConfigError: "``where`` describes ``what`` that fastdiff does not have: ...".
        """
        if self.problems:
            raise ConfigError(f"{where} describes {what} that fastdiff does not have: {'; '.join(self.problems)}")


def among(allowed: Collection[object]) -> str:
    """Return values as a choice in words."""
    words = [shown(each) for each in allowed]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def shown(value: object) -> str:
    """Return a value of JSON as a message names it, shortened."""
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, (bool, type(None))) else None
    text = repr(value) if text is None else text
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _like(value: object) -> tuple[type, ...]:
    """Return the types of JSON that can be equal to a value."""
    return (int, float) if type(value) in (int, float) else (type(value),)
