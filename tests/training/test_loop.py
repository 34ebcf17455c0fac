"""The training loop: each step against the same step written out, exact resumption, and what must not pass silently."""

import math
from dataclasses import replace

import attrs
import pytest
import torch
from tiny import DATA, SMALL, small, small_diffusevae

from fastdiff.data import DataError, digits
from fastdiff.io.configuration import ConfigError, from_dict, to_dict
from fastdiff.kernels import FastdiffError, Noise
from fastdiff.models import VDM, VDMConfig
from fastdiff.training import TrainConfig, TrainingError, TrainState, train
from fastdiff.training.batches import batch_indices
from fastdiff.training.state import load_training, save_training

CONFIG = TrainConfig(data="digits", max_steps=12, batch_size=6, warm_up=2, shift=0.5, ema=0.9)


def fresh(config: TrainConfig = CONFIG) -> TrainState:
    """A model with dropout, labels and augmentation, so that all that is drawn takes part."""
    torch.manual_seed(config.seed)
    network = attrs.evolve(SMALL, dropout=0.3)
    model = VDM(VDMConfig(**DATA, num_classes=10, augmented=True, gamma_0=-8.0, fourier=(3, 4), network=network))
    return TrainState(model, config)


def with_learned_schedule(config: TrainConfig, **changes) -> TrainState:
    return TrainState(small(schedule="learned", fourier=None, **changes), config)


def all_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    return {f"{file}/{name}": value for file, part in state.tensors().items() for name, value in part.items()}


def assert_same(a: TrainState, b: TrainState) -> None:
    """The same weights, averages and moments, bit for bit."""
    expected, found = all_tensors(a), all_tensors(b)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop):
    data = digits()
    straight, broken = fresh(), fresh()
    for _ in train(straight, data):
        pass
    for report in train(broken, data):
        if report.step == stop:
            save_training(tmp_path / "step-1", broken)
            break
    torch.manual_seed(999)  # the generator's state is no part of a run
    resumed = load_training(tmp_path / "step-1")
    assert (resumed.step, resumed.config) == (stop, CONFIG)
    for _ in train(resumed, data):
        pass
    assert_same(straight, resumed)


class WrittenOut:
    """Training steps in float64: gradients of the bound in bits per dimension, two clipped norms, AdamW (Loshchilov and
    Hutter 2019, algorithm 2) with the learning rate and the weight decay of each group, and the averages."""

    def __init__(self, model: VDM, config: TrainConfig) -> None:
        self.model, self.config = model.train(), config
        self.interior = {id(p) for p in model.gamma.interior_parameters()}
        self.weights = {name: p.detach().double() for name, p in model.named_parameters()}
        self.mean = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.square, self.average = dict(self.mean), dict(self.weights)
        self.without_gradient: set[str] = set()  # up to rounding, which AdamW magnifies: biases before a normalisation

    def gradients(self, x: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(self.weights[name])
        loss = self.model(x, noise).loss.mean()
        bits = torch.autograd.grad(loss / (self.model.dims * math.log(2.0)), list(named.values()))
        return loss.detach(), {name: gradient.double() for name, gradient in zip(named, bits, strict=True)}

    def step(self, k: int, x: torch.Tensor) -> tuple[float, float, float]:
        """Return the loss, the norm of the gradient without the schedule's interior, and that of the interior."""
        config, named = self.config, dict(self.model.named_parameters())
        loss, gradients = self.gradients(x, Noise(config.seed, k))
        inside = {name for name, p in named.items() if id(p) in self.interior}
        squares = {name: float(gradient.square().sum()) for name, gradient in gradients.items()}
        norm = math.sqrt(sum(value for name, value in squares.items() if name not in inside))
        interior = math.sqrt(sum(squares[name] for name in inside))
        self.without_gradient |= {name for name, value in squares.items() if value < 1e-10 * norm**2}
        cosine = 0.5 * (1 + math.cos(math.pi * k / config.max_steps))
        for name, p in named.items():
            of_schedule = name.startswith("gamma.")
            g = gradients[name] * min(1.0, config.clip_norm / (interior if name in inside else norm))
            self.mean[name] = config.beta_1 * self.mean[name] + (1 - config.beta_1) * g
            self.square[name] = config.beta_2 * self.square[name] + (1 - config.beta_2) * g * g
            mean = self.mean[name] / (1 - config.beta_1 ** (k + 1))
            square = self.square[name] / (1 - config.beta_2 ** (k + 1))
            rate = cosine * min(1.0, (k + 1) / (config.warm_up + 1))
            rate *= config.schedule_learning_rate if of_schedule else config.learning_rate
            decays = p.dim() >= 2 and not of_schedule and not name.endswith("position")
            decay = config.weight_decay if decays else 0.0
            self.weights[name] = (1 - rate * decay) * self.weights[name] - rate * mean / (square.sqrt() + 1e-8)
            kept = 0.0 if k == 0 else min(config.ema, (1 + k) / (10 + k))  # the first update copies
            self.average[name] = kept * self.average[name] + (1 - kept) * self.weights[name]
        return float(loss), norm, interior


def test_steps_against_steps_written_out():
    config = TrainConfig(
        data="digits", max_steps=4, batch_size=6, warm_up=1, learning_rate=3e-3, schedule_learning_rate=2e-2,
        weight_decay=0.1, beta_1=0.8, beta_2=0.9, clip_norm=0.5, ema=0.3, seed=5,
    )  # fmt: skip
    state, data = with_learned_schedule(config), digits()
    expected = WrittenOut(with_learned_schedule(config).model, config)
    for k, report in enumerate(train(state, data)):
        loss, norm, interior = expected.step(k, data.train_images[batch_indices(5, k, 6, 1500)])
        assert min(norm, interior) > config.clip_norm  # both are clipped
        assert report.step == k + 1
        assert float(report.loss) == pytest.approx(loss, rel=1e-5)
        assert float(report.gradient_norm) == pytest.approx(norm, rel=1e-4)
        for model, values in ((state.model, expected.weights), (state.averaged, expected.average)):
            compared = {name: p for name, p in model.named_parameters() if name not in expected.without_gradient}
            for name, p in compared.items():
                torch.testing.assert_close(p.double(), values[name], rtol=1e-4, atol=1e-5)
            assert len(values) - len(compared) < 10


def test_training_lowers_the_bound():
    config = attrs.evolve(CONFIG, max_steps=60, batch_size=32, learning_rate=5e-3)
    reports = list(train(fresh(config), digits()))
    first = sum(float(report.bpd.total) for report in reports[:10])
    last = sum(float(report.bpd.total) for report in reports[-10:])
    assert last < 0.85 * first  # measured: 0.76


def test_learning_rates():
    config = attrs.evolve(CONFIG, max_steps=100, warm_up=10)
    factors = [config.learning_rate_factor(step) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == max(factors)
    assert factors[100] == 0.0
    assert factors[50] == pytest.approx(0.5)
    constant = attrs.evolve(config, decay="constant")
    assert [constant.learning_rate_factor(step) for step in (0, 10, 99)] == pytest.approx([1 / 11, 1.0, 1.0])


def test_the_bound_at_finite_T_can_be_trained():
    config = attrs.evolve(CONFIG, max_steps=2, T=10, shift=0.0)
    state = TrainState(small(), config)
    report = next(train(state, digits()))
    x = digits().train_images[batch_indices(0, 0, 6, 1500)]
    expected = small().train()(x, Noise(0, 0), T=10)
    assert float(report.loss) == pytest.approx(expected.loss.mean().item(), rel=1e-6)
    assert float(report.bpd.total) == pytest.approx(expected.vlb.bpd(64).total.mean().item(), rel=1e-6)


def test_schedule_and_weight_decay_have_their_own_groups():
    state = fresh()
    groups = state.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.0]
    assert all(parameter.dim() >= 2 for parameter in groups[0]["params"])
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in state.model.gamma.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(state.model.parameters()))


def test_fixed_ends_of_a_learned_schedule_stay():
    state = with_learned_schedule(attrs.evolve(CONFIG, max_steps=5, shift=0.0, clip_norm=1e-3), learn_endpoints=False)
    before = [p.detach().clone() for p in state.interior]
    assert len(before) == 4
    norms = [float(report.gradient_norm) for report in train(state, digits())]
    assert all(not torch.equal(p, old) for p, old in zip(state.interior, before, strict=True))
    assert [float(end) for end in state.model.gamma.endpoints()] == [-8.0, 5.0]
    assert max(norms) < 1e4  # the interior's gradients, 2 L times larger, are not in it


def spoil(monkeypatch, model) -> None:
    """Multiply the loss by NaN from now on."""
    real = model.forward

    def forward(*args, **kwargs):
        objective = real(*args, **kwargs)
        return replace(objective, loss=objective.loss * math.nan)

    monkeypatch.setattr(model, "forward", forward)


def test_a_gradient_that_is_not_finite_changes_no_weight(monkeypatch):
    state = fresh()
    iterator = train(state, digits())
    assert not next(iterator).skipped
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    spoil(monkeypatch, state.model)
    assert next(iterator).skipped
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(TrainingError, match=r"not finite in 11 steps in a row, at step 12") as caught:  # the last one
        list(iterator)
    assert isinstance(caught.value, FastdiffError)


@pytest.mark.parametrize(
    "change",
    [
        {"max_steps": 0}, {"learning_rate": math.nan}, {"seed": 2**64}, {"batch_size": 2.5}, {"ema": 1.0},
        {"shift": 1.5}, {"flip": -0.1}, {"loss": "mse"}, {"decay": "step"}, {"clip_norm": 0.0}, {"T": 0}, {"T": 2.5},
        {"T": True}, {"learning_rate": "x"}, {"stratified": "no"},
    ],
)  # fmt: skip
def test_settings_out_of_range(change):
    (name,) = change
    with pytest.raises(ConfigError, match=name):
        attrs.evolve(CONFIG, **change)


def test_settings_survive_json_also_under_their_earlier_names():
    assert from_dict(TrainConfig, to_dict(CONFIG), "state.json") == CONFIG
    earlier = {"data": "digits", "steps": 7, "bound_steps": 3}
    assert from_dict(TrainConfig, earlier, "state.json") == TrainConfig(data="digits", max_steps=7, T=3)


def test_what_cannot_be_trained():
    with pytest.raises(ConfigError, match="shift"):  # a model without the label of augmented images
        next(train(TrainState(small(), CONFIG), digits()))
    with pytest.raises(DataError, match="levels"):
        next(train(TrainState(small(levels=16), attrs.evolve(CONFIG, shift=0.0)), digits()))
    two_stages = small_diffusevae()
    two_stages.has_first_stage = False
    with pytest.raises(ConfigError, match="first stage"):
        next(train(TrainState(two_stages, attrs.evolve(CONFIG, shift=0.0)), digits()))
