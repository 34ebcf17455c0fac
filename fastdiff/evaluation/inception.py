"""The Inception-v3 of FID (Heusel et al. 2017), from torch-fidelity by way of torchmetrics; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..kernels import FastdiffError, InvalidValueError

FILE = "weights-inception-2015-12-05-6726825d.pth"
SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"


class FeaturesError(FastdiffError, RuntimeError):
    """A network of features that is not installed, or whose weights are missing or cannot be loaded."""


def weights_path() -> Path:
    """Return where torch-fidelity and torchmetrics keep the weights: in PyTorch's folder of checkpoints."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


def load_inception(weights: str | Path | None = None, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """Return the pool features, float32 [n, 2048], of images uint8 [n, 1 or 3, H, W] in 0 .. 255.

    Images are resized to 299×299 as the original in TensorFlow does, bilinearly and without antialiasing, which the
    published FIDs rest on; grey images have three equal channels.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity; None: where that library
            keeps it, ``~/.cache/torch/hub/checkpoints`` unless ``TORCH_HOME`` says otherwise. Never downloaded.
        device: where the network runs.

    Raises:
        FeaturesError: the file is missing or cannot be loaded, or torchmetrics or torch-fidelity is not installed.
    """
    path = weights_path() if weights is None else Path(weights)
    if not path.is_file():
        raise FeaturesError(
            f"features inception need the weights of Inception-v3 at {path}, and there is no such file: put {SOURCE} "
            "there, or pass its path as --weights (weights=)"
        )
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path), antialias=False)
    except ImportError as error:  # torchmetrics says so of torch-fidelity
        raise FeaturesError(
            f"features inception need torchmetrics and torch-fidelity (pip install 'torchmetrics[image]'): {error}"
        ) from error
    except Exception as error:  # what torch.load raises for a damaged file
        raise FeaturesError(f"{path} cannot be loaded as the weights of Inception-v3: {error}") from error
    network = network.to(device).eval()

    def features(images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise InvalidValueError(f"features inception are for grey or RGB images, got {images.shape[1]} channels")
        return network(images.to(device).expand(-1, 3, -1, -1)).float()

    return features
