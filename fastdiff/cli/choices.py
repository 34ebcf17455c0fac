"""Types of flags beyond those that tyro has: a choice among names, and the value that stands for one not given."""

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

NONE = "none"  # on the command line: the value None of a field that can have it


def choice(*names: str) -> PrimitiveConstructorSpec[str]:
    """Make a flag take one of these names; an error lists them."""
    return PrimitiveConstructorSpec(
        nargs=1, metavar="{" + ",".join(names) + "}", instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str), str_from_instance=lambda name: [name], choices=names,
    )  # fmt: skip


def hint(text: str) -> object:
    """Show a text in brackets after the help of a flag, in place of its default; nothing for an empty text."""
    return arg(help_behavior_hint=f"({text})" if text else "")
