"""A model of a user's own: one class, here, and one line that names it."""

import math
from collections.abc import Iterator

import pytest
import torch
from tiny import images

import fastdiff
from fastdiff.data import Dataset, digits
from fastdiff.diffusion import Objective, Vlb
from fastdiff.evaluation import evaluate, evaluate_latents, evaluate_ode
from fastdiff.io.configuration import at_least, configuration, field
from fastdiff.kernels import InvalidTypeError, InvalidValueError, Noise, Stream
from fastdiff.models import MODELS, Draw, ImageConfig, Model, Request, model_of
from fastdiff.sampling import reconstruct
from fastdiff.training import TrainConfig, TrainState, train
from fastdiff.training.state import load_training, save_training


@configuration
class ToyConfig(ImageConfig):
    """sharpness: a factor on the learned logits."""

    sharpness: float = field(at_least(0.1), default=1.0)


class Toy(Model):
    """Independent pixels: a categorical distribution at each position. Its bound is exact."""

    kind = "toy"
    config_class = ToyConfig
    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.logits = torch.nn.Parameter(torch.zeros(config.levels, *config.shape))

    def log_probabilities(self) -> torch.Tensor:
        return torch.log_softmax(self.config.sharpness * self.logits, dim=0)  # [levels, C, H, W]

    def nats(self, x: torch.Tensor) -> torch.Tensor:
        return -self.log_probabilities().gather(0, x.long()).flatten(1).sum(1)

    def check_T(self, where, T):
        if T is not None:
            raise InvalidValueError(f"{where}: T must be None for a toy model, got {T!r}")

    def vlb(self, x, noise, T=None, labels=None, total=None):
        self.check_images("vlb", x)
        self.check_T("vlb", T)
        nats = self.nats(x)
        return Vlb(nats, torch.zeros_like(nats), torch.zeros_like(nats))

    def forward(self, x, noise, labels=None, loss="elbo", T=None, stratified=True, total=None):
        vlb = self.vlb(x, noise, T)
        return Objective(vlb.total, vlb.detach())

    def prepare(self, request: Request) -> Draw:
        self.check_options(request)

        def batch(first, count, callback):
            u = Noise(request.seed, first_sample=first).at(stream=Stream.INITIAL).uniform((count, *self.shape))
            below = self.log_probabilities().exp().cumsum(0)[:-1]  # [levels - 1, C, H, W]
            return (u[:, None] > below).sum(1).to(torch.uint8)

        return Draw(1, batch)


@pytest.fixture(autouse=True)
def _named() -> Iterator[None]:
    MODELS[Toy.kind] = Toy
    yield
    del MODELS[Toy.kind]


def trained(max_steps: int = 60, data: Dataset | None = None) -> TrainState:
    model = model_of(ToyConfig(shape=(1, 8, 8), levels=17, sharpness=2.0))
    config = TrainConfig(data="digits", max_steps=max_steps, batch_size=128, learning_rate=0.1, warm_up=0)
    state = TrainState(model, config)
    for _ in train(state, data or digits()):
        pass
    return state


def test_it_trains_samples_evaluates_saves_and_loads(tmp_path):
    data, state = digits(), trained()
    model = state.averaged
    result = evaluate(model, data.train_images, draws=1)
    counts = torch.stack([(data.train_images == k).float().mean(0) for k in range(17)])
    entropy = -float((counts * torch.log(counts.clamp(min=1e-9))).sum()) / (64 * math.log(2))
    assert entropy < result.mean < entropy + 0.1  # the bound is exact, and the entropy its least value
    drawn = fastdiff.sample(model, 4000, seed=3, output="levels", batch_size=1000)
    shares = torch.stack([(drawn == k).float().mean(0) for k in range(17)])
    expected = model.log_probabilities().detach().exp()
    assert float((shares - expected).abs().max()) < 5 * 0.5 / 4000**0.5
    assert torch.equal(fastdiff.sample(model, 7, seed=3, output="levels", batch_size=2), drawn[:7])
    model.save(tmp_path / "toy")
    again = fastdiff.load(tmp_path / "toy")
    assert isinstance(again, Toy)
    assert again.config == model.config
    assert torch.equal(
        fastdiff.sample(tmp_path / "toy", 5, output="levels"), fastdiff.sample(model, 5, output="levels")
    )
    assert evaluate(again, data.test_images, draws=1).mean == evaluate(model, data.test_images, draws=1).mean


def test_training_can_be_resumed(tmp_path):
    whole, half = trained(6), trained(6)
    half = TrainState(model_of(whole.model.config), whole.config)
    for report in train(half, digits()):
        if report.step == 3:
            save_training(tmp_path / "step", half)
            break
    resumed = load_training(tmp_path / "step")
    assert resumed.step == 3
    assert len(list(train(resumed, digits()))) == 3
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_what_it_lacks_is_said_in_one_sentence():
    model, x = model_of(ToyConfig(shape=(1, 8, 8), levels=17)), images(2)
    assert evaluate_latents(model, x) == {}
    with pytest.raises(InvalidValueError, match="a toy model takes no steps"):
        fastdiff.sample(model, 1, steps=3)
    with pytest.raises(InvalidValueError, match="T must be None for a toy model"):
        evaluate(model, x, T=10)
    with pytest.raises(InvalidTypeError, match="a toy model cannot reconstruct"):
        reconstruct(model, x)
    with pytest.raises(InvalidTypeError, match="a toy model"):
        evaluate_ode(model, x)
    with pytest.raises(InvalidTypeError, match="a toy model has no latents"):
        model.encode(x)
