"""The parameters of the official VDM (Kingma et al. 2021), which are Flax's, as those of our `VDM`.

Their names are paths, ``score_model/down.block_0/conv1/kernel``. Convolutions are [H, W, in, out] and dense layers
[in, out]. The network has one resolution, and is our `ConcatUNet` but for names and layouts: the first dense layer has
one input more than the embedding, for a conditioning scalar. It says whether an image was augmented and is 0 without
augmentation: its row is dropped.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ...io.folders import CheckpointError
from ...networks import ConcatUNet, ConcatUNetConfig
from ..base import Model
from ..vdm import VDMConfig
from .concat_unet import AttentionLayer, Place, attentions_of, blocks_of
from .tensor_map import Entry, Tensors, joined, read_tensors
from .vdm_schedule import GAMMA, schedule_of, schedule_state

FOURIER = (7, 8)  # exponents n of sin(2^n pi z); 6 and 7 of their sin(2^n 2 pi z)
GROUPS = 32  # of every normalisation, flax's default
EPS = 1e-6  # flax's default
SCORE = "score_model."
OF_EVERY_VDM = (  # most of what a file of one block holds; without these the size of a model tells nothing
    "conv_in.kernel", "conv_out.kernel", "dense0.kernel", "dense1.kernel", "down.block_0.conv1.kernel",
    "down.block_0.conv2.kernel", "mid.block_1.conv1.kernel", "mid.block_1.conv2.kernel", "mid.attn_1.q.kernel",
    "mid.block_2.conv1.kernel", "mid.block_2.conv2.kernel", "up.block_0.conv1.kernel", "up.block_0.conv2.kernel",
)  # fmt: skip
STATES = ("ema_params.", "params.")  # parts of a whole training state, the averaged parameters first


def flat_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Return the file's names of the parameters by these names joined by dots, without a prefix of the training state.

    Of a whole training state the averaged parameters are taken; its other parts are left out.

    Raises:
        CheckpointError: two names that differ only by the character that joins them.
    """
    dotted = {name: name.replace("/", ".") for name in names}
    prefix = next((each for each in STATES if any(name.startswith(each) for name in dotted.values())), "")
    found = {new.removeprefix(prefix): name for name, new in dotted.items() if new.startswith(prefix)}
    if len(found) != sum(new.startswith(prefix) for new in dotted.values()):
        raise CheckpointError(f"{where} must hold each parameter once, but two names differ only by '/' and '.'")
    return found


def config_of(theirs: Tensors, size: int, gamma_min: float, gamma_max: float, dropout: float, where: str) -> VDMConfig:
    """Return the configuration of the VDM whose parameters are in a file.

    Args:
        theirs: the parameters by `flat_names`; their values are not looked at.
        size: side of the images.
        gamma_min, gamma_max: the constants that scale gamma to the network's noise level.
        dropout: used in training.
        where: the file, for messages.

    Raises:
        CheckpointError: these are not the parameters of a VDM.
    """
    missing = [_as_path(name) for name in OF_EVERY_VDM if f"{SCORE}{name}" not in theirs]
    conv_in, conv_out = (theirs.get(f"{SCORE}{name}.kernel") for name in ("conv_in", "conv_out"))
    if missing or conv_in is None or conv_out is None or conv_in.dim() != 4 or conv_out.dim() != 4:
        names = sorted(theirs)
        got = ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])]) or "nothing"
        without = f"; missing under score_model/: {', '.join(missing)}" if missing else ""
        raise CheckpointError(
            f"{where} must hold the parameters of a VDM, with score_model/conv_in/kernel and "
            f"score_model/conv_out/kernel of shape [3, 3, in, out], got {got}{without}"
        )
    seen, width, channels = conv_in.shape[2], conv_in.shape[3], conv_out.shape[3]
    fourier = {channels: None, channels * (1 + 2 * (1 + FOURIER[1] - FOURIER[0])): FOURIER}
    if not width or width % GROUPS or seen not in fourier:
        raise CheckpointError(
            f"{where}: conv_in must have {' or '.join(map(str, fourier))} input channels, without and with Fourier "
            f"features, and a multiple of {GROUPS} output channels, got {seen} and {width}"
        )
    schedule, features = schedule_of(theirs, where)
    everywhere = f"{SCORE}down.attn_0.q.kernel" in theirs
    network = ConcatUNetConfig(
        width=width,
        multipliers=(1,),
        blocks=max(1, sum(f"{SCORE}down.block_{i}.conv1.kernel" in theirs for i in range(len(theirs)))),
        attention=(size,) if everywhere else (),
        dropout=dropout,
        max_groups=GROUPS,
        embedding_bias=False,
        eps=EPS,
    )
    return VDMConfig(
        shape=(channels, size, size),
        levels=256,
        gamma_0=gamma_min,
        gamma_1=gamma_max,
        learn_endpoints=schedule != "fixed",
        schedule="learned" if schedule == "monotone" else "linear",
        fourier=fourier[seen],
        schedule_width=features,
        network=network,
    )


def _as_path(name: str) -> str:
    """Return a name joined by dots as Flax has it: modules such as down.block_0 keep their dots."""
    module, leaf = name.rsplit(".", 1)
    parts = re.fullmatch(r"((?:down|mid|up)\.\w+)\.(\w+)", module)
    return "/".join([*(parts.groups() if parts else [module]), leaf])


def state_of(model: Model, theirs: Tensors, where: str) -> dict[str, Tensor]:
    """Return the state of a VDM with a `ConcatUNet` from parameters by `flat_names`.

    Args:
        model: the VDM, for the names and shapes of its tensors.
        theirs: the parameters, all of which must be used.
        where: the file, for messages.

    Raises:
        CheckpointError: tensors that are missing, left over, or of another shape or kind; all are listed.
    """
    network = model.get_submodule("network")
    assert isinstance(network, ConcatUNet)
    of_network = {name: tensor for name, tensor in theirs.items() if not name.startswith(GAMMA)}
    state = read_tensors(entries_of(network), of_network, network.state_dict(), where, "a VDM's score model")
    gamma = schedule_state(theirs, where) or model.get_submodule("gamma").state_dict()  # of a fixed one the constants
    parts = {"network": state, "gamma": gamma}
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def entries_of(network: ConcatUNet) -> Iterator[Entry]:
    """Yield the map from the parameters of a ScoreUNet to the state of the same `ConcatUNet`."""
    blocks, embedding = list(blocks_of(network)), network.conv_in.out_channels
    yield _read("noise_embedding.mlp.0.weight", "dense0.kernel", lambda kernel: _without_scalar(kernel, embedding))
    yield _read("noise_embedding.mlp.0.bias", "dense0.bias")
    yield from _dense("noise_embedding.mlp.2", "dense1")
    yield from _convolution("conv_in", "conv_in")
    yield from _convolution("conv_out", "conv_out")
    yield from _norm("norm_out.norm", "GroupNorm_0")
    for block in blocks:
        theirs = _block(block.place)
        yield from _norm(f"{block.name}.norm_in.norm", f"{theirs}.GroupNorm_0")
        yield from _convolution(f"{block.name}.conv_in", f"{theirs}.conv1")
        yield from _norm(f"{block.name}.norm_out.norm", f"{theirs}.GroupNorm_1")
        yield from _convolution(f"{block.name}.conv_out", f"{theirs}.conv2")
        if block.has_shortcut:
            yield _read(f"{block.name}.shortcut.weight", f"{theirs}.nin_shortcut.kernel", _pointwise)
            yield _read(f"{block.name}.shortcut.bias", f"{theirs}.nin_shortcut.bias")
    for layer in attentions_of(network):
        yield from _attention(layer)
    kernels = tuple((f"{SCORE}{_block(block.place)}.cond_proj.kernel",) for block in blocks)
    yield Entry("projections.weight", kernels, _transposed_rows, write=None)


def _block(place: Place) -> str:
    return f"mid.block_{place.index + 1}" if place.side == "middle" else f"{place.side}.block_{place.index}"


def _attention(layer: AttentionLayer) -> Iterator[Entry]:
    place = layer.place
    theirs = "mid.attn_1" if place.side == "middle" else f"{place.side}.attn_{place.index}"
    yield from _norm(f"{layer.name}.norm", f"{theirs}.GroupNorm_0")
    kernels = tuple((f"{SCORE}{theirs}.{part}.kernel",) for part in "qkv")
    yield Entry(f"{layer.name}.qkv.weight", kernels, _transposed_rows, write=None)
    biases = [(f"{SCORE}{theirs}.{part}.bias",) for part in "qkv"]
    yield joined(f"{layer.name}.qkv.bias", biases, [layer.channels] * 3)
    yield from _dense(f"{layer.name}.out", f"{theirs}.proj_out")


def _read(ours: str, theirs: str, read: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Entry:
    return Entry(ours, ((f"{SCORE}{theirs}",),), lambda parts: read(parts[0]), write=None)


def _convolution(ours: str, theirs: str) -> Iterator[Entry]:
    yield _read(f"{ours}.weight", f"{theirs}.kernel", lambda kernel: kernel.permute(3, 2, 0, 1))
    yield _read(f"{ours}.bias", f"{theirs}.bias")


def _dense(ours: str, theirs: str) -> Iterator[Entry]:
    yield _read(f"{ours}.weight", f"{theirs}.kernel", lambda kernel: kernel.t())
    yield _read(f"{ours}.bias", f"{theirs}.bias")


def _norm(ours: str, theirs: str) -> Iterator[Entry]:
    yield _read(f"{ours}.weight", f"{theirs}.scale")
    yield _read(f"{ours}.bias", f"{theirs}.bias")


def _pointwise(kernel: Tensor) -> Tensor:
    """Return a dense layer over the channels as a convolution of one pixel."""
    return kernel.t()[:, :, None, None]


def _without_scalar(kernel: Tensor, embedding: int) -> Tensor:
    """Drop the row of the conditioning scalar, the last one of ``embedding`` + 1."""
    if kernel.shape[0] != embedding + 1:
        raise ValueError
    return kernel[:-1].t()


def _transposed_rows(kernels: list[Tensor]) -> Tensor:
    return torch.cat([kernel.t() for kernel in kernels])
