"""The tensors of improved-diffusion's UNetModel (Nichol and Dhariwal 2021) as those of our `ConcatUNet`.

Its blocks are numbered through all resolutions: ``input_blocks`` are the first convolution, the residual blocks, each
with its attention, and the strided convolutions, in the order of the calls; ``output_blocks`` are the residual blocks
on the way up, the last of a resolution with the convolution that follows the enlargement. guided-diffusion (Dhariwal
and Nichol 2021) has the same names.

What differs but for names: the linear layers from the embedding to the residual blocks are one matrix here. The
embedding of the timestep is [cos, sin] there and [sin, cos] here. The rows of ``qkv`` are (head, {q, k, v}, channel)
there, in "new attention order" ({q, k, v}, head, channel) as here. The weights of its attentions are of convolutions in
one dimension, [out, in, 1].
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...networks import ConcatUNet
from ..base import Model
from .concat_unet import AttentionLayer, Block, Place, attentions_of, blocks_of, resamplings_of
from .tensor_map import Entry, Tensors, joined, read_tensors, same

PARTS = ("weight", "bias")
IN_BLOCK = {
    "norm_in.norm": "in_layers.0", "conv_in": "in_layers.2", "norm_out.norm": "out_layers.0",
    "conv_out": "out_layers.3", "shortcut": "skip_connection",
}  # fmt: skip
OUTSIDE = {
    "conv_in": "input_blocks.0.0", "noise_embedding.mlp.2": "time_embed.2", "norm_out.norm": "out.0",
    "conv_out": "out.2",
}  # fmt: skip


def state_of(model: Model, theirs: Tensors, new_attention_order: bool, where: str) -> dict[str, Tensor]:
    """Return the state of a DDPM with a `ConcatUNet` from the tensors of a UNetModel.

    Args:
        model: the DDPM, for the names and shapes of its tensors.
        theirs: the tensors of the file, all of which must be used.
        new_attention_order: see `entries_of`.
        where: the file, for messages.

    Raises:
        CheckpointError: tensors that are missing, left over, or of another shape or kind; all are listed.
    """
    network = model.get_submodule("network")
    assert isinstance(network, ConcatUNet)
    entries = entries_of(network, new_attention_order)
    state = read_tensors(entries, theirs, network.state_dict(), where, "an improved-diffusion UNetModel")
    return {f"network.{name}": tensor for name, tensor in state.items()}


def entries_of(network: ConcatUNet, new_attention_order: bool = False) -> Iterator[Entry]:
    """Yield the map from the state of a UNetModel to that of the same `ConcatUNet`.

    Args:
        network: the network.
        new_attention_order: whether the rows of ``qkv`` are those of guided-diffusion's ``use_new_attention_order``.
    """
    blocks, attentions = list(blocks_of(network)), list(attentions_of(network))
    per_stage = _blocks_per_stage(blocks)
    names = {block.place: _name(block.place, per_stage) for block in blocks}
    yield from _renamed(blocks, names)
    yield Entry("noise_embedding.mlp.0.weight", (("time_embed.0.weight",),), _sine_first, write=None)
    yield same("noise_embedding.mlp.0.bias", "time_embed.0.bias")
    with_attention = {(layer.place.side, layer.place.stage) for layer in attentions}
    for name, place in resamplings_of(network):
        theirs = _resampling(place, per_stage, (place.side, place.stage) in with_attention)
        yield from (same(f"{name}.{part}", f"{theirs}.{part}") for part in PARTS)
    for layer in attentions:
        yield from _attention(layer, names, new_attention_order)
    sizes = [block.channels * (2 if network.scale_shift else 1) for block in blocks]
    for part in PARTS:
        layers = [(f"{names[block.place]}.emb_layers.1.{part}",) for block in blocks]
        yield joined(f"projections.{part}", layers, sizes)
    if network.label_embedding is not None:
        yield Entry("label_embedding.weight", (("label_emb.weight",),), _with_null_label, write=None)


def _blocks_per_stage(blocks: list[Block]) -> int:
    """Return the number of residual blocks of a resolution on the way down."""
    return 1 + max(block.place.index for block in blocks if block.place.side == "down")


def _name(place: Place, per_stage: int) -> str:
    """Return their name of a residual block.

    Before block j of stage i on the way down lie the first convolution, i stages of ``per_stage`` blocks, and their
    strided convolutions. On the way up a stage has one block more.
    """
    if place.side == "middle":
        return f"middle_block.{2 * place.index}"  # 1 is the attention
    if place.side == "down":
        return f"input_blocks.{1 + place.stage * (per_stage + 1) + place.index}.0"
    return f"output_blocks.{place.stage * (per_stage + 1) + place.index}.0"


def _resampling(place: Place, per_stage: int, with_attention: bool) -> str:
    """Return their name of the convolution that ends a stage."""
    if place.side == "down":
        return f"input_blocks.{(place.stage + 1) * (per_stage + 1)}.0.op"
    return f"output_blocks.{place.stage * (per_stage + 1) + per_stage}.{1 + with_attention}.conv"


def _renamed(blocks: list[Block], names: dict[Place, str]) -> Iterator[Entry]:
    """Yield the layers that are the same in both."""
    pairs = dict(OUTSIDE)
    for block in blocks:
        pairs |= {
            f"{block.name}.{ours}": f"{names[block.place]}.{theirs}"
            for ours, theirs in IN_BLOCK.items()
            if ours != "shortcut" or block.has_shortcut
        }
    for ours, theirs in pairs.items():
        yield from (same(f"{ours}.{part}", f"{theirs}.{part}") for part in PARTS)


def _attention(layer: AttentionLayer, names: dict[Place, str], new_order: bool) -> Iterator[Entry]:
    block = names[layer.place]
    theirs = "middle_block.1" if layer.place.side == "middle" else f"{block.removesuffix('.0')}.1"

    def rows(parts: list[Tensor]) -> Tensor:
        packed = parts[0]
        if new_order:
            return packed
        return packed.unflatten(0, (layer.heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    for part in PARTS:
        yield same(f"{layer.name}.norm.{part}", f"{theirs}.norm.{part}")
    yield Entry(f"{layer.name}.qkv.weight", ((f"{theirs}.qkv.weight",),), lambda p: rows([p[0].squeeze(2)]), write=None)
    yield Entry(f"{layer.name}.qkv.bias", ((f"{theirs}.qkv.bias",),), rows, write=None)
    yield Entry(f"{layer.name}.out.weight", ((f"{theirs}.proj_out.weight",),), lambda p: p[0].squeeze(2), write=None)
    yield same(f"{layer.name}.out.bias", f"{theirs}.proj_out.bias")


def _sine_first(parts: list[Tensor]) -> Tensor:
    """Exchange the columns of cosines and of sines."""
    return parts[0].roll(parts[0].shape[1] // 2, dims=1)


def _with_null_label(parts: list[Tensor]) -> Tensor:
    """Append a row of zeros for our label "no label"."""
    return torch.cat([parts[0], torch.zeros_like(parts[0][:1])])
