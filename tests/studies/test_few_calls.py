"""The study of few calls: spacings by their parameters, a search on a small objective, and the document."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff
from benchmarks.studies import few_calls, few_calls_report, model_spacings
from fastdiff.diffusion import UniPC
from fastdiff.models import DiffusionModel

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_parameters_of_a_spacing():
    """Even times are all zeros; four parameters describe any five steps."""
    assert model_spacings.times_of(np.zeros(4), 4) == (0.0, 0.25, 0.5, 0.75, 1.0)
    times = (0.0, 0.3586, 0.4765, 0.5348, 0.6177, 1.0)
    found = model_spacings.times_of(model_spacings.parameters_of(np.array(times)), 5)
    assert found == pytest.approx(times, abs=1e-4)


def test_the_search_finds_a_minimum(monkeypatch):
    """With the squared distance from given times in place of FD-digits."""
    wanted = np.array([0.0, 0.4, 0.7, 1.0])
    monkeypatch.setattr(
        model_spacings, "mean_fd",
        lambda model, sampler, steps, seeds: (
            1.0 if isinstance(sampler.spacing, str) else float(((np.array(sampler.spacing) - wanted) ** 2).sum())
        ),
    )  # fmt: skip
    monkeypatch.setattr(model_spacings, "distance", lambda model, sampler, steps: 0.0)
    found = model_spacings.search(fastdiff.load("digits"), 3, 200, [])
    assert found["times"] == pytest.approx(wanted, abs=0.03)
    assert found["searched"] == found["checked"]["model"] < 1e-3


def test_the_embedded_model_has_the_times_of_the_document(tmp_path):
    model, found = fastdiff.load("digits"), json.loads((DOCS / "few-calls-times.json").read_text())
    assert isinstance(model, DiffusionModel)
    assert model.spacings == {"unipc": {int(steps): tuple(row["times"]) for steps, row in found.items()}}
    model_spacings.ship(model, {"5": found["5"]}, tmp_path / "shipped")
    again = fastdiff.load(tmp_path / "shipped")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    images = fastdiff.sample(again, 2, 5, UniPC(spacing="model"), output="levels")
    assert torch.equal(images, fastdiff.sample(model, 2, 5, UniPC(spacing="model"), output="levels"))


def test_the_document_follows_from_the_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("few-calls.json", "few-calls-times.json"):
        (tmp_path / name).write_text((DOCS / name).read_text())
    results = json.loads((tmp_path / "few-calls.json").read_text())
    few_calls_report.write_report(results, tmp_path)
    assert (tmp_path / "few-calls.md").read_text() == (DOCS / "few-calls.md").read_text()
    assert set(results["rows"]) == set(few_calls.SETTINGS)
    mean, error, one = few_calls_report.summary({"calls": {"5": [[1.0, 0.1], [2.0, 0.2], [3.0, 0.3]]}}, 5)
    assert (mean, error, one) == pytest.approx((2.0, 3**-0.5, 0.2))
