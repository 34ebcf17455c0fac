"""Networks, schedules and samplers of a user's own: in training, sampling and evaluation, saved and loaded."""

import copy

import pytest
import torch
from tiny import DATA, SMALL, SMALL_DDPM, SMALL_VAE, filled, images, small, small_ddpm, small_vae
from torch import Tensor, nn

import fastdiff
from fastdiff.checkpoints import CheckpointError
from fastdiff.data import digits
from fastdiff.diffusion import (
    DDIM,
    LOSSES,
    FunctionSchedule,
    Plan,
    Sampler,
    ScheduleError,
    coefficient_rows,
    gamma_table,
)
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.diffusion.rows import ddim
from fastdiff.evaluation import evaluate, evaluate_ode
from fastdiff.io.configuration import ConfigError, between, configuration, field
from fastdiff.kernels import InvalidTypeError, InvalidValueError, Noise
from fastdiff.models import (
    DDPM,
    VDM,
    AddNoise,
    DDPMConfig,
    DiffuseVAE,
    DiffuseVAEConfig,
    HVAEConfig,
    Model,
    Restoration,
    RestorationConfig,
    VDMConfig,
    build,
)
from fastdiff.training import TrainConfig, TrainState, train
from fastdiff.training.state import load_training, save_training


class Convolution(nn.Module):
    """A network for any model: one hidden layer that sees the noise level and the label."""

    def __init__(self, channels_in: int, channels_out: int, num_labels: int = 0, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in + 1, width, 3, padding=1)
        self.embedding = nn.Embedding(num_labels, width) if num_labels else None
        self.last = nn.Conv2d(width, channels_out, 3, padding=1)

    def forward(self, x: Tensor, noise_level: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.first(torch.cat([x, noise_level[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1))
        h = h if self.embedding is None else h + self.embedding(labels)[:, :, None, None]
        return self.last(nn.functional.silu(h))


def network_for(config: DDPMConfig | VDMConfig, **options) -> Convolution:
    return Convolution(config.channels_in, config.channels_out, config.num_labels, **options)


CONFIGS = {
    "vdm": VDMConfig(**DATA, gamma_0=-8.0, fourier=(3, 4), num_classes=10),
    "vdm categorical": VDMConfig(**DATA, gamma_0=-8.0, fourier=None, prediction="categorical"),
    "ddpm": DDPMConfig(**SMALL_DDPM, num_classes=10),
    "ddpm learned": DDPMConfig(**SMALL_DDPM, variance="learned"),
    "diffusevae": DiffuseVAEConfig(**SMALL_DDPM, vae=HVAEConfig(**SMALL_VAE), formulation=2),
    "restoration": RestorationConfig(**SMALL_DDPM, degradation=AddNoise(), num_classes=10),
}
CLASSES = {VDMConfig: VDM, DDPMConfig: DDPM, DiffuseVAEConfig: DiffuseVAE, RestorationConfig: Restoration}


def with_own_network(name: str) -> Model:
    torch.manual_seed(0)
    config = CONFIGS[name]
    model = CLASSES[type(config)](config, network=network_for(config))
    if name == "diffusevae":
        model.take_first_stage(small_vae(1))
    return model


def trained(model: Model, max_steps: int = 2) -> TrainState:
    loss = "elbo" if model.kind == "vdm" else "simple"
    state = TrainState(model, TrainConfig(data="digits", max_steps=max_steps, batch_size=8, loss=loss, warm_up=0))
    for _ in train(state, digits()):
        pass
    return state


def same(one: Model, other: Model) -> None:
    """The two models give the same bound and the same samples."""
    x, cond = images(3), one.example_cond(images(3), Noise(1))
    bounds = [evaluate(model, x, draws=2).bpd.total for model in (one, other)]
    assert torch.equal(*bounds)
    assert torch.equal(*(fastdiff.sample(model, 3, 4, cond=cond, output="levels") for model in (one, other)))


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_of_the_users_own(name, tmp_path):
    model = with_own_network(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    trained(model)
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key]) == key.startswith("vae."), key
    model.eval().save(tmp_path / "m")
    config = CONFIGS[name]
    again = fastdiff.load(tmp_path / "m", network=network_for(config))
    assert type(again) is type(model)
    same(model, again)
    with pytest.raises(CheckpointError, match=r"network=\.\.\."):
        fastdiff.load(tmp_path / "m")
    with pytest.raises(CheckpointError, match="weight must have shape"):
        fastdiff.load(tmp_path / "m", network=network_for(config, width=5))
    if name == "vdm":
        with pytest.raises(CheckpointError, match="schedule must be None"):
            fastdiff.load(tmp_path / "m", network=network_for(config), schedule=lambda t: t)


def test_the_configured_network_passed_as_the_users_own_changes_nothing():
    """Bound and samples, bit for bit."""
    for model in (small(), small_ddpm(variance="learned")):
        other = type(model)(model.config, network=model.network)
        other.load_state_dict(model.state_dict())
        same(model, other.eval())


def test_names_inside_a_network_of_the_users_own_are_the_users(tmp_path):
    """Some of them are names of earlier versions of the library's networks."""
    network = nn.ModuleDict({"number": nn.Linear(2, 2), "label": nn.Linear(2, 2), "refiner": nn.Linear(2, 2)})
    model = VDM(CONFIGS["vdm"], network=network)
    model.save(tmp_path / "m")
    again = fastdiff.load(tmp_path / "m", network=copy.deepcopy(network))
    assert again.state_dict().keys() == model.state_dict().keys()


class Returns(nn.Module):
    """A network without parameters that returns zeros with a number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, noise_level: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.zeros(len(x), self.channels, *x.shape[2:])


def test_a_network_without_parameters():
    """Such as an analytic denoiser."""
    for model in (
        DDPM(CONFIGS["ddpm"], network=Returns(1)),
        VDM(CONFIGS["vdm"], network=Returns(1), schedule=straight),
    ):
        assert model.device.type == "cpu"
        assert fastdiff.sample(model, 2, 3).shape == (2, 1, 8, 8)
        assert evaluate(model, images(2), T=3, draws=1).mean > 0


@pytest.mark.parametrize(("name", "channels"), [("vdm", 3), ("vdm categorical", 1), ("ddpm", 2), ("ddpm learned", 1)])
def test_the_output_of_a_network_must_have_the_channels_of_the_configuration(name, channels):
    model = CLASSES[type(CONFIGS[name])](CONFIGS[name], network=Returns(channels))
    for call in (model, model.vlb):
        with pytest.raises(InvalidValueError, match="network"):
            call(images(2), Noise(0), T=5)


def test_a_network_must_be_a_module():
    with pytest.raises(InvalidTypeError, match="network"):
        VDM(CONFIGS["vdm"], network=lambda x, noise_level, labels: x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidTypeError, match="network"):
        DDPM(CONFIGS["ddpm"], network=3)  # pyright: ignore[reportArgumentType]


def test_a_run_with_a_network_of_the_users_own_can_be_resumed(tmp_path):
    """To the same weights, bit for bit, as without the interruption."""
    whole = trained(with_own_network("vdm"), 4)
    state = TrainState(with_own_network("vdm"), whole.config)
    for report in train(state, digits()):
        if report.step == 2:
            save_training(tmp_path / "step", state)
            break
    with pytest.raises(CheckpointError, match=r"network=\.\.\."):
        load_training(tmp_path / "step")
    state = load_training(tmp_path / "step", network=network_for(CONFIGS["vdm"]))
    assert len(list(train(state, digits()))) == 2
    for key, value in whole.model.state_dict().items():
        assert torch.equal(state.model.state_dict()[key], value), key


def test_parts_that_a_model_does_not_take():
    vae = small_vae()
    with pytest.raises(ConfigError, match="network must be None for a hvae model"):
        build("hvae", vae.description()["config"], "config.json", network=nn.Identity())
    with pytest.raises(ConfigError, match="schedule must be None for a ddpm model"):
        build("ddpm", small_ddpm().description()["config"], "config.json", schedule=lambda t: t)


def test_a_part_where_none_was_saved(tmp_path):
    small().save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="network must be None"):
        fastdiff.load(tmp_path / "m", network=nn.Identity())
    with pytest.raises(CheckpointError, match="schedule must be None"):
        fastdiff.load(tmp_path / "m", schedule=lambda t: t)


# ------------------------------------------------------------------------------------------------ schedules


def straight(t: Tensor) -> Tensor:
    return -8.0 + 13.0 * t


class Bent(nn.Module):
    """gamma(t) = -8 + 13 (a t + (1 - a) t³)."""

    def __init__(self, a: float = 0.7) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, t: Tensor) -> Tensor:
        return -8.0 + 13.0 * (self.a * t + (1.0 - self.a) * t**3)


def with_own_schedule(schedule, **changes) -> VDM:
    torch.manual_seed(0)
    config = {**DATA, "gamma_0": -8.0, "fourier": (3, 4), "network": SMALL} | changes
    return filled(VDM(VDMConfig(**config), schedule=schedule))


@pytest.mark.parametrize("T", [None, 7])
def test_a_straight_function_is_the_linear_schedule(T):
    """Bound, losses, gradients and samples."""
    own, linear = with_own_schedule(straight), small(learn_endpoints=False)
    x, noise = images(4), Noise(2)
    torch.testing.assert_close(own.vlb(x, noise, T).total, linear.vlb(x, noise, T).total, rtol=1e-5, atol=0)
    for loss in LOSSES:
        both = [model(x, noise, loss=loss, T=T).loss for model in (own, linear)]
        torch.testing.assert_close(*both, rtol=1e-5, atol=0)
        gradients = [
            torch.autograd.grad(value.sum(), list(model.network.parameters()))
            for value, model in zip(both, (own, linear), strict=True)
        ]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()) + 1e-6)
    drawn = [fastdiff.sample(model, 3, 5, "dpm-solver", output="levels") for model in (own, linear)]
    assert float((drawn[0] != drawn[1]).float().mean()) < 0.02  # rounding
    torch.testing.assert_close(*(evaluate_ode(model, x[:1], steps=2, draws=1) for model in (own, linear)))


@pytest.mark.parametrize("T", [None, 7])
def test_the_parameter_of_a_schedule_gets_the_gradient_of_the_bound(T):
    """Autograd against differences of the mean bound, the same noise on both sides."""
    model, x = with_own_schedule(Bent(), fourier=None), images(32)
    a = model.gamma.function.a
    groups = model.parameter_groups()
    assert len(groups.schedule) == 1
    assert groups.schedule[0] is a
    assert not groups.interior
    model(x, Noise(1), T=T).loss.mean().backward()
    values = []
    for change in (3e-3, -6e-3):
        a.data += change
        with torch.no_grad():
            values.append(float(model.vlb(x, Noise(1), T).total.mean()))
    slope = (values[0] - values[1]) / 6e-3
    assert abs(float(a.grad) - slope) < 0.02 * abs(slope) + 0.02


@pytest.mark.parametrize("schedule", [lambda: straight, Bent], ids=["function", "module"])
def test_a_schedule_of_the_users_own(schedule, tmp_path):
    part = schedule()
    model = with_own_schedule(part)
    trained(model)
    if isinstance(part, Bent):
        assert float(part.a.detach()) != pytest.approx(0.7, abs=1e-6)
    model.eval().save(tmp_path / "m")
    again = fastdiff.load(tmp_path / "m", schedule=schedule())
    assert isinstance(again.gamma, FunctionSchedule)
    torch.testing.assert_close(gamma_table(again.gamma, 9), gamma_table(model.gamma, 9), rtol=0, atol=0)
    same(model, again)
    with pytest.raises(CheckpointError, match=r"schedule=\.\.\."):
        fastdiff.load(tmp_path / "m")
    with pytest.raises(CheckpointError, match="network must be None"):
        fastdiff.load(tmp_path / "m", network=nn.Identity(), schedule=straight)


def test_network_and_schedule_together(tmp_path):
    config = CONFIGS["vdm"]
    model = VDM(config, network=network_for(config), schedule=Bent())
    model.eval().save(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"schedule=\.\.\."):
        fastdiff.load(tmp_path / "m", network=network_for(config))
    same(model, fastdiff.load(tmp_path / "m", network=network_for(config), schedule=Bent()))


def test_a_schedule_must_increase():
    with pytest.raises(ScheduleError, match="gamma must increase"):
        with_own_schedule(lambda t: 5.0 - 13.0 * t)


def test_a_schedule_follows_the_device_of_its_model():
    for schedule in (straight, Bent()):
        ends = with_own_schedule(schedule).to("meta").gamma.endpoints()
        assert [end.device.type for end in ends] == ["meta", "meta"]


# ------------------------------------------------------------------------------------------------ samplers


def euler(gamma: Tensor) -> Plan:
    """Euler's method on the probability-flow ODE, which is DDIM."""
    gamma_t, gamma_s = gamma.flip(0)[:-1], gamma.flip(0)[1:]
    a = sigma(gamma_s) / sigma(gamma_t)
    return Plan(gamma_t, coefficient_rows(gamma_t, a, alpha(gamma_s) - alpha(gamma_t) * a))


@configuration
class Mine(Sampler):
    """DDIM under another name, with an option of another name."""

    share: float = field(between(0.0, 1.0), default=0.0)

    def __call__(self, gamma: Tensor) -> Plan:
        return ddim(gamma, self.share)


@pytest.mark.parametrize("make", [small, small_ddpm], ids=["vdm", "ddpm"])
def test_a_sampler_of_the_users_own(make):
    """A function, and a subclass with an option and those of all samplers."""
    model = make()

    def drawn(sampler) -> Tensor:
        last = []
        fastdiff.sample(model, 3, 6, sampler, seed=5, callback=lambda step, nfe, z, x_hat: last.append(z))
        return torch.stack(last)

    torch.testing.assert_close(drawn(euler), drawn("ddim"), rtol=1e-4, atol=1e-4)
    options = {"spacing": "gamma", "clip_denoised": True, "temperature": 0.7}
    assert torch.equal(drawn(Mine(share=0.5, **options)), drawn(DDIM(eta=0.5, **options)))
    assert not torch.equal(drawn(Mine(share=0.5)), drawn(Mine()))
    with pytest.raises(ConfigError, match="share"):
        Mine(share=2.0)


# ------------------------------------------------------------------------------------------------ what cannot be saved


def spoiled(model: VDM, value: float) -> VDM:
    with torch.no_grad():
        next(model.network.parameters()).view(-1)[0] = value
    return model


def replaced(name: str, part: nn.Module) -> VDM:
    model = small()
    setattr(model, name, part)
    return model


WRONG = {
    "must be finite": lambda: spoiled(small(), torch.nan),
    "network.first.weight must be finite": lambda: spoiled(with_own_network("vdm"), torch.inf),
    "network must be the UNet of the configuration, got a Convolution": lambda: replaced("network", Convolution(5, 1)),
    "gamma must be the LinearSchedule": lambda: replaced("gamma", FunctionSchedule(straight)),
    "must have dtype torch.float32, got torch.bfloat16": lambda: small().bfloat16(),
    "gamma.gamma_0 must have dtype": lambda: small().half(),
}


@pytest.mark.parametrize("words", WRONG)
def test_save_rejects_what_load_would_reject(words, tmp_path):
    model = WRONG[words]()
    with pytest.raises(CheckpointError, match=f"cannot be saved.*{words}"):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_slope_of_a_function_under_inference_mode():
    """gamma = 3 t² + t has the slope 6 t + 1."""
    schedule = FunctionSchedule(lambda t: 3 * t * t + t)
    with torch.inference_mode():
        torch.testing.assert_close(schedule.slope(torch.tensor([0.5, 1.0])), torch.tensor([4.0, 7.0]))
