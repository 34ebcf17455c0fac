"""A `DDPM` as the files of diffusers' DDPMPipeline, with what they hold beside that for fastdiff to read it exactly."""

import os
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from ...io.configuration import ConfigError, from_dict
from ...io.folders import CheckpointError, Json, read_file
from ...networks import ConcatUNet, ConcatUNetConfig
from ..ddpm_config import DDPMConfig
from .concat_unet import attentions_of
from .diffusers_config import FIXED, Described, chain_of, read_config
from .diffusers_names import entries_of
from .diffusers_scheduler import PREDICTION_NAMES, write_chain
from .settings import Settings, among
from .tensor_map import write_tensors

VERSION = "0.30.0"  # of diffusers, the oldest in which all of this is known
OWN = "_fastdiff"  # a key of unet/config.json; diffusers takes no notice of keys that begin with "_"
MODEL_INDEX, UNET_CONFIG, WEIGHTS, SCHEDULER_CONFIG = (
    "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)  # fmt: skip


def pipeline_files(
    config: DDPMConfig, network: nn.Module, description: Json, path: str
) -> dict[str, Mapping[str, Tensor] | Json]:
    """Return the files of a DDPMPipeline by their paths in its folder.

    Args:
        config: the configuration of a model.
        network: its network.
        description: the content of the config.json of its checkpoint.
        path: where it is to be saved, for messages.

    Raises:
        ConfigError: a model that no UNet2DModel computes; the message lists why.
    """
    problems = _problems(config, network)
    if problems or not isinstance(network, ConcatUNet):
        raise ConfigError(f"{path} cannot be written as a DDPMPipeline of diffusers: {'; '.join(problems)}")
    unet, scheduler = write_config(config, network)
    own = {name: value for name, value in description.items() if name in ("config", "spacings")}
    index = {
        "_class_name": "DDPMPipeline", "_diffusers_version": VERSION, "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }  # fmt: skip
    return {
        MODEL_INDEX: index, UNET_CONFIG: unet | {OWN: own}, SCHEDULER_CONFIG: scheduler,
        WEIGHTS: write_tensors(entries_of(network), network.state_dict()),
    }  # fmt: skip


def write_config(config: DDPMConfig, network: ConcatUNet) -> tuple[Json, Json]:
    """Return the configurations of the UNet2DModel and of the DDPMScheduler of a model without `_problems`.

    A value that a model has and they do not say is not in them: where the levels lie, the meaning of labels.
    """
    ours = config.network
    assert isinstance(ours, ConcatUNetConfig)
    down, up = (_attending(config, ours, side) for side in ours.heights)
    (groups,) = _groups(network)
    height, width = config.shape[1:]
    unet = {
        "_class_name": "UNet2DModel", "_diffusers_version": VERSION, **{key: each[0] for key, each in FIXED.items()},
        "sample_size": height if height == width else [height, width], "in_channels": config.channels_in,
        "out_channels": config.channels_out, "time_embedding_dim": None, "freq_shift": ours.frequency_shift,
        "flip_sin_to_cos": False, "down_block_types": ["AttnDownBlock2D" if has else "DownBlock2D" for has in down],
        "up_block_types": ["AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(up)],
        "block_out_channels": [ours.width * each for each in ours.multipliers], "layers_per_block": ours.blocks,
        "downsample_padding": {"both": 1, "right": 0}[ours.padding], "downsample_type": "conv",
        "upsample_type": "conv", "dropout": ours.dropout, "attention_head_dim": _head_dim(ours, network),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups if ours.scale_shift else None, "norm_eps": ours.eps,
        "resnet_time_scale_shift": "scale_shift" if ours.scale_shift else "default",
        "add_attention": ours.middle_attention, "num_class_embeds": config.num_labels or None,
        "num_train_timesteps": None,
    }  # fmt: skip
    return unet, {**write_chain(chain_of(config)), "_diffusers_version": VERSION}


def check_replaceable(path: Path) -> None:
    """Check that there is nothing at a path, or a folder that fastdiff wrote as a pipeline.

    Raises:
        CheckpointError: there is the pipeline of another program.
    """
    unet = path / UNET_CONFIG
    if not os.path.lexists(unet):
        return  # other files are found by `write_tree`; without this one none is a model
    written = read_file(unet)
    if not isinstance(written, dict) or OWN not in written:
        raise CheckpointError(
            f"{path} must be a new path or a folder that save_diffusers wrote, got one of another program: {unet} has "
            f"no {OWN}"
        )


def own_config(network: Settings, where: str) -> DDPMConfig | None:
    """Return the configuration that fastdiff wrote into that of a UNet2DModel, or None.

    Raises:
        ConfigError: it is damaged.
    """
    own = network.get(OWN)
    if not isinstance(own, dict):
        return None
    return from_dict(DDPMConfig, own.get("config"), f"{where}: {OWN}.config", complete=True)


def read_written(
    network: Settings, scheduler: Settings | None, own: DDPMConfig, where: str, scheduler_where: str | None = None
) -> Described:
    """Return what a folder describes that was written from the configuration ``own`` of fastdiff, see `own_config`.

    If it describes the same model still, this is ``own``. A folder that was changed elsewhere counts as it is; only
    what diffusers has no word for is taken from ``own``: levels and where they lie, the meaning of labels. Arguments
    and errors as in `read_config`.
    """
    with torch.device("meta"):
        built = own.network.build(own.channels_in, own.channels_out, own.shape[1:], own.num_labels)
    if _problems(own, built) or not isinstance(built, ConcatUNet):
        return read_config(network, scheduler, where, scheduler_where)
    unet, chain = write_config(own, built)
    if scheduler is None:
        scheduler = chain
    elif scheduler.get("variance_type") is None:  # as in that of DDIM
        scheduler = {**scheduler, "variance_type": chain["variance_type"]}
    found = read_config(network, scheduler, where, scheduler_where)
    if read_config(unet, chain, OWN).config == found.config:
        return Described(own, found.flip_sin_to_cos, 0)
    config = attrs.evolve(
        found.config, levels=own.levels, pixels=own.pixels,
        continuous_noise_conditioning=own.continuous_noise_conditioning,
    )  # fmt: skip
    if own.num_labels != found.classes:
        return Described(config, found.flip_sin_to_cos, found.classes)
    config = attrs.evolve(config, num_classes=own.num_classes, augmented=own.augmented)
    return Described(config, found.flip_sin_to_cos, 0)


def _problems(config: DDPMConfig, built: nn.Module) -> list[str]:
    """Say why a model with the network ``built`` is none of theirs; an empty list if it is."""
    network = config.network
    if not isinstance(network, ConcatUNetConfig) or not isinstance(built, ConcatUNet):
        return ["network must be that of a ConcatUNetConfig, which has the layers of a UNet2DModel"]
    problems = []
    if network.timesteps != config.beta_count:
        problems.append(
            f"network.timesteps must be beta_count, {config.beta_count}, got {network.timesteps}: a UNet2DModel embeds "
            "the timestep; train with that setting"
        )
    if network.timestep_scale != 1.0:
        problems.append(f"network.timestep_scale must be 1, got {network.timestep_scale:g}")
    if network.multipliers[0] != 1:
        problems.append(
            f"network.multipliers must begin with 1, got {network.multipliers}: the first convolution of a UNet2DModel "
            "has the channels of the first resolution"
        )
    if config.beta_count != config.T:
        problems.append(f"T must be beta_count, {config.beta_count}, got {config.T}")
    if not network.embedding_bias:
        problems.append("network.embedding_bias must be True, got False")
    if config.prediction not in PREDICTION_NAMES.values():
        problems.append(f"prediction must be {among(PREDICTION_NAMES.values())}, got {config.prediction!r}")
    if len(groups := _groups(built)) > 1:
        problems.append(
            f"network.max_groups must give all normalisations one number of groups, got {network.max_groups}, which "
            f"gives {sorted(groups)}; train with {min(groups)}"
        )
    if network.head_size is None and network.heads > 1 and len(set(_attention_channels(built))) > 1:
        problems.append(f"network.heads must be 1, or head_size be set in its place, got {network.heads}")
    return problems


def _groups(network: ConcatUNet) -> set[int]:
    return {layer.num_groups for layer in network.modules() if isinstance(layer, nn.GroupNorm)}


def _attention_channels(network: ConcatUNet) -> list[int]:
    return [layer.channels for layer in attentions_of(network)]


def _head_dim(config: ConcatUNetConfig, network: ConcatUNet) -> int | None:
    """Return the channels of a head, or None where there is one head."""
    if config.head_size is not None or config.heads == 1:
        return config.head_size
    return next((channels // config.heads for channels in _attention_channels(network)), None)


def _attending(config: DDPMConfig, network: ConcatUNetConfig, heights: tuple[int, ...]) -> list[bool]:
    """Return which resolutions have attention, the full one first."""
    return [config.shape[1] >> k in heights for k in range(len(network.multipliers))]
