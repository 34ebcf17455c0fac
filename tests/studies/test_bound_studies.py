"""Studies of the bound: their models differ in one thing, their numbers agree with direct calls, verdicts follow."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attrs import asdict, evolve
from tiny import SMALL, images, small

from benchmarks.studies import latent_steps, latent_steps_report, noise_schedules, noise_schedules_report
from benchmarks.studies.comparison import critical, difference
from benchmarks.studies.noise_schedules_report import TITLES, paired, verdict
from benchmarks.studies.study import Budget
from fastdiff.data import digits
from fastdiff.diffusion import CosineSchedule
from fastdiff.diffusion.bound import stratified_times
from fastdiff.evaluation import evaluate
from fastdiff.kernels import Noise
from fastdiff.models import ConvVAEConfig, model_of

BUDGET = Budget(steps=5, seeds=2, draws=10)


def few_digits():
    data = digits()
    return replace(data, test_images=data.test_images[:12], test_labels=data.test_labels[:12])


def save_untrained(runs, folder: Path) -> None:
    """Models as a training leaves them, without the training."""
    for run in runs:
        torch.manual_seed(run.train.seed)
        model_of(run.model).save(folder / run.name / "model")
        row = {"event": "train", "step": 5, "bpd": 3.0, "recon": 1.0, "prior": 0.5, "diffusion": 1.5, "loss": 0.0}
        (folder / run.name / "metrics.jsonl").write_text(json.dumps(row) + "\n")


# ------------------------------------------------------------------------------------------------ schedules


def test_the_settings_differ_in_one_field():
    """Every setting differs from `linear` in one field of the model or of the training; seeds in the seed alone."""
    everything = {run.name: run for run in noise_schedules.runs(Budget(steps=7, seeds=3, draws=10))}
    assert len(everything) == 8 * 3 + 1
    base = everything["linear-seed0"]
    for name in ("cosine", "beta-linear", "learned", "independent-times", "no-fourier", "eps"):
        other = everything[f"{name}-seed0"]
        pairs = [(asdict(base.model), asdict(other.model)), (asdict(base.train), asdict(other.train))]
        assert sum(one[key] != two[key] for one, two in pairs for key in one) == 1, name
    for seed in (1, 2):
        assert everything[f"linear-seed{seed}"].train == evolve(base.train, seed=seed)
        assert everything[f"linear-seed{seed}"].model == base.model
    assert all(run.train.max_steps == 7 for run in everything.values())


@pytest.mark.parametrize("prediction", ["epsilon", "categorical"])
def test_the_diffusion_term_is_that_of_the_bound(prediction):
    model, x, noise = small(prediction), images(6), Noise(3, 5)
    with torch.no_grad():
        for other in (model, noise_schedules.with_schedule(model, CosineSchedule(-8.0, 5.0))):
            u = stratified_times(noise, 6)
            assert torch.equal(
                noise_schedules.diffusion_nats(other, x, noise, u), other.vlb(x, noise, T=None).diffusion
            )


def test_the_numbers_of_the_schedules(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for name, value in (("NETWORK", SMALL), ("STEPS", [2, 4]), ("BATCHES", 30), ("digits", few_digits)):
        monkeypatch.setattr(noise_schedules, name, value)
    runs = noise_schedules.runs(BUDGET)
    runs[-1] = replace(runs[-1], model=evolve(runs[-1].model, T=20))  # the DDPM
    save_untrained(runs, tmp_path)
    numbers = noise_schedules.gather(runs, tmp_path, BUDGET, 1)
    assert set(numbers["bound"]) == {f"{name}-seed{seed}" for name in TITLES for seed in (0, 1)}

    by_name = {run.name: noise_schedules.load_run(run, tmp_path) for run in runs}
    x = few_digits().test_images
    direct = evaluate(by_name["linear-seed1"], x, T=None, draws=10)
    assert numbers["bound"]["linear-seed1"]["bpd"] == direct.mean
    assert numbers["bound"]["linear-seed1"]["images"] == pytest.approx(direct.bpd.total.tolist(), abs=1e-6)
    for row, T in zip(numbers["steps"]["learned-seed0"], (2, 4, None), strict=True):
        assert row["T"] == T
        assert row["bpd"] == evaluate(by_name["learned-seed0"], x, T=T, draws=10).mean
    exact = evaluate(by_name["ddpm-seed0"], x, draws=16, exact=True)  # a DDPM's own variance is fixed_large
    assert numbers["ddpm"]["fixed_large"]["bpd"] == exact.mean
    assert numbers["ddpm"]["fixed_small"]["bpd"] > exact.mean

    for name in ("cosine", "beta-linear", "learned"):  # the continuous-time bound depends on the endpoints alone
        row = numbers["invariance"][name]
        assert abs(row["gap"]) < 5 * row["gap_error"], name  # 10 draws: Student's t with 9 degrees of freedom
    assert numbers["invariance"]["linear"]["gap"] == 0.0
    assert numbers["times"]["stratified"]["variance"] < numbers["times"]["independent"]["variance"]
    noise_schedules.write_report(json.loads(json.dumps({"budget": asdict_of(BUDGET), **numbers})), tmp_path)
    assert "## Stratified times" in (tmp_path / "schedules.md").read_text()


def asdict_of(budget: Budget) -> dict[str, int]:
    return {"steps": budget.steps, "seeds": budget.seeds, "draws": budget.draws}


# ------------------------------------------------------------------------------------------------ statistics


def test_verdicts():
    assert "**holds**" in verdict(-0.1, 0.02, 8, "c")
    assert "**does not hold**" in verdict(0.1, 0.02, 8, "c")
    assert "**not decided**" in verdict(-0.045, 0.02, 8, "c")
    for freedom, expected in ((8, 2.306), (30, 2.042), (1000, 1.962)):  # tables of Student's t
        assert abs(critical(freedom) - expected) < 0.01


def test_differences_are_paired_by_image_and_pooled_over_seeds():
    per_image = {0: [1.0, 2.0, 4.0], 1: [1.0, 2.0, 2.0]}
    results: dict = {"budget": {"seeds": 2}, "bound": {}}
    for name in TITLES:
        for seed in (0, 1):
            values = per_image[seed] if name == "linear" else [0.0, 0.0, 0.0]
            results["bound"][f"{name}-seed{seed}"] = {"images": values, "bpd": sum(values) / 3}
    mean, error = paired(results, "linear", "eps")
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    between = torch.tensor([7 / 3, 5 / 3], dtype=torch.float64).var() / len(TITLES)  # pooled over all settings
    assert abs(mean - float(values.mean())) < 1e-12
    assert abs(error - float((values.var() / 3 + between).sqrt())) < 1e-12


# ------------------------------------------------------------------------------------------------ latent steps


def test_latent_steps_compare_models_of_one_size():
    """Within 6 % of each other in parameters, the same training, and no labels."""
    everything = latent_steps.runs(BUDGET)
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in model_of(run.model).parameters()) for run in everything]
    assert max(sizes) / min(sizes) < 1.06
    assert len({evolve(run.train, seed=0) for run in everything}) == 1
    assert {run.setting for run in everything} == set(latent_steps_report.ORDER)
    assert all(not run.model.num_labels for run in everything)


def test_the_numbers_of_latent_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_steps, "NETWORK", SMALL)
    monkeypatch.setattr(latent_steps, "digits", few_digits)
    chosen = ("hvae-2-seed1", "ddpm-2-seed0", "vdm-inf-seed0")
    runs = [run for run in latent_steps.runs(BUDGET) if run.name in chosen]
    runs[0] = replace(runs[0], model=evolve(runs[0].model, network=ConvVAEConfig(widths=(8,))))
    save_untrained(runs, tmp_path)
    rows = latent_steps.gather(runs, tmp_path, BUDGET, 1)["models"]
    for run in runs:
        model = latent_steps.load_run(run, tmp_path)
        assert rows[run.name]["bpd"] == evaluate(model, few_digits().test_images, draws=10).mean
        assert rows[run.name]["parameters"] == sum(p.numel() for p in model.parameters())
        assert len(rows[run.name]["images"]) == 12
    assert [rows[name]["T"] for name in chosen] == [2, 2, None]
    encoded = latent_steps.load_run(runs[0], tmp_path).encode(few_digits().test_images)
    active = [int((mean.double().var(0, unbiased=False) > 0.01).sum()) for mean, _ in encoded]
    assert rows["hvae-2-seed1"]["active"] == active
    assert all("active" not in rows[name] for name in chosen[1:])


def test_the_report_on_latent_steps_follows_from_its_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    rows = {
        f"{name}-seed{seed}": {
            "T": None, "bpd": 4.0 - 0.2 * rank + 0.01 * seed, "se": 0.1, "recon": 1.0, "prior": 0.5,
            "diffusion": 0.1, "train_bpd": 1.0, "parameters": 1000 + rank,
            "images": [4.0 - 0.2 * rank + 0.01 * seed + 0.001 * k for k in range(20)],
        }
        for rank, name in enumerate(latent_steps_report.ORDER)
        for seed in (0, 1)
    }  # fmt: skip
    results = {"budget": asdict_of(BUDGET), "models": rows}
    mean, error = latent_steps_report.summary(results, "hvae-1")
    assert abs(mean - 4.0145) < 1e-9
    assert abs(error**2 - (1e-6 * 35 / 20 + 0.5e-4 / 2)) < 1e-9  # the variances of the images and of the seeds
    gap, _ = difference(rows, latent_steps_report.ORDER, 2, "ddpm-2", "hvae-8")
    assert abs(gap + 0.2) < 1e-9
    latent_steps_report.write_report(results, tmp_path)
    text = (tmp_path / "latent-steps.md").read_text()
    assert text.count(", lower.") == 7
    assert "is below that of the best VAE here, HVAE, depth 8: -0.8000" in " ".join(text.split())


DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("name", "report"), [("schedules", noise_schedules_report), ("latent-steps", latent_steps_report)]
)
def test_the_committed_documents_are_written_from_the_committed_numbers(name, report, tmp_path):
    pytest.importorskip("matplotlib")
    report.write_report(json.loads((DOCS / f"{name}.json").read_text()), tmp_path)
    text = (tmp_path / f"{name}.md").read_text()
    assert text == (DOCS / f"{name}.md").read_text()
    figures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert figures == sorted(path.name for path in DOCS.glob(f"{name}*.png"))
    assert all(f"({figure})" in text for figure in figures)
