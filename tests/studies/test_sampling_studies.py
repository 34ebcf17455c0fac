"""Studies of DiffuseVAE and of restoration: models that compare, measurements, documents that follow their numbers."""

import math
from dataclasses import replace
from pathlib import Path

import attrs
import pytest
import torch
from attrs import evolve
from tiny import SMALL, SMALL_VAE

from benchmarks.studies import restoration, restoration_report, speed_up, speed_up_numbers, speed_up_report
from benchmarks.studies.data_sets import DATA_SETS
from benchmarks.studies.documents import image_text
from benchmarks.studies.study import Budget, results_of
from fastdiff import load, sample
from fastdiff.data import digits, letters
from fastdiff.diffusion import Ancestral
from fastdiff.evaluation import fd_digits
from fastdiff.evaluation.frechet import Frechet
from fastdiff.models import HVAEConfig, model_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
BUDGET = Budget(steps=5, seeds=2, draws=10)
DIGITS = DATA_SETS["digits"]
SETTINGS = {**speed_up.SCOPES["digits"].settings, **speed_up.SCOPES["digits"].mixture_settings}
SAVED = (
    "vae-seed0", "ddpm-seed0", "diffusevae1-seed0", "diffusevae1-seed1", "diffusevae2-seed0", "noise-0.5-seed1",
    "down-2-seed0",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(("name", "ratio"), [("digits", 1.01), ("letters", 1.011)])
def test_the_models_have_one_size_and_one_training(name, ratio):
    """All parameters within a ratio; the same training but for the loss of the VAEs and the first stage."""
    data, scope = DATA_SETS[name], speed_up.SCOPES[name]
    everything = {run.name: run for run in speed_up.runs(data, BUDGET)}
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in model_of(run.model).parameters()) for name, run in everything.items()}
    compared = [size for name, size in sizes.items() if not name.startswith("vae")]
    assert max(compared) / min(compared) < ratio
    expected = {"vae", "ddpm", "diffusevae1", "diffusevae2"}
    assert {run.setting for run in everything.values()} == expected | (
        {"vae-beta4", "diffusevae1-beta4"} if scope.weighted else set()
    )
    for name, run in everything.items():
        bare = evolve(run.train, seed=0, loss="simple", first_stage=None)
        assert bare == evolve(everything["ddpm-seed0"].train, seed=0), name
        if "diffusevae" in name:
            assert run.model.vae == everything[run.train.first_stage].model
            assert everything[run.train.first_stage].train.seed == run.train.seed
            assert run.model.vae == evolve(data.vae, beta=4.0 if "beta4" in name else 1.0)
        else:
            assert run.train.first_stage is None
    settings = {*scope.settings, *scope.mixture_settings}
    assert {setting.rpartition("-")[0] for setting in settings} <= set(speed_up_numbers.SAMPLERS)
    assert data.shape == data.load().shape
    assert data.levels == data.load().levels


def test_restoration_models_are_the_second_stage_with_other_conditioning_images():
    everything = {run.name: run for run in restoration.runs(DIGITS, BUDGET)}
    second = everything["diffusevae1-seed0"]
    shared = {field.name for field in attrs.fields(type(second.model))} - {"vae"}
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
    small = replace(DIGITS, vae=HVAEConfig(**SMALL_VAE), second_stage=SMALL, ddpm=SMALL)
    few = [*speed_up.runs(small, BUDGET), *restoration.runs(small, BUDGET)]
    everything = {run.name: run if run.setting == "vae" else replace(run, model=evolve(run.model, T=4)) for run in few}
    for name in SAVED:
        torch.manual_seed(7)
        model_of(everything[name].model).save(tmp_path / name / "model")
    return everything, tmp_path


def test_what_the_study_of_the_speed_up_measures(trained):
    runs, folder = trained
    options = {
        "images": 20, "draws": 1, "components": (2,), "mixture_settings": {"mixture-2": speed_up.setting("ddim", 2)},
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

    strips = speed_up._strips(DIGITS, load(folder / "diffusevae2-seed0/model"))
    assert set(strips) == {"latent", "noise", "class"}
    assert all([len(image) for image in row] == [64] * 16 for rows in strips.values() for row in rows)
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


def test_what_the_study_of_the_speed_up_measures_on_letters(tmp_path, monkeypatch):
    """The distance and the images are those of the data set, and the mixture has the number of components of the two
    that gives the held-out latents the higher density."""
    pytest.importorskip("sklearn")
    data = DATA_SETS["letters"]
    images, held_out = letters().train_images[:40], letters().test_images[:12]
    few = replace(letters(), train_images=images, test_images=held_out, test_groups=None)
    vae = HVAEConfig(**{**SMALL_VAE, **data.bare})
    small = replace(data, load=lambda: few, fd=lambda x: Frechet(float(x[0].sum()), 0.1, len(x), 40), vae=vae,
                    second_stage=SMALL)  # fmt: skip
    monkeypatch.setitem(DATA_SETS, "letters", small)
    run = next(run for run in speed_up.runs(small, BUDGET) if run.name == "diffusevae1-beta4-seed1")
    model = model_of(run.model)
    model.save(tmp_path / run.name / "model")
    options = {
        "images": 3, "draws": 1, "components": [1, 30], "settings": {"ddim-2": speed_up.setting("ddim", 2)},
        "mixture_settings": {"mixture-2": speed_up.setting("ddim", 2)},
    }  # fmt: skip
    found = speed_up.measure(run, tmp_path, options)
    images = sample(load(tmp_path / run.name / "model"), 3, 2, "ddim", seed=1, output="levels")
    assert found["distances"]["ddim-2"][0] == float(images[0].sum())
    assert found["components"] == 1  # 30 fit single latents of 40
    assert speed_up.yardstick(small, 6) == [float(few.test_images[0].sum()), 0.1]
    assert speed_up.yardstick(small, 13) is None


# ------------------------------------------------------------------------------------------------ documents


def speed_up_results(name: str = "digits") -> dict:
    """DiffuseVAE 1 at half of the DDPM's distance, DiffuseVAE 2 at about the same as 1, with β = 4 at a quarter."""
    models, scope = {}, speed_up.SCOPES[name]
    settings = {**scope.settings, **scope.mixture_settings}
    levels = {"ddpm": 8.0, "diffusevae1": 4.0, "diffusevae2": 4.1}
    levels |= {"diffusevae1-beta4": 2.0} if scope.weighted else {}
    for seed in range(3):
        factor = [1.0, 1.1, 0.9][seed]
        for each, level in levels.items():
            distances = {setting: [level * factor, 0.5] for setting in settings}
            models[f"{each}-seed{seed}"] = {"parameters": 1000, "bpd": 3.0, "distances": distances}
        for vae in ("vae", "vae-beta4") if scope.weighted else ("vae",):
            distances = {"vae": [20.0 if vae == "vae" else 6.0, 1.0], "vae-mixture": [5.0, 1.0]}
            terms = {"bpd": 2.0, "recon": 1.5, "prior": 0.5 if vae == "vae" else 0.1 + 0.1 * seed}
            models[f"{vae}-seed{seed}"] = {"parameters": 100, **terms, "distances": distances, "components": 10}
    images = image_text(torch.zeros(10, *DATA_SETS[name].shape, dtype=torch.uint8))
    samples = {f"{each}-{steps}": images for each in levels for steps in speed_up.SHOWN}
    strips = {vary: [images] * 2 for vary in ("latent", "class", "noise")}
    budget = {"steps": 5, "seeds": 3, "draws": 10}
    return {
        "budget": budget, "images": 1500, "models": models, "samples": samples, "strips": strips,
        "yardstick": [0.5, 0.1], "components": scope.components,
    }  # fmt: skip


def test_the_verdicts_on_the_speed_up(tmp_path):
    pytest.importorskip("matplotlib")
    results = speed_up_results()
    logs = [math.log(value) for value in (1.0, 1.1, 0.9)]
    variance = torch.tensor(logs, dtype=torch.float64).var()
    assert abs(speed_up_numbers.log_variance(results, "ddim-5") - float(variance)) < 1e-12
    mean, error = speed_up_numbers.summary(results, "ddpm", "ddim-5")
    assert abs(mean - 8.0) < 1e-12
    assert abs(error - 8.0 * math.sqrt(float(variance) / 3)) < 1e-12
    assert speed_up_numbers.summary(results, "ddpm", "mixture-5") == (mean, error)  # it has no z
    assert speed_up_numbers.compare(results, "diffusevae1", "ddpm", "ddim-5") == (pytest.approx(0.5), "lower")
    assert speed_up_numbers.compare(results, "ddpm", "diffusevae1", "ddim-5") == (pytest.approx(2.0), "higher")
    assert speed_up_numbers.compare(results, "diffusevae2", "diffusevae1", "ddim-5")[1] == "equal"
    # one model in two settings: the prior's distance twice that of the mixture, and the VAE's 1.1 times the latter's
    for seed in range(3):
        rows = {name: results["models"][f"{name}-seed{seed}"]["distances"] for name in ("diffusevae1", "vae")}
        rows["diffusevae1"]["ddim-50"] = [2.0 * value for value in rows["diffusevae1"]["mixture-50"]]
        rows["vae"]["vae-mixture"] = [1.1 * value for value in rows["diffusevae1"]["mixture-50"]]
    pair = "ddim-50", "mixture-50"
    assert speed_up_numbers.compare_settings(results, "diffusevae1", *pair) == (pytest.approx(2.0), "higher")
    assert speed_up_numbers.compare_settings(results, "diffusevae1", *pair[::-1]) == (pytest.approx(0.5), "lower")
    assert speed_up_numbers.compare_settings(results, "ddpm", *pair) == (pytest.approx(1.0), "equal")
    assert speed_up_numbers.first_stage_ratio(results, "mixture-50") == (pytest.approx(1.1), "equal")
    results = speed_up_results()
    speed_up_report.write_report({"digits": results}, tmp_path)
    text = (tmp_path / "speed-up.md").read_text()
    assert "| DDIM | **0.50** | **0.50** | **0.50** | **0.50** | **0.50** |" in text
    assert "| ancestral, few betas |  | 1.02 | 1.02 | 1.02 |  |" in text
    assert "DiffuseVAE 2 compared with DDPM: 17 lower, 0 higher, 0 not" in text
    assert "8.0 ± 0.5" in text


def test_the_speed_up_of_digits_and_letters_side_by_side(tmp_path):
    pytest.importorskip("matplotlib")
    speed_up_report.write_report({name: speed_up_results(name) for name in DATA_SETS}, tmp_path)
    text = (tmp_path / "speed-up.md").read_text()
    lines, flat = text.splitlines(), " ".join(text.split())
    assert "| letters: DDIM | **0.50** | **0.50** | **0.50** | **0.50** | **0.50** |" in lines
    assert "| letters: ancestral |  | **0.50** | **0.50** | **0.50** |  |" in lines
    assert "| the VAE's images, β = 4, z from its prior and from a mixture | not tried | 6.0 and 5.0 |" in lines
    claim = "| DiffuseVAE 1, β = 4 compared with DiffuseVAE 1, z from the VAE's prior |"
    assert f"{claim} not tried | lower at 5, 10, 25, 50, 100 steps |" in lines
    assert "DiffuseVAE 2 compared with DDPM: digits: 17 lower, 0 higher, 0 not" in flat
    assert "For as many held-out letters it is 0.5 ± 0.1" in flat
    assert "Not tried on the digits: DiffuseVAE 1, β = 4." in flat
    left_out = "ancestral with 5, 100 steps; ancestral, few betas; DiffuseVAE 2, β = 4"
    assert f"Not tried on the letters: {left_out}. Seeds of training: 3 on the digits, 3 on the letters." in flat
    assert "Of 10, 20, 40 components each has" in flat
    assert "its KL is 0.200 bits/dim (β = 1: 0.500), and the rest of its bound, the negative log-likelihood of" in flat
    assert "with z from the prior, it is 2.0, 0.50 times that with β = 1: lower." in flat
    assert "the prior's is 1.00 times that of the mixture, no significant difference, so it is not shown" in flat
    assert "the VAE's images is 1.25 times that of the images refined in 50 steps: measured by FD-letters, the" in flat
    assert "the prior's is 1.20 times that of the mixture with β = 4, and 4.00 times with β = 1" in flat
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert len(figures) == 6
    assert all(f"({figure})" in text for figure in figures)


def test_the_speed_up_of_letters_alone(tmp_path):
    """Nothing of the digits, and no sampler that was not measured."""
    pytest.importorskip("matplotlib")
    speed_up_report.write_report({"letters": speed_up_results("letters")}, tmp_path)
    text = (tmp_path / "speed-up.md").read_text()
    assert not [word for word in ("digit", "ew betas", "Written by `python benchmarks/studies/reproduce.py speed-up` ")
                if word in text]  # fmt: skip
    assert "The samplers take steps evenly spaced in time." in " ".join(text.split())


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
    restoration_report.write_report({"digits": results}, tmp_path)
    text = (tmp_path / "restoration.md").read_text()
    assert "| down-sampling by 4 | 10.0 | 13.0 ± 1.0 | 13.0 ± 1.0 | 10.0 ± 0.0 |" in text
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(("name", "report"), [("speed-up", speed_up_report), ("restoration", restoration_report)])
def test_the_committed_documents_are_written_from_the_committed_numbers(name, report, tmp_path):
    pytest.importorskip("matplotlib")
    report.write_report(results_of(name, DOCS), tmp_path)
    text = (tmp_path / f"{name}.md").read_text()
    assert text == (DOCS / f"{name}.md").read_text()
    figures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert figures == sorted(path.name for path in DOCS.glob(f"{name}*.png"))
    assert all(f"({figure})" in text for figure in figures)
