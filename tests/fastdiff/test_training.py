"""Training: exact resumption, the order of the data, augmentation, averaging, and what must not pass silently."""

import json
import math
import signal
from dataclasses import replace

import pytest
import torch
from tiny import SMALL

from fastdiff import runs
from fastdiff.checkpoint import last_checkpoint, load, load_training, save_training
from fastdiff.config import ConfigError
from fastdiff.datasets import Dataset, digits
from fastdiff.kernels import Noise
from fastdiff.models import VDM, VDMConfig
from fastdiff.storage import CheckpointError
from fastdiff.training import (
    TrainConfig,
    TrainingError,
    TrainState,
    batch_indices,
    drop_labels,
    shift_images,
    train,
)

CONFIG = TrainConfig("digits", steps=12, batch_size=6, warm_up=2, shift=0.5, ema=0.9)


def tiny() -> VDM:
    network = replace(SMALL, dropout=0.3)
    return VDM(VDMConfig((1, 8, 8), 17, classes=10, augmented=True, gamma_0=-8.0, fourier=(3, 4), network=network))


def fresh(config: TrainConfig = CONFIG) -> TrainState:
    torch.manual_seed(config.seed)
    return TrainState(tiny(), config)


def part(data: Dataset, count: int) -> Dataset:
    """The first images of a data set: enough for a test."""
    assert data.train_labels is not None
    assert data.test_labels is not None
    return replace(
        data,
        train_images=data.train_images[:count], train_labels=data.train_labels[:count],
        test_images=data.test_images[:count], test_labels=data.test_labels[:count],
    )  # fmt: skip


def all_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    return {f"{file}/{name}": value for file, part in state.tensors().items() for name, value in part.items()}


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop):
    data = digits()
    straight = fresh()
    for _ in train(straight, data):
        pass
    broken = fresh()
    for report in train(broken, data):
        if report.step == stop:
            save_training(tmp_path / "step-1", broken)
            break
    torch.manual_seed(999)  # the generator's state is no part of a run
    resumed = load_training(tmp_path / "step-1")
    assert resumed.step == stop
    for _ in train(resumed, data):
        pass
    expected, given = all_tensors(straight), all_tensors(resumed)
    assert expected.keys() == given.keys()
    for name, value in expected.items():
        assert torch.equal(given[name], value), name


def test_training_lowers_the_bound():
    config = replace(CONFIG, steps=60, batch_size=32, learning_rate=5e-3)
    reports = list(train(fresh(config), digits()))
    first = sum(float(report.bpd.total) for report in reports[:10])
    last = sum(float(report.bpd.total) for report in reports[-10:])
    assert last < 0.85 * first  # measured: 0.76


def test_each_epoch_shows_every_image_once():
    seen = torch.cat([batch_indices(3, step, 7, 20) for step in range(20)])  # 140 = 7 epochs of 20
    for epoch in seen.split(20):
        assert epoch.sort().values.tolist() == list(range(20))
    assert seen[:20].tolist() != seen[20:40].tolist()
    assert batch_indices(3, 0, 50, 20).bincount(minlength=20).min() >= 2  # a batch may hold several epochs


def test_label_dropout():
    labels = torch.arange(4000) % 10
    kept = drop_labels(labels, 10, 0.3, Noise(0))
    assert abs(float((kept == 10).float().mean()) - 0.3) < 0.03
    assert (kept[kept != 10] == labels[kept != 10]).all()
    assert torch.equal(drop_labels(labels, 10, 0.0, Noise(0)), labels)
    assert (drop_labels(labels, 10, 1.0, Noise(0)) == 10).all()


def test_shifts_are_shifts():
    """Every image equals the original moved by one of nine offsets, and the mask says which ones moved."""
    images = torch.randint(1, 17, (300, 2, 8, 8), dtype=torch.uint8)
    shifted, moved = shift_images(images, 0.6, Noise(1))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    offsets = set()
    for i in range(len(images)):
        found = [
            (dy, dx) for dy in range(3) for dx in range(3)
            if torch.equal(padded[i, :, dy : dy + 8, dx : dx + 8], shifted[i])
        ]  # fmt: skip
        assert len(found) == 1
        assert (found[0] != (1, 1)) == bool(moved[i])
        offsets.add(found[0])
    assert len(offsets) == 9
    assert abs(float(moved.float().mean()) - 0.6 * 8 / 9) < 0.1
    assert torch.equal(shift_images(images, 0.0, Noise(1))[0], images)


def test_average_warms_up():
    """(1 + k) / (10 + k) until it reaches the decay; the first update copies."""
    state = fresh(replace(CONFIG, steps=40, ema=0.5))
    name, expected = "network.conv_in.bias", None
    for k, _ in enumerate(train(state, digits())):
        value = state.model.state_dict()[name].clone()
        decay = min(0.5, (1 + k) / (10 + k))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        torch.testing.assert_close(state.ema.module.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_learning_rate():
    config = replace(CONFIG, steps=100, warm_up=10)
    rates = [config.rate(step) for step in range(101)]
    assert rates[0] < 0.1
    assert rates[10] == max(rates)
    assert rates[100] == 0.0
    assert abs(rates[50] - 0.5) < 1e-9


def test_schedule_and_weight_decay_have_their_own_groups():
    state = fresh()
    groups = state.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.0]
    assert all(parameter.dim() >= 2 for parameter in groups[0]["params"])
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in state.model.gamma.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(state.model.parameters()))


def test_a_gradient_that_is_not_finite_changes_no_weight(monkeypatch):
    state = fresh()
    iterator = train(state, digits())
    next(iterator)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    real = state.model.objective

    def poisoned(*args, **kwargs):
        goal = real(*args, **kwargs)
        return replace(goal, loss=goal.loss * float("nan"))

    monkeypatch.setattr(state.model, "objective", poisoned)
    report = next(iterator)
    assert report.skipped
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(TrainingError, match="not finite in 10 steps up to step 11"):
        list(iterator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; allowed: a number > 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"seed": 2**64}, "seed is 18446744073709551616; allowed: 0 <= seed"),
        ({"batch_size": 2.5}, "batch_size is 2.5; allowed: an integer"),
        ({"ema": 1.0}, "ema is 1.0; allowed: 0 <= ema < 1"),
        ({"shift": 1.5}, "shift is 1.5; allowed: 0 <= shift <= 1"),
        ({"flip": -0.1}, "flip is -0.1; allowed: 0 <= flip <= 1"),
        ({"loss": "mse"}, "loss is 'mse'; allowed: elbo, simple, min-snr, sigmoid"),
        ({"decay": "step"}, "decay is 'step'; allowed: cosine, constant"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; allowed: a number > 0, or None"),
        ({"bound_steps": 0}, "bound_steps is 0; allowed: a number > 0, or None"),
        ({"bound_steps": 2.5}, "bound_steps is 2.5; allowed: an integer, or None"),
        ({"bound_steps": True}, "bound_steps is True; allowed: an integer, or None"),
        ({"learning_rate": "x"}, "learning_rate is 'x'; allowed: a finite number"),
        ({"stratified": "no"}, "stratified is 'no'; allowed: true or false"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)


def test_shifts_for_a_model_that_is_not_told():
    model = VDM(VDMConfig((1, 8, 8), 17, gamma_0=-8.0, network=SMALL))
    with pytest.raises(ConfigError, match="allowed: 0, or augmented=True"):
        next(train(TrainState(model, CONFIG), digits()))


class TestRuns:
    """A run's folder."""

    def start(self, out, config=CONFIG):
        return runs.start(out, tiny, config, digits())

    def test_a_run_leaves_metrics_checkpoint_and_picture(self, tmp_path):
        data = part(digits(), 40)
        outcome = runs.run(tmp_path, self.start(tmp_path), data, save_every=5, evaluations=3, progress=False)
        assert outcome.step == 12
        assert outcome.stopped_by is None
        assert last_checkpoint(tmp_path) == tmp_path / "step-00000012"
        assert len(list(tmp_path.glob("step-*"))) == 1
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if row["event"] == "evaluate"] == [4, 8, 12]
        assert (tmp_path / "samples.png").stat().st_size > 500
        assert outcome.evaluation is not None
        assert load(tmp_path).config == tiny().config
        record = json.loads((tmp_path / "model" / "config.json").read_text())["record"]
        assert record["train"]["steps"] == 12
        assert record["evaluation"]["bpd"] == outcome.evaluation.mean
        for name, value in load(tmp_path).state_dict().items():
            assert torch.equal(load(tmp_path / "model").state_dict()[name], value), name

    def test_interrupted_and_resumed_equals_uninterrupted(self, tmp_path, monkeypatch):
        data = part(digits(), 40)
        monkeypatch.setattr(runs, "LOG_EVERY", 2)
        runs.run(tmp_path / "a", self.start(tmp_path / "a"), data, progress=False)
        state = self.start(tmp_path / "b")
        real = runs.MetricsLog.add

        def interrupt(log, report, batch_size):
            real(log, report, batch_size)
            if report.step == 7:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(runs.MetricsLog, "add", interrupt)
        outcome = runs.run(tmp_path / "b", state, data, progress=False)
        assert (outcome.step, outcome.stopped_by) == (7, signal.SIGINT)
        monkeypatch.setattr(runs.MetricsLog, "add", real)
        assert isinstance(load(tmp_path / "b"), VDM)  # what was left is usable as it is
        runs.run(tmp_path / "b", runs.resume(tmp_path / "b", {}), data, progress=False)
        a, b = (load_training(tmp_path / name / "step-00000012") for name in "ab")
        for name, value in all_tensors(a).items():
            assert torch.equal(all_tensors(b)[name], value), name
        steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)

    def test_starting_over_a_run_is_refused(self, tmp_path):
        save_training(tmp_path / "step-00000003", stepped(3))
        with pytest.raises(runs.RunError, match="holds a run already; allowed: another --out, or --resume"):
            self.start(tmp_path)

    def test_a_run_that_died_before_its_first_checkpoint_can_start_again(self, tmp_path):
        self.start(tmp_path)
        (tmp_path / "metrics.jsonl").write_text('{"step": 50}\n')
        assert self.start(tmp_path).step == 0
        assert (tmp_path / "metrics.jsonl").read_text() == ""

    def test_giving_up_leaves_a_checkpoint_that_can_be_resumed(self, tmp_path, monkeypatch):
        """Not finite from the first step on: the optimiser has no state yet, and the weights are the initial ones."""
        state = self.start(tmp_path)
        before = {name: value.clone() for name, value in state.model.state_dict().items()}
        real = state.model.objective

        def poisoned(*args, **kwargs):
            goal = real(*args, **kwargs)
            return replace(goal, loss=goal.loss * math.nan)

        monkeypatch.setattr(state.model, "objective", poisoned)
        with pytest.raises(TrainingError):
            runs.run(tmp_path, state, part(digits(), 40), progress=False)
        resumed = runs.resume(tmp_path, {})
        assert resumed.step == 10
        for name, value in before.items():
            assert torch.equal(resumed.model.state_dict()[name], value), name

    def test_resuming_nothing_is_refused(self, tmp_path):
        with pytest.raises(runs.RunError, match="holds no checkpoint"):
            runs.resume(tmp_path, {})

    def test_resuming_with_other_settings_is_refused(self, tmp_path):
        save_training(tmp_path / "step-00000003", stepped(3))
        with pytest.raises(runs.RunError, match="steps: 12 in the run, 99 wanted"):
            runs.resume(tmp_path, {"steps": 99, "seed": 0})

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path):
        fresh().model.save(tmp_path / "model")
        with pytest.raises(runs.RunError, match="model holds something that is no run; allowed: a new or empty folder"):
            self.start(tmp_path / "model")
        (tmp_path / "file").write_text("")
        with pytest.raises(runs.RunError, match="file holds something that is no run"):
            self.start(tmp_path / "file")

    def test_resuming_with_another_model_is_refused(self, tmp_path):
        save_training(tmp_path / "step-00000003", stepped(3))
        own = runs.resume(tmp_path, {}).model.config
        assert runs.resume(tmp_path, {}, model=own).step == 3
        with pytest.raises(runs.RunError, match=r"of another model, with gamma_0 -8.0; allowed: gamma_0 -7.0"):
            runs.resume(tmp_path, {}, model=replace(own, gamma_0=-7.0))

    def test_a_finished_run_writes_its_last_evaluation_again(self, tmp_path):
        data = part(digits(), 40)
        runs.run(tmp_path, self.start(tmp_path), data, progress=False)
        before = (tmp_path / "metrics.jsonl").read_text()
        runs.run(tmp_path, runs.resume(tmp_path, {}), data, progress=False)
        assert (tmp_path / "metrics.jsonl").read_text() == before

    def test_metrics_after_the_checkpoint_are_dropped_and_torn_lines_too(self, tmp_path):
        save_training(tmp_path / "step-00000003", stepped(3))
        (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n{"st')
        runs.resume(tmp_path, {})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 2}\n{"step": 3}\n'

    def test_a_checkpoint_of_a_model_is_no_training_state(self, tmp_path):
        tiny().save(tmp_path / "step-00000001")
        with pytest.raises(CheckpointError, match=r"holds no state.json; allowed: a checkpoint of `fastdiff train`"):
            runs.resume(tmp_path, {})


def stepped(steps: int) -> TrainState:
    state = fresh()
    for report in train(state, digits()):
        if report.step == steps:
            break
    return state
