"""From the words of a command line to a command: how the flags of all commands are read, shown and described.

tyro makes a parser of a dataclass. `REGISTRY` says what it makes of the fields of a command:

- A field that may be None takes values of its type alone, and shows no default: its description says what happens
  without it.
- A switch that is off by default has one flag, ``--json``. One that is on, or that is neither on nor off until a preset
  or a run says so, has two: ``--pictures``, ``--no-pictures``.
- A positional argument is shown by its name.
- The string below a field describes it, in one paragraph.
"""

import ast
import dataclasses
import functools
import inspect
import shutil
import textwrap
import typing
from types import NoneType, UnionType
from typing import Annotated, Union

import tyro
from tyro.conf import DisallowNone, FlagConversionOff, FlagCreatePairsOff, Positional, arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

REGISTRY = ConstructorRegistry()
PACKAGE = __name__.rpartition(".")[0]
LAST = ("seed", "batch_size", "device", "threads", "overwrite", "caption", "json")  # in this order, after all others
WIDEST = 100  # columns of a description


def parse(name: str, kind: type, arguments: list[str], shown: bool = True) -> object:
    """Return the command that arguments ask for.

    Args:
        name: of the command.
        kind: its dataclass.
        arguments: the words after the name.
        shown: whether help and errors are printed.

    Raises:
        SystemExit: help was asked for (0), or the arguments are wrong (2); the message names the help of the command.
    """
    description = wrapped(inspect.getdoc(kind) or "", "  ", "")  # tyro joins lines that are not indented
    return tyro.cli(
        kind, args=arguments, prog=f"fastdiff {name}", description=description, console_outputs=shown,
        config=(DisallowNone,), registry=REGISTRY,
    )  # fmt: skip


def wrapped(text: str, indent: str = "", first: str | None = None) -> str:
    """Return paragraphs, which empty lines separate, in lines that fit the terminal.

    Args:
        text: the paragraphs.
        indent: what lines begin with.
        first: what the first line of a paragraph begins with, if that is something else.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    return "\n\n".join(
        textwrap.fill(" ".join(paragraph.split()), width, initial_indent=indent if first is None else first,
                      subsequent_indent=indent, break_on_hyphens=False)
        for paragraph in text.split("\n\n")
    )  # fmt: skip


@REGISTRY.struct_rule
def _command_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Describe the fields of a dataclass of this package to tyro; None for any other type."""
    kind = info.type
    if not dataclasses.is_dataclass(kind) or not kind.__module__.startswith(PACKAGE):
        return None
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = descriptions(kind)
    fields = []
    ordered = dataclasses.fields(kind)
    if hasattr(kind, "run"):  # a command, and no group of flags
        ordered = tuple(sorted(ordered, key=lambda field: LAST.index(field.name) + 1 if field.name in LAST else 0))
    for field in ordered:
        default = _default_of(field, info.default)
        hinted = _shown(field.name, hints[field.name], default)
        fields.append(StructFieldSpec(field.name, hinted, default, texts.get(field.name)))
    return StructConstructorSpec(instantiate=kind, fields=tuple(fields))


def _default_of(field: "dataclasses.Field[object]", instance: object) -> object:
    if not dataclasses.is_dataclass(instance):
        if field.default is not dataclasses.MISSING:
            return field.default
        return tyro.MISSING_NONPROP if field.default_factory is dataclasses.MISSING else field.default_factory()
    return getattr(instance, field.name)


def _shown(name: str, hint: object, default: object) -> type:
    """Return the annotation of a field with what this module adds; what the field says itself comes last and counts."""
    plain, *extras = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    own: list[object] = []
    if plain is bool and FlagConversionOff not in extras:
        own = [arg(help_behavior_hint=f"(default: {'yes' if default else 'no'})" if default else "")]
        own += [] if default else [FlagCreatePairsOff]
    elif default is None:
        own = [arg(help_behavior_hint="")]
    if isinstance(plain, UnionType):  # X | None, for which tyro imports typeguard, which takes 0.1 s
        members = sorted(typing.get_args(plain), key=lambda each: each is not NoneType)  # to compare None with it first
        plain = Union[tuple(members)]  # noqa: UP007
    if Positional in extras:
        optional = default is not tyro.MISSING_NONPROP
        own.append(arg(metavar=f"[{name.upper()}]" if optional else name.upper()))
    return Annotated[(plain, *own, *extras)] if own or extras else plain  # pyright: ignore


@functools.cache
def descriptions(kind: type) -> dict[str, str]:
    """Return the strings below the fields of a dataclass and of those that it derives from, each as one paragraph."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            try:
                source = inspect.getsource(each)
            except OSError:  # installed without sources: flags without descriptions
                continue
            (definition,) = ast.parse(textwrap.dedent(source)).body
            assert isinstance(definition, ast.ClassDef)
            for field, text in zip(definition.body, definition.body[1:], strict=False):
                match field, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(value))),
                    ):
                        found[name] = " ".join(value.split())
    return found
