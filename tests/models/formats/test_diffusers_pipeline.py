"""Models as pipelines of diffusers: diffusers loads them as they are, and they come back exactly."""

import inspect
import json
import logging
from contextlib import suppress

import pytest
import torch
from diffusers_models import SMALL as SMALL_UNET
from diffusers_models import diffusers, random_unet
from tiny import SMALL, filled, small, small_ddpm, small_restoration

import fastdiff
from fastdiff.io.configuration import ConfigError
from fastdiff.io.folders import CheckpointError
from fastdiff.models import DDPM, ConcatUNetConfig, DDPMConfig
from fastdiff.models.formats.diffusers_config import UNET, read_config
from fastdiff.models.formats.diffusers_pipeline import write_config
from fastdiff.models.formats.diffusers_scheduler import SCHEDULERS

NETWORK = ConcatUNetConfig(
    width=8, multipliers=(1, 2), blocks=1, attention=(4, 999), max_groups=4, timesteps=40, dropout=0.2
)  # fmt: skip
DATA = {"shape": (1, 8, 8), "levels": 17, "T": 40, "beta_count": 40, "network": NETWORK}


def model_of(seed: int = 0, **changes) -> DDPM:
    torch.manual_seed(seed)
    return filled(DDPM(DDPMConfig(**(DATA | changes))))


def network_of(**changes) -> dict:
    values = {name: getattr(NETWORK, name) for name in ("width", "multipliers", "blocks", "attention", "max_groups")}
    return {"network": ConcatUNetConfig(**(values | {"timesteps": 40} | changes))}


MODELS = {
    "plain": {},
    "all data of ours": {"num_classes": 3, "augmented": True, "pixels": "ends", "continuous_noise_conditioning": True},
    "v, cosine": {"prediction": "v", "beta_schedule": "cosine", "variance": "fixed_small"},
    "x, learned": {"prediction": "x", "beta_schedule": "scaled_linear", "variance": "learned"},
    "heads": network_of(heads=4, attention=(), attention_up=(4,), padding="both", frequency_shift=0, eps=1e-5),
    "head size": network_of(head_size=4, attention=(8, 4), attention_up=(8,), scale_shift=True),
    "no middle": network_of(middle_attention=False, attention=()) | {"shape": (2, 8, 4)},
}


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_computes_the_same(tmp_path, name, caplog):
    """It loads the folder without a warning. Measured at most 1.1e-6."""
    model = model_of(**MODELS[name])
    assert model.save_diffusers(tmp_path / "pipeline") == tmp_path / "pipeline"
    with caplog.at_level(logging.INFO, "diffusers"):
        pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "pipeline", low_cpu_mem_usage=False)
        network = diffusers.UNet2DModel.from_pretrained(tmp_path / "pipeline" / "unet", low_cpu_mem_usage=False)
    words = ("not expected", "not used", "newly initialized", "was not found")
    assert not [each for each in caplog.messages if any(word in each for word in words)]
    assert type(pipeline.scheduler) is diffusers.DDPMScheduler
    z, t = torch.randn(4, *model.shape), torch.tensor([0, 3, 20, 39])
    labels = torch.tensor([0, 3, 4, 2]) if model.config.num_labels else None
    with torch.no_grad():
        for theirs in (pipeline.unet, network):
            out = theirs(z, t, class_labels=labels).sample
            found = model.network(z, t / 39, labels)
            assert out.std() > 0.01
            assert (out - found).abs().max() < 3e-6
    betas = pipeline.scheduler.alphas_cumprod[t].double()
    assert torch.allclose(torch.sigmoid(-model.gamma(t.double() / 39)), betas, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_comes_back_exactly(tmp_path, name):
    model = model_of(**MODELS[name])
    model.spacings = {"ddim": {3: (0.0, 0.5, 1.0)}}
    model.save_diffusers(tmp_path)
    same(fastdiff.load(tmp_path), model)
    diffusers.DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False).save_pretrained(tmp_path / "again")
    same(fastdiff.load(tmp_path / "again"), model)  # diffusers keeps what it does not know
    same(fastdiff.load(tmp_path / "again" / "unet"), model)


def same(found: DDPM, model: DDPM) -> None:
    assert found.config == model.config
    assert found.spacings == model.spacings
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())


def test_a_folder_that_was_changed_counts_as_it_is(tmp_path):
    """But for what diffusers has no word for."""
    model_of(num_classes=3, augmented=True).save_diffusers(tmp_path)
    change(tmp_path / "unet" / "config.json", dropout=0.0)
    change(tmp_path / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler", beta_end=0.3)
    found = fastdiff.load(tmp_path).config
    assert (found.network.dropout, found.beta_last, found.levels, found.pixels) == (0.0, 0.3, 17, "centers")
    assert (found.num_classes, found.augmented, found.num_labels) == (3, True, 5)
    assert found.network.attention == (4,)


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_damaged_description_is_an_error(tmp_path):
    model_of().save_diffusers(tmp_path)
    change(tmp_path / "unet" / "config.json", _fastdiff={"config": {"T": 3}})
    with pytest.raises(CheckpointError, match=r"_fastdiff\.config lacks the keys"):
        fastdiff.load(tmp_path)


def test_the_folder_is_replaced_as_a_whole(tmp_path):
    model_of(0).save_diffusers(tmp_path / "a")
    model_of(1).save_diffusers(tmp_path / "a")
    same(fastdiff.load(tmp_path / "a"), model_of(1))
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"must be a new path or .* got a folder with notes\.txt"):
        model_of().save_diffusers(tmp_path / "a")
    with pytest.raises(CheckpointError, match="got a file"):
        model_of().save_diffusers(tmp_path / "a" / "notes.txt")
    with pytest.raises(CheckpointError, match="cannot write"):
        model_of().save_diffusers(tmp_path / "a" / "notes.txt" / "b")


def test_the_pipeline_of_another_program_is_not_replaced(tmp_path):
    network = diffusers.UNet2DModel(**SMALL_UNET)
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    before = {each: each.read_bytes() for each in (tmp_path / "theirs").rglob("*") if each.is_file()}
    with pytest.raises(CheckpointError, match="must be a new path or a folder that save_diffusers wrote"):
        model_of().save_diffusers(tmp_path / "theirs")
    assert {each: each.read_bytes() for each in (tmp_path / "theirs").rglob("*") if each.is_file()} == before


def test_a_folder_whose_replacement_was_killed_is_found(tmp_path):
    """Between the two renames it lies beside its place."""
    model_of().save_diffusers(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / ".old-a")
    same(fastdiff.load(tmp_path / "a"), model_of())


def test_out_channels_name_the_variance_that_the_scheduler_has():
    words = r"variance_type learned_range in the scheduler, which has fixed_large\), got 6"
    with pytest.raises(ConfigError, match=words):
        read_config(SMALL_UNET | {"out_channels": 6}, {"variance_type": "fixed_large"}, "x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (network_of(timesteps=None), "network.timesteps must be beta_count, 40, got None"),
        (network_of(timestep_scale=25.0), "network.timestep_scale must be 1, got 25"),
        (network_of(multipliers=(2, 2)), "network.multipliers must begin with 1, got (2, 2)"),
        ({"T": 20}, "T must be beta_count, 40, got 20"),
        (network_of(embedding_bias=False), "network.embedding_bias must be True"),
        ({"prediction": "score"}, "prediction must be 'epsilon', 'v' or 'x', got 'score'"),
        (network_of(max_groups=32), "one number of groups, got 32, which gives [8, 16, 32]; train with 8"),
        (network_of(heads=2, attention=(8,)), "network.heads must be 1, or head_size be set in its place, got 2"),
        ({"network": SMALL}, "network must be that of a ConcatUNetConfig"),
    ],
)
def test_models_that_diffusers_has_no_form_of(tmp_path, changes, words):
    with pytest.raises(ConfigError, match="cannot be written as a DDPMPipeline") as error:
        model_of(**changes).save_diffusers(tmp_path / "x")
    assert words in str(error.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("model", [small(), small_restoration()], ids=["vdm", "restoration"])
def test_other_models_say_which_have_it(tmp_path, model):
    with pytest.raises(ConfigError, match=f"model must be a ddpm model, .* got a {model.kind} model"):
        model.save_diffusers(tmp_path)


def test_own_networks_and_bad_weights(tmp_path):
    own = DDPM(small_ddpm().config, network=torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ConfigError, match="network must be that of a ConcatUNetConfig"):
        own.save_diffusers(tmp_path / "x")
    model = model_of()
    model.network.conv_in.weight.data[0] = torch.nan
    with pytest.raises(CheckpointError, match="must be finite"):
        model.save_diffusers(tmp_path / "x")


# ------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize("seed", range(20))
def test_configurations_go_there_and_back(seed):
    """What is written for what was read describes the same network."""
    theirs = random_unet(seed)
    config = read_config(theirs, None, "x").config
    with torch.device("meta"):
        network = config.network.build(config.channels_in, config.channels_out, config.shape[1:], 0)
    written, scheduler = write_config(config, network)
    theirs |= {"num_class_embeds": config.num_labels or None}
    again = read_config(written, scheduler, "x").config
    assert again.network == config.network
    assert written["down_block_types"] == theirs["down_block_types"]
    assert written["up_block_types"] == theirs["up_block_types"]


def test_the_defaults_are_those_of_diffusers():
    theirs = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    defaults = {name: each.default for name, each in theirs.items() if name != "self"}
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()} == UNET
    found = 0
    for name, betas in SCHEDULERS.items():
        theirs = inspect.signature(getattr(diffusers, name, object).__init__).parameters
        if "beta_start" in theirs:  # others stand for classes whose own requirements are not installed
            found += 1
            assert (theirs["beta_start"].default, theirs["beta_end"].default) == betas, name
    assert found >= 15


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_size": None}, "sample_size must be an integer >= 1, or [height, width], got null"),
        ({"sample_size": 15}, "sample_size must be a multiple of 2, for 2 resolutions, got 15"),
        ({"block_out_channels": [16, 24]}, "block_out_channels must be multiples of the first and of norm_num_groups"),
        ({"norm_num_groups": 32}, "block_out_channels must be multiples of the first and of norm_num_groups, 32"),
        ({"block_out_channels": "16"}, "block_out_channels must be a list of integers, got '16'"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types must be 2 blocks of UpBlock2D and AttnUpBlock2D"),
        ({"down_block_types": ["ResnetDownsampleBlock2D"] * 2}, "'ResnetDownsampleBlock2D'"),
        ({"mid_block_type": None}, "mid_block_type must be 'UNetMidBlock2D', got null"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor must be 1, got 2"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be 'positional', got 'fourier'"),
        ({"time_embedding_dim": 99}, "time_embedding_dim must be null or 64, got 99"),
        ({"center_input_sample": True}, "center_input_sample must be false, got true"),
        ({"class_embed_type": "timestep"}, "class_embed_type must be null, got 'timestep'"),
        ({"num_class_embeds": 0}, "num_class_embeds must be an integer >= 1, got 0"),
        ({"freq_shift": 2}, "freq_shift must be 0 or 1, got 2"),
        ({"downsample_padding": 2}, "downsample_padding must be 0 or 1, got 2"),
        ({"norm_eps": -1.0}, "norm_eps must be a number > 0, got -1.0"),
        ({"dropout": 1}, "dropout must be a number > 0 and < 1, got 1"),
        ({"attention_head_dim": 24}, "attention_head_dim must divide the channels of every attention, [32], got 24"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift must be 'default' or 'scale_shift'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups must be 8 (with scale_shift and without it"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups must be null or 8, got 4"),
        ({"out_channels": 4}, "out_channels must be 6 (twice in_channels, with variance_type learned_range), got 4"),
        ({"cross_attention_dim": 64}, "cross_attention_dim must be absent, got 64"),
        ({"upsample_type": "resnet"}, "upsample_type must be 'conv' or null, got 'resnet'"),
        ({"block_out_channels": [2, 4], "norm_num_groups": 2}, "width must be >= 4"),
    ],
)
def test_settings_of_the_network_that_are_not_ours(changes, words):
    with pytest.raises(ConfigError, match=r"^x describes a UNet2DModel that fastdiff does not") as error:
        read_config(SMALL_UNET | changes, None, "x")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rescale_betas_zero_snr": True}, "signal-to-noise ratio of 0 at the last step gamma is infinite there"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas must be null, got [0.1, 0.2]"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule must be 'linear', 'scaled_linear' or 'squaredcos_cap_v2'"),
        ({"beta_start": 0.5}, "beta_start must be <= beta_end, 0.02, got 0.5"),
        ({"beta_start": 0.0}, "x describes a scheduler that fastdiff does not have: beta_start must be a number > 0"),
        ({"beta_end": 1.0}, "beta_end must be a number > 0 and < 1, got 1.0"),
        ({"variance_type": "learned"}, "variance_type must be 'fixed_small', 'fixed_small_log', 'fixed_large' or"),
        ({"variance_type": "learned_range"}, "out_channels must be 6"),
        ({"prediction_type": "flow_prediction"}, "prediction_type must be 'epsilon', 'v_prediction' or 'sample'"),
        ({"num_train_timesteps": 1}, "num_train_timesteps must be an integer >= 2 and <= 1000000, got 1"),
        (
            {"num_train_timesteps": 10**12},
            "num_train_timesteps must be an integer >= 2 and <= 1000000, got 1000000000000",
        ),
        ({"_class_name": "ScoreSdeVeScheduler"}, "the scheduler must be one of a chain of betas"),
    ],
)
def test_settings_of_the_scheduler_that_are_not_ours(changes, words):
    with pytest.raises(ConfigError) as error:
        read_config(SMALL_UNET, {"_class_name": "DDPMScheduler"} | changes, "x")
    assert words in str(error.value)
    assert str(error.value).count("beta_start must") <= 1


ODD = [
    None, -1, 0, 2, 1.5, float("nan"), float("inf"), "x", [], {}, [None], [1, 2], [[1]], True, 10**30, {"a": []}, 8,
    [16, 32, 64],
]  # fmt: skip


@pytest.mark.parametrize("name", [*UNET, "_fastdiff", "more"])
def test_no_value_is_another_error(name):
    """A file may hold anything."""
    for value in ODD:
        with suppress(ConfigError):
            read_config(SMALL_UNET | {name: value}, None, "x")
