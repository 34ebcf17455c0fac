"""Files of version 0.1.0: config.json and state.json as it wrote them, tensors under its names.

The configurations are literal. The tensors are those of a model of today, renamed by a table of this file; the names
and shapes must have the checksum that version 0.1.0 gave for the same configuration.
"""

import json
import zlib
from pathlib import Path

import pytest
import torch
from tiny import images, small, small_ddpm, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff import Latents
from fastdiff.data import digits
from fastdiff.io.folders import write_folder
from fastdiff.kernels import FastdiffError, Noise
from fastdiff.models import ConcatUNetConfig, Downsample, Model
from fastdiff.sampling import load_mixture
from fastdiff.training import TrainConfig, TrainState, train
from fastdiff.training.state import load_training

DATA = {"shape": [1, 8, 8], "levels": 17}
UNCONDITIONAL = {**DATA, "classes": 0, "augmented": False}
UNET = {
    "widths": [8, 12], "blocks": 1, "embedding": 16, "dropout": 0.0, "heads": 2, "max_groups": 8, "positions": True,
}  # fmt: skip
CONCAT = {
    "kind": "concat", "width": 8, "multipliers": [1, 2], "blocks": 2, "attention": [4], "dropout": 0.1, "heads": 2,
    "max_groups": 4, "embedding_bias": True,
}  # fmt: skip
CONV = {"kind": "conv", "widths": [8, 12], "blocks": 1, "dropout": 0.0, "max_groups": 4}
VDM = {
    **DATA, "classes": 10, "augmented": True, "gamma_0": -8.0, "gamma_1": 5.0, "learn_endpoints": True,
    "schedule": "linear", "fourier": [3, 4], "head": "levels", "network": UNET,
}  # fmt: skip
DDPM = {
    **UNCONDITIONAL, "steps": 12, "beta_first": 0.0001, "beta_last": 0.02, "beta_count": 1000, "variance": "learned",
    "head": "v", "continuous": True, "network": CONCAT,
}  # fmt: skip
VAE = {
    **UNCONDITIONAL, "depth": 2, "latent": 5, "hidden": 16, "network": CONV, "beta": 1.0, "free_bits": 0.0,
}  # fmt: skip
REFINER = {
    **UNCONDITIONAL, "steps": 12, "beta_first": 0.0001, "beta_last": 0.02, "beta_count": 1000, "variance": "small",
    "head": "eps", "continuous": False, "network": UNET,
}  # fmt: skip
DIFFUSEVAE = {**UNCONDITIONAL, "refiner": REFINER, "formulation": 2, "vae": {**VAE, "depth": 1}}
RESTORER = {
    **UNCONDITIONAL, "refiner": {**REFINER, "variance": "large"}, "formulation": 1,
    "degradation": {"factor": 4, "kind": "downsample"},
}  # fmt: skip
TRAINING = {
    "data": "digits", "steps": 4, "batch_size": 5, "loss": "elbo", "bound_steps": 9, "stratified": True,
    "learning_rate": 0.002, "schedule_learning_rate": 0.01, "warm_up": 2, "decay": "cosine", "weight_decay": 0.01,
    "beta_1": 0.9, "beta_2": 0.99, "clip_norm": 1.0, "ema": 0.9, "shift": 0.0, "flip": 0.0, "label_dropout": 0.5,
    "seed": 0, "first_stage": None,
}  # fmt: skip

# kind: the old name, the old configuration, the same model of today, the checksum of the old names and shapes
OLD = {
    "vdm": ("vdm", VDM, lambda: small("categorical", num_classes=10, augmented=True), 2061037409),
    "ddpm": (
        "ddpm", DDPM,
        lambda: small_ddpm(
            variance="learned", prediction="v", continuous_noise_conditioning=True,
            network=ConcatUNetConfig(width=8, multipliers=(1, 2), attention=(4,), heads=2, max_groups=4),
        ),
        969381665,
    ),
    "hvae": ("hvae", VAE, small_vae, 3838093094),
    "diffusevae": ("diffusevae", DIFFUSEVAE, lambda: small_diffusevae(2, variance="fixed_small"), 4070970870),
    "restorer": ("restorer", RESTORER, lambda: small_restoration(Downsample(factor=4)), 1509403433),
}  # fmt: skip
EMBEDDINGS = {"network.noise_embedding.": "network.number.", "network.label_embedding.": "network.label."}


def old_name(kind: str, name: str) -> str:
    for new, old in EMBEDDINGS.items():
        if name.startswith(new):
            name = old + name[len(new) :]
    second_stage = kind in ("diffusevae", "restorer") and not name.startswith("vae.")
    return f"refiner.{name}" if second_stage else name


STAGES = ("network.down.", "network.middle_in.", "network.middle_out.", "network.up.")
PROJECTIONS = "network.projections."


def old_layers(model: Model, tensors: dict) -> dict:
    """The tensors with a linear layer for each residual block, where today's network has one layer for all."""
    names = [name for stage in STAGES for name in model.state_dict() if name.startswith(stage)]
    blocks = [name.removesuffix(".conv_in.bias") for name in names if name.endswith(".conv_in.bias")]
    channels = [len(model.get_parameter(f"{block}.conv_in.bias")) for block in blocks]
    result = {name: value for name, value in tensors.items() if not name.startswith(PROJECTIONS)}
    for name in tensors.keys() - result.keys():
        factor = len(model.get_parameter(f"{PROJECTIONS}weight")) // sum(channels)  # a scale and a shift, or a shift
        layer, value = {1: "projection", 2: "modulation"}[factor], tensors[name]
        parts = value.split([factor * size for size in channels]) if value.dim() else [value] * len(blocks)
        ending = name.removeprefix(PROJECTIONS)
        result |= {f"{block}.{layer}.{ending}": part for block, part in zip(blocks, parts, strict=True)}
    return result


def old_tensors(kind: str, model: Model, tensors: dict) -> dict:
    return {old_name(kind, name): value for name, value in old_layers(model, tensors).items()}


def description(kind: str) -> dict:
    name, config, _, _ = OLD[kind]
    return {"model": name, "config": config, "versions": {"torch": "2.13.0", "python": "3.11.2"}}


def write_model(path: Path, kind: str, model: Model) -> Path:
    files = {"config.json": description(kind), "model.safetensors": old_tensors(kind, model, model.state_dict())}
    return write_folder(path, files)


@pytest.mark.parametrize("kind", OLD)
def test_the_tensors_have_the_names_of_version_0_1_0(kind):
    _, _, build, checksum = OLD[kind]
    model = build()
    tensors = old_tensors(kind, model, model.state_dict())
    names = sorted((name, list(value.shape)) for name, value in tensors.items())
    assert zlib.crc32(json.dumps(names).encode()) == checksum


@pytest.mark.parametrize("kind", OLD)
def test_old_models(tmp_path, kind):
    """Configuration, tensors, bound and samples are those of the model of today, and survive saving again."""
    model = OLD[kind][2]()
    loaded = fastdiff.load(write_model(tmp_path / "old", kind, model))
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    again = fastdiff.load(loaded.save(tmp_path / "new"))
    request = {} if kind == "hvae" else {"steps": 3}
    if kind == "restorer":
        request["cond"] = model.example_cond(images(2), Noise(1))
    x = images(3)
    with torch.no_grad():
        bound, result = model.vlb(x, Noise(3), model.T).total, fastdiff.sample(model, 2, **request)
        for other in (loaded, again):
            assert other.state_dict().keys() == model.state_dict().keys()
            for name, value in model.state_dict().items():
                assert torch.equal(other.state_dict()[name], value), name
            assert torch.equal(other.vlb(x, Noise(3), model.T).total, bound)
            assert torch.equal(fastdiff.sample(other, 2, **request), result)
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["model"] == {"restorer": "restoration"}.get(kind, kind)
    assert not {"classes", "head", "steps", "continuous", "refiner"} & set(saved["config"])


@pytest.mark.parametrize("kind", ["vdm", "diffusevae"])
def test_old_training_checkpoints(tmp_path, kind):
    """A run that version 0.1.0 left after 2 of 4 steps goes on as if it had never been interrupted, bit for bit."""
    name, _, build, _ = OLD[kind]
    changes = {"shift": 0.5} if kind == "vdm" else {"loss": "simple"}
    config = TrainConfig(data="digits", max_steps=4, batch_size=5, T=9, warm_up=2, ema=0.9, **changes)
    torch.manual_seed(0)
    state, data = TrainState(build(), config), digits()
    for report in train(state, data):
        if report.step == 2:
            files = {
                f"{part}.safetensors": {key: value.clone() for key, value in old.items()}
                for part, tensors in state.tensors().items()
                for old in [old_tensors(name, state.model, tensors)]
            }
            record = {"step": 2, "train": TRAINING | changes}
            path = tmp_path / "run" / "step-00000002"
            write_folder(path, {"config.json": description(kind), "state.json": record} | files)
    resumed = load_training(path)
    assert (resumed.step, resumed.config) == (2, config)
    average = fastdiff.load(tmp_path / "run").state_dict()
    assert all(torch.equal(average[key], value) for key, value in resumed.averaged.state_dict().items())
    for _ in train(resumed, data):
        pass
    expected, found = state.tensors(), resumed.tensors()
    for part, tensors in expected.items():
        assert tensors.keys() == found[part].keys()
        for key, value in tensors.items():
            assert torch.equal(found[part][key], value), (part, key)


def test_old_mixtures_fit_their_model(tmp_path):
    record = {
        "kind": "latent-mixture", "components": 1, "latent": 5,
        "fitted_to": {"model": "hvae", "config": VAE, "latents": 40, "seed": 0, "iterations": 17, "nats": -6.1},
    }  # fmt: skip
    one, zero, eye = torch.ones(1).double(), torch.zeros(1, 5).double(), torch.eye(5).double()[None]
    tensors = {"weights": one, "means": zero, "factors": eye}
    path = write_folder(tmp_path / "m", {"mixture.json": record, "mixture.safetensors": tensors})
    load_mixture(path).check_fits(small_vae())
    assert fastdiff.sample(small_vae(), 2, latents=Latents(mixture=path)).shape == (2, 1, 8, 8)
    with pytest.raises(FastdiffError, match="fitted to another model"):
        load_mixture(path).check_fits(small_vae(3))
