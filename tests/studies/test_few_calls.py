"""The study of few calls: spacings by their parameters, a search on a small objective, and the document."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import small

import fastdiff
from benchmarks.studies import few_calls, few_calls_report, model_spacings
from benchmarks.studies.data_sets import DATA_SETS
from benchmarks.studies.study import results_of
from fastdiff.diffusion import Heun, UniPC
from fastdiff.evaluation import fd_digits
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
    (tmp_path / "few-calls-times.json").write_text((DOCS / "few-calls-times.json").read_text())
    found = results_of("few-calls", DOCS)
    results = found["digits"]
    few_calls_report.write_report(found, tmp_path)
    assert (tmp_path / "few-calls.md").read_text() == (DOCS / "few-calls.md").read_text()
    assert set(results["rows"]) == set(few_calls.SCOPES["digits"].settings)
    assert set(few_calls.SCOPES) == set(DATA_SETS)
    mean, error, one = few_calls_report.summary({"calls": {"5": [[1.0, 0.1], [2.0, 0.2], [3.0, 0.3]]}}, 5)
    assert (mean, error, one) == pytest.approx((2.0, 3**-0.5, 0.2))


def test_digits_and_letters_stand_side_by_side(tmp_path):
    """Ratios to each model's own reference, the best sampler of each data set, and a reference of one seed."""
    pytest.importorskip("matplotlib")
    found = {}
    for name, scale in (("digits", 1.0), ("letters", 10.0)):
        rows = {}
        for rank, (key, (sampler, options, counts)) in enumerate(few_calls.SCOPES[name].settings.items()):
            value = scale * (2.0 + (rank if name == "digits" else -0.1 * rank))
            calls = {str(n): [[value, 0.5], [value + 0.2, 0.7]] for n in counts}
            rows[key] = {"sampler": sampler, "options": options, "calls": calls}
        rows["ancestral"]["calls"]["250"] = [[scale, 0.5]]
        found[name] = {"images": 1000, "seeds": [0, 1], "rows": rows}
    few_calls_report.write_report(found, tmp_path)
    text = (tmp_path / "few-calls.md").read_text()
    flat = " ".join(text.split())
    assert "Ancestral sampling with 250 calls has 10.00." in flat
    assert "The 250 calls of ancestral sampling are of one seed." in flat
    # errors of the images: 0.6 / sqrt(2) of a row, so two errors of a difference are 1.2, and the means are 1 apart
    expected = "At 10 calls the lowest is that of UniPC, order 3 on the digits and of ancestral on the letters"
    assert f"{expected} (not significantly)." in flat
    assert "| DDIM (Euler) | 10.10 | 10.10 | 10.10 | 10.10 | 1.61 | 1.61 | 1.61 | 1.61 |" in text
    assert "| 17.10 ± 0.10 (0.60) |" in text  # of DEIS on the letters
    assert "5 calls: Karras, rho 7 19.10, even in time 20.10; 10 calls: Karras" in flat
    # digits: 3.1 of UniPC, even in time, at all numbers of calls; letters: 19.1 with Karras, 20.1 without
    assert "even in time with 5 calls, minus that of 50 calls, even in time: +0.00 ± 0.60, so no coarse" in flat
    assert "Karras, rho 7 with 5 calls, minus that of 50 calls, even in time: -1.00 ± 0.60, so no coarse" in flat
    assert text.count("aim of") == 2  # the digits' alone
    assert (tmp_path / "few-calls-letters.png").is_file()


def test_differences_are_judged_by_the_errors_of_the_images(tmp_path):
    """Two means differ significantly when they are two standard errors of unpaired draws of images apart."""
    pytest.importorskip("matplotlib")
    values = {"unipc": 4.0, "unipc, karras": 3.0, "ddim": 4.9, "ancestral": 2.0}
    rows = {
        name: {
            "sampler": name.partition(",")[0],
            "options": {"spacing": "karras"} if "," in name else {},
            "calls": {"10": [[value - 0.1, 0.3], [value + 0.1, 0.3]], "50": [[value + 2.0, 0.3]] * 2},
        }
        for name, value in values.items()
    }
    results = {"images": 1000, "seeds": [0, 1], "rows": rows}
    mean, error = few_calls_report.gap(rows["unipc"], 10, rows["unipc, karras"], 50)
    assert (mean, error) == pytest.approx((-1.0, 0.3))  # sqrt(2 · 0.3² / 2)
    assert few_calls_report.near_the_best(results, 10) == []
    rows["unipc, karras"]["calls"]["10"] = [[2.5, 0.3], [2.6, 0.3]]
    assert few_calls_report.near_the_best(results, 10) == ["UniPC, order 3, Karras, rho 7"]
    few_calls_report.write_report({"letters": results}, tmp_path)  # of what is measured so far: without DPM-Solver++
    flat = " ".join((tmp_path / "few-calls.md").read_text().split())
    assert "At 10 calls the best is ancestral, even in time: 2.00 ± 0.10. Not significantly above it: UniPC" in flat
    assert "Karras, rho 7 with 10 calls, minus that of 50 calls, even in time: -3.45 ± 0.30. So FD-letters" in flat
    assert "At 5 calls" not in flat


def test_a_report_needs_the_reference(tmp_path, capsys):
    arguments = ["--report", "--data", "letters", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        few_calls.main(arguments)
    assert "--report needs the reference" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_are_kept_with_what_they_depend_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(few_calls, "REFERENCE", 3)
    settings = {"heun": ("heun", {}, (4,)), "ancestral": ("ancestral", {}, (2, 3))}
    scope = few_calls.Scope(20, (0, 1), (0,), settings)
    model = small()
    store = few_calls.Store(model, DATA_SETS["digits"], scope, tmp_path)
    store.measure()
    assert capsys.readouterr().out.count("minutes left") == 5
    assert [len(store.read("heun", 4)), len(store.read("ancestral", 2)), len(store.read("ancestral", 3))] == [2, 2, 1]
    images = fastdiff.sample(model, 20, 2, Heun(), seed=1, output="levels")
    assert store.read("heun", 4)[1][0] == pytest.approx(fd_digits(images).value, abs=1e-3)
    store.measure()
    assert capsys.readouterr().out == ""
    more = few_calls.Store(model, DATA_SETS["digits"], replace(scope, seeds=(0, 1, 2)), tmp_path)
    assert more.read("heun", 4) == store.read("heun", 4)
    others = (
        replace(scope, images=21),
        replace(scope, seeds=(1, 2)),
        replace(scope, settings={"heun": ("heun", {"spacing": "karras"}, (4,))}),
    )
    for changed in others:
        assert few_calls.Store(model, DATA_SETS["digits"], changed, tmp_path).read("heun", 4) == []
    assert few_calls.Store(small(seed=1), DATA_SETS["digits"], scope, tmp_path).read("heun", 4) == []
