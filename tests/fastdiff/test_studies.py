"""Studies of the bound: models that are trained are kept, settings are compared, the document follows its numbers."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import SMALL

from fastdiff.models import VDM, VDMConfig, model_of
from fastdiff.studies import STUDIES, Study, latent_steps, latent_steps_report
from fastdiff.studies.budget import Budget
from fastdiff.studies.noise_schedules import arms
from fastdiff.studies.noise_schedules_report import TITLES, paired, verdict
from fastdiff.studies.runner import Arm, StudyError, load_arm, train_arms
from fastdiff.studies.statistics import critical, difference
from fastdiff.training import TrainConfig


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


def test_a_study_trains_gathers_and_writes(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    asked = []
    study = Study(
        "tiny",
        lambda budget: [arm(budget.steps)],
        lambda arms, folder, budget, workers: {"names": [load_arm(each, folder) and each.name for each in arms]},
        lambda results, out: (out / "tiny.md").write_text(f"{results['names']}"),
        Budget(steps=2, seeds=2),
        "tiny",
        needs=lambda: asked.append(True),
    )
    study.reproduce(tmp_path / "docs", tmp_path / "runs", study.budget, workers=1)
    assert asked == [True]
    assert (tmp_path / "docs/tiny.md").read_text() == "['one']"
    numbers = json.loads((tmp_path / "docs/tiny.json").read_text())
    assert numbers == {"budget": {"steps": 2, "seeds": 2, "draws": 128}, "names": ["one"]}
    assert "wrote " in capsys.readouterr().out
    assert list(STUDIES) == ["schedules", "latent-steps", "speed-up", "restoration"]


def test_the_study_compares_one_thing_at_a_time():
    """Every setting differs from `linear` in one field of the model or of the training; seeds in the seed alone."""
    everything = {each.name: each for each in arms(Budget(steps=7, seeds=3, draws=10))}
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
        Budget(steps=1, seeds=2, draws=2)


def test_latent_steps_compare_models_of_one_size():
    """Within 6 % of each other in parameters, the same training, and no labels."""
    everything = latent_steps.arms(Budget(steps=5, seeds=2, draws=10))
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in model_of(each.model).parameters()) for each in everything]
    assert max(sizes) / min(sizes) < 1.06
    assert len({replace(each.train, seed=0) for each in everything}) == 1
    assert {each.name.rpartition("-seed")[0] for each in everything} == set(latent_steps_report.ORDER)
    assert all(not each.model.classes for each in everything)


def test_the_report_on_latent_steps_follows_from_its_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    rows = {
        f"{name}-seed{seed}": {
            "steps": None, "bpd": 4.0 - 0.2 * rank + 0.01 * seed, "se": 0.1, "recon": 1.0, "prior": 0.5,
            "diffusion": 0.1, "train_bpd": 1.0, "parameters": 1000 + rank,
            "images": [4.0 - 0.2 * rank + 0.01 * seed + 0.001 * k for k in range(20)],
        }
        for rank, name in enumerate(latent_steps_report.ORDER)
        for seed in (0, 1)
    }  # fmt: skip
    results = {"budget": {"steps": 5, "seeds": 2, "draws": 10}, "models": rows}
    mean, error = latent_steps_report.summary(results, "hvae-1")
    assert abs(mean - 4.0145) < 1e-9
    assert abs(error**2 - (1e-6 * 35 / 20 + 0.5e-4 / 2)) < 1e-9  # the images' variance, and the seeds'
    gap, _ = difference(rows, latent_steps_report.ORDER, 2, "ddpm-2", "hvae-8")
    assert abs(gap + 0.2) < 1e-9
    latent_steps_report.write_report(results, tmp_path)
    text = (tmp_path / "latent-steps.md").read_text()
    assert text.count(", lower.") == 7
    assert "DDPM at T = 1000 is below the best VAE here, HVAE, depth 8: -0.8000" in text
    assert (tmp_path / "latent-steps.png").stat().st_size > 1000
