"""A small classifier of the embedded digits, whose penultimate layer gives the features of FD-digits (`frechet`).

Trained on the 1500 training images alone, by ``python -m fastdiff.digit_features --out FILE``; the package ships the
weights in ``assets/digits-classifier.safetensors``, whose metadata say how they were made. One thread and one seed: the
same machine and version of PyTorch write the same file.
"""

import argparse
import json
import math
import zlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from .datasets import DIGITS_LEVELS, Dataset, digits
from .storage import CheckpointError, check_state

ASSET = "digits-classifier.safetensors"
ABOUT = "about"  # the one key of the file's metadata: the format keeps no order among several
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
DROPOUT = 0.5
LABEL_SMOOTHING = 0.1  # keeps the features of well-separated classes from growing without end


class DigitClassifier(nn.Module):
    """Images uint8 [N, 1, 8, 8] of levels 0 .. 16 to features [N, 32], in the dtype of the weights.

    Three convolutions and a linear layer; `logits` adds a SiLU and the last linear layer; 33178 weights in all. The
    features are taken before that SiLU, which would fold their negative half. ``num_features`` is what torchmetrics
    asks of a feature network.
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
        """Unnormalised log-probabilities of the ten classes, [N, 10]."""
        return self.head(F.silu(self(images)))


def load_digit_classifier(path: str | Path | None = None) -> DigitClassifier:
    """Load the classifier in eval mode, without gradients: the shipped weights, or those of a file of the command.

    Raises:
        CheckpointError: a file that is missing, unreadable, damaged, or holds other tensors. The message names it.
    """
    path = Path(str(files("fastdiff.assets").joinpath(ASSET))) if path is None else Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a digit classifier: {error}; "
            "allowed: a file of `python -m fastdiff.digit_features`"
        ) from error
    model = DigitClassifier()
    check_state(str(path), state, model.state_dict())
    if not isinstance(about, dict) or about.get("crc32") != _checksum(state):
        raise CheckpointError(f"{path} is damaged: its weights have not the checksum in its metadata")
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def train_digit_classifier(data: Dataset, steps: int, seed: int = 0) -> DigitClassifier:
    """Train on the training images, each shifted by up to one pixel each way; the result is in eval mode.

    Cross-entropy with smoothed labels (Szegedy et al. 2016), AdamW (Loshchilov and Hutter 2019), a cosine from
    `LEARNING_RATE` to zero. The generator of PyTorch is left as it was.

    Raises:
        ValueError: a data set without labels, or no step.
    """
    if data.train_labels is None or steps < 1:
        raise ValueError(f"train_digit_classifier: {steps} steps on {data.name}; allowed: steps >= 1, labelled images")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            index = torch.randint(len(data.train_images), (BATCH_SIZE,))
            logits = model.logits(_shifted(data.train_images[index]))
            loss = F.cross_entropy(logits, data.train_labels[index], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: DigitClassifier, images: Tensor, labels: Tensor | None) -> float:
    """Fraction of images [N, 1, 8, 8] that the classifier gives their label, int64 [N]; not a number without labels."""
    return math.nan if labels is None else float((model.logits(images).argmax(1) == labels).double().mean())


def save_digit_classifier(path: str | Path, model: DigitClassifier, about: Mapping[str, object]) -> None:
    """Write the weights, with plain values about them and their checksum in the metadata."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    record = json.dumps({**about, "crc32": _checksum(state)})
    Path(path).write_bytes(tensors_to_bytes(state, metadata={ABOUT: record}))


def main() -> None:
    """Train the classifier, print its accuracy, write its file."""
    parser = argparse.ArgumentParser(prog="python -m fastdiff.digit_features", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, default=3000, help=f"optimiser steps, of {BATCH_SIZE} images each")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches, the shifts and the dropout")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps is {arguments.steps}; allowed: an integer >= 1")
    if not arguments.out.parent.is_dir():
        parser.error(f"--out is {arguments.out}; allowed: a file in a folder that exists")
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    data = digits()
    model = train_digit_classifier(data, arguments.steps, arguments.seed)
    scores = {
        "train_accuracy": round(accuracy(model, data.train_images, data.train_labels), 4),
        "test_accuracy": round(accuracy(model, data.test_images, data.test_labels), 4),
    }
    about = {
        "model": "fastdiff DigitClassifier", "data": "the 1500 training images of digits, shifted by up to one pixel",
        "steps": arguments.steps, "seed": arguments.seed, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY, "dropout": DROPOUT, "label_smoothing": LABEL_SMOOTHING,
        "torch": torch.__version__.split("+")[0], **scores,
    }  # fmt: skip
    save_digit_classifier(arguments.out, model, about)
    print(f"{arguments.out}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))


def _shifted(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel down and across, filled with level 0."""
    count, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))
    down, across = torch.randint(3, (2, count, 1, 1))
    rows = down + torch.arange(height)[:, None]
    columns = across + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], 0, rows, columns][:, None]


def _checksum(state: Mapping[str, Tensor]) -> int:
    """CRC-32 of the tensors' bytes, in the order of their names."""
    return zlib.crc32(b"".join(state[name].numpy().tobytes() for name in sorted(state)))


if __name__ == "__main__":
    main()
