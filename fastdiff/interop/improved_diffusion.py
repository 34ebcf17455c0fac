"""Weights of improved-diffusion (Nichol and Dhariwal 2021, arXiv:2102.09672) as a `DDPM`."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..checkpoints.weights_file import describe_weights, model_from_weights, read_weights
from ..io.configuration import from_dict
from ..models import Model
from ..models.formats.improved_diffusion import state_of
from ..models.formats.improved_diffusion_flags import ImprovedDiffusionFlags, config_of


def load_improved_diffusion(path: str | Path, **flags: object) -> Model:
    """Load the weights of an improved-diffusion U-Net as a DDPM, in eval mode.

        model = load_improved_diffusion("cifar10.safetensors", image_size=32, num_res_blocks=3, learn_sigma=True,
                                        diffusion_steps=4000, noise_schedule="cosine")
        model.save("cifar10")  # a checkpoint folder for fastdiff.load

    The noise levels, variances and predictions are those of their code, and so is the place of bytes in [-1, 1]
    (``pixels="ends"``). Weights of guided-diffusion are read too if its U-Net has no ``resblock_updown``. A model with
    labels gets one more, "no label", whose embedding is zero: the network was not trained with it.

    Args:
        path: the state dictionary of the UNetModel in a ``.safetensors`` or ``.npz`` file. Their own ``.pt`` files are
            pickles and are not read; the error holds the command that converts one.
        flags: those of their scripts with which the model was trained, by name; see `ImprovedDiffusionFlags`. Any flag
            that is not given has the default of the scripts of improved-diffusion.

    Raises:
        CheckpointError: the file is missing, a pickle, damaged, or not the state of a supported U-Net; or tensors are
            missing, unknown, of another shape or not finite.
        ConfigError: an unknown flag, a value that it does not allow, or one that the shapes of the file contradict; the
            message says which value the file has.
    """
    chosen = from_dict(ImprovedDiffusionFlags, flags, "load_improved_diffusion: flags")
    described = describe_weights(path)
    config = config_of(chosen, described, str(path))

    def state(model: Model, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return state_of(model, theirs, chosen.use_new_attention_order, str(path))

    return model_from_weights(config, str(path), described, lambda: read_weights(path, described), state)
