"""Wrong arguments, one at a time, of the public functions."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

import fastdiff
from fastdiff import kernels

from .calls_of_models import bounds, data_sets, models, other_settings, settings, training
from .calls_of_operations import Call, operations, other_operations
from .fault import Attempt, Outcome, Tries, fault


@cache
def calls() -> list[tuple[str, Call, str, Any]]:
    """Return every wrong call: the function's name, the call, the argument, the wrong value."""
    groups: dict[str, Call] = {}
    for group in (operations, other_operations, models, bounds, settings, other_settings, data_sets, training):
        groups |= group()
    return [
        (name, call, argument, value) for name, call in groups.items() for argument, values in call.wrong.items()
        for value in values
    ]  # fmt: skip


def shown(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:60]


@fault(
    "wrong calls", "faults 1, 2.9, 2.14, 2.15; ecosystem 9", tries=1500, quick=150,
    done="A public function is called with one wrong argument: type, NaN, infinite, negative, huge, dtype, shape, "
    "device, label, path",
    must_hold="a FastdiffError, or Python's TypeError for a keyword that does not exist; nothing passes silently",
)  # fmt: skip
def wrong_calls(tries: Tries) -> Iterator[Outcome]:
    found = calls()
    spread = next(step for step in range(37, 10**6) if len(found) % step and step % 2 and _coprime(step, len(found)))
    for attempt in tries:
        yield wrong_call(attempt, *found[attempt.number * spread % len(found)])


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def wrong_call(attempt: Attempt, name: str, call: Call, argument: str, value: Any) -> Outcome:
    where = f"try {attempt.number}: {name}({argument}={shown(value)})"
    try:
        call.function(**{**call.right, argument: value})
    except kernels.FastdiffError:
        return None
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            return None
        return f"{where} raised TypeError: {str(error)[:150]}"
    except Exception as error:
        return f"{where} raised {type(error).__name__}: {str(error)[:150]}"
    return f"{where} was accepted"


@fault(
    "right calls", "faults 1", tries=40, quick=10,
    done="The same functions are called with the right arguments, beside which the wrong ones are tried",
    must_hold="they work",
)  # fmt: skip
def right_calls(tries: Tries) -> Iterator[Outcome]:
    unique = {name: call for name, call, _, _ in calls() if name != "runs.resume"}
    names = sorted(unique)
    for attempt in tries:
        name = names[attempt.number % len(names)]
        try:
            unique[name].function(**unique[name].right)
            yield None
        except fastdiff.FastdiffError as error:
            again = name == "runs.start" and "in use" in str(error)
            yield None if again else f"try {attempt.number}: {name}: {error}"
