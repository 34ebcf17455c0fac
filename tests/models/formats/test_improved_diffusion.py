"""improved-diffusion's weights: eps_hat, v, betas and steps against `openai_unet`, which is written from their code's
description in float64; every flag; and what is wrong with a file.

Measured over the configurations below: eps_hat differs by 5.3e-6 at most, or of its root mean square where that is
larger than 1.
"""

import json
import math
import pickle

import numpy as np
import openai_unet
import pytest
import torch
from safetensors.torch import save_file
from tiny import plan_of

import fastdiff
from fastdiff.checkpoints import weights_file
from fastdiff.diffusion import Ancestral, sample_latents
from fastdiff.diffusion.spacings import chain_steps
from fastdiff.interop import improved_diffusion, load_improved_diffusion
from fastdiff.io.configuration import ConfigError
from fastdiff.io.folders import CheckpointError
from fastdiff.kernels import Noise, Stream
from fastdiff.models import model_of
from fastdiff.models.formats.improved_diffusion import state_of
from fastdiff.models.formats.improved_diffusion_flags import ImprovedDiffusionFlags, config_of

SMALL = {"image_size": 8, "num_channels": 64, "channel_mult": "1,2", "num_res_blocks": 1, "attention_resolutions": "4"}
EPS_HAT = 8e-6  # measured: 5.3e-6

CONFIGURATIONS = {
    "four resolutions": SMALL | {"channel_mult": "1,1,1,2", "num_heads": 4},
    "three resolutions": {
        "image_size": 16, "num_channels": 64, "channel_mult": "1,1,2", "num_res_blocks": 2, "num_heads": 2,
        "attention_resolutions": "8,4", "learn_sigma": True, "diffusion_steps": 12, "noise_schedule": "cosine",
    },
    "attention at the full resolution": SMALL | {"attention_resolutions": "8,4", "num_heads": 1},
    "attention in the middle only": SMALL | {"attention_resolutions": "", "num_res_blocks": 2},
    "embedding added": SMALL | {"use_scale_shift_norm": False, "rescale_timesteps": False, "diffusion_steps": 40},
    "classes, x predicted": SMALL | {
        "class_cond": True, "predict_xstart": True, "learn_sigma": True, "sigma_small": True, "diffusion_steps": 50,
    },
    "one resolution, small variances": SMALL | {"channel_mult": "1", "attention_resolutions": "8", "sigma_small": True},
    "guided-diffusion": SMALL | {
        "num_head_channels": 32, "use_new_attention_order": True, "attention_resolutions": "8",
    },
    "a size that is no power of two": SMALL | {"image_size": 12, "attention_resolutions": "6"},
}  # fmt: skip


def random_flags(seed: int) -> dict:
    """Flags of a small network, every one of those that matter drawn."""
    rng = np.random.default_rng(seed)
    bits = ("learn_sigma", "sigma_small", "class_cond", "predict_xstart", "rescale_timesteps", "use_scale_shift_norm")
    multipliers = rng.choice(["1", "1,1", "1,2", "1,2,1", "1,1,2,1"])
    heights = [height for height in (8, 4, 2, 1) if rng.integers(2)]
    return {name: bool(rng.integers(2)) for name in bits} | {
        "image_size": 8, "num_channels": 64, "channel_mult": str(multipliers),
        "num_res_blocks": int(rng.integers(1, 4)), "num_heads": int(rng.choice([1, 2, 4, 8])),
        "attention_resolutions": ",".join(map(str, heights)),
        "diffusion_steps": int(rng.integers(21, 4001)), "noise_schedule": str(rng.choice(["linear", "cosine"])),
    }  # fmt: skip


CONFIGURATIONS |= {f"random {seed}": random_flags(seed) for seed in range(6)}


def shapes_of(flags: dict, classes: int = 3) -> openai_unet.Shapes:
    """The shapes of their network for flags, by `openai_unet`; their code's table of image sizes stands here again."""
    size = flags.get("image_size", 64)
    multipliers = flags.get("channel_mult") or {256: "1,1,2,2,4,4", 64: "1,2,3,4", 32: "1,2,2,2"}[size]
    resolutions = [each for each in flags.get("attention_resolutions", "16,8").split(",") if each]
    return openai_unet.parameters(
        flags.get("num_channels", 128), tuple(map(int, multipliers.split(","))), flags.get("num_res_blocks", 2),
        tuple(size // int(each) for each in resolutions), flags.get("use_scale_shift_norm", True),
        learn_sigma=flags.get("learn_sigma", False), classes=classes if flags.get("class_cond") else 0,
    )  # fmt: skip


def saved(folder, flags: dict, seed: int = 0):
    """Random weights of a configuration, and the file that holds them."""
    state = openai_unet.random_state(shapes_of(flags), seed)
    save_file(state, folder / "theirs.safetensors")
    return state, folder / "theirs.safetensors"


def output_of(state, flags: dict, x: torch.Tensor, t: torch.Tensor, labels=None) -> torch.Tensor:
    """Their network's output at steps t = 0 .. T - 1 of the chain."""
    T = flags.get("diffusion_steps", 1000)
    timesteps = t.float() * (1000.0 / T if flags.get("rescale_timesteps", True) else 1.0)
    return openai_unet.unet(
        state, x, timesteps, labels, flags.get("num_heads", 4), flags.get("use_new_attention_order", False),
        flags.get("num_head_channels"),
    )  # fmt: skip


def chain_of(flags: dict) -> openai_unet.Chain:
    return openai_unet.Chain(flags.get("noise_schedule", "linear"), flags.get("diffusion_steps", 1000))


# ------------------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_eps_hat_and_v(tmp_path, name):
    flags = CONFIGURATIONS[name]
    state, path = saved(tmp_path, flags)
    model, chain = load_improved_diffusion(path, **flags), chain_of(flags)
    T, size = model.T, flags["image_size"]
    t = torch.tensor([0, T // 3])
    gamma = torch.log((1.0 - chain.kept) / chain.kept)[t]
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([2, 0]) if flags.get("class_cond") else None
    expected = output_of(state, flags, x, t, labels)
    with torch.no_grad():
        eps_hat, v = model.predict(x, gamma.float(), labels)
    if flags.get("learn_sigma"):
        assert v is not None
        expected, values = expected.chunk(2, dim=1)
        assert float((v - (values + 1.0) / 2.0).abs().max()) < EPS_HAT * float(values.abs().max())
    if flags.get("predict_xstart"):
        kept = chain.kept[t][:, None, None, None]
        expected = (x / kept.sqrt() - expected) / (1.0 / kept - 1.0).sqrt()
    size = expected.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1.0)
    assert float(((eps_hat - expected) / size).abs().max()) < EPS_HAT


def test_without_a_label_the_embedding_is_zero(tmp_path):
    flags = SMALL | {"class_cond": True}
    state, path = saved(tmp_path, flags)
    model = load_improved_diffusion(path, **flags)
    assert (model.num_classes, model.null_label) == (3, 3)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = output_of(state, flags, x, torch.tensor([999, 999]))
    with torch.no_grad():
        eps_hat = model.eps_hat(x, model.gamma.endpoints()[1].expand(2))
    assert float((eps_hat - expected).abs().max()) < EPS_HAT * float(expected.square().mean().sqrt())


def test_the_labels_and_the_steps_matter(tmp_path):
    """So that equal numbers above mean something."""
    flags = SMALL | {"class_cond": True, "use_scale_shift_norm": False}
    _, path = saved(tmp_path, flags)
    model = load_improved_diffusion(path, **flags)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).expand(4, -1, -1, -1)
    gamma = model.gamma(torch.tensor([0.5, 0.5, 0.5, 0.51]))
    with torch.no_grad():
        out = model.eps_hat(x, gamma, torch.tensor([0, 1, 3, 0]))
    for i in range(1, 4):
        assert float((out[i] - out[0]).abs().max()) > 0.05, i


# ------------------------------------------------------------------------------------------------ the chain


@pytest.mark.parametrize(
    ("schedule", "T"), [("linear", 1000), ("linear", 4000), ("linear", 25), ("cosine", 1000), ("cosine", 9)]
)
def test_betas(schedule, T):
    flags = ImprovedDiffusionFlags(diffusion_steps=T, noise_schedule=schedule, num_channels=32)
    with torch.device("meta"):
        gamma = model_of(flags.config(3, (1,), 0)).gamma
    kept = openai_unet.Chain(schedule, T).kept
    assert float((gamma.decay + kept.log()).abs().max() / -kept[-1].log()) < 2e-14  # measured: 1.5e-14
    t = torch.arange(T, dtype=torch.float64) / (T - 1)
    torch.testing.assert_close(gamma(t), torch.log((1.0 - kept) / kept), rtol=1e-9, atol=1e-9)


VARIANCES = {"small": {"sigma_small": True}, "large": {}, "learned": {"learn_sigma": True}}


@pytest.mark.parametrize("kind", VARIANCES)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("predicts_x", [False, True])
def test_steps(tmp_path, kind, schedule, predicts_x):
    """x_{t-1} of their p_mean_variance with x_hat clipped, from the same x_t and noise, at several t."""
    T = 30
    flags = SMALL | VARIANCES[kind] | {
        "channel_mult": "1", "attention_resolutions": "", "diffusion_steps": T, "noise_schedule": schedule,
        "predict_xstart": predicts_x,
    }  # fmt: skip
    state, path = saved(tmp_path, flags, seed=3)
    model, chain = load_improved_diffusion(path, **flags), chain_of(flags)
    plan = plan_of(model, T, Ancestral(clip_denoised=True))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    for t in (T - 1, T // 2, 1, 0):
        row = slice(T - 1 - t, T - t)
        bounds = None if plan.log_variance is None else plan.log_variance[row]
        one = type(plan)(plan.gamma[row], plan.table[row], bounds, clip_denoised=True)
        got = sample_latents(model.predict, x, one, Noise(7))
        output = output_of(state, flags, x, torch.tensor([t, t]))
        output, values = output.chunk(2, dim=1) if kind == "learned" else (output, None)
        x_hat = chain.x_hat(output, x, t, predicts_x).clamp(-1.0, 1.0)
        expected = chain.mean(x_hat, x, t)
        if t:
            noise = Noise(7, stream=Stream.SAMPLER).normal((2, 3, 8, 8))
            expected = expected + torch.exp(0.5 * chain.log_variance(t, kind, values)) * noise
        # measured: 3.2e-6; 1.5e-5 where x is predicted at sigma / alpha = 2e4, since a step is written in eps_hat
        assert float((got - expected).abs().max()) < (2e-5 if predicts_x and t == T - 1 else 5e-6), t


@pytest.mark.parametrize("kind", VARIANCES)
def test_the_decoders_variance(kind):
    """Of the last step, whose posterior has no variance: theirs is that of the step before, or lies above it."""
    flags = ImprovedDiffusionFlags(num_channels=32, diffusion_steps=30, **VARIANCES[kind])
    with torch.device("meta"):
        low, high = model_of(flags.config(3, (1,), 0)).decoder_log_variances
    chain, one = openai_unet.Chain("linear", 30), torch.ones((), dtype=torch.float64)
    assert low == pytest.approx(float(chain.log_variance(0, kind, -one if kind == "learned" else None)), abs=1e-12)
    assert high == pytest.approx(float(chain.log_variance(0, "learned", one)), abs=1e-12)


@pytest.mark.parametrize(("T", "steps"), [(1000, 250), (4000, 100), (1000, 7), (50, 50)])
def test_respacing_is_a_spacing_of_the_sampler(T, steps):
    """The message for timestep_respacing names it: 'N' rounds evenly spaced steps, 'ddimN' has the least stride that
    gives N."""
    stride, chosen, position = (T - 1) / (steps - 1), [], 0.0
    for _ in range(steps):
        chosen.append(round(position))
        position += stride
    assert chain_steps("linspace", T, steps) == chosen
    strides = [i for i in range(1, T) if len(range(0, T, i)) == steps]
    if T % steps == 0:
        assert chain_steps("leading", T, steps) == list(range(0, T, strides[0]))


# ------------------------------------------------------------------------------------------------ whole models


PUBLISHED = {  # flags of their README, and the millions of parameters in the names of the files, which are rough
    "imagenet64_uncond": ({"num_res_blocks": 3, "learn_sigma": True, "noise_schedule": "cosine"}, 100),
    "cifar10_uncond": ({"image_size": 32, "num_res_blocks": 3, "learn_sigma": True, "dropout": 0.3}, 50),
    "imagenet64_cond": ({"num_channels": 192, "num_res_blocks": 3, "learn_sigma": True, "class_cond": True}, 270),
    "lsun_uncond": ({
        "image_size": 256, "num_heads": 1, "learn_sigma": True, "use_scale_shift_norm": False,
        "attention_resolutions": "16", "rescale_timesteps": False, "rescale_learned_sigmas": False,
    }, 100),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_on_the_meta_device(name):
    """Every tensor of the published sizes has a place, and there are as many numbers."""
    flags, millions = PUBLISHED[name]
    with torch.device("meta"):
        theirs = {key: torch.empty(shape) for key, shape in shapes_of(flags, classes=1000).items()}
        model = model_of(config_of(ImprovedDiffusionFlags(**flags), theirs, name))
    state = state_of(model, theirs, False, name)
    assert state.keys() == model.state_dict().keys()
    count = sum(tensor.numel() for tensor in theirs.values())
    extra = theirs["label_emb.weight"].shape[1] if flags.get("class_cond") else 0
    assert count + extra == sum(parameter.numel() for parameter in model.parameters())
    assert abs(count / 1e6 - millions) < 0.25 * millions, count


def test_a_folder_of_ours(tmp_path):
    """`save` makes it a checkpoint that `fastdiff.load` reads, and images are drawn from it."""
    flags = SMALL | {"learn_sigma": True, "class_cond": True, "diffusion_steps": 30}
    _, path = saved(tmp_path, flags)
    model = load_improved_diffusion(path, **flags)
    assert not model.training
    again = fastdiff.load(model.save(tmp_path / "ours"))
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    images = fastdiff.sample(again, 2, steps=3, labels=1)
    assert images.shape == (2, 3, 8, 8)
    assert model.config.pixels == "ends"
    assert float(model.to_unit(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).abs().max()) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    state, path = saved(tmp_path, SMALL)
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, path)
    model = load_improved_diffusion(path, **SMALL)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.network.conv_in.weight, state["input_blocks.0.0.weight"].to(dtype).float())


def test_arrays_of_numpy(tmp_path):
    """In C and Fortran order, big-endian, compressed or not."""
    flags = SMALL | {"channel_mult": "1", "attention_resolutions": ""}
    state, path = saved(tmp_path, flags)
    expected = load_improved_diffusion(path, **flags).state_dict()
    orders = {np.savez: lambda array: np.asfortranarray(array), np.savez_compressed: lambda array: array.astype(">f4")}
    for save, change in orders.items():
        save(tmp_path / "theirs.npz", **{name: change(tensor.numpy()) for name, tensor in state.items()})
        model = load_improved_diffusion(tmp_path / "theirs.npz", **flags)
        assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ what is wrong


CONTRADICTED = {
    "num_channels": (32, "num_channels must be 64, got 32"),
    "num_res_blocks": (3, "num_res_blocks must be 1, got 3"),
    "channel_mult": ("1,3", "channel_mult must be '1,2', got '1,3'"),
    "image_size": (32, "channel_mult for image_size 32 must be '1,2', got '1,2,2,2'"),
    "attention_resolutions": ("8", "attention_resolutions must be '4', got '8'"),
    "learn_sigma": (True, "learn_sigma must be False, got True"),
    "class_cond": (True, "class_cond must be False, got True"),
    "use_scale_shift_norm": (False, "use_scale_shift_norm must be True, got False"),
    "num_heads_upsample": (2, "num_heads_upsample must be -1 or 4, .* got 2"),
}


@pytest.mark.parametrize("name", CONTRADICTED)
def test_flags_that_the_file_contradicts(tmp_path, name):
    value, message = CONTRADICTED[name]
    _, path = saved(tmp_path, SMALL)
    flags = {key: entry for key, entry in SMALL.items() if not (name == "image_size" and key == "channel_mult")}
    with pytest.raises(ConfigError, match=message):
        load_improved_diffusion(path, **flags | {name: value})


def test_several_contradictions_at_once(tmp_path):
    _, path = saved(tmp_path, SMALL)
    with pytest.raises(
        ConfigError, match=r"contradicts flags: num_channels must .*; num_res_blocks must .*; learn_sigma"
    ):
        load_improved_diffusion(path, **SMALL | {"num_channels": 128, "num_res_blocks": 2, "learn_sigma": True})


def test_channel_multipliers_of_an_unknown_size_are_those_of_the_file(tmp_path):
    _, path = saved(tmp_path, SMALL)
    model = load_improved_diffusion(path, **SMALL | {"channel_mult": "", "image_size": 8})
    assert model.config.network.multipliers == (1, 2)


WRONG_FLAGS = {
    "num_channel": (64, "unknown keys num_channel; the known keys are image_size"),
    "num_channels": (48, "num_channels must be a positive multiple of 32, got 48"),
    "attention_resolutions": ("16;8", "attention_resolutions must be positive integers separated by commas"),
    "noise_schedule": ("sigmoid", "noise_schedule must be one of 'linear', 'cosine', got 'sigmoid'"),
    "timestep_respacing": (
        "250",
        "timestep_respacing must be '': .* 'linspace' .* where N divides diffusion_steps, got '250'",
    ),
    "resblock_updown": (True, "resblock_updown must be one of False"),
    "diffusion_steps": (20, "diffusion_steps must be > 20 with the linear noise_schedule"),
    "learn_sigma": ("yes", "learn_sigma must be True or False, got 'yes'"),
    "num_heads": (3, "num_heads must divide num_channels, 64, got 3"),
    "num_head_channels": (48, "num_head_channels must divide the 128 channels of an attention, got 48"),
}


@pytest.mark.parametrize("name", WRONG_FLAGS)
def test_wrong_flags(tmp_path, name):
    value, message = WRONG_FLAGS[name]
    _, path = saved(tmp_path, SMALL)
    with pytest.raises(ConfigError, match=message):
        load_improved_diffusion(path, **SMALL | {name: value})


def changed(state, change: str):
    """A state with something wrong, and the message."""
    state, name = dict(state), "middle_block.1.qkv.weight"
    match change:
        case "missing":
            del state[name]
            return state, "missing tensor middle_block.1.qkv.weight"
        case "unknown":
            return state | {"ema.decay": torch.ones(1)}, "unknown tensor ema.decay"
        case "shape":
            state[name] = state[name][:-1]
            return state, r"qkv.weight must make a floating-point tensor of shape \(384, 128\), got \(383, 128, 1\)"
        case "integers":
            state[name] = state[name].int()
            return state, r"qkv.weight must make a floating-point tensor .* int32"
        case "nan":
            state[name] = state[name] * math.nan
            return state, r"network.attention.qkv.weight must be finite"
        case "other":
            return {
                "conv_in.weight": torch.ones(2)
            }, r"must hold the state of an improved-diffusion .* got conv_in.weight"
        case "updown":
            return state | {"output_blocks.1.2.in_layers.0.weight": torch.ones(2)}, "resblock_updown"
        case "super-resolution":
            state["input_blocks.0.0.weight"] = state["input_blocks.0.0.weight"].repeat(1, 2, 1, 1)
            return state, "super-resolution"
        case "halves":
            state["input_blocks.1.0.in_layers.2.weight"] = state["input_blocks.1.0.in_layers.2.weight"][:32]
            return state, "0.5,2 times 64 channels"
        case "scalars":
            return {
                key: torch.ones(()) for key in state
            }, r"input_blocks.0.0.weight of shape \[out, in, 3, 3\], got shape"
    raise ValueError(change)


@pytest.mark.parametrize(
    "change",
    ["missing", "unknown", "shape", "integers", "nan", "other", "updown", "super-resolution", "halves", "scalars"],
)
def test_wrong_tensors(tmp_path, change):
    state, path = saved(tmp_path, SMALL)
    state, message = changed(state, change)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    flags = SMALL | ({"channel_mult": ""} if change == "halves" else {})
    with pytest.raises(CheckpointError, match=message) as error:
        load_improved_diffusion(path, **flags)
    assert str(path) in str(error.value)


def test_a_pickle(tmp_path):
    path = tmp_path / "ema_0.9999_500000.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="it is a pickle, which can run any program"):
        load_improved_diffusion(path)


def test_arrays_of_objects(tmp_path):
    np.savez(tmp_path / "theirs.npz", **{"input_blocks.0.0.weight": np.array([{}])})
    with pytest.raises(
        CheckpointError, match=r"input_blocks\.0\.0\.weight must be .* Python objects, which is a pickle"
    ):
        load_improved_diffusion(tmp_path / "theirs.npz")


def test_other_files(tmp_path):
    for name, content in (("a.msgpack", b"x"), ("b.npz", b"x"), ("c.safetensors", b"x" * 20)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_improved_diffusion(tmp_path / name)
    for path in (tmp_path, tmp_path / "nothing.npz"):
        with pytest.raises(CheckpointError, match=r"must be a \.safetensors or \.npz file that exists"):
            load_improved_diffusion(path)
    np.savez(tmp_path / "d.npz", a=np.array(["words"]))
    with pytest.raises(CheckpointError, match="a must be an array of numbers"):
        load_improved_diffusion(tmp_path / "d.npz")
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "e.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        load_improved_diffusion(tmp_path / "e.safetensors")


def test_sizes_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    """Nothing is read from the file, and no model is built, where shapes do not fit or describe a huge model."""

    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(weights_file, "seeded", never)
    monkeypatch.setattr(improved_diffusion, "read_weights", never)
    width = 2**20
    empty = {"input_blocks.0.0.weight": (width, 3, 0, 0), "input_blocks.1.0.in_layers.2.weight": (width, 1, 0, 0)}
    np.savez(tmp_path / "huge.npz", **{name: np.zeros(shape, np.float32) for name, shape in empty.items()})
    with pytest.raises(CheckpointError, match="describes a model that is too large for its file"):
        load_improved_diffusion(tmp_path / "huge.npz", **SMALL | {"num_channels": width, "channel_mult": "1"})
    state, path = saved(tmp_path, SMALL)
    del state["out.0.bias"]
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"missing tensor out\.0\.bias"):
        load_improved_diffusion(path, **SMALL)
