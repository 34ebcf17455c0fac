"""Weights of the official variational diffusion models (Kingma et al. 2021, arXiv:2107.00630) as a `VDM`."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..checkpoints.weights_file import describe_weights, model_from_weights, read_weights
from ..io.configuration import ConfigError
from ..models import Model
from ..models.formats.vdm import config_of, flat_names, state_of


def load_vdm(
    path: str | Path,
    image_size: int = 32,
    gamma_min: float = -13.3,
    gamma_max: float = 5.0,
    dropout: float = 0.1,
) -> Model:
    """Load the parameters of the official VDM as a `VDM`, in eval mode.

    The width, the number of blocks, attention, Fourier features and the kind of the noise schedule are those of the
    file. The schedule is the same function of t, fixed, linear with learned endpoints, or monotone. A model that was
    trained with the conditioning scalar "augmented" is read as at 0, an image without augmentation.

    Their checkpoints are restored by their own libraries, which write a file for this function so:

        parameters = clu.checkpoint.Checkpoint(folder).restore_dict()["ema_params"]
        numpy.savez("vdm.npz", **flax.traverse_util.flatten_dict(parameters, sep="/"))

    Args:
        path: the flattened parameters in an ``.npz`` or ``.safetensors`` file, names joined by "/" or ".". With a
            prefix ``ema_params/`` or ``params/`` the file is a whole training state, of which ``ema_params`` are taken,
            or else ``params``.
        image_size: side of the images.
        gamma_min, gamma_max: of their configuration: the constants that scale gamma to the network's noise level, and
            the endpoints of a fixed schedule.
        dropout: ``sm_pdrop`` of their configuration, used in training.

    Raises:
        CheckpointError: the file is missing, a pickle, damaged, or not of a VDM; or parameters are missing, unknown, of
            another shape or not finite.
        ConfigError: an argument that is out of range.
        ScheduleError: the schedule of the file does not increase.
    """
    where = str(path)
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ConfigError(f"image_size must be an integer >= 1, got {image_size!r}")
    described = describe_weights(path)
    names = flat_names(described, where)
    theirs = {name: described[original] for name, original in names.items()}
    config = config_of(theirs, image_size, gamma_min, gamma_max, dropout, where)

    def values() -> dict[str, Tensor]:
        found = read_weights(path, names.values())
        return {name: found[original] for name, original in names.items()}

    def state(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return state_of(model, tensors, where)

    return model_from_weights(config, where, theirs, values, state)
