"""Studies of DiffuseVAE and of restoration: models that compare, measurements, documents that follow their numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from attrs import evolve
from tiny import DATA, SMALL, SMALL_VAE

from benchmarks.studies import restoration, restoration_report, speed_up, speed_up_report
from benchmarks.studies.study import Budget
from fastdiff import load, sample
from fastdiff.data import digits
from fastdiff.diffusion import Ancestral
from fastdiff.evaluation import fd_digits
from fastdiff.models import HVAEConfig, model_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
BUDGET = Budget(steps=5, seeds=2, draws=10)
SETTINGS = {**speed_up.SETTINGS, **speed_up.MIXTURE_SETTINGS}
SAVED = (
    "vae-seed0", "ddpm-seed0", "diffusevae1-seed0", "diffusevae1-seed1", "diffusevae2-seed0", "noise-0.5-seed1",
    "down-2-seed0",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ models


def test_the_three_have_one_size_and_one_training():
    """Within 1 % in all parameters; the same training but for the loss of the VAE and the first stage."""
    everything = {run.name: run for run in speed_up.runs(BUDGET)}
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in model_of(run.model).parameters()) for name, run in everything.items()}
    compared = [size for name, size in sizes.items() if not name.startswith("vae")]
    assert max(compared) / min(compared) < 1.01
    assert {run.setting for run in everything.values()} == {"vae", *speed_up_report.MODELS}
    for name, run in everything.items():
        bare = evolve(run.train, seed=0, loss="simple", first_stage=None)
        assert bare == evolve(everything["ddpm-seed0"].train, seed=0), name
        assert run.train.first_stage == (f"vae-seed{run.train.seed}" if "diffusevae" in name else None)
    assert set(SETTINGS) == {f"{name}-{n}" for name, (_, steps) in speed_up_report.SAMPLERS.items() for n in steps}


def test_restoration_models_are_the_second_stage_with_other_conditioning_images():
    everything = {run.name: run for run in restoration.runs(BUDGET)}
    second = everything["diffusevae1-seed0"]
    shared = {name for name in dir(second.model) if not name.startswith("_")} - {"vae"}
    for name, degradation in restoration.DEGRADATIONS.items():
        run = everything[f"{name}-seed0"]
        assert all(getattr(run.model, each) == getattr(second.model, each) for each in shared)
        assert run.model.degradation == degradation
        assert run.train == evolve(second.train, first_stage=None)
    assert set(restoration.DEGRADATIONS) == set(restoration_report.TITLES)


# ------------------------------------------------------------------------------------------------ measurements


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Small models in the folders of the runs, without training; the seeds share weights and differ in sampling."""
    pytest.importorskip("sklearn")
    fields = {**DATA, "T": 4, "network": SMALL}
    monkeypatch.setattr(speed_up, "VAE", HVAEConfig(**SMALL_VAE))
    monkeypatch.setattr(speed_up, "network", lambda *widths: fields)
    monkeypatch.setattr(restoration, "network", lambda *widths: fields)
    everything = {run.name: run for run in [*speed_up.runs(BUDGET), *restoration.runs(BUDGET)]}
    for name in SAVED:
        torch.manual_seed(7)
        model_of(everything[name].model).save(tmp_path / name / "model")
    return everything, tmp_path


def test_what_the_study_of_the_speed_up_measures(trained):
    runs, folder = trained
    options = {
        "images": 20, "draws": 1, "components": 2, "mixture_settings": {"mixture-2": speed_up.setting("ddim", 2)},
        "settings": {"betas-3": speed_up.setting("ancestral", 3, variance="fixed_small", betas=[1e-6, 0.8])},
    }  # fmt: skip
    first, second = (speed_up.measure(runs[f"diffusevae1-seed{seed}"], folder, options) for seed in (0, 1))
    assert set(first["distances"]) == {"betas-3", "mixture-2"}
    assert first["distances"]["betas-3"] != second["distances"]["betas-3"]
    sampler = Ancestral(variance="fixed_small", betas=(1e-6, 0.8))
    images = sample(load(folder / "diffusevae1-seed1/model"), 20, 3, sampler, seed=1, output="levels")
    assert second["distances"]["betas-3"][0] == pytest.approx(fd_digits(images).value, rel=1e-6)
    assert set(speed_up.measure(runs["ddpm-seed0"], folder, options)["distances"]) == {"betas-3"}
    assert set(speed_up.measure(runs["vae-seed0"], folder, options)["distances"]) == {"vae", "vae-mixture"}

    strips = speed_up._strips(load(folder / "diffusevae2-seed0/model"))
    assert {vary: torch.tensor(rows).shape for vary, rows in strips.items()} == dict.fromkeys(
        ("latent", "noise", "class"), (2, 16, 64)
    )
    shown = [runs[name] for name in ("vae-seed0", "ddpm-seed0", "ddpm-seed1")]
    assert set(speed_up._samples(shown, folder)) == {f"ddpm-{steps}" for steps in speed_up.SHOWN}


def test_what_the_study_of_restoration_measures(trained):
    """The PSNR of the noisy images against its expectation for Gaussian noise, which is not clipped."""
    runs, folder = trained
    options = {"steps": 2, "sampler": "ddim", "shown": 3}
    found = restoration.measure(runs["noise-0.5-seed1"], folder, options)
    assert set(found) == {"noise-0.5", "degraded"}
    decibels, half = 10 / math.log(10), torch.tensor(32.0)  # of a squared error with 64 degrees of freedom
    expected = 20 * math.log10(2 * 16 / 17 / 0.5) + decibels * float(half.log() - half.digamma())
    assert abs(found["degraded"]["psnr"] - expected) < 4 * decibels * math.sqrt(2 / 64 / 297)
    assert len(found["degraded"]["levels"]) == 3
    averages = torch.nn.functional.avg_pool2d(digits().test_images.double(), 2).repeat_interleave(2, 2)
    error = (averages.repeat_interleave(2, 3) - digits().test_images).square().flatten(1).mean(1)
    found = restoration.measure(runs["down-2-seed0"], folder, options)
    assert found["degraded"]["psnr"] == pytest.approx(float((10 * (16**2 / error).log10()).mean()), abs=1e-5)
    assert set(restoration.measure(runs["vae-seed0"], folder, options)) == {"none", *restoration.DEGRADATIONS}


# ------------------------------------------------------------------------------------------------ documents


def speed_up_results() -> dict:
    """DiffuseVAE 1 at half of the DDPM's distance, DiffuseVAE 2 at about the same as 1."""
    models = {}
    for seed in range(3):
        factor = [1.0, 1.1, 0.9][seed]
        for name, level in {"ddpm": 8.0, "diffusevae1": 4.0, "diffusevae2": 4.1}.items():
            distances = {each: [level * factor, 0.5] for each in SETTINGS}
            models[f"{name}-seed{seed}"] = {"parameters": 1000, "bpd": 3.0, "distances": distances}
        distances = {"vae": [20.0, 1.0], "vae-mixture": [5.0, 1.0]}
        models[f"vae-seed{seed}"] = {"parameters": 100, "bpd": 2.0, "distances": distances}
    samples = {f"{name}-{steps}": [[0] * 64] * 10 for name in speed_up_report.MODELS for steps in speed_up.SHOWN}
    budget = {"steps": 5, "seeds": 3, "draws": 10}
    strips = {vary: [[[0] * 64] * 16] * 2 for vary in ("latent", "class", "noise")}
    return {"budget": budget, "images": 1500, "models": models, "samples": samples, "strips": strips}


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
    assert speed_up_report.compare(results, "diffusevae2", "diffusevae1", "ddim-5")[1] == "equal"
    speed_up_report.write_report(results, tmp_path)
    text = (tmp_path / "speed-up.md").read_text()
    assert "| DDIM | **0.50** | **0.50** | **0.50** | **0.50** | **0.50** |" in text
    assert "| ancestral, few betas |  | 1.02 | 1.02 | 1.02 |  |" in text
    assert "DiffuseVAE 2 compared with DDPM: 17 lower, 0 higher, 0 not" in text
    assert "8.0 ± 0.5" in text


def test_the_report_on_restoration(tmp_path):
    pytest.importorskip("matplotlib")
    cells = {"psnr": 10.0, "fd": 20.0, "levels": [[0] * 64] * 10}
    models = {}
    for seed in (0, 1):
        for method in ("vae", "diffusevae1"):
            own = {**cells, "psnr": 12.0 + 2 * seed}
            models[f"{method}-seed{seed}"] = {"none": cells, **dict.fromkeys(restoration.DEGRADATIONS, own)}
        for name in restoration.DEGRADATIONS:
            models[f"{name}-seed{seed}"] = {name: cells, "degraded": cells}
    results = {"budget": {"steps": 5, "seeds": 2, "draws": 10}, "models": models, "originals": [[0] * 64] * 10}
    assert restoration_report.summary(results, "vae", "down-2", "psnr") == "13.0 ± 1.0"
    restoration_report.write_report(results, tmp_path)
    text = (tmp_path / "restoration.md").read_text()
    assert "| down-sampling by 4 | 10.0 | 13.0 ± 1.0 | 13.0 ± 1.0 | 10.0 ± 0.0 |" in text
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(("name", "report"), [("speed-up", speed_up_report), ("restoration", restoration_report)])
def test_the_committed_documents_are_written_from_the_committed_numbers(name, report, tmp_path):
    pytest.importorskip("matplotlib")
    report.write_report(json.loads((DOCS / f"{name}.json").read_text()), tmp_path)
    text = (tmp_path / f"{name}.md").read_text()
    assert text == (DOCS / f"{name}.md").read_text()
    figures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert figures == sorted(path.name for path in DOCS.glob(f"{name}*.png"))
    assert all(f"({figure})" in text for figure in figures)
