"""Weights of diffusers' UNet2DModel as those of our `ConcatUNet`, which is the same network.

Both are the U-Net of DDPM (Ho et al. 2020, appendix B): residual blocks, attention at chosen resolutions and in the
middle, a strided convolution with padding on the right and below, skip connections that are taken from the last to the
first, a GroupNorm with eps 1e-6. What differs, and how it is mapped:

- The embedding takes a noise level in [0, 1] and multiplies it by 1000; theirs takes the timestep. The same input is
  ``noise_level = timestep / 1000`` (`noise_level`). A `DDPM` calls its network with ``timestep / (count - 1)``: see
  `match_times`.
- Theirs may order the embedding cos, sin (``flip_sin_to_cos``); ours is sin, cos. The columns of the first linear layer
  are exchanged.
- The linear layers from the embedding to the residual blocks are one matrix, in the order in which blocks are called.
- Queries, keys and values are one linear layer. Files of old versions name them query, key, value and proj_attn.
- The number of groups is one number for all norms; ours is gcd(channels, max_groups), so that the two agree where
  ``norm_num_groups`` divides every width by an odd number or is the largest power of two that is wanted.
- Dropout has no weights; its probability is the configuration's.

What our network cannot express is an error of `config_of`: another eps, frequencies or padding, scaled sums, networks
with scale and shift, attention without heads of one size, other kinds of blocks.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fastdiff.models import ConcatUNetConfig
from fastdiff.networks.concat_unet import EPS, ConcatUNet

TIMESTEPS = 1000.0  # the factor of our embedding
# Values of a UNet2DModel's configuration that our network has built in
FIXED = {
    "norm_eps": EPS, "freq_shift": 1, "downsample_padding": 0, "mid_block_scale_factor": 1, "act_fn": "silu",
    "center_input_sample": False, "time_embedding_type": "positional", "downsample_type": "conv",
    "upsample_type": "conv", "add_attention": True, "resnet_time_scale_shift": "default",
}  # fmt: skip
DEFAULTS = {  # of UNet2DModel, where they differ from FIXED or have no value there
    "norm_eps": 1e-5, "freq_shift": 0, "downsample_padding": 1, "norm_num_groups": 32, "layers_per_block": 2,
    "attention_head_dim": 8, "dropout": 0.0, "flip_sin_to_cos": True,
}  # fmt: skip
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
Config = Mapping[str, object]


def config_of(theirs: Config) -> ConcatUNetConfig:
    """Return the configuration of our network that computes what a UNet2DModel of this configuration computes.

    Args:
        theirs: the content of its config.json, or the arguments of ``UNet2DModel``.

    Raises:
        ValueError: a value that our network does not have; the message lists all of them.
    """
    values = {**FIXED, **DEFAULTS, **theirs}
    wrong = [f"{name} {values[name]!r} (only {value!r})" for name, value in FIXED.items() if values[name] != value]
    channels: tuple[int, ...] = tuple(values["block_out_channels"])
    width, size, layers = channels[0], values["sample_size"], values["layers_per_block"]
    groups, head_size = values["norm_num_groups"], values["attention_head_dim"]
    down, up = list(values["down_block_types"]), list(values["up_block_types"])
    attention = [name == "AttnDownBlock2D" for name in down]
    mirrored = ["AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)]
    if not set(down) <= {"DownBlock2D", "AttnDownBlock2D"} or up != mirrored:
        wrong.append(f"blocks {down} and {up}")
    if any(each % width for each in channels):
        wrong.append(f"block_out_channels {channels} (only multiples of the first)")
    if any(math.gcd(each, groups) != groups for each in channels):
        wrong.append(f"norm_num_groups {groups} (only a divisor of all channels)")
    attending = {c for c, has in zip(channels, attention, strict=True) if has} | {channels[-1]}
    heads = {1 if head_size is None else max(1, c // head_size) for c in attending}
    if len(heads) != 1:
        wrong.append(f"attention_head_dim {head_size} with {sorted(attending)} channels (only one number of heads)")
    if wrong:
        raise ValueError(f"ConcatUNet has no {'; '.join(wrong)}")
    return ConcatUNetConfig(
        width=width, multipliers=tuple(each // width for each in channels), blocks=layers, heads=heads.pop(),
        attention=tuple(size >> k for k, has in enumerate(attention) if has), max_groups=groups,
        dropout=values["dropout"],
    )  # fmt: skip


def weights_of(theirs: Mapping[str, Tensor], network: ConcatUNet, flip_sin_to_cos: bool = False) -> dict[str, Tensor]:
    """Return the state of our network from the state of a UNet2DModel; every one of its tensors must be used.

    Args:
        theirs: its state dict, of the present names or those of old versions.
        network: our network of the same configuration (`config_of`).
        flip_sin_to_cos: that value of its configuration.

    Raises:
        ValueError: tensors that are missing or left over.
    """
    left = dict(theirs)
    state: dict[str, Tensor] = {}
    try:
        for ours, name in layers_of(network):
            for part in ("weight", "bias"):
                state[f"{ours}.{part}"] = left.pop(f"{name}.{part}")
        for ours, name in attentions_of(network):
            for part in ("weight", "bias"):
                packed = [_attention_part(left, name, each, part) for each in ("to_q", "to_k", "to_v")]
                state[f"{ours}.qkv.{part}"] = torch.cat(packed)
                state[f"{ours}.out.{part}"] = _attention_part(left, name, "to_out.0", part)
        for part in ("weight", "bias"):
            projections = [left.pop(f"{name}.time_emb_proj.{part}") for _, name in blocks_of(network)]
            state[f"projections.{part}"] = torch.cat(projections)
        if network.label_embedding is not None:
            state["label_embedding.weight"] = left.pop("class_embedding.weight")
    except KeyError as error:
        raise ValueError(f"the weights of a UNet2DModel must have {error.args[0]}") from None
    if left:
        raise ValueError(f"the weights have tensors that ConcatUNet does not: {', '.join(sorted(left))}")
    if flip_sin_to_cos:
        first = state["noise_embedding.mlp.0.weight"]
        state["noise_embedding.mlp.0.weight"] = first.roll(first.shape[1] // 2, dims=1)
    return state


def blocks_of(network: ConcatUNet) -> Iterator[tuple[str, str]]:
    """Yield the names of the residual blocks, ours and theirs, in the order in which they are called."""
    for i, stage in enumerate(network.down):
        for j in range(len(stage.get_submodule("blocks")._modules)):
            yield f"down.{i}.blocks.{j}", f"down_blocks.{i}.resnets.{j}"
    yield "middle_in", "mid_block.resnets.0"
    yield "middle_out", "mid_block.resnets.1"
    for i, stage in enumerate(network.up):
        for j in range(len(stage.get_submodule("blocks")._modules)):
            yield f"up.{i}.blocks.{j}", f"up_blocks.{i}.resnets.{j}"


def attentions_of(network: ConcatUNet) -> Iterator[tuple[str, str]]:
    """Yield the names of the attention layers, ours and theirs."""
    yield "attention", "mid_block.attentions.0"
    for name in (name.removesuffix(".qkv") for name, _ in network.named_modules() if name.endswith(".qkv")):
        if name != "attention":
            side, i, _, j = name.split(".")
            yield name, f"{side}_blocks.{i}.attentions.{j}"


def layers_of(network: ConcatUNet) -> Iterator[tuple[str, str]]:
    """Yield the names of the layers that are the same in both, ours and theirs."""
    yield "conv_in", "conv_in"
    yield "noise_embedding.mlp.0", "time_embedding.linear_1"
    yield "noise_embedding.mlp.2", "time_embedding.linear_2"
    modules = dict(network.named_modules())
    for ours, theirs in blocks_of(network):
        pairs = (("norm_in.norm", "norm1"), ("conv_in", "conv1"), ("norm_out.norm", "norm2"), ("conv_out", "conv2"))
        for own, their in pairs:
            yield f"{ours}.{own}", f"{theirs}.{their}"
        if isinstance(modules[f"{ours}.shortcut"], torch.nn.Conv2d):
            yield f"{ours}.shortcut", f"{theirs}.conv_shortcut"
    for ours, theirs in attentions_of(network):
        yield f"{ours}.norm", f"{theirs}.group_norm"
    for i in range(len(network.down) - 1):
        yield f"down.{i}.resample", f"down_blocks.{i}.downsamplers.0.conv"
        yield f"up.{i}.resample", f"up_blocks.{i}.upsamplers.0.conv"
    yield "norm_out.norm", "conv_norm_out"
    yield "conv_out", "conv_out"


def _attention_part(left: dict[str, Tensor], name: str, layer: str, part: str) -> Tensor:
    """Take a tensor of an attention layer, under its present or its old name."""
    old = f"{name}.{OLD_NAMES[layer]}.{part}"
    return left.pop(old) if old in left else left.pop(f"{name}.{layer}.{part}")


def noise_level(timesteps: Tensor) -> Tensor:
    """Return our network's argument for timesteps 0, 1, ..., 999 of theirs, float32."""
    return timesteps.float() / TIMESTEPS


def match_times(network: ConcatUNet, count: int = 1000) -> None:
    """Change the frequencies, so that a `DDPM` of ``count`` betas embeds the timesteps of the other library.

    It calls its network with timestep / (count - 1), the time on the chain in [0, 1], where the same embedding needs
    timestep / 1000.
    """
    network.noise_embedding.frequencies.mul_((count - 1) / TIMESTEPS)
