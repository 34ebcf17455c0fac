"""Commands that are printed to be pasted into a shell."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import flag

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def words_of(options: "DataclassInstance") -> list[str]:
    """Return the words of the options of a command that differ from their defaults, those of nested groups too."""
    words: list[str] = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            words += words_of(value)
        elif value is True or value is False:
            words += [] if value == field.default else [flag(field.name) if value else flag("no_" + field.name)]
        elif value != field.default:
            text = str(value)
            words += [f"{flag(field.name)}={text}"] if text.startswith("-") else [flag(field.name), text]
    return words


def command(*words: str) -> str:
    """Return a command of fastdiff as one line, started as this process was."""
    return shlex.join([*_program(), *words])


def _program() -> list[str]:
    """Return the words that start fastdiff: the installed script, the module, or the module under torchrun."""
    from ..io.processes import count_started

    if count_started() > 1:
        per_node = os.environ.get("LOCAL_WORLD_SIZE", str(count_started()))
        return ["torchrun", "--nproc-per-node", per_node, "-m", "fastdiff"]
    if Path(sys.argv[0]).parts[-2:] == ("fastdiff", "__main__.py"):
        return [sys.executable, "-m", "fastdiff"]
    return ["fastdiff"]
