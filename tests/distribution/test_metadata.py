"""What is stated about the distribution: one version, pinned requirements, a citation file that can be read."""

import re
import tomllib

import pytest
from sources import ROOT

import fastdiff

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def test_the_version_is_stated_once():
    """In `fastdiff/__init__.py`; the newest heading of the changelog is that version's."""
    assert "version" in PROJECT["dynamic"]
    for name in ("pyproject.toml", "CITATION.cff", "Makefile"):
        assert not re.search(r"^version\b", (ROOT / name).read_text(), re.MULTILINE), name
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading[1] == fastdiff.__version__


def test_every_requirement_is_pinned():
    """In constraints.txt, at a version that pyproject.toml allows, as pip finds out when it installs them."""
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert {name_of(requirement) for group in groups for requirement in group} <= pins


def test_make_installs_extras_that_exist():
    lists = re.findall(r"--extras ([\w,]+)", (ROOT / "Makefile").read_text())
    assert lists
    assert {extra for text in lists for extra in text.split(",")} <= set(PROJECT["optional-dependencies"])


def test_the_citation_file():
    """The keys that the format 1.2.0 requires, and authors of every reference."""
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == PROJECT["license"]
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year", "url"} <= set(reference)
        assert all({"given-names", "family-names"} == set(author) for author in reference["authors"])
        assert reference["url"] in PROJECT["urls"].values()
