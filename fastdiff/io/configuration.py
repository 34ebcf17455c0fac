"""Configurations: frozen classes that state the type, range and choice of each field once, and their JSON.

    @configuration
    class UNetConfig:
        widths: tuple[int, ...] = field(each(at_least(1)), not_empty, default=(32, 48))
        dropout: float = field(between(0, 1, open_above=True), default=0.1)

The annotation is the type: every value is checked against it on construction, an int is accepted for a float and a list
for a tuple. `to_dict` and `from_dict` go to and from plain JSON types; `from_dict` reads the keys and values of earlier
versions by `renamed.RENAMED`.
"""

import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, dataclass_transform

import attrs
from fastdiff_kernels.errors import FastdiffError

from .renamed import ADDED_KEYS, renamed

T = TypeVar("T")
Check = Callable[[Any], str | None]  # what a value must be, or None where it is
CHECKS = "checks"  # under which the metadata of a field hold its checks


class ConfigError(FastdiffError, ValueError):
    """A configuration with an unknown key, a missing key or a value of the wrong type or range."""


# ------------------------------------------------------------------------------------------------ declaring fields


def field(*checks: Check, default: Any = attrs.NOTHING, factory: Callable[[], Any] | None = None) -> Any:
    """Declare a field: what its value must satisfy, and its default (none: the field is required).

    A check is called with the value and returns None, or what the value must be ("be >= 1"). A value of None is not
    checked, since only a field whose type allows None can have it.
    """

    def check(config: Any, attribute: Any, value: Any) -> None:
        for each_check in checks if value is not None else ():
            wanted = each_check(value)
            if wanted is not None:
                raise ConfigError(f"{type(config).__name__}: {attribute.name} must {wanted}, got {value!r}")

    if factory is not None:
        return attrs.field(factory=factory, validator=check, metadata={CHECKS: checks})
    return attrs.field(default=default, validator=check, metadata={CHECKS: checks})


def choices(attribute: attrs.Attribute) -> tuple[object, ...] | None:
    """Return the values that a field declared with `one_of` can have; None for any other field."""
    checks = attribute.metadata.get(CHECKS, ())
    return next((each_check.choices for each_check in checks if isinstance(each_check, OneOf)), None)


def at_least(low: float) -> Check:
    """Require value >= low."""
    return lambda value: None if value >= low else f"be >= {low}"


def more_than(low: float) -> Check:
    """Require a finite value > low."""
    return lambda value: None if low < value < math.inf else f"be finite and > {low}"


def between(low: float, high: float, open_below: bool = False, open_above: bool = False) -> Check:
    """Require low <= value <= high, strictly where a side is open."""

    def check(value: float) -> str | None:
        above = value > low if open_below else value >= low
        below = value < high if open_above else value <= high
        opening, closing = "(" if open_below else "[", ")" if open_above else "]"
        return None if above and below else f"lie in {opening}{low}, {high}{closing}"

    return check


@dataclass(frozen=True)
class OneOf:
    """Requires one of the choices."""

    choices: tuple[object, ...]

    def __call__(self, value: object) -> str | None:
        return None if value in self.choices else f"be one of {', '.join(map(repr, self.choices))}"


def one_of(*choices: object) -> Check:
    """Require one of the choices."""
    return OneOf(choices)


def each(check: Check) -> Check:
    """Require every entry of a tuple to satisfy a check."""

    def check_all(values: Sequence[Any]) -> str | None:
        wanted = next(filter(None, map(check, values)), None)
        return wanted and f"have only entries {wanted.removeprefix('be ')}"

    return check_all


def not_empty(values: Sequence[Any]) -> str | None:
    """Require at least one entry."""
    return None if values else "have at least one entry"


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field, attrs.field))
def configuration(cls: type[T]) -> type[T]:
    """Make a frozen class with keyword arguments from annotated fields, each checked on construction."""
    return attrs.frozen(kw_only=True, field_transformer=_typed)(cls)


def _typed(cls: type, fields: list[attrs.Attribute]) -> list[attrs.Attribute]:
    """Add to every field the conversion to its annotated type, which also checks it.

    An inherited field is converted already.
    """
    return [
        f if f.inherited else f.evolve(converter=_converter(f"{cls.__name__}: {f.name}", f.type))  # pyright: ignore
        for f in fields
    ]


def _converter(where: str, hint: Any) -> Callable[[Any], Any]:
    return lambda value: convert(hint, value, where)


# ------------------------------------------------------------------------------------------------ to and from JSON


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration (nested configurations of numbers, strings, tuples) into plain JSON types."""
    return attrs.asdict(config)


def from_dict(kind: type[T], data: object, where: str, complete: bool = False) -> T:
    """Build the configuration ``kind`` from JSON types; ``where`` names the source in errors.

    With ``complete``, for what `to_dict` wrote, a key is missing although its field has a default, too, unless an
    earlier version did not write it (`renamed.ADDED_KEYS`).

    Raises:
        ConfigError: a key that is unknown or missing, or a value that the field does not allow.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be an object with the fields of {kind.__name__}, got {data!r}")
    data = renamed(kind.__name__, data)
    fields = {f.name: f for f in attrs.fields(kind)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ConfigError(f"{where} has unknown keys {', '.join(unknown)}; the known keys are {', '.join(fields)}")
    added = ADDED_KEYS.get(kind.__name__, ())
    required = [name for name, f in fields.items() if f.default is attrs.NOTHING or (complete and name not in added)]
    missing = [name for name in required if name not in data]
    if missing:
        raise ConfigError(f"{where} lacks the keys {', '.join(missing)}")
    hints = _hints(kind)
    values = {name: convert(hints[name], value, f"{where}.{name}", complete) for name, value in data.items()}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def convert(hint: Any, value: Any, where: str, complete: bool = False) -> Any:
    """Return a value as the type ``hint``: int, float, bool, str, tuple, dict, None, a configuration or a union.

    ``complete`` is that of `from_dict`.

    Raises:
        ConfigError: the value is of another type.
    """
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in hint.__args__:
            return None
        hint = _member([option for option in hint.__args__ if option is not type(None)], value, where)
    if attrs.has(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where, complete)
    if typing.get_origin(hint) is tuple:
        return _tuple(typing.get_args(hint), value, where, complete)
    if hint is object:
        return value
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    plain = typing.get_origin(hint) or hint
    if type(value) is not plain or (isinstance(value, float) and not math.isfinite(value)):
        names = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string"}
        raise ConfigError(f"{where} must be {names.get(plain, plain.__name__)}, got {value!r}")
    return value


def _member(options: list[Any], value: Any, where: str) -> Any:
    """The member of a union that a value is meant for.

    Among configurations it is the one of the value's own class, or the one whose field ``kind`` has the value's "kind"
    as its default; for a value without that key the first member that has no such field.
    """
    for option in options:
        if attrs.has(option) and isinstance(value, option):
            return option
    tagged = {tag: option for option in options if (tag := _kind(option)) is not None}
    plain = [option for option in options if _kind(option) is None]
    if plain and not (tagged and isinstance(value, dict) and "kind" in value):
        found = tuple if type(value) is list else type(value)
        return next((option for option in plain if (typing.get_origin(option) or option) is found), plain[0])
    if len(options) == 1:
        return options[0]
    kind = value.get("kind") if isinstance(value, dict) else value
    if kind not in list(tagged):  # a list, since the value may be one that cannot be hashed
        without = f", or an object without it for {plain[0].__name__}" if plain else ""
        raise ConfigError(f"{where}: kind must be one of {', '.join(map(repr, tagged))}{without}, got {kind!r}")
    return tagged[kind]


def _kind(option: Any) -> str | None:
    """The default of a configuration's field ``kind``; None where there is none."""
    if not attrs.has(option):
        return None
    return next((f.default for f in attrs.fields(option) if f.name == "kind" and isinstance(f.default, str)), None)


def _tuple(items: tuple[Any, ...], value: Any, where: str, complete: bool) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} must be a list, got {value!r}")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"{where} must have {len(items)} entries, got {value!r}")
    return tuple(
        convert(item, entry, f"{where}[{i}]", complete)
        for i, (item, entry) in enumerate(zip(items, value, strict=True))
    )


# ------------------------------------------------------------------------------------------------ comparing


def differences(found: Any, expected: Any) -> str:
    """Say in which fields two configurations or dictionaries differ, such as ``network.blocks is 1, expected 2``."""
    one, two = (_flat(each if isinstance(each, dict) else to_dict(each)) for each in (found, expected))
    names = [name for name in one | two if one.get(name) != two.get(name)]
    return ", ".join(f"{name} is {one.get(name, 'absent')}, expected {two.get(name, 'absent')}" for name in names)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
