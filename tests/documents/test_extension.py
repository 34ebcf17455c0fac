"""The reference's reading of docstrings, on a module written here; needs Griffe, which the extra `docs` installs."""

import importlib.util

import pytest
from sources import ROOT

griffe = pytest.importorskip("griffe")

SOURCE = '''
"""Equation."""

@configuration
class Base:
    """A base."""
    kind: ClassVar[str] = "base"
    size: int
    rho: float = field(more_than(0.0), default=7.0)

@configuration
class Own(Base):
    """A configuration, see the module.

    Args:
        size, rho: two numbers
            over two lines.
    """
    names: tuple = ()
'''


def test_fields_are_parameters_and_entries_are_repeated(tmp_path):
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs/reference/docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "own.py").write_text(SOURCE)
    loaded = griffe.load("own", search_paths=[tmp_path], extensions=griffe.load_extensions(module.Docstrings))
    own = loaded["Own"]
    assert [(one.name, str(one.default)) for one in own.parameters] == [
        ("self", "None"), ("size", "None"), ("rho", "7.0"), ("names", "()"),
    ]  # fmt: skip
    described = own.docstring.parse("google")[1].value
    assert [(one.name, one.description) for one in described] == [
        (name, "two numbers\nover two lines.") for name in ("size", "rho")
    ]
