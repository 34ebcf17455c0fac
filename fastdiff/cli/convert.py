"""The command ``convert``: weights of other libraries in single files, to checkpoint folders."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from tyro.conf import FlagConversionOff, OmitArgPrefixes, Positional, arg, subcommand
from tyro.constructors import PrimitiveConstructorSpec

from .choices import choice
from .common_flags import Writing

if TYPE_CHECKING:
    from ..models import Model

NOT_SETTINGS = ("file", "out", "overwrite")  # of the weights
TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")


def _boolean(texts: list[str]) -> bool:
    """Return the value that follows a flag."""
    if texts[0].lower() not in (*TRUE, *FALSE):
        raise ValueError(f"it must be True or False, got {texts[0]!r}")
    return texts[0].lower() in TRUE


# a value follows it, as in the scripts of improved-diffusion, so that their lines of flags can be used as they are
Boolean = Annotated[
    bool,
    FlagConversionOff,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="{True,False}",
        instance_from_str=_boolean,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]
File = Annotated[Positional[Path], arg(metavar="FILE")]
Out = Annotated[Positional[Path], arg(metavar="OUT")]


@dataclass
class ImprovedDiffusion(Writing):
    """The state of a U-Net of improved-diffusion, or of guided-diffusion without resblock_updown. The flags are those
    of the model and of the diffusion with which it was trained, written as for their scripts: --learn_sigma True."""

    file: File
    """.safetensors or .npz file with the weights."""
    out: Out
    """Checkpoint folder to write."""
    image_size: int = 64
    """Side of the images."""
    num_channels: int = 128
    """Channels of the first convolution."""
    num_res_blocks: int = 2
    """Residual blocks per resolution."""
    num_heads: int = 4
    """Heads of the attentions."""
    num_heads_upsample: int = -1
    """Heads on the way up; -1 for the same."""
    num_head_channels: int = -1
    """Channels of a head, in place of the number of heads; -1 for none."""
    attention_resolutions: str = "16,8"
    """Heights of the feature maps with attention, separated by commas."""
    channel_mult: str = ""
    """Channels at each resolution in units of num_channels, separated by commas; by default those of the image size."""
    dropout: float = 0.0
    """Probability, used in training."""
    learn_sigma: Boolean = False
    """Variances are learned."""
    sigma_small: Boolean = False
    """Variances are those of the posterior, if they are not learned."""
    class_cond: Boolean = False
    """The network has labels."""
    diffusion_steps: int = 1000
    """Steps of the chain."""
    noise_schedule: Annotated[str, choice("linear", "cosine")] = "linear"
    """Betas of the chain."""
    predict_xstart: Boolean = False
    """The network predicts x and not epsilon."""
    rescale_timesteps: Boolean = True
    """Timesteps are embedded in units of diffusion_steps / 1000."""
    use_scale_shift_norm: Boolean = True
    """The embedding scales and shifts the normalisations."""
    use_new_attention_order: Boolean = False
    """The order of the rows of the attentions' first layer."""
    timestep_respacing: str = ""
    """Must be empty: it belongs to sampling."""
    resblock_updown: Boolean = False
    """Must be False: residual blocks that change the resolution are not supported."""
    use_kl: Boolean = False
    """Not used: it describes the training alone."""
    rescale_learned_sigmas: Boolean = True
    """Not used: it describes the training alone."""
    use_checkpoint: Boolean = False
    """Not used: it describes the training alone."""
    use_fp16: Boolean = False
    """Not used: weights are read as float32."""

    library: ClassVar[str] = "weights of improved-diffusion or guided-diffusion"

    def load(self) -> "Model":
        """Load the file."""
        from ..interop import load_improved_diffusion

        flags = {name: value for name, value in asdict(self).items() if name not in NOT_SETTINGS}
        return load_improved_diffusion(self.file, **flags)


@dataclass
class Vdm(Writing):
    """The flattened Flax parameters of the official VDM. Its size and its schedule are those of the file."""

    file: File
    """.npz or .safetensors file with the parameters."""
    out: Out
    """Checkpoint folder to write."""
    image_size: int = 32
    """Side of the images."""
    gamma_min: float = -13.3
    """The least gamma of its configuration, which scales gamma for the network."""
    gamma_max: float = 5.0
    """The largest gamma of its configuration."""
    dropout: float = 0.1
    """sm_pdrop of its configuration, used in training."""

    library: ClassVar[str] = "parameters of the official VDM"

    def load(self) -> "Model":
        """Load the file."""
        from ..interop import load_vdm

        return load_vdm(self.file, self.image_size, self.gamma_min, self.gamma_max, self.dropout)


@dataclass
class Convert:
    """Write a checkpoint folder from the weights of another library in a single file."""

    source: OmitArgPrefixes[
        Annotated[ImprovedDiffusion, subcommand("improved-diffusion", prefix_name=False)]
        | Annotated[Vdm, subcommand("vdm", prefix_name=False)]
    ]

    def run(self) -> int:
        """Load, save, and print what was written."""
        source = self.source
        source.check_no_model(source.out)
        model = source.load()
        settings = {name: value for name, value in asdict(source).items() if name not in NOT_SETTINGS}
        origin = {"format": type(source).__name__, "file": source.file.name, "settings": settings}
        words = f"converted from {source.file.name}, {source.library}"
        model.save(source.out, record={"origin": words, "converted": origin})
        count = sum(parameter.numel() for parameter in model.parameters())
        size = "×".join(map(str, model.shape))
        print(f"wrote {source.out}: a {model.kind} model of images {size}, {count:,} parameters")
        return 0
