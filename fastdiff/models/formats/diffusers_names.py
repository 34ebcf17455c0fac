"""The tensors of diffusers' UNet2DModel as those of our `ConcatUNet`.

What differs but for names: the linear layers from the embedding to the residual blocks are one matrix here, in the
order in which blocks are called, and so are queries, keys and values. With ``flip_sin_to_cos`` their embedding is
[cos, sin], ours is [sin, cos]: the columns of the first linear layer are exchanged.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...networks import ConcatUNet
from .concat_unet import AttentionLayer, Block, Place, attentions_of, blocks_of, resamplings_of
from .tensor_map import Entry, joined, same

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of files from before 2023
PARTS = ("weight", "bias")


def entries_of(network: ConcatUNet, flip_sin_to_cos: bool = False, add_null_label: bool = False) -> Iterator[Entry]:
    """Yield the map between the state of a `ConcatUNet` and that of the same UNet2DModel.

    Args:
        network: our network.
        flip_sin_to_cos: that value of their configuration.
        add_null_label: whether our network has one label more than theirs, the null label, whose embedding is 0.
    """
    blocks = list(blocks_of(network))
    yield from _renamed(network, blocks)
    first = "noise_embedding.mlp.0.weight"
    if flip_sin_to_cos:
        yield Entry(
            first,
            (("time_embedding.linear_1.weight",),),
            lambda parts: _exchanged(parts[0]),
            lambda our: [_exchanged(our)],
        )
    else:
        yield same(first, "time_embedding.linear_1.weight")
    for layer in attentions_of(network):
        yield from _attention(layer)
    sizes = [block.channels * (2 if network.scale_shift else 1) for block in blocks]
    for part in PARTS:
        names = [(f"{block_name(block.place)}.time_emb_proj.{part}",) for block in blocks]
        yield joined(f"projections.{part}", names, sizes)
    if network.label_embedding is not None:
        ours, theirs = "label_embedding.weight", "class_embedding.weight"
        yield Entry(ours, ((theirs,),), _with_zeros, _without_last) if add_null_label else same(ours, theirs)


def block_name(place: Place) -> str:
    """Return their name of a residual block."""
    return f"{_stage(place)}.resnets.{place.index}"


def _stage(place: Place) -> str:
    return "mid_block" if place.side == "middle" else f"{place.side}_blocks.{place.stage}"


def _renamed(network: ConcatUNet, blocks: list[Block]) -> Iterator[Entry]:
    """Yield the layers that are the same in both."""
    pairs = [
        ("conv_in", "conv_in"), ("noise_embedding.mlp.2", "time_embedding.linear_2"),
        ("norm_out.norm", "conv_norm_out"), ("conv_out", "conv_out"),
    ]  # fmt: skip
    for block in blocks:
        theirs = block_name(block.place)
        named = {"norm_in.norm": "norm1", "conv_in": "conv1", "norm_out.norm": "norm2", "conv_out": "conv2"}
        named |= {"shortcut": "conv_shortcut"} if block.has_shortcut else {}
        pairs += [(f"{block.name}.{ours}", f"{theirs}.{name}") for ours, name in named.items()]
    for name, place in resamplings_of(network):
        layer = "downsamplers" if place.side == "down" else "upsamplers"
        pairs.append((name, f"{_stage(place)}.{layer}.0.conv"))
    for ours, theirs in pairs:
        yield from (same(f"{ours}.{part}", f"{theirs}.{part}") for part in PARTS)
    yield same("noise_embedding.mlp.0.bias", "time_embedding.linear_1.bias")


def _attention(layer: AttentionLayer) -> Iterator[Entry]:
    theirs = f"{_stage(layer.place)}.attentions.{layer.place.index}"
    for part in PARTS:
        names = {new: (f"{theirs}.{new}.{part}", f"{theirs}.{old}.{part}") for new, old in OLD_NAMES.items()}
        yield same(f"{layer.name}.norm.{part}", f"{theirs}.group_norm.{part}")
        yield joined(
            f"{layer.name}.qkv.{part}", [names[each] for each in ("to_q", "to_k", "to_v")], [layer.channels] * 3
        )
        yield same(f"{layer.name}.out.{part}", *names["to_out.0"])


def _with_zeros(parts: list[Tensor]) -> Tensor:
    """Append a row of zeros, which adds nothing to the embedding of the timestep."""
    return torch.cat([parts[0], parts[0].new_zeros(1, *parts[0].shape[1:])])


def _without_last(embedding: Tensor) -> list[Tensor]:
    return [embedding[:-1]]


def _exchanged(weight: Tensor) -> Tensor:
    """Exchange the halves of the columns; it is its own inverse."""
    return weight.roll(weight.shape[1] // 2, dims=1)
