"""The configuration of diffusers' UNet2DModel and its scheduler as a `DDPMConfig`.

A UNet2DModel is the U-Net of DDPM, which is our `ConcatUNet`, with options: attention at any resolution, down and up;
padding of the strided convolutions on two sides or on four; embedding in either order; scale and shift. The network
takes the timestep 0 .. T - 1 of the chain (``timesteps`` of `ConcatUNetConfig`), and levels of pixels lie on [-1, 1]
with the first and the last at its ends (``pixels="ends"``).
"""

from dataclasses import dataclass

from attrs import asdict

from ...io.configuration import ConfigError
from ...networks import ConcatUNetConfig
from ..ddpm_config import DDPMConfig
from .diffusers_scheduler import BETAS, Chain, read_chain
from .settings import Settings, SettingsReader

LEVELS = 256  # their images are bytes
# The arguments of UNet2DModel and their defaults
UNET = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
    "num_train_timesteps": None,
}  # fmt: skip
# What their average of weights adds to the configuration that it is saved with
AVERAGE = {
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
}  # fmt: skip
FIXED = {  # values that our network has built in
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",), "act_fn": ("silu", "swish"), "class_embed_type": (None,),
}  # fmt: skip
DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}  # whether a block has attention
UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
OLD_PREFIX = "UNetRes"  # of the names of blocks in old files


@dataclass(frozen=True)
class Described:
    """A model that a folder of diffusers describes.

    config: its configuration. flip_sin_to_cos: the order of the embedding. classes: the classes of an embedding without
    a null label, which is added; 0 where nothing is to be added.
    """

    config: DDPMConfig
    flip_sin_to_cos: bool
    classes: int


def read_config(
    network: Settings, scheduler: Settings | None, where: str, scheduler_where: str | None = None
) -> Described:
    """Return what the configurations of a UNet2DModel and of its scheduler describe.

    Args:
        network: the content of its config.json, or its arguments.
        scheduler: that of scheduler_config.json; None stands for ``DDPMScheduler()``: 1000 linear betas from 1e-4 to
            0.02, epsilon, and the smaller variance, or a learned one where the network has twice the output channels.
        where: the source, for messages.
        scheduler_where: that of ``scheduler``, by default ``where``.

    Raises:
        ConfigError: the message lists every setting that fastdiff does not have.
    """
    problems: list[str] = []
    of_chain: list[str] = []
    reader = SettingsReader({**UNET, **network}, problems)
    for name in sorted(set(network) - set(UNET) - AVERAGE):
        if not name.startswith("_") and network[name] not in (None, False):
            reader.reject(name, "be absent")
    chain = read_chain(_default_scheduler(reader) if scheduler is None else scheduler, of_chain)
    for name, allowed in FIXED.items():
        reader.fixed(name, allowed)
    channels = _channels(reader, chain)
    shape, classes = (channels, *_size(reader)), _classes(reader)
    unet, flip = _network(reader, chain, shape), reader.flag("flip_sin_to_cos")
    sources = ((where, "UNet2DModel", problems), (scheduler_where or where, "scheduler", of_chain))
    faults = [
        f"{source} describes a {part} that fastdiff does not have: {'; '.join(each)}"
        for source, part, each in sources
        if each
    ]
    if faults:
        raise ConfigError("; ".join(faults))
    assert unet is not None
    config = DDPMConfig(
        shape=shape, levels=LEVELS, num_classes=classes, T=chain.beta_count, beta_first=chain.beta_first,
        beta_last=chain.beta_last, beta_count=chain.beta_count, variance=chain.variance, prediction=chain.prediction,
        beta_schedule=chain.beta_schedule, pixels="ends", network=unet,
    )  # fmt: skip
    return Described(config, flip, classes)


def chain_of(config: DDPMConfig) -> Chain:
    """Return the chain of a configuration."""
    values = asdict(config, recurse=False)
    return Chain(**{name: values[name] for name in Chain.__dataclass_fields__})


def _default_scheduler(reader: SettingsReader) -> Settings:
    values = reader.values
    learned = values["out_channels"] != values["in_channels"]
    first, last = BETAS
    return {"beta_start": first, "beta_end": last, "variance_type": "learned_range" if learned else "fixed_small"}


def _channels(reader: SettingsReader, chain: Chain) -> int:
    """Return the channels of the data; the output has as many, and v beside them where variances are learned."""
    channels, out = reader.integer("in_channels"), reader.integer("out_channels")
    learned = chain.variance == "learned"
    if out != channels * (1 + learned):
        what = (
            "twice in_channels, with variance_type learned_range"
            if learned
            else "in_channels, or twice that with variance_type learned_range in the scheduler, which has "
            f"{chain.variance}"
        )
        reader.reject("out_channels", f"be {channels * (1 + learned)} ({what})")
    return channels


def _size(reader: SettingsReader) -> tuple[int, int]:
    """Return (H, W)."""
    size = reader.values["sample_size"]
    pair = [size, size] if type(size) is int else size
    if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(each) is int and each > 0 for each in pair):
        return pair[0], pair[1]
    reader.reject("sample_size", "be an integer >= 1, or [height, width]")
    return 0, 0


def _classes(reader: SettingsReader) -> int:
    return 0 if reader.values["num_class_embeds"] is None else reader.integer("num_class_embeds")


def _blocks(reader: SettingsReader, name: str, known: dict[str, bool], count: int) -> list[bool]:
    """Return which blocks of one side have attention, in the order of the calls."""
    blocks = [each.removeprefix(OLD_PREFIX) for each in reader.sequence(name, str)]
    if not blocks:
        return [False] * count
    if not set(blocks) <= set(known) or len(blocks) != count:
        reader.reject(name, f"be {count} blocks of {' and '.join(known)}")
        return [False] * count
    return [known[each] for each in blocks]


def _network(reader: SettingsReader, chain: Chain, shape: tuple[int, int, int]) -> ConcatUNetConfig | None:
    """Return the configuration of the network; None where something does not fit."""
    channels = reader.sequence("block_out_channels", int)
    count, groups = len(channels), reader.integer("norm_num_groups")
    if not channels:
        return None
    width = max(1, channels[0])
    if any(each < 1 or each % width or each % groups for each in channels):
        reader.reject("block_out_channels", f"be multiples of the first and of norm_num_groups, {groups}")
    if any(side % 2 ** (count - 1) for side in shape[1:]):
        reader.reject("sample_size", f"be a multiple of {2 ** (count - 1)}, for {count} resolutions")
    down, up = _blocks(reader, "down_block_types", DOWN, count), _blocks(reader, "up_block_types", UP, count)
    middle = reader.flag("add_attention")
    _check_resampling(reader, down, up)
    scale_shift = reader.one_of("resnet_time_scale_shift", {"default": False, "scale_shift": True}, False)
    if middle:
        _check_middle(reader, scale_shift, groups)
    reader.fixed("time_embedding_dim", (None, 4 * width))
    attending = {c for c, has in zip([*channels, *channels[::-1]], [*down, *up], strict=True) if has}
    head_size = _head_size(reader, attending | ({channels[-1]} if middle else set()))
    heights = [shape[1] >> k for k in range(count)]
    attention, attention_up = (
        tuple(height for height, has in zip(heights, side, strict=True) if has) for side in (down, up[::-1])
    )
    layers, eps, dropout = reader.integer("layers_per_block"), reader.number("norm_eps", 0.0), _dropout(reader)
    padding = {1: "both", 0: "right"}.get(reader.integer("downsample_padding", 0))
    if padding is None:
        reader.reject("downsample_padding", "be 0 or 1")
    reader.fixed("freq_shift", (0, 1))
    if reader.problems or padding is None:
        return None
    try:
        return ConcatUNetConfig(
            width=width, multipliers=tuple(each // width for each in channels), blocks=layers, attention=attention,
            attention_up=None if attention_up == attention else attention_up, middle_attention=middle,
            head_size=head_size, max_groups=groups, dropout=dropout, eps=eps, scale_shift=scale_shift,
            padding=padding, timesteps=chain.beta_count, frequency_shift=reader.integer("freq_shift", 0),
        )  # fmt: skip
    except ConfigError as error:
        reader.problems.append(str(error))
        return None


def _dropout(reader: SettingsReader) -> float:
    value = reader.values["dropout"]
    return 0.0 if type(value) in (int, float) and value == 0 else reader.number("dropout", 0.0, 1.0)


def _check_resampling(reader: SettingsReader, down: list[bool], up: list[bool]) -> None:
    """Only blocks with attention have a choice of how the resolution changes."""
    if any(down[:-1]):
        reader.fixed("downsample_type", ("conv", None))
    if any(up[:-1]):
        reader.fixed("upsample_type", ("conv", None))


def _check_middle(reader: SettingsReader, scale_shift: bool, groups: int) -> None:
    """With scale and shift their attention in the middle has a norm only where its groups are set."""
    allowed = (groups,) if scale_shift else (None, groups)
    why = " (with scale_shift and without it the attention in the middle has no norm)" if scale_shift else ""
    reader.fixed("attn_norm_num_groups", allowed, why)


def _head_size(reader: SettingsReader, attending: set[int]) -> int | None:
    """Return the channels of a head; None for one head."""
    if reader.values["attention_head_dim"] is None:
        return None
    size = reader.integer("attention_head_dim")
    if any(channels % size for channels in attending):
        reader.reject("attention_head_dim", f"divide the channels of every attention, {sorted(attending)}")
    return size if attending else None
