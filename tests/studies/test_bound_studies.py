"""Studies of the bound: their models differ in one thing, their numbers agree with direct calls, verdicts follow."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attrs import asdict, evolve
from tiny import SMALL, images, small

from benchmarks.studies import (
    bounds,
    latent_steps,
    latent_steps_report,
    noise_schedules,
    noise_schedules_report,
    schedule_measures,
)
from benchmarks.studies.comparison import difference, summary
from benchmarks.studies.data_sets import DATA_SETS
from benchmarks.studies.noise_schedules_report import TITLES
from benchmarks.studies.study import Budget, results_of
from fastdiff.checkpoints import load
from fastdiff.data import digits, letters
from fastdiff.diffusion import CosineSchedule
from fastdiff.diffusion.bound import independent_times, stratified_times
from fastdiff.evaluation import evaluate, group_means, group_standard_error
from fastdiff.evaluation.batches import EVALUATION_STEP
from fastdiff.kernels import Noise
from fastdiff.models import ConvVAEConfig, model_of

BUDGET = Budget(steps=5, seeds=2, draws=10)
DATA = ("digits", "letters")
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def few(monkeypatch):
    """Some images of each data set, twelve of them held out, the letters of three families, and a small network."""
    chosen = torch.tensor([0, 1, 2, 3, 4, 60, 61, 62, 200, 201, 202, 203])
    for name, each in (("digits", digits()), ("letters", letters())):
        groups = None if each.test_groups is None else each.test_groups[chosen]
        part = replace(
            each, train_images=each.train_images[:200], test_images=each.test_images[chosen], test_groups=groups
        )
        monkeypatch.setitem(DATA_SETS, name, replace(DATA_SETS[name], load=lambda part=part: part, network=SMALL))


def save_untrained(runs, folder: Path) -> None:
    """Models as a training leaves them, without the training."""
    for run in runs:
        torch.manual_seed(run.train.seed)
        model_of(run.model).save(folder / run.name / "model")
        row = {"event": "train", "step": 5, "bpd": 3.0, "recon": 1.0, "prior": 0.5, "diffusion": 1.5, "loss": 0.0}
        (folder / run.name / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def as_json(results):
    return json.loads(json.dumps(results))


def on_letters(results: dict, runs: list, by_model: tuple[str, ...], by_images: str) -> dict:
    """The committed numbers of the digits as those of the models of the letters, in 27 families of 11 images."""
    found, groups = copy.deepcopy(results), torch.arange(297) // 11
    names = {run.name.replace("linear", "vdm-inf") if by_images == "models" else run.name for run in runs}
    for key in by_model:
        found[key] = {name: row for name, row in found[key].items() if name in names}
    for row in found[by_images].values():
        values = torch.tensor(row.pop("images"), dtype=torch.float64)
        means = group_means(values, groups)
        row["group_means"], row["group_sizes"] = [group.mean for group in means], [group.n for group in means]
        row["se_groups"] = group_standard_error(values, groups)
    return found


# ------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize(("data", "settings", "count"), [("digits", 9, 8 * 3 + 1), ("letters", 5, 3 * 3 + 2)])
def test_the_settings_differ_in_one_field(data, settings, count):
    """Every setting differs from `linear` in one field of the model or of the training; seeds in the seed alone."""
    everything = {run.name: run for run in noise_schedules.runs(DATA_SETS[data], Budget(steps=7, seeds=3, draws=10))}
    assert len(everything) == count
    assert len({run.setting for run in everything.values()}) == settings
    base = everything["linear-seed0"]
    for name in ("cosine", "beta-linear", "learned", "independent-times", "no-fourier", "eps"):
        if f"{name}-seed0" in everything:
            other = everything[f"{name}-seed0"]
            pairs = [(asdict(base.model), asdict(other.model)), (asdict(base.train), asdict(other.train))]
            assert sum(one[key] != two[key] for one, two in pairs for key in one) == 1, name
    for seed in (1, 2):
        assert everything[f"linear-seed{seed}"].train == evolve(base.train, seed=seed)
        assert everything[f"linear-seed{seed}"].model == base.model
    assert all(run.train.max_steps == 7 and run.train.data == data for run in everything.values())


@pytest.mark.parametrize("prediction", ["epsilon", "categorical"])
def test_the_diffusion_term_is_that_of_the_bound(prediction):
    model, x, noise = small(prediction), images(6), Noise(3, 5)
    with torch.no_grad():
        for other in (model, schedule_measures.with_schedule(model, CosineSchedule(-8.0, 5.0))):
            u = stratified_times(noise, 6)
            assert torch.equal(
                schedule_measures.diffusion_nats(other, x, noise, u), other.vlb(x, noise, T=None).diffusion
            )


def test_draws_in_parts_are_those_of_the_whole(monkeypatch):
    model, x = small("categorical"), images(7)
    monkeypatch.setattr(schedule_measures, "CHUNK", 3)
    found = schedule_measures.single_draws(model, x, 2) * (64 * 0.6931471805599453)
    for r in range(2):
        noise = Noise(1, EVALUATION_STEP - 1 - r)
        with torch.no_grad():
            nats = schedule_measures.diffusion_nats(model, x, noise, independent_times(noise, 7))
        assert torch.allclose(found[r], nats.double(), rtol=1e-5)  # measured: 2e-7, of the convolutions


@pytest.mark.parametrize("data", DATA)
def test_the_numbers_of_the_schedules(data, tmp_path, monkeypatch, few):
    for name in ("draw_steps", "draw_gamma", "draw_training"):  # drawn in the tests of the documents
        monkeypatch.setattr(noise_schedules_report, name, lambda found, path: None)
    monkeypatch.setattr(schedule_measures, "BATCH_SIZE", 16)
    scope = replace(noise_schedules.SCOPES[data], batches=20)
    monkeypatch.setitem(noise_schedules.SCOPES, data, scope)
    runs = noise_schedules.runs(DATA_SETS[data], BUDGET)
    runs = [run for run in runs if run.train.seed == 0 or run.setting == "linear"]
    runs = [replace(run, model=evolve(run.model, T=20)) if run.setting == "ddpm" else run for run in runs]
    save_untrained(runs, tmp_path)
    options = {"draws": 10, "steps": [2, 4]}
    numbers = noise_schedules.collect({run.name: noise_schedules.measure(run, tmp_path, options) for run in runs})
    assert set(numbers["bound"]) == {run.name for run in runs if run.setting != "ddpm"}

    by_name = {run.name: load(tmp_path / run.name / "model") for run in runs}
    x, groups = bounds.held_out(DATA_SETS[data])
    direct = evaluate(by_name["linear-seed1"], x, T=None, draws=10, groups=groups)
    row = numbers["bound"]["linear-seed1"]
    assert row["bpd"] == direct.mean
    if groups is None:
        assert row["images"] == pytest.approx(direct.bpd.total.tolist(), abs=1e-6)
    else:
        assert row["group_sizes"] == [5, 3, 4]
        assert row["group_means"][1] == pytest.approx(float(direct.bpd.total[5:8].mean()), abs=1e-7)
    by_steps = f"{scope.by_steps[-1]}-seed0"
    for row, T in zip(numbers["steps"][by_steps], (2, 4, None), strict=True):
        assert row["T"] == T
        assert row["bpd"] == evaluate(by_name[by_steps], x, T=T, draws=10, groups=groups).mean
    if "ddpm" in scope.settings:
        exact = evaluate(by_name["ddpm-seed0"], x, draws=16, exact=True)  # a DDPM's own variance is fixed_large
        assert numbers["ddpm"]["fixed_large"]["bpd"] == exact.mean
        assert numbers["ddpm"]["fixed_small"]["bpd"] > exact.mean

    for name in ("cosine", "beta-linear", "learned"):  # the continuous-time bound depends on the endpoints alone
        row = numbers["invariance"][name]
        assert abs(row["gap"]) < 5 * row["gap_error"], name  # 10 draws: Student's t with 9 degrees of freedom
    assert numbers["invariance"]["linear"]["gap"] == 0.0
    assert numbers["times"]["stratified"]["variance"] < numbers["times"]["independent"]["variance"]
    noise_schedules.write_report({data: as_json({"budget": vars(BUDGET), **numbers})}, tmp_path)
    assert "## Stratified times" in (tmp_path / "schedules.md").read_text()


def test_the_report_on_schedules_sets_the_data_sets_side_by_side(tmp_path):
    pytest.importorskip("matplotlib")
    first = results_of("schedules", DOCS)["digits"]
    runs = noise_schedules.runs(DATA_SETS["letters"], Budget(steps=2000, seeds=2))
    second = on_letters(first, runs, ("parameters", "bound", "variance", "training"), "bound")
    second["steps"].pop("learned-seed0")
    del second["ddpm"]
    noise_schedules_report.write_report({"letters": second}, tmp_path)
    assert "cosine, same endpoints" not in (tmp_path / "schedules.md").read_text()  # not trained
    noise_schedules_report.write_report({"digits": first, "letters": second}, tmp_path)
    lines = (tmp_path / "schedules.md").read_text().splitlines()
    text = " ".join(" ".join(lines).split())
    assert "| cosine, same endpoints | 1.8456 | +0.0717 | 0.0076 |  |  |  |" in lines
    assert "297 held-out images of 27 font families, none of which is in training" in text
    assert "One seed alone: `eps`, `eps-no-fourier`. Not trained: `cosine`, `beta-linear`," in text
    assert "| T | digits, linear | difference | digits, learned | difference | letters, linear | difference |" in lines
    # one network, since the schedule β-linear has none of its own: 23.471 / 0.817
    assert "(ratio 32.6 ± 1.5, own networks) on the digits; **holds** (ratio 28.7 ± 2.1, one network) on the" in text
    assert "A setting of one seed is taken to vary between seeds as the others do." in text
    assert "The number of claims is 5 on the digits; 4 on the letters." in text
    gap, _ = difference(second["bound"], TITLES, "eps", "eps-no-fourier")
    assert f"(prediction `epsilon`): **holds** (-0.2626 ± 0.0080 bits/dim) on the digits; **holds** ({gap:+.4f}" in text
    assert (
        "Stratified times in training lower bits/dim: **not decided** (-0.0005 ± 0.0073 bits/dim) on the digits."
        in text
    )


def test_an_order_of_magnitude_is_judged_with_its_error():
    judge = noise_schedules_report._order_of_magnitude
    assert judge((12.0, 0.3), (1.0, 0.04), "own networks") == "**holds** (ratio 12.0 ± 0.6, own networks)"
    assert judge((12.0, 0.9), (1.0, 0.1), "one network").startswith("**not decided** (ratio 12.0 ± 1.5")
    assert judge((8.0, 0.3), (1.0, 0.04), "one network").startswith("**does not hold**")
    assert noise_schedules_report._rounded(0.0301, 0.00141, 3) == "0.0301 ± 0.0014"
    assert noise_schedules_report._rounded(2.9104, 0.0762, 3) == "2.910 ± 0.076"
    assert noise_schedules_report._rounded(2.9104, 0.0, 3) == "2.910 ± 0.000"


# ------------------------------------------------------------------------------------------------ latent steps


@pytest.mark.parametrize("data", DATA)
def test_latent_steps_compare_models_of_one_size(data):
    """Within 6 % of each other in parameters, the same training, and no labels."""
    everything = latent_steps.runs(DATA_SETS[data], BUDGET)
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in model_of(run.model).parameters()) for run in everything]
    assert max(sizes) / min(sizes) < (1.06 if data == "digits" else 1.02)
    assert len({evolve(run.train, seed=0) for run in everything}) == 1
    settings = {run.setting.replace("linear", "vdm-inf") for run in everything}
    assert settings == set(latent_steps_report.ORDER) - ({"hvae-8", "ddpm-2"} if data == "letters" else set())
    assert all(not run.model.num_labels for run in everything)


def test_the_studies_share_a_model_of_the_letters():
    one, other = (
        {run.name: run for run in study.runs(DATA_SETS["letters"], BUDGET)} for study in (noise_schedules, latent_steps)
    )
    shared = set(one) & set(other)
    assert shared == {"linear-seed0", "linear-seed1"}
    assert all(one[name] == other[name] for name in shared)
    assert noise_schedules.STUDY.folder == latent_steps.STUDY.folder
    assert noise_schedules.STUDY.budgets["letters"].steps == latent_steps.STUDY.budgets["letters"].steps
    digits_runs = [
        run.name for study in (noise_schedules, latent_steps) for run in study.runs(DATA_SETS["digits"], BUDGET)
    ]
    assert len(digits_runs) == len(set(digits_runs))


@pytest.mark.parametrize(
    ("data", "chosen"),
    [("digits", ("hvae-2-seed1", "ddpm-2-seed0", "vdm-inf-seed0")), ("letters", ("hvae-4-seed0", "linear-seed1"))],
)
def test_the_numbers_of_latent_steps(data, chosen, tmp_path, few):
    runs = [run for run in latent_steps.runs(DATA_SETS[data], BUDGET) if run.name in chosen]
    runs[0] = replace(runs[0], model=evolve(runs[0].model, network=ConvVAEConfig(widths=(8,))))
    save_untrained(runs, tmp_path)
    rows = {run.name: latent_steps.measure(run, tmp_path, {"draws": 10}) for run in runs}
    x, groups = bounds.held_out(DATA_SETS[data])
    for run in runs:
        model = load(tmp_path / run.name / "model")
        assert rows[run.name]["bpd"] == evaluate(model, x, draws=10, groups=groups).mean
        assert rows[run.name]["parameters"] == sum(p.numel() for p in model.parameters())
        assert len(rows[run.name]["images" if groups is None else "group_means"]) == (12 if groups is None else 3)
    depth = runs[0].model.depth
    assert [rows[name]["T"] for name in chosen] == ([2, 2, None] if data == "digits" else [4, None])
    encoded = load(tmp_path / runs[0].name / "model").encode(x)
    active = [int((mean.double().var(0, unbiased=False) > 0.01).sum()) for mean, _ in encoded]
    assert rows[chosen[0]]["active"] == active
    assert len(active) == depth
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
    results = {"budget": vars(BUDGET), "models": rows}
    mean, error = summary(rows, latent_steps_report.ORDER, "hvae-1")
    assert abs(mean - 4.0145) < 1e-9
    assert abs(error**2 - (1e-6 * 35 / 20 + 0.5e-4 / 2)) < 1e-9  # the variances of the images and of the seeds
    gap, _ = difference(rows, latent_steps_report.ORDER, "ddpm-2", "hvae-8")
    assert abs(gap + 0.2) < 1e-9
    latent_steps_report.write_report({"digits": results}, tmp_path)
    text = (tmp_path / "latent-steps.md").read_text()
    assert text.count(", lower (digits).") == 7
    assert "is below that of the best VAE, HVAE, depth 8: -0.8000" in " ".join(text.split())


def test_the_report_on_latent_steps_sets_the_data_sets_side_by_side(tmp_path):
    pytest.importorskip("matplotlib")
    first = results_of("latent-steps", DOCS)["digits"]
    runs = latent_steps.runs(DATA_SETS["letters"], Budget(steps=2000, seeds=2))
    second = on_letters(first, runs, ("models",), "models")
    latent_steps_report.write_report({"digits": first, "letters": second}, tmp_path)
    lines = (tmp_path / "latent-steps.md").read_text().splitlines()
    text = " ".join(" ".join(lines).split())
    error = summary(second["models"], latent_steps_report.VAES, "hvae-1")[1]
    assert f"| VAE | 1 | 1.8625 | 0.0217 | 1.8625 | {error:.4f} |" in lines
    assert "| HVAE, depth 8 | 8 | 1.8500 | 0.0211 |  |  |" in lines
    assert "One seed alone: DDPM, T = 10; DDPM, T = 100. Not trained: HVAE, depth 8; DDPM, T = 2." in text
    assert (
        "- The DDPM with T = 1000 is below the HVAE of depth 4: **does not hold** (+0.9146 ± 0.0531 bits/dim) on the"
        in text
    )
    assert text.count("on the letters") == 5  # three claims, degrees of freedom, and active units
    assert "the variance between seeds: 9 on the digits; 2 or 3 on the letters." in text
    assert "(of 16 on the digits, of 32 on the letters)" in text
    for data, scope in latent_steps.SCOPES.items():
        assert DATA_SETS[data].vae.latent == scope.vae["latent"]
    assert "minus HVAE, depth 4, bits/dim: +0.0047 ± 0.0180, no significant difference (digits)." in text


# ------------------------------------------------------------------------------------------------ documents


@pytest.mark.parametrize(
    ("name", "report"), [("schedules", noise_schedules_report), ("latent-steps", latent_steps_report)]
)
def test_the_committed_documents_are_written_from_the_committed_numbers(name, report, tmp_path):
    pytest.importorskip("matplotlib")
    report.write_report(results_of(name, DOCS), tmp_path)
    text = (tmp_path / f"{name}.md").read_text()
    assert text == (DOCS / f"{name}.md").read_text()
    figures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert figures == sorted(path.name for path in DOCS.glob(f"{name}*.png"))
    assert all(f"({figure})" in text for figure in figures)
