"""The flags of improved-diffusion's scripts: the `DDPMConfig` that they describe, and what a file contradicts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...io.configuration import ConfigError, at_least, between, configuration, field, one_of
from ...io.folders import CheckpointError
from ...networks import ConcatUNetConfig
from ..ddpm import DDPMConfig

FIRST_BETA, LAST_BETA = 1e-4, 0.02  # of 1000 steps; improved-diffusion scales both by 1000 / T
GROUPS = 32  # of every normalisation
CHANNEL_MULTIPLIERS = {32: "1,2,2,2", 64: "1,2,3,4", 128: "1,1,2,3,4", 256: "1,1,2,2,4,4"}  # by image size
FIRST, SECOND = "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight"  # of the first two convolutions


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())


def _list_of_integers(text: str) -> str | None:
    known = re.fullmatch(r"\s*(\d+\s*(,\s*\d+\s*)*)?", text) and all(number > 0 for number in _integers(text))
    return None if known else "be positive integers separated by commas, or empty"


def _multipliers(text: str) -> str | None:
    wanted = "be positive integers separated by commas, the first of them 1, or empty"
    return wanted if _list_of_integers(text) or _integers(text)[:1] not in ((), (1,)) else None


def _multiple_of_groups(value: int) -> str | None:
    return None if value >= GROUPS and value % GROUPS == 0 else f"be a positive multiple of {GROUPS}"


def _minus_one_or_positive(value: int) -> str | None:
    return None if value == -1 or value >= 1 else "be -1 or >= 1"


def _empty(text: str) -> str | None:
    return None if not text else (
        "be '': it belongs to sampling. Sample with steps=N and the spacing 'linspace' in place of 'N'; with the "
        "spacing 'leading' in place of 'ddimN' where N divides diffusion_steps"
    )  # fmt: skip


@configuration
class ImprovedDiffusionFlags:
    """The flags of improved-diffusion's scripts with their defaults, and those that guided-diffusion has added.

    Args:
        image_size: side of the images.
        num_channels: channels of the first convolution, a multiple of 32.
        num_res_blocks: residual blocks per resolution.
        num_heads, num_heads_upsample: heads of the attentions, and of those on the way up; -1 for the same.
        num_head_channels: channels of a head, in place of the number of heads; -1 for none (guided-diffusion).
        attention_resolutions: heights of the feature maps with attention, separated by commas.
        channel_mult: channels at each resolution in units of num_channels, separated by commas; empty: those of the
            image sizes 32, 64, 128 and 256, and those of the file for any other size.
        dropout: probability, used in training.
        learn_sigma, sigma_small: variances that are learned; else ``fixed_small`` if sigma_small, or ``fixed_large``.
        class_cond: whether the network has labels. Their number is that of the file.
        diffusion_steps: number of steps of the chain, T.
        noise_schedule: ``"linear"``, betas from 1e-4 to 0.02 times 1000 / T, or ``"cosine"``.
        predict_xstart: whether the network predicts x and not epsilon.
        rescale_timesteps: whether timesteps are embedded in units of T / 1000.
        use_scale_shift_norm: whether the embedding scales and shifts the second normalisations; else it is added.
        use_new_attention_order: the order of the rows of the attentions' first layer (guided-diffusion).
        timestep_respacing, resblock_updown: must have their defaults; residual blocks that change the resolution are
            not supported.
        use_kl, rescale_learned_sigmas, use_checkpoint, use_fp16: accepted; they describe the training alone.
    """

    image_size: int = field(at_least(1), default=64)
    num_channels: int = field(_multiple_of_groups, default=128)
    num_res_blocks: int = field(at_least(1), default=2)
    num_heads: int = field(at_least(1), default=4)
    num_heads_upsample: int = field(_minus_one_or_positive, default=-1)
    num_head_channels: int = field(_minus_one_or_positive, default=-1)
    attention_resolutions: str = field(_list_of_integers, default="16,8")
    channel_mult: str = field(_multipliers, default="")
    dropout: float = field(between(0, 1, open_above=True), default=0.0)
    learn_sigma: bool = False
    sigma_small: bool = False
    class_cond: bool = False
    diffusion_steps: int = field(at_least(2), default=1000)
    noise_schedule: str = field(one_of("linear", "cosine"), default="linear")
    predict_xstart: bool = False
    rescale_timesteps: bool = True
    use_scale_shift_norm: bool = True
    use_new_attention_order: bool = False
    timestep_respacing: str = field(_empty, default="")
    resblock_updown: bool = field(one_of(False), default=False)
    use_kl: bool = False
    rescale_learned_sigmas: bool = True
    use_checkpoint: bool = False
    use_fp16: bool = False

    def __attrs_post_init__(self) -> None:
        if self.noise_schedule == "linear" and self.diffusion_steps <= 1000 * LAST_BETA:
            raise ConfigError(
                f"ImprovedDiffusionFlags: diffusion_steps must be > {1000 * LAST_BETA:g} with the linear "
                f"noise_schedule, whose last beta is {1000 * LAST_BETA:g} / diffusion_steps, got {self.diffusion_steps}"
            )

    @property
    def factors(self) -> set[int]:
        """The factors between the image size and the heights of attentions, rounded down as in their code.

        Resolutions differ by powers of 2, so other factors occur nowhere.
        """
        factors = {self.image_size // height for height in _integers(self.attention_resolutions)}
        return {factor for factor in factors if factor.bit_count() == 1}

    def config(self, channels: int, multipliers: tuple[int, ...], num_classes: int) -> DDPMConfig:
        """Return the configuration of the DDPM.

        Args:
            channels: of the images.
            multipliers: channels at each resolution in units of num_channels.
            num_classes: number of labels.

        Raises:
            ConfigError: the number of heads does not divide the channels of an attention.
        """
        T, with_size = self.diffusion_steps, self.num_head_channels != -1
        scale = 1000 / T if self.noise_schedule == "linear" else 1.0  # cosine betas have no first and last
        network = ConcatUNetConfig(
            width=self.num_channels,
            multipliers=multipliers,
            blocks=self.num_res_blocks,
            attention=tuple(self.image_size // factor for factor in sorted(self.factors)),
            dropout=self.dropout,
            heads=1 if with_size else self.num_heads,
            head_size=self.num_head_channels if with_size else None,
            max_groups=GROUPS,
            eps=1e-5,
            scale_shift=self.use_scale_shift_norm,
            padding="both",
            timesteps=T,
            timestep_scale=1000 / T if self.rescale_timesteps else 1.0,
            frequency_shift=0,
        )
        return DDPMConfig(
            shape=(channels, self.image_size, self.image_size),
            levels=256,
            num_classes=num_classes,
            T=T,
            beta_count=T,
            beta_first=FIRST_BETA * scale,
            beta_last=LAST_BETA * scale,
            beta_schedule=self.noise_schedule,
            variance="learned" if self.learn_sigma else "fixed_small" if self.sigma_small else "fixed_large",
            prediction="x" if self.predict_xstart else "epsilon",
            pixels="ends",
            network=network,
        )


def config_of(flags: ImprovedDiffusionFlags, theirs: Mapping[str, Tensor], where: str) -> DDPMConfig:
    """Return the configuration of the DDPM whose network is in a file.

    Args:
        flags: the flags with which it was trained.
        theirs: the tensors of the file by name; their values are not looked at.
        where: the file, for messages.

    Raises:
        CheckpointError: the tensors are not those of a UNetModel, or of one that is not supported.
        ConfigError: the shapes contradict flags; all of them are named with the values that the file has.
    """
    for name in (FIRST, SECOND):
        if name not in theirs or theirs[name].dim() != 4:
            got = f"shape {tuple(theirs[name].shape)}" if name in theirs else ", ".join([*sorted(theirs)[:3], "..."])
            raise CheckpointError(
                f"{where} must hold the state of an improved-diffusion UNetModel, with {name} of shape "
                f"[out, in, 3, 3], got {got}"
            )
    if any(re.match(r"output_blocks\.\d+\.[12]\.in_layers", name) for name in theirs):
        raise CheckpointError(
            f"{where} holds a network with resblock_updown, whose residual blocks change the resolution; only networks "
            "with strided convolutions (resblock_updown=False) are supported"
        )
    found = _Found.of(theirs)
    half = found.channels_out is not None and 2 * found.channels_out == found.channels
    if half or (flags.learn_sigma and found.channels == found.channels_out == 6):
        raise CheckpointError(
            f"{where} holds a super-resolution model, whose {found.channels} input channels include those of a small "
            "image; only models of images alone are supported"
        )
    if "." in found.multipliers:
        raise CheckpointError(
            f"{where} has {found.multipliers} times {found.num_channels} channels at its resolutions; only whole "
            "multiples are supported"
        )
    multipliers = flags.channel_mult or CHANNEL_MULTIPLIERS.get(flags.image_size) or found.multipliers
    problems = _contradictions(flags, found, multipliers) or _heads(flags, found)
    if problems:
        raise ConfigError(f"{where} contradicts flags: {'; '.join(problems)}")
    labels = theirs.get("label_emb.weight")
    return flags.config(found.channels, _integers(multipliers), 0 if labels is None else _rows(labels))


@dataclass(frozen=True)
class _Found:
    """What the shapes of a file say about the flags; None for what they do not say."""

    channels: int
    channels_out: int | None
    num_channels: int
    num_res_blocks: int
    multipliers: str
    factors: tuple[int, ...]  # of the image size, at which there is attention
    scale_shift: bool | None
    class_cond: bool

    @classmethod
    def of(cls, theirs: Mapping[str, Tensor]) -> "_Found":
        """Read the blocks on the way down, in their order, until one is neither a residual block nor strided."""
        width, channels = theirs[FIRST].shape[:2]
        embedding = theirs.get("time_embed.0.weight")
        if embedding is not None and embedding.dim() == 2:
            width = embedding.shape[1]
        stages: list[list[int]] = [[]]
        factors: list[int] = []
        for i in range(1, len(theirs)):
            conv = theirs.get(f"input_blocks.{i}.0.in_layers.2.weight")
            if conv is None:
                if f"input_blocks.{i}.0.op.weight" not in theirs:
                    break
                stages.append([])
                continue
            stages[-1].append(_rows(conv))
            if f"input_blocks.{i}.1.qkv.weight" in theirs and 2 ** (len(stages) - 1) not in factors:
                factors.append(2 ** (len(stages) - 1))
        first = [stage[0] for stage in stages if stage]
        out, rows = theirs.get("out.2.weight"), theirs.get("input_blocks.1.0.emb_layers.1.weight")
        return cls(
            channels=channels,
            channels_out=None if out is None else _rows(out),
            num_channels=width,
            num_res_blocks=len(stages[0]),
            multipliers=",".join(f"{each / max(width, 1):g}" for each in first),
            factors=tuple(factors),
            scale_shift=None if rows is None else _rows(rows) == 2 * first[0],
            class_cond="label_emb.weight" in theirs,
        )


def _contradictions(flags: ImprovedDiffusionFlags, found: _Found, multipliers: str) -> list[str]:
    """Return a sentence for each flag whose value the file contradicts."""
    problems = []

    def compare(name: str, value: object, got: object) -> None:
        if value is not None and value != got:
            problems.append(f"{name} must be {value!r}, got {got!r}")

    compare("num_channels", found.num_channels, flags.num_channels)
    compare("num_res_blocks", found.num_res_blocks, flags.num_res_blocks)
    if found.multipliers != ",".join(map(str, _integers(multipliers))):
        given_by = "channel_mult" if flags.channel_mult else f"channel_mult for image_size {flags.image_size}"
        problems.append(f"{given_by} must be {found.multipliers!r}, got {multipliers!r}")
    wanted = ",".join(str(flags.image_size // factor) for factor in found.factors)
    occurring = {2**i for i in range(found.multipliers.count(",") + 1)}
    if flags.factors & occurring != set(found.factors):
        problems.append(f"attention_resolutions must be {wanted!r}, got {flags.attention_resolutions!r}")
    if found.channels_out is not None:
        learned = {found.channels: False, 2 * found.channels: True}.get(found.channels_out)
        compare("learn_sigma", learned, flags.learn_sigma)
    compare("use_scale_shift_norm", found.scale_shift, flags.use_scale_shift_norm)
    compare("class_cond", found.class_cond, flags.class_cond)
    if flags.num_heads_upsample not in (-1, flags.num_heads) and found.factors and flags.num_head_channels == -1:
        problems.append(
            f"num_heads_upsample must be -1 or {flags.num_heads}, the number of heads on the way down, got "
            f"{flags.num_heads_upsample}: other numbers are not supported"
        )
    return problems


def _heads(flags: ImprovedDiffusionFlags, found: _Found) -> list[str]:
    """Return what is wrong with the number or the size of heads for the attentions of a file that fits the flags."""
    width, size = found.num_channels, flags.num_head_channels
    if size == -1:
        wrong = width % flags.num_heads
        return [f"num_heads must divide num_channels, {width}, got {flags.num_heads}"] if wrong else []
    multipliers = _integers(found.multipliers)
    of_factors = {2**i: multiplier * width for i, multiplier in enumerate(multipliers)}
    channels = [of_factors[factor] for factor in found.factors] + [multipliers[-1] * width]  # of the middle block too
    wrong = [each for each in channels if each % size]
    return [f"num_head_channels must divide the {wrong[0]} channels of an attention, got {size}"] if wrong else []


def _rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.dim() else 0
