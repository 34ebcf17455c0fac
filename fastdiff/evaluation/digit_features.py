"""A small classifier of the embedded digits; the output of its penultimate layer gives the features of FD-digits.

`benchmarks/studies/digit_classifier.py` trained the weights in ``assets/digits-classifier.safetensors`` on the 1500
training images. The metadata of the file record the settings and the accuracy.
"""

import json
import zlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..data import DIGITS_LEVELS
from ..io.folders import CheckpointError, check_state

ASSET = "digits-classifier.safetensors"
ABOUT = "about"  # the only key of the file's metadata, since the format does not keep the order of several keys
DROPOUT = 0.5


class DigitClassifier(nn.Module):
    """Classifier of images uint8 [N, 1, 8, 8] with levels 0 .. 16; `forward` returns features [N, 32].

    The features are the output of three convolutions and a linear layer, in the dtype of the weights. `logits` applies
    a SiLU and the last linear layer to them. The features are taken before this SiLU, which would map most negative
    values close to zero. There are 33178 parameters. torchmetrics reads ``num_features``.
    """

    num_features = 32

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 32, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(DROPOUT),
            nn.Linear(32 * 4 * 4, self.num_features),
        )
        self.head = nn.Linear(self.num_features, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images.to(self.head.weight.dtype) * (2.0 / (DIGITS_LEVELS - 1)) - 1.0)

    def logits(self, images: Tensor) -> Tensor:
        """Return the unnormalised log-probabilities of the ten classes, [N, 10]."""
        return self.head(F.silu(self(images)))


def load_digit_classifier(path: str | Path | None = None) -> DigitClassifier:
    """Load the classifier in eval mode, with parameters that require no gradients.

    Args:
        path: a file that `benchmarks/studies/digit_classifier.py` wrote; None for the weights of the package.

    Raises:
        CheckpointError: the file is missing, unreadable or damaged, or holds other tensors. The message names it.
    """
    path = Path(str(files("fastdiff.assets").joinpath(ASSET))) if path is None else Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a digit classifier: {error}") from error
    model = DigitClassifier()
    check_state(str(path), state, model.state_dict())
    if not isinstance(about, dict) or about.get("crc32") != checksum(state):
        raise CheckpointError(f"{path} is damaged: the checksum of its weights differs from the one in its metadata")
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def checksum(state: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of the bytes of tensors on the CPU, in the order of their names."""
    return zlib.crc32(b"".join(state[name].numpy().tobytes() for name in sorted(state)))
