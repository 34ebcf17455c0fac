"""Folders of diffusers as models: the same eps_hat as diffusers' own network, any of its layouts, errors."""

import copy
import json
import shutil

import pytest
import torch
from diffusers_models import GOOGLE, SMALL, diffusers, old_names, random_scheduler, random_unet, save, unet_of
from safetensors.torch import load_file, save_file

import fastdiff
from fastdiff.checkpoints.weights_file import describe_weights
from fastdiff.cli.main import main
from fastdiff.io.folders import CheckpointError
from fastdiff.models import DDPM
from fastdiff.models.formats.diffusers_config import read_config
from fastdiff.models.formats.diffusers_pipeline import pipeline_files

WEIGHTS = "diffusion_pytorch_model.safetensors"


def alphas(scheduler) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of its chain, float64, from its betas."""
    kept = torch.cumprod(1.0 - scheduler.betas.double(), 0)
    return kept.sqrt(), (1.0 - kept).sqrt()


def expected_eps(network, scheduler, z, t, labels=None) -> torch.Tensor:
    """eps_hat of their network in float64, by the definitions of what it predicts."""
    alpha, sigma = (each[t][:, None, None, None] for each in alphas(scheduler))
    with torch.no_grad():
        out = network(z, t, class_labels=labels).sample.double()
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return out
    return alpha * out + sigma * z if kind == "v_prediction" else (z - alpha * out) / sigma


def error_of(model: DDPM, network, scheduler, seed: int = 0) -> float:
    """The largest error of eps_hat at three timesteps, relative to the largest eps_hat where that exceeds 1."""
    generator = torch.Generator().manual_seed(seed)
    steps = scheduler.config.num_train_timesteps
    t = torch.tensor([0, steps // 3, steps - 1])
    z = torch.randn(3, *model.shape, generator=generator)
    labels = torch.tensor([1, 0, 2]) if network.config.num_class_embeds else None
    expected = expected_eps(network, scheduler, z, t, labels)
    with torch.no_grad():
        found = model.eps_hat(z, model.gamma(t.double() / (steps - 1)).float(), labels)
    assert expected.std() > 0.05
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("seed", range(50))
def test_random_networks_give_the_same_eps_hat(tmp_path, seed):
    """Measured at most 9.1e-7. Writing gives back the same configuration and tensors, under the present names."""
    network = unet_of(random_unet(seed), seed)
    scheduler = diffusers.DDPMScheduler(**random_scheduler(seed))
    save(tmp_path, network, scheduler)
    if seed % 3 == 0:
        file = tmp_path / "unet" / WEIGHTS
        save_file(old_names(load_file(file)), file)
    model = fastdiff.load(tmp_path)
    assert not model.training
    assert error_of(model, network, scheduler, seed) < 2e-6
    written = pipeline_files(model.config, model.network, model.description(), "x")[f"unet/{WEIGHTS}"]
    theirs = network.state_dict()
    if network.config.flip_sin_to_cos:  # which is written as the other order of columns
        name = "time_embedding.linear_1.weight"
        theirs[name] = theirs[name].roll(theirs[name].shape[1] // 2, 1)
    if network.config.num_class_embeds:
        assert not written["class_embedding.weight"][-1].any()
        embedding = theirs["class_embedding.weight"]
        theirs["class_embedding.weight"] = torch.cat([embedding, torch.zeros(1, embedding.shape[1])])
    assert set(written) == set(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in written.items())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline's folder, its network and its scheduler."""
    network, scheduler = unet_of(SMALL), diffusers.DDPMScheduler(variance_type="fixed_large", beta_end=0.03)
    return save(tmp_path_factory.mktemp("pipeline"), network, scheduler), network, scheduler


@pytest.fixture
def folder(pipeline, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(pipeline[0], tmp_path / "copy")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def at_the_root(folder):
    """The layout of old folders."""
    for file in (folder / "unet").iterdir():
        file.rename(folder / file.name)
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "scheduler_config.json")
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    return folder


def shards(folder):
    tensors = load_file(folder / "unet" / WEIGHTS)
    names = {name: f"part-{k % 2}.safetensors" for k, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == file}, folder / "unet" / file)
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def shards_of_a_variant(folder):
    shards(folder)
    index = folder / "unet" / f"{WEIGHTS}.index.json"
    names = json.loads(index.read_text())["weight_map"]
    for k in range(2):
        name = f"diffusion_pytorch_model.fp16-0000{k + 1}-of-00002.safetensors"
        (folder / "unet" / f"part-{k}.safetensors").rename(folder / "unet" / name)
        names = {tensor: name if file == f"part-{k}.safetensors" else file for tensor, file in names.items()}
    index.unlink()
    (folder / "unet" / f"{WEIGHTS}.index.fp16.json").write_text(json.dumps({"weight_map": names}))
    return folder


def variant(folder):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.ema.safetensors")
    return folder


def averaged(folder):
    """The folder of averaged weights of diffusers' training script, which lies beside the scheduler."""
    (folder / "unet").rename(folder / "unet_ema")
    change(folder / "unet_ema" / "config.json", decay=0.9999, use_ema_warmup=True, optimization_step=7)
    return folder / "unet_ema"


def with_index(folder):
    index = {"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "X"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


LAYOUTS = [
    at_the_root, shards, shards_of_a_variant, variant, averaged, with_index, lambda folder: folder / "unet",
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_folders(pipeline, folder, layout):
    model = fastdiff.load(layout(folder))
    assert model.config.beta_last == 0.03
    assert model.config.variance == "fixed_large"
    assert error_of(model, *pipeline[1:]) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_16_bits_are_cast(pipeline, folder, dtype):
    file = folder / "unet" / WEIGHTS
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file)
    model = fastdiff.load(folder)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    expected = copy.deepcopy(pipeline[1]).to(dtype).float()
    assert error_of(model, expected, pipeline[2]) < 2e-6


def test_the_working_directory_as_the_network(pipeline, folder, monkeypatch, caplog):
    monkeypatch.chdir(folder / "unet")
    assert fastdiff.load(".").config.beta_last == 0.03
    assert not caplog.messages


def test_a_network_alone_has_the_chain_of_their_default(tmp_path, caplog):
    """And the learned variance if it has twice the channels."""
    model = fastdiff.load(save(tmp_path / "a", unet_of(SMALL)))
    assert error_of(model, unet_of(SMALL), diffusers.DDPMScheduler()) < 2e-6
    assert (model.T, model.variance) == (1000, "fixed_small")
    assert [each for each in caplog.messages if "has no scheduler" in each]
    assert fastdiff.load(save(tmp_path / "b", unet_of(SMALL | {"out_channels": 6}))).variance == "learned"


def test_without_a_label_nothing_is_added(tmp_path):
    """The embedding of the null label is 0: the network is theirs with class embeddings of 0."""
    theirs, scheduler = unet_of(SMALL | {"num_class_embeds": 3}), diffusers.DDPMScheduler()
    model = fastdiff.load(save(tmp_path, theirs, scheduler))
    assert (model.num_classes, model.config.num_labels) == (3, 4)
    theirs.class_embedding.weight.data.zero_()
    z, t = torch.randn(2, *model.shape), torch.tensor([10, 900])
    with torch.no_grad():
        found = model.eps_hat(z, model.gamma(t.double() / 999).float())
        expected = theirs(z, t, class_labels=torch.tensor([0, 1])).sample
    assert (found - expected).abs().max() < 4e-6  # measured 1e-6


def test_the_network_of_ddpm_cifar10_has_its_size(tmp_path):
    with torch.device("meta"):
        built = DDPM(read_config(GOOGLE, {"_class_name": "DDPMScheduler"}, "x").config)
    assert sum(parameter.numel() for parameter in built.parameters()) == 35_746_307


def test_loading_leaves_the_random_state_and_the_folder_alone(folder):
    before, names = torch.get_rng_state(), sorted(folder.rglob("*"))
    fastdiff.load(folder)
    assert torch.equal(before, torch.get_rng_state())
    assert sorted(folder.rglob("*")) == names


def test_commands_take_such_a_folder(folder, tmp_path, capsys):
    assert main(["sample", str(folder), "--steps", "2", "--n", "2", "--out", str(tmp_path / "s.png")]) == 0


# ------------------------------------------------------------------------------------------------ what is rejected


def rejected(folder, *words):
    with pytest.raises(CheckpointError) as error:
        fastdiff.load(folder)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


def test_all_settings_are_named_in_one_error(folder):
    change(folder / "unet" / "config.json", down_block_types=["DownBlock2D", "SkipDownBlock2D"], act_fn="gelu")
    change(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True, beta_schedule="sigmoid")
    rejected(
        folder, "down_block_types must be 2 blocks of DownBlock2D and AttnDownBlock2D", "'SkipDownBlock2D'",
        "act_fn must be 'silu' or 'swish', got 'gelu'", "gamma is infinite", "beta_schedule must be", "'sigmoid'",
        f"{folder / 'scheduler' / 'scheduler_config.json'} describes a scheduler",
    )  # fmt: skip


def test_a_pickle_is_not_read(folder):
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    rejected(folder, "is a pickle", "weights_only=True")
    rejected(at_the_root(folder), "is a pickle")


def test_a_pointer_of_git_lfs_is_named(folder):
    file = folder / "unet" / WEIGHTS
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 143023784\n")
    with pytest.raises(CheckpointError, match="run git lfs pull"):
        fastdiff.load(folder)
    with pytest.raises(CheckpointError, match="run git lfs pull"):
        describe_weights(file)


def test_damaged_weights(folder):
    file = folder / "unet" / WEIGHTS
    tensors = load_file(file)
    first = "conv_in.weight"
    for changed, message in (
        ({name: value for name, value in tensors.items() if name != first}, f"missing tensor {first}"),
        (tensors | {first: torch.zeros(2, 2)}, f"{first} must make a floating-point tensor of shape (16, 3, 3, 3)"),
        (tensors | {"more": torch.zeros(1)}, "unknown tensor more"),
        (tensors | {first: tensors[first] * torch.nan}, "must be finite"),
        (tensors | {first: tensors[first].long()}, "got (16, 3, 3, 3) int64"),
    ):
        save_file(changed, file)
        rejected(folder, message, str(folder / "unet"))
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:-10])
    rejected(folder, str(file), "cannot be read")


def test_a_configuration_far_larger_than_its_file_takes_no_memory(folder):
    change(folder / "unet" / "config.json", layers_per_block=10**9)
    rejected(folder, "too large for its file")
    change(folder / "unet" / "config.json", layers_per_block=1, block_out_channels=[16 * 10**6, 32 * 10**6])
    rejected(folder, "too large for its file")


@pytest.mark.parametrize("text", ["[]", "{", '{"_class_name": 3}', "null", '{"_class_name": "UNet2DConditionModel"}'])
def test_files_that_are_no_configuration(folder, text):
    (folder / "unet" / "config.json").write_text(text)
    rejected(folder, str(folder / "unet" / "config.json"))


def test_other_pipelines(folder):
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    rejected(folder, "vqvae 'VQModel'", "DDPMPipeline")


def test_folders_without_weights_or_with_several(folder):
    file = folder / "unet" / WEIGHTS
    shutil.copy(file, folder / "unet" / "diffusion_pytorch_model.a.safetensors")
    file.rename(folder / "unet" / "diffusion_pytorch_model.b.safetensors")
    rejected(folder, "diffusion_pytorch_model.a.safetensors, diffusion_pytorch_model.b.safetensors")
    for name in "ab":
        (folder / "unet" / f"diffusion_pytorch_model.{name}.safetensors").unlink()
    rejected(folder, "it holds no weights")
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    rejected(folder, "weight_map")


def test_own_parts_are_not_for_such_folders(folder):
    with pytest.raises(CheckpointError, match="network and schedule must be None"):
        fastdiff.load(folder, network=torch.nn.Identity())
