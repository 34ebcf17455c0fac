"""The document of the digits' likelihood follows from its numbers."""

import json
from pathlib import Path

from benchmarks.likelihood_report import log_weights_of, write_report

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_document_is_that_of_the_numbers(tmp_path):
    write_report(json.loads((DOCS / "likelihood.json").read_text()), tmp_path / "likelihood.md")
    assert (tmp_path / "likelihood.md").read_text() == (DOCS / "likelihood.md").read_text()


def test_parts_are_joined_in_order():
    """Parts hold the samples of all images one after the other; they are joined by number, not by name."""
    parts = {"a/10": [[5.0, 6.0]], "a/0": [[1.0, 2.0]], "a/5": [[3.0, 4.0]], "b/0": [[9.0, 9.0]]}
    found = log_weights_of(parts, "a", 2)
    assert found is not None
    assert found.tolist() == [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]
    assert log_weights_of(parts, "c", 2) is None
