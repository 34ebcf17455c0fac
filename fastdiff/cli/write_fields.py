"""Writes `train_fields.py`: the flags of ``fastdiff train`` that are fields of its configurations, and its presets.

    python -m fastdiff.cli.write_fields

The flags, their types, choices and descriptions are those of the classes `TrainConfig`, `ImageOptions` and
`RunOptions`. They stand in a file of their own since these classes import torch, which would make ``fastdiff --help``
wait for two seconds. A test compares the file with what this module would write.
"""

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from pathlib import Path

import attrs
import torch

from ..data import ImageOptions
from ..io.configuration import choices
from ..models.small import SMALL_MODELS
from ..presets import PRESETS, Preset, own_training
from ..training import TrainConfig
from ..training.keeping import RunOptions
from .choices import NONE

FILE = Path(__file__).with_name("train_fields.py")
WIDTH = 120  # of a line of code
HEAD = '''"""Written by `python -m fastdiff.cli.write_fields`, not by hand: flags and presets of `fastdiff train`."""

# ruff: noqa: E501

from dataclasses import dataclass
from typing import Annotated, Literal

from .choices import choice, hint

'''


@dataclasses.dataclass(frozen=True)
class Field:
    """A flag: its name, annotation, default and description, as they stand in the file."""

    name: str
    annotation: str
    default: str
    description: str

    def source(self) -> str:
        """Return the field of the dataclass."""
        line = f"{self.name}: {self.annotation} = {self.default}"
        if len(line) > WIDTH - 4:  # as ruff writes it
            parts = self.annotation.removeprefix("Annotated[").removesuffix("]")
            if len(parts) > WIDTH - 8:
                parts = re.sub(r", (?=choice\(|hint\()", ",\n    ", parts) + ","
            line = f"{self.name}: Annotated[\n    {parts}\n] = {self.default}"
        return f'{line}\n"""{self.description}"""\n'  # one line, since tyro keeps the breaks of indented ones


def source() -> str:
    """Return the content of the file."""
    training = [_optional(field, _own_default(field.name), TrainConfig) for field in _fields(TrainConfig)]
    images = [_optional(field, _shown(field.default), ImageOptions) for field in _fields(ImageOptions)]
    parts = [
        _class("TrainingFields", "The training. What is not given is the preset's, or for own data as in brackets.",
               [field for field in training if field.name != "images"]),
        _class("ImageFields", "How images are read; they are the preset's, or for own data as in brackets.", images),
        _class("RunFields", "How the run is kept and shown; none of it changes the numbers.", _run_fields()),
    ]  # fmt: skip
    models = f"MODELS = ({', '.join(map(_quoted, SMALL_MODELS))})\n"
    presets = "".join(f"    {_quoted(line)},\n" for line in _preset_lines())
    return HEAD + models + f"PRESETS = (\n{presets})\n\n\n" + "\n\n".join(parts)


def _fields(kind: type[attrs.AttrsInstance]) -> tuple[attrs.Attribute, ...]:
    return attrs.fields(kind)


def _class(name: str, description: str, fields: list[Field]) -> str:
    body = "".join(field.source() for field in fields)
    return f"@dataclass\nclass {name}:\n" + textwrap.indent(f'"""{description}"""\n\n{body}', "    ")


def _optional(field: attrs.Attribute, shown: str, owner: type) -> Field:
    """Return the flag of a field of a configuration: None where it is not given."""
    names, hint = choices(field), typing.get_type_hints(owner)[field.name]
    nullable = isinstance(hint, types.UnionType) and type(None) in hint.__args__
    plain = hint.__args__[0] if isinstance(hint, types.UnionType) else hint
    parts = [f"{plain.__name__} | None"]
    if names is not None:
        words = [*map(str, names), NONE] if nullable else map(str, names)
        parts.append(f"choice({', '.join(map(_quoted, words))})")
    elif nullable and plain is not str:
        parts[0] = f"{plain.__name__} | Literal[{_quoted(NONE)}] | None"
    parts.append(f"hint({_quoted(shown)})")
    return Field(field.name, f"Annotated[{', '.join(parts)}]", "None", _descriptions(owner)[field.name])


def _run_fields() -> list[Field]:
    texts, hints = _descriptions(RunOptions), typing.get_type_hints(RunOptions)
    found = []
    for field in dataclasses.fields(RunOptions):
        hint = hints[field.name]
        name = f"{hint.__args__[0].__name__} | None" if isinstance(hint, types.UnionType) else hint.__name__
        annotation = f'Annotated[{name}, hint("")]' if field.default is None else name
        found.append(Field(field.name, annotation, repr(field.default), texts[field.name]))
    return found


def _own_default(name: str) -> str:
    """Return the value of a field for own data; where it depends on the model, of each."""
    if name == "data":
        return ""
    values: dict[str, list[str]] = {}
    for kind in SMALL_MODELS:
        values.setdefault(_shown(getattr(own_training(kind, ""), name)), []).append(kind)
    common, *others = values
    return "; ".join([common, *(f"{value} for {', '.join(values[value])}" for value in others)])


def _shown(value: object) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _descriptions(kind: type) -> dict[str, str]:
    """Return the descriptions of the fields in the docstring of a class, without the marks of its markup."""
    names, found = {*kind.__annotations__}, {}
    current: list[str] = []
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        entry = re.fullmatch(r"\s*(\w+(?:, \w+)*): (.+)", line)
        if entry is not None and set(entry[1].split(", ")) <= names:
            current = [entry[2]]
            found |= dict.fromkeys(entry[1].split(", "), current)
        elif line.strip():
            current.append(line.strip())
        else:
            current = []
    return {name: _sentence(" ".join(lines)) for name, lines in found.items()}


def _sentence(text: str) -> str:
    text = text.replace("`", "").replace('"', "").replace("None", NONE)
    return text[0].upper() + text[1:]


def _preset_lines() -> list[str]:
    rows = [_preset_row(name, preset) for name, preset in PRESETS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _preset_row(name: str, preset: Preset) -> tuple[str, ...]:
    with torch.device("meta"):
        model = preset.build()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return name, model.title, preset.train.data, f"{parameters / 1e6:.1f} M"


def _quoted(text: object) -> str:
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


if __name__ == "__main__":
    FILE.write_text(source())
