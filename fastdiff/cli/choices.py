"""Types of flags beyond those that tyro has: a choice among names, and the value that stands for one not given.

The names are those of the library, which the command line would have to import, with torch, to ask for them. A test
compares them.
"""

from fastdiff_kernels.errors import InvalidValueError
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

NONE = "none"  # on the command line: the value None of a field that can have it
SAMPLERS = (
    "ancestral", "ddim", "dpm-solver", "heun", "euler", "unipc", "deis", "dpm-solver-sde", "dpm-solver-sde-2s",
    "euler-a",
)  # fmt: skip
SPACINGS = ("time", "gamma", "quadratic", "karras", "model", "leading", "trailing", "linspace")
VARIANCES = ("fixed_small", "fixed_large", "learned")
DEQUANTIZATIONS = ("normal", "truncated-normal", "uniform")
DIVERGENCES = ("hutchinson", "exact")
VARIED = ("latent", "noise", "class")
COLORS = ("grey", "rgb")
COUNTS = arg(metavar="N[,N...]")  # numbers as one text
PAIR = PrimitiveConstructorSpec[tuple[float, float]](  # two numbers
    nargs=2, metavar="FIRST LAST", instance_from_str=lambda words: (float(words[0]), float(words[1])),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda pair: [str(value) for value in pair or ()],  # None, where it is the default
)  # fmt: skip


def choice(*names: str) -> PrimitiveConstructorSpec[str]:
    """Make a flag take one of these names; an error lists them."""
    return PrimitiveConstructorSpec(
        nargs=1, metavar="{" + ",".join(names) + "}", instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str), str_from_instance=lambda name: [name], choices=names,
    )  # fmt: skip


def choices(*names: str) -> PrimitiveConstructorSpec[str]:
    """Make a flag take one or more of these names, separated by commas, as one text; an error lists them."""
    return PrimitiveConstructorSpec(
        nargs=1, metavar="{" + ",".join(names) + "}[,...]", instance_from_str=lambda words: _checked(words[0], names),
        is_instance=lambda value: isinstance(value, str), str_from_instance=lambda name: [name],
    )  # fmt: skip


def _checked(text: str, names: tuple[str, ...]) -> str:
    for part in (part.strip() for part in text.split(",")):
        if part not in names:
            raise InvalidValueError(f"it must be of {', '.join(names)}, separated by commas, got {part!r}")
    return text


def hint(text: str) -> object:
    """Show a text in brackets after the help of a flag, in place of its default; nothing for an empty text."""
    return arg(help_behavior_hint=f"({text})" if text else "")
