"""One optimiser step: in parts, in bfloat16, compiled, and without reading anything back from the device."""

import math
from functools import partial

import attrs
import pytest
import torch
from lengths import usually
from tiny import SMALL, small, small_ddpm, small_diffusevae, small_restoration, small_vae
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.data import digits
from fastdiff.diffusion import LOSSES
from fastdiff.io.configuration import ConfigError
from fastdiff.models import VDM
from fastdiff.training import TrainConfig, TrainState, train
from fastdiff.training.batches import step_batches
from fastdiff.training.step import Report, Stepper

CONFIG = TrainConfig(data="digits", max_steps=12, batch_size=12, warm_up=2, ema=0.9)
MODELS = {
    "vdm": small, "learned schedule": lambda: small(schedule="learned"), "ddpm": small_ddpm,
    "learned variances": lambda: small_ddpm(variance="learned"), "vae": small_vae, "diffusevae": small_diffusevae,
    "restoration": small_restoration, "flow": lambda: small("velocity", schedule="flow"),
    "edm": lambda: small("edm", schedule="learned"),
}  # fmt: skip


def trained(config: TrainConfig, model, steps: int) -> tuple[TrainState, list[Report]]:
    state, reports = TrainState(model, config), []
    for report in train(state, digits()):
        reports.append(report)
        if report.step == steps:
            break
    return state, reports


def with_dropout():
    """Whatever is drawn takes part: dropout, labels, augmentation."""
    return small(num_classes=10, augmented=True, network=attrs.evolve(SMALL, dropout=0.3, max_groups=4))


def difference(a: TrainState, b: TrainState) -> float:
    """|a - b| / |b| over all weights."""
    one, other = (torch.cat([p.detach().double().flatten() for p in state.trained]) for state in (a, b))
    return float((one - other).norm() / other.norm())


def test_a_batch_in_parts_is_the_batch():
    """Noise, stratified times, dropout, labels, shifts: of every sample as in the whole batch."""
    config = attrs.evolve(CONFIG, shift=0.5, flip=0.2)
    whole, expected = trained(config, with_dropout(), 12)
    parts, found = trained(attrs.evolve(config, accumulate=4), with_dropout(), 12)
    assert (
        difference(parts, whole) < 3e-6
    )  # measured 1.0e-6, nearly all of it in the bias of the keys, which has no gradient
    for one, other in zip(found, expected, strict=True):
        assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-6)
        assert float(one.bpd.total) == pytest.approx(float(other.bpd.total), rel=1e-6)
        assert float(one.gradient_norm) == pytest.approx(float(other.gradient_norm), rel=1e-5)
        torch.testing.assert_close(one.gamma, other.gamma)
        torch.testing.assert_close(one.diffusion, other.diffusion, rtol=1e-4, atol=1e-3)


def test_batches_that_cannot_be_divided():
    with pytest.raises(ConfigError, match=r"batch_size must be a multiple of 5, .* got 12"):
        Stepper(TrainState(small(), attrs.evolve(CONFIG, accumulate=5)))
    with pytest.raises(ConfigError, match=r"free_bits must be 0 .* got 0\.5"):
        Stepper(TrainState(small_vae(free_bits=0.5), attrs.evolve(CONFIG, accumulate=2)))


class NoReadBack(TorchDispatchMode):
    """Raise where a value is read from a tensor, as `item`, `tolist` and `bool` do: on a GPU the host would wait."""

    READS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name().split(".")[0] not in self.READS, f"{func.name()} reads from the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reads_nothing_from_the_device(name, monkeypatch):
    """The checks of values, which are made on a CPU alone, are turned off, and so are the CPU's own ways."""
    config = attrs.evolve(CONFIG, accumulate=2, clip_norm=1e-3)
    state = TrainState(MODELS[name](), config)
    state.model.take_first_stage(state.model.vae) if name == "diffusevae" else None
    stepper = Stepper(state)
    batches = step_batches(state.model, digits(), config, stepper.part)
    stepper(*batches[0])  # the optimiser makes its state
    monkeypatch.setattr("fastdiff.models.image_data.values_are_at_hand", lambda x: False)
    monkeypatch.setattr("fastdiff.models.diffusion.drawn_once", lambda noise, like: noise)
    monkeypatch.setattr("fastdiff.models.ddpm.drawn_once", lambda noise, like: noise)
    for step in (1, 2):
        x, labels = batches[step]
        with NoReadBack():
            stepper(x, labels)
    assert state.step == 3
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReadBack():
        float(state.weight_norm())


class Dtypes(TorchDispatchMode):
    """Records with which floating-point dtypes the fused operations are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, set[tuple[torch.dtype, ...]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, _, name = func.name().partition("::")
        if space == "fastdiff":
            dtypes = tuple(x.dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point())
            self.found.setdefault(name, set()).add(dtypes)
        return func(*args, **(kwargs or {}))


def test_what_is_computed_in_bfloat16():
    """The networks are; the schedule, z_t, the arithmetic of the Fourier features and the loss are not."""
    config = attrs.evolve(CONFIG, precision="bf16")
    f32, b16 = torch.float32, torch.bfloat16
    for model in (small("epsilon", schedule="learned"), small_ddpm(), small_diffusevae(), small_vae()):
        state = TrainState(model, config)
        stepper = Stepper(state)
        with Dtypes() as dtypes:
            report = stepper(*step_batches(model, digits(), config, stepper.part)[0])
        print(model.kind, dtypes.found)
        assert report.loss.dtype == f32
        assert all(parameter.dtype == f32 for parameter in state.trained)
        for name in ("diffuse", "eps_squared_error", "fourier_features", "decoder_nll", "reparameterize"):
            assert {f32} >= {dtype for call in dtypes.found.get(name, ()) for dtype in call}, name
        assert {call[0] for call in dtypes.found["group_norm_silu"]} == {b16}


@pytest.mark.parametrize(
    "name", usually(["learned schedule"], ["learned schedule", "diffusevae", "vae", "flow", "edm"])
)
def test_a_step_compiles_whole_and_once(name, monkeypatch):
    """Without a graph break, and not again at the next step. (tests/kernels compile the operations with Inductor.)"""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    config = attrs.evolve(CONFIG, loss=name) if name in LOSSES else CONFIG
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled, found = trained(attrs.evolve(config, compile=True), MODELS[name](), 3)
    plain, expected = trained(config, MODELS[name](), 3)
    for one, other in zip(found, expected, strict=True):
        assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-5)
    print(difference(compiled, plain))


class Normalised(nn.Module):
    """A network of the user's own whose BatchNorm keeps running means; ``scale`` is of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)  # an image and its Fourier features
        self.last, self.scale = nn.Conv2d(4, 1, 1), 1.0

    def forward(self, z, *_):
        return self.last(self.norm(self.first(self.scale * z)))


def test_a_step_that_is_skipped_leaves_the_running_means_of_an_own_network():
    network = Normalised()
    model = VDM(small().config, network=network)
    stepper = Stepper(TrainState(model, CONFIG))
    images = digits().train_images[:12]
    assert not stepper(images, None).skipped
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network.scale = math.nan
    assert stepper(images, None).skipped
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.isfinite(stepper.state.averaged.state_dict()["network.norm.running_mean"]).all()
