"""Studies of DiffuseVAE: models that compare, two stages, cached measurements, documents that follow their numbers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import SMALL, SMALL_VAE

from fastdiff.checkpoint import load
from fastdiff.models import DDPMConfig, DiffuseVAEConfig, HVAEConfig, model_of
from fastdiff.studies import (
    latent_steps_report,
    noise_schedules_report,
    restoration,
    restoration_report,
    speed_up,
    speed_up_report,
)
from fastdiff.studies.budget import Budget
from fastdiff.studies.runner import Arm, measure_arms, train_arms
from fastdiff.training import TrainConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"
BUDGET = Budget(steps=5, seeds=2, draws=10)


def test_the_three_have_one_size_and_one_training():
    """Within 1 % in all parameters; the same training but for the loss of the VAE and what stands below."""
    everything = {arm.name: arm for arm in speed_up.arms(BUDGET)}
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in model_of(arm.model).parameters()) for name, arm in everything.items()}
    compared = [size for name, size in sizes.items() if not name.startswith("vae")]
    assert max(compared) / min(compared) < 1.01
    assert {name.rpartition("-seed")[0] for name in everything} == {"vae", *speed_up_report.MODELS}
    for name, arm in everything.items():
        bare = replace(arm.train, seed=0, loss="simple", first_stage=None)
        assert bare == replace(everything["ddpm-seed0"].train, seed=0), name
        below = f"vae-seed{arm.train.seed}" if "diffusevae" in name else None
        assert arm.train.first_stage == below
    assert len(speed_up.WALKS) + len(speed_up.MIXTURE_WALKS) == sum(
        len(steps) for _, steps in speed_up_report.SAMPLERS.values()
    )


def test_restorers_are_the_second_stage_on_other_pictures():
    everything = {arm.name: arm for arm in restoration.arms(BUDGET)}
    second = everything["diffusevae1-seed0"]
    for name, degradation in restoration.DEGRADATIONS.items():
        arm = everything[f"{name}-seed0"]
        assert arm.model.refiner == second.model.refiner
        assert arm.model.degradation == degradation
        assert arm.train == replace(second.train, first_stage=None)
    assert set(restoration.DEGRADATIONS) == set(restoration_report.TITLES)


def measure(arm: Arm, folder: Path, settings: dict) -> dict:
    """What the test below measures; in a module, for the processes."""
    with (folder / "calls").open("a") as file:
        file.write(arm.name + "\n")
    return {"twice": 2 * settings["value"]}


def test_a_first_stage_is_trained_first_and_measurements_are_kept(tmp_path, capsys):
    vae, refiner = HVAEConfig(**SMALL_VAE), DDPMConfig((1, 8, 8), 17, steps=4, network=SMALL)
    train = TrainConfig("digits", 2, batch_size=4)
    above = DiffuseVAEConfig((1, 8, 8), 17, vae=vae, refiner=refiner)
    arms = [Arm("above", above, replace(train, loss="simple", first_stage="below")), Arm("below", vae, train)]
    train_arms(arms, tmp_path, workers=1)
    below, model = load(tmp_path / "below/model"), load(tmp_path / "above/model")
    for name, value in below.state_dict().items():
        assert torch.equal(model.state_dict()[f"vae.{name}"], value)
    for value, times in ((3, 1), (3, 1), (4, 2)):  # the same settings are measured once
        found = measure_arms(arms, tmp_path, 1, measure, "numbers", {"value": value})
        assert found == {"above": {"twice": 2 * value}, "below": {"twice": 2 * value}}
        assert sorted((tmp_path / "calls").read_text().split()) == ["above"] * times + ["below"] * times
    (tmp_path / "below/numbers.json").write_text("{")
    assert measure_arms(arms, tmp_path, 1, measure, "numbers", {"value": 4})["below"] == {"twice": 8}
    assert "measured below" in capsys.readouterr().out


def speed_up_results() -> dict:
    """DiffuseVAE 1 at half of the DDPM's distance, DiffuseVAE 2 at about the same as 1."""
    models = {}
    for seed in range(3):
        wobble = [1.0, 1.1, 0.9][seed]
        for name, level in {"ddpm": 8.0, "diffusevae1": 4.0, "diffusevae2": 4.1}.items():
            walks = {walk: [level * wobble, 0.5] for walk in (*speed_up.WALKS, *speed_up.MIXTURE_WALKS)}
            models[f"{name}-seed{seed}"] = {"parameters": 1000, "bpd": 3.0, "distances": walks}
        models[f"vae-seed{seed}"] = {
            "parameters": 100,
            "bpd": 2.0,
            "distances": {"vae": [20.0, 1.0], "vae-mixture": [5.0, 1.0]},
        }
    pictures = {f"{name}-{steps}": [[0] * 64] * 10 for name in speed_up_report.MODELS for steps in speed_up.SHOWN}
    budget = {"steps": 5, "seeds": 3, "draws": 10}
    strips = {vary: [[[0] * 64] * 16] * 2 for vary in ("latent", "class", "noise")}
    return {"budget": budget, "images": 1500, "models": models, "pictures": pictures, "strips": strips}


def test_the_verdicts_on_the_speed_up(tmp_path):
    pytest.importorskip("matplotlib")
    results = speed_up_results()
    logs = [math.log(value) for value in (1.0, 1.1, 0.9)]
    variance = torch.tensor(logs, dtype=torch.float64).var()
    assert abs(speed_up_report.log_variance(results, "ddim-5") - float(variance)) < 1e-12
    mean, error = speed_up_report.summary(results, "ddpm", "ddim-5")
    assert abs(mean - 8.0) < 1e-12
    assert abs(error - 8.0 * math.sqrt(float(variance) / 3)) < 1e-12
    assert speed_up_report.compare(results, "diffusevae1", "ddpm", "ddim-5") == (pytest.approx(0.5), "lower")
    assert speed_up_report.compare(results, "ddpm", "diffusevae1", "ddim-5") == (pytest.approx(2.0), "higher")
    assert speed_up_report.compare(results, "diffusevae2", "diffusevae1", "ddim-5")[1] == "not told apart"
    speed_up_report.write_report(results, tmp_path)
    text = (tmp_path / "speed-up.md").read_text()
    assert "| DDIM | **0.50** | **0.50** | **0.50** | **0.50** | **0.50** |" in text
    assert "| ancestral, few betas |  | 1.02 | 1.02 | 1.02 |  |" in text
    assert "DiffuseVAE 2 against DDPM: 17 lower, 0 higher, 0 not told apart." in text
    assert "8.0 ± 0.5" in text


def test_what_the_studies_measure(tmp_path, monkeypatch):
    """Both measurements on models without training: seeds draw different samples, the noise is not clipped."""
    pytest.importorskip("sklearn")
    vae, refiner = HVAEConfig(**SMALL_VAE), DDPMConfig((1, 8, 8), 17, steps=4, network=SMALL)
    monkeypatch.setattr(speed_up, "VAE", vae)
    monkeypatch.setattr(speed_up, "ddpm", lambda *widths: refiner)
    monkeypatch.setattr(restoration, "ddpm", lambda *widths: refiner)
    everything = {arm.name: arm for arm in [*speed_up.arms(BUDGET), *restoration.arms(BUDGET)]}
    for arm in everything.values():
        torch.manual_seed(7)  # the same weights for all seeds: what differs is the sampling
        model_of(arm.model).save(tmp_path / arm.name / "model")
    walks = {"ddim-2": {"steps": 2, "sampler": "ddim"}}
    mixtures = {"mixture-2": walks["ddim-2"]}
    settings = {"images": 20, "draws": 1, "walks": walks, "mixture_walks": mixtures, "components": 2}
    one, two = (speed_up.measure(everything[f"diffusevae1-seed{seed}"], tmp_path, settings) for seed in (0, 1))
    assert set(one["distances"]) == {"ddim-2", "mixture-2"}
    assert one["distances"]["ddim-2"] != two["distances"]["ddim-2"]
    assert set(speed_up.measure(everything["vae-seed0"], tmp_path, settings)["distances"]) == {"vae", "vae-mixture"}
    shown = speed_up._strips(load(tmp_path / "diffusevae2-seed0/model"))
    assert {vary: (len(walks), len(walks[0]), len(walks[0][0])) for vary, walks in shown.items()} == {
        "latent": (2, 16, 64), "noise": (2, 16, 64), "class": (2, 16, 64),
    }  # fmt: skip
    settings = {"walk": {"steps": 2, "sampler": "ddim"}, "shown": 3}
    found = restoration.measure(everything["noise-0.5-seed1"], tmp_path, settings)
    assert set(found) == {"noise-0.5", "degraded"}
    decibels, half = 10 / math.log(10), torch.tensor(32.0)  # of a squared error with 64 degrees of freedom
    expected = 20 * math.log10(2 * 16 / 17 / 0.5) + decibels * float(half.log() - half.digamma())
    assert abs(found["degraded"]["psnr"] - expected) < 4 * decibels * math.sqrt(2 / 64 / 297)
    assert len(found["degraded"]["levels"]) == 3
    below = restoration.measure(everything["vae-seed0"], tmp_path, settings)
    assert set(below) == {"none", *restoration.DEGRADATIONS}


def test_the_report_on_restoration(tmp_path):
    pytest.importorskip("matplotlib")
    cells = {"psnr": 10.0, "fd": 20.0, "levels": [[0] * 64] * 10}
    models = {}
    for seed in (0, 1):
        for way in ("vae", "diffusevae1"):
            own = {**cells, "psnr": 12.0 + 2 * seed}
            models[f"{way}-seed{seed}"] = {"none": cells, **dict.fromkeys(restoration.DEGRADATIONS, own)}
        for name in restoration.DEGRADATIONS:
            models[f"{name}-seed{seed}"] = {name: cells, "degraded": cells}
    results = {"budget": {"steps": 5, "seeds": 2, "draws": 10}, "models": models, "originals": [[0] * 64] * 10}
    assert restoration_report.summary(results, "vae", "down-2", "psnr") == "13.0 ± 1.0"
    restoration_report.write_report(results, tmp_path)
    text = (tmp_path / "restoration.md").read_text()
    assert "| down-sampling by 4 | 10.0 | 13.0 ± 1.0 | 13.0 ± 1.0 | 10.0 ± 0.0 |" in text
    assert len(list(tmp_path.glob("*.png"))) == 3


REPORTS = {
    "schedules": noise_schedules_report,
    "latent-steps": latent_steps_report,
    "speed-up": speed_up_report,
    "restoration": restoration_report,
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_committed_documents_are_written_from_the_committed_numbers(name, tmp_path):
    pytest.importorskip("matplotlib")
    REPORTS[name].write_report(json.loads((DOCS / f"{name}.json").read_text()), tmp_path)
    assert (tmp_path / f"{name}.md").read_text() == (DOCS / f"{name}.md").read_text()
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == sorted(path.name for path in DOCS.glob(f"{name}*.png"))
    assert all(f"({picture})" in (DOCS / f"{name}.md").read_text() for picture in pictures)
