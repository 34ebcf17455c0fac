"""The official VDM's parameters: eps_hat, gamma and the bound against `official_vdm`, which is written from the
description of its code in float64; and what is wrong with a file.

Measured over the configurations below: eps_hat, of order 1, differs by 4.4e-6 at most.
"""

import numpy as np
import official_vdm
import pytest
import torch
from safetensors.torch import save_file

import fastdiff
from fastdiff.diffusion.bound import finite_times, stratified_times
from fastdiff.diffusion.schedules import ScheduleError
from fastdiff.interop import load_vdm, vdm
from fastdiff.io.configuration import ConfigError
from fastdiff.io.folders import CheckpointError
from fastdiff.kernels import Noise, Stream
from fastdiff.models import VDM, ConcatUNetConfig, VDMConfig, model_of
from fastdiff.models.formats.vdm import config_of, flat_names, state_of

EPS_HAT = 7e-6
SMALL = {"width": 64, "layers": 1, "attention": False, "fourier": True, "schedule": "scalar"}
CONFIGURATIONS = {
    "CIFAR-10": SMALL | {"layers": 3},
    "CIFAR-10 with augmentation": SMALL | {"layers": 2, "attention": True, "schedule": "monotone"},
    "without Fourier features": SMALL | {"fourier": False, "schedule": "fixed"},
    "one channel": SMALL | {"channels": 1, "schedule": "monotone", "width": 96},
    "two channels": SMALL | {"channels": 2, "attention": True, "schedule": "fixed", "width": 96, "layers": 2},
}  # fmt: skip
SCHEDULES = ("fixed", "scalar", "monotone")


def saved(path, settings: dict, seed: int = 0, prefix: str = "", separator: str = "/") -> dict[str, torch.Tensor]:
    """Random parameters, written to an .npz file."""
    theirs = official_vdm.random_parameters(official_vdm.parameters(**settings), seed)
    np.savez(path, **{(prefix + name).replace("/", separator): value.numpy() for name, value in theirs.items()})
    return theirs


def last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


# ------------------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_eps_hat(tmp_path, name):
    """At small gamma too, where the Fourier features are steep."""
    settings = CONFIGURATIONS[name]
    theirs = saved(tmp_path / "theirs.npz", settings)
    model = load_vdm(tmp_path / "theirs.npz", image_size=8)
    z = torch.randn(3, settings.get("channels", 3), 8, 8, generator=torch.Generator().manual_seed(1))
    gamma = torch.tensor([-13.0, -4.2, 4.9])
    with torch.no_grad():
        eps_hat = model.eps_hat(z, gamma)
    expected = official_vdm.score(theirs, last(z), gamma)
    assert float((last(eps_hat) - expected).abs().max()) < EPS_HAT


def test_noise_level_and_scalar_matter(tmp_path):
    """So that equal numbers above mean something. The scalar of augmented images is not 0."""
    theirs = saved(tmp_path / "theirs.npz", SMALL)
    z = torch.randn(1, 8, 8, 3)
    outputs = [official_vdm.score(theirs, z, torch.tensor([g]), c) for g, c in ((-4.0, 0.0), (-4.1, 0.0), (-4.0, 1.0))]
    assert min(float((outputs[0] - other).abs().max()) for other in outputs[1:]) > 0.01


# ------------------------------------------------------------------------------------------------ schedule and bound


@pytest.mark.parametrize("kind", SCHEDULES)
def test_gamma(tmp_path, kind):
    theirs = saved(tmp_path / "theirs.npz", SMALL | {"schedule": kind, "features": 40})
    model = load_vdm(tmp_path / "theirs.npz", image_size=8)
    t = torch.linspace(0.0, 1.0, 65, dtype=torch.float64, requires_grad=True)
    expected = official_vdm.gamma(theirs, t)
    slope = torch.autograd.grad(expected.sum(), t)[0]
    with torch.no_grad():
        value, rate = model.gamma.both(t.detach())
    expected = expected.detach()
    assert float((value - expected).abs().max()) < 2e-6  # measured: 9.5e-7, one unit in the last place of float32
    assert float((rate / slope - 1.0).abs().max()) < 2e-7  # measured: 4.2e-8
    ends = torch.stack(model.gamma.endpoints()).detach()
    assert float((ends - expected[[0, -1]]).abs().max()) < 1e-6
    assert isinstance(model, VDM)
    assert model.config.learn_endpoints == (kind != "fixed")
    assert model.config.schedule_width == (40 if kind == "monotone" else 1024)


def test_weights_of_the_schedule_that_are_zero(tmp_path):
    theirs = saved(tmp_path / "theirs.npz", SMALL | {"schedule": "monotone"})
    theirs["gamma/l1/kernel"] = torch.zeros(1, 1)
    theirs["gamma/l3/kernel"][:5] = 0.0
    np.savez(tmp_path / "theirs.npz", **{name: value.numpy() for name, value in theirs.items()})
    t = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    gamma = load_vdm(tmp_path / "theirs.npz", image_size=8).gamma
    with torch.no_grad():
        assert float((gamma(t) - official_vdm.gamma(theirs, t)).abs().max()) < 2e-6


def test_the_network_sees_the_configured_range(tmp_path):
    """gamma_min and gamma_max scale gamma for the network, and are not the schedule's endpoints."""
    saved(tmp_path / "theirs.npz", SMALL)
    model = load_vdm(tmp_path / "theirs.npz", image_size=8, gamma_min=-11.0, gamma_max=4.0)
    other = load_vdm(tmp_path / "theirs.npz", image_size=8)
    assert (model.config.gamma_0, model.config.gamma_1) == (-11.0, 4.0)
    assert torch.equal(model.gamma.gamma_0, other.gamma.gamma_0)
    z, gamma = torch.randn(1, 3, 8, 8), torch.tensor([0.0])
    with torch.no_grad():
        assert float((model.eps_hat(z, gamma) - other.eps_hat(z, gamma)).abs().max()) > 0.01


@pytest.mark.parametrize("T", [None, 20])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_bound(tmp_path, kind, T):
    """Term by term from the same noise and times."""
    theirs = saved(tmp_path / "theirs.npz", SMALL | {"schedule": kind})
    model = load_vdm(tmp_path / "theirs.npz", image_size=8)
    x = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    noise = Noise(11)
    with torch.no_grad():
        vlb = model.vlb(x, noise, T)
    u = stratified_times(noise, 2).double()
    t = u if T is None else finite_times(u, T)[1]
    draws = [last(noise.at(stream=stream).normal(x.shape)).double() for stream in (Stream.RECON, Stream.DIFFUSION)]
    expected = official_vdm.bound(theirs, last(x), t, *draws, T)
    for name, term in expected.items():
        got = getattr(vlb, name).double()
        term = term.detach()
        # measured: 8.1e-5 nats of recon, whose logits have the factor e^12.9; 5.9e-6 of diffusion, 2.4e-7 of prior
        torch.testing.assert_close(got, term, rtol=1e-5, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("prefix", ["", "params/", "ema_params/"])
@pytest.mark.parametrize("separator", ["/", "."])
def test_names(tmp_path, prefix, separator):
    theirs = saved(tmp_path / "theirs.npz", SMALL, prefix=prefix, separator=separator)
    model = load_vdm(tmp_path / "theirs.npz", image_size=8)
    kernel = theirs["score_model/conv_in/kernel"]
    assert torch.equal(model.network.conv_in.weight, kernel.permute(3, 2, 0, 1))
    assert not model.training


def test_a_whole_training_state(tmp_path):
    """The averaged parameters are taken, and what is not a parameter is left out."""
    shapes = official_vdm.parameters(**SMALL)
    ema, last_ones = (official_vdm.random_parameters(shapes, seed) for seed in (1, 2))
    state = {f"ema_params/{name}": value for name, value in ema.items()}
    state |= {f"params/{name}": value for name, value in last_ones.items()}
    state |= {"step": torch.tensor(3), "opt_state/0/count": torch.tensor(3)}
    save_file(state, tmp_path / "state.safetensors")
    model = load_vdm(tmp_path / "state.safetensors", image_size=8)
    assert torch.equal(model.network.conv_in.bias, ema["score_model/conv_in/bias"])


def test_a_folder_of_ours(tmp_path):
    saved(tmp_path / "theirs.npz", SMALL | {"schedule": "monotone"})
    model = load_vdm(tmp_path / "theirs.npz", image_size=8, dropout=0.05)
    assert model.config.network.dropout == 0.05
    again = fastdiff.load(model.save(tmp_path / "ours"))
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert fastdiff.sample(again, 2, steps=3).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        ({"width": 128, "layers": 32, "attention": False, "fourier": True, "schedule": "scalar"}, 30.6),
        ({"width": 256, "layers": 32, "attention": True, "fourier": True, "schedule": "monotone"}, 139.0),
    ],
)
def test_published_sizes_on_the_meta_device(settings, millions):
    with torch.device("meta"):
        shapes = official_vdm.parameters(**settings, features=1024)
        theirs = {name.replace("/", "."): torch.empty(shape) for name, shape in shapes.items()}
        model = model_of(config_of(theirs, 32, -13.3, 5.0, 0.1, "x"))
    assert model.config.network == ConcatUNetConfig(
        width=settings["width"], multipliers=(1,), blocks=32, attention=(32,) if settings["attention"] else (),
        embedding_bias=False,
    )  # fmt: skip
    assert state_of(model, theirs, "x").keys() == model.state_dict().keys()
    assert sum(value.numel() for value in theirs.values()) / 1e6 == pytest.approx(millions, abs=0.5)


# ------------------------------------------------------------------------------------------------ what is wrong


def changed(theirs: dict[str, torch.Tensor], change: str) -> str:
    """Make something wrong with the parameters; return the message."""
    norm, w = "score_model/mid.attn_1/GroupNorm_0/scale", "gamma/w"
    match change:
        case "missing":
            del theirs[norm]
            return r"missing tensor score_model\.mid\.attn_1\.GroupNorm_0\.scale"
        case "unknown":
            theirs["score_model/dense2/kernel"] = torch.ones(1)
            return r"unknown tensor score_model\.dense2\.kernel"
        case "shape":
            theirs["score_model/dense0/kernel"] = theirs["score_model/dense0/kernel"][1:]
            return r"dense0.kernel must make a floating-point tensor of shape \(256, 64\), got \(64, 256\)"
        case "layout":
            theirs["score_model/conv_in/kernel"] = theirs["score_model/conv_in/kernel"].permute(3, 2, 0, 1)
            return "conv_in must have 3 or 15 input channels, .* a multiple of 32 output channels, got 3 and 3"
        case "width":
            theirs["score_model/conv_in/kernel"] = theirs["score_model/conv_in/kernel"][..., :48]
            return "a multiple of 32 output channels, got 15 and 48"
        case "other":
            theirs.clear()
            theirs["a"] = torch.ones(1)
            return r"must hold the parameters of a VDM, .* got a; missing under score_model/: conv_in/kernel, conv_out/"
        case "few":
            for name in set(theirs) - {"score_model/conv_in/kernel", "score_model/conv_out/kernel"}:
                del theirs[name]
            return r"missing under score_model/: dense0/kernel, dense1/kernel, down\.block_0/conv1/kernel, "
        case "schedule":
            theirs["gamma/l1/kernel"] = torch.ones(1, 1)
            return "must hold the parameters of a schedule, gamma/b, gamma/w; .* got gamma/b, gamma/l1.kernel, gamma/w"
        case "schedule's shape":
            theirs[w] = torch.ones(2)
            return r"gamma/w must be floating-point of shape \(1,\), got \(2,\) float32"
        case "nan":
            theirs[norm] = theirs[norm] * torch.nan
            return "network.attention.norm.weight must be finite"
        case "twice":
            theirs["gamma.w"] = theirs[w]
            return "two names differ only by '/' and '.'"
    raise ValueError(change)


CHANGES = (
    "missing",
    "unknown",
    "shape",
    "layout",
    "width",
    "other",
    "few",
    "schedule",
    "schedule's shape",
    "nan",
    "twice",
)


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_parameters(tmp_path, change):
    path = tmp_path / "theirs.npz"
    theirs = saved(path, SMALL)
    message = changed(theirs, change)
    np.savez(path, **{name: value.numpy() for name, value in theirs.items()})
    with pytest.raises(CheckpointError, match=message) as error:
        load_vdm(path, image_size=8)
    assert str(path) in str(error.value)


def test_a_schedule_that_does_not_increase(tmp_path):
    theirs = saved(tmp_path / "theirs.npz", SMALL)
    theirs["gamma/w"] = torch.zeros(1)
    np.savez(tmp_path / "theirs.npz", **{name: value.numpy() for name, value in theirs.items()})
    with pytest.raises(ScheduleError, match="gamma must increase"):
        load_vdm(tmp_path / "theirs.npz", image_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be an integer >= 1, got 0"),
        ({"image_size": 8.0}, "image_size must be an integer >= 1, got 8.0"),
        ({"image_size": 8, "gamma_min": 6.0}, "gamma_0 must be < gamma_1"),
        ({"image_size": 8, "dropout": 1.0}, "dropout must lie in"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    saved(tmp_path / "theirs.npz", SMALL)
    with pytest.raises(ConfigError, match=message):
        load_vdm(tmp_path / "theirs.npz", **options)


def test_pickles_and_objects(tmp_path):
    torch.save({}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match="it is a pickle, which can run any program"):
        load_vdm(tmp_path / "theirs.pt")
    np.savez(tmp_path / "theirs.npz", params=np.array({"gamma": {"w": 1.0}}, dtype=object))
    with pytest.raises(CheckpointError, match=r"params must be .* Python objects, .* a pickle .* a flat dictionary"):
        load_vdm(tmp_path / "theirs.npz")


def test_nothing_is_read_where_shapes_do_not_fit(tmp_path, monkeypatch):
    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(vdm, "read_weights", never)
    theirs = saved(tmp_path / "theirs.npz", SMALL)
    del theirs["score_model/conv_out/bias"]
    np.savez(tmp_path / "theirs.npz", **{name: value.numpy() for name, value in theirs.items()})
    with pytest.raises(CheckpointError, match=r"missing tensor score_model\.conv_out\.bias"):
        load_vdm(tmp_path / "theirs.npz", image_size=8)


def test_flat_names():
    assert flat_names(["params/a/b", "step"], "x") == {"a.b": "params/a/b"}
    assert flat_names(["a.b/c"], "x") == {"a.b.c": "a.b/c"}


def test_a_fixed_schedule_is_a_linear_one(tmp_path):
    saved(tmp_path / "theirs.npz", SMALL | {"schedule": "fixed"})
    config = load_vdm(tmp_path / "theirs.npz", image_size=8).config
    assert isinstance(config, VDMConfig)
    assert (config.schedule, config.learn_endpoints, config.gamma_0, config.gamma_1) == ("linear", False, -13.3, 5.0)
