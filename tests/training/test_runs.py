"""A run on disk: metrics, checkpoints, signals, resumption, and folders that are no runs."""

import json
import math
import os
import signal
import threading
from dataclasses import replace

import attrs
import numpy as np
import pytest
import torch
from images import random_image, save
from PIL import Image
from tiny import DATA, SMALL, small, small_restoration, small_vae

from fastdiff.checkpoints import CheckpointError, last_checkpoint, load
from fastdiff.data import DataError, Dataset, ImageOptions, digits, load_dataset
from fastdiff.models import VDM, VDMConfig
from fastdiff.training import TrainConfig, TrainingError, TrainState, keeping, runs, train
from fastdiff.training.metrics import MetricsLog, json_line, truncate_metrics
from fastdiff.training.state import load_training, save_training

CONFIG = TrainConfig(data="digits", max_steps=12, batch_size=6, warm_up=2, shift=0.5, ema=0.9)


def tiny() -> VDM:
    network = attrs.evolve(SMALL, dropout=0.3)
    return VDM(VDMConfig(**DATA, num_classes=10, augmented=True, gamma_0=-8.0, fourier=(3, 4), network=network))


def some_digits(count: int = 10) -> Dataset:
    """The first images of the digits: enough for a test."""
    data = digits()
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return replace(data, **{part: getattr(data, part)[:count] for part in parts})


def stepped(steps: int) -> TrainState:
    torch.manual_seed(0)
    state = TrainState(tiny(), CONFIG)
    next(report for report in train(state, digits()) if report.step == steps)
    return state


def start(out, config=CONFIG) -> TrainState:
    return runs.start(out, tiny, config, some_digits())


def run(out, state, data=None, evaluations=2, **options) -> runs.RunResult:
    settings = {"evaluations": evaluations, "pictures": False, "progress": False} | options
    return runs.run(out, state, data or some_digits(), runs.RunOptions(**settings))


def rows_of(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr(keeping, "NUM_SAMPLES", 4)
    monkeypatch.setattr("fastdiff.models.diffusion_sampling.DEFAULT_STEPS", 3)


def test_a_run_leaves_metrics_checkpoint_model_and_picture(tmp_path):
    result = run(tmp_path, start(tmp_path), save_every=5, evaluations=3, pictures=True, keep=2)
    assert (result.step, result.stopped_by) == (12, None)
    assert last_checkpoint(tmp_path) == tmp_path / "step-00000012"
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000012"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["00000004.png", "00000008.png"]
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (2 * 68 + 4, 2 * 68 + 4)
    evaluations = [row for row in rows_of(tmp_path) if row["event"] == "evaluate"]
    assert [(row["step"], row["draws"]) for row in evaluations] == [(4, 2), (8, 2), (12, 64)]
    record = json.loads((tmp_path / "model" / "config.json").read_text())["record"]
    assert record["train"]["max_steps"] == 12
    assert result.evaluation is not None
    assert record["evaluation"]["bpd"] == result.evaluation.mean == evaluations[-1]["bpd"]
    averaged = load_training(tmp_path / "step-00000012").averaged.state_dict()
    for path in (tmp_path, tmp_path / "model"):
        model = load(path)
        assert model.config == tiny().config
        for name, value in model.state_dict().items():
            assert torch.equal(value, averaged[name]), name


def test_metrics_are_means_over_the_steps_between(tmp_path, monkeypatch):
    """Also of the last, shorter stretch."""
    monkeypatch.setattr(keeping, "LOG_EVERY", 5)
    run(tmp_path, start(tmp_path))
    torch.manual_seed(0)
    reports = list(train(TrainState(tiny(), CONFIG), some_digits()))
    rows = [row for row in rows_of(tmp_path) if row["event"] == "train"]
    assert [row["step"] for row in rows] == [5, 10, 12]
    for row, part in zip(rows, (reports[:5], reports[5:10], reports[10:]), strict=True):
        for name, values in {
            "loss": [report.loss for report in part],
            "bpd": [report.bpd.total for report in part],
            "recon": [report.bpd.recon for report in part],
            "prior": [report.bpd.prior for report in part],
            "diffusion": [report.bpd.diffusion for report in part],
            "gradient_norm": [report.gradient_norm for report in part],
        }.items():
            assert row[name] == pytest.approx(float(torch.stack(values).double().mean()), rel=1e-5), name
        assert row["learning_rate_factor"] == part[-1].learning_rate_factor
        assert row["skipped_steps"] == 0
        assert row["images_per_second"] > 0


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "LOG_EVERY", 2)
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path / "a", start(tmp_path / "a"))
    real = MetricsLog.add

    def interrupt(log, report, batch_size):
        real(log, report, batch_size)
        if report.step == 7:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "add", interrupt)
        result = run(tmp_path / "b", start(tmp_path / "b"))
    assert (result.step, result.stopped_by) == (7, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert load(tmp_path / "b").kind == "vdm"  # what the run has left is a model
    run(tmp_path / "b", runs.resume(tmp_path / "b", {}))
    a, b = (load_training(tmp_path / name / "step-00000012").tensors() for name in "ab")
    for part, tensors in a.items():
        for name, value in tensors.items():
            assert torch.equal(b[part][name], value), name
    evaluations = {out: [row for row in rows_of(tmp_path / out) if row["event"] == "evaluate"] for out in "ab"}
    assert evaluations["a"] == evaluations["b"]
    steps = [row["step"] for row in rows_of(tmp_path / "b")]
    assert steps == sorted(steps)


def test_a_run_in_another_thread_leaves_the_signals_alone(tmp_path):
    results = []
    state = start(tmp_path, attrs.evolve(CONFIG, max_steps=1))
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, state)))
    thread.start()
    thread.join()
    assert [result.step for result in results] == [1]


def test_giving_up_leaves_a_checkpoint_that_can_be_resumed(tmp_path, monkeypatch):
    """Not finite from the first step on: the optimiser has no state yet, and the weights are the initial ones."""
    state = start(tmp_path)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    real = state.model.forward

    def forward(*args, **kwargs):
        objective = real(*args, **kwargs)
        return replace(objective, loss=objective.loss * math.nan)

    monkeypatch.setattr(state.model, "forward", forward)
    with pytest.raises(TrainingError):
        run(tmp_path, state)
    resumed = runs.resume(tmp_path, {})
    assert resumed.step == 6  # before the evaluation in the middle
    for name, value in before.items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_run_that_died_before_its_first_checkpoint_can_start_again(tmp_path):
    start(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 50}\n')
    assert start(tmp_path).step == 0
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_finished_run_writes_its_last_evaluation_again(tmp_path):
    state = start(tmp_path, attrs.evolve(CONFIG, max_steps=2))
    run(tmp_path, state)
    before = (tmp_path / "metrics.jsonl").read_text()
    run(tmp_path, runs.resume(tmp_path, {}))
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_metrics_after_the_checkpoint_and_incomplete_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n{"st')
    truncate_metrics(path, 3, finished=False)
    assert path.read_text() == '{"step": 2}\n{"step": 3}\n'
    assert json.loads(json_line({"a": [math.nan, 1.0], "b": {"c": -math.inf}})) == {"a": [None, 1.0], "b": {"c": None}}


def test_the_same_weights_give_the_same_files(tmp_path):
    """Weights after three steps from one seed, twice."""
    for name in "ab":
        save_training(tmp_path / name, stepped(3))
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("settings", "config", "named"),
    [
        ({"seed": 1}, None, "seed 0, not 1"),
        ({"batch_size": 8}, None, "batch_size 6, not 8"),
        ({}, attrs.evolve(tiny().config, gamma_0=-7.0), "gamma_0"),
        ({}, small_vae().config, "another model"),
    ],
)
def test_a_resumed_run_keeps_its_model_and_settings(tmp_path, settings, config, named):
    save_training(tmp_path / "step-00000003", stepped(1))
    with pytest.raises(runs.RunError, match=named):
        runs.resume(tmp_path, settings, model_config=config)
    same = {"seed": 0, "max_steps": 12, "data": "digits"}
    assert runs.resume(tmp_path, same, model_config=tiny().config).step == 1


def test_settings_that_change_are_recorded(tmp_path):
    """More steps and another learning rate, from a step on; the run goes on from there."""
    run(tmp_path, start(tmp_path, attrs.evolve(CONFIG, max_steps=4)))
    state = runs.resume(tmp_path, {"max_steps": 6, "learning_rate": 1e-4, "seed": 0})
    assert (state.config.max_steps, state.config.learning_rate) == (6, 1e-4)
    expected = [{"step": 4, "max_steps": [4, 6], "learning_rate": [2e-3, 1e-4]}]
    assert state.changes == expected
    run(tmp_path, state)
    record = json.loads((tmp_path / "step-00000006" / "state.json").read_text())
    assert record["changes"] == expected
    assert runs.resume(tmp_path, {}).config == state.config
    with pytest.raises(runs.RunError, match=r"max_steps must be >= 6, .* got 5"):
        runs.resume(tmp_path, {"max_steps": 5})


def test_a_run_goes_on_with_its_own_data_only(tmp_path):
    run(tmp_path, start(tmp_path, attrs.evolve(CONFIG, max_steps=2)))
    state = runs.resume(tmp_path, {"max_steps": 3})
    with pytest.raises(runs.RunError, match="was started on 10 images of digits which have changed since"):
        run(tmp_path, state, replace(some_digits(), identity="another"))
    run(tmp_path, state, replace(some_digits(), identity="another"), allow_changed_data=True)
    changes = runs.resume(tmp_path, {}).changes
    assert [list(change) for change in changes] == [["step", "max_steps"], ["step", "data_set"]]


def test_damaged_files_may_be_left_out_from_a_step_on(tmp_path):
    """No other option of the images may change."""
    run(tmp_path, start(tmp_path, attrs.evolve(CONFIG, max_steps=2)))
    state = runs.resume(tmp_path, {"max_steps": 3, "images": {"skip_damaged": True}})
    assert state.config.images.skip_damaged
    assert set(state.changes[0]) == {"step", "max_steps", "images"}
    with pytest.raises(runs.RunError, match=r"images .*'size': None.*, not .*'size': 8"):
        runs.resume(tmp_path, {"images": {"size": 8}})


def test_the_state_of_the_callers_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    run(tmp_path, start(tmp_path, attrs.evolve(CONFIG, max_steps=2)))
    runs.resume(tmp_path, {})
    load(tmp_path)
    load("digits")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_signal_abandons_an_evaluation(tmp_path, monkeypatch):
    """The checkpoint of the step is written before it; resuming repeats the evaluation at the end alone."""
    real = keeping.evaluate

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the evaluation went on")

    state = start(tmp_path)
    monkeypatch.setattr(keeping, "evaluate", interrupted)
    result = run(tmp_path, state)
    assert (result.step, result.stopped_by, result.evaluation) == (6, signal.SIGTERM, None)
    monkeypatch.setattr(keeping, "evaluate", real)
    resumed = runs.resume(tmp_path, {})
    assert resumed.step == 6
    assert run(tmp_path, resumed).step == 12


def test_a_signal_after_the_look_for_signals_ends_the_next_step_with_a_checkpoint(tmp_path, monkeypatch):
    real = MetricsLog.flush

    def signalled(log, report):
        if report.step == 6:
            signal.raise_signal(signal.SIGTERM)
        return real(log, report)

    monkeypatch.setattr(keeping, "LOG_EVERY", 3)
    monkeypatch.setattr(MetricsLog, "flush", signalled)
    result = run(tmp_path, start(tmp_path), evaluations=0)
    assert (result.step, result.stopped_by) == (7, signal.SIGTERM)
    assert runs.resume(tmp_path, {}).step == 7


def test_an_error_before_the_training_leaves_no_lock(tmp_path, monkeypatch):
    state = start(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(keeping, "held_out", lambda data: (_ for _ in ()).throw(DataError("x cannot be read")))
        with pytest.raises(DataError) as kept:
            run(tmp_path, state)
    assert kept.tb is not None  # which keeps the frames, as a notebook does
    assert run(tmp_path, state, evaluations=0).step == 12


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(runs.RunError, match="no"):
        runs.resume(tmp_path, {})
    small().save(tmp_path / "model")
    (tmp_path / "file").write_text("")
    for name in ("model", "file"):
        with pytest.raises(runs.RunError, match=name):
            start(tmp_path / name)
    small().save(tmp_path / "run" / "step-00000001")
    with pytest.raises(runs.RunError, match="resume"):
        start(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"state\.json"):  # a checkpoint of a model is no training state
        runs.resume(tmp_path / "run", {})
    with pytest.raises(DataError, match="levels"):
        runs.start(tmp_path / "other", lambda: small(levels=16), CONFIG, digits())
    assert sorted(os.listdir(tmp_path)) == ["file", "model", "run"]


def test_a_restoration_model_restores_held_out_images(tmp_path):
    """As many samples as there are images."""
    config = attrs.evolve(CONFIG, max_steps=1, shift=0.0)
    run(tmp_path, runs.start(tmp_path, small_restoration, config, some_digits(3)), some_digits(3))
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (2 * 68 + 4, 2 * 68 + 4)
        pixels = np.asarray(picture.convert("L"))
    assert (pixels[72:, 72:] == pixels[-1, -1]).all()  # three images, and an empty place
    assert load(tmp_path).kind == "restoration"


def test_a_vae_reports_its_latents(tmp_path):
    """Of every evaluation, beside the bound."""
    config = attrs.evolve(CONFIG, max_steps=2, shift=0.0)
    run(tmp_path, runs.start(tmp_path, small_vae, config, some_digits()))
    evaluations = [row for row in rows_of(tmp_path) if row["event"] == "evaluate"]
    assert [row["step"] for row in evaluations] == [1, 2]
    assert all(len(values) == 2 for row in evaluations for values in row.values() if isinstance(values, list))
    assert sum(isinstance(value, list) for value in evaluations[0].values()) == 2


def test_the_data_of_a_run_are_read_as_they_were_trained_on(tmp_path, monkeypatch):
    """With the size, the colors and the held-out images of the training; a damaged file is left out."""
    monkeypatch.chdir(tmp_path)
    files = {f"photos/{kind}/{k}.png": random_image(k, size=(7 + k, 9)) for kind in "ab" for k in range(4)}
    save(tmp_path, files)
    (tmp_path / "photos/a/0.png").write_text("no image")
    options = ImageOptions(size=8, color="grey", classes=True, held_out=2, skip_damaged=True)
    with pytest.warns(UserWarning, match="1 of 8"):
        data = load_dataset("photos", options)
    config = attrs.evolve(CONFIG, data="photos", images=options, max_steps=1, shift=0.0)
    state = runs.start(tmp_path / "run", lambda: small(levels=256), config, data)
    save_training(tmp_path / "run/step-00000001", state)
    expected = data.train_images[:]
    os.rename("photos", "elsewhere")
    with pytest.raises(DataError, match="there is no file or folder 'photos'"):
        runs.data_of("run")
    with pytest.warns(UserWarning, match="1 of 8"):
        found = runs.data_of("run", "elsewhere")
    assert (found.shape, found.class_names, len(found.test_images)) == ((1, 8, 8), ("a", "b"), 2)
    assert torch.equal(found.train_images[:], expected)
    assert torch.equal(found.train_labels, data.train_labels)
    small().save(tmp_path / "model")
    with pytest.raises(runs.RunError, match="does not say what it was trained on"):
        runs.data_of("model")
