"""The reference has an entry for every public name, and the site a place for every page."""

import inspect
import re
from importlib import import_module
from types import ModuleType

import pytest
from sources import ROOT

REFERENCE = ROOT / "docs/reference"
MODULES = [path.stem for path in sorted(REFERENCE.glob("*.md"))]
SITE = (ROOT / "mkdocs.yml").read_text()


def entries(page: str) -> dict[str, str]:
    """The entries of a page, name to path: what is documented there, and links to what is documented elsewhere."""
    text = (REFERENCE / f"{page}.md").read_text()
    paths = re.findall(r"^::: (\S+)", text, re.MULTILINE) + re.findall(r"`\]\[(fastdiff\S+?)\]", text)
    return {path.rsplit(".", 1)[-1]: path for path in paths}


@pytest.mark.parametrize("page", MODULES)
def test_every_public_name_has_an_entry(page):
    """Entries say where a name is defined; it is the same object as the one that users import."""
    module = import_module("fastdiff" if page == "fastdiff" else f"fastdiff.{page}")
    found = entries(page)
    other = {"__version__", "interop"} if page == "fastdiff" else set()  # in its table, without an entry of their own
    assert set(module.__all__) - other <= set(found)
    for name in set(module.__all__) & set(found):
        assert thing(found[name]) is getattr(module, name), name


def thing(path: str) -> object:
    """What stands at a path: a module, or an attribute of one; `fastdiff_kernels.diffuse` alone is the operation."""
    home, name = path.rsplit(".", 1)
    try:
        return getattr(import_module(home), name)
    except AttributeError:
        return import_module(path)


@pytest.mark.parametrize("page", MODULES)
def test_entries_beside_the_public_names_exist(page):
    assert all(thing(path) is not None for path in entries(page).values())


def test_every_public_package_has_a_page():
    packages = {path.parent.name for path in (ROOT / "fastdiff").glob("*/__init__.py")} - {
        "assets",
        "cli",
        "demo",
        "io",
    }
    assert packages | {"fastdiff", "kernels", "presets"} == set(MODULES)
    assert all(isinstance(import_module(f"fastdiff.{name}"), ModuleType) for name in packages)


def test_every_page_has_a_place_in_the_site():
    placed = re.findall(r"^ +- .*: ([\w/-]+\.md)$", SITE, re.MULTILINE)
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert len(placed) == len(set(placed))
    assert set(placed) == pages


def test_every_public_name_says_what_it_is():
    """Classes and functions; of a constant the reference shows the value."""
    for page in MODULES:
        for path in entries(page).values():
            found = thing(path)
            if inspect.isclass(found) or inspect.isfunction(found):
                assert found.__doc__, path
