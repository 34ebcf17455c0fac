"""The flag ``--label``: classes by their names or their numbers."""

from typing import TYPE_CHECKING

from fastdiff_kernels.errors import InvalidValueError

if TYPE_CHECKING:
    from ..models import ImageConfig

ALL = "all"


def parse_labels(text: str | None, config: "ImageConfig") -> int | str | list[int] | None:
    """Return the number of one class, the numbers of classes that commas separate, or ``"all"``.

    A class whose name has a comma is one class. Raises as `parse_label`.
    """
    if text == ALL:
        return ALL
    if text is None or "," not in text or {text, text.removeprefix("name:")} & {*config.names}:
        return parse_label(text, config)
    return [number for part in text.split(",") if (number := parse_label(part.strip(), config)) is not None]


def parse_label(text: str | None, config: "ImageConfig") -> int | None:
    """Return the number of the class that ``--label`` says.

    A text is the name of a class, or the number of one. Classes may have numbers for names, and another order: the
    folder ``10`` is class 2 of the folders ``0`` to ``11``, which are sorted as text. A text that is the name of one
    class and the number of another is an error; ``name:10`` and ``number:2`` are neither.

    Args:
        text: the flag; None without.
        config: the configuration of the model.

    Raises:
        InvalidValueError: no class has this name or number, or one has the name and another one the number.
    """
    names = config.names
    if text is None or not names:
        return text if text is None else config.class_number(text)  # raises
    by_name, by_number = text, text
    kind, _, rest = text.partition(":")
    if text not in names and kind in ("name", "number"):
        by_name, by_number = (rest, "") if kind == "name" else ("", rest)
    found = {names.index(by_name)} if by_name in names else set()
    if by_number.isdecimal() and len(by_number) < 10 and int(by_number) < len(names):
        found.add(int(by_number))
    if len(found) > 1:
        named, numbered = names.index(text), int(text)
        raise InvalidValueError(
            f"--label must say one class, but class {named} has the name {text} and class {numbered} the name "
            f"{names[numbered]}: write name:{text} or number:{text}"
        )
    if not found:
        from ..models.image_data import listed

        named = f"the name of a class ({listed(config.class_names)}) or " if config.class_names else ""
        raise InvalidValueError(f"--label must be {named}a number in 0 .. {len(names) - 1}, got {text!r}")
    return found.pop()
