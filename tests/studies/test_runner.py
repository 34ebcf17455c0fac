"""The steps of a study: models are trained once, first stages first; measurements are kept with their options."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attrs import evolve
from tiny import DATA, SMALL, SMALL_VAE

from benchmarks.studies import progress, reproduce, runner, speed_up
from benchmarks.studies.data_sets import DATA_SETS, DataSet
from benchmarks.studies.runner import Run, StudyError, load_run, measure_runs, train_runs
from benchmarks.studies.study import Budget, Study, results_of
from fastdiff.data import digits, letters
from fastdiff.kernels import InvalidValueError
from fastdiff.models import DiffuseVAEConfig, HVAEConfig
from fastdiff.training import TrainConfig

DIGITS = DATA_SETS["digits"]
FACTOR = {"factor": 2}


def runs(data: DataSet, budget: Budget) -> list[Run]:
    """A DiffuseVAE, and the VAE that is its first stage."""
    vae = HVAEConfig(**SMALL_VAE)
    train = TrainConfig(data="digits", max_steps=budget.steps, batch_size=4)
    above = DiffuseVAEConfig(**DATA, T=4, network=SMALL, vae=vae)
    return [Run("above", above, evolve(train, loss="simple", first_stage="below")), Run("below", vae, train)]


def measure(run: Run, folder: Path, options: dict) -> dict:
    """What the test measures: a function of a module, since worker processes import it."""
    with (folder / "calls").open("a") as file:
        file.write(run.name + "\n")
    return {"product": options["factor"] * run.train.max_steps}


def gather(data: DataSet, everything: list[Run], folder: Path, budget: Budget, workers: int) -> dict:
    return {"products": measure_runs(everything, folder, workers, measure, "numbers", FACTOR)}


def write_report(found: dict, out: Path) -> None:
    text = {data: results["products"]["above"]["product"] for data, results in found.items()}
    (out / "tiny.md").write_text(json.dumps(text))


def in_this_process(runs, workers, task, *arguments):
    """In place of worker processes, which take long to start."""
    for run in runs:
        yield run, task(run, *arguments), 0.0


def test_a_study_trains_measures_and_writes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(runner, "_in_parallel", in_this_process)
    few = replace(digits(), test_images=digits().test_images[:16], test_labels=digits().test_labels[:16])
    monkeypatch.setattr(runner, "load_dataset", lambda name: few)
    monkeypatch.setattr(progress, "load_dataset", lambda name: few)
    needs = []
    budgets = {"digits": Budget(steps=3, seeds=2)}
    study = Study("tiny", runs, gather, write_report, budgets, "tiny", needs=lambda: needs.append(True))
    folder, out = tmp_path / "runs", tmp_path / "docs"
    study.reproduce(out, folder, budgets["digits"], workers=1)
    printed = capsys.readouterr().out
    assert needs == [True]
    assert "2 models, 0 of them trained already" in printed
    assert "training takes about 0 minutes" in printed
    assert printed.index("[1/2] below: ") < printed.index("[2/2] above: ")
    assert (out / "tiny.md").read_text() == '{"digits": 6}'
    numbers = json.loads((out / "tiny.json").read_text())
    assert numbers["budget"] == {"steps": 3, "seeds": 2, "draws": 128}
    assert numbers["products"] == {name: {"product": 6} for name in ("above", "below")}

    above, below = runs(DIGITS, budgets["digits"])
    weights = load_run(above, folder).state_dict()
    for name, value in load_run(below, folder).state_dict().items():
        assert torch.equal(weights[f"vae.{name}"], value)  # the second stage was trained on this first stage

    written = (folder / "above/model/model.safetensors").stat().st_mtime_ns
    (folder / "below/numbers.json").write_text("{")  # damaged, so that it is measured again
    study.reproduce(out, folder, budgets["digits"], workers=1)
    assert "2 models, 2 of them trained already" in capsys.readouterr().out
    assert (folder / "above/model/model.safetensors").stat().st_mtime_ns == written
    assert sorted((folder / "calls").read_text().split()) == ["above", "below", "below"]
    again = measure_runs([above], folder, 1, measure, "numbers", {"factor": 5})
    assert again == {"above": {"product": 15}}  # other options are measured again

    with pytest.raises(StudyError, match="other settings"):
        train_runs(runs(DIGITS, Budget(steps=4, seeds=2)), folder, workers=1)
    with pytest.raises(StudyError, match="other settings"):
        load_run(Run("below", evolve(below.model, latent=6), below.train), folder)


def test_the_estimate_of_a_training(tmp_path, monkeypatch):
    """A setting is timed once; steps that an interrupted training has done do not count."""
    timed = []
    monkeypatch.setattr(runner, "seconds_per_step", lambda model, train: timed.append(train.seed) or 0.5)
    above, below = runs(DIGITS, Budget(steps=300, seeds=2))
    seeds = [replace(below, name=f"below-seed{seed}", train=evolve(below.train, seed=seed)) for seed in (0, 1)]
    monkeypatch.setattr(
        runner, "last_checkpoint", lambda path: path / "step-00000100" if path.name == "below-seed1" else None
    )
    found = runner.estimate([above, *seeds], tmp_path)
    assert found == {"above": 150.0, "below-seed0": 150.0, "below-seed1": 100.0}
    assert len(timed) == 2


def test_few_held_out_images_are_evenly_spaced():
    data = letters()
    few = runner.with_few_held_out(data)
    assert len(few.test_images) == len(few.test_labels) == runner.HELD_OUT
    assert torch.equal(few.test_images[100], data.test_images[100 * len(data.test_images) // 300])
    assert set(few.test_labels.tolist()) == set(range(26))
    assert len(runner.with_few_held_out(digits()).test_images) == 297


def test_the_remaining_time():
    """What is left is shared by the workers, and no task is; estimates are scaled by what tasks took."""
    counted = progress.Progress({"a": 60.0, "b": 60.0, "c": 120.0, "d": 180.0}, 2)
    assert counted.minutes() == 3.5
    assert counted.done("b", 120.0) == 2 * (1 + 2 + 3) / 2
    assert counted.done("a", 60.0) == 3 * 1.5  # "d" alone takes longer than half of what is left
    assert progress.Progress({"a": 1.0}, 1).done("a", 100.0) == 0.0


def test_results_of_several_data_sets(tmp_path):
    """Digits come first, whatever was studied first; a data set that was not studied is left out."""
    (tmp_path / "speed-up-letters.json").write_text('{"images": 2}')
    assert results_of("speed-up", tmp_path) == {"letters": {"images": 2}}
    (tmp_path / "speed-up.json").write_text('{"images": 1}')
    assert list(results_of("speed-up", tmp_path).items()) == [("digits", {"images": 1}), ("letters", {"images": 2})]


def test_runs_are_measured_in_worker_processes(tmp_path):
    everything = runs(DIGITS, Budget(steps=3, seeds=2))
    for run in everything:
        (tmp_path / run.name).mkdir()
    found = measure_runs(everything, tmp_path, 2, measure, "numbers", FACTOR)
    assert found == {name: {"product": 6} for name in ("above", "below")}


def test_the_smallest_budget():
    least = {"steps": 1, "seeds": 2, "draws": 10}
    Budget(**least)
    for name, value in least.items():
        with pytest.raises(InvalidValueError, match=name):
            Budget(**least | {name: value - 1})


def test_the_command(monkeypatch, tmp_path, capsys):
    """Options reach the study, a user's error is one line and the status 2, a defect keeps its traceback."""
    calls = []
    for name in reproduce.MODULES:
        assert reproduce.study_of(name).name == name
    monkeypatch.setattr(Study, "reproduce", lambda *arguments: calls.append(arguments[1:]))
    assert reproduce.main(["schedules", "--steps", "7", "--out", str(tmp_path), "--workers", "1"]) == 0
    assert calls == [(tmp_path, Path("runs/bounds"), Budget(steps=7, seeds=2, draws=128), 1, "digits")]
    assert reproduce.main(["speed-up", "--runs", "elsewhere", "--seeds", "4"]) == 0
    assert calls[1] == (Path("docs"), Path("elsewhere"), Budget(steps=4000, seeds=4, draws=32), 2, "digits")
    assert reproduce.main(["speed-up", "--data", "letters"]) == 0
    letters = speed_up.BUDGETS["letters"]
    assert calls[2] == (Path("docs"), Path("runs/diffusevae-letters"), letters, 2, "letters")
    capsys.readouterr()
    for wrong in (
        ["schedules", "--seeds", "1"],
        ["restoration", "--draws", "20"],
        ["restoration", "--data", "letters"],
    ):
        assert reproduce.main(wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
    for wrong in (["everything"], ["schedules", "--workers", "0"]):
        with pytest.raises(SystemExit, match="2"):
            reproduce.main(wrong)

    def fail(*_):
        raise KeyError("a defect")

    monkeypatch.setattr(Study, "reproduce", fail)
    with pytest.raises(KeyError):
        reproduce.main(["schedules"])
