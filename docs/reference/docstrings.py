"""How mkdocstrings reads the docstrings of fastdiff: an extension of Griffe, which reads sources and imports nothing.

- The parameters of a configuration are its fields and those of its bases, in the order of the constructor.
- One line of ``Args:`` may name several parameters, ``kind, config: ...``; so may one of ``Raises:``.
- A public name in backticks, such as `Noise`, links to its entry. What is public is read from the reference's pages.
- An operation, and what says "see the module", gets the module's docstring: equation, source, bytes moved.
"""

import re
from pathlib import Path
from typing import Any

import griffe

PAGES = Path(__file__).parent
HOMES = {
    path.rsplit(".", 1)[-1]: path
    for page in sorted(PAGES.glob("*.md"))
    for path in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
}
NAME = re.compile(r"(?<![`\[])`((?:fastdiff[\w.]*\.)?(\w+))`(?!`)")
FUSED = {path.rsplit(".", 1)[0]: path for path in reversed(HOMES.values()) if path.startswith("fastdiff_kernels.")}
UNDEFINED = ("fastdiff_kernels.errors", "fastdiff_kernels.backend")  # modules that define no operation
DEFERS = re.compile(r"see the module|[Tt]he module's docstring")
SEVERAL = re.compile(r"^( {4,})(\*{0,2}\w+(?:, \*{0,2}\w+)+)(:.*(?:\n\1 +\S.*)*)", re.MULTILINE)
DECORATOR = "configuration"  # of fastdiff.io.configuration: a frozen attrs class whose fields are keyword arguments


class Docstrings(griffe.Extension):
    """Prepares what Griffe has read for mkdocstrings."""

    def on_object(self, *, obj: Any, **options: Any) -> None:
        """Rewrite a docstring that was just read."""
        if obj.docstring is not None:
            text = SEVERAL.sub(one_each, obj.docstring.value)
            if defined_by_module(obj) and obj.parent.docstring is not None:
                text = f"{text}\n\n**Definition** (`{obj.parent.path}`)\n\n{obj.parent.docstring.value}"
            obj.docstring.value = NAME.sub(lambda found: linked(found, obj.path), text)

    def on_package(self, *, pkg: griffe.Module, **options: Any) -> None:
        """Give every configuration of a package that was just read its constructor."""
        for module in modules(pkg):
            for found in module.classes.values():
                if not found.is_alias and any(str(part.value) == DECORATOR for part in found.decorators):
                    found.set_member("__init__", constructor(found))


def defined_by_module(obj: Any) -> bool:
    """Return whether the reader of a public name needs the docstring of its module."""
    if HOMES.get(obj.name) != obj.path:
        return False
    first = FUSED.get(obj.parent.path) == obj.path and obj.parent.path not in UNDEFINED
    return first or DEFERS.search(obj.docstring.value) is not None


def one_each(found: re.Match[str]) -> str:
    """Repeat a section's entry for each name that it begins with."""
    indent, names, text = found.groups()
    return "\n".join(f"{indent}{name}{text}" for name in names.split(", "))


def linked(found: re.Match[str], own: str) -> str:
    """Return a name in backticks as a link to its entry, unless that is where it stands."""
    home = HOMES.get(found[2])
    return found[0] if home is None or own.startswith(home) else f"[`{found[1]}`][{home}]"


def modules(module: griffe.Module) -> list[griffe.Module]:
    """Return a module and all below it."""
    below = [part for part in module.members.values() if not part.is_alias and part.is_module]
    return [module, *(one for part in below for one in modules(part))]


def constructor(owner: griffe.Class) -> griffe.Function:
    """Return the constructor of a configuration. Fields without a default come first, as attrs orders none itself."""
    fields: dict[str, griffe.Parameter] = {}
    for one in [*reversed(owner.mro()), owner]:
        for name, attribute in one.attributes.items():
            if attribute.annotation is not None and "instance-attribute" in attribute.labels:  # not a ClassVar
                fields[name] = griffe.Parameter(
                    name, annotation=attribute.annotation, default=default_of(attribute.value),
                    kind=griffe.ParameterKind.positional_or_keyword,
                )  # fmt: skip
    itself = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    return griffe.Function("__init__", parameters=griffe.Parameters(itself, *fields.values()), parent=owner)


def default_of(value: Any) -> Any:
    """Return the default of a field: its value, or what ``field(..., default=...)`` states; None for a required one."""
    if isinstance(value, griffe.ExprCall) and str(value.function) == "field":
        named = [part for part in value.arguments if isinstance(part, griffe.ExprKeyword)]
        return next((part.value for part in named if part.name in ("default", "factory")), None)
    return value
