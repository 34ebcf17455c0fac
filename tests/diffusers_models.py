"""Small networks of diffusers at random, as folders. A test that imports this skips without diffusers."""

import random

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()

# google/ddpm-cifar10-32: config.json and scheduler_config.json, without what is the default of their classes
GOOGLE = {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "center_input_sample": False, "freq_shift": 1,
    "flip_sin_to_cos": False, "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "mid_block_scale_factor": 1,
    "downsample_padding": 0, "attention_head_dim": None, "norm_eps": 1e-6, "norm_num_groups": 32,
    "time_embedding_type": "positional", "act_fn": "silu",
}  # fmt: skip
SMALL = {
    **GOOGLE, "sample_size": 16, "block_out_channels": [16, 32], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
}  # fmt: skip
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def random_unet(seed: int) -> dict:
    """Arguments of a small UNet2DModel."""
    draw = random.Random(seed)
    resolutions = draw.randint(1, 3)
    groups = draw.choice([2, 4])
    width = groups * draw.choice([2, 4])
    scale_shift, middle = draw.random() < 0.3, draw.random() < 0.8
    side = 2 ** (resolutions - 1) * draw.choice([4, 6])
    channels = draw.randint(1, 3)
    return {
        "sample_size": draw.choice([side, [side, 2 * side]]), "in_channels": channels, "out_channels": channels,
        "block_out_channels": [width, *(width * draw.randint(1, 3) for _ in range(resolutions - 1))],
        "layers_per_block": draw.randint(1, 3), "downsample_padding": draw.randint(0, 1),
        "freq_shift": draw.randint(0, 1), "flip_sin_to_cos": draw.random() < 0.5, "norm_eps": draw.choice([1e-6, 1e-5]),
        "norm_num_groups": groups, "attention_head_dim": draw.choice([None, groups, 2 * groups]),
        "down_block_types": [draw.choice(["DownBlock2D", "AttnDownBlock2D"]) for _ in range(resolutions)],
        "up_block_types": [draw.choice(["UpBlock2D", "AttnUpBlock2D"]) for _ in range(resolutions)],
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default", "add_attention": middle,
        "attn_norm_num_groups": groups if scale_shift else None, "dropout": draw.choice([0.0, 0.1]),
        "num_class_embeds": draw.choice([None, None, 3]),
        "act_fn": draw.choice(["silu", "swish"]),
    }  # fmt: skip


def random_scheduler(seed: int) -> dict:
    """Arguments of a DDPMScheduler."""
    draw = random.Random(-1 - seed)
    return {
        "num_train_timesteps": draw.choice([1000, 1000, 100]),
        "beta_schedule": draw.choice(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "prediction_type": draw.choice(["epsilon", "v_prediction", "sample"]),
        "variance_type": draw.choice(["fixed_small", "fixed_large"]), "beta_start": draw.choice([1e-4, 0.00085]),
        "beta_end": draw.choice([0.02, 0.012]),
    }  # fmt: skip


def unet_of(arguments: dict, seed: int = 0):
    """A UNet2DModel in eval mode, whose norms and biases are random too."""
    torch.manual_seed(seed)
    network = diffusers.UNet2DModel(**arguments).eval()
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def old_names(state: dict) -> dict:
    """The tensors under the names of attention layers that files from before 2023 have."""
    for new, old in OLD_NAMES.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    return state


def save(path, network: nn.Module, scheduler=None):
    """Write a pipeline folder, or that of the network alone."""
    if scheduler is None:
        network.save_pretrained(path)
    else:
        network.save_pretrained(path / "unet")
        scheduler.save_pretrained(path / "scheduler")
    return path
