"""Configurations as frozen dataclasses, and their strict passage to and from JSON."""

import dataclasses
import types
import typing
from typing import Any


class ConfigError(ValueError):
    """A configuration with an unknown key, a missing key or a value of the wrong type or range."""


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration (nested dataclasses of numbers, strings, tuples) into plain JSON types."""
    return dataclasses.asdict(config)


def differences(given: Any, allowed: Any) -> str:
    """Say in which fields two configurations differ, such as ``network.blocks 1; allowed: network.blocks 2``."""
    one, two = _flat(to_dict(given)), _flat(to_dict(allowed))
    names = [name for name in one | two if one.get(name) != two.get(name)]
    said = [", ".join(f"{name} {side[name]}" for name in names if name in side) for side in (one, two)]
    return f"{said[0] or 'nothing'}; allowed: {said[1] or 'nothing'}"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def from_dict(kind: type, data: Any, where: str) -> Any:
    """Build the dataclass ``kind`` from JSON types; ``where`` names the source in errors.

    Raises:
        ConfigError: a key that is unknown or missing, or a value of another type than the field's.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: {data!r} is no object; allowed: the fields of {kind.__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ConfigError(f"{where}: unknown keys {', '.join(unknown)}; allowed: {', '.join(fields)}")
    missing = [name for name, field in fields.items() if name not in data and _required(field)]
    if missing:
        raise ConfigError(f"{where}: missing keys {', '.join(missing)}")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def check_fields(config: Any) -> None:
    """Check that the values of a dataclass are of the types that its fields name, as `from_dict` would.

    Raises:
        ConfigError: saying which is not.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        where = f"{type(config).__name__}.{field.name}"
        options = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
        parts = tuple(typing.cast(type, option) for option in options if dataclasses.is_dataclass(option))
        if not parts:
            _value(hint, value, where)
        elif not isinstance(value, parts) and not (value is None and type(None) in options):
            names = ", ".join(part.__name__ for part in parts)
            raise ConfigError(f"{where}: {value!r} is a {type(value).__name__}; allowed: {names}")


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, where: str) -> Any:
    """Convert one JSON value to what a field is annotated as: int, float, bool, str, tuple, None, a dataclass
    or a union of dataclasses."""
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in hint.__args__:
            return None
        hint = _option([option for option in hint.__args__ if option is not type(None)], value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        return _tuple(typing.get_args(hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: {value!r} is a {type(value).__name__}; allowed: {hint.__name__}")
    return value


def _option(options: list[Any], value: Any, where: str) -> Any:
    """The member of a union that a value is meant for: the dataclass whose field ``kind`` has the value's "kind" as its
    default; for a value without that key the first member that has no such field."""
    tagged = {_kind(option): option for option in options if _kind(option) is not None}
    plain = [option for option in options if _kind(option) is None]
    if plain and not (tagged and isinstance(value, dict) and "kind" in value):
        return plain[0]
    if len(options) == 1:
        return options[0]
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in list(tagged):  # a list, since the value may be one that cannot be hashed
        without = f", or no kind for {plain[0].__name__}" if plain else ""
        raise ConfigError(f"{where}: unknown kind {kind!r}; allowed: {', '.join(map(repr, tagged))}{without}")
    return tagged[kind]


def _kind(option: Any) -> str | None:
    """The default of a dataclass's field ``kind``; None where there is none."""
    fields = dataclasses.fields(option) if dataclasses.is_dataclass(option) else ()
    return next((f.default for f in fields if f.name == "kind" and isinstance(f.default, str)), None)


def _tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: {value!r} is a {type(value).__name__}; allowed: a list")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"{where}: {value!r} has {len(value)} entries; allowed: {len(items)}")
    return tuple(_value(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(zip(items, value, strict=True)))
