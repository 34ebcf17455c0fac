"""Which values of a parameter `make test` tries, and which `make slow`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def usually(usual: Iterable[Any], every: Sequence[Any], together: bool = False) -> list[Any]:
    """Return every value of a parameter, those marked as slow that are not among the usual ones.

    Args:
        usual: values that are tried by default; each must be one of ``every``.
        every: all values, for ``pytest.mark.parametrize``.
        together: whether a value is a tuple of the values of several parameters.
    """
    usual = list(usual)
    assert all(value in every for value in usual), usual

    def param(value: Any) -> Any:
        return pytest.param(*(value if together else (value,)), marks=() if value in usual else pytest.mark.slow)

    return [param(value) for value in every]
