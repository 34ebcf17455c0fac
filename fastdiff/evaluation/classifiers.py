"""Small classifiers of the embedded data sets; the outputs of their penultimate layers give FD-digits and FD-letters.

`benchmarks/studies/classifier.py` trained the weights in ``assets/digits-classifier.safetensors`` and
``assets/letters-classifier.safetensors`` on the training images. The metadata of a file record the settings and the
accuracy.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..data import DIGITS_LEVELS, LETTERS, LETTERS_LEVELS
from ..io.folders import CheckpointError, check_state
from ..kernels import InvalidValueError

ABOUT = "about"  # the only key of the file's metadata, since the format does not keep the order of several keys


@dataclass(frozen=True)
class ClassifierConfig:
    """The data and the layers of an `ImageClassifier`.

    shape: (C, H, W) of the images. levels: number of values of a pixel. convolutions: channels and stride of each 3×3
    convolution. num_features: width of the penultimate layer. dropout: probability, before the penultimate layer.
    """

    shape: tuple[int, int, int]
    levels: int
    num_classes: int
    convolutions: tuple[tuple[int, int], ...]
    num_features: int
    dropout: float = 0.5


CLASSIFIERS = {
    "digits": ClassifierConfig((1, 8, 8), DIGITS_LEVELS, 10, ((24, 1), (32, 2), (32, 1)), 32),
    "letters": ClassifierConfig((1, 28, 28), LETTERS_LEVELS, len(LETTERS), ((32, 2), (64, 2), (64, 2)), 64),
}


class ImageClassifier(nn.Module):
    """Classifier of images uint8 [N, C, H, W] with values in [0, levels); `forward` returns features [N, F].

    The features are the output of the convolutions and a linear layer, in the dtype of the weights. `logits` applies a
    SiLU and the last linear layer to them. The features are taken before this SiLU, which would map most negative
    values close to zero. torchmetrics reads ``num_features``.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.num_features
        channels, height, width = config.shape
        layers: list[nn.Module] = []
        for out_channels, stride in config.convolutions:
            layers += [nn.Conv2d(channels, out_channels, 3, padding=1, stride=stride), nn.SiLU()]
            channels, height, width = out_channels, -(-height // stride), -(-width // stride)
        layers += [
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(channels * height * width, config.num_features),
        ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(config.num_features, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images.to(self.head.weight.dtype) * (2.0 / (self.config.levels - 1)) - 1.0)

    def logits(self, images: Tensor) -> Tensor:
        """Return the unnormalised log-probabilities of the classes, [N, num_classes]."""
        return self.head(F.silu(self(images)))


def load_classifier(data: str = "digits", path: str | Path | None = None) -> ImageClassifier:
    """Load the classifier of an embedded data set in eval mode, with parameters that require no gradients.

    Args:
        data: ``"digits"`` (32 features, 33,178 parameters) or ``"letters"`` (64 features, 123,034 parameters).
        path: a file that `benchmarks/studies/classifier.py` wrote for this data set; None for the weights of the
            package.

    Raises:
        InvalidValueError: another data set.
        CheckpointError: the file is missing, unreadable or damaged, or holds other tensors. The message names it.
    """
    config = classifier_config(data)
    path = (
        Path(str(files("fastdiff.assets").joinpath(f"{data}-classifier.safetensors"))) if path is None else Path(path)
    )
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a classifier of {data}: {error}") from error
    model = ImageClassifier(config)
    check_state(str(path), state, model.state_dict())
    if not isinstance(about, dict) or about.get("crc32") != checksum(state):
        raise CheckpointError(f"{path} is damaged: the checksum of its weights differs from the one in its metadata")
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def classifier_config(data: str) -> ClassifierConfig:
    """Return the configuration of the classifier of an embedded data set.

    Raises:
        InvalidValueError: there is none of this name.
    """
    if data not in CLASSIFIERS:
        raise InvalidValueError(f"data must be one of {', '.join(CLASSIFIERS)}, got {data!r}")
    return CLASSIFIERS[data]


def checksum(state: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of the bytes of tensors on the CPU, in the order of their names."""
    return zlib.crc32(b"".join(state[name].numpy().tobytes() for name in sorted(state)))
