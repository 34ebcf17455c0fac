"""What is added to the error of a command: the flag that it is about, a name that may be meant, and where help is."""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable

from .arguments import flag
from .train_fields import PRESETS

NAMED = ("model", "images", "what")  # fields that may hold the name of a model, a run or a preset
SUBJECT = re.compile(r"(?:\w+: )?(\w+)(?= must )")  # of an error of the library


def nearest(word: str, names: Iterable[str]) -> str:
    """Return ``, did you mean NAME?`` with the name that resembles a word most; an empty text if none does."""
    found = difflib.get_close_matches(word.lower(), names, 1, 0.7)
    return f", did you mean {found[0]}?" if found else ""


def completed(text: str, name: list[str], command: object) -> str:
    """Return the text of an error with what the user may need.

    An error of the library that is about a field of the command names its flag instead. One that is about a flag ends
    with the help of the command. One that is about a model that is not there names one that is.

    Args:
        text: of the error.
        name: the words that name the command.
        command: the command, or None if it could not be read.
    """
    if not dataclasses.is_dataclass(command):
        return text
    fields = [field.name for field in dataclasses.fields(command)]
    groups = [value for value in vars(command).values() if dataclasses.is_dataclass(value)]
    fields += [field.name for group in groups for field in dataclasses.fields(group)]
    subject = SUBJECT.match(text)
    if subject is not None and subject[1] in set(fields) - set(NAMED):
        text = flag(subject[1]) + text[subject.end() :]  # it is about this flag, and not about a name
    else:
        for field in (field for field in NAMED if field in fields):
            word = getattr(command, field)
            if isinstance(word, str) and not os.path.lexists(word) and word in text:
                text += nearest(word, known_names(field))
    return f"{text}; see fastdiff {' '.join(name)} --help" if text.startswith("--") else text


def known_names(field: str) -> list[str]:
    """Return the names of models, or for ``what`` those of presets, and of the runs in the working directory."""
    from ..checkpoints import RUNS, embedded_names

    names = [line.split()[0] for line in PRESETS] if field == "what" else embedded_names()
    runs = sorted(os.listdir(RUNS)) if RUNS.is_dir() else []
    return [*names, *runs, *(str(RUNS / name) for name in runs)]
