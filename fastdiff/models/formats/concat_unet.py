"""The layers of a `ConcatUNet` in the order in which other libraries number them.

The U-Nets of DDPM, diffusers, improved-diffusion and VDM are the same network under other names. A layout of theirs is
a function from these layers to entries of a tensor map.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ...networks import ConcatUNet


@dataclass(frozen=True)
class Place:
    """Where a layer is: ``side`` "down", "middle" or "up"; the stage, counted in the order of the calls; the position.

    In a stage, ``index`` counts its blocks; in the middle the blocks are 0 and 1.
    """

    side: str
    stage: int
    index: int


@dataclass(frozen=True)
class Block:
    """A residual block: its name in our state, where it is, and whether it has a convolution as its shortcut."""

    name: str
    place: Place
    has_shortcut: bool
    channels: int


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer: its name in our state, where it is, its channels and heads."""

    name: str
    place: Place
    channels: int
    heads: int


def blocks_of(network: ConcatUNet) -> Iterator[Block]:
    """Yield the residual blocks in the order in which they are called."""
    for name, place, block in _blocks(network):
        conv = block.get_submodule("conv_out")
        assert isinstance(conv, nn.Conv2d)
        yield Block(name, place, isinstance(block.get_submodule("shortcut"), nn.Conv2d), conv.out_channels)


def attentions_of(network: ConcatUNet) -> Iterator[AttentionLayer]:
    """Yield the attention layers in the order in which they are called."""
    for side, stages in (("down", network.down), ("middle", None), ("up", network.up)):
        if stages is None:
            yield from _attention("attention", Place("middle", 0, 0), network.attention)
            continue
        for i, stage in enumerate(stages):
            for j, layer in enumerate(stage.get_submodule("attentions").children()):
                yield from _attention(f"{side}.{i}.attentions.{j}", Place(side, i, j), layer)


def resamplings_of(network: ConcatUNet) -> Iterator[tuple[str, Place]]:
    """Yield the convolutions that change the resolution, by name and stage."""
    for side, stages in (("down", network.down), ("up", network.up)):
        for i in range(len(stages) - 1):
            yield f"{side}.{i}.resample", Place(side, i, 0)


def _blocks(network: ConcatUNet) -> Iterator[tuple[str, Place, nn.Module]]:
    for side, stages in (("down", network.down), ("middle", None), ("up", network.up)):
        if stages is None:
            yield "middle_in", Place("middle", 0, 0), network.middle_in
            yield "middle_out", Place("middle", 0, 1), network.middle_out
            continue
        for i, stage in enumerate(stages):
            for j, block in enumerate(stage.get_submodule("blocks").children()):
                yield f"{side}.{i}.blocks.{j}", Place(side, i, j), block


def _attention(name: str, place: Place, layer: nn.Module) -> Iterator[AttentionLayer]:
    if not isinstance(layer, nn.Identity):
        heads, qkv = layer.heads, layer.get_submodule("qkv")
        assert isinstance(heads, int)
        assert isinstance(qkv, nn.Linear)
        yield AttentionLayer(name, place, qkv.in_features, heads)
