"""Studies: models that are trained are kept, settings are compared, and the document follows from its numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import SMALL

from fastdiff.models import VDM, VDMConfig
from fastdiff.studies.noise_schedules import Budget, arms
from fastdiff.studies.noise_schedules_report import TITLES, critical, paired, verdict, write_report
from fastdiff.studies.runner import Arm, StudyError, load_arm, train_arms
from fastdiff.training import TrainConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"


def arm(steps: int = 2, name: str = "one") -> Arm:
    model = VDMConfig((1, 8, 8), 17, gamma_0=-8.0, fourier=None, network=SMALL)
    return Arm(name, model, TrainConfig("digits", steps, batch_size=4))


def test_arms_are_trained_once_and_kept(tmp_path, capsys):
    train_arms([arm()], tmp_path, workers=1)
    said = capsys.readouterr().out
    assert "1 models, 0 of them trained already" in said
    assert "[1/1] one: " in said
    model = load_arm(arm(), tmp_path)
    assert isinstance(model, VDM)
    before = (tmp_path / "one/model/model.safetensors").stat().st_mtime_ns
    train_arms([arm()], tmp_path, workers=1)
    assert "1 models, 1 of them trained already" in capsys.readouterr().out
    assert (tmp_path / "one/model/model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(StudyError, match="holds a model of other settings; allowed: another folder"):
        train_arms([arm(steps=3)], tmp_path, workers=1)
    other = replace(arm(), model=replace(arm().model, schedule="cosine"))
    with pytest.raises(StudyError, match="holds a model of other settings"):
        train_arms([other], tmp_path, workers=1)
    with pytest.raises(StudyError, match="holds another model"):
        load_arm(other, tmp_path)


def test_the_study_compares_one_thing_at_a_time():
    """Every setting differs from `linear` in one field of the model or of the training; seeds in the seed alone."""
    everything = {each.name: each for each in arms(Budget(steps=7, seeds=3))}
    assert len(everything) == 8 * 3 + 1
    base = everything["linear-seed0"]
    for name in ("cosine", "beta-linear", "learned", "independent-times", "no-fourier", "eps"):
        other = everything[f"{name}-seed0"]
        differs = [
            key
            for one, two in ((base.model, other.model), (base.train, other.train))
            for key in vars(one)
            if getattr(one, key) != getattr(two, key)
        ]
        assert len(differs) == 1, name
    for seed in (1, 2):
        again = everything[f"linear-seed{seed}"]
        assert again.train == replace(base.train, seed=seed)
        assert again.model == base.model
    assert all(each.train.steps == 7 for each in everything.values())


def test_verdicts():
    assert "**holds**" in verdict(-0.1, 0.02, 8, "c")
    assert "**does not hold**" in verdict(0.1, 0.02, 8, "c")
    assert "**not decided**" in verdict(-0.045, 0.02, 8, "c")
    for freedom, expected in ((8, 2.306), (30, 2.042), (1000, 1.962)):  # tables of Student's t
        assert abs(critical(freedom) - expected) < 0.01
    per_image = {0: [1.0, 2.0, 4.0], 1: [1.0, 2.0, 2.0]}
    results: dict = {"budget": {"seeds": 2}, "bound": {}}
    for name in TITLES:
        for seed in (0, 1):
            images = per_image[seed] if name == "linear" else [0.0, 0.0, 0.0]
            results["bound"][f"{name}-seed{seed}"] = {"images": images, "bpd": sum(images) / 3}
    mean, error = paired(results, "linear", "eps")
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    between = torch.tensor([7 / 3, 5 / 3], dtype=torch.float64).var() / len(TITLES)  # pooled over all settings
    assert abs(mean - float(values.mean())) < 1e-12
    assert abs(error - float((values.var() / 3 + between).sqrt())) < 1e-12
    with pytest.raises(ValueError, match="draws is 2; allowed: at least 10"):
        Budget(draws=2)


def test_the_committed_document_is_written_from_the_committed_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    results = json.loads((DOCS / "schedules.json").read_text())
    write_report(results, tmp_path)
    assert (tmp_path / "schedules.md").read_text() == (DOCS / "schedules.md").read_text()
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["schedules-gamma.png", "schedules-steps.png", "schedules-training.png"]
    assert all((DOCS / name).is_file() for name in pictures)
